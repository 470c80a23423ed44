"""Trains the reader's learned parts on damaged world clips: `python -m worldline.worlds.verify_training`.

About four minutes on one core, of which half is rendering; the same seed gives the same weights up to rounding.
"""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from worldline.worlds.motion import camera_motion, gauge_features, object_motion
from worldline.worlds.render import Clip, render
from worldline.worlds.scene import KINDS, SHAPES, SPEEDS, TRAVELS, sample_scene
from worldline.worlds.tracks import find_tracks
from worldline.worlds.verify_nets import COLOUR_NAMES, WEIGHTS, pixel_table, save_tensors

Damage = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _bytes(x: np.ndarray) -> np.ndarray:
    return (np.clip(x, 0, 255) + 0.5).astype(np.uint8)


def clean(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return frames


def blurred(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur of one pixel, then noise of 8 levels."""
    x = ndimage.gaussian_filter(frames.astype(np.float32), (0, 1, 1, 0))
    return _bytes(x + rng.normal(0, 8, x.shape))


def vae_like(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a lossy autoencoder does: blur in space and time, drifting saturation, noise as coarse as its cells."""
    x = ndimage.gaussian_filter(frames.astype(np.float32), (0.5, 0.8, 0.8, 0))
    grey = x.mean(-1, keepdims=True)
    x = grey + (x - grey) * rng.uniform(0.85, 1.1)
    noise = ndimage.gaussian_filter(rng.normal(0, 1, x.shape), (1, 1.5, 1.5, 0))
    return _bytes(x + noise * 5 / max(float(noise.std()), 1e-9))


def mixed(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random strength of every damage at once: what the nets are trained on."""
    x: np.ndarray = frames.astype(np.float32)
    if rng.random() < 0.3:
        x = _warped(x, rng)
    if rng.random() < 0.7:
        space = rng.uniform(0, 1.5)
        x = ndimage.gaussian_filter(x, (rng.uniform(0, 0.7), space, space, 0))
    if rng.random() < 0.6:
        grey = x.mean(-1, keepdims=True)
        x = (grey + (x - grey) * rng.uniform(0.75, 1.2)) * rng.uniform(0.88, 1.1, 3) + rng.uniform(-8, 8)
    if rng.random() < 0.4:
        flicker = rng.normal(0, 0.03, (len(x), 1, 1, 1))
        x = x * (1 + flicker)
    if rng.random() < 0.4:
        noise = ndimage.gaussian_filter(rng.normal(0, 1, x.shape), (rng.uniform(0, 1), 1.5, 1.5, 0))
        x = x + noise * rng.uniform(0, 9) / max(float(noise.std()), 1e-9)
    if rng.random() < 0.5:
        x = x + rng.normal(0, rng.uniform(0, 12), x.shape)
    out = _bytes(x)
    return _jpeg(out, int(rng.integers(30, 95))) if rng.random() < 0.2 else out


def _warped(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Outlines wobble by about a pixel, as those of generated objects do."""
    total, height, width = x.shape[:3]
    shift = ndimage.gaussian_filter(rng.normal(0, 1, (2, total, height, width)), (0, 1, 4, 4))
    shift *= rng.uniform(0.2, 0.9) / max(float(shift.std()), 1e-9)
    t, y, xx = np.meshgrid(np.arange(total), np.arange(height), np.arange(width), indexing="ij")
    spots = np.stack([t, y + shift[0], xx + shift[1]])
    return np.stack([ndimage.map_coordinates(x[..., c], spots, order=1, mode="nearest") for c in range(3)], -1)


def _jpeg(frames: np.ndarray, quality: int) -> np.ndarray:
    out = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
        out.append(np.asarray(Image.open(buffer)))
    return np.stack(out)


def _layers(module: torch.nn.Sequential, name: str) -> dict[str, np.ndarray]:
    """Weights of the dense (or convolution) layers of `module`, numbered as `verify_nets` reads them."""
    weighted = [layer for layer in module if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]
    out = {}
    for i, layer in enumerate(weighted):
        out[f"{name}.{i}.weight"] = layer.weight.detach().numpy()
        assert layer.bias is not None
        out[f"{name}.{i}.bias"] = layer.bias.detach().numpy()
    return out


def _fit(
    net: torch.nn.Module,
    batch: Callable[[np.random.Generator], tuple[torch.Tensor, torch.Tensor]],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    steps: int,
    rate: float,
) -> float:
    """AdamW with a linear warm-down; returns the mean loss of the last tenth."""
    rng = np.random.default_rng(0)
    optim = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optim, lambda step: 1 - step / steps)
    recent = []
    for step in range(steps):
        x, y = batch(rng)
        value = loss(net(x), y)
        optim.zero_grad()
        value.backward()
        optim.step()
        schedule.step()
        if step >= 0.9 * (steps - 1):
            recent.append(value.item())
    return float(np.mean(recent))


def train_pixels(clips: list[Clip], rng: np.random.Generator, steps: int = 2500) -> dict[str, np.ndarray]:
    """A 3-32-32-9 net from RGB to {background, 8 colours}; half of its pixels are background."""
    colours, classes = [], []
    for clip in clips:
        lookup = np.zeros(256, np.uint8)
        for i, thing in enumerate(clip.scene.things, 1):
            lookup[i] = COLOUR_NAMES.index(thing.colour) + 1
        truth = lookup[clip.ids].ravel()
        pixels = mixed(clip.frames, rng).reshape(-1, 3)
        objects = np.flatnonzero(truth)
        # Far more background than the balance asks for lies near objects; draw it evenly.
        ground = rng.choice(np.flatnonzero(truth == 0), len(objects))
        for chosen in (objects, ground):
            colours.append(pixels[chosen])
            classes.append(truth[chosen])
    x, y = torch.from_numpy(np.concatenate(colours)), torch.from_numpy(np.concatenate(classes)).long()
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 9)
    )

    def batch(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        index = torch.from_numpy(rng.integers(0, len(x), 4096))
        jitter = torch.from_numpy(rng.uniform(-4, 4, (4096, 3)).astype(np.float32))  # a table cell is 8 levels wide
        return (x[index].float() + jitter) / 127.5 - 1, y[index]

    loss = _fit(net, batch, torch.nn.functional.cross_entropy, steps, 4e-3)
    print(f"pixels: {len(x)} of {len(clips)} clips, loss {loss:.4f}", file=sys.stderr)
    return _layers(net, "pixel")


def train_shapes(crops: np.ndarray, shapes: np.ndarray, steps: int = 3000) -> dict[str, np.ndarray]:
    """Two 3x3 convolutions with pooling and a dense head, from crops (N, 2, 20, 20) to four shapes."""
    x, y = torch.from_numpy(crops), torch.from_numpy(shapes).long()
    conv = torch.nn.Sequential(
        torch.nn.Conv2d(2, 24, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(24, 40, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
    )  # fmt: skip
    head = torch.nn.Sequential(torch.nn.Linear(1000, 48), torch.nn.ReLU(), torch.nn.Linear(48, 4))
    net = torch.nn.Sequential(conv, torch.nn.Flatten(), torch.nn.Dropout(0.2), head)

    def batch(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        index = torch.from_numpy(rng.integers(0, len(x), 128))
        crop = x[index]
        if rng.random() < 0.5:
            crop = crop.flip(-1)  # all four shapes have a vertical plane of symmetry
        return crop, y[index]

    loss = _fit(net, batch, functools.partial(torch.nn.functional.cross_entropy, label_smoothing=0.03), steps, 1.5e-3)
    print(f"shapes: {len(x)} crops, loss {loss:.4f}", file=sys.stderr)
    return _layers(conv, "conv") | _layers(head, "head")


def train_gauge(features: np.ndarray, targets: np.ndarray, steps: int = 3000) -> dict[str, np.ndarray]:
    """An 8-32-2 net from `gauge_features` to log half-height and log span (NaN where an object does not travel)."""
    mean, std = features.mean(0), features.std(0) + 1e-3
    x, y = torch.from_numpy((features - mean) / std), torch.from_numpy(targets)
    net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))

    def batch(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        index = torch.from_numpy(rng.integers(0, len(x), 256))
        return x[index], y[index]

    def loss(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        known = target.isfinite()
        return torch.nn.functional.smooth_l1_loss(out[known], target[known], beta=0.1)

    print(f"gauge: {len(x)} objects, loss {_fit(net, batch, loss, steps, 5e-3):.4f}", file=sys.stderr)
    return _layers(net, "gauge") | {"gauge_mean": mean, "gauge_std": std}


def train(seed: int = 0, count: int = 1600) -> dict[str, np.ndarray]:
    """All weights, from `count` rendered clips of every kind, each read under random damage."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    kinds = list(KINDS)
    scenes = [sample_scene(rng, "any", kinds[i % len(kinds)] if i % 2 else None) for i in range(count)]
    clips = [render(scene) for scene in scenes]
    tensors = train_pixels(clips[:300], rng)
    table = pixel_table(tensors)
    crops, shapes, features, targets = [], [], [], []
    for clip in clips:
        field, tracks = find_tracks(mixed(clip.frames, rng), table)
        camera = camera_motion(field, tracks)
        things = {thing.colour: thing for thing in clip.scene.things}
        for track in tracks:
            if (thing := things.get(track.colour)) is None or not len(track.crops):
                continue
            crops.append(track.crops)
            shapes.append(np.full(len(track.crops), SHAPES.index(thing.shape)))
            motion = object_motion(track, camera)
            if camera.name == clip.scene.camera and motion.name == thing.motion:
                span = SPEEDS[thing.speed] if thing.motion in TRAVELS and not clip.scene.event else np.nan
                features.append(gauge_features(track, camera, motion))
                targets.append((np.log(thing.radius), np.log(span)))
    tensors |= train_shapes(np.concatenate(crops), np.concatenate(shapes))
    return tensors | train_gauge(np.stack(features), np.array(targets, np.float32))


if __name__ == "__main__":
    save_tensors(WEIGHTS, train())
