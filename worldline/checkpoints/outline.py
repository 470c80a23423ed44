"""A model without its weights: its modules on the meta device, and what its files and parameters weigh.

Read from configs and headers alone, so that what a video would take is known before anything is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worldline.checkpoints import clip, families, layout, opensora, wan
from worldline.checkpoints.folder import Parts, config_of
from worldline.checkpoints.headers import TensorEntry, read_header
from worldline.checkpoints.keymap import fitting
from worldline.checkpoints.weights import Weights, half_of
from worldline.dit.mmdit import MMDiT
from worldline.dit.model import DiT, DiTConfig
from worldline.nn.hollow import bare
from worldline.text import HFImage, HFText, TextEncoder, WithPooled
from worldline.vae.codec import VideoCodec
from worldline.vae.model import VAEConfig, VideoVAE

COMPUTED = ("vae", "transformer")  # parts that run on the device, in its type
SECOND = "transformer_2"  # so does a second expert, in the place of the first


@dataclass(frozen=True)
class Outline:
    """What is known of a model before its weights are.

    Attributes:
        vae, dit: on the meta device; where there are two experts, both are as `dit`.
        text_rows, image_rows: rows of states that a prompt has at most, and that a model is told of pictures.
        stored: bytes of each component's files.
        loaded: bytes of each component's parameters in the types that they are read into unless another is given.
        half: the half-precision type that its transformer is stored in and computed with, if that is one.
        foreign_text: whether its text encoder comes through transformers.
    """

    vae: VideoCodec
    dit: DiT | MMDiT
    text_rows: int
    stored: dict[str, int]
    loaded: dict[str, int]
    image_rows: int = 0
    half: torch.dtype | None = None
    foreign_text: bool = False

    @staticmethod
    def of_folder(path: str | Path | None) -> Outline:
        """From a model folder. Raises UserError as `layout.check`, and for configs that cannot be."""
        folder = layout.check(path)
        own = layout.family(folder) == layout.PIPELINE_CLASS
        vae, dit, rows = _of_family(folder)
        entries = {
            part: [entry for file in layout.weight_files(folder, part) for entry in read_header(file)]
            for part in layout.weighty(folder)
        }
        stored = {part: sum(_stored(entry) for entry in found) for part, found in entries.items()}
        # Our own models and CLIP are read as float32, the rest of a public model as it is stored.
        wide = {part: own or part in ("image_encoder", "text_encoder_2") for part in entries}
        loaded = {
            part: 4 * sum(entry.count for entry in found) if wide[part] else stored[part]
            for part, found in entries.items()
        }
        if clip.PART in entries:  # of a whole CLIP the image tower alone
            tower = clip.weights_of(folder).shapes.items()
            loaded[clip.PART] = sum(4 * value.numel() for name, value in tower if not name.endswith(clip.UNUSED))
        seen, half = _image_rows(folder, dit), stored_half(folder)
        return Outline(vae, dit, rows, stored, loaded, seen, half, foreign_text=not own)

    @staticmethod
    def of_parts(parts: Parts) -> Outline:
        """From a model that is in memory."""
        with bare():
            vae = type(parts.vae)(parts.vae.config)  # type: ignore[call-arg]
            dit = type(parts.dit)(parts.dit.config)  # type: ignore[arg-type]
        modules = {"vae": parts.vae, "transformer": parts.dit, "transformer_2": parts.low, "text_encoder": parts.text}
        loaded = {name: _bytes(part) for name, part in modules.items() if isinstance(part, nn.Module)}
        images = 0 if parts.image is None else _patches(parts.image) * (2 if dit.config.image_positions else 1)
        return Outline(vae, dit, _rows_of(parts.text), dict(loaded), loaded, images)

    def parameters(self, part: str) -> int:
        """Of one of `COMPUTED`."""
        return sum(value.numel() for value in (self.vae if part == "vae" else self.dit).parameters())


WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}  # bytes


def _stored(entry: TensorEntry) -> int:
    return entry.count * WIDTHS.get(entry.dtype, 4)


def stored_half(folder: Path) -> torch.dtype | None:
    """The half-precision type of a public model's transformer, if it is stored in one: the type that it is computed in.
    `folder` is a checked one."""
    if layout.family(folder) == layout.PIPELINE_CLASS:
        return None
    return half_of(Weights(layout.weight_files(folder, "transformer")).shapes.values())


def _bytes(module: nn.Module) -> int:
    return sum(value.nbytes for value in module.parameters())


def _of_family(folder: Path) -> tuple[VideoCodec, DiT | MMDiT, int]:
    """The modules of a checked folder, and how many rows of states a prompt has at most."""
    match layout.family(folder):
        case layout.PIPELINE_CLASS:
            values = layout.config(folder, "vae")
            values.pop("whitening", None)
            codec = config_of(VAEConfig, values, folder / "vae")
            config = config_of(DiTConfig, layout.config(folder, "transformer"), folder / "transformer")
            with bare():
                return VideoVAE(codec), DiT(config), _rows(layout.config(folder, "text_encoder"))
        case families.OPENSORA:
            return opensora.vae_of(folder).empty(), opensora.piece_of(folder).empty(), opensora.T5_TOKENS
        case _:
            return wan.vae_of(folder)[0].empty(), wan.piece_of(folder).empty(), wan.TEXT_ROWS + 1


def _image_rows(folder: Path, dit: DiT | MMDiT) -> int:
    """Rows of states of all pictures that a model is told; CLIP has one for a picture and one for each patch of it."""
    if not isinstance(dit, DiT) or not dit.config.image_width:
        return 0
    values = clip.values_of(folder)
    with fitting(folder / clip.PART):
        side = int(values.get("image_size", 224)) // int(values.get("patch_size", 32))
    return max(1, layout.traits(folder).pictures) * (side**2 + 1)


def _patches(image: HFImage) -> int:
    """States of one picture."""
    config = image.model.config
    config = getattr(config, "vision_config", config)
    return int((config.image_size // config.patch_size) ** 2 + 1)


def _rows(values: dict[str, Any]) -> int:
    """From the config of one of our text encoders."""
    return int(values.get("max_words", values.get("max_tokens", 128))) + 1


def _rows_of(text: TextEncoder) -> int:
    if isinstance(text, WithPooled):
        return _rows_of(text.states)
    if isinstance(text, HFText):
        return text.max_tokens + (text.padding == "zeros")
    config = getattr(text, "config", None)
    return _rows({"max_words": config.max_words} if config else {"max_tokens": getattr(text, "max_tokens", 128)})
