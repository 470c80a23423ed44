"""Sora's verbs. Each is a canvas (which pixels are known, which are not) and one call of `Reel.paint`.

Every verb takes a `Pipeline`, footage uint8 (T, H, W, 3) with its frame rate, and the settings of
`Pipeline.request`: seed, steps, guidance_scale, sampler ... It returns a `Result`. Known pixels come back bit for bit.
Joins are made in latents: a clip is encoded once and what is painted beside it is decoded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from worldline.errors import UserError
from worldline.generate.canvas import Canvas, fitted, timeline
from worldline.generate.drawing import Progress
from worldline.generate.load import Deferred
from worldline.generate.pipeline import Pipeline
from worldline.generate.request import check_pictures, check_prompt, check_range
from worldline.generate.result import Result
from worldline.media.provenance import provenance
from worldline.media.read import Video

# ---- the verbs -------------------------------------------------------------------------------------


def animate(pipeline: Pipeline | Deferred, image: np.ndarray, prompt: str, **settings: Any) -> Result:
    """A picture uint8 (h, w, 3) comes to life: it is the first frame. It is cropped to the asked size."""
    return _generated(pipeline, prompt, settings, image)


def image(pipeline: Pipeline | Deferred, prompt: str, **settings: Any) -> Result:
    """A picture: a video of one frame."""
    return _generated(pipeline, prompt, {**settings, "frames": 1})


def extend(
    pipeline: Pipeline | Deferred,
    video: Video,
    prompt: str,
    forward: float = 1.0,
    backward: float = 0.0,
    **settings: Any,
) -> Result:
    """The clip goes on for `forward` seconds and begins `backward` seconds earlier."""
    for flag, seconds in (("--forward", forward), ("--backward", backward)):
        check_range(flag, seconds, 0, 3600)
    after, before = (round(seconds * video.fps) for seconds in (forward, backward))
    if not after and not before:
        raise UserError(f"--forward {forward:g}: nothing is added; the nearest valid value is {float(1 / video.fps):g}")
    job = Job(pipeline, "extend", video, prompt, settings, forward=forward, backward=backward)
    parts = [job.between(None, before, video.frames)] if before else []
    parts += [video.frames] + ([job.between(video.frames, after, None)] if after else [])
    return job.result(np.concatenate(parts))


def loop(pipeline: Pipeline | Deferred, video: Video, prompt: str, seconds: float = 0.5, **settings: Any) -> Result:
    """The clip and `seconds` more that lead from its last frame back to its first."""
    check_range("--seconds", seconds, 1 / video.fps, 600)
    job = Job(pipeline, "loop", video, prompt, settings, seconds=seconds)
    bridge = job.between(video.frames, max(1, round(seconds * video.fps)), video.frames)
    return job.result(np.concatenate([video.frames, bridge]))


def interpolate(
    pipeline: Pipeline | Deferred, first: np.ndarray, last: np.ndarray, prompt: str, **settings: Any
) -> Result:
    """A video that begins with one picture uint8 (h, w, 3) and ends with another.

    A latent frame holds four frames, so the last picture stands for up to four: none of them stays on the screen
    longer than one frame where the length is 4k + 2. A model that is told of every frame whether it is known needs no
    more than the last one.
    """
    group = 1 if pipeline.pictures else pipeline.grid.temporal
    if settings.get("frames") is None and settings.get("seconds") is None:
        settings = {**settings, "frames": _groups(pipeline.defaults.frames - 2, group) + 2}
    request = pipeline.request(prompt, **asked(settings))
    if request.frames < group + 2:
        raise UserError(f"--frames {request.frames}: too few to lead anywhere; the nearest valid value is {group + 2}")
    a, b = (fitted(picture, request.height, request.width)[None] for picture in (first, last))
    between = (request.frames - 2) // group * group
    canvas = timeline([a, between, np.repeat(b, request.frames - 1 - between, 0)])
    job = Job(pipeline, "interpolate", Video(canvas.frames, request.fps), prompt, settings)
    return job.result(job.painted(canvas))


def blend(
    pipeline: Pipeline | Deferred,
    a: Video,
    b: Video,
    prompt: str,
    seconds: float = 0.5,
    strength: float = 0.8,
    **settings: Any,
) -> Result:
    """The first clip turns into the second: over `seconds` at the end of one and the beginning of the other.

    The latents of both cross over, are noised by `strength` and painted anew between what stays of the clips.
    """
    _same_size("B", a, b)
    check_range("--strength", strength, 0, 1)
    shortest = min(len(a.frames), len(b.frames))
    group = pipeline.grid.temporal
    count = _groups(round(seconds * a.fps), group)
    if count >= shortest:
        most = (shortest - 1) / a.fps
        raise UserError(f"--seconds {seconds:g}: longer than a clip; the nearest valid value is {float(most):g}")
    job = Job(pipeline, "blend", a, prompt, settings, seconds=seconds, strength=strength)
    context = job.context(count, 2)
    left, right = tail(a.frames[:-count], context, group), head(b.frames[count:], context, group)
    canvas = timeline([left, count, right])
    one, other = (
        pipeline.codec.encode(timeline([left, middle, right]).padded(pipeline.grid).frames)
        for middle in (a.frames[-count:], b.frames[:count])
    )
    weight = torch.linspace(0, 1, count // group + 2)[1:-1]  # of the second clip, per latent frame
    ramp = torch.cat([torch.zeros((len(left) - 1) // group + 1), weight])
    ramp = torch.cat([ramp, torch.ones(one.shape[1] - len(ramp))])[None, :, None, None]
    middle = job.painted(canvas, start=(1 - ramp) * one + ramp * other, strength=strength)
    middle = middle[len(left) : len(left) + count]
    return job.result(np.concatenate([a.frames[:-count], middle, b.frames[count:]]))


def remix(pipeline: Pipeline | Deferred, video: Video, prompt: str, strength: float = 0.7, **settings: Any) -> Result:
    """The clip painted anew from itself under `strength` noise (SDEdit, Meng et al. 2021): 0 keeps it, 1 forgets it."""
    check_range("--strength", strength, 0, 1)
    job = Job(pipeline, "remix", video, prompt, settings, strength=strength)
    canvas = Canvas(video.frames, np.zeros(video.frames.shape[:3], bool))
    start = pipeline.codec.encode(canvas.padded(pipeline.grid).frames)
    return job.result(job.painted(canvas, start=start, strength=strength))


def variations(
    pipeline: Pipeline | Deferred, video: Video, prompt: str, count: int = 4, strength: float = 0.8, **settings: Any
) -> Result:
    """`count` remixes of a clip under its own prompt, each from its own seed."""
    check_range("--count", count, 1, 100, whole=True)
    seed = settings.pop("seed", 0)
    made = [remix(pipeline, video, prompt, strength, seed=seed + i, **settings) for i in range(count)]
    return replace(made[0], videos=[result.frames for result in made])


def recut(
    pipeline: Pipeline | Deferred,
    video: Video,
    keep: Sequence[tuple[float, float]],
    prompt: str,
    join: float = 0.5,
    **settings: Any,
) -> Result:
    """The stretches `keep` (from, to in seconds) one after the other; `join` seconds around every cut are made anew."""
    pieces = [video.frames[a:b] for a, b in _stretches(video, keep)]
    check_range("--join", join, 0, 60)
    half = _groups(round(join * video.fps), pipeline.grid.temporal) // 2 if join else 0
    shortest = min(len(piece) for piece in pieces)
    if len(pieces) > 1 and shortest <= 2 * half:
        most = max(0, shortest - 1) // 2 / video.fps
        raise UserError(
            f"--join {join:g}: longer than a piece of {shortest} frames; the nearest valid value is {float(most):g}"
        )
    job = Job(pipeline, "recut", video, prompt, settings, keep=[list(piece) for piece in keep], join=join)
    out = [pieces[0]]
    for piece in pieces[1:]:
        left, right = out[-1][: len(out[-1]) - half], piece[half:]
        out[-1:] = [left, job.between(left, 2 * half, right), right] if half else [left, right]
    return job.result(np.concatenate(out))


def inpaint(pipeline: Pipeline | Deferred, video: Video, mask: np.ndarray, prompt: str, **settings: Any) -> Result:
    """The pixels of `mask` (H, W) or (T, H, W), bool, are painted anew; the others stay."""
    shape = video.frames.shape[:3]
    if mask.shape not in (shape, shape[1:]):
        found, wanted = ("x".join(map(str, s[::-1][:2])) for s in (mask.shape, shape))
        raise UserError(f"--mask of {found} does not fit a clip of {wanted}; the nearest valid size is {wanted}")
    if not mask.any():
        raise UserError("--mask is black: nothing is painted; paint white what shall change")
    job = Job(pipeline, "inpaint", video, prompt, settings)
    return job.result(job.painted(Canvas(video.frames, ~np.broadcast_to(mask, shape))))


def outpaint(
    pipeline: Pipeline | Deferred, video: Video, width: int, height: int, prompt: str, **settings: Any
) -> Result:
    """The clip in the middle of a larger frame, whose rest is painted."""
    old_height, old_width = video.frames.shape[1:3]
    if width < old_width or height < old_height:
        size = f"{max(width, old_width)}x{max(height, old_height)}"
        raise UserError(f"--size {width}x{height}: smaller than the clip; the nearest valid size is {size}")
    # On the grid of latent cells, so that no cell is half known.
    cell = pipeline.grid.spatial
    top, left = ((new - old) // 2 // cell * cell for new, old in ((height, old_height), (width, old_width)))
    inside = slice(None), slice(top, top + old_height), slice(left, left + old_width)
    frames = np.zeros((len(video.frames), height, width, 3), np.uint8)
    frames[inside] = video.frames
    known = np.zeros(frames.shape[:3], bool)
    known[inside] = True
    job = Job(pipeline, "outpaint", Video(frames, video.fps), prompt, settings)
    return job.result(job.painted(Canvas(frames, known)))


JOB_SETTINGS = ("progress", "long", "reencode")  # of the verbs beside those of a request


class Job:
    """What the verbs share: the request that the settings amount to, and the record of what was done."""

    def __init__(
        self,
        pipeline: Pipeline | Deferred,
        verb: str,
        video: Video,
        prompt: str,
        settings: dict[str, Any],
        **about: Any,
    ) -> None:
        self.progress: Progress | None = settings.get("progress")
        self.how: str = settings.get("long") or "auto"
        self.keep = not settings.get("reencode")
        frames, height, width = video.frames.shape[:3]
        sized = {"width": width, "height": height, "frames": frames, "seconds": None, "fps": video.fps}
        self.pipeline, self.verb, self.fps = pipeline, verb, Fraction(video.fps)
        self.request, self.about = pipeline.request(prompt, **{**asked(settings), **sized}), about

    def painted(self, canvas: Canvas, **how: Any) -> np.ndarray:
        """The whole canvas, uint8 (T, H, W, 3); `how` as in `Reel.paint`."""
        frames = self.pipeline.reel.paint(canvas, self.request, self.how, keep=self.keep, progress=self.progress, **how)
        return np.stack(list(frames))

    def between(
        self,
        before: np.ndarray | None,
        count: int,
        after: np.ndarray | None,
        prompts: Sequence[tuple[int, str]] = (),
    ) -> np.ndarray:
        """`count` frames that follow `before` and lead to `after`, which may be missing; between two clips the next
        multiple of a latent frame's, since `after` must begin with one. `prompts`: from which of the frames on which
        prompt holds, where that is not the request's."""
        sides, group = (before is not None) + (after is not None), self.pipeline.grid.temporal
        count = _groups(count, group) if sides == 2 else count
        context = self.context(count, sides)
        left = [] if before is None else [tail(before, context, group)]
        right = [] if after is None else [head(after, context, group)]
        # The first frame is a latent frame alone.
        painted = _groups(count - 1, group) + 1 if right and not left else count
        size = self.request.height, self.request.width
        end = sum(map(len, left)) + painted
        told = [(end - count + first, prompt) for first, prompt in prompts]
        video = self.painted(timeline([*left, painted, *right], size), prompts=told)
        return video[end - count : end]

    def context(self, painted: int, sides: int) -> int:
        """How many latent frames of the clip stand on each of `sides` of so many painted frames: as many as the model
        can see beside them, at least the third of its window with which a long video goes on."""
        window, group = self.pipeline.window, self.pipeline.grid.temporal
        return max(2, window // 3, (window - _groups(painted, group) // group) // max(1, sides))

    def result(self, frames: np.ndarray, **about: Any) -> Result:
        """The finished video uint8 (T, H, W, 3) with its record."""
        request = self.request
        record = {k: v for k, v in request.as_dict().items() if k not in ("prompt", "seed", "frames", "num_videos")}
        record |= {"verb": self.verb, **self.about, **about, "frames": len(frames), "known": self.pipeline.holding}
        record["model"] = self.pipeline.name
        about = provenance(request.prompt, request.seed, self.pipeline.model_hash, **record)
        return Result([frames], self.fps, about, dict(self.pipeline.timings))


def tail(frames: np.ndarray, groups: int, temporal: int) -> np.ndarray:
    """The last temporal*k+1 frames, `groups` latent frames or all."""
    groups = min((len(frames) - 1) // temporal, groups - 1)
    return frames[len(frames) - temporal * groups - 1 :]


def head(frames: np.ndarray, groups: int, temporal: int) -> np.ndarray:
    """The first temporal*k frames, `groups` latent frames or all, or one of fewer than a latent frame holds."""
    return frames[: max(1, temporal * min(len(frames) // temporal, groups))]


def asked(settings: dict[str, Any]) -> dict[str, Any]:
    """Those that a request has."""
    return {name: value for name, value in settings.items() if name not in JOB_SETTINGS}


def _generated(
    pipeline: Pipeline | Deferred, prompt: str, settings: dict[str, Any], image: np.ndarray | None = None
) -> Result:
    check_prompt(prompt)
    check_pictures(pipeline.pictures, 0 if image is None else 1)
    request = pipeline.request(prompt, **asked(settings))
    return pipeline.run(request, image, settings.get("progress"), settings.get("long") or "auto")


def _groups(frames: int, temporal: int) -> int:
    """The least multiple of a latent frame's `temporal` frames that holds so many, at least one of them."""
    return max(1, -(-frames // temporal)) * temporal


def _same_size(name: str, a: Video, b: Video) -> None:
    if a.frames.shape[1:3] != b.frames.shape[1:3]:
        (h, w), (h2, w2) = a.frames.shape[1:3], b.frames.shape[1:3]
        raise UserError(f"{name} of {w2}x{h2} does not fit the first clip; the nearest valid size is {w}x{h}")


def _stretches(video: Video, keep: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
    """(first, stop) in frames of every stretch; raises UserError for one that is empty or not in the video."""
    total = len(video.frames)
    out = []
    for begin, end in keep:
        length = float(total / video.fps)
        a, b = round(begin * video.fps), round(end * video.fps)
        if not 0 <= a < b <= total:
            raise UserError(
                f"--keep {begin:g}:{end:g} is not a stretch of a video of {length:g} s; "
                f"the nearest valid is {min(max(begin, 0), length):g}:{min(max(end, begin, 0), length):g}"
            )
        out.append((a, b))
    if not out:
        raise UserError("--keep names no stretch; write for example 0:2,5:7")
    return out
