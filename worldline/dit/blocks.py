"""The parts of a diffusion transformer: attention among tokens, to text and pictures, and what drives a world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldline.dit.config import DiTConfig
from worldline.nn.attention import Segments, attention
from worldline.nn.layers import MLP, RowIndex, add_gated, in_bands, layer_normalise, modulate, rms_normalise
from worldline.nn.rope import Rope, normalise_rotate


class View(NamedTuple):
    """Which tokens attend to each other: those of a segment, taken in `order` (N,) and then causally where given."""

    segments: Segments
    order: Tensor | None = None


def factorised_views(coords: Tensor, cu_seqlens: Tensor) -> tuple[View, View]:
    """Inside each frame, and over the frames of each place (TimeSformer's divided attention, Bertasius et al. 2021)."""
    sample = torch.arange(len(cu_seqlens) - 1, device=coords.device).repeat_interleave(cu_seqlens.diff())
    t, h, w = coords.unbind(1)
    sides = coords.amax(0) + 1
    frame = sample * sides[0] + t
    place = (sample * sides[1] + h) * sides[2] + w
    order = (place * sides[0] + t).argsort()
    return View(Segments(_bounds(frame))), View(Segments(_bounds(place[order])), order)


def _bounds(labels: Tensor) -> Tensor:
    """Cumulative lengths of the runs of equal labels (N,)."""
    counts = labels.unique_consecutive(return_counts=True)[1]
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


class SelfAttention(nn.Module):
    """Attention of a sample's tokens among themselves, with normalised and rotated queries and keys."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.across = config.qk_norm == "width"
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        shape = (2, config.heads if self.across else 1, config.head_dim)
        self.gain = nn.Parameter(torch.empty(shape))  # of queries, of keys
        self.out = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor, rope: Rope, view: View) -> Tensor:
        """x (N, width) -> (N, width)."""
        q, k, v = in_bands(self._asked, x, *rope)
        if view.order is None:
            return self.out(attention(q, k, v, view.segments, scale=1.0).flatten(1))  # type: ignore[no-any-return]
        q, k, v = (x.index_select(0, view.order) for x in (q, k, v))
        mixed = attention(q, k, v, view.segments, scale=1.0, causal=True)
        return self.out(torch.empty_like(mixed).index_copy(0, view.order, mixed).flatten(1))  # type: ignore[no-any-return]

    def _asked(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (N, width) -> queries, keys and values (N, heads, head_dim)."""
        qkv = self.qkv(x).view(len(x), 3 * self.heads, self.head_dim)
        # The queries' gain carries the scale of the scores, which would cost a pass of its own.
        gains = self.gain[0] * self.head_dim**-0.5, self.gain[1]
        gain = torch.stack(gains) if self.across else torch.cat(gains)
        return normalise_rotate(qkv, gain, Rope(cos, sin))


class KeysValues(NamedTuple):
    """Keys and values (M, heads, head_dim) of what one block attends to."""

    keys: Tensor
    values: Tensor


class Heard(NamedTuple):
    """What one block attends to: text, and a picture where there is one."""

    text: KeysValues
    image: KeysValues | None


@dataclass(frozen=True)
class Reading:
    """What every block has read of text, and of a picture, for all samples: it does not change from step to step.

    `counts` (M,): how many equal rows of text each row stands for; None means one.
    """

    segments: Segments
    text: tuple[KeysValues, ...]
    counts: Tensor | None = None
    image_segments: Segments | None = None
    image: tuple[KeysValues, ...] = ()

    def of(self, block: int) -> Heard:
        """What the block of that number has read."""
        return Heard(self.text[block], self.image[block] if self.image else None)


class CrossAttention(nn.Module):
    """Attention of a sample's tokens to its text, and apart from that to a picture."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.across = config.qk_norm == "width"
        shape = (2, config.heads, config.head_dim) if self.across else (2, config.head_dim)
        self.q = nn.Linear(config.width, config.width, bias=config.bias)
        self.kv = nn.Linear(config.width, 2 * config.width, bias=config.bias)
        self.gain = nn.Parameter(torch.empty(shape))  # of queries, of keys
        self.kv_image = nn.Linear(config.width, 2 * config.width, bias=config.bias) if config.image_width else None
        self.gain_image = nn.Parameter(torch.empty(shape[1:])) if config.image_width else None
        self.out = nn.Linear(config.width, config.width, bias=config.bias)

    def read(self, states: Tensor, image: bool = False) -> KeysValues:
        """Keys and values of text, or of a picture (M, width)."""
        kv, gain = (self.kv_image, self.gain_image) if image else (self.kv, self.gain[1])
        assert kv is not None
        assert gain is not None
        k, v = kv(states).view(len(states), 2 * self.heads, self.head_dim).chunk(2, dim=1)
        return KeysValues(self._normalised(k) * gain, v)

    def forward(self, x: Tensor, told: Heard, context: Context) -> Tensor:
        """x (N, width) -> (N, width); `told` is what this block has read."""
        segments, reading = context.segments, context.reading
        q = self._normalised(self.q(x).view(len(x), self.heads, self.head_dim))
        q = q * (self.gain[0] * self.head_dim**-0.5)  # the gain carries the scale of the scores
        mixed = attention(q, *told.text, segments, reading.segments, scale=1.0, counts=reading.counts)
        if reading.image_segments is not None and told.image is not None:
            mixed = mixed + attention(q, *told.image, segments, reading.image_segments, scale=1.0)
        return self.out(mixed.flatten(1))  # type: ignore[no-any-return]

    def _normalised(self, x: Tensor) -> Tensor:
        """x (N, heads, head_dim) of unit root mean square per head, or over all heads."""
        return rms_normalise(x.flatten(1)).view_as(x) if self.across else rms_normalise(x)


class Block(nn.Module):
    """adaLN-single block (PixArt-alpha, Chen et al. 2023, sec. 2.3): self-attention, text, MLP."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm = NORMS[config.norm]
        self.attention = SelfAttention(config)
        self.cross_norm = WideLayerNorm(config.width, eps=1e-6) if config.cross_gain else None
        self.cross = CrossAttention(config)
        self.mlp = MLP(config.width, round(config.width * config.mlp_ratio), config.mlp_gelu, config.bias)
        self.table = nn.Parameter(torch.empty(6, 1, config.width))

    def forward(self, x: Tensor, told: Heard, modulation: Tensor, view: View, context: Context) -> Tensor:
        """x (N, width), modulation (U, 6 * width) shared by all blocks, what this one is `told` -> (N, width).

        Attention and MLP run in the type of their weights; x, shifts, scales and gates may be wider.
        """
        dtype = self.table.dtype
        rows = context.rows.gather(modulation + self.table.flatten())  # (runs, 1, 6 * width)
        shift1, scale1, gate1, shift2, scale2, gate2 = rows.chunk(6, dim=-1)
        h = modulate(self.norm(x), shift1, scale1)  # (N, width)
        x = add_gated(x, gate1, self.attention(h.to(dtype), context.rope, view))
        asking = self.norm(x) if self.cross_norm is None else self.cross_norm(x)
        x = x + self.cross(asking.to(dtype), told, context)
        h = modulate(self.norm(x), shift2, scale2)
        return add_gated(x, gate2, self.mlp(h.to(dtype)))


class WideLayerNorm(nn.LayerNorm):
    """Layer norm of values that may be wider than its gains and biases."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


NORMS = {"rms": rms_normalise, "layer": layer_normalise}


class Picture(nn.Module):
    """States of a picture (CLIP) for the blocks: norm, two layers, norm (Wan's image embedding)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.before = nn.LayerNorm(config.image_width)
        self.mlp = MLP(config.image_width, config.image_width, out=config.width)
        self.after = nn.LayerNorm(config.width)
        rows = config.image_positions
        self.positions = nn.Parameter(torch.empty(rows, config.image_width)) if rows else None

    def forward(self, states: Tensor) -> Tensor:
        """states (M, image_width) -> (M, width); with positions M is a multiple of their number."""
        if self.positions is not None:
            states = (states.unflatten(0, (-1, len(self.positions))) + self.positions).flatten(0, 1)
        return self.after(self.mlp(self.before(states)))  # type: ignore[no-any-return]


class Actions(nn.Module):
    """What is done to the world while a latent frame passes, as something to add to its tokens."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.actions, config.width)
        self.down = nn.Linear(config.width, config.width, bias=False)

    def forward(self, actions: Tensor) -> Tensor:
        """actions (N, A + 1), the last 1 where any are given and 0 where the world runs by itself -> (N, width)."""
        return actions[:, -1:] * self.down(F.silu(self.up(actions[:, :-1])))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Context:
    """What all blocks of one forward pass share."""

    rows: RowIndex
    rope: Rope
    segments: Segments
    reading: Reading
