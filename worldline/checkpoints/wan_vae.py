"""Wan 2.1 and 2.2's video autoencoder: between our `CausalVAE` and the two layouts in which it is published.

*diffusers*: a folder with config.json (class AutoencoderKLWan) and safetensors. *native*: the authors' keys in one
file without a config, whose sizes follow from the shapes and whose whitening is a constant of the release.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from worldline.checkpoints import layout
from worldline.checkpoints.headers import conversion
from worldline.checkpoints.keymap import Entry, Piece, check_depth, fitting, same, then, to_theirs
from worldline.checkpoints.weights import Weights
from worldline.errors import UserError
from worldline.nn.hollow import bare
from worldline.vae.causal import CausalVAE, CausalVAEConfig
from worldline.vae.latents import Whitening

Layout = Literal["diffusers", "native"]

# Our module -> theirs, inside the encoder or decoder, inside a block, and outside both.
SIDE = {
    "diffusers": {"stem": "conv_in", "middle.before": "mid_block.resnets.0", "middle.after": "mid_block.resnets.1",
                  "middle.attention": "mid_block.attentions.0", "norm": "norm_out", "head": "conv_out"},
    "native": {"stem": "conv1", "middle.before": "middle.0", "middle.attention": "middle.1",
               "middle.after": "middle.2", "norm": "head.0", "head": "head.2"},
}  # fmt: skip
BLOCK = {
    "diffusers": {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "match": "conv_shortcut"},
    "native": {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6",
               "match": "shortcut"},
}  # fmt: skip
ENDS = {
    "diffusers": {"encoder.posterior": "quant_conv", "decoder.latent": "post_quant_conv"},
    "native": {"encoder.posterior": "conv1", "decoder.latent": "conv2"},
}
ATTENTION = {"norm": "norm", "qkv": "to_qkv", "out": "proj"}
RESIZE = {"space": "resample.1", "time": "time_conv"}

# Mean and standard deviation of each latent channel, by their number: Wan2.1 wan/modules/vae.py (also the defaults of
# diffusers' AutoencoderKLWan) and Wan2.2 wan/modules/vae2_2.py.
WHITENING: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    16: (
        (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
         0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
        (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
         3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    ),
    48: (
        (-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
         0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
         -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
         -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
        (0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
         0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
         0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
         0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
    ),
}  # fmt: skip


def load_wan_vae(path: str | Path, dtype: torch.dtype | None = torch.float32) -> tuple[CausalVAE, Whitening]:
    """Read a diffusers folder of AutoencoderKLWan or a safetensors file of the authors' layout, in eval mode.

    `dtype`: None leaves the weights as they are stored. Raises UserError for anything else, and for what does not fit.
    """
    path = Path(path)
    if path.is_dir():
        piece, whitening = piece_of(layout.files_of(path, "diffusion_pytorch_model"), path)
    elif path.suffix == ".safetensors":
        piece, whitening = piece_of([path])
    else:
        raise UserError(f"--vae {path}: not a safetensors file; pickles are never loaded, {conversion(path)}")
    return piece.load(dtype), whitening


def piece_of(files: Sequence[Path], folder: Path | None = None) -> tuple[Piece[CausalVAE], Whitening]:
    """The autoencoder before it is read: diffusers' where its config.json is in `folder`, else the authors' file."""
    weights = Weights(files)
    if folder is None:
        native = config_from_native(weights.shapes)
        piece = Piece(str(files[0]), partial(CausalVAE, native), weights, table(native, "native"))
        return piece, published_whitening(native.latent_channels)
    values = layout.read_json(folder / "config.json")
    with fitting(folder):
        config = config_from_diffusers(values)
        check_depth(config.blocks, weights, folder)
        piece = Piece(str(folder), partial(CausalVAE, config), weights, table(config, "diffusers"))
        return piece, whitening_from(values)


def from_weights(
    config: CausalVAEConfig, weights: Mapping[str, Tensor], kind: Layout, dtype: torch.dtype | None = None
) -> CausalVAE:
    """An autoencoder with foreign `weights`; raises one UserError that lists all that does not fit."""
    return Piece("vae", partial(CausalVAE, config), weights, table(config, kind)).load(dtype)


def to_weights(vae: CausalVAE, kind: Layout = "diffusers") -> dict[str, Tensor]:
    """The weights under foreign names and in foreign shapes; inverse of `from_weights`."""
    return dict(to_theirs(table(vae.config, kind), vae.state_dict()))


def table(config: CausalVAEConfig, kind: Layout) -> list[Entry]:
    """Every weight, ours and theirs."""
    with bare():
        own = CausalVAE(config).state_dict()
    modules = dict(_modules(config, kind))
    entries = []
    for key, value in own.items():
        module, leaf = key.rsplit(".", 1)
        entry = same(key, f"{modules[module]}.{'gamma' if leaf == 'gain' else leaf}")
        entries.append(then(entry, partial(_inwards, key, value.shape), partial(_outwards, key)))
    return entries


def _modules(config: CausalVAEConfig, kind: Layout) -> Iterator[tuple[str, str]]:
    """(our name, their name) of every module that holds weights."""
    yield from ENDS[kind].items()
    for side in ("encoder", "decoder"):
        for ours, theirs in SIDE[kind].items():
            inner = ATTENTION if ours.endswith("attention") else BLOCK[kind] if ours.startswith("middle") else {}
            yield from _inside(f"{side}.{ours}", f"{side}.{theirs}", inner)
        count = config.blocks + (side == "decoder")
        for level in range(len(config.multipliers)):
            for index in range(count):
                there = f"{side}.{_place(side, level, index, count, config.shortcuts, kind)}"
                yield from _inside(f"{side}.levels.{level}.blocks.{index}", there, BLOCK[kind])
            there = f"{side}.{_place(side, level, count, count, config.shortcuts, kind)}"
            yield from _inside(f"{side}.levels.{level}.resize", there, RESIZE)


def _inside(ours: str, theirs: str, inner: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The module itself, or those in it."""
    if not inner:
        yield ours, theirs
    for a, b in inner.items():
        yield f"{ours}.{a}", f"{theirs}.{b}"


def _place(side: str, level: int, index: int, count: int, nested: bool, kind: Layout) -> str:
    """Their name of a level's layer `index`; its resampling has the index `count`."""
    flat = level * (count + 1) + index
    if kind == "native":
        name = "downsamples" if side == "encoder" else "upsamples"
        return f"{name}.{level}.{name}.{index}" if nested else f"{name}.{flat}"
    if side == "encoder" and not nested:
        return f"down_blocks.{flat}"
    stem = f"down_blocks.{level}" if side == "encoder" else f"up_blocks.{level}"
    if index < count:
        return f"{stem}.resnets.{index}"
    if side == "encoder":
        return f"{stem}.downsampler"
    return f"{stem}.upsampler" if nested else f"{stem}.upsamplers.0"


# Kernels of one place are matrices here; those over three frames have their taps side by side, earliest first.


def _inwards(ours: str, shape: torch.Size, value: Tensor) -> Tensor:
    if ours.endswith("time.weight"):
        value = value.flatten(2).transpose(1, 2)  # (O, C, 3, 1, 1) -> (O, 3, C)
    return value.reshape(shape)


def _outwards(ours: str, value: Tensor) -> Tensor:
    inside_frame = ".attention." in ours  # 2-D there, 3-D everywhere else
    if ours.endswith("time.weight"):
        return value.unflatten(1, (3, -1)).transpose(1, 2)[..., None, None]
    if ours.endswith("gain") or value.ndim == 2:
        return value.reshape(*value.shape, *[1] * (2 if inside_frame else 3))
    return value


# ---- configs -----------------------------------------------------------------------------------


FIELDS = (  # of AutoencoderKLWan's config, those included that change nothing here
    "base_dim",
    "decoder_base_dim",
    "z_dim",
    "dim_mult",
    "num_res_blocks",
    "attn_scales",
    "temperal_downsample",
    "dropout",
    "latents_mean",
    "latents_std",
    "is_residual",
    "in_channels",
    "out_channels",
    "patch_size",
    "scale_factor_temporal",
    "scale_factor_spatial",
)


def config_from_diffusers(values: Mapping[str, Any]) -> CausalVAEConfig:
    """From the config.json of AutoencoderKLWan, whose absent fields have that class's defaults."""
    name = values.get("_class_name", "AutoencoderKLWan")
    if name != "AutoencoderKLWan":
        raise UserError(f"--vae: its config.json is of class {name}, not AutoencoderKLWan")
    unknown = [field for field in values if field not in FIELDS and not field.startswith("_")]
    if unknown:
        raise UserError(f"--vae: config.json has an unknown field '{unknown[0]}' for AutoencoderKLWan")
    if values.get("attn_scales"):
        raise UserError(f"--vae: attn_scales={values['attn_scales']} is not supported; no release has attention there")
    patch = values.get("patch_size") or 1
    for field in ("in_channels", "out_channels"):
        if values.get(field, 3) != 3 * patch**2:
            raise UserError(f"--vae: {field}={values.get(field, 3)} must be {3 * patch**2} for patch_size={patch}")
    width = values.get("base_dim", 96)
    return CausalVAEConfig(
        latent_channels=values.get("z_dim", 16),
        encoder_width=width,
        decoder_width=values.get("decoder_base_dim") or width,
        multipliers=values.get("dim_mult", (1, 2, 4, 4)),
        halve_time=values.get("temperal_downsample", (False, True, True)),
        blocks=values.get("num_res_blocks", 2),
        patch=patch,
        shortcuts=values.get("is_residual", False),
    )


def config_to_diffusers(config: CausalVAEConfig, whitening: Whitening) -> dict[str, Any]:
    """The config.json of AutoencoderKLWan; inverse of `config_from_diffusers` and `whitening_from`."""
    return {
        "_class_name": "AutoencoderKLWan",
        "base_dim": config.encoder_width,
        "decoder_base_dim": config.decoder_width,
        "z_dim": config.latent_channels,
        "dim_mult": list(config.multipliers),
        "num_res_blocks": config.blocks,
        "attn_scales": [],
        "temperal_downsample": list(config.halve_time),
        "dropout": 0.0,
        "latents_mean": whitening.mean.tolist(),
        "latents_std": (whitening.std / whitening.gain).tolist(),
        "is_residual": config.shortcuts,
        "in_channels": 3 * config.patch**2,
        "out_channels": 3 * config.patch**2,
        "patch_size": None if config.patch == 1 else config.patch,
        "scale_factor_temporal": config.temporal,
        "scale_factor_spatial": config.spatial,
    }


def config_from_native(weights: Mapping[str, Tensor]) -> CausalVAEConfig:
    """From the shapes of the authors' file; raises UserError where a key is missing."""
    try:
        nested = "encoder.downsamples.0.downsamples.0.residual.2.weight" in weights
        levels = _native_levels(weights, nested)
        width, folded = weights["encoder.conv1.weight"].shape[:2]
        outputs = [level[-1] for level, _ in levels]
        return CausalVAEConfig(
            latent_channels=weights["conv2.weight"].shape[0],
            encoder_width=width,
            decoder_width=weights["decoder.head.0.gamma"].shape[0] * width // outputs[0],
            multipliers=tuple(output // width for output in outputs),
            halve_time=tuple(time for _, time in levels[:-1]),
            blocks=len(levels[0][0]),
            patch=math.isqrt(folded // 3),
            shortcuts=nested,
        )
    except (KeyError, IndexError) as error:
        raise UserError(f"--vae: no key {error} of Wan's own layout; is it the file of a Wan autoencoder?") from None


def _native_levels(weights: Mapping[str, Tensor], nested: bool) -> list[tuple[list[int], bool]]:
    """For each level of the encoder: its blocks' widths, and whether it halves time."""
    levels: list[tuple[list[int], bool]] = [([], False)]
    places = [f"{i}.downsamples.{j}" for i in range(16) for j in range(16)] if nested else [str(i) for i in range(99)]
    for place in places:
        stem = f"encoder.downsamples.{place}"
        if f"{stem}.residual.6.weight" in weights:
            levels[-1][0].append(weights[f"{stem}.residual.6.weight"].shape[0])
        elif f"{stem}.resample.1.weight" in weights:
            levels[-1] = (levels[-1][0], f"{stem}.time_conv.weight" in weights)
            levels.append(([], False))
    return levels


def whitening_from(values: Mapping[str, Any]) -> Whitening:
    """From a config.json's latents_mean and latents_std; absent ones are those of Wan 2.1, the class's defaults."""
    mean, std = WHITENING[16]
    return Whitening.from_dict({
        "mean": values.get("latents_mean", mean),
        "std": values.get("latents_std", std),
        "gain": [1.0] * values.get("z_dim", 16),
    })  # fmt: skip


def published_whitening(channels: int) -> Whitening:
    """Of the release with so many latent channels; raises UserError for any other number."""
    if channels not in WHITENING:
        raise UserError(f"--vae: {channels} latent channels belong to no release of Wan; known: {sorted(WHITENING)}")
    mean, std = WHITENING[channels]
    return Whitening(torch.tensor(mean), torch.tensor(std), torch.ones(channels))
