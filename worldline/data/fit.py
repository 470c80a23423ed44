"""Where a clip lands: the shape at which it is learned, in pixels, latents and tokens, or why it is not learned at all.

Shapes stay the clip's own. What is larger than a plan allows is scaled down with its aspect; sides and lengths that do
not divide lose the few pixels and frames beyond the last that does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from PIL import Image

from worldline.records import Clip, Example, clip_id
from worldline.shapes import OURS, Grid, VideoShape


@dataclass(frozen=True)
class FitPlan:
    """What may be learned. `pixels` is the largest area of a frame; 0 frames per second keeps every clip's own rate."""

    pixels: int = 64 * 96
    max_frames: int = 17
    min_frames: int = 1
    min_side: int = 32
    fps: float = 16.0
    captions: bool = True  # clips of which nothing is said are left out


@dataclass(frozen=True)
class Fit:
    """A clip's landing. `scaled` is the size before the middle of `video` is cut out of it; `reason` is empty where the
    clip is learned."""

    video: VideoShape
    scaled: tuple[int, int] = (0, 0)  # width, height
    fps: float = 0.0
    tokens: int = 0
    reason: str = ""

    @property
    def name(self) -> str:
        """The bucket: WIDTHxHEIGHTxFRAMES."""
        return f"{self.video.width}x{self.video.height}x{self.video.frames}"


def fit(clip: Clip, plan: FitPlan, grid: Grid = OURS, captions: int = 1) -> Fit:
    """Where `clip` lands on the grid of a model."""
    width, height = clip.size
    nothing = VideoShape(1, 1, 1)
    if plan.captions and not captions:
        return Fit(nothing, reason="no caption: run `worldline caption`")
    if min(width, height) < 1 or clip.frames < 1:
        return Fit(nothing, reason="no picture")
    own = clip.media.fps if clip.media else 0.0
    fps = plan.fps or own
    count = 1 if clip.frames == 1 else max(1, round(clip.seconds * fps))
    frames = min(count, plan.max_frames)
    frames -= (frames - 1) % grid.temporal
    if frames < plan.min_frames:
        return Fit(nothing, reason=f"too short: {count} frames at {fps:g} fps, {plan.min_frames} wanted")
    side = grid.side
    scale = min(1.0, math.sqrt(plan.pixels / (width * height)))
    w, h = (max(side, int(n * scale / side + 1e-6) * side) for n in (width, height))
    if w > width or h > height or min(w, h) < plan.min_side:
        least = max(plan.min_side, side)
        return Fit(nothing, reason=f"too small: {width}x{height} lands at {w}x{h}, sides of {least} wanted")
    scale = max(w / width, h / height)
    video = VideoShape(frames, h, w)
    tokens = grid.tokens(video).count
    return Fit(video, (max(w, round(width * scale)), max(h, round(height * scale))), fps, tokens)


def stretched(examples: Sequence[Example], plan: FitPlan) -> list[Example]:
    """Clips longer than `plan.max_frames` as several that follow each other, so that none of their seconds is lost."""
    out = []
    for example in examples:
        clip = example.clip
        fps = plan.fps or (clip.media.fps if clip.media else 0.0)
        longest = plan.max_frames / fps if fps else 0.0
        count = max(1, round(clip.seconds / longest)) if longest else 1
        edges = np.linspace(clip.first_frame, clip.end_frame, count + 1).round().astype(int).tolist()
        own = clip.frames / clip.seconds if clip.seconds else 1.0
        for first, end in itertools.pairwise(edges):
            start = clip.start + (first - clip.first_frame) / own
            name = clip.id if count == 1 else clip_id(clip.source_sha256, first, end)
            part = replace(
                clip, id=name, first_frame=first, end_frame=end, start=start, end=start + (end - first) / own
            )
            out.append(Example(part if count > 1 else clip, example.captions))
    return out


def rate(fit: Fit) -> Fraction:
    """Frames per second as `media.clips.read_clips` takes them."""
    return Fraction(fit.fps).limit_denominator(1001)


def shaped(frames: np.ndarray, fit: Fit) -> np.ndarray:
    """Frames uint8 (T, H, W, 3) of a clip at the fit's rate -> its shape; a last frame that is missing is repeated."""
    wanted = fit.video
    frames = frames[: wanted.frames]
    if frames.shape[1:3] != (fit.scaled[1], fit.scaled[0]):
        shrinks = fit.scaled[0] < frames.shape[2]
        way = Image.Resampling.BOX if shrinks and fit.scaled[0] <= frames.shape[2] / 2 else Image.Resampling.BICUBIC
        frames = np.stack([np.asarray(Image.fromarray(frame).resize(fit.scaled, way)) for frame in frames])
    top, left = (frames.shape[1] - wanted.height) // 2, (frames.shape[2] - wanted.width) // 2
    frames = frames[:, top : top + wanted.height, left : left + wanted.width]
    missing = wanted.frames - len(frames)
    return np.concatenate([frames, np.repeat(frames[-1:], missing, 0)]) if missing else frames
