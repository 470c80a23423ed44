"""Near-duplicates within and across files: found by a perceptual hash and its buckets, confirmed picture by picture.

A clip is known by six tiny pictures of it, spread evenly over its length, each the mean of what is shown around its
moment: frames of a copy that fall a little earlier or later change little of it. Their lowest frequencies are hashed
with random hyperplanes (Charikar 2002) into tables; clips that share a bucket are candidates, and the number of those
looked at is bounded, so the work is linear in the number of clips. A candidate is confirmed only if, laid over the
other clip where it fits best (crops move and scale it), both what stands still and what moves agree nearly everywhere,
and one change of colours makes the one of the other.
"""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import ClassVar

import numpy as np

from worldline.media.clips import read_clips
from worldline.records import Clip, Crop, Decision

PICTURES = 6  # of a clip
LOOKS = 5  # at each of them, where not all frames are seen
LASTS = 0.4  # seconds of a clip that a picture is the mean of, or a sixth of its length
SIDE = 48  # of the longer side of a tiny picture
LOW = 5  # frequencies across and down that are hashed
TABLES, BITS = 24, 18
MOST_CANDIDATES = 8  # of one clip are looked at
MOST_IN_BUCKET = 256  # are counted
# Windows of a clip that another may have been cropped to: (left, top, width, height) as shares.
_SIZES = (0.92, 0.84, 0.76, 0.68)
WINDOWS = tuple(
    (left * (1 - size), top * (1 - size), size, size) for size in _SIZES for left, top in ((0.5, 0.5),)
) + tuple((left * 0.15, top * 0.15, 0.85, 0.85) for left in (0, 1) for top in (0, 1))


@dataclass(frozen=True)
class Print:
    """What is kept of a clip to compare it: uint8 (PICTURES, h, w, 3) BGR."""

    pictures: np.ndarray

    def encode(self) -> dict[str, object]:
        return {"shape": list(self.pictures.shape), "bytes": base64.b85encode(self.pictures.tobytes()).decode()}

    @staticmethod
    def decode(record: dict[str, object]) -> Print:
        raw = np.frombuffer(base64.b85decode(str(record["bytes"])), np.uint8)
        return Print(raw.reshape(record["shape"]))  # type: ignore[call-overload]

    @property
    def planes(self) -> np.ndarray:
        """float32 (PICTURES, 4, h, w): luma, the largest colour, which a change of hue leaves alone, and two of chroma,
        which it turns: red against the others, and green against blue."""
        blue, green, red = np.moveaxis(self.pictures.astype(np.float32), -1, 0)
        luma = 0.114 * blue + 0.587 * green + 0.299 * red
        largest = np.maximum(np.maximum(blue, green), red)
        return np.stack([luma, largest, red - (green + blue) / 2, (green - blue) * np.sqrt(0.75)], 1, dtype=np.float32)


def tiny(picture: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) of a picture uint8 (H, W, 3) BGR."""
    import cv2

    height, width = picture.shape[:2]
    scale = SIDE / max(height, width)
    size = max(8, round(width * scale)), max(8, round(height * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def print_of(frames: list[np.ndarray], times: np.ndarray, crop: Crop | None, size: tuple[int, int]) -> Print:
    """The print of a clip, from the tiny pictures of its frames and their times (frames + 1,), without its bars."""
    length = times[-1] - times[0]
    half = min(LASTS, length / PICTURES) / 2
    pictures = []
    for moment in times[0] + (np.arange(PICTURES) + 0.5) / PICTURES * length:
        shown = np.diff(np.clip(times, moment - half, moment + half))  # (frames,) seconds around the moment
        first, last = np.flatnonzero(shown)[[0, -1]]
        pictures.append(np.average(np.stack(frames[first : last + 1]), 0, shown[first : last + 1]))
    whole = np.stack(pictures).round().astype(np.uint8)
    if crop:
        left, top, width, height = crop[0] / size[0], crop[1] / size[1], crop[2] / size[0], crop[3] / size[1]
        planes = _window(np.moveaxis(whole, -1, 1), (left, top, width, height), (crop[2], crop[3]))
        whole = np.ascontiguousarray(np.moveaxis(planes, 1, -1))
    return Print(whole)


def prints_of(clips: Iterable[Clip]) -> dict[str, Print]:
    """Prints by clip id, from the clips' own files; of those that cannot be read none. Each picture is the mean of some
    frames, evenly spread over what `print_of` takes all of."""
    found = {}
    for clip in clips:
        half = min(LASTS, clip.seconds / PICTURES) / 2 / max(clip.seconds, 1e-6)
        around = half * ((np.arange(LOOKS) + 0.5) / LOOKS * 2 - 1)
        shares = ((np.arange(PICTURES) + 0.5) / PICTURES)[:, None] + around

        def pick(count: int, shares: np.ndarray = shares) -> np.ndarray:
            return (shares.ravel() * count).astype(int)

        for _, frames in read_clips([clip], pick):
            if isinstance(frames, np.ndarray):
                looks = np.stack([tiny(np.ascontiguousarray(frame[..., ::-1])) for frame in frames])
                pictures = looks.reshape(PICTURES, LOOKS, *looks.shape[1:]).mean(1)
                found[clip.id] = Print(pictures.round().astype(np.uint8))
    return found


@dataclass(frozen=True)
class Duplicates:
    """Keeps one of the clips that show the same: the one of most pixels, then of most frames."""

    name: ClassVar[str] = "duplicates"

    agree: float = 0.75  # correlation, of what stands still and of what moves
    agree_part: float = 0.7  # the same where one clip may be a part of the other's picture

    def same(self, a: Print, b: Print) -> bool:
        return same(a, b, self.agree, self.agree_part)

    def decide(self, clips: Iterable[tuple[Clip, Print]]) -> dict[tuple[str, str], Clip]:
        """(id, source) -> the clip with this stage's decision; clips dropped before are not looked at."""
        order = sorted(clips, key=lambda item: (-item[0].size[0] * item[0].size[1], -item[0].frames, _key(item[0])))
        index = _Index()
        out = {}
        for clip, look in order:
            match = next((kept for kept, other in index.near(look) if self.same(look, other)), None)
            if match is None:
                index.add(clip, look)
                out[_key(clip)] = replace(clip, decisions=(*clip.decisions, Decision(self.name, True)))
                continue
            reason = f"shows the same as {match.id} of {match.source}"
            decisions = (*clip.decisions, Decision(self.name, False, reason))
            out[_key(clip)] = replace(
                clip, kept=False, reason=f"{self.name}: {reason}", decisions=decisions, duplicate_of=match.id
            )
        return out


def _key(clip: Clip) -> tuple[str, str]:
    return clip.id, clip.source


# ---- candidates ------------------------------------------------------------------------------------


@dataclass
class _Index:
    """Buckets of the clips that were kept: whole clips, and windows of them."""

    kept: list[tuple[Clip, Print]] = field(default_factory=list)
    whole: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    windows: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    def add(self, clip: Clip, look: Print) -> None:
        number = len(self.kept)
        self.kept.append((clip, look))
        for key in set(_keys(_whole(look))):
            self.whole[key].append(number)
        for key in set(_keys(_windows(look))):
            self.windows[key].append(number)

    def near(self, look: Print) -> list[tuple[Clip, Print]]:
        """Kept clips that share a bucket, those that share most first; a window is held against whole clips only."""
        whole, windows = set(_keys(_whole(look))), set(_keys(_windows(look)))
        shared = Counter(number for key in whole for number in self.whole.get(key, ())[-MOST_IN_BUCKET:])
        shared.update(number for key in whole for number in self.windows.get(key, ())[-MOST_IN_BUCKET:])
        shared.update(number for key in windows for number in self.whole.get(key, ())[-MOST_IN_BUCKET:])
        best = sorted(shared.items(), key=lambda item: (-item[1], item[0]))[:MOST_CANDIDATES]
        return [self.kept[number] for number, _ in best]


def _whole(look: Print) -> np.ndarray:
    return _descriptors(look.planes[None, :, :2])


def _windows(look: Print) -> np.ndarray:
    seen = look.planes[:, :2]
    aspect = seen.shape[3], seen.shape[2]
    return _descriptors(np.stack([_window(seen, window, aspect) for window in WINDOWS]))


def _window(pictures: np.ndarray, window: tuple[float, float, float, float], aspect: tuple[int, int]) -> np.ndarray:
    """Tiny pictures (..., h, w) of a window given in shares; `aspect` is its width and height in any unit."""
    import cv2

    height, width = pictures.shape[-2:]
    scale = SIDE / max(aspect)
    out = max(8, round(aspect[0] * scale)), max(8, round(aspect[1] * scale))
    zoom_x, zoom_y = window[2] * width / out[0], window[3] * height / out[1]
    # Output pixel centres to input pixel centres.
    matrix = np.array(
        [
            [zoom_x, 0, window[0] * width + zoom_x / 2 - 0.5],
            [0, zoom_y, window[1] * height + zoom_y / 2 - 0.5],
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    flat = pictures.reshape(-1, height, width)
    cut = [cv2.warpAffine(one, matrix, out, flags=flags, borderMode=cv2.BORDER_REPLICATE) for one in flat]
    return np.stack(cut).reshape(*pictures.shape[:-2], out[1], out[0])


def _descriptors(pictures: np.ndarray) -> np.ndarray:
    """(n, PICTURES, 2, h, w) -> (n * 2, PICTURES * (LOW^2 - 1)): lowest frequencies without the mean, of length one."""
    height, width = pictures.shape[-2:]
    spectrum = _cosines(height) @ pictures.astype(np.float32) @ _cosines(width).T  # (n, P, 2, LOW, LOW)
    spectrum = spectrum.reshape(*spectrum.shape[:3], LOW * LOW)[..., 1:]
    spectrum = spectrum / (np.linalg.norm(spectrum, axis=-1, keepdims=True) + 1e-3)  # each picture counts the same
    return np.moveaxis(spectrum, 2, 1).reshape(len(pictures) * 2, -1)


@cache
def _cosines(length: int) -> np.ndarray:
    """(LOW, length): the first rows of the cosine transform, scaled so that lengths compare."""
    k, x = np.mgrid[:LOW, :length]
    return (np.cos(np.pi * k * (2 * x + 1) / (2 * length)) / length).astype(np.float32)


@cache
def _planes() -> np.ndarray:
    rng = np.random.default_rng(20261122)
    return rng.standard_normal((PICTURES * (LOW * LOW - 1), TABLES * BITS)).astype(np.float32)


def _keys(descriptors: np.ndarray) -> list[int]:
    """A number per table and descriptor, unlike those of other tables; luma and largest colour share the tables."""
    signs = (descriptors @ _planes() > 0).reshape(-1, TABLES, BITS)
    codes = signs @ (1 << np.arange(BITS)) + (np.arange(TABLES) << BITS)
    return [int(code) for code in codes.ravel()]


def fingerprint(look: Print) -> str:
    """64 bits in hex of a clip's luma: signs of its lowest frequencies under fixed random hyperplanes."""
    signs = _whole(look)[0] @ _planes()[:, :64] > 0
    return f"{int(signs @ (1 << np.arange(64, dtype=object))):016x}"


# ---- confirmation ----------------------------------------------------------------------------------


def same(a: Print, b: Print, agree: float, agree_part: float) -> bool:
    """Whether one clip shows the other, or a part of its picture."""
    ours, others = a.planes, b.planes
    fitted = _fitted(others, ours.shape[-2:])
    if agreement(ours, fitted) >= agree and recoloured(ours, fitted) >= ONE_CHANGE:
        return True
    for outer, inner in ((ours, others), (others, ours)):
        placed = _placed(outer, inner)
        if placed is None:
            continue
        # A part is seen less finely than the whole of the other, so both are held against each other coarsely.
        part, whole = _halved(placed), _halved(inner)
        if agreement(part, whole) >= agree_part and recoloured(part, whole) >= ONE_CHANGE:
            return True
    return False


ONE_CHANGE = 0.85  # of the chroma is explained
NOISE = 4.0  # levels of chroma that codecs change


def recoloured(a: np.ndarray, b: np.ndarray) -> float:
    """0 to 1: the part of the chroma of planes (T, 4, h, w) that one change of colours makes of the other's.

    It may turn, mirror and scale all chroma alike and tint what is light. Where things change their colours each in its
    own way, they are others.
    """
    clear = _clear(a, b)
    if clear.mean() < LEAST_SEEN:
        return 1.0
    rich, poor = sorted((a[:, :, clear], b[:, :, clear]), key=lambda seen: float(seen[:, 2:].var((0, 2)).sum()))[::-1]
    luma, red, green = (rich[:, c].ravel() for c in (0, 2, 3))
    known = np.stack([red, green, luma, np.ones_like(luma)], 1)
    goal = np.stack([poor[:, 2].ravel(), poor[:, 3].ravel()], 1)
    left = goal - known @ np.linalg.lstsq(known, goal, rcond=None)[0]
    return 1 - float((left**2).mean()) / float(goal.var(0).mean() + NOISE**2)


def _fitted(pictures: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Planes resized to height and width of others."""
    import cv2

    if pictures.shape[-2:] == shape:
        return pictures
    flat = pictures.reshape(-1, *pictures.shape[-2:])
    resized = [cv2.resize(one, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR) for one in flat]
    return np.stack(resized).reshape(*pictures.shape[:-2], *shape)


def _halved(pictures: np.ndarray) -> np.ndarray:
    return _fitted(pictures, (pictures.shape[-2] // 2, pictures.shape[-1] // 2))


FINE = 1.5  # how much larger pictures are made to place one in the other
SCALES = np.arange(0.96, 0.6, -0.04)
LEAST_SHARE = 0.6  # of width and height that a crop leaves
MOST_SHARE = 0.98  # beyond, nothing was cropped, and the whole pictures tell more


def _placed(outer: np.ndarray, inner: np.ndarray) -> np.ndarray | None:
    """The part of `outer` that `inner` may be a crop of, at the size of `inner`; None where it fits nowhere.

    Their means over time are matched coarsely at every place and scale, then aligned (ECC, Evangelidis 2008).
    """
    import cv2

    height, width = (round(side * FINE) for side in outer.shape[-2:])
    ground = _mean(outer, (width, height))
    best, start = 0.5, None
    for scale in SCALES:
        columns = round(width * scale)
        rows = min(height, round(columns * inner.shape[-2] / inner.shape[-1]))
        if rows < LEAST_SHARE * height:
            continue
        fit = cv2.matchTemplate(ground, _mean(inner, (columns, rows)), cv2.TM_CCOEFF_NORMED)
        _, peak, _, (left, top) = cv2.minMaxLoc(fit)
        if peak > best:
            best, start = peak, (left, top, columns, rows)
    if start is None:
        return None
    left, top, columns, rows = start
    goal = round(inner.shape[-1] * FINE), round(inner.shape[-2] * FINE)
    matrix = np.array([[columns / goal[0], 0, left], [0, rows / goal[1], top]], np.float32)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
    try:
        _, found = cv2.findTransformECC(_mean(inner, goal), ground, matrix, cv2.MOTION_AFFINE, stop)
    except cv2.error:  # it did not converge: nothing fits
        return None
    matrix = np.asarray(found, np.float32)
    share_x, share_y = matrix[0, 0] * goal[0] / width, matrix[1, 1] * goal[1] / height
    if not LEAST_SHARE <= min(share_x, share_y) < MOST_SHARE or max(abs(matrix[0, 1]), abs(matrix[1, 0])) > 0.05:
        return None
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    large = _fitted(outer, (height, width)).reshape(-1, height, width)
    cut = [cv2.warpAffine(one, matrix, goal, flags=flags, borderMode=cv2.BORDER_REPLICATE) for one in large]
    return _fitted(np.stack(cut).reshape(*outer.shape[:2], goal[1], goal[0]), inner.shape[-2:])


def _mean(pictures: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32 (h, w): mean luma over time, at a width and height."""
    import cv2

    return cv2.resize(pictures[:, 0].mean(0), size, interpolation=cv2.INTER_LINEAR)


BLOCKS = 4  # across and down
SEEN = 4.0  # levels: a block that varies less says nothing
LEAST_BLOCKS = 4  # of the pictures' means; fewer tell nothing
COPY = 4.0  # levels by which any block of copies of an empty picture differs
CLIPPED = 245  # levels of the largest colour
LEAST_CLEAR = 0.3  # of a block, which with less says nothing
LEAST_SEEN = 0.15  # of a picture, of which with less all counts, but not its colours
MOVES_LOSE = 0.25  # what moves may agree less by: codecs and other moments blur it
SPARED = 0.1  # of the blocks may disagree: an edge that was cut a little differently, a place that the codec lost


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """0 to 1: how well planes (T, 4, h, w) that lie over each other agree, in luma or in the largest colour."""
    clear = _clear(a, b)
    clear |= clear.mean() < LEAST_SEEN
    return max(_of_channel(a[:, c], b[:, c], clear) for c in range(2))


def _clear(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(h, w) where planes can be compared: where a colour was clipped, they cannot."""
    return np.asarray((a[:, 1].max(0) < CLIPPED) & (b[:, 1].max(0) < CLIPPED))


def _of_channel(a: np.ndarray, b: np.ndarray, clear: np.ndarray) -> float:
    """a, b (T, h, w), `clear` (h, w). What stands still is the mean over time, what moves the rest, which codecs and
    time blur more."""
    still = _blockwise(a.mean(0, keepdims=True), b.mean(0, keepdims=True), clear, centred=True)
    moves = _blockwise(a - a.mean(0), b - b.mean(0), clear, centred=False)
    if len(still) < LEAST_BLOCKS:  # next to nothing to go by: only a copy counts
        return float(_left(a, b) < COPY)
    return min(_most(still), _most(moves) + MOVES_LOSE)


def _left(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference, in the worst block, that the best change of brightness and contrast of a leaves to b."""
    gain, offset = np.polyfit(a.ravel(), b.ravel(), 1) if a.std() > 0.5 else (1.0, 0.0)
    off = np.abs(gain * a + offset - b).mean(0)
    blocks = [part for rows in np.array_split(off, BLOCKS, 0) for part in np.array_split(rows, BLOCKS, 1)]
    return max(float(part.mean()) for part in blocks)


def _most(correlations: list[float]) -> float:
    """What all blocks but the spared ones reach; 1 where there are none."""
    return sorted(correlations)[int(SPARED * len(correlations))] if correlations else 1.0


def _blockwise(a: np.ndarray, b: np.ndarray, clear: np.ndarray, centred: bool) -> list[float]:
    """The correlation of every block that says something; blocks may each change their brightness.

    The sign of a block does not count: a change of hue can turn light on dark into dark on light.
    """
    gain = float(np.sqrt((b.var() + 1e-6) / (a.var() + 1e-6)))
    found = []
    for rows in np.array_split(np.arange(a.shape[1]), BLOCKS):
        for columns in np.array_split(np.arange(a.shape[2]), BLOCKS):
            block = np.s_[..., rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            seen = clear[block]
            if seen.mean() < LEAST_CLEAR:
                continue
            part_a, part_b = a[block] * gain, b[block]
            if centred:
                part_a, part_b = _levelled(part_a, seen), _levelled(part_b, seen)
            part_a, part_b = part_a[:, seen], part_b[:, seen]
            spread_a, spread_b = float(np.sqrt((part_a**2).mean())), float(np.sqrt((part_b**2).mean()))
            if max(spread_a, spread_b) >= SEEN:
                found.append(abs(float((part_a * part_b).mean())) / (spread_a * spread_b + 0.1))
    return found


def _levelled(block: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(1, h, w) without its mean and slope, by what is seen: every sky darkens upwards, every lens to its edges."""
    height, width = block.shape[1:]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    basis = np.stack([np.ones_like(x), y, x])  # (3, h, w)
    slope = np.linalg.lstsq(basis[:, seen].T, block[0][seen], rcond=None)[0]
    return (block[0] - np.tensordot(slope, basis, 1))[None]
