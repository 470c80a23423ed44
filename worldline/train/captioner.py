"""Trains the small video captioner on rendered worlds, whose captions are known: `worldline train captioner`.

Beside the words it learns, as the diffusion transformer does, which shapes, colours, sizes, motions, floors and camera
moves are seen where (`train.layout`); the head that answers is not exported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldline.caption.captioner import Shipped
from worldline.caption.net import LESSON, Captioner, CaptionerConfig
from worldline.errors import UserError
from worldline.parallel.mesh import join
from worldline.train.layout import layout_loss, layout_of
from worldline.train.loop import Callback, Outcome, Pack, Task, matmul_peak
from worldline.train.loop import train as run_task
from worldline.train.plan import LoopPlan, OptimPlan, ParallelPlan, describe, numpy_rng, plan_dict, torch_rng
from worldline.train.precompute import ClipsPlan, Slices, cache_clips, held_out, ids_of, scene_at, slice_file
from worldline.train.vae import DTYPES, hooks_of, write_component
from worldline.worlds.captions import caption, in_order, mirrored, vocabulary
from worldline.worlds.scene import Scene

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class CaptionerPlan:
    """Everything about a captioner's run. `shapes` are further sizes, WIDTHxHEIGHT, with `shape_clips` clips each."""

    name: str = "captioner"
    seed: int = 0
    start: str = ""  # folder of a captioner whose weights the run begins with, by default none
    config: CaptionerConfig = field(default_factory=CaptionerConfig)  # the words are filled in
    clips: ClipsPlan = field(default_factory=lambda: ClipsPlan(count=16_384, split="any", frames=9, fps=8.0))
    shapes: tuple[str, ...] = ("96x64", "64x96")
    shape_clips: int = 2048
    batch: int = 32
    full: float = 0.8  # share of full captions; the rest are short
    lesson: float = 1.0  # weight of the layout
    damage: float = 0.7  # share of batches whose frames are blurred, noisy and off colour
    validate_clips: int = 256
    dtype: str = "bfloat16"
    device: str = "cpu"
    optim: OptimPlan = field(default_factory=lambda: OptimPlan(lr=1.5e-3, warmup=200, ema=0.99, schedule="trapezoid"))
    loop: LoopPlan = field(default_factory=lambda: LoopPlan(steps=4000, validate_every=500, checkpoint_every=250))
    parallel: ParallelPlan = field(default_factory=ParallelPlan)


@dataclass(frozen=True)
class Worlds:
    """Rendered clips of one shape: frames (T, H, W, 3), ids (T, H, W) and the scene of every row."""

    frames: Slices
    ids: Slices
    plan: ClipsPlan

    @classmethod
    def of(cls, plan: ClipsPlan, folder: Path, say: Callable[[str], None]) -> Worlds:
        """Renders what `folder` lacks."""
        frames = cache_clips(plan, folder, say)
        return cls(frames, Slices([ids_of(slice_file(folder, k)) for k in range(plan.slices)], plan.count), plan)


@dataclass(frozen=True)
class Batch:
    """Frames uint8 (B, T, H, W, 3), words (B, L) padded with -1, layouts uint8 (B, classes, T, H/8, W/8)."""

    frames: Tensor
    words: Tensor
    layouts: Tensor
    damage: torch.Generator | None


def make_batch(plan: CaptionerPlan, net: Captioner, worlds: list[Worlds], step: int, number: int = 0) -> Pack:
    """A pack of a step, of one shape; half of the clips are mirrored."""
    rng = numpy_rng(plan.seed, step, f"captioner-pack-{number}")
    counts = np.array([w.plan.count for w in worlds])
    kind = int(numpy_rng(plan.seed, step, "captioner-shape").choice(len(worlds), p=counts / counts.sum()))
    drawn = rng.integers(worlds[kind].plan.count, size=plan.batch // plan.parallel.packs)
    rows = [_row(worlds[kind], int(i), rng.random() < 0.5) for i in drawn]
    styles = ["full" if rng.random() < plan.full else "short" for _ in rows]
    damage = torch_rng(plan.seed, step, f"captioner-damage-{number}") if rng.random() < plan.damage else None
    batch = _batch(net, rows, styles, damage)
    return Pack(batch, (float((batch.words[:, 1:] >= 0).sum()), float(len(rows))), tuple(f"{kind}/{i}" for i in drawn))


def _row(worlds: Worlds, index: int, turn: bool) -> tuple[np.ndarray, np.ndarray, Scene]:
    frames, ids, scene = worlds.frames.row(index), worlds.ids.row(index), scene_at(worlds.plan, index)
    return (frames[:, :, ::-1], ids[:, :, ::-1], mirrored(scene)) if turn else (frames, ids, scene)


def _batch(
    net: Captioner,
    rows: list[tuple[np.ndarray, np.ndarray, Scene]],
    styles: list[str],
    damage: torch.Generator | None,
) -> Batch:
    words = [net.numbers(truth(scene, style), style) for (*_, scene), style in zip(rows, styles, strict=True)]
    padded = torch.full((len(rows), max(map(len, words))), -1)
    for row, numbers in zip(padded, words, strict=True):
        row[: len(numbers)] = torch.tensor(numbers)
    layouts = np.stack([layout_of(scene, ids[:, None], 8, LESSON) for _, ids, scene in rows])
    frames = np.stack([frames for frames, *_ in rows])
    return Batch(torch.from_numpy(frames), padded, torch.from_numpy(layouts), damage)


def truth(scene: Scene, style: str) -> str:
    """What the captioner should say of a scene."""
    return caption(in_order(scene), np.random.default_rng(0), style)


def damaged(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Frames (B, T, 3, H, W) in [-1, 1] as lossy codecs, cameras and autoencoders leave them: blurred, off colour and
    noisy, each clip by another strength."""
    b, height, width = len(pixels), *pixels.shape[-2:]

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(b, *shape, generator=generator)).to(pixels)

    kernel = torch.tensor([0.25, 0.5, 0.25]).to(pixels)
    kernel = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    soft = F.conv2d(pixels.flatten(0, 1), kernel, padding=1, groups=3).unflatten(0, pixels.shape[:2])
    x = torch.lerp(pixels, soft, draw(-0.3, 1.0, 1, 1, 1, 1).clamp_min(0))
    vivid, gain, lift = draw(0.7, 1.2, 1, 1, 1, 1), draw(0.85, 1.1, 1, 3, 1, 1), draw(-0.1, 0.1, 1, 1, 1, 1)
    x = x * (vivid * gain) + (x.mean(2, keepdim=True) * (1 - vivid) * gain + lift)
    noise = torch.randn(b, 1, 3, height + 7, width + 7, generator=generator).to(pixels)  # moved on in every frame
    grain = torch.cat([noise[..., t : t + height, 7 - t : 7 - t + width] for t in np.arange(pixels.shape[1]) % 8], 1)
    return x + grain * draw(-0.05, 0.12, 1, 1, 1, 1).clamp_min(0)


def pixels_of(frames: Tensor) -> Tensor:
    """uint8 (B, T, H, W, 3) -> float (B, T, 3, H, W) in [-1, 1]."""
    return frames.permute(0, 1, 4, 2, 3).float().div_(127.5).sub_(1.0)


def word_loss(plan: CaptionerPlan, net: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of every next word, in nats, and the weighed error of the layout: (2,)."""
    weight = next(net.parameters())
    pixels = pixels_of(batch.frames).to(weight.dtype)
    if batch.damage is not None:
        pixels = damaged(pixels, batch.damage)
    words = batch.words.to(weight.device)
    scores, logits = net(pixels.to(weight.device), words[:, :-1].clamp_min(0))
    said = F.cross_entropy(scores.float().flatten(0, 1), words[:, 1:].flatten(), ignore_index=-1)
    shares = batch.layouts.to(weight.device).permute(0, 2, 3, 4, 1).flatten(0, 3).float() / 255
    layout = layout_loss(logits.permute(0, 1, 3, 4, 2).flatten(0, 3), shares)
    return torch.stack([said, plan.lesson * layout]), {"words": said.detach(), "layout": layout.detach()}


def train(
    plan: CaptionerPlan,
    out: str | Path,
    resume: bool = False,
    callbacks: Mapping[str, Callback] | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Trains and exports `out/captioner` (config.json, safetensors in float16). Raises UserError for a bad plan."""
    out = Path(out)
    plan_check(plan)
    crew = join(plan.parallel, plan.device)
    with crew.first_alone():
        worlds = [Worlds.of(plan.clips, out / "clips", say)]
        worlds += [Worlds.of(clips, out / f"clips-{name}", say) for name, clips in shapes_of(plan).items()]
        unseen = Worlds.of(held_out(plan.clips, plan.validate_clips), out / "clips-validation", say)
    net = build(plan).to(crew.device)
    task = Task(
        model=net,
        pack=lambda step, number: make_batch(plan, net, worlds, step, number),
        loss=lambda model, batch: word_loss(plan, model, batch),
        samples=plan.batch,
        dtype=DTYPES[plan.dtype],
        validate=lambda model: validate(plan, model, unseen),  # type: ignore[arg-type]
    )
    outcome = run_task(task, plan, out, resume, hooks_of(plan.loop, callbacks))
    if crew.first:
        export(net.config, outcome.weights, out / "captioner")
    return outcome


@torch.no_grad()
def validate(plan: CaptionerPlan, net: Captioner, unseen: Worlds) -> dict[str, float]:
    """Share of full captions of unseen worlds that are right in every word, and loss."""
    right, total, count = 0, 0.0, 0
    for start in range(0, unseen.plan.count, plan.batch):
        rows = [_row(unseen, i, False) for i in range(start, min(start + plan.batch, unseen.plan.count))]
        batch = _batch(net, rows, ["full"] * len(rows), None)
        total += float(word_loss(plan, net, batch)[1]["words"]) * len(rows)
        weight = next(net.parameters())
        said = net.captions(pixels_of(batch.frames).to(weight.device, weight.dtype))
        right += sum(text == truth(scene, "full") for (text, _), (*_, scene) in zip(said, rows, strict=True))
        count += len(rows)
    return {"val": total / count, "exact": right / count}


def build(plan: CaptionerPlan) -> Captioner:
    """The net with the words of the grammar and the weights of `plan.start`, or seeded ones; the lesson's head is in no
    folder. Raises UserError for a folder that holds no captioner of this plan."""
    torch.manual_seed(plan.seed)
    net = Captioner(replace(plan.config, words=(",", *vocabulary())))
    if plan.start:
        known = Shipped(Path(plan.start)).net
        if known.config != net.config:
            raise UserError(f"start: the captioner in {plan.start} has another size or other words than this plan")
        weights = {name: value for name, value in known.state_dict().items() if not name.startswith("lesson.")}
        net.load_state_dict(weights, strict=False)
    return net.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


def shapes_of(plan: CaptionerPlan) -> dict[str, ClipsPlan]:
    """The clips of each of `plan.shapes`."""
    plans = {}
    for number, shape in enumerate(plan.shapes, 1):
        width, _, height = shape.partition("x")
        if not (width.isdigit() and height.isdigit()) or int(width) % 16 or int(height) % 16 or not int(width):
            raise UserError(f"shapes: {shape[:40]!r} is not WIDTHxHEIGHT in steps of 16; write 96x64")
        seed = plan.clips.seed + 1000 * number  # other scenes than those of the other shapes
        clips = replace(plan.clips, count=plan.shape_clips, seed=seed)
        plans[shape] = replace(clips, width=int(width), height=int(height))
    return plans


def plan_check(plan: CaptionerPlan) -> None:
    """Raises UserError for values that no run can have."""
    if plan.dtype not in DTYPES:
        raise UserError(f"dtype: '{plan.dtype}' is unknown; one of {', '.join(DTYPES)}")
    for name, value in (("batch", plan.batch), ("clips.count", plan.clips.count), ("loop.steps", plan.loop.steps)):
        if value < 1:
            raise UserError(f"{name}: {value} must be at least 1")
    if plan.batch % plan.parallel.packs:
        raise UserError(f"batch: {plan.batch} clips cannot be cut into {plan.parallel.packs} packs")
    if plan.clips.frames != plan.config.frames:
        raise UserError(f"clips.frames: {plan.clips.frames} must be the {plan.config.frames} that the net looks at")
    shapes_of(plan)


def export(config: CaptionerConfig, weights: Mapping[str, Tensor], folder: Path) -> Path:
    """Writes config.json and the averaged weights in float16, without the lesson's head."""
    kept = {name: value.half() for name, value in weights.items() if not name.startswith("lesson.")}
    return write_component(folder, plan_dict(config), kept, WEIGHTS)


def dry_run(plan: CaptionerPlan) -> str:
    """What a run of this plan would do, as text; nothing is rendered or written."""
    plan_check(plan)
    size = sum(parameter.numel() for parameter in build(plan).parameters())
    clips = plan.clips.count + plan.shape_clips * len(plan.shapes)
    peak = matmul_peak(torch.device(plan.device), DTYPES[plan.dtype])
    return "\n".join(
        [
            f"train captioner: {size / 1e6:.2f} M parameters, {plan.loop.steps} steps of {plan.batch} clips",
            f"renders {clips} clips; matmul peak here {peak:.0f} GFLOP/s in {plan.dtype}",
            describe(plan),
        ]
    )
