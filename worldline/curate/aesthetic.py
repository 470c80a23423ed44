"""How pleasing a clip looks, by a small head on CLIP's picture embedding; both are read from files that the user names.

The head is a chain of linear layers without anything between them, as in LAION's predictors (Schuhmann 2022); its
safetensors file holds their weights and biases in the order of their numbers, whatever the names before these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from worldline.curate.stage import Judgement, Look, Stage
from worldline.errors import UserError

HELP = "give both: --set aesthetic.clip=FOLDER (as transformers saves it) --set aesthetic.head=FILE.safetensors"


@dataclass(frozen=True)
class Aesthetic(Stage):
    """The mean score of about one picture a second; LAION's heads answer 1 to 10, and 4.5 keeps about half of a web."""

    name: ClassVar[str] = "aesthetic"
    close: ClassVar[bool] = True

    least: float = 4.5
    clip: str = ""  # folder of a CLIP model: config.json, preprocessor_config.json, model.safetensors
    head: str = ""  # file of the head's layers

    def check(self) -> None:
        """Raises UserError for weights that are missing or do not fit."""
        _scorer(self.clip, self.head)

    def see(self, look: Look) -> float | None:
        if not look.new_second:
            return None
        scorer = _scorer(self.clip, self.head)
        return float(scorer(look.sized(scorer.side)[..., ::-1]))

    def judge(self, notes: Sequence[float | None], size: tuple[int, int]) -> Judgement:
        scores = [score for score in notes if score is not None]
        if not scores:
            return Judgement(remark="too short to measure")
        score = float(np.mean(scores))
        reason = f"not pleasing: {score:.2f}, at least {self.least:g}" if score < self.least else ""
        return Judgement({"aesthetic": score}, reason=reason)


class Scorer:
    """CLIP's tower for pictures and the head, in float32 on one thread."""

    def __init__(self, clip: Path, head: Path) -> None:
        try:
            import torch
            from safetensors.torch import load_file
            from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection
        except ImportError:
            raise UserError("--with aesthetic needs the extra `text`; `pip install 'worldline[text]'`") from None
        torch.set_num_threads(1)
        try:
            self.tower = CLIPVisionModelWithProjection.from_pretrained(
                clip, local_files_only=True, use_safetensors=True
            ).eval()
            self.processor = CLIPImageProcessor.from_pretrained(clip, local_files_only=True)
            self.layers = _layers(load_file(head))
        except (OSError, ValueError, KeyError) as error:
            line = str(error).splitlines()[0][:200]
            raise UserError(f"aesthetic: {clip} and {head} cannot be read ({line}); {HELP}") from None
        width = self.tower.config.projection_dim
        if self.layers[0][0].shape[1] != width or self.layers[-1][0].shape[0] != 1:
            sizes = ", ".join(f"{w.shape[1]} to {w.shape[0]}" for w, _ in self.layers)
            raise UserError(f"aesthetic: the head's layers ({sizes}) do not lead from CLIP's {width} to one score")
        self.side = int(
            self.tower.config.vision_config.image_size
            if hasattr(self.tower.config, "vision_config")
            else self.tower.config.image_size
        )

    def __call__(self, picture: np.ndarray) -> float:
        """The score of a picture uint8 (h, w, 3) RGB."""
        import torch

        with torch.no_grad():
            pixels = self.processor(np.ascontiguousarray(picture), return_tensors="pt")["pixel_values"]
            x = torch.nn.functional.normalize(self.tower(pixels).image_embeds.float())
            for weight, bias in self.layers:
                x = torch.nn.functional.linear(x, weight, bias)
        return float(x)


def _layers(tensors: dict[str, Any]) -> list[tuple[Any, Any]]:
    """(weight, bias) of every layer, in the order of the numbers in their names."""

    def order(name: str) -> list[int]:
        return [int(digits) for digits in re.findall(r"\d+", name)]

    weights = sorted((name for name in tensors if name.endswith("weight")), key=order)
    if not weights:
        raise ValueError("the head holds no weight")
    return [(tensors[name].float(), tensors[name.removesuffix("weight") + "bias"].float()) for name in weights]


@cache
def _scorer(clip: str, head: str) -> Scorer:
    if not (clip and head):
        raise UserError(f"--with aesthetic: no weights come with this package; {HELP}")
    return Scorer(Path(clip), Path(head))
