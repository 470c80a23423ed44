"""Wan 2.1 and 2.2 as configurations of our transformer: their config fields, and their tensors' names and layouts.

Wan's diffusers folders are read, and the names of the authors' own repository. Facts of the architecture: Wan team
2025, "Wan: Open and Advanced Large-Scale Video Generative Models", and the published configs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldline.checkpoints import layout
from worldline.checkpoints.folder import Parts, SchedulerConfig, read_weights
from worldline.checkpoints.keymap import Entry, each, linear, loaded, same, stacked, then
from worldline.checkpoints.wan_vae import load_wan_vae
from worldline.dit.config import DiTConfig, Known
from worldline.dit.model import DiT
from worldline.errors import UserError
from worldline.text import HFImage, HFText

CLASS = "WanTransformer3DModel"
UNUSED = ("norm_added_q.weight", "norm_q_img.weight")  # published with image models, read by none
MASK_VALUES = 4  # frames of a latent frame: an image model reads which of them are known
FIELDS = {  # of their config, with the values that a missing field has
    "patch_size": (1, 2, 2),
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 13824,
    "num_layers": 40,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "rope_max_seq_len": 1024,
    "pos_embed_seq_len": None,
}


def config_of(values: Mapping[str, Any], place: str = "transformer") -> DiTConfig:
    """Our config of a `WanTransformer3DModel`'s. Raises UserError for fields or values that no Wan model has."""
    unknown = [name for name in values if name not in FIELDS and not name.startswith("_")]
    if unknown:
        raise UserError(f"--model {place}: config.json has an unknown field '{unknown[0]}' for {CLASS}")
    full = {**FIELDS, **values}
    for name, only in (("eps", 1e-6), ("cross_attn_norm", True), ("qk_norm", FIELDS["qk_norm"])):
        if full[name] != only:
            raise UserError(f"--model {place}: config.json has {name}={full[name]!r}; {CLASS} is read with {only!r}")
    heads, head = full["num_attention_heads"], full["attention_head_dim"]
    channels = full["out_channels"] or full["in_channels"]
    beside = full["in_channels"] - channels
    if beside not in (0, channels, channels + MASK_VALUES):
        raise UserError(f"--model {place}: in_channels={full['in_channels']} is read as no known set of conditions")
    side = 2 * (head // 6)
    return DiTConfig(
        in_channels=channels,
        patch=tuple(full["patch_size"]),
        width=heads * head,
        depth=full["num_layers"],
        heads=heads,
        text_width=full["text_dim"],
        mlp_ratio=full["ffn_dim"] / (heads * head),
        mlp_gelu="tanh",
        bias=True,
        rope_axes=(head - 2 * side, side, side),
        rope_theta=10_000.0,
        learned_positions=(0, 0, 0),
        norm="layer",
        cross_gain=True,
        qk_norm="width",
        text_mlp=True,
        final_table=True,
        time_features=full["freq_dim"],
        image_width=full["image_dim"] or 0,
        image_positions=full["pos_embed_seq_len"] or 0,
        masks=beside > 0,
        known="clip" if beside else None,
        mask_values=MASK_VALUES if beside > channels else 0 if beside else 1,
    )


def config_to(config: DiTConfig) -> dict[str, Any]:
    """The inverse of `config_of`."""
    beside = config.in_channels + config.mask_values if config.masks else 0
    return {
        **FIELDS,
        "patch_size": list(config.patch),
        "num_attention_heads": config.heads,
        "attention_head_dim": config.head_dim,
        "in_channels": config.in_channels + beside,
        "out_channels": config.in_channels,
        "text_dim": config.text_width,
        "freq_dim": config.time_features,
        "ffn_dim": round(config.width * config.mlp_ratio),
        "num_layers": config.depth,
        "image_dim": config.image_width or None,
        "added_kv_proj_dim": config.width if config.image_width else None,
        "pos_embed_seq_len": config.image_positions or None,
    }


def table(config: DiTConfig) -> list[Entry]:
    """Every tensor of the transformer, ours and theirs (diffusers names)."""
    cond = "condition_embedder."
    entries = [
        then(same("embed.weight", "patch_embedding.weight"), _Inputs(config).pack, _Inputs(config).unpack),
        same("embed.bias", "patch_embedding.bias"),
        *linear("text.up", f"{cond}text_embedder.linear_1"),
        *linear("text.down", f"{cond}text_embedder.linear_2"),
        *linear("time.up", f"{cond}time_embedder.linear_1"),
        *linear("time.down", f"{cond}time_embedder.linear_2"),
        *linear("modulation", f"{cond}time_proj"),
        then(same("final_table", "scale_shift_table"), lambda x: x[0], lambda x: x[None]),
        *(then(entry, *_outputs(config)) for entry in linear("head", "proj_out")),
    ]
    if config.image_width:
        image = f"{cond}image_embedder."
        entries += linear("picture.before", f"{image}norm1") + linear("picture.after", f"{image}norm2")
        entries += linear("picture.mlp.up", f"{image}ff.net.0.proj") + linear("picture.mlp.down", f"{image}ff.net.2")
    if config.image_positions:
        entries.append(then(same("picture.positions", f"{image}pos_embed"), _pairs_in, _pairs_out))
    return entries + [entry for i in range(config.depth) for entry in _block(config, i)]


def _block(config: DiTConfig, i: int) -> list[Entry]:
    ours, theirs = f"blocks.{i}.", f"blocks.{i}."
    halves, whole = _halves(config), (config.heads, config.head_dim)
    own, cross = f"{theirs}attn1.", f"{theirs}attn2."
    qkv = linear(f"{ours}attention.qkv", *(f"{own}to_{name}" for name in "qkv"))
    gain = stacked(f"{ours}attention.gain", f"{own}norm_q.weight", f"{own}norm_k.weight")
    text_gain = stacked(f"{ours}cross.gain", f"{cross}norm_q.weight", f"{cross}norm_k.weight")
    entries = [
        then(same(f"{ours}table", f"{theirs}scale_shift_table"), _table_in, _table_out),
        *(each(entry, *halves, parts=2) for entry in qkv),
        then(each(gain, *halves, parts=2), lambda x: x.view(2, *whole), lambda x: x.flatten()),
        *linear(f"{ours}attention.out", f"{own}to_out.0"),
        *linear(f"{ours}cross_norm", f"{theirs}norm2"),
        *linear(f"{ours}cross.q", f"{cross}to_q"),
        *linear(f"{ours}cross.kv", f"{cross}to_k", f"{cross}to_v"),
        then(text_gain, lambda x: x.view(2, *whole), lambda x: x.flatten()),
        *linear(f"{ours}cross.out", f"{cross}to_out.0"),
        *linear(f"{ours}mlp.up", f"{theirs}ffn.net.0.proj"),
        *linear(f"{ours}mlp.down", f"{theirs}ffn.net.2"),
    ]
    if config.image_width:
        entries += linear(f"{ours}cross.kv_image", f"{cross}add_k_proj", f"{cross}add_v_proj")
        image_gain = same(f"{ours}cross.gain_image", f"{cross}norm_added_k.weight")
        entries.append(then(image_gain, lambda x: x.view(whole), lambda x: x.flatten()))
    return entries


# ---- layouts -----------------------------------------------------------------------------------


class _Inputs:
    """Their patch embedding reads noise, mask, image latents as channels of a convolution; ours noise, known, mask."""

    def __init__(self, config: DiTConfig) -> None:
        c, m = config.in_channels, config.mask_values
        self.patch = config.patch
        order = list(range(c))
        if config.masks:
            order += [*range(c + m, 2 * c + m), *range(c, c + m)]
        self.order = torch.tensor(order)

    def pack(self, weight: Tensor) -> Tensor:
        return weight[:, self.order].flatten(1)

    def unpack(self, weight: Tensor) -> Tensor:
        return weight.unflatten(1, (len(self.order), *self.patch))[:, self.order.argsort()]


def _outputs(config: DiTConfig) -> tuple[Any, Any]:
    """Rows of their head run (pt, ph, pw, c), of ours (c, pt, ph, pw)."""
    c, cells = config.in_channels, config.cells
    return (
        lambda x: x.unflatten(0, (cells, c)).transpose(0, 1).flatten(0, 1),
        lambda x: x.unflatten(0, (c, cells)).transpose(0, 1).flatten(0, 1),
    )


def _halves(config: DiTConfig) -> tuple[Any, Any]:
    """They rotate neighbouring channels, we the two halves of a head: rows of queries and keys change places."""
    heads, half = config.heads, config.head_dim // 2

    def pack(x: Tensor) -> Tensor:
        return x.unflatten(0, (heads, half, 2)).transpose(1, 2).flatten(0, 2)

    def unpack(x: Tensor) -> Tensor:
        return x.unflatten(0, (heads, 2, half)).transpose(1, 2).flatten(0, 2)

    return pack, unpack


def _table_in(x: Tensor) -> Tensor:
    """(1, 6, D) -> (6, 1, D): our scales hold the one that theirs are added to."""
    return x.transpose(0, 1) + _ones(x)


def _table_out(x: Tensor) -> Tensor:
    return (x - _ones(x)).transpose(0, 1)


def _ones(x: Tensor) -> Tensor:
    return torch.tensor([0, 1, 0, 0, 1, 0]).view(6, 1, 1).to(x)


def _pairs_in(x: Tensor) -> Tensor:
    return x[0]


def _pairs_out(x: Tensor) -> Tensor:
    return x[None]


# ---- a whole folder ----------------------------------------------------------------------------


def load(folder: Path) -> Parts:
    """A checked diffusers folder of Wan, weights in the type that they are stored in.

    Raises UserError for parts that are missing, foreign or do not fit.
    """
    index = layout.read_json(folder / layout.INDEX)
    # Where every token has a time of its own, a picture stands clean among the noisy tokens, at time 0.
    known: Known | None = "clean" if index.get("expand_timesteps") else None
    dit = _transformer(folder, "transformer", known)
    low = _transformer(folder, "transformer_2", known) if index.get("boundary_ratio") else None
    if low is not None and low.config != dit.config:
        raise UserError(f"--model {folder}: its two experts differ in their config.json; copy the model folder again")
    vae, whitening = load_wan_vae(folder / "vae")
    grid = layout.traits(folder).grid
    if (vae.config.temporal, vae.config.spatial) != (grid.temporal, grid.spatial):
        raise UserError(f"--model {folder / 'vae'}: config.json has other scale factors than its levels and patch_size")
    text = HFText(str(folder), max_tokens=TEXT_ROWS, subfolder="text_encoder", padding="zeros", clean=True)
    image = HFImage(str(folder), subfolder="image_encoder") if dit.config.image_width else None
    about = layout.read_json(folder / "scheduler" / "scheduler_config.json")
    scheduler = SchedulerConfig(shift=float(about.get("flow_shift") or 1.0), spacing="authors")
    boundary = index.get("boundary_ratio") or 0.0
    return Parts(vae, dit, text, whitening, scheduler, layout.defaults(folder), low, boundary, image)


def _transformer(folder: Path, component: str, known: Known | None) -> DiT:
    place = folder / component
    config = config_of(layout.read_json(place / "config.json"), str(place))
    config = replace(config, known=config.known or known)
    weights = read_weights(layout.weight_files(folder, component))
    return loaded(partial(DiT, config), table(config), weights, str(place), UNUSED)


TEXT_ROWS = 512  # states and zeros that a prompt is padded to

# ---- the authors' names ------------------------------------------------------------------------

NATIVE: Sequence[tuple[str, str]] = (  # patterns of the authors' names, and diffusers' names for them
    (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
    (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
    (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"^img_emb\.emb_pos$", "condition_embedder.image_embedder.pos_embed"),
    (r"^img_emb\.proj\.0\.", "condition_embedder.image_embedder.norm1."),
    (r"^img_emb\.proj\.1\.", "condition_embedder.image_embedder.ff.net.0.proj."),
    (r"^img_emb\.proj\.3\.", "condition_embedder.image_embedder.ff.net.2."),
    (r"^img_emb\.proj\.4\.", "condition_embedder.image_embedder.norm2."),
    (r"^head\.head\.", "proj_out."),
    (r"^head\.modulation$", "scale_shift_table"),
    (r"\.modulation$", ".scale_shift_table"),
    (r"\.self_attn\.", ".attn1."),
    (r"\.cross_attn\.", ".attn2."),
    (r"(attn\d)\.([qkv])\.", r"\1.to_\2."),
    (r"(attn\d)\.o\.", r"\1.to_out.0."),
    (r"(attn\d)\.([kv])_img\.", r"\1.add_\2_proj."),
    (r"(attn\d)\.norm_k_img\.", r"\1.norm_added_k."),
    (r"(attn\d)\.norm_q_img\.", r"\1.norm_added_q."),
    (r"\.ffn\.0\.", ".ffn.net.0.proj."),
    (r"\.ffn\.2\.", ".ffn.net.2."),
    (r"\.norm3\.", ".norm2."),  # the one with gains, before the text; diffusers counts norms in order of use
)


def renamed(name: str) -> str:
    """Diffusers' name of a tensor of the authors' repository."""
    for pattern, new in NATIVE:
        name = re.sub(pattern, new, name)
    return name


def is_native(names: Sequence[str] | set[str]) -> bool:
    """Whether tensors have the names of the authors' repository."""
    return "time_projection.1.weight" in names


def config_of_shapes(shapes: Mapping[str, Sequence[int]], values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A diffusers config from the shapes of tensors (diffusers names) and what the authors' config.json says.

    Their repositories leave out the widths of text and of pictures. The number of heads is only in `values`
    (`num_heads`); every published model has heads of 128.
    """
    values = values or {}
    width, channels, *patch = shapes["patch_embedding.weight"]
    heads = values.get("num_heads", width // 128)
    image = shapes.get("condition_embedder.image_embedder.norm1.weight")
    positions = shapes.get("condition_embedder.image_embedder.pos_embed")
    cells = patch[0] * patch[1] * patch[2]
    return {
        **FIELDS,
        "patch_size": patch,
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0] // cells,
        "text_dim": shapes["condition_embedder.text_embedder.linear_1.weight"][1],
        "freq_dim": shapes["condition_embedder.time_embedder.linear_1.weight"][1],
        "ffn_dim": shapes["blocks.0.ffn.net.0.proj.weight"][0],
        "num_layers": 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
        "image_dim": image[0] if image else None,
        "added_kv_proj_dim": width if image else None,
        "pos_embed_seq_len": positions[1] if positions else None,
    }
