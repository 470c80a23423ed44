"""Open-Sora 2.0 as configurations of our modules: its transformer's tensors and config, and its flat folder.

Its files have no configs: what is not in the shapes (heads, rotary axes) is as published (Peng et al. 2025, "Open-Sora
2.0"), unless a JSON file of the same name beside them says otherwise, in the words of its repository's own configs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from operator import index
from pathlib import Path
from typing import Any

import torch

from worldline.checkpoints import families, hunyuan_vae, keymap, layout, t5
from worldline.checkpoints.folder import Parts, SchedulerConfig
from worldline.checkpoints.hunyuan_vae import SCALING
from worldline.checkpoints.keymap import Entry, Piece, check_depth, fitting, linear, same, stacked, then
from worldline.checkpoints.weights import Weights
from worldline.dit.mmdit import MMDiT, MMDiTConfig
from worldline.errors import UserError
from worldline.text import HFText, WithPooled
from worldline.vae.hunyuan import HunyuanVAE, HunyuanVAEConfig

HEAD = 128  # channels of a published head
AXES = (16, 56, 56)
T5_TOKENS, CLIP_TOKENS = 512, 77
CLIP_UNREAD = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")  # the rest of a whole CLIP
SHAPED = ("img_in.weight", "txt_in.weight", "vector_in.in_layer.weight", "double_blocks.0.img_mlp.0.weight")


def config_of_shapes(
    shapes: Mapping[str, Sequence[int]], values: Mapping[str, Any] | None = None, place: str = "transformer"
) -> MMDiTConfig:
    """The config of tensors of these shapes; `values` may say what none does: num_heads, axes_dim, patch_size, theta.

    Raises UserError for tensors of something else, and for values that are unknown or that the tensors contradict.
    """
    foreign = [name for name in SHAPED if len(shapes.get(name, ())) != 2]
    if foreign:
        raise UserError(f"--model {place} has no matrix {foreign[0]}, so it is not Open-Sora 2.0's transformer")
    values = values or {}
    width, inputs = shapes["img_in.weight"]
    hidden = shapes["double_blocks.0.img_mlp.0.weight"][0]
    told: dict[str, Any] = {
        "in_channels": inputs,
        "hidden_size": width,
        "context_in_dim": shapes["txt_in.weight"][1],
        "vec_in_dim": shapes["vector_in.in_layer.weight"][1],
        "depth": _count(shapes, "double_blocks."),
        "depth_single_blocks": _count(shapes, "single_blocks."),
        "mlp_ratio": hidden / width,
        "cond_embed": "cond_in.weight" in shapes,
        "guidance_embed": "guidance_in.in_layer.weight" in shapes,
        "qkv_bias": True,
        "fused_qkv": False,
        "use_liger_rope": True,  # halves of a head are rotated; without it, neighbours
    }
    _agree(values, told, ("num_heads", "axes_dim", "patch_size", "theta"), place)
    side = index(values.get("patch_size", 2))
    time, height, breadth = (index(axis) for axis in values.get("axes_dim", AXES))
    return MMDiTConfig(
        in_channels=inputs // side**2,
        patch=(1, side, side),
        width=width,
        heads=index(values.get("num_heads", width // HEAD)),
        depth=told["depth"],
        single_depth=told["depth_single_blocks"],
        text_width=told["context_in_dim"],
        vector_width=told["vec_in_dim"],
        mlp_ratio=told["mlp_ratio"],
        rope_axes=(time, height, breadth),
        rope_theta=float(values.get("theta", 10_000)),
        masks=told["cond_embed"],
        known="beside" if told["cond_embed"] else None,
        guidance=told["guidance_embed"],
    )


def _agree(values: Mapping[str, Any], told: Mapping[str, Any], free: Sequence[str], place: str) -> None:
    """Raises UserError for values that are neither `free` nor as the tensors have `told`."""
    for name, value in values.items():
        if name not in told and name not in free:
            raise UserError(f"--model {place}: the config beside it has an unknown field '{name}'")
        if told.get(name, value) != value:
            raise UserError(f"--model {place}: the config beside it has {name}={value!r}; it is {told[name]!r}")


def table(config: MMDiTConfig) -> list[Entry]:
    """Every tensor of the transformer, ours and theirs."""
    entries = [
        *linear("embed", "img_in"),
        *linear("text", "txt_in"),
        *_embedder("time", "time_in"),
        *_embedder("vector", "vector_in"),
        *linear("final", "final_layer.adaLN_modulation.1"),
        *linear("head", "final_layer.linear"),
    ]
    entries += linear("condition", "cond_in") if config.masks else []
    entries += _embedder("guidance", "guidance_in") if config.guidance else []
    for i in range(config.depth):
        ours, theirs = f"double_blocks.{i}.", f"double_blocks.{i}."
        for stream, their in (("text", "txt"), ("tokens", "img")):
            entries += linear(f"{ours}modulation.{stream}", f"{theirs}{their}_mod.lin")
            entries += linear(f"{ours}heads.{stream}.qkv", *(f"{theirs}{their}_attn.{n}_proj" for n in "qkv"))
            entries.append(_gain(f"{ours}heads.{stream}.gain", f"{theirs}{their}_attn.norm."))
            entries += linear(f"{ours}out.{stream}", f"{theirs}{their}_attn.proj")
            entries += linear(f"{ours}mlp.{stream}.up", f"{theirs}{their}_mlp.0")
            entries += linear(f"{ours}mlp.{stream}.down", f"{theirs}{their}_mlp.2")
    parts = (config.width, config.width, config.width + round(config.width * config.mlp_ratio))
    for i in range(config.single_depth):
        ours, theirs = f"single_blocks.{i}.", f"single_blocks.{i}."
        entries += linear(f"{ours}modulation", f"{theirs}modulation.lin")
        entries += linear(f"{ours}up", f"{theirs}q_proj", f"{theirs}k_proj", f"{theirs}v_mlp", sizes=parts)
        entries.append(_gain(f"{ours}gain", f"{theirs}norm."))
        entries += linear(f"{ours}down", f"{theirs}linear2")
    return entries


def _embedder(ours: str, theirs: str) -> list[Entry]:
    return [*linear(f"{ours}.up", f"{theirs}.in_layer"), *linear(f"{ours}.down", f"{theirs}.out_layer")]


def _gain(ours: str, theirs: str) -> Entry:
    """Gains of queries and keys (2, head_dim)."""
    return then(
        stacked(ours, f"{theirs}query_norm.scale", f"{theirs}key_norm.scale"),
        lambda x: x.view(2, -1),
        lambda x: x.flatten(),
    )


def _count(shapes: Mapping[str, Sequence[int]], prefix: str) -> int:
    """How many blocks have names that begin so."""
    return len({name.split(".")[1] for name in shapes if name.startswith(prefix)})


# ---- a whole folder ----------------------------------------------------------------------------


def load(folder: Path, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Parts:
    """A checked folder of Open-Sora 2.0, CLIP in float32; `dtype` and `device` as of `load_parts`.

    Raises UserError for parts that do not fit their names, or each other: all misfits at once, before weights are read.
    """
    dit, vae = piece_of(folder), vae_of(folder)
    encoder = t5.piece_of(layout.weight_files(folder, "text_encoder"), layout.config(folder, "text_encoder"), "t5")
    clip = _clip_piece(folder)
    _check_fit(folder, dit.empty().config, vae.empty().config)
    keymap.check([dit, vae, encoder, clip])
    t5_place, clip_place = (str(folder / place) for place in families.OPENSORA_TOKENIZERS)
    text = WithPooled(
        HFText(t5_place, max_tokens=T5_TOKENS, padding="encoded", model=t5.load(encoder)),
        HFText(clip_place, max_tokens=CLIP_TOKENS),
    )
    whitening = hunyuan_vae.whitening(vae.empty().config.latent_channels)
    return Parts(
        vae.load(dtype, device),
        dit.load(dtype, device),
        text,
        whitening,
        SchedulerConfig(spacing="opensora"),
        layout.defaults(folder),
    )


def piece_of(folder: Path) -> Piece[MMDiT]:
    """The transformer of a folder before it is read."""
    files = layout.weight_files(folder, "transformer")
    weights, place = Weights(files), str(files[0])
    shapes = {name: tuple(value.shape) for name, value in weights.shapes.items()}
    with fitting(place):
        config = config_of_shapes(shapes, layout.config(folder, "transformer"), place)
        return Piece(place, partial(MMDiT, config), weights, table(config))


def vae_of(folder: Path) -> Piece[HunyuanVAE]:
    """The autoencoder of a folder before it is read."""
    values = layout.config(folder, "vae")
    groups = values.get("norm_num_groups", HunyuanVAEConfig.groups)
    piece = hunyuan_vae.piece_of(layout.weight_files(folder, "vae"), groups)
    config = piece.empty().config
    told = {
        "block_out_channels": list(config.widths),
        "layers_per_block": config.blocks,
        "latent_channels": config.latent_channels,
        "scale_factor": SCALING,
        "shift_factor": 0,
    }
    _agree(values, told, ("norm_num_groups",), piece.place)
    return piece


def _clip_piece(folder: Path) -> Piece[Any]:
    """CLIP's text tower, to be checked by its headers; `HFText` reads it. Its file often holds the whole of CLIP."""
    import transformers

    files, values = layout.weight_files(folder, "text_encoder_2"), layout.config(folder, "text_encoder_2")
    place = files[0].parent
    if values.get("model_type") not in ("clip", "clip_text_model"):
        raise UserError(f"--model {place}: its config.json is of a {values.get('model_type')}, not of CLIP")
    weights = Weights(files, lambda name: name.removeprefix("text_model."))
    with fitting(place):
        config = transformers.CLIPTextConfig.from_dict(values.get("text_config", values))
        check_depth(config.num_hidden_layers, weights, place)
        build = partial(transformers.CLIPTextModel, config)
        entries = [same(entry.ours, entry.ours.removeprefix("text_model.")) for entry in keymap.own(build)]
        unread = (name for name in weights if name.startswith(CLIP_UNREAD))
        return Piece(str(place), build, weights, entries, ("position_ids", *unread))


def _check_fit(folder: Path, dit: MMDiTConfig, vae: HunyuanVAEConfig) -> None:
    """Raises UserError where one part makes what another does not read."""
    if dit.guidance:
        raise UserError(
            f"--model {folder}: its transformer was distilled from guided answers, which is not sampled here"
        )
    states, clip = (layout.config(folder, part) for part in ("text_encoder", "text_encoder_2"))
    made = {
        "channels of latents": (vae.latent_channels, dit.in_channels),
        "pixels a latent cell": (vae.spatial, layout.traits(folder).grid.spatial),
        "values of T5's states": (states.get("d_model"), dit.text_width),
        "values of CLIP's vector": (clip.get("text_config", clip).get("hidden_size"), dit.vector_width),
    }
    for what, (found, read) in made.items():
        if found != read:
            raise UserError(f"--model {folder}: its parts do not fit, {found} {what} for {read}; copy the folder again")
