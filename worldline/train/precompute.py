"""Caches of world clips and of their latents, in slices: each appears by one rename, so work resumes where it stopped.

Scene number i of a plan is a pure function of (plan.seed, i): a cache may grow, and the VAE and the DiT see the same
worlds however many processes rendered them.
"""

from __future__ import annotations

import dataclasses
import json
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
from worldline.vae.model import VideoVAE
from worldline.worlds.render import render
from worldline.worlds.render_torch import render_batch
from worldline.worlds.scene import Scene, sample_scene

Say = Callable[[str], None]


@dataclass(frozen=True)
class ClipsPlan:
    """Which clips: `count` scenes of `split`, numbered from 0.

    `workers` processes render, 0 means this one; with another `device` than "cpu" it draws 32 clips at a time there.
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

    @property
    def slices(self) -> int:
        return -(-self.count // self.slice)


def scene_at(plan: ClipsPlan, index: int) -> Scene:
    """Scene number `index` of a plan."""
    return sample_scene(numpy_rng(plan.seed, index, f"scene-{plan.split}"), plan.split)


def render_slice(plan: ClipsPlan, folder: Path, number: int) -> Path:
    """Renders slice `number` to `frames-XXXXX.npy`, uint8 (slice, T, H, W, 3), and which thing each pixel shows to
    `ids-XXXXX.npy`, uint8 (slice, T, H, W); returns the first at once when both are there."""
    path = folder / f"frames-{number:05d}.npy"
    if path.exists() and ids_of(path).exists():
        return path
    clips = np.empty((plan.slice, plan.frames, plan.height, plan.width, 3), np.uint8)
    ids = np.empty(clips.shape[:-1], np.uint8)
    scenes = [scene_at(plan, number * plan.slice + row) for row in range(plan.slice)]
    shape = plan.frames, plan.height, plan.width, plan.fps
    if plan.device == "cpu":
        for row, scene in enumerate(scenes):
            clip = render(scene, *shape)
            clips[row], ids[row] = clip.frames, clip.ids
    else:
        for row in range(0, plan.slice, 32):
            drawn = render_batch(scenes[row : row + 32], *shape, device=plan.device)
            clips[row : row + 32], ids[row : row + 32] = (value.cpu().numpy() for value in drawn)
    _save(ids_of(path), ids)
    return _save(path, clips)


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

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """The rows at `indices` (B,), as a new array (B, ...)."""
        return np.stack([self.maps[i // self.rows][i % self.rows] for i in np.asarray(indices).tolist()])


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
    mean: torch.Tensor  # (C,)
    std: torch.Tensor  # (C,)

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
    return Latents(Slices(paths, plan.count), Slices(layouts, plan.count), scenes[: plan.count], mean, std)


@torch.no_grad()
def _encode_slice(plan: ClipsPlan, vae: VideoVAE, frames: Path, folder: Path, number: int) -> None:
    """Writes the latents of one slice, its scenes and layouts first: latents that exist always have theirs."""
    batch = 32  # clips encoded at once
    clips, ids = np.load(frames), np.load(ids_of(frames))
    weight = next(vae.parameters())
    means = []
    for start in range(0, len(clips), batch):
        pixels = to_pixels(clips[start : start + batch]).to(weight)
        means.append(vae.encode(pixels).mean.to("cpu", torch.float16).numpy())
    scenes = [scene_at(plan, number * plan.slice + row) for row in range(plan.slice)]
    path = _scenes_file(folder, number)
    temporary = path.with_suffix(".part")
    temporary.write_text("\n".join(json.dumps(scene.to_json()) for scene in scenes) + "\n")
    os.replace(temporary, path)
    cell = vae.config.temporal, vae.config.spatial
    _save(
        folder / f"layouts-{number:05d}.npy",
        np.stack([layout_of(s, i, *cell) for s, i in zip(scenes, ids, strict=True)]),
    )
    _save(folder / f"latents-{number:05d}.npy", np.concatenate(means))


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
    return {name: value for name, value in plan_dict(plan).items() if name not in ("count", "workers", "device")}


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
