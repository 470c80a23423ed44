"""Wan 2.1 and 2.2 as configurations of our transformer: their config fields, and their tensors' names and layouts.

Wan's diffusers folders are read and written, and the authors' own read. Facts of the architecture: Wan team
2025, "Wan: Open and Advanced Large-Scale Video Generative Models", and the published configs.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldline.checkpoints import clip, families, keymap, layout, t5, wan_vae
from worldline.checkpoints.folder import Parts, SchedulerConfig
from worldline.checkpoints.keymap import (
    Entry,
    Piece,
    check_depth,
    each,
    fitting,
    linear,
    same,
    stacked,
    then,
    to_theirs,
)
from worldline.checkpoints.weights import MB, Weights, write_component, write_json
from worldline.dit.config import DiTConfig, Known
from worldline.dit.model import DiT
from worldline.errors import UserError
from worldline.nn.hollow import is_hollow
from worldline.text import HFImage, HFText
from worldline.vae.causal import CausalVAE
from worldline.vae.latents import Whitening

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
        scales_add_one=True,
        wide_sum=True,
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
        then(same(f"{ours}table", f"{theirs}scale_shift_table"), _turned, _turned),
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


def _turned(x: Tensor) -> Tensor:
    """(1, 6, D) <-> (6, 1, D)."""
    return x.transpose(0, 1)


def _pairs_in(x: Tensor) -> Tensor:
    return x[0]


def _pairs_out(x: Tensor) -> Tensor:
    return x[None]


# ---- a whole folder ----------------------------------------------------------------------------


TEXT_ROWS = 512  # states and zeros that a prompt is padded to
SHARD_BYTES = 2048 * MB
TOKENIZER, PROCESSOR = "T5TokenizerFast", "CLIPImageProcessor"
SCHEDULER = {  # as diffusers' folders of Wan have it
    "_class_name": "UniPCMultistepScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "solver_order": 2,
    "solver_type": "bh2",
}


def load(folder: Path, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Parts:
    """A checked folder of the Wan family, or of its authors; `dtype` and `device` as of `load_parts`.

    Raises UserError for parts that are missing, foreign or do not fit: all misfits at once, before weights are read.
    """
    native, index = layout.is_native(folder), layout.index_of(folder)
    with fitting(folder / layout.INDEX):
        boundary = float(index.get("boundary_ratio") or 0.0)
    dit = piece_of(folder)
    low = piece_of(folder, "transformer_2") if boundary else None
    vae, whitening = vae_of(folder)
    text = t5.piece_of(layout.weight_files(folder, "text_encoder"), layout.config(folder, "text_encoder"))
    image = clip.piece_of(folder) if dit.empty().config.image_width else None
    pieces: list[Piece[Any] | None] = [dit, low, vae, text, image]
    keymap.check(piece for piece in pieces if piece)
    if low is not None and low.empty().config != dit.empty().config:
        raise UserError(f"--model {folder}: its two experts differ in their config.json; copy the model folder again")
    grid, codec = layout.traits(folder).grid, vae.empty().config
    if (codec.temporal, codec.spatial) != (grid.temporal, grid.spatial):
        raise UserError(f"--model {vae.place}: config.json has other scale factors than its levels and patch_size")
    scheduler = _scheduler(folder)
    encoder = HFText(
        str(folder / families.NATIVE_TOKENIZER if native else folder),
        max_tokens=TEXT_ROWS,
        subfolder="" if native else "text_encoder",
        padding="zeros",
        clean=True,
        model=t5.load(text),
    )
    return Parts(
        vae.load(dtype, device),
        dit.load(dtype, device),
        encoder,
        whitening,
        scheduler,
        layout.defaults(folder),
        low.empty() if low else None,
        boundary,
        HFImage(str(folder), model=clip.load(image)) if image else None,
        (dit, low) if low else None,
    )


def piece_of(folder: Path, part: str = "transformer") -> Piece[DiT]:
    """A transformer of a folder before it is read."""
    files, values, place = layout.weight_files(folder, part), layout.config(folder, part), folder / part
    # Where every token has a time of its own, a picture stands clean among the noisy tokens, at time 0.
    known: Known | None = "clean" if layout.index_of(folder).get("expand_timesteps") else None
    native = layout.native(folder) if layout.is_native(folder) else None
    if native is None:
        weights = Weights(files)
    else:
        weights, place = Weights(files, keymap.renaming(NATIVE)), layout.native_place(folder, part)
        values = config_of_native(values, {name: value.shape for name, value in weights.shapes.items()}, str(place))
    with fitting(place):
        config = config_of(values, str(place))
        config = replace(config, known=config.known or known)
        reads = config.known == "clip", config.image_width > 0, config.image_positions > 0
        if native and reads != (native.pictures > 0, native.told, native.pictures == 2):
            kind = layout.config(folder, part).get("model_type")
            raise UserError(f"--model {place}: config.json has model_type={kind!r}, and its tensors are of another")
        check_depth(config.depth, weights, place)
        return Piece(str(place), partial(DiT, config), weights, table(config), UNUSED)


def vae_of(folder: Path) -> tuple[Piece[CausalVAE], Whitening]:
    """The autoencoder of a folder before it is read."""
    return wan_vae.piece_of(layout.weight_files(folder, "vae"), None if layout.is_native(folder) else folder / "vae")


def _scheduler(folder: Path) -> SchedulerConfig:
    if layout.is_native(folder):
        return SchedulerConfig(shift=layout.native(folder).shift, spacing="authors")
    values, place = layout.config(folder, "scheduler"), folder / "scheduler"
    if values.get("prediction_type", "flow_prediction") != "flow_prediction":
        raise UserError(f"--model {place}: prediction_type={values['prediction_type']!r}; Wan predicts flow_prediction")
    with fitting(place):
        return SchedulerConfig(shift=float(values.get("flow_shift") or 1.0), spacing="authors")


def save(parts: Parts, folder: Path, dtype: torch.dtype | None) -> None:
    """Write a model of the Wan family into a new folder in diffusers' layout, weights as `dtype` or as they are.

    Raises UserError for the parts of another model.
    """
    vae, text, image, first = parts.vae, parts.text, parts.image, parts.dit
    if not (isinstance(vae, CausalVAE) and isinstance(text, HFText) and isinstance(first, DiT)
            and first.config.scales_add_one):  # fmt: skip
        raise UserError("--layout diffusers: only Wan's models are written so")
    config = first.config
    kind = "WanImageToVideoPipeline" if config.known == "clip" else "WanPipeline"
    index: dict[str, Any] = {part: ["transformers" if part == "text_encoder" else "diffusers", name]
                             for part, name in families.CLASSES[kind].items()}  # fmt: skip
    source = Path(text.path, text.subfolder.replace("text_encoder", "tokenizer"))
    index["tokenizer"] = _copied(source, folder / "tokenizer", "tokenizer_config.json", "tokenizer_class", TOKENIZER)
    if kind == "WanImageToVideoPipeline":
        index |= {"image_encoder": [None, None], "image_processor": [None, None]}
    if image is not None:
        index |= _save_image(image, folder, dtype)
    for number, (part, dit) in enumerate((("transformer", first), ("transformer_2", parts.low))):
        if dit is None:
            index[part] = [None, None]
            continue
        if is_hollow(dit):
            assert parts.experts is not None
            dit = parts.experts[number].load()
        tensors = to_theirs(table(dit.config), dit.state_dict())
        write_component(folder, part, {"_class_name": CLASS, **config_to(dit.config)}, tensors, dtype, SHARD_BYTES)
    about = wan_vae.config_to_diffusers(vae.config, parts.whitening)
    tensors = to_theirs(wan_vae.table(vae.config, "diffusers"), vae.state_dict())
    write_component(folder, "vae", about, tensors, dtype, SHARD_BYTES)
    about, weights = t5.config_to(text.model, dtype), text.model.state_dict()
    write_component(folder, "text_encoder", about, to_theirs(t5.table(weights), weights), dtype, SHARD_BYTES)
    write_json(folder / "scheduler" / "scheduler_config.json", {**SCHEDULER, "flow_shift": parts.scheduler.shift})
    index |= {"boundary_ratio": parts.boundary or None, "expand_timesteps": config.known == "clean"}
    write_json(folder / layout.INDEX, {"_class_name": kind, **index})


def _save_image(image: HFImage, folder: Path, dtype: torch.dtype | None) -> dict[str, list[str]]:
    """CLIP's image tower as it lies where it was read from, and its processor; returns what the index says of them."""
    source, place, about = Path(image.path), folder / "image_processor", "preprocessor_config.json"
    if layout.is_native(source):
        crop = {"height": image.side, "width": image.side}
        values = {"image_processor_type": PROCESSOR, "size": {"shortest_edge": image.side}, "crop_size": crop}
        write_json(place / about, values)
        kind = ["transformers", PROCESSOR]
    else:
        kind = _copied(source / "image_processor", place, about, "image_processor_type", PROCESSOR)
    tensors = clip.weights_of(source).items()
    write_component(folder, clip.PART, clip.config_to(source, dtype), tensors, dtype, SHARD_BYTES)
    return {clip.PART: ["transformers", type(image.model).__name__], "image_processor": kind}


def _copied(source: Path, folder: Path, about: str, field: str, usual: str) -> list[str]:
    """The files of a tokenizer or a processor as they are; returns whose class reads them, by a field of `about`."""
    if not source.is_dir():
        raise UserError(f"--model {source} is missing, and diffusers does not open a folder without it")
    folder.mkdir()
    for file in sorted(source.iterdir()):
        if file.suffix in (".json", ".model", ".txt"):
            shutil.copyfile(file, folder / file.name)
    values = layout.read_json(folder / about) if (folder / about).is_file() else {}
    return ["transformers", str(values.get(field, usual))]


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


NATIVE_FIELDS: Mapping[str, str | None] = {  # of the authors' config.json, and diffusers' names for them
    "in_dim": "in_channels",
    "out_dim": "out_channels",
    "num_heads": "num_attention_heads",
    "ffn_dim": "ffn_dim",
    "freq_dim": "freq_dim",
    "text_dim": "text_dim",
    "num_layers": "num_layers",
    "patch_size": "patch_size",
    "eps": "eps",
    "cross_attn_norm": "cross_attn_norm",
    "dim": None,
    "model_type": None,
    "text_len": None,
    "window_size": None,
    "qk_norm": None,
}


def config_of_native(values: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], place: str) -> dict[str, Any]:
    """A diffusers config from the authors' config.json, and from shapes (diffusers' names) for what that leaves out.

    Raises UserError for a field that no Wan model has, and for tensors that are not Wan's.
    """
    unknown = [name for name in values if name not in NATIVE_FIELDS and not name.startswith("_")]
    if unknown:
        raise UserError(f"--model {place}: config.json has an unknown field '{unknown[0]}' for {families.NATIVE_CLASS}")
    for name, only in (("text_len", 512), ("window_size", [-1, -1]), ("qk_norm", True)):
        if values.get(name, only) != only:
            raise UserError(f"--model {place}: config.json has {name}={values[name]!r}; Wan is read with {only!r}")
    with fitting(Path(place)):
        told = {theirs: values[ours] for ours, theirs in NATIVE_FIELDS.items() if theirs and ours in values}
        if "dim" in values and "num_heads" in values:
            told["attention_head_dim"] = values["dim"] // values["num_heads"]
        return {**config_of_shapes(shapes, values), **told}
