"""Shape arithmetic as types: VideoShape -> LatentShape -> TokenShape, with time before space everywhere.

Axis legend: B batch, C channels, T frames, H height, W width, N packed tokens, M packed text tokens,
D width of a token. A causal VAE with temporal factor 4 maps 4k+1 frames to k+1 latent frames, since
its first latent frame holds a single picture; an image is a video of one frame.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from worldline.errors import UserError

MAX_SIDE = 4096  # pixels: beyond this an H.264 encoder and 2 cores both give up
_SIZE = re.compile(r"\s*([+-]?\d{1,12})\s*[xX×*]\s*([+-]?\d{1,12})\s*")


@dataclass(frozen=True)
class TokenShape:
    """Patches along (t, h, w) of one sample."""

    t: int
    h: int
    w: int

    @property
    def count(self) -> int:
        """Tokens of one sample in a packed sequence."""
        return self.t * self.h * self.w


@dataclass(frozen=True)
class LatentShape:
    """Latent frames and cells (T', H', W') of one sample, channels left out."""

    frames: int
    height: int
    width: int

    def tokens(self, patch: tuple[int, int, int] = (1, 2, 2)) -> TokenShape:
        """Patches of (p_t, p_h, p_w) cells; an incomplete patch at the far edge counts as one."""
        return TokenShape(
            math.ceil(self.frames / patch[0]),
            math.ceil(self.height / patch[1]),
            math.ceil(self.width / patch[2]),
        )


@dataclass(frozen=True)
class VideoShape:
    """Frames and pixels (T, H, W) of one video."""

    frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.frames, self.height, self.width) < 1:
            frames, height, width = max(self.frames, 1), max(self.height, 1), max(self.width, 1)
            raise UserError(
                f"video shape: {self.frames} frames of {self.width}x{self.height} is empty; "
                f"the nearest valid is {frames} frames of {width}x{height}"
            )

    def snapped(self, temporal: int = 4, spatial: int = 16) -> VideoShape:
        """The least shape that holds this one and divides: temporal*k+1 frames, sides `spatial`*j."""
        return VideoShape(
            temporal * math.ceil((self.frames - 1) / temporal) + 1,
            spatial * math.ceil(self.height / spatial),
            spatial * math.ceil(self.width / spatial),
        )

    def latent(self, temporal: int = 4, spatial: int = 8) -> LatentShape:
        """What a causal VAE makes of this video: (T-1)/temporal + 1 frames, sides / spatial, rounded up."""
        return LatentShape(
            math.ceil((self.frames - 1) / temporal) + 1,
            math.ceil(self.height / spatial),
            math.ceil(self.width / spatial),
        )


@dataclass(frozen=True)
class Grid:
    """What a model divides video into: cells of `temporal` frames and `spatial` pixels a side, and tokens of `patch`
    cells along (t, h, w)."""

    temporal: int = 4
    spatial: int = 8
    patch: tuple[int, int, int] = (1, 2, 2)

    @property
    def side(self) -> int:
        """Pixels of a token's side."""
        return self.spatial * max(self.patch[1:])

    def snapped(self, shape: VideoShape) -> VideoShape:
        """The least shape that holds this one and divides into cells and tokens."""
        return shape.snapped(self.temporal, self.side)

    def latent(self, shape: VideoShape) -> LatentShape:
        """Cells of a video."""
        return shape.latent(self.temporal, self.spatial)

    def tokens(self, shape: VideoShape) -> TokenShape:
        """Tokens of a video."""
        return self.latent(shape).tokens(self.patch)


OURS = Grid()  # of our own models


def parse_size(text: str) -> tuple[int, int]:
    """Read "WIDTHxHEIGHT" in pixels as (width, height); raises UserError with the nearest valid size."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UserError(f"--size {text[:40]!r}: expected WIDTHxHEIGHT in pixels, for example 64x64")
    width, height = int(match[1]), int(match[2])
    nearest = min(max(width, 1), MAX_SIDE), min(max(height, 1), MAX_SIDE)
    if nearest != (width, height):
        raise UserError(
            f"--size {width}x{height}: sides are 1 to {MAX_SIDE} pixels; "
            f"the nearest valid size is {nearest[0]}x{nearest[1]}"
        )
    return width, height


def frames_for(seconds: float, fps: float) -> int:
    """Frames whose first and last lie `seconds` apart at `fps`: one second at 16 fps is 17 frames, 4*4+1.

    Zero seconds is one picture. Raises UserError when either value is not finite or out of range.
    """
    if not (math.isfinite(fps) and 0 < fps <= 240):
        raise UserError(f"--fps {fps}: expected a rate above 0 and up to 240, for example 16")
    if not (math.isfinite(seconds) and 0 <= seconds <= 3600):
        nearest = 3600 if seconds > 3600 else 1 / fps if seconds < 0 else 1
        raise UserError(f"--seconds {seconds}: expected 0 to 3600; the nearest valid value is {nearest:g}")
    return round(seconds * fps) + 1
