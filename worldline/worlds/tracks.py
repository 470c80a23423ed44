"""Frames to tracks: colour every pixel, gather blobs, tell equal neighbours apart, follow each object through time."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from worldline.worlds.verify_nets import BINS, COLOUR_NAMES, CROP

SIDE = 64  # the shorter side at which everything is measured
MAX_FRAMES = 129
MIN_AREA = 14  # pixels: smaller blobs are noise
SPECK = 40  # median area: the smallest thing covers 60 pixels
PRESENT = 0.3  # share of frames that an object must be seen in


@dataclass
class Track:
    """One object through time. Lengths are in half shorter sides: u right, v up, both 0 at the picture's centre.

    `centre` (T, 2); `box` (T, 4) left, right, bottom, top; `slim` (T,) spread of columns over spread of rows;
    `area` (T,) pixels; `visible` (T,) seen at all; `whole` (T,) seen uncut.
    """

    colour: str
    centre: np.ndarray
    box: np.ndarray
    slim: np.ndarray
    area: np.ndarray
    visible: np.ndarray
    whole: np.ndarray
    crops: np.ndarray  # (N, 2, 20, 20) of up to 16 whole frames


@dataclass
class Field:
    """A clip at working size: `frames` float32 (T, H, W, 3) in 0..1, `probs` (T, H, W, 9), `labels` uint8 (T, H, W)."""

    frames: np.ndarray
    probs: np.ndarray
    labels: np.ndarray


def working_size(frames: np.ndarray) -> np.ndarray:
    """Any uint8 (T, H, W, 3) to a shorter side of 64 and at most 129 frames; first and last frames are kept."""
    if len(frames) > MAX_FRAMES:
        frames = frames[np.linspace(0, len(frames) - 1, MAX_FRAMES).round().astype(int)]
    height, width = frames.shape[1:3]
    scale = SIDE / min(height, width)
    size = (min(round(width * scale), 8 * SIDE), min(round(height * scale), 8 * SIDE))
    if (width, height) == size:
        return frames
    resample = Image.Resampling.BOX if scale <= 0.5 else Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, resample)) for frame in frames])


def colour_field(frames: np.ndarray, table: np.ndarray) -> Field:
    """Probability of each colour per pixel, smoothed over a pixel so that noise and glints do not break objects."""
    small = frames // (256 // BINS)
    index = (small[..., 0].astype(np.int32) * BINS + small[..., 1]) * BINS + small[..., 2]
    probs = table[index]  # (T, H, W, 9)
    for axis in (1, 2):
        probs = ndimage.correlate1d(probs, np.array([0.25, 0.5, 0.25], np.float32), axis, mode="nearest")
    return Field(frames.astype(np.float32) / 255, probs, probs.argmax(-1).astype(np.uint8))


_PLANE = np.zeros((3, 3, 3), bool)
_PLANE[1] = True  # neighbours within a frame only


def _absorb(field: Field) -> None:
    """Small blobs mostly ringed by one other colour are its glints or its rim: they take its colour."""
    for code in range(1, len(COLOUR_NAMES) + 1):
        mask = field.labels == code
        if not mask.any():
            continue
        blobs, count = ndimage.label(mask, _PLANE)
        areas = np.bincount(blobs.ravel(), minlength=count + 1)
        for number, where in enumerate(ndimage.find_objects(blobs), 1):
            if areas[number] > 40 or where is None:
                continue
            t, ys, xs = where
            ys, xs = slice(max(ys.start - 1, 0), ys.stop + 1), slice(max(xs.start - 1, 0), xs.stop + 1)
            own = blobs[t.start, ys, xs] == number
            ring = ndimage.binary_dilation(own, np.ones((3, 3))) & ~own
            around = np.bincount(field.labels[t.start, ys, xs][ring], minlength=len(COLOUR_NAMES) + 1)
            around[[0, code]] = 0
            if around.max() > 0.45 * ring.sum() or (areas[number] < MIN_AREA and around.max() > 0.25 * ring.sum()):
                field.labels[t.start, ys, xs][own] = around.argmax()


@dataclass
class _Piece:
    """Part of one colour in one frame: pixel bounds (y0, y1, x0, x1), its pixels, and their number."""

    bounds: tuple[int, int, int, int]
    mask: np.ndarray
    area: int


def _pieces(mask: np.ndarray, labels: np.ndarray) -> list[list[_Piece]]:
    """Blobs of one colour in every frame, wide ones cut into equal neighbours, left to right."""
    blobs, count = ndimage.label(mask, _PLANE)
    areas = np.bincount(blobs.ravel(), minlength=count + 1)
    frames: list[list[_Piece]] = [[] for _ in range(len(mask))]
    for number, where in enumerate(ndimage.find_objects(blobs), 1):
        if where is None or areas[number] < MIN_AREA:
            continue
        t, ys, xs = where
        own = blobs[where][0] == number
        frames[t.start].extend(_cut(own, ys.start, xs.start))
    for i, pieces in enumerate(frames):
        largest = max((piece.area for piece in pieces), default=0)
        kept = [piece for piece in pieces if piece.area >= 0.22 * largest]
        kept.sort(key=lambda piece: piece.bounds[2] + piece.bounds[3])
        frames[i] = _joined(kept, mask[i], labels[i] != 0)
    return frames


def _joined(pieces: list[_Piece], own: np.ndarray, objects: np.ndarray) -> list[_Piece]:
    """Neighbours with mostly another object between them are one object, seen on both sides of it."""
    out: list[_Piece] = []
    for piece in pieces:
        if out:
            (y0, y1, _, left), (z0, z1, right, _) = out[-1].bounds, piece.bounds
            gap = (slice(max(y0, z0), min(y1, z1)), slice(left, right))
            if own[gap].size and (objects[gap] & ~own[gap]).mean() > 0.5:
                out[-1] = _union([out[-1], piece])
                continue
        out.append(piece)
    return out


def _parts(own: np.ndarray) -> int:
    """How many equal things in a row make this blob, from its length in heights."""
    height, width = own.shape
    ratio = width / height
    if ratio < 1.32:  # the widest single thing is a cube seen edge on
        return 1
    # Cubes and cylinders fill their outline; they stand 0.93 heights apart and are narrower than balls and cones.
    count = 1 + round((ratio - 0.87) / 0.93) if own.mean() > 0.88 else round(0.96 * ratio)
    return max(1, min(count, width // 3))  # a part has room for its two cuts


def _cut(own: np.ndarray, top: int, left: int) -> list[_Piece]:
    """Equal things side by side make a blob several times as wide as high; cut near the thinnest columns."""
    width = own.shape[1]
    columns = own.sum(0)
    parts = _parts(own)
    edges = [0]
    for i in range(1, parts):
        middle, reach = i * width / parts, max(1, round(0.2 * width / parts))
        low = max(edges[-1] + 1, round(middle) - reach)
        high_x = max(low + 1, min(width, round(middle) + reach + 1))
        window = columns[low:high_x] + 0.05 * np.abs(np.arange(low, high_x) - middle)
        edges.append(low + int(window.argmin()))
    edges.append(width)
    pieces = []
    for x0, x1 in itertools.pairwise(edges):
        part = own[:, x0:x1]
        if part.sum() < MIN_AREA:
            continue
        rows, cols = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
        mask = part[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        y0, xa = top + int(rows[0]), left + x0 + int(cols[0])
        pieces.append(_Piece((y0, y0 + mask.shape[0], xa, xa + mask.shape[1]), mask, int(mask.sum())))
    return pieces


def find_tracks(frames: np.ndarray, table: np.ndarray) -> tuple[Field, list[Track]]:
    """Objects of a working-size clip, each with its path and its crops; see `Track`."""
    field = colour_field(frames, table)
    _absorb(field)
    tracks: list[Track] = []
    for code, colour in enumerate(COLOUR_NAMES, 1):
        mask = field.labels == code
        if mask.sum() < MIN_AREA * max(1.0, PRESENT * len(mask)):
            continue
        pieces = _pieces(mask, field.labels)
        seen = [len(found) for found in pieces if found]
        if len(seen) < max(1.0, PRESENT * len(mask)):
            continue
        # A count must hold for a third of the time: flicker adds none, and things may enter or leave the picture.
        count = max(k for k in range(1, max(seen) + 1) if k == 1 or np.mean(np.array(seen) >= k) >= 0.35)
        found = [_follow(field, code, colour, pieces, slot, count) for slot in range(count)]
        strength = float(field.probs[..., code][mask].mean())
        tracks.extend(track for track in found if not _ghost(track, strength))
    return field, tracks


def _ghost(track: Track, strength: float) -> bool:
    """True for specks, for mixtures of other objects' colours, and for tinted floor: faint, and leaping about."""
    area = track.area[track.visible]
    if not len(area) or np.median(area) < SPECK:
        return True
    if not track.whole.any() and track.visible.mean() < 0.5:
        return True  # never seen apart from other objects
    steps = np.abs(np.diff(track.centre[track.visible], axis=0)).sum(1)
    return strength < 0.68 and len(steps) > 0 and float(np.median(steps)) > 0.15


def _union(pieces: list[_Piece]) -> _Piece:
    y0, x0 = min(p.bounds[0] for p in pieces), min(p.bounds[2] for p in pieces)
    y1, x1 = max(p.bounds[1] for p in pieces), max(p.bounds[3] for p in pieces)
    mask = np.zeros((y1 - y0, x1 - x0), bool)
    for p in pieces:
        mask[p.bounds[0] - y0 : p.bounds[1] - y0, p.bounds[2] - x0 : p.bounds[3] - x0] |= p.mask
    return _Piece((y0, y1, x0, x1), mask, sum(p.area for p in pieces))


def _follow(field: Field, code: int, colour: str, pieces: list[list[_Piece]], slot: int, count: int) -> Track:
    """Equal things keep their order from left to right, so the slot names the object."""
    total, height, width = field.labels.shape
    half = min(height, width) / 2
    centre, box = np.full((total, 2), np.nan), np.full((total, 4), np.nan)
    area, whole, slim = np.zeros(total), np.zeros(total, bool), np.full(total, np.nan)
    chosen: list[_Piece | None] = [None] * total
    for t, found in enumerate(pieces):
        if not found:
            continue
        if count > 1 and len(found) != count:
            area[t] = np.nan  # seen, but not told apart from its equals
            continue
        piece = _union(found) if count == 1 else found[slot]
        chosen[t] = piece
        y0, y1, x0, x1 = piece.bounds
        rows, cols = np.nonzero(piece.mask)
        centre[t] = (x0 + cols.mean() + 0.5 - width / 2) / half, (height / 2 - y0 - rows.mean() - 0.5) / half
        box[t] = (x0 - width / 2) / half, (x1 - width / 2) / half, (height / 2 - y1) / half, (height / 2 - y0) / half
        area[t], slim[t] = piece.area, (cols.std() + 0.1) / (rows.std() + 0.1)
        whole[t] = y0 > 0 and x0 > 0 and y1 < height and x1 < width and not _touched(field.labels[t], code, piece)
    told = np.isfinite(area)
    area = np.interp(np.arange(total), np.flatnonzero(told), area[told]) if told.any() else np.zeros(total)
    typical = np.percentile(area[area > 0], 75) if (area > 0).any() else 1.0
    visible = told & (area > 0.2 * typical)
    reach = max(1, round(0.25 * total))
    near = ndimage.maximum_filter1d(area, 2 * reach + 1, mode="nearest")
    whole &= area > 0.7 * near
    chosen_whole = np.flatnonzero(whole)
    if len(chosen_whole) < 2:  # never seen uncut: the best frames must do
        chosen_whole = np.argsort(-area)[: max(2, total // 4)]
        chosen_whole = chosen_whole[visible[chosen_whole]]
    picked = chosen_whole[np.linspace(0, len(chosen_whole) - 1, min(len(chosen_whole), 16)).round().astype(int)]
    crops = [_crop(field, int(t), code, piece) for t in picked if (piece := chosen[t]) is not None]
    stacked = np.stack(crops) if crops else np.zeros((0, 2, CROP, CROP), np.float32)
    return Track(colour, centre, box, slim, area, visible, whole, stacked)


def _touched(labels: np.ndarray, code: int, piece: _Piece) -> bool:
    """True where a tenth of the surrounding ring shows another object."""
    y0, y1, x0, x1 = piece.bounds
    own = np.pad(piece.mask, 2)
    ring = ndimage.binary_dilation(own, np.ones((3, 3)), iterations=2) & ~own
    window = np.pad(labels, 2)[y0 : y1 + 4, x0 : x1 + 4]
    return bool(((window != 0) & (window != code) & ring).sum() > 0.1 * ring.sum())


def _crop(field: Field, t: int, code: int, piece: _Piece) -> np.ndarray:
    """(2, 20, 20): smoothed own-colour probability and brightness, standardised over the object."""
    y0, y1, x0, x1 = piece.bounds
    side = 1.4 * max(y1 - y0, x1 - x0)
    steps = (np.arange(CROP) + 0.5) / CROP - 0.5
    ys, xs = (y0 + y1 - 1) / 2 + steps * side, (x0 + x1 - 1) / 2 + steps * side
    height, width = field.labels.shape[1:]
    iy, ix = np.clip(np.floor(ys), 0, height - 2).astype(int), np.clip(np.floor(xs), 0, width - 2).astype(int)
    fy, fx = np.clip(ys - iy, 0, 1)[:, None].astype(np.float32), np.clip(xs - ix, 0, 1)[None].astype(np.float32)

    def bilinear(image: np.ndarray) -> np.ndarray:
        top = image[np.ix_(iy, ix)] * (1 - fx) + image[np.ix_(iy, ix + 1)] * fx
        bottom = image[np.ix_(iy + 1, ix)] * (1 - fx) + image[np.ix_(iy + 1, ix + 1)] * fx
        return top * (1 - fy) + bottom * fy

    mask = bilinear(field.probs[t, :, :, code])
    light = bilinear(field.frames[t].max(-1))
    # A neighbour of the same colour lies beyond the bounds: fade it out, as it is another object.
    outside = np.maximum(np.abs(xs - (x0 + x1 - 1) / 2) - (x1 - x0) / 2, 0)
    mask = mask * np.exp(-(outside[None].astype(np.float32) ** 2))
    weight = mask.sum() + 1e-3
    mean = (light * mask).sum() / weight
    spread = np.sqrt((mask * (light - mean) ** 2).sum() / weight) + 0.05
    return np.stack([mask, np.clip((light - mean) / spread, -3, 3)]).astype(np.float32)
