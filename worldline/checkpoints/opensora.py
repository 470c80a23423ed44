"""Open-Sora 2.0's transformer as a configuration of our MMDiT: its tensors' names, and its config from their shapes.

Its file is flat, without a config: what is not in the shapes (heads, rotary axes) is as published (Peng et al. 2025,
"Open-Sora 2.0").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from worldline.checkpoints.keymap import Entry, linear, stacked, then
from worldline.dit.mmdit import MMDiTConfig

HEAD = 128  # channels of a published head
AXES = (16, 56, 56)


def config_of_shapes(shapes: Mapping[str, Sequence[int]], values: Mapping[str, Any] | None = None) -> MMDiTConfig:
    """The config of tensors of these shapes; `values` may say what no shape does: num_heads, axes_dim, patch_size."""
    values = values or {}
    width, inputs = shapes["img_in.weight"]
    side = values.get("patch_size", 2)
    return MMDiTConfig(
        in_channels=inputs // side**2,
        patch=(1, side, side),
        width=width,
        heads=values.get("num_heads", width // HEAD),
        depth=_count(shapes, "double_blocks."),
        single_depth=_count(shapes, "single_blocks."),
        text_width=shapes["txt_in.weight"][1],
        vector_width=shapes["vector_in.in_layer.weight"][1],
        mlp_ratio=shapes["double_blocks.0.img_mlp.0.weight"][0] / width,
        rope_axes=tuple(values.get("axes_dim", AXES)),
        rope_theta=float(values.get("theta", 10_000)),
        masks="cond_in.weight" in shapes,
        guidance="guidance_in.in_layer.weight" in shapes,
    )


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
