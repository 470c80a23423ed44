"""What a user asks for, validated whole before torch is imported or a model is read."""

from __future__ import annotations

import contextlib
import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from worldline.errors import UserError
from worldline.shapes import MAX_SIDE, OURS, Grid, TokenShape, VideoShape, frames_for, parse_size

MIN_SIDE = 16  # pixels: one token's patch; a smaller picture would be padding only
MAX_PROMPT = 32_000  # characters, as the Videos API has it; a model reads the beginning
MAX_SEED = 2**63 - 1  # what torch.Generator.manual_seed takes
MAX_STEPS = 1000
MIN_SHIFT = 0.01  # of the times; at 1 they are even
MAX_VIDEOS = 1000
MAX_TOKENS = 2**17  # of one video: 1024x1024 for 7.9 s at 16 fps; attention beyond it is out of reach here
SUFFIXES = (".mp4", ".gif", ".webp", ".png")
SAMPLERS = ("euler", "heun", "dpmpp_2m", "unipc")  # of diffusion.samplers, named here without torch
TRAINED = VideoShape(17, 64, 64)  # what the shipped model saw; a model folder's defaults override it


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a model is asked, whatever it is asked for; every field valid: raises UserError with one line otherwise.

    Guidance acts at the times of `guidance_interval` (1 is pure noise, 0 the finished video); see diffusion.guidance
    for `rescale`. `guidance_scale_2` is that of a model's low-noise expert, None where it has one expert;
    `guidance_scale_image` that of what is known of the video, None for a model that is not guided by it;
    `guidance_oscillation` turns both off in every other late step. `shift` moves the times towards noise, None as far
    as the model's scheduler says. Steps of a sampler may borrow from each other within `reuse`, see dit.reuse; 0
    borrows nothing. `prompt_suffix` ends what the model reads, see `suffixed`.
    """

    negative_prompt: str = ""
    steps: int = 20
    guidance_scale: float = 5.0
    guidance_scale_2: float | None = None
    guidance_scale_image: float | None = None
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_oscillation: bool = False
    shift: float | None = None
    prompt_suffix: str = ""
    sampler: str = "euler"
    reuse: float = 0.0

    def __post_init__(self) -> None:
        check_text("--negative-prompt", self.negative_prompt)
        check_text("--prompt-suffix", self.prompt_suffix)
        check_range("--steps", self.steps, 1, MAX_STEPS, whole=True)
        check_range("--guidance-scale", self.guidance_scale, 0, 100)
        if self.guidance_scale_2 is not None:
            check_range("--guidance-scale-2", self.guidance_scale_2, 0, 100)
        if self.guidance_scale_image is not None:
            check_range("--guidance-scale-image", self.guidance_scale_image, 0, 100)
        check_range("--guidance-rescale", self.guidance_rescale, 0, 1)
        check_range("--reuse", self.reuse, 0, 1)
        if self.shift is not None:
            check_range("--shift", self.shift, MIN_SHIFT, 100)
        for end in self.guidance_interval:
            check_range("--guidance-interval", end, 0, 1)
        if self.guidance_interval[0] > self.guidance_interval[1]:
            low, high = self.guidance_interval
            raise UserError(f"--guidance-interval {low:g},{high:g}: runs backwards; write {high:g},{low:g}")
        if self.sampler not in SAMPLERS:
            near = (difflib.get_close_matches(self.sampler, SAMPLERS, 1) or SAMPLERS)[0]
            raise UserError(f"--sampler {self.sampler[:40]!r}: unknown; the nearest is {near}")

    def copies(self, known: bool) -> int:
        """How often guidance asks the model of each video at once, at most: with prompt and what is known (1), also
        without the prompt (2), also without either (3), which tells nothing new where nothing is `known`."""
        if known and self.guidance_scale_image not in (None, 1):
            return 3
        return 2 if self.guidance_scale != 1 or self.guidance_scale_2 not in (None, 1) else 1


@dataclass(frozen=True)
class Request(Sampling):
    """One call of `generate`, every field valid: raises UserError with one line otherwise.

    Units: width and height in pixels, fps in frames per second. Video i is drawn from `seed + i`. `rewritten_from` is
    the user's own prompt where `prompt` was made of it. `grid` is the model's.
    """

    prompt: str
    width: int = 64
    height: int = 64
    frames: int = 17
    fps: Fraction = Fraction(16)
    seed: int = 0
    num_videos: int = 1
    rewritten_from: str = ""
    grid: Grid = OURS

    def __post_init__(self) -> None:
        check_text("PROMPT", self.prompt)
        super().__post_init__()
        check_size(self.width, self.height)
        check_range("--frames", self.frames, 1, 1_000_000, whole=True)
        check_range("--num-videos", self.num_videos, 1, MAX_VIDEOS, whole=True)
        check_range("--seed", self.seed, 0, MAX_SEED - self.num_videos + 1, whole=True)
        check_range("--fps", float(self.fps), Fraction(1, 10), 240)
        if self.tokens.count > MAX_TOKENS:
            most = self._most_frames()
            raise UserError(
                f"--seconds {self.frames / float(self.fps):g} ({self.frames} frames) at {self.width}x{self.height} "
                f"is too long; the nearest valid value is {math.floor(100 * (most - 1) / self.fps) / 100:g} "
                f"({most} frames)"
                if most
                else f"--size {self.width}x{self.height} is too large for one video; "
                f"the nearest valid value is {_fitting(self.width, self.height, self.grid.side)}"
            )

    @property
    def shape(self) -> VideoShape:
        """What comes out, in pixels."""
        return VideoShape(self.frames, self.height, self.width)

    @property
    def padded(self) -> VideoShape:
        """What is drawn before the crop: whole cells and tokens of the model, as 4k+1 frames and sides of 16 pixels."""
        return self.grid.snapped(self.shape)

    @property
    def tokens(self) -> TokenShape:
        return self.grid.tokens(self.padded)

    def notes(self, trained: VideoShape = TRAINED) -> list[str]:
        """One line about each way in which the request lies far from what the model was trained on."""
        lines = []
        area = self.width * self.height / (trained.width * trained.height)
        if not 0.5 <= area <= 2 or not 0.5 <= self.width / self.height * trained.height / trained.width <= 2:
            lines.append(
                f"the model was trained on {trained.width}x{trained.height}; "
                f"expect weaker results at {self.width}x{self.height}"
            )
        if self.frames != 1 and not 0.5 <= self.frames / trained.frames <= 1.5:
            lines.append(f"the model was trained on {trained.frames} frames; expect weaker results at {self.frames}")
        if self.padded != self.shape:
            lines.append(f"drawn at {self.padded.width}x{self.padded.height}, {self.padded.frames} frames, and cropped")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable fields of what was asked for."""
        values = {"prompt": self.prompt, **asdict(self), "fps": float(self.fps)}
        del values["grid"]
        for name in ("rewritten_from", "reuse"):
            if not values[name]:
                del values[name]
        return {name: value for name, value in values.items() if value is not None}

    def _most_frames(self) -> int:
        per_latent = self.tokens.h * self.tokens.w
        return max(0, self.grid.temporal * (MAX_TOKENS // per_latent - 1) + 1)


def _fitting(width: int, height: int, side: int) -> str:
    shrink = math.sqrt(side**2 * MAX_TOKENS / (width * height))
    return f"{int(width * shrink) // side * side}x{int(height * shrink) // side * side}"


def request_of(
    defaults: Request,
    prompt: str,
    *,
    seconds: float | None = None,
    frames: int | None = None,
    fps: float | Fraction | str | None = None,
    **given: Any,
) -> Request:
    """A request with `defaults` for what is not given, or None. Raises UserError for any value that cannot be."""
    rate = defaults.fps if fps is None else read_fps(fps)
    chosen = {name: value for name, value in given.items() if value is not None}
    if "guidance_scale_2" in chosen and defaults.guidance_scale_2 is None:
        raise UserError("--guidance-scale-2: the model has one expert; leave it out, --guidance-scale holds throughout")
    if "guidance_scale_image" in chosen and defaults.guidance_scale_image is None:
        raise UserError("--guidance-scale-image: the model is not guided by what is known; leave it out")
    if "guidance_scale" in chosen and defaults.guidance_scale_2 is not None:
        chosen = {"guidance_scale_2": chosen["guidance_scale"], **chosen}  # one scale that is given holds for both
    length = frames_of(seconds, frames, rate, defaults.frames)
    return replace(defaults, prompt=prompt, fps=rate, frames=length, **chosen)


def free_memory() -> float:
    """Bytes that this process may still take: of the machine and of its control group; inf where neither says."""
    free = [math.inf]
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with contextlib.suppress(OSError, ValueError):  # ValueError: the limit reads "max"
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        held = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free.append(limit - used + int(held.get("inactive_file", 0)))  # pages of files, which are given up for others
    return max(0.0, min(free))


def known_defaults(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of a model folder that a Request has; raises UserError for a frame rate that none can be."""
    scales = ("guidance_scale", "guidance_scale_2", "guidance_scale_image", "guidance_rescale", "guidance_oscillation")
    names = ("width", "height", "frames", "steps", "sampler", "shift", *scales, "negative_prompt", "prompt_suffix")
    values = {name: defaults[name] for name in names if name in defaults}
    if "guidance_interval" in defaults:
        values["guidance_interval"] = tuple(defaults["guidance_interval"])  # JSON gives lists
    return {**values, "fps": read_fps(defaults.get("fps", Request.fps))}


def window_of(defaults: Mapping[str, Any], grid: Grid) -> int:
    """Latent frames that a model paints at once: its `window`, or the length that it was trained on."""
    trained = VideoShape(int(defaults.get("frames", TRAINED.frames)), 1, 1)
    return int(defaults.get("window", grid.latent(trained).frames))


LONG = ("auto", "whole", "sliding", "long-range", "hierarchy")  # plans of generate.long, named here without torch


def how_of(how: str, frames: int, defaults: Mapping[str, Any]) -> str:
    """The plan for a video of so many latent frames. "auto" cuts up what is longer than the window of a model that
    was trained for it; any other model paints everything at once. Raises UserError for an unknown plan."""
    if how not in LONG:
        near = (difflib.get_close_matches(how, LONG, 1) or LONG)[0]
        raise UserError(f"--long {how[:40]!r}: unknown; the nearest is {near}")
    if how != "auto":
        return how
    return "hierarchy" if "window" in defaults and frames > int(defaults["window"]) else "whole"


def check_prompt(prompt: str) -> None:
    """Raise UserError for a prompt that says nothing."""
    if not prompt.strip():
        raise UserError('PROMPT is empty: say what the video shows, for example "a red ball rolls to the right"')


def suffixed(prompt: str, suffix: str) -> str:
    """The prompt as a sentence, then the suffix, if there is one (hpcaitech/Open-Sora, opensora/utils/inference.py)."""
    sentence = prompt.strip()
    return f"{sentence}{'' if sentence.endswith('.') else '.'} {suffix}" if suffix else prompt


def check_pictures(needed: int, given: int) -> None:
    """Raise UserError for a model that cannot do without a first picture, or a first and a last one, and lacks it."""
    if given >= needed:
        return
    if needed == 1:
        raise UserError("--image is missing: this model brings a picture to life; give the first frame")
    raise UserError("this model leads from one picture to another: give both, `worldline interpolate A B PROMPT`")


def check_text(argument: str, text: str) -> None:
    """Raise UserError for a text that is too long or holds what no prompt can."""
    if "\0" in text:
        raise UserError(f"{argument} holds a NUL byte; remove it")
    if len(text) > MAX_PROMPT:
        raise UserError(f"{argument} has {len(text)} characters; at most {MAX_PROMPT} are valid")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{argument} is not valid UTF-8 text; retype it") from None


def check_range(
    argument: str, value: float, low: float | Fraction, high: float | Fraction, whole: bool = False
) -> None:
    """Raise UserError unless low <= value <= high (and a whole number where asked), naming the nearest valid value."""
    if not math.isfinite(value):
        raise UserError(f"{argument} {value}: not a finite number; the nearest valid values are {low} to {high}")
    if whole and value != int(value):
        raise UserError(f"{argument} {value}: not a whole number; the nearest valid value is {round(value)}")
    nearest = min(max(value, float(low)), float(high)) if not whole else min(max(int(value), int(low)), int(high))
    if nearest != value:
        shown = nearest if whole else f"{nearest:g}"
        raise UserError(f"{argument} {value}: out of range; the nearest valid value is {shown}")


def check_size(width: int, height: int) -> None:
    """Raise UserError unless both sides are MIN_SIDE to MAX_SIDE pixels."""
    nearest = tuple(min(max(side, MIN_SIDE), MAX_SIDE) for side in (width, height))
    if nearest != (width, height):
        raise UserError(
            f"--size {width}x{height}: sides are {MIN_SIDE} to {MAX_SIDE} pixels; "
            f"the nearest valid size is {nearest[0]}x{nearest[1]}"
        )


def read_size(text: str) -> tuple[int, int]:
    """ "WIDTHxHEIGHT" as (width, height), both MIN_SIDE to MAX_SIDE; a lone number N means NxN."""
    try:
        side = int(text)
    except ValueError:
        width, height = parse_size(text)
    else:
        width = height = side
    check_size(width, height)
    return width, height


def read_fps(text: str | float | Fraction) -> Fraction:
    """A rate such as "16", "23.976" or "30000/1001"; raises UserError."""
    try:
        fps = Fraction(text).limit_denominator(100_000)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise UserError(f"--fps {str(text)[:40]!r}: not a rate; expected 0.1 to 240, for example 16") from None
    check_range("--fps", float(fps), Fraction(1, 10), 240)
    return fps


def read_bytes(argument: str, text: str) -> float:
    """ "8GB", "500 MB", "6GiB" as bytes; a lone number is bytes. Raises UserError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B?|B)?\s*", text, re.IGNORECASE)
    if match is None:
        raise UserError(f"{argument} {text[:40]!r}: not an amount of memory; a valid value is 8GB")
    power = " KMGT".index((match[2] or " ").upper())
    size = float(match[1]) * (1024 if match[3] else 1000) ** power
    check_range(argument, size, 1e6, 1e15)
    return size


def read_interval(text: str) -> tuple[float, float]:
    """ "0.2,0.9" as (0.2, 0.9); raises UserError."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--guidance-interval {text[:40]!r}: not two times, as in 0.2,0.9") from None
    return low, high


def frames_of(seconds: float | None, frames: int | None, fps: Fraction, default: int) -> int:
    """Frames asked for, as a length in seconds or as a count; both is an error, neither means `default`."""
    if seconds is not None and frames is not None:
        raise UserError("--seconds and --frames both say how long; give one of them")
    if frames is not None:
        return frames
    if seconds is None:
        return default
    if seconds <= 0:
        raise UserError(
            f"--seconds {seconds:g}: out of range; the nearest valid value is {1 / float(fps):g} "
            "(for a picture, --frames 1)"
        )
    return frames_for(seconds, float(fps))


def check_output(path: str | Path, overwrite: bool, frames: int = 2, count: int = 1) -> Path:
    """The output path, once nothing stands in the way of writing it; raises UserError before any work is done."""
    from worldline.media.credentials import check_signer
    from worldline.media.write import check_writable

    check_signer()
    out = Path(path)
    if out.suffix.lower() == ".png" and frames != 1:
        raise UserError(f"output: {out} holds one picture only; add --frames 1, or use {out.stem}.mp4")
    try:
        for file in numbered(out, count):
            check_writable(file, overwrite, SUFFIXES)
    except OSError as error:
        raise UserError(
            f"output: cannot write {str(out)[:100]} ({error.strerror}); use another name, as out{out.suffix}"
        ) from None
    return out


def numbered(path: Path, count: int) -> list[Path]:
    """`out.mp4` for one video; `out-0.mp4`, `out-1.mp4` ... for several."""
    if count == 1:
        return [path]
    digits = len(str(count - 1))
    return [path.with_name(f"{path.stem}-{i:0{digits}d}{path.suffix}") for i in range(count)]
