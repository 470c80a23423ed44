"""What an encoder answers, the protocol that all share, two as one, a cache before any, and one untrained for tests."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from worldline.nn.attention import Segments, attention


class TextStates(NamedTuple):
    """Token-level states of B prompts in one packed sequence.

    states: (M, width); cu_seqlens: (B+1,) int64, cumulative lengths, each at least 1;
    truncated: (B,) bool, true where a prompt was longer than the encoder reads; None means nowhere;
    padding: (B,) int64, how many rows of zeros a model attends to after each prompt's states, as Wan was taught with
    (see `padded`); None means none; pooled: (B, D) one vector a prompt beside its states, where the encoder has one.
    """

    states: Tensor
    cu_seqlens: Tensor
    truncated: Tensor | None = None
    padding: Tensor | None = None
    pooled: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(value.nbytes for value in self if value is not None)

    def each(self) -> list[TextStates]:
        """The B prompts apart; none keeps the states of the others in memory."""
        pieces = self.states.tensor_split(self.cu_seqlens[1:-1].cpu())
        about = [[None] * len(pieces) if value is None else value.clone().split(1) for value in self[2:]]
        return [
            TextStates(piece.clone(), self.cu_seqlens.new_tensor([0, len(piece)]), *(value[i] for value in about))
            for i, piece in enumerate(pieces)
        ]


def joined(parts: Sequence[TextStates]) -> TextStates:
    """Prompts of one encoder, in order, in one packed sequence."""
    lengths = torch.cat([part.cu_seqlens.diff() for part in parts])
    columns = zip(*(part[2:] for part in parts), strict=True)
    about = [None if any(value is None for value in column) else torch.cat(column) for column in columns]
    return TextStates(torch.cat([part.states for part in parts]), F.pad(lengths.cumsum(0), (1, 0)), *about)


@runtime_checkable
class TextEncoder(Protocol):
    """What the rest of the system knows of an encoder. The empty prompt is valid: it is what guidance steers from."""

    width: int

    def encode(self, prompts: Sequence[str]) -> TextStates:
        """States of the prompts, in order; gradients flow where the encoder is trained and grad mode is on."""
        ...


class Packing:
    """One sequence of B samples of unequal lengths, and how to attend inside each as one padded batch."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.cu_seqlens = torch.tensor([0, *lengths], device=device).cumsum(0)  # (B+1,)
        self.segments = Segments(self.cu_seqlens)
        self.equal = len(set(lengths)) == 1
        self.rows, absent = self.segments.padding(0, len(lengths))  # (B, L)
        self.real = absent.back  # (M,)
        self.padded = Segments(torch.arange(len(lengths) + 1, device=device) * self.rows.shape[1])
        self.places = torch.cat([torch.arange(n, device=device) for n in lengths])  # (M,) place in its sample

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(M, heads, dim) each -> (M, heads, dim). Queries are padded, so that unequal prompts are one matmul."""
        if self.equal:
            return attention(q, k, v, self.segments)
        out = attention(q[self.rows].flatten(0, 1), k, v, self.padded, self.segments)
        return out[self.real]


class ByteEncoder:
    """Untrained and exact: sinusoids of each byte's value and place. For tests that need an encoder and no weights."""

    def __init__(self, width: int = 64, max_bytes: int = 256) -> None:
        self.width, self.max_bytes = width, max_bytes

    def encode(self, prompts: Sequence[str]) -> TextStates:
        """(M, width): a zero byte (the null prompt) and then the prompt's UTF-8 bytes."""
        rows = [b"\0" + prompt.encode("utf-8", "replace")[: self.max_bytes] for prompt in prompts]
        packing = Packing([len(row) for row in rows], torch.device("cpu"))
        values = torch.tensor([byte for row in rows for byte in row])
        scale = torch.exp(-torch.arange(self.width) / self.width)  # (width,)
        states = torch.sin(values[:, None] * scale) + torch.cos(packing.places[:, None] * scale)
        truncated = torch.tensor([len(prompt.encode("utf-8", "replace")) > self.max_bytes for prompt in prompts])
        return TextStates(states, packing.cu_seqlens, truncated)


class WithPooled:
    """States of one encoder, beside them the pooled vector of another: what multimodal transformers are told."""

    def __init__(self, states: TextEncoder, pooled: TextEncoder) -> None:
        self.states, self.pooled = states, pooled
        self.width = states.width

    def encode(self, prompts: Sequence[str]) -> TextStates:
        """States (M, width) of the first, `pooled` (B, D) of the second; `truncated` is the first's."""
        return self.states.encode(prompts)._replace(pooled=self.pooled.encode(prompts).pooled)


class CachedText:
    """Another encoder that remembers its last prompts, `size` bytes of them at most; for frozen encoders, since no
    gradient passes."""

    def __init__(self, encoder: TextEncoder, size: int = 2**28) -> None:
        self.encoder, self.size = encoder, size
        self.width = encoder.width
        self._seen: OrderedDict[str, TextStates] = OrderedDict()
        self._held = 0  # bytes

    def remember(self, prompt: str, states: Tensor) -> None:
        """States (m, width) of a prompt, known from elsewhere."""
        known = self._seen.pop(prompt, None)
        self._seen[prompt] = new = TextStates(states, torch.tensor([0, len(states)]))
        self._held += new.nbytes - (known.nbytes if known else 0)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextStates:
        """States of the prompts; each that is new is encoded once, all new ones in one batch."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._seen]
        found = {prompt: self._seen[prompt] for prompt in prompts if prompt in self._seen}
        if new:
            found |= dict(zip(new, self.encoder.encode(new).each(), strict=True))
        for prompt in prompts:
            self._seen[prompt] = found[prompt]
            self._seen.move_to_end(prompt)
        self._held += sum(found[prompt].nbytes for prompt in new)
        while self._held > self.size:
            self._held -= self._seen.popitem(last=False)[1].nbytes
        return joined([found[prompt] for prompt in prompts])
