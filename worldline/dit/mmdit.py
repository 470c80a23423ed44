"""The transformer whose text is a stream of its own: double-stream blocks, then single-stream ones, on packed tokens.

Text and video have weights of their own but attend together (MMDiT, Esser et al. 2024, sec. 4; single-stream blocks as
in Flux and HunyuanVideo, Kong et al. 2024). Open-Sora 2.0 is a configuration of it (Peng et al. 2025).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldline.dit.config import TransformerConfig
from worldline.dit.reuse import Reuse
from worldline.dit.told import Told
from worldline.nn.attention import Segments, attention
from worldline.nn.layers import (
    MLP,
    Embedder,
    RowIndex,
    TimestepEmbedding,
    add_gated,
    layer_normalise,
    modulate,
    rms_normalise,
)
from worldline.nn.rope import Rope, rope_tables, rotate


@dataclass(frozen=True)
class MMDiTConfig(TransformerConfig):
    """Everything that fixes an MMDiT's shape, beside what every transformer has.

    Attributes:
        depth, single_depth: double-stream blocks, and single-stream ones after them.
        vector_width: width of the pooled text that shifts and scales every block.
        guidance: whether the scale of guidance is an input, as of a model that was distilled from guided answers.
    """

    width: int = 3072
    heads: int = 24
    depth: int = 19
    single_depth: int = 38
    text_width: int = 4096
    vector_width: int = 768
    rope_axes: tuple[int, int, int] = (16, 56, 56)
    rope_theta: float = 10_000.0
    guidance: bool = False


class Joint:
    """Samples of text and video as one packed sequence, the text of each before its tokens.

    Args:
        cu_text, cu_tokens: (B+1,) cumulative lengths.
    """

    def __init__(self, cu_text: Tensor, cu_tokens: Tensor) -> None:
        self.segments = Segments(cu_text + cu_tokens)
        samples = torch.arange(len(cu_text) - 1, device=cu_text.device)
        self.text_sample = samples.repeat_interleave(cu_text.diff())  # (M,) which sample a row of text belongs to
        self.token_sample = samples.repeat_interleave(cu_tokens.diff())  # (N,)
        # A row of text stands behind all tokens of the samples before it, a token behind its own text too.
        self.text_place = torch.arange(len(self.text_sample), device=cu_text.device) + cu_tokens[:-1][self.text_sample]
        self.token_place = torch.arange(len(self.token_sample), device=cu_text.device) + cu_text[1:][self.token_sample]
        self.order = torch.cat([self.text_place, self.token_place]).argsort()  # of (text, tokens), one after the other

    def mixed(self, text: Tensor, tokens: Tensor) -> Tensor:
        """Rows of text (M, ...) and tokens (N, ...) in the joint order."""
        return torch.cat([text, tokens]).index_select(0, self.order)

    def parted(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `mixed`."""
        return rows.index_select(0, self.text_place), rows.index_select(0, self.token_place)


class Heads(nn.Module):
    """Queries, keys and values of one stream, queries and keys of unit root mean square per head."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.gain = nn.Parameter(torch.ones(2, config.head_dim))  # of queries, of keys

    def forward(self, x: Tensor) -> Tensor:
        """x (n, width) -> (n, 3, heads, head_dim)."""
        return parted_heads(self.qkv(x), self.gain)


def parted_heads(qkv: Tensor, gain: Tensor) -> Tensor:
    """qkv (n, 3 * width), gain (2, head_dim) -> (n, 3, heads, head_dim), queries and keys normalised."""
    qkv = qkv.view(len(qkv), 3, -1, gain.shape[1])
    return torch.cat([rms_normalise(qkv[:, :2]) * gain[:, None], qkv[:, 2:]], dim=1)


def attend(qkv: Tensor, rope: Rope, segments: Segments) -> Tensor:
    """qkv (n, 3, heads, head_dim) of the joint sequence -> (n, width)."""
    q, k = rotate(qkv[:, :2], rope).unbind(1)
    return attention(q, k, qkv[:, 2], segments).flatten(1)


class DoubleBlock(nn.Module):
    """Text and tokens, each with weights of its own, attend together."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        hidden = round(config.width * config.mlp_ratio)
        streams = ("text", "tokens")
        self.modulation = nn.ModuleDict({name: nn.Linear(config.width, 6 * config.width) for name in streams})
        self.heads = nn.ModuleDict({name: Heads(config) for name in streams})
        self.out = nn.ModuleDict({name: nn.Linear(config.width, config.width) for name in streams})
        self.mlp = nn.ModuleDict({name: MLP(config.width, hidden, "tanh") for name in streams})

    def forward(
        self, text: Tensor, tokens: Tensor, vector: Tensor, rows: dict[str, RowIndex], rope: Rope, joint: Joint
    ) -> tuple[Tensor, Tensor]:
        """text (M, width), tokens (N, width), vector (B, width) before its SiLU -> text, tokens."""
        streams = {"text": text, "tokens": tokens}
        shifts = {name: rows[name].gather(self.modulation[name](F.silu(vector))).chunk(6, dim=-1) for name in streams}
        qkv = [self.heads[name](_modulated(x, *shifts[name][:2])) for name, x in streams.items()]
        mixed = dict(zip(streams, joint.parted(attend(joint.mixed(*qkv), rope, joint.segments)), strict=True))
        for name, x in streams.items():
            _, _, gate1, shift2, scale2, gate2 = shifts[name]
            x = add_gated(x, gate1, self.out[name](mixed[name]))
            streams[name] = add_gated(x, gate2, self.mlp[name](_modulated(x, shift2, scale2)))
        return streams["text"], streams["tokens"]


class SingleBlock(nn.Module):
    """One stream: attention and MLP side by side (Dehghani et al. 2023, ViT-22B, sec. 2)."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        hidden = round(config.width * config.mlp_ratio)
        self.split = [3 * config.width, hidden]
        self.modulation = nn.Linear(config.width, 3 * config.width)
        self.up = nn.Linear(config.width, sum(self.split))  # queries, keys, values, and the MLP's hidden values
        self.gain = nn.Parameter(torch.ones(2, config.head_dim))  # of queries, of keys
        self.down = nn.Linear(config.width + hidden, config.width)

    def forward(self, x: Tensor, vector: Tensor, rows: RowIndex, rope: Rope, joint: Joint) -> Tensor:
        """x (M + N, width) in the joint order -> the same."""
        shift, scale, gate = rows.gather(self.modulation(F.silu(vector))).chunk(3, dim=-1)
        qkv, hidden = self.up(_modulated(x, shift, scale)).split(self.split, dim=-1)
        mixed = attend(parted_heads(qkv, self.gain), rope, joint.segments)
        return add_gated(x, gate, self.down(torch.cat([mixed, F.gelu(hidden, approximate="tanh")], dim=-1)))


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return modulate(layer_normalise(x), shift, scale + 1)


class Heard(NamedTuple):
    """words (M, width) of all prompts before the first block; cu_words (B+1,); vector (B, width) of pooled text."""

    words: Tensor
    cu_words: Tensor
    vector: Tensor


class MMDiT(nn.Module):
    """Multimodal diffusion transformer on packed tokens; one timestep per sample."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.token_width, config.width)
        self.condition = nn.Linear(config.token_width + config.cells, config.width) if config.masks else None
        self.text = nn.Linear(config.text_width, config.width)
        self.time = TimestepEmbedding(config.width)
        self.vector = Embedder(config.vector_width, config.width)
        self.guidance = TimestepEmbedding(config.width) if config.guidance else None
        self.double_blocks = nn.ModuleList(DoubleBlock(config) for _ in range(config.depth))
        self.single_blocks = nn.ModuleList(SingleBlock(config) for _ in range(config.single_depth))
        self.final = nn.Linear(config.width, 2 * config.width)
        self.head = nn.Linear(config.width, config.token_width)

    def forward(
        self,
        tokens: Tensor,
        coords: Tensor,
        cu_seqlens: Tensor,
        timestep: Tensor,
        text: Told | Heard,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        guidance: Tensor | None = None,
        reuse: Reuse | None = None,
    ) -> Tensor:
        """Predict the velocity eps - x0 of every token.

        Args:
            tokens: (N, D) noisy tokens of all samples, D = in_channels * pt*ph*pw.
            coords: (N, 3) integer (t, h, w).
            cu_seqlens: (B+1,) cumulative numbers of tokens.
            timestep: (N,) float32 in [0, 1], 1 = pure noise, the same for all tokens of a sample.
            text: states of all prompts and their pooled ones, or what `read` made of them once for all steps.
            known: (N, D) known tokens, zero where unknown; None means nothing is known. Not read without `masks`.
            mask: (N, P), 1 = known; None means nothing is known.
            guidance: (B,) scales in [0, 1] of a model that takes them, as it was trained.
            reuse: what earlier steps leave, where an approximation will do.

        Returns:
            (N, D) in the type of the weights.
        """
        dtype = self.embed.weight.dtype
        heard = text if isinstance(text, Heard) else self.read(text)
        joint = Joint(heard.cu_words, cu_seqlens)
        state = self.time(timestep[cu_seqlens[:-1]]) + heard.vector  # (B, width)
        if self.guidance is not None and guidance is not None:
            state = state + self.guidance(guidance)
        x, words = self._embed(tokens.to(dtype), known, mask), heard.words
        places = joint.mixed(coords.new_zeros(len(words), 3), coords)  # a word stands at the origin
        rope = rope_tables(places, self.config.rope_axes, self.config.rope_theta, dtype)
        samples = {"text": joint.text_sample, "tokens": joint.token_sample}
        rows = {name: RowIndex(index, len(state), dtype) for name, index in samples.items()}
        whole = RowIndex(joint.mixed(joint.text_sample, joint.token_sample), len(state), dtype)

        def double(words: Tensor, x: Tensor, blocks: nn.ModuleList) -> tuple[Tensor, Tensor]:
            for block in blocks:
                words, x = block(words, x, state, rows, rope, joint)
            return words, x

        def single(words: Tensor, x: Tensor) -> Tensor:
            both = joint.mixed(words, x)
            for block in self.single_blocks:
                both = block(both, state, whole, rope, joint)
            return joint.parted(both)[1]

        def answer(x: Tensor) -> Tensor:
            shift, scale = rows["tokens"].gather(self.final(F.silu(state))).chunk(2, dim=-1)
            return self.head(_modulated(x, shift, scale))  # type: ignore[no-any-return]

        told, left = double(words, x, self.double_blocks[:1])
        if reuse is None:
            return answer(single(*double(told, left, self.double_blocks[1:])))
        return reuse(x, left, lambda left: single(*double(told, left, self.double_blocks[1:])), answer)

    def read(self, told: Told) -> Heard:
        """What the blocks begin with of prompts: it holds for all steps of a sampler."""
        if told.vector is None:
            raise ValueError("vector: this model needs pooled states of the prompts")
        dtype = self.embed.weight.dtype
        return Heard(self.text(told.text.to(dtype)), told.cu_text, self.vector(told.vector.to(dtype)))

    def stack(self) -> list[nn.Module]:
        """The blocks, in order."""
        return [*self.double_blocks, *self.single_blocks]

    def flops(self, tokens: int, text: int) -> int:
        """Floating-point operations of the matmuls and attention of one forward pass over one sample.

        tokens, text: the sample's numbers of tokens and text tokens.
        """
        c = self.config
        rows = tokens + text
        per_row = 4 * c.width**2 + 2 * round(c.width * c.mlp_ratio) * c.width  # qkv, out, MLP: of either block
        block = per_row * rows + 2 * c.width * rows**2
        inputs = 2 * c.token_width + (c.token_width + c.cells if c.masks else 0)
        ends = tokens * c.width * inputs + text * c.text_width * c.width
        return 2 * ((c.depth + c.single_depth) * block + ends)

    def _embed(self, tokens: Tensor, known: Tensor | None, mask: Tensor | None) -> Tensor:
        """Tokens (N, D), plus what is known of them and where: (N, width)."""
        x = self.embed(tokens)
        if self.condition is None:
            return x  # type: ignore[no-any-return]
        known = torch.zeros_like(tokens) if known is None else known.to(tokens)
        mask = tokens.new_zeros(len(tokens), self.config.cells) if mask is None else mask.to(tokens)
        return x + self.condition(torch.cat([mask, known], dim=-1))  # type: ignore[no-any-return]
