"""Noised samples of any sizes as one batch of packed tokens, the networks that learn from it, and their loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from worldline.checkpoints.folder import SchedulerConfig
from worldline.diffusion.path import RectifiedFlow, add_noise, target
from worldline.diffusion.timesteps import shift
from worldline.dit.conditions import frames_to_tokens, per_channel, place_known
from worldline.dit.model import DiT
from worldline.dit.patchify import pack
from worldline.dit.told import Told
from worldline.text import CachedText, WordTransformer
from worldline.train.dit_plan import DiTPlan
from worldline.train.layout import LayoutHead, layout_loss
from worldline.train.loop import Pack

FLOW = RectifiedFlow()


class TextToVideo(nn.Module):
    """The networks that learn together: the velocity's gradient reaches the text encoder, unless that is frozen."""

    def __init__(self, dit: DiT, text: WordTransformer | CachedText) -> None:
        super().__init__()
        self.dit = dit
        self.text = text
        self.layout = LayoutHead(dit.config.width, dit.config.cells)

    def forward(self, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Velocity (N, D) of the batch's tokens, and logits of their layout where the batch teaches it."""
        if isinstance(self.text, WordTransformer):
            states = self.text(self.text.tokens(batch.prompts), batch.words)
        else:
            for prompt, known in batch.states.items():
                self.text.remember(prompt, known)
            states = self.text.encode(batch.prompts)
        on = batch.to(device)
        trace: list[Tensor] | None = [] if batch.lesson else None
        tokens = on.noisy, on.coords, on.cu_seqlens, on.timestep
        told = Told(states.states, states.cu_seqlens)
        velocity = self.dit(*tokens, told, on.known, on.mask, trace, on.actions)
        return velocity, self.layout(trace[len(trace) // 2]) if trace else None


@dataclass(frozen=True)
class Batch:
    """Tokens of all samples of a step, as the model and the loss need them."""

    noisy: Tensor  # (N, D), known cells clean
    target: Tensor  # (N, D) velocity
    coords: Tensor  # (N, 3)
    cu_seqlens: Tensor  # (B+1,)
    timestep: Tensor  # (N,)
    known: Tensor  # (N, D)
    mask: Tensor  # (N, P)
    prompts: list[str]
    words: torch.Generator  # which words the text encoder drops
    actions: Tensor | None = None  # (N, A + 1), zero for worlds that run by themselves
    layout: Tensor | None = None  # (N, 12 * P) in 0..1
    lesson: float = 0.0  # weight of the layout in the loss
    states: Mapping[str, Tensor] = field(default_factory=dict)  # of prompts, (m, width), that a dataset holds

    def to(self, device: torch.device) -> Batch:
        """The same on `device`."""
        if device.type == "cpu":
            return self
        return Batch(
            noisy=self.noisy.to(device, non_blocking=True),
            target=self.target.to(device, non_blocking=True),
            coords=self.coords.to(device, non_blocking=True),
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=True),
            timestep=self.timestep.to(device, non_blocking=True),
            known=self.known.to(device, non_blocking=True),
            mask=self.mask.to(device, non_blocking=True),
            prompts=self.prompts,
            words=self.words,
            actions=None if self.actions is None else self.actions.to(device, non_blocking=True),
            layout=None if self.layout is None else self.layout.to(device, non_blocking=True),
            lesson=self.lesson,
            states=self.states,
        )


@dataclass(frozen=True)
class Sample:
    """Whitened latents `clean` (C, T, H, W), where they are known (1, T, H, W), which latent frames they are, and what
    drives the world during them, as in `Conditions`."""

    clean: Tensor
    mask: Tensor
    frames: Sequence[int]
    actions: Tensor | None = None


def assemble(
    plan: DiTPlan, samples: Sequence[Sample], times: Tensor, prompts: list[str], noise: torch.Generator
) -> Batch:
    """Noises samples of any sizes at times (B,) before the shift, with what is known in place."""
    patch = plan.config.patch
    clean = pack([sample.clean for sample in samples], patch, [sample.frames for sample in samples])
    known = pack([sample.clean * sample.mask for sample in samples], patch).tokens  # (N, D)
    cells = pack([sample.mask for sample in samples], patch).tokens  # (N, P)
    lengths = clean.cu_seqlens.diff()
    shifts = [SchedulerConfig(shift=plan.shift, base_tokens=plan.base_tokens).shift_at(n) for n in lengths.tolist()]
    times = shift(times, torch.tensor(shifts))
    times = times.repeat_interleave(lengths)  # (N,)
    eps = torch.randn(clean.tokens.shape, generator=noise)
    noisy, timestep = place_known(add_noise(FLOW, clean.tokens, eps, times), times, known, cells)
    velocity = target(FLOW, "velocity", clean.tokens, eps, times)
    actions = actions_of_samples(plan, samples)
    return Batch(noisy, velocity, clean.coords, clean.cu_seqlens, timestep, known, cells, prompts, noise, actions)


def actions_of_samples(plan: DiTPlan, samples: Sequence[Sample]) -> Tensor | None:
    """(N, A + 1), zero for the samples that nothing drives; None where that is all of them."""
    if all(sample.actions is None for sample in samples):
        return None
    rows = []
    for sample in samples:
        acting = torch.zeros(len(sample.frames), plan.config.actions + 1) if sample.actions is None else sample.actions
        rows.append(frames_to_tokens(acting, sample.mask.shape, plan.config.patch))
    return torch.cat(rows)


def pack_of(batch: Batch, names: Sequence[str], weight: float = 1.0) -> Pack:
    """A batch with what its two terms are means over: cells that are not known, and tokens."""
    unknown = float(batch.mask.numel() - batch.mask.sum())
    return Pack(batch, (weight * unknown, weight * len(batch.noisy)), tuple(names))


def flow_terms(model: nn.Module, batch: Batch, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error of the velocity, a mean over the cells that are not known (Liu et al. 2022, eq. 1), and the weighed
    error of the layout, a mean over tokens: (2,)."""
    velocity, logits = model(batch, device)
    predicted = velocity.float()
    unknown = 1.0 - per_channel(batch.mask, predicted.shape[-1]).to(device)
    error = (predicted - batch.target.to(device)).square() * unknown
    flow = error.sum() / unknown.sum().clamp_min(1.0)
    if logits is None or batch.layout is None:
        return torch.stack([flow, torch.zeros_like(flow)]), {}
    layout = layout_loss(logits, batch.layout.to(device))
    return torch.stack([flow, batch.lesson * layout]), {"flow": flow.detach(), "layout": layout.detach()}


def flow_loss(model: nn.Module, batch: Batch, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of `flow_terms`."""
    terms, measured = flow_terms(model, batch, device)
    return terms.sum(), measured
