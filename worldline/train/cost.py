"""What a training run would take: tokens, operations, memory of every rank, days and money, before anything is loaded.

Parameters are counted on modules without numbers, operations from their shapes, and what the backward pass needs by
running the model's own forward and backward pass on hollow tensors (`nn/hollow.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from worldline.dit.model import DiT, DiTConfig
from worldline.dit.told import Told
from worldline.errors import UserError
from worldline.nn.hollow import Ledger, bare
from worldline.shapes import Grid, VideoShape
from worldline.train import vae
from worldline.train.dit import TEXT_TOKENS, build
from worldline.train.dit_plan import DiTPlan, shapes_of, tokens_of
from worldline.train.loop import matmul_peak
from worldline.train.muon import hidden
from worldline.train.plan import clock, plan_dict
from worldline.vae.losses import reconstruct
from worldline.vae.model import VideoVAE

H100 = 989e12  # FLOP/s of bf16 products without sparsity, as its data sheet says; an H200 has the same
LONG_TEXT = 128  # tokens of a long caption
MICRO = 2**15  # tokens that a rank takes in one pass, unless a sample has more
TRACED = 1536, 2048  # tokens of the passes that are followed: attention is fused from 1024 on


@dataclass(frozen=True)
class Machine:
    """What a run gets.

    Attributes:
        gpus: ranks, one device each.
        peak: FLOP/s of one.
        mfu: share of it that the model's own operations reach.
        price: of a device for an hour, 0 where nothing is paid.
        memory: bytes of one, 0 where nobody knows.
        shard: ranks that hold one copy of weights, gradients, moments and average together; 0 means all.
        context: ranks that hold one sample together.
    """

    gpus: int = 1
    peak: float = H100
    mfu: float = 0.4
    price: float = 0.0
    memory: float = 80e9
    shard: int = 0
    context: int = 1

    def __post_init__(self) -> None:
        for name, value in (("--gpus", self.gpus), ("--context", self.context)):
            if value < 1:
                raise UserError(f"{name} {value}: the nearest valid value is 1")
        if not 0 < self.mfu <= 1:
            raise UserError(f"--mfu {self.mfu:g}: a share of the peak, above 0 and up to 1, for example 0.4")
        for name, value in (("--shard", self.shard or 1), ("--context", self.context)):
            if value < 1 or self.gpus % value:
                nearest = max(n for n in range(1, self.gpus + 1) if self.gpus % n == 0 and n <= max(1, value))
                raise UserError(f"{name} {value} does not divide --gpus {self.gpus}; {nearest} does")
        if self.price < 0 or self.peak <= 0:
            raise UserError(f"--price {self.price:g}, --tflops {self.peak / 1e12:g}: neither can be below 0")

    @property
    def ranks_of_weights(self) -> int:
        """Over how many ranks one copy of the weights is spread."""
        return self.shard or self.gpus


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank.

    Attributes:
        weights: in fp32, which the optimizer moves, and in the type that is computed with.
        gradients: in fp32, as they are reduced, and in the type of one block's.
        optimizer: both moments of AdamW, and the one of Muon.
        ema: the averaged weights, as often as there are widths.
        activations: kept for the backward pass, and what one block's takes.
        checkpointed: the same where every block keeps its input alone and is run again.
    """

    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    checkpointed: int

    @property
    def fixed(self) -> int:
        """All but activations."""
        return self.weights + self.gradients + self.optimizer + self.ema


@dataclass(frozen=True)
class Stage:
    """One run of a plan, as a machine would make it.

    Attributes:
        parameters: that are trained, by part.
        sample: the shape of a usual sample, or the largest of a dataset's.
        tokens: of it. step_tokens: of a step, over all ranks.
        flops: of the whole run, forward and backward, without what is computed twice.
        passes: that a rank makes in a step, each over `micro` tokens.
    """

    name: str
    parameters: dict[str, int]
    sample: VideoShape
    tokens: int
    samples: int
    step_tokens: int
    steps: int
    flops: float
    micro: int
    passes: int
    memory: Memory
    notes: tuple[str, ...] = ()

    @property
    def all_tokens(self) -> int:
        return self.step_tokens * self.steps


@dataclass(frozen=True)
class Cost:
    """All stages of a training on one machine."""

    stages: Sequence[Stage]
    machine: Machine

    def seconds(self, stage: Stage) -> float:
        return stage.flops / (self.machine.gpus * self.machine.peak * self.machine.mfu)

    def price(self, stage: Stage) -> float:
        return self.seconds(stage) / 3600 * self.machine.gpus * self.machine.price

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        stages = []
        for stage in self.stages:
            own = {"all_tokens": stage.all_tokens, "seconds": self.seconds(stage), "price": self.price(stage)}
            stages.append({**asdict(stage), **own})
        total = {
            "tokens": sum(stage.all_tokens for stage in self.stages),
            "flops": sum(stage.flops for stage in self.stages),
            "seconds": sum(map(self.seconds, self.stages)),
            "gpu_hours": sum(map(self.seconds, self.stages)) / 3600 * self.machine.gpus,
            "price": sum(map(self.price, self.stages)),
        }
        return {"machine": asdict(self.machine), "stages": stages, "total": total}

    def lines(self) -> list[str]:
        """For people."""
        lines: list[str] = []
        for stage in self.stages:
            lines += [*self._of_stage(stage), ""]
        m, total = self.machine, sum(map(self.seconds, self.stages))
        flops = sum(stage.flops for stage in self.stages)
        where = f"{m.gpus} x {m.peak / 1e12:.4g} TFLOP/s at {m.mfu:.0%} of the peak"
        lines.append(f"{'in all':12}{flops:.3g} FLOP on {where}: {_time(total)}")
        if m.price:
            hours = total / 3600 * m.gpus
            paid = sum(map(self.price, self.stages))
            lines.append(f"{'price':12}{hours:,.0f} GPU hours at {m.price:g} each: {paid:,.0f}")
        return lines

    def _of_stage(self, stage: Stage) -> list[str]:
        s, size, memory = stage.sample, 1e9, stage.memory
        parts = ", ".join(f"{name} {count / 1e6:,.2f} M" for name, count in stage.parameters.items() if count)
        a_step = f"{stage.samples:,} a step ({stage.step_tokens:,})"
        fixed = ("weights", "gradients", "optimizer", "ema")
        held = ", ".join(f"{name} {getattr(memory, name) / size:.2f}" for name in fixed)
        lines = [
            f"{stage.name}",
            f"{'  parameters':14}{parts}",
            f"{'  sample':14}{s.width}x{s.height}, {s.frames} frames: {stage.tokens:,} tokens; {a_step}",
            f"{'  run':14}{stage.steps:,} steps, {stage.all_tokens:,} tokens, {stage.flops:.3g} FLOP: "
            f"{_time(self.seconds(stage))}",
            f"{'  a rank':14}{stage.passes} x {stage.micro:,} tokens a step",
            f"{'  GB a rank':14}{held}",
            f"{'':14}activations {memory.activations / size:.2f}, in all {self._fit(memory.activations, memory)}",
            f"{'':14}checkpointed {memory.checkpointed / size:.2f}, in all {self._fit(memory.checkpointed, memory)}",
        ]
        return [*lines, *(f"{'  note':14}{note}" for note in stage.notes)]

    def _fit(self, activations: int, memory: Memory) -> str:
        total = memory.fixed + activations
        text = f"{total / 1e9:.2f}"
        if self.machine.memory:
            text += f" of {self.machine.memory / 1e9:.0f}" + ("" if total <= self.machine.memory else ": does not fit")
        return text


def _time(seconds: float) -> str:
    return clock(seconds) if seconds < 2 * 86400 else f"{seconds / 86400:,.1f} days"


def here(plan: Any) -> Machine:
    """This machine as one rank, at the rate of its matrix products: its times are bounds."""
    return Machine(1, 1e9 * matmul_peak(torch.device(plan.device), vae.DTYPES[plan.dtype]), 1.0, memory=0.0)


# ---- plans -----------------------------------------------------------------------------------------


def estimate(plans: Sequence[Any], machine: Machine) -> Cost:
    """The cost of stages one after another, each a DiTPlan or a VAEPlan."""
    return Cost([_dit(p, machine) if isinstance(p, DiTPlan) else _vae(p, machine) for p in plans], machine)


def _dit(plan: DiTPlan, machine: Machine) -> Stage:
    shapes_of(plan)  # refuses what cannot be read
    config, text = dit_config(plan)
    with bare():
        model = DiT(config)
    learned = nn.ModuleDict({"dit": model, "text": text})
    parameters = {"transformer": _count(model), "text": _count(text)}
    shape, tokens = sample_of(plan)
    step_tokens, rows = plan.batch * tokens, LONG_TEXT if plan.data else TEXT_TOKENS
    micro, passes = _micro(step_tokens, tokens, machine)
    notes = []
    if plan.data:
        notes.append("every sample is taken to be as large as the plan allows; smaller ones come in greater number")
    groups = machine.gpus // machine.context
    if groups > plan.batch:
        notes.append(f"{plan.batch} samples a step leave some of {groups} groups of ranks idle; raise batch")
    active = dit_activations(config, micro, plan.dtype)
    return Stage(
        name=plan.name,
        parameters=parameters,
        sample=shape,
        tokens=tokens,
        samples=plan.batch,
        step_tokens=step_tokens,
        steps=plan.loop.steps,
        flops=3.0 * plan.batch * model.flops(tokens, rows) * plan.loop.steps,
        micro=micro,
        passes=passes,
        memory=_memory(plan, learned, _largest_block(model), machine, *active),
        notes=tuple(notes),
    )


def dit_config(plan: DiTPlan) -> tuple[DiTConfig, nn.Module]:
    """The transformer's config with the width of its text states, and what of the text encoder learns along."""
    if plan.encoder == "minilm":  # frozen, and not needed to count
        return replace(plan.config, text_width=384), nn.Identity()
    with bare():
        model = build(plan)
    assert isinstance(model.text, nn.Module)
    return plan.config, model.text


def sample_of(plan: DiTPlan) -> tuple[VideoShape, int]:
    """A usual sample and its tokens: one of `clips`, or the largest that a dataset may bring, in a square."""
    grid = Grid(patch=plan.config.patch)
    if not plan.data:
        clips = plan.clips
        return VideoShape(clips.frames, clips.height, clips.width), tokens_of(plan)
    side = int(math.sqrt(plan.fit.pixels) / grid.side) * grid.side
    frames = plan.fit.max_frames - (plan.fit.max_frames - 1) % grid.temporal
    wide = plan.fit.pixels // side // grid.side * grid.side
    shape = VideoShape(frames, side, wide)
    return shape, grid.tokens(shape).count


def _vae(plan: vae.VAEPlan, machine: Machine) -> Stage:
    vae.plan_check(plan)
    with bare():
        model = VideoVAE(plan.config)
    shape = VideoShape(plan.clips.frames, plan.clips.height, plan.clips.width)
    cells = math.prod(asdict(shape.latent(plan.config.temporal, plan.config.spatial)).values())
    clips = max(1, math.ceil(plan.batch / machine.gpus))
    kept, active = vae_activations(plan, clips)
    return Stage(
        name=plan.name,
        parameters={"autoencoder": _count(model)},
        sample=shape,
        tokens=cells,
        samples=plan.batch,
        step_tokens=plan.batch * cells,
        steps=plan.loop.steps,
        flops=3.0 * plan.batch * vae_flops(plan) * plan.loop.steps,
        micro=clips * cells,
        passes=1,
        memory=_memory(plan, model, _count(model), machine, kept, active),
        notes=("tokens are cells of the latents",),
    )


def _micro(step_tokens: int, sample: int, machine: Machine) -> tuple[int, int]:
    """Tokens of a pass on one rank, and how many passes a step takes: whole samples, as many as fit into `MICRO`."""
    share = sample / machine.context  # of a sample, on one rank
    wanted = max(1.0, step_tokens / sample * machine.context / machine.gpus)  # samples of one group of ranks
    together = max(1, min(math.ceil(wanted), int(MICRO // share)))
    return math.ceil(together * share), math.ceil(wanted / together)


def _memory(plan: Any, model: nn.Module, block: int, machine: Machine, activations: int, checkpointed: int) -> Memory:
    """fp32 masters, gradients, moments and averages of `model`, spread over ranks; weights of two blocks (each of
    `block` parameters) whole in the plan's type, or of all where nothing is spread."""
    width, ranks = torch.empty((), dtype=vae.DTYPES[plan.dtype]).element_size(), machine.ranks_of_weights
    parameters = _count(model)
    one_moment = sum(model.get_parameter(name).numel() for name in hidden(model)) if plan.optim.kind == "muon" else 0
    mine, averages = math.ceil(parameters / ranks), max(1, len(plan.optim.ema_widths))
    whole = parameters if ranks == 1 else min(parameters, 2 * block)  # this block's and the next one's
    own = whole * width
    grads = (parameters if ranks == 1 else min(parameters, block)) * width
    moments = 8 * mine - 4 * (one_moment // ranks)
    return Memory(4 * mine + own, 4 * mine + grads, moments, 4 * mine * averages, activations, checkpointed)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _largest_block(model: DiT) -> int:
    return max(_count(block) for block in model.blocks)


# ---- what the backward pass needs ------------------------------------------------------------------


def dit_activations(config: DiTConfig, tokens: int, dtype: str) -> tuple[int, int]:
    """Bytes alive at the worst moment of a forward and backward pass over so many packed tokens: with all that blocks
    keep, and where each keeps its input alone.

    Blocks are alike and attention is fused, so that all of it is linear in tokens and in blocks: four passes tell.
    """
    base = replace(config, depth=1)
    few, many = TRACED
    traced = {(d, n): _traced(replace(base, depth=d), n, dtype) for d in (1, 2) for n in TRACED}

    def at(count: int, which: int) -> float:
        small, large = (traced[count, n][which] for n in TRACED)
        return small + (large - small) / (many - few) * (tokens - few)

    kept, peak = (tuple(at(count, which) for count in (1, 2)) for which in (0, 1))
    block, ends = kept[1] - kept[0], 2 * kept[0] - kept[1]
    passing = max(0.0, peak[0] - kept[0])  # of the backward pass itself
    width = torch.empty((), dtype=vae.DTYPES[dtype]).element_size()
    inputs = config.depth * tokens * config.width * width
    return round(ends + config.depth * block + passing), round(ends + inputs + block + passing)


@lru_cache(maxsize=64)
def _traced(config: DiTConfig, tokens: int, dtype: str) -> tuple[int, int]:
    """Bytes kept by the forward pass, and the peak of the backward pass, of one sample."""
    kind = vae.DTYPES[dtype]
    with bare():
        model = DiT(config).to(kind)
    with Ledger() as ledger:
        x, known = ledger.hollow(tokens, config.token_width), ledger.hollow(tokens, config.token_width)
        mask = ledger.hollow(tokens, config.mask_values * config.cells)
        told = Told(ledger.hollow(LONG_TEXT, config.text_width), torch.tensor([0, LONG_TEXT]))
        coords = ledger.hollow(tokens, 3, dtype=torch.int64)
        velocity = model(x, coords, torch.tensor([0, tokens]), torch.ones(tokens), told, known=known, mask=mask)
        loss = (velocity.float() - x).square().mean()
        kept = ledger.live
        ledger.restart()
        loss.backward()
    return kept, ledger.peak


def vae_activations(plan: vae.VAEPlan, clips: int) -> tuple[int, int]:
    """The same of an autoencoder over so many clips. It has no checkpoints: both figures are one."""
    peak = _traced_vae(plan, 1)
    more = _traced_vae(plan, 2) - peak
    total = peak + more * (clips - 1)
    return total, total


def _traced_vae(plan: vae.VAEPlan, clips: int) -> int:
    with bare():
        model = VideoVAE(plan.config).to(vae.DTYPES[plan.dtype])
    c = plan.clips
    with Ledger() as ledger:
        pixels = ledger.hollow(clips, 3, c.frames, c.height, c.width, dtype=vae.DTYPES[plan.dtype])
        reconstruct(model, pixels, vae.weights_of(plan, 1.0)).loss.backward()
    return ledger.peak


def vae_flops(plan: vae.VAEPlan) -> int:
    """Operations of one clip through the autoencoder and back, forward only."""
    with bare():
        model = VideoVAE(plan.config)
        pixels = torch.empty(1, 3, plan.clips.frames, plan.clips.height, plan.clips.width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.decode(model.encode(pixels).mean)
    return int(counter.get_total_flops())


def as_json(plans: Sequence[Any], cost: Cost) -> dict[str, Any]:
    """The cost beside the plans that it is of."""
    return {**cost.as_dict(), "plans": [plan_dict(plan) for plan in plans]}
