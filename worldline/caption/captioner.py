"""Anyone who looks at clips and says what they show: the protocol, and the small captioner that is shipped.

A captioner looks at a few frames, evenly spread over a clip. `captioner_of` opens one by what the user names:
nothing for the shipped one, an address for an OpenAI-compatible endpoint, a folder for a local model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from worldline.errors import UserError
from worldline.records import SURE

SHIPPED = Path(__file__).parent.parent / "models" / "worldline-captioner"
STYLES = ("short", "full")
REQUESTS = {
    "short": "These are frames of one video, in order. Say in one short sentence what happens in it.",
    "full": "These are frames of one video, in order. Describe the video in one dense paragraph for training a "
    "text-to-video model: every thing with its colour, number and size, what it does and in which direction, the "
    "setting, the light, and how the camera moves. Say only what can be seen.",
}


class Spoken(NamedTuple):
    """A caption and, where the captioner knows it, how sure it is of its words (mean probability)."""

    text: str
    sure: float | None = None


class Captioner(Protocol):
    """What the rest knows of a captioner. `prompt` is what it is asked for a style, empty where it takes no words."""

    model: str
    version: str
    frames: int  # how many it looks at

    def prompt(self, style: str) -> str:
        """The request that goes with a style."""
        ...

    def describe(self, clips: Sequence[np.ndarray], style: str) -> list[Spoken]:
        """A caption for each clip uint8 (frames, H, W, 3), in order."""
        ...


@dataclass(frozen=True)
class Ways:
    """How a remote or local model is asked: see `caption/endpoint.py`, `caption/local.py`."""

    model: str = ""
    prompt: str = ""
    frames: int = 8
    concurrency: int = 8
    retries: int = 5
    timeout: float = 120.0
    side: int = 512  # longest side of a frame that is sent
    key_variable: str = "OPENAI_API_KEY"


def captioner_of(name: str | None, ways: Ways | None = None) -> Captioner:
    """The shipped captioner, that of a folder, or an endpoint by its address. Raises UserError for anything else."""
    ways = ways or Ways()
    if name is None:
        return Shipped()
    if name.startswith(("http://", "https://")):
        from worldline.caption.endpoint import Endpoint, EndpointCaptioner

        return EndpointCaptioner(Endpoint(name, ways), ways)
    folder = Path(name)
    if not (folder / "config.json").is_file():
        raise UserError(f"--captioner {name[:80]}: neither an address (https://host/v1) nor a folder with config.json")
    if (folder / "preprocessor_config.json").exists() or (folder / "processor_config.json").exists():
        from worldline.caption.local import LocalCaptioner

        return LocalCaptioner(folder, ways)
    return Shipped(folder)


def spread(count: int, wanted: int) -> np.ndarray:
    """Numbers of `wanted` frames out of `count`, evenly from the first to the last; repeated where there are fewer."""
    return np.linspace(0, count - 1, wanted).round().astype(int)


class Shipped:
    """The captioner of `caption/net.py`: made for the procedural worlds, blind to everything else.

    It says something of every clip. `sure` tells its own domain from the rest only roughly, so callers label what lies
    outside: see `in_domain`.
    """

    def __init__(self, folder: Path = SHIPPED) -> None:
        import torch
        from safetensors.torch import load_file

        from worldline.caption.net import Captioner as Net
        from worldline.caption.net import CaptionerConfig

        try:
            text = (folder / "config.json").read_bytes()
            fields = {key: tuple(v) if isinstance(v, list) else v for key, v in json.loads(text).items()}
            known: dict[str, Any] = {name: fields[name] for name in CaptionerConfig.__dataclass_fields__}
            self.net = Net(CaptionerConfig(**known))
            weights = load_file(folder / "model.safetensors")
            lost = self.net.load_state_dict(weights, strict=False)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(
                f"captioner: {folder} holds none of ours ({error}); see `worldline train captioner`"
            ) from None
        if lost.unexpected_keys or any(not name.startswith("lesson.") for name in lost.missing_keys):
            raise UserError(f"captioner: the weights in {folder} do not fit its config.json")
        self.net.float().eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = folder.name
        self.version = hashlib.sha256(text + (folder / "model.safetensors").read_bytes()).hexdigest()[:12]
        self.frames = self.net.config.frames

    def prompt(self, style: str) -> str:
        return ""

    def describe(self, clips: Sequence[np.ndarray], style: str = "full") -> list[Spoken]:
        """A caption for each clip uint8 (T, H, W, 3) of any size and length. Raises UserError for an unknown style."""
        import torch

        if style not in self.net.config.styles:
            raise UserError(f"--style {style!r}: the shipped captioner knows {', '.join(self.net.config.styles)}")
        shaped = [self._shaped(clip[spread(len(clip), self.frames)]) for clip in clips]
        out: list[Spoken | None] = [None] * len(clips)
        for size in {clip.shape for clip in shaped}:  # clips of one size are one batch
            rows = [i for i, clip in enumerate(shaped) if clip.shape == size]
            pixels = torch.from_numpy(np.stack([shaped[i] for i in rows])).permute(0, 1, 4, 2, 3).float()
            for i, said in zip(rows, self.net.captions(pixels / 127.5 - 1, style), strict=True):
                out[i] = Spoken(*said)
        return [spoken for spoken in out if spoken is not None]

    def _shaped(self, frames: np.ndarray) -> np.ndarray:
        """Frames with the shorter side that the net knows; the longer one in steps of its cells, at most twice that."""
        from worldline.caption.net import CELL

        height, width = frames.shape[1:3]
        side = self.net.config.side
        scale = side / min(height, width)
        size = [min(max(side, round(n * scale / CELL) * CELL), 2 * side) for n in (width, height)]
        if size == [width, height]:
            return frames
        way = Image.Resampling.BOX if scale <= 0.5 else Image.Resampling.BICUBIC
        return np.stack([np.asarray(Image.fromarray(frame).resize((size[0], size[1]), way)) for frame in frames])


def in_domain(spoken: Spoken) -> bool:
    """Whether the shipped captioner was sure enough of its words for the clip to be one of its worlds."""
    return spoken.sure is not None and spoken.sure >= SURE


def as_jpeg(frame: np.ndarray, side: int) -> bytes:
    """A frame uint8 (H, W, 3) as JPEG, its longer side at most `side` pixels."""
    import io

    picture: Any = Image.fromarray(frame)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
