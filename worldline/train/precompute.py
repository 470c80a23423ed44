"""Caches of world clips and of their latents, in slices: each appears by one rename, so work resumes where it stopped.

Scene number i of a plan is a pure function of (plan.seed, i): a cache may grow, and the VAE and the DiT see the same
worlds however many processes rendered them. Of long clips only an excerpt is drawn and encoded: a few latent frames,
spread over the clip or neighbours, which is all that a step of training looks at.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldline.errors import UserError
from worldline.train.layout import layout_of
from worldline.train.plan import clock, numpy_rng, plan_dict
from worldline.vae.model import History, VAEConfig, VideoVAE
from worldline.worlds.render import render
from worldline.worlds.render_torch import render_batch
from worldline.worlds.scene import Scene, sample_pushed, sample_scene

Say = Callable[[str], None]
TEMPORAL = VAEConfig.temporal  # frames of a latent frame


@dataclass(frozen=True)
class ClipsPlan:
    """Which clips: `count` scenes of `split`, numbered from 0.

    `workers` processes render, 0 means this one; with another `device` than "cpu" they are drawn there.
    Of every picture only the middle of `crop` (width, height) is kept, where given.
    In a share `cameras` of the scenes the camera moves, beside those where it does by chance (a twelfth).
    `pushed` scenes show a thing that is pushed about (`scene.sample_pushed`); their excerpts are neighbours.
    With `groups` above 0 clips have up to `frames` frames and only so many latent frames of each are kept (`Excerpt`).
    """

    count: int = 8192
    split: str = "train"
    frames: int = 17
    height: int = 64
    width: int = 64
    fps: float = 16.0
    seed: int = 0
    slice: int = 256  # clips per file
    workers: int = 2
    device: str = "cpu"
    groups: int = 0
    crop: tuple[int, ...] = ()
    cameras: float = 0.0
    pushed: bool = False

    @property
    def slices(self) -> int:
        return -(-self.count // self.slice)


@dataclass(frozen=True)
class Excerpt:
    """What is kept of a clip: `times`, numbers of latent frames in rising order, of the `total` that it has."""

    total: int
    times: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """The excerpt spans the clip, so that its pace can be known from its times alone."""
        return self.times[0] == 0 and self.times[-1] == self.total - 1


def excerpt_at(plan: ClipsPlan, index: int) -> Excerpt:
    """The excerpt of clip number `index`: all of it, or what a stage of long generation works on.

    Lengths are spread evenly on a logarithmic scale. The kinds: the whole clip at even distances (level 0 of a
    hierarchy), a stretch at an even distance (the levels below), neighbours (sliding windows), and a few neighbours
    with far frames before them (long-range sampling, Harvey et al. 2022, fig. 3).
    """
    last = (plan.frames - 1) // TEMPORAL
    if not plan.groups:
        return Excerpt(last + 1, tuple(range(last + 1)))
    rng, most = numpy_rng(plan.seed, index, "excerpt"), plan.groups - 1
    last = round(math.exp(rng.uniform(math.log(most), math.log(last))))
    kind = "neighbours" if plan.pushed else rng.choice(list(EXCERPTS), p=list(EXCERPTS.values()))
    if kind == "whole":
        times = np.linspace(0, last, plan.groups).round().astype(int)
    elif kind == "far" and last > plan.groups:
        near = int(rng.integers(2, plan.groups - 1))  # the rest are far
        start = int(rng.integers(plan.groups - near, last - near + 2))
        far = np.sort(rng.choice(start, plan.groups - near, replace=False))
        times = np.concatenate([far, np.arange(start, start + near)])
    elif plan.pushed and rng.random() < BEGINNINGS:
        times = np.arange(plan.groups)
    else:
        widest = last // most if kind == "stretch" else 1
        gap = round(math.exp(rng.uniform(0, math.log(widest))))
        times = int(rng.integers(last - gap * most + 1)) + gap * np.arange(plan.groups)
    return Excerpt(last + 1, tuple(times.tolist()))


BEGINNINGS = 0.35  # share of excerpts of pushed things that begin with their clip, as every rollout does
EXCERPTS = {"whole": 0.4, "stretch": 0.25, "neighbours": 0.2, "far": 0.15}  # how often each kind is drawn


def frames_of_times(times: Sequence[int] | np.ndarray) -> np.ndarray:
    """(G, 4) numbers of the frames that each latent frame covers; the first holds frame 0 alone, four times."""
    numbers = TEMPORAL * (np.asarray(times)[:, None] - 1) + 1 + np.arange(TEMPORAL)
    return np.maximum(numbers, 0)


def scene_at(plan: ClipsPlan, index: int) -> Scene:
    """Scene number `index` of a plan."""
    rng = numpy_rng(plan.seed, index, f"scene-{plan.split}")
    if plan.pushed:
        return sample_pushed(rng, plan.split)
    return sample_scene(rng, plan.split, "camera" if plan.cameras and rng.random() < plan.cameras else None)


def render_slice(plan: ClipsPlan, folder: Path, number: int) -> Path:
    """Renders slice `number` to `frames-{number:05d}.npy`, uint8 (slice, T, H, W, 3), and which thing each pixel shows
    to `ids-{number:05d}.npy`, uint8 (slice, T, H, W); returns the first at once when both are there.

    T is the clip's length; of excerpts it is 8 per latent frame, its own four frames after the four before them.
    """
    path = slice_file(folder, number)
    if path.exists() and ids_of(path).exists():
        return path
    rows = range(number * plan.slice, (number + 1) * plan.slice)
    drawn = _excerpts(plan, rows) if plan.groups else _whole(plan, rows)
    clips, ids = (_middle(plan, np.concatenate(parts)) for parts in zip(*drawn, strict=True))
    _save(ids_of(path), ids)
    return _save(path, clips)


def _middle(plan: ClipsPlan, pictures: np.ndarray) -> np.ndarray:
    """What is kept of pictures (b, T, H, W, ...)."""
    width, height = plan.crop or (plan.width, plan.height)
    top, left = (plan.height - height) // 2, (plan.width - width) // 2
    return pictures[:, :, top : top + height, left : left + width]


def _whole(plan: ClipsPlan, rows: range) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames (b, T, H, W, 3) and ids of whole clips."""
    shape = plan.frames, plan.height, plan.width, plan.fps
    scenes = [scene_at(plan, row) for row in rows]
    if plan.device == "cpu":
        for scene in scenes:
            clip = render(scene, *shape)
            yield clip.frames[None], clip.ids[None]
        return
    for row in range(0, len(scenes), 32):
        frames, ids = render_batch(scenes[row : row + 32], *shape, device=plan.device)
        yield frames.cpu().numpy(), ids.cpu().numpy()


def _excerpts(plan: ClipsPlan, rows: range) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames (1, 8G, H, W, 3) and ids of excerpts, frames that occur twice drawn once."""
    for row in rows:
        excerpt, scene = excerpt_at(plan, row), scene_at(plan, row)
        times = np.array(excerpt.times)
        wanted = np.concatenate([frames_of_times(times - 1), frames_of_times(times)], axis=1)  # (G, 8)
        numbers, place = np.unique(wanted, return_inverse=True)
        shape = TEMPORAL * (excerpt.total - 1) + 1, plan.height, plan.width, plan.fps
        if plan.device == "cpu":
            clip = render(scene, *shape, only=numbers.tolist())
            frames, ids = clip.frames, clip.ids
        else:
            drawn = render_batch([scene], *shape, device=plan.device, only=numbers.tolist())
            frames, ids = (value[0].cpu().numpy() for value in drawn)
        yield frames[place.ravel()][None], ids[place.ravel()][None]


def slice_file(folder: Path, number: int) -> Path:
    """The file of frames of a slice."""
    return folder / f"frames-{number:05d}.npy"


def ids_of(frames: Path) -> Path:
    """The file of ids beside a file of frames."""
    return frames.with_name(frames.name.replace("frames-", "ids-"))


class Slices:
    """Rows spread over memory-mapped slice files, read by global index."""

    def __init__(self, paths: Sequence[Path], count: int) -> None:
        self.maps = [np.load(path, mmap_mode="r") for path in paths]
        self.rows = len(self.maps[0])
        self.count = count

    def __len__(self) -> int:
        return self.count

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a row."""
        return tuple(self.maps[0].shape[1:])

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """The rows at `indices` (B,), as a new array (B, ...)."""
        return np.stack([self.row(i) for i in np.asarray(indices).tolist()])

    def row(self, index: int) -> np.ndarray:
        """One row, as it lies in its file."""
        row: np.ndarray = self.maps[index // self.rows][index % self.rows]
        return row


def cache_clips(plan: ClipsPlan, folder: Path, say: Say = print) -> Slices:
    """Renders the clips of a plan that `folder` lacks; returns them. About 0.2 MB per clip of 17x64x64."""
    _claim(plan, folder, {})
    paths = []
    for number, path in _rendered(plan, folder, range(plan.slices), say):
        paths.append((number, path))
    return Slices([path for _, path in sorted(paths)], plan.count)


@dataclass(frozen=True)
class Latents:
    """Cached posterior means with their scenes, layouts and per-channel statistics (before any whitening)."""

    values: Slices  # float16 (C, T', H', W') per row
    layouts: Slices  # uint8 (12, T', H', W') per row: `train.layout.layout_of`
    scenes: list[str]  # Scene.to_json() per row; empty scenes are never stored
    excerpts: list[Excerpt]
    mean: torch.Tensor  # (C,)
    std: torch.Tensor  # (C,)

    @property
    def images(self) -> bool:
        """Whether every first latent frame is a picture."""
        return all(excerpt.times[0] == 0 for excerpt in self.excerpts)

    @cached_property
    def several(self) -> np.ndarray:
        """(N,) bool: scenes of more than one thing."""
        return np.array([Scene.from_json(scene).count > 1 for scene in self.scenes])

    @cached_property
    def crossing(self) -> np.ndarray:
        """(N,) bool: scenes in which a thing passes before or behind another."""
        scenes = [Scene.from_json(scene) for scene in self.scenes]
        passes = [s.things[0].motion in ("left", "right") and not (s.group or s.event) for s in scenes]
        return np.array(passes) & self.several


def cache_latents(
    plan: ClipsPlan, vae: VideoVAE, vae_hash: str, folder: Path, frames: Path | None = None, say: Say = print
) -> Latents:
    """Renders the clips of a plan and encodes them with `vae` into `folder`; frames are dropped once encoded.

    `frames`: a folder of `cache_clips` whose slices are used where they fit. `vae_hash` names the weights: latents of
    another VAE in `folder` raise UserError.
    """
    _claim(plan, folder, {"vae": vae_hash})
    ready = frames if frames is not None and _fits(plan, frames) else None
    missing = [k for k in range(plan.slices) if not (folder / f"latents-{k:05d}.npy").exists()]
    source = ready or folder
    for number, path in _rendered(plan, source, missing, say, keep=ready is not None):
        _encode_slice(plan, vae, path, folder, number)
    paths, layouts = ([folder / f"{name}-{k:05d}.npy" for k in range(plan.slices)] for name in ("latents", "layouts"))
    scenes = [json.loads(line) for k in range(plan.slices) for line in _scenes_file(folder, k).read_text().splitlines()]
    mean, std = _statistics(paths)
    excerpts = [excerpt_at(plan, index) for index in range(plan.count)]
    return Latents(Slices(paths, plan.count), Slices(layouts, plan.count), scenes[: plan.count], excerpts, mean, std)


@torch.no_grad()
def _encode_slice(plan: ClipsPlan, vae: VideoVAE, frames: Path, folder: Path, number: int) -> None:
    """Writes the latents of one slice, its scenes and layouts first: latents that exist always have theirs."""
    batch = 32  # clips encoded at once
    clips, ids = np.load(frames), np.load(ids_of(frames))
    excerpts = [excerpt_at(plan, number * plan.slice + row) for row in range(plan.slice)]
    weight = next(vae.parameters())
    means = []
    for start in range(0, len(clips), batch):
        pixels = to_pixels(clips[start : start + batch]).to(weight)
        part = excerpts[start : start + batch]
        mean = _encode_excerpts(vae, pixels, part) if plan.groups else vae.encode(pixels).mean
        means.append(mean.to("cpu", torch.float16).numpy())
    scenes = [scene_at(plan, number * plan.slice + row) for row in range(plan.slice)]
    path = _scenes_file(folder, number)
    temporary = path.with_suffix(".part")
    temporary.write_text("\n".join(json.dumps(scene.to_json()) for scene in scenes) + "\n")
    os.replace(temporary, path)
    shares = []
    for scene, shown, excerpt in zip(scenes, ids, excerpts, strict=True):
        own = np.arange(8 * plan.groups).reshape(-1, 8)[:, TEMPORAL:] if plan.groups else frames_of_times(excerpt.times)
        shares.append(layout_of(scene, shown[own], vae.config.spatial))
    _save(folder / f"layouts-{number:05d}.npy", np.stack(shares))
    _save(folder / f"latents-{number:05d}.npy", np.concatenate(means))


def _encode_excerpts(vae: VideoVAE, pixels: torch.Tensor, excerpts: Sequence[Excerpt]) -> torch.Tensor:
    """Pixels (B, 3, 8G, H, W) -> means (B, C, G, H', W'): each latent frame in the light of the one before it.

    What lies farther back is left out; see docs/log.md for what that changes.
    """
    groups = pixels.shape[2] // (2 * TEMPORAL)
    each = pixels.unflatten(2, (groups, 2 * TEMPORAL)).transpose(1, 2).flatten(0, 1)  # (B*G, 3, 8, H, W)
    history = History()
    history.started = True  # the frames are the middle of a clip
    mean = vae.encode_chunk(each, history).mean[:, :, -1]  # (B*G, C, H', W')
    first = torch.tensor([time == 0 for excerpt in excerpts for time in excerpt.times], device=mean.device)
    if first.any():
        mean[first] = vae.encode(each[first][:, :, -1:]).mean[:, :, 0]
    return mean.unflatten(0, (-1, groups)).transpose(1, 2)


def to_pixels(clips: np.ndarray) -> torch.Tensor:
    """uint8 (B, T, H, W, 3) -> float32 (B, 3, T, H, W) in [-1, 1]."""
    return torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1.0)


def _rendered(
    plan: ClipsPlan, folder: Path, numbers: Sequence[int], say: Say, keep: bool = True
) -> Iterator[tuple[int, Path]]:
    """Yields (slice number, frames file) as they are ready, a few ahead; removes each file after use unless `keep`."""
    began = spoken = time.monotonic()
    with _pool(plan.workers if plan.device == "cpu" else 0) as pool:
        waiting: deque[tuple[int, Future[Path]]] = deque()
        left = list(numbers)
        for done in range(len(left)):
            while len(waiting) < max(1, 2 * plan.workers) and done + len(waiting) < len(left):
                number = left[done + len(waiting)]
                waiting.append((number, pool.submit(render_slice, plan, folder, number)))
            number, future = waiting.popleft()
            path = future.result()
            yield number, path
            if not keep:
                path.unlink(missing_ok=True)
                ids_of(path).unlink(missing_ok=True)
            now = time.monotonic()
            if now - spoken > 30:
                spoken, rest = now, (now - began) / (done + 1) * (len(left) - done - 1)
                say(f"worlds: {(done + 1) * plan.slice} of {len(left) * plan.slice} clips, left {clock(rest)}")


class _Here(Executor):
    """Runs each task when it is submitted, in this process."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args, **kwargs))
        return future


def _pool(workers: int) -> Executor:
    if workers <= 0:
        return _Here()
    # Spawned, not forked: a fork of a process that runs OpenMP threads may hang.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))


def _claim(plan: ClipsPlan, folder: Path, extra: dict[str, str]) -> None:
    """Marks `folder` as the cache of this plan; UserError when it is the cache of another one."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("*.part*"):
        left.unlink(missing_ok=True)
    about = {**_identity(plan), **extra}
    path = folder / "cache.json"
    if not path.exists():
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(about))
        os.replace(temporary, path)
    held = json.loads(path.read_text())
    for name, value in about.items():
        if held.get(name) != value:
            found = f"{name} {held.get(name)}, not {value}"
            raise UserError(f"cache: {folder} holds clips with {found}; name another folder or remove it")


def _identity(plan: ClipsPlan) -> dict[str, Any]:
    """What decides the bytes of a slice (not how many there are, nor who renders them)."""
    fields = {name: value for name, value in plan_dict(plan).items() if name not in ("count", "workers", "device")}
    return {name: value for name, value in fields.items() if name not in ("crop", "cameras", "pushed") or value}


def _fits(plan: ClipsPlan, folder: Path) -> bool:
    path = folder / "cache.json"
    return path.exists() and json.loads(path.read_text()) == _identity(plan)


def _scenes_file(folder: Path, number: int) -> Path:
    return folder / f"scenes-{number:05d}.jsonl"


def _save(path: Path, array: np.ndarray) -> Path:
    """Writes an .npy file atomically."""
    temporary = path.with_name(f"{path.name}.part{os.getpid()}")
    with temporary.open("wb") as file:
        np.save(file, array)
    os.replace(temporary, path)
    return path


def _statistics(paths: Sequence[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation per channel over all slices, in float64."""
    total, squares, count = 0.0, 0.0, 0
    for path in paths:
        values = np.load(path).astype(np.float64)  # (N, C, T', H', W')
        total = total + values.sum((0, 2, 3, 4))
        squares = squares + np.square(values).sum((0, 2, 3, 4))
        count += values.size // values.shape[1]
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 1e-12))
    return torch.from_numpy(np.asarray(mean)).float(), torch.from_numpy(np.asarray(std)).float()


def held_out(plan: ClipsPlan, count: int) -> ClipsPlan:
    """The plan of validation clips beside `plan`: other scenes (any composition), the same shape."""
    return dataclasses.replace(plan, count=count, split="any", seed=plan.seed + 1, slice=min(plan.slice, count))
