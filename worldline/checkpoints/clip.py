"""CLIP's image tower as transformers has it; Wan's also from the names of Wan's authors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldline.checkpoints import keymap, layout
from worldline.checkpoints.keymap import Piece, check_depth, fitting, renaming, same
from worldline.checkpoints.weights import Weights
from worldline.errors import UserError

PART = "image_encoder"
UNUSED = ("position_ids", "visual_projection.weight")
# Patterns of the authors' names (wan/modules/clip.py), and transformers' for them.
NATIVE: Sequence[tuple[str, str]] = (
    (r"^visual\.", ""),
    (r"^(patch|pos|cls)_embedding", r"embeddings.\1_embedding"),
    (r"\.cls_embedding$", ".class_embedding"),
    (r"\.pos_embedding$", ".position_embedding.weight"),
    (r"^pre_norm\.", "pre_layrnorm."),
    (r"^post_norm\.", "post_layernorm."),
    (r"^transformer\.(\d+)\.norm(\d)\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^transformer\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.out_proj."),
    (r"^transformer\.(\d+)\.attn\.", r"encoder.layers.\1.self_attn."),
    (r"^transformer\.(\d+)\.mlp\.0\.", r"encoder.layers.\1.mlp.fc1."),
    (r"^transformer\.(\d+)\.mlp\.2\.", r"encoder.layers.\1.mlp.fc2."),
)
NATIVE_HEADS = 16  # of ViT-H/14, the one that is published; no shape tells


class NativeWeights(Weights):
    """The authors' file under transformers' names and in its shapes; of a whole CLIP its image tower alone."""

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__(files, renaming(NATIVE))
        for name in [name for name in self if name.startswith("textual.") or name in ("log_scale", "head")]:
            self._moved(name)
        for name in [name for name in self if ".to_qkv." in name]:
            self._moved(name, *(name.replace("to_qkv", f"{part}_proj") for part in "qkv"))
        self.shapes = {name: self._turned(name, value) for name, value in self.shapes.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._turned(name, super().__getitem__(name))

    def _moved(self, name: str, *names: str) -> None:
        """A tensor stands under `names` instead of `name`."""
        every: tuple[dict[str, Any], ...] = (self.shapes, self._places, self.foreign)
        for held in every:
            if name in held:
                held.update(dict.fromkeys(names, held.pop(name)))

    def _turned(self, name: str, value: Tensor) -> Tensor:
        """Their tensor of the file as the one of this name."""
        if ".to_qkv." in self._places[name][1]:
            return value.chunk(3)["qkv".index(name.split(".")[-2][0])]  # out_proj is not of these
        if name.endswith("class_embedding"):
            return value.flatten()
        return value.flatten(0, -2) if name.endswith("position_embedding.weight") else value


def weights_of(folder: Path) -> Weights:
    """The tensors of a folder's image tower as they are stored, under transformers' names."""
    files = layout.weight_files(folder, PART)
    return NativeWeights(files) if layout.is_native(folder) else Weights(files)


def values_of(folder: Path) -> dict[str, Any]:
    """transformers' config of a folder's image tower, from shapes where there is no config.json."""
    if not layout.is_native(folder):
        return layout.config(folder, PART)
    shapes = weights_of(folder).shapes
    try:
        positions, width = shapes["embeddings.position_embedding.weight"].shape
        patch = shapes["embeddings.patch_embedding.weight"].shape[-1]
        hidden = shapes["encoder.layers.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise UserError(f"--model {_place(folder)} is no CLIP of Wan's authors ({error})") from None
    return {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": len({name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")}),
        "num_attention_heads": NATIVE_HEADS,
        "image_size": patch * math.isqrt(positions - 1),
        "patch_size": patch,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }


def piece_of(folder: Path) -> Piece[Any]:
    """The image tower of a folder before it is read."""
    import transformers

    values, place = values_of(folder), _place(folder)
    if values.get("model_type") != "clip_vision_model":
        raise UserError(f"--model {place}: its config.json is of a {values.get('model_type')}, not a clip_vision_model")
    files = layout.weight_files(folder, PART)
    weights = NativeWeights(files) if layout.is_native(folder) else Weights(files, _bare)
    with fitting(place):
        config = transformers.CLIPVisionConfig.from_dict(values)
        check_depth(config.num_hidden_layers, weights, place)
        build = partial(transformers.CLIPVisionModel, config)
        entries = [same(entry.ours, _bare(entry.ours)) for entry in keymap.own(build)]
        return Piece(str(place), build, weights, entries, UNUSED)


def load(piece: Piece[Any]) -> Any:
    """The image tower in float32."""
    model = piece.load(torch.float32)
    for name, value in list(model.named_buffers()):  # the numbers of the patches, which no file holds
        place, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(place), leaf, torch.arange(value.numel())[None])
    return model


def config_to(folder: Path, dtype: torch.dtype | None) -> Mapping[str, Any]:
    """The config.json of a folder's image tower that is stored as `dtype`, or as it is."""
    values = values_of(folder)
    if layout.is_native(folder):
        stored = {value.dtype for value in weights_of(folder).shapes.values()}
        dtype = dtype or (stored.pop() if len(stored) == 1 else torch.float32)
        values["architectures"] = ["CLIPVisionModel"]
    if dtype is not None:
        values["dtype"] = str(dtype).removeprefix("torch.")
        values.pop("torch_dtype", None)  # its older name
    return values


def _place(folder: Path) -> Path:
    return layout.weight_files(folder, PART)[0] if layout.is_native(folder) else folder / PART


def _bare(name: str) -> str:
    """A tensor's name without the prefix that it is published with and that transformers 5 has left out."""
    return name.removeprefix("vision_model.")
