"""What a model is told beside the video: states of prompts, pooled ones, and states of pictures."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Told(NamedTuple):
    """Of B samples, packed.

    text: (M, text_width) states of all prompts; cu_text: (B+1,) cumulative lengths;
    padding: (B,) how many rows of zeros stand after each prompt, as a public model was taught; None means none;
    vector: (B, vector_width) pooled states of the prompts;
    image: (K, image_width) states of pictures; cu_image: (B+1,).
    """

    text: Tensor
    cu_text: Tensor
    padding: Tensor | None = None
    vector: Tensor | None = None
    image: Tensor | None = None
    cu_image: Tensor | None = None

    def rows(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Text with one row of zeros for all the padding of a prompt: rows (M', width), cu (B+1,), and how many equal
        rows each stands for (M',), None where all are single.

        Equal keys with equal values weigh in attention as one key that is counted so many times.
        """
        if self.padding is None or not bool((self.padding > 0).any()):
            return self.text, self.cu_text, None
        padded = (self.padding > 0).long()
        cu = self.cu_text + torch.cat([padded.new_zeros(1), padded.cumsum(0)])
        rows = self.text.new_zeros(int(cu[-1]), self.text.shape[1])
        counts = self.text.new_ones(len(rows), dtype=torch.float32)
        samples = torch.arange(len(padded), device=cu.device).repeat_interleave(self.cu_text.diff())
        rows[torch.arange(len(self.text), device=cu.device) + (cu - self.cu_text)[samples]] = self.text
        last = (cu[1:] - 1)[padded.bool()]
        counts[last] = self.padding[padded.bool()].float()
        return rows, cu, counts

    def first(self, samples: int) -> Told:
        """Of the first samples alone."""
        words = int(self.cu_text[samples])
        seen = 0 if self.cu_image is None else int(self.cu_image[samples])
        return Told(
            self.text[:words],
            self.cu_text[: samples + 1],
            None if self.padding is None else self.padding[:samples],
            None if self.vector is None else self.vector[:samples],
            None if self.image is None else self.image[:seen],
            None if self.cu_image is None else self.cu_image[: samples + 1],
        )
