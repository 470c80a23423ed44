"""HunyuanVideo's video autoencoder: between our `HunyuanVAE` and diffusers' AutoencoderKLHunyuanVideo.

Open-Sora 2.0 ships the same keys in one file without a config (hunyuan_vae.safetensors).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldline.checkpoints import layout
from worldline.checkpoints.headers import conversion
from worldline.checkpoints.keymap import Entry, Piece, fitting, same, then, to_theirs
from worldline.checkpoints.weights import Weights
from worldline.errors import UserError
from worldline.nn.hollow import bare
from worldline.vae.hunyuan import HunyuanVAE, HunyuanVAEConfig
from worldline.vae.latents import Whitening

CLASS = "AutoencoderKLHunyuanVideo"
SCALING = 0.476986  # diffusers' default scaling_factor and Open-Sora's scale_factor: latents * SCALING are diffused
BLOCK = {"norm1": "norm1", "conv1": "conv1.conv", "norm2": "norm2", "conv2": "conv2.conv",
         "match": "conv_shortcut.conv"}  # fmt: skip
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
MIDDLE = {"before": ("resnets.0", BLOCK), "attention": ("attentions.0", ATTENTION), "after": ("resnets.1", BLOCK)}


def load_hunyuan_vae(
    path: str | Path, dtype: torch.dtype = torch.float32, groups: int = 32
) -> tuple[HunyuanVAE, Whitening]:
    """Read a diffusers folder, or Open-Sora's single safetensors file, in eval mode.

    `groups`: of the norms, which a file without a config does not tell. Raises UserError for what does not fit.
    """
    path = Path(path)
    if path.is_dir():
        values = layout.read_json(path / "config.json")
        weights = Weights(layout.files_of(path, "diffusion_pytorch_model"))
        config, scaling = config_from_diffusers(values), values.get("scaling_factor", SCALING)
    elif path.suffix == ".safetensors":
        piece = piece_of([path], groups)
        return piece.load(dtype), whitening(piece.empty().config.latent_channels)
    else:
        raise UserError(f"--vae {path}: not a safetensors file; pickles are never loaded, {conversion(path)}")
    return from_weights(config, weights, dtype), whitening(config.latent_channels, scaling)


def piece_of(files: Sequence[Path], groups: int = 32) -> Piece[HunyuanVAE]:
    """The autoencoder of Open-Sora's file before it is read; `groups` as in `load_hunyuan_vae`."""
    weights = Weights(files)
    with fitting(files[0]):
        config = config_from_weights(weights.shapes, groups)
        return Piece(str(files[0]), partial(HunyuanVAE, config), weights, table(config))


def whitening(channels: int, scaling: float = SCALING) -> Whitening:
    """Latents times one factor, as this family has it."""
    return Whitening(torch.zeros(channels), torch.full((channels,), 1.0 / scaling), torch.ones(channels))


def from_weights(
    config: HunyuanVAEConfig, weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> HunyuanVAE:
    """An autoencoder with foreign `weights`; raises one UserError that lists all that does not fit."""
    return Piece("vae", partial(HunyuanVAE, config), weights, table(config)).load(dtype)


def to_weights(vae: HunyuanVAE) -> dict[str, Tensor]:
    """The weights under foreign names and in foreign shapes; inverse of `from_weights`."""
    return dict(to_theirs(table(vae.config), vae.state_dict()))


def table(config: HunyuanVAEConfig) -> list[Entry]:
    """Every weight, ours and theirs; their kernels of one place are matrices here."""
    with bare():
        own = HunyuanVAE(config).state_dict()
    modules = dict(_modules(config))
    entries = []
    for key, value in own.items():
        module, leaf = key.rsplit(".", 1)
        entry = same(key, f"{modules[module]}.{leaf}")
        is_kernel = value.ndim == 2 and ".attentions." not in entry.theirs[0]
        entries.append(then(entry, _matrix, _kernel) if is_kernel else entry)
    return entries


def _matrix(value: Tensor) -> Tensor:
    return value.flatten(1)


def _kernel(value: Tensor) -> Tensor:
    return value[..., None, None, None]


def _modules(config: HunyuanVAEConfig) -> Iterator[tuple[str, str]]:
    """(our name, their name) of every module that holds weights."""
    yield from (("encoder.posterior", "quant_conv"), ("decoder.latent", "post_quant_conv"))
    for side, way in (("encoder", "down"), ("decoder", "up")):
        yield from ((f"{side}.stem", f"{side}.conv_in.conv"), (f"{side}.head", f"{side}.conv_out.conv"))
        yield f"{side}.norm", f"{side}.conv_norm_out"
        for ours, (theirs, inner) in MIDDLE.items():
            yield from ((f"{side}.middle.{ours}.{a}", f"{side}.mid_block.{theirs}.{b}") for a, b in inner.items())
        for level in range(len(config.widths)):
            here, there = f"{side}.levels.{level}", f"{side}.{way}_blocks.{level}"
            yield f"{here}.resize", f"{there}.{way}samplers.0.conv.conv"
            for index in range(config.blocks + (side == "decoder")):
                yield from ((f"{here}.blocks.{index}.{a}", f"{there}.resnets.{index}.{b}") for a, b in BLOCK.items())


# ---- configs -----------------------------------------------------------------------------------


def config_from_diffusers(values: Mapping[str, Any]) -> HunyuanVAEConfig:
    """From the config.json of AutoencoderKLHunyuanVideo, whose absent fields have that class's defaults."""
    name = values.get("_class_name", CLASS)
    if name != CLASS:
        raise UserError(f"--vae: its config.json is of class {name}, not {CLASS}")
    widths = values.get("block_out_channels", (128, 256, 512, 512))
    needed = {"in_channels": 3, "out_channels": 3, "act_fn": "silu", "temporal_compression_ratio": 4,
              "spatial_compression_ratio": 2 ** (len(widths) - 1), "mid_block_add_attention": True}  # fmt: skip
    defaults = {**needed, "spatial_compression_ratio": 8}
    for field, value in needed.items():
        if values.get(field, defaults[field]) != value:
            raise UserError(f"--vae: {field}={values.get(field, defaults[field])} is not supported, only {value}")
    return HunyuanVAEConfig(
        latent_channels=values.get("latent_channels", 16),
        widths=widths,
        blocks=values.get("layers_per_block", 2),
        groups=values.get("norm_num_groups", 32),
    )


def config_to_diffusers(config: HunyuanVAEConfig, scaling: float = SCALING) -> dict[str, Any]:
    """The config.json of AutoencoderKLHunyuanVideo; inverse of `config_from_diffusers`."""
    return {
        "_class_name": CLASS,
        "latent_channels": config.latent_channels,
        "block_out_channels": list(config.widths),
        "layers_per_block": config.blocks,
        "norm_num_groups": config.groups,
        "scaling_factor": scaling,
        "spatial_compression_ratio": config.spatial,
        "temporal_compression_ratio": config.temporal,
    }


def config_from_weights(weights: Mapping[str, Tensor], groups: int = 32) -> HunyuanVAEConfig:
    """From the shapes of a file without a config; raises UserError where a key is missing."""
    stem = "encoder.down_blocks.{}.resnets.{}.conv2.conv.weight"
    widths = [weights[stem.format(i, 0)].shape[0] for i in range(16) if stem.format(i, 0) in weights]
    if not widths or "post_quant_conv.weight" not in weights:
        raise UserError(f"--vae: no keys of {CLASS}; is it the file of HunyuanVideo's autoencoder?")
    blocks = sum(stem.format(0, j) in weights for j in range(16))
    return HunyuanVAEConfig(weights["post_quant_conv.weight"].shape[0], tuple(widths), blocks, groups)
