"""The diffusion transformer: packed spacetime tokens in, velocity out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldline.errors import UserError
from worldline.nn.attention import Segments, attention
from worldline.nn.layers import MLP, RowIndex, TimestepEmbedding, add_gated, modulate, rms_normalise
from worldline.nn.rope import Rope, normalise_rotate, rope_tables, sincos


@dataclass(frozen=True)
class DiTConfig:
    """Everything that fixes a DiT's shape.

    Attributes:
        in_channels: channels of the latents.
        patch: latent cells of a token along (t, h, w).
        width, depth, heads: of the transformer; the head dimension is width / heads.
        text_width: width of the text states.
        mlp_ratio: hidden width of the MLP / width.
        mlp_gelu: "none" (exact) or "tanh".
        bias: whether the blocks' matrices carry biases; the modulation's shifts do most of their work.
        rope_axes: channels of a head for (t, h, w); must sum to the head dimension.
        rope_theta: base of the rotary frequencies.
        rope_stretch: positions along (t, h, w) are divided by it: above 1 a longer or larger video stays among the
            positions that were trained (position interpolation, Chen et al. 2023).
        rotary: whether queries and keys are rotated by their positions.
        sinusoidal: whether fixed sines and cosines of the position are added to the tokens.
        learned_positions: rows of the learned absolute tables for (t, h, w); farther tokens read the last
            row, and 0 rows leave an axis to the rotary positions alone.
        gate_init: opening of the residual gates before training.
        factorised: attention in turn inside a frame and, causally, over the frames at one place; else all to all.
        actions: values of the inputs that drive a world over one latent frame; 0 where the model knows none.
        masks: whether known latents and their mask are read beside the noisy ones; else sampling holds what is known
            by replacement.
    """

    in_channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    width: int = 256
    depth: int = 6
    heads: int = 4
    text_width: int = 256
    mlp_ratio: float = 4.0
    mlp_gelu: str = "none"
    bias: bool = False
    rope_axes: tuple[int, int, int] = (16, 24, 24)
    rope_theta: float = 100.0
    rope_stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)
    rotary: bool = True
    sinusoidal: bool = False
    learned_positions: tuple[int, int, int] = (32, 32, 32)
    gate_init: float = 0.3
    factorised: bool = False
    actions: int = 0
    masks: bool = True

    def __post_init__(self) -> None:
        # A config read from JSON brings lists.
        for name in ("patch", "rope_axes", "rope_stretch", "learned_positions"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.width % self.heads:
            raise UserError(f"heads={self.heads} does not divide width={self.width}; try {self.width // 64}")
        if sum(self.rope_axes) != self.head_dim:
            raise UserError(f"rope_axes={self.rope_axes} must sum to width / heads = {self.head_dim}")

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.width // self.heads

    @property
    def cells(self) -> int:
        """P: latent cells of a token."""
        return math.prod(self.patch)

    @property
    def token_width(self) -> int:
        """D: values of a token."""
        return self.in_channels * self.cells

    @property
    def token_inputs(self) -> int:
        """Values that the model reads of a token: the noisy ones, with masks also the known ones and where they are."""
        return 2 * self.token_width + self.cells if self.masks else self.token_width


TINY = DiTConfig()
SMALL = replace(TINY, width=512, depth=12, heads=8)
BASE = replace(TINY, width=768, depth=12, heads=12, rope_theta=10_000.0)
XL = replace(TINY, width=1152, depth=28, heads=16, rope_axes=(24, 24, 24), rope_theta=10_000.0)
PRESETS = {"tiny": TINY, "small": SMALL, "base": BASE, "xl": XL}


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
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.gain = nn.Parameter(torch.empty(2, 1, config.head_dim))  # of queries, of keys
        self.out = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor, rope: Rope, view: View) -> Tensor:
        """x (N, width) -> (N, width)."""
        qkv = self.qkv(x).view(len(x), 3 * self.heads, self.head_dim)
        # The queries' gain carries the scale of the scores, which would cost a pass of its own.
        gain = torch.cat([self.gain[0] * self.head_dim**-0.5, self.gain[1]])  # (2, head_dim)
        q, k, v = normalise_rotate(qkv, gain, rope)  # (N, heads, head_dim)
        if view.order is None:
            return self.out(attention(q, k, v, view.segments, scale=1.0).flatten(1))  # type: ignore[no-any-return]
        q, k, v = (x.index_select(0, view.order) for x in (q, k, v))
        mixed = attention(q, k, v, view.segments, scale=1.0, causal=True)
        return self.out(torch.empty_like(mixed).index_copy(0, view.order, mixed).flatten(1))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Attention of a sample's tokens to its text."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.q = nn.Linear(config.width, config.width, bias=config.bias)
        self.kv = nn.Linear(config.width, 2 * config.width, bias=config.bias)
        self.gain = nn.Parameter(torch.empty(2, config.head_dim))  # of queries, of keys
        self.out = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor, text: Tensor, segments: Segments, text_segments: Segments) -> Tensor:
        """x (N, width), text (M, width) -> (N, width)."""
        q = rms_normalise(self.q(x).view(len(x), self.heads, self.head_dim))
        q = q * (self.gain[0] * self.head_dim**-0.5)  # the gain carries the scale of the scores
        k, v = self.kv(text).view(len(text), 2 * self.heads, self.head_dim).chunk(2, dim=1)
        k = rms_normalise(k) * self.gain[1]
        return self.out(attention(q, k, v, segments, text_segments, scale=1.0).flatten(1))  # type: ignore[no-any-return]


class Block(nn.Module):
    """adaLN-single block (PixArt-alpha, Chen et al. 2023, sec. 2.3): self-attention, text, MLP."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.cross = CrossAttention(config)
        self.mlp = MLP(config.width, round(config.width * config.mlp_ratio), config.mlp_gelu, config.bias)
        self.table = nn.Parameter(torch.empty(6, 1, config.width))

    def forward(self, x: Tensor, text: Tensor, modulation: Tensor, view: View, context: _Context) -> Tensor:
        """x (N, width), text (M, width), modulation (U, 6 * width) shared by all blocks -> (N, width)."""
        rows = context.rows.gather(modulation + self.table.flatten())  # (runs, 1, 6 * width)
        shift1, scale1, gate1, shift2, scale2, gate2 = rows.chunk(6, dim=-1)
        h = modulate(rms_normalise(x), shift1, scale1)  # (N, width)
        x = add_gated(x, gate1, self.attention(h, context.rope, view))
        x = x + self.cross(rms_normalise(x), text, context.segments, context.text_segments)
        h = modulate(rms_normalise(x), shift2, scale2)
        return add_gated(x, gate2, self.mlp(h))


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
class _Context:
    """What all blocks of one forward pass share."""

    rows: RowIndex
    rope: Rope
    segments: Segments
    text_segments: Segments


class DiT(nn.Module):
    """Diffusion transformer on packed tokens with per-token timesteps (Peebles & Xie 2022)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embed = nn.Linear(config.token_inputs, width)
        self.positions = nn.ParameterList(torch.empty(rows, width) for rows in config.learned_positions)
        self.actions = Actions(config) if config.actions else None
        self.text = nn.Linear(config.text_width, width)
        self.time = TimestepEmbedding(width)
        self.modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, config.token_width)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """All initialisation of the model.

        | parameter                                  | value                                           |
        | every matrix not named below               | normal, std 1 / sqrt(fan in)                    |
        | every bias                                 | 0                                               |
        | cross-attention's output                   | the same times `gate_init`: it has no gate      |
        | learned positions                          | normal, std 0.02                                |
        | gains of queries and keys                  | 1                                               |
        | modulation, final modulation               | 0: every block starts alike for all timesteps   |
        | block tables: shift, scale, gate           | 0, 1, `gate_init` (open gates learn earlier)    |
        | head, actions' output                      | 0: nothing is predicted or added at first       |
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for position in self.positions:
            nn.init.normal_(position, std=0.02)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.cross.out.weight.mul_(self.config.gate_init)
            nn.init.ones_(block.attention.gain)
            nn.init.ones_(block.cross.gain)
            for row, value in enumerate((0.0, 1.0, self.config.gate_init) * 2):
                nn.init.constant_(block.table[row], value)
        for linear in (self.modulation, self.final, self.head):
            nn.init.zeros_(linear.weight)
        if self.actions is not None:
            nn.init.zeros_(self.actions.down.weight)

    def forward(
        self,
        tokens: Tensor,
        coords: Tensor,
        cu_seqlens: Tensor,
        timestep: Tensor,
        text: Tensor,
        cu_text: Tensor,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        trace: list[Tensor] | None = None,
        actions: Tensor | None = None,
    ) -> Tensor:
        """Predict the velocity eps - x0 of every token.

        Args:
            tokens: (N, D) noisy tokens of all samples, D = in_channels * pt*ph*pw.
            coords: (N, 3) integer (t, h, w).
            cu_seqlens: (B+1,) cumulative numbers of tokens.
            timestep: (N,) float32 in [0, 1], 1 = pure noise; wholly known tokens have 0.
            text: (M, text_width) states of all prompts.
            cu_text: (B+1,) cumulative numbers of text tokens.
            known: (N, D) known tokens, zero where unknown; None means nothing is known. Not read without `masks`.
            mask: (N, P), 1 = known; None means nothing is known.
            trace: receives the states (N, width) after every block.
            actions: (N, A + 1) as `Actions` reads them; None means none are given.

        Returns:
            (N, D) in the type of the weights.
        """
        places = coords / coords.new_tensor(self.config.rope_stretch, dtype=torch.float32)  # (N, 3)
        x = self._embed(tokens, places, known, mask)  # (N, width)
        if self.actions is not None and actions is not None:
            x = x + self.actions(actions.to(x.dtype))
        dtype = x.dtype
        unique, index = torch.unique(timestep, return_inverse=True)  # (U,), (N,)
        context = _Context(
            rows=RowIndex(index, len(unique), dtype),
            rope=rope_tables(places * self.config.rotary, self.config.rope_axes, self.config.rope_theta, dtype),
            segments=Segments(cu_seqlens),
            text_segments=Segments(cu_text),
        )
        time = F.silu(self.time(unique))  # (U, width)
        modulation = self.modulation(time)  # (U, 6 * width)
        states = rms_normalise(self.text(rms_normalise(text.to(dtype))))  # (M, width)
        views = factorised_views(coords, cu_seqlens) if self.config.factorised else (View(context.segments),)
        for i, block in enumerate(self.blocks):
            x = block(x, states, modulation, views[i % len(views)], context)
            if trace is not None:
                trace.append(x)
        shift, scale = context.rows.gather(self.final(time)).chunk(2, dim=-1)  # (runs, 1, width)
        x = modulate(rms_normalise(x), shift, scale + 1)
        return self.head(x)  # type: ignore[no-any-return]

    def _embed(self, tokens: Tensor, places: Tensor, known: Tensor | None, mask: Tensor | None) -> Tensor:
        """Tokens, known latents and mask through one matrix, plus the learned positions: (N, width)."""
        dtype = self.embed.weight.dtype
        read = [tokens]
        if self.config.masks:
            read.append(torch.zeros_like(tokens) if known is None else known)
            read.append(tokens.new_zeros(len(tokens), self.config.cells) if mask is None else mask)
        x = self.embed(torch.cat([values.to(dtype) for values in read], dim=-1))
        if self.config.sinusoidal:
            x = x + sincos(places, self.config.width, dtype)
        # One matmul reads all tables and sums their gradients in fp32.
        tables = torch.cat(list(self.positions))  # (rows of all axes, width)
        one_hot = torch.zeros(len(x), len(tables), dtype=dtype, device=x.device)
        first = 0
        for axis, table in enumerate(self.positions):
            if len(table):
                index = places[:, axis, None].round().long().clamp(max=len(table) - 1) + first
                one_hot.scatter_(1, index, 1.0)
            first += len(table)
        return torch.addmm(x, one_hot, tables)

    def flops(self, tokens: int, text: int) -> int:
        """Floating-point operations of the matmuls and attention of one forward pass over one sample.

        tokens, text: the sample's numbers of tokens and text tokens. Training costs three times as much.
        """
        c = self.config
        per_token = 6 * c.width**2 + 2 * round(c.width * c.mlp_ratio) * c.width  # qkv, out, q, out, MLP
        per_text = 2 * c.width**2
        scores = 2 * tokens * c.width * (tokens + text)
        block = per_token * tokens + per_text * text + scores
        ends = tokens * c.width * (c.token_inputs + c.token_width) + text * c.text_width * c.width
        return 2 * (c.depth * block + ends)
