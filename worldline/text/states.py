"""What an encoder answers, the protocol that all share, a cache before any of them, and one untrained for tests."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from worldline.nn.attention import Segments, attention


class TextStates(NamedTuple):
    """Token-level states of B prompts in one packed sequence.

    states: (M, width); cu_seqlens: (B+1,) int64, cumulative lengths, each at least 1;
    truncated: (B,) bool, true where a prompt was longer than the encoder reads; None means nowhere.
    """

    states: Tensor
    cu_seqlens: Tensor
    truncated: Tensor | None = None


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
        self.rows, self.real, _ = self.segments.padding(0, len(lengths))  # (B, L), (M,)
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


class CachedText:
    """Another encoder that remembers its last `size` prompts; for frozen encoders, since no gradient passes."""

    def __init__(self, encoder: TextEncoder, size: int = 4096) -> None:
        self.encoder, self.size = encoder, size
        self.width = encoder.width
        self._seen: OrderedDict[str, tuple[Tensor, bool]] = OrderedDict()  # prompt -> states (m, width), truncated

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextStates:
        """States of the prompts; each that is new is encoded once, all new ones in one batch."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._seen]
        found = {prompt: self._seen[prompt] for prompt in prompts if prompt in self._seen}
        if new:
            states, cu_seqlens, cut = self.encoder.encode(new)
            truncated = [False] * len(new) if cut is None else cut.tolist()
            pieces = states.detach().tensor_split(cu_seqlens[1:-1].cpu())
            found |= {prompt: (pieces[i].clone(), truncated[i]) for i, prompt in enumerate(new)}
        for prompt in prompts:
            self._seen[prompt] = found[prompt]
            self._seen.move_to_end(prompt)
        while len(self._seen) > self.size:
            self._seen.popitem(last=False)
        rows = [found[prompt][0] for prompt in prompts]
        marks = torch.tensor([found[prompt][1] for prompt in prompts], device=rows[0].device)
        lengths = torch.tensor([0] + [len(row) for row in rows], device=rows[0].device)
        return TextStates(torch.cat(rows), lengths.cumsum(0), marks)
