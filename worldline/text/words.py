"""The trained encoder: a small transformer over words that learns together with what it conditions."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldline.text.states import Packing, TextStates

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
START, UNKNOWN, FIRST_WORD = 0, 1, 2  # ids of WordTransformer: the null prompt is START alone


def words_of(prompt: str, most: int | None = None) -> list[str]:
    """Lower-case words of a prompt (Unicode-normalised, punctuation dropped), at most `most` of them."""
    found = WORD.finditer(unicodedata.normalize("NFKC", prompt).lower())
    return [match[0] for match in islice(found, most)]


@dataclass(frozen=True)
class WordConfig:
    """Size and vocabulary of a WordTransformer.

    `words` are the known words. `readings` maps a foreign word to the known word or words that it is read as; no
    weight depends on it, so it may be widened after training.
    """

    words: tuple[str, ...]
    width: int = 256
    layers: int = 2
    heads: int = 4
    buckets: int = 512
    max_words: int = 96
    word_dropout: float = 0.1
    readings: Mapping[str, str] = field(default_factory=dict)


class WordBatch(NamedTuple):
    """Prompts as numbers: distinct words once, then each token as an index among them."""

    ids: Tensor  # (U,) ids of the distinct words
    grams: Tensor  # (U, buckets) share of each n-gram bucket in each distinct word
    token: Tensor  # (M,) which distinct word each token is
    lengths: list[int]  # (B,) tokens of each prompt, START included
    truncated: Tensor  # (B,) bool


@lru_cache(maxsize=65_536)
def _buckets_of(word: str, buckets: int) -> tuple[int, ...]:
    """Buckets of the trigrams of <word>; a checksum hashes them, being the same on every machine and run."""
    marked = f"<{word[:40]}>"
    return tuple(zlib.crc32(marked[i : i + 3].encode()) % buckets for i in range(max(1, len(marked) - 2)))


class WordTransformer(nn.Module):
    """A small transformer over words, trained jointly with what it conditions.

    A token is word embedding + mean of the word's character-trigram embeddings (Bojanowski et al. 2017,
    "Enriching Word Vectors with Subword Information", section 3.2) + learned position. In training a share of
    the word embeddings is replaced by that of the unknown word, so that the trigrams alone learn to carry the
    meaning and misspellings or inflections of a known word land near it.
    """

    def __init__(self, config: WordConfig) -> None:
        super().__init__()
        if not config.words:
            raise ValueError("a WordTransformer needs at least one word")
        self.config = config
        self.width = config.width
        self.index = {word: FIRST_WORD + i for i, word in enumerate(config.words)}
        self.word = nn.Embedding(FIRST_WORD + len(config.words), config.width)
        self.gram = nn.Parameter(torch.empty(config.buckets, config.width))
        self.position = nn.Embedding(config.max_words + 1, config.width)
        self.blocks = nn.ModuleList(_Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.init_weights()

    def init_weights(self) -> None:
        """Set every parameter.

        | parameter               | value                                                    |
        |-------------------------|----------------------------------------------------------|
        | word, gram              | normal(0, 0.5)                                           |
        | position                | normal(0, 0.1): order is a small part of what a word says|
        | q, k, v and MLP inputs  | Xavier uniform, zero bias                                |
        | outputs into the stream | Xavier uniform / sqrt(2 * layers)                        |
        | norms                   | identity                                                 |
        """
        nn.init.normal_(self.word.weight, std=0.5)
        nn.init.normal_(self.gram, std=0.5)
        nn.init.normal_(self.position.weight, std=0.1)
        for block in self.blocks:
            for name, linear in block.named_children():
                if isinstance(linear, nn.Linear):
                    gain = (2 * self.config.layers) ** -0.5 if name in ("mix", "shrink") else 1.0
                    nn.init.xavier_uniform_(linear.weight, gain)
                    nn.init.zeros_(linear.bias)

    def unknown(self, prompt: str) -> list[str]:
        """Words of the prompt that are neither in the vocabulary nor read as words of it, in order, each once."""
        words = self.read(prompt, self.config.max_words)
        return list(dict.fromkeys(word for word in words if word not in self.index))

    def read(self, prompt: str, most: int | None = None) -> list[str]:
        """The prompt as words, foreign ones replaced by their readings, at most `most` of them."""

        def read() -> Iterator[str]:
            for word in words_of(prompt, most):
                reading = None if word in self.index else self.config.readings.get(word)
                yield from [word] if reading is None else reading.split()

        return list(islice(read(), most))

    def tokens(self, prompts: Sequence[str]) -> WordBatch:
        """Numbers for `forward`, on the model's device."""
        most = self.config.max_words
        split = [self.read(prompt, most + 1) for prompt in prompts]
        distinct: dict[str, int] = {"": 0}  # "" stands for START
        token = [distinct.setdefault(word, len(distinct)) for words in split for word in ["", *words[:most]]]
        grams = np.zeros((len(distinct), self.config.buckets), np.float32)
        for word, row in islice(distinct.items(), 1, None):
            found = _buckets_of(word, self.config.buckets)
            for bucket in found:
                grams[row, bucket] += 1 / len(found)
        ids = [START] + [self.index.get(word, UNKNOWN) for word in islice(distinct, 1, None)]
        device = self.gram.device
        return WordBatch(
            torch.tensor(ids, device=device),
            torch.from_numpy(grams).to(device, self.gram.dtype),
            torch.tensor(token, device=device),
            [1 + min(len(words), most) for words in split],
            torch.tensor([len(words) > most for words in split], device=device),
        )

    def forward(self, batch: WordBatch, generator: torch.Generator | None = None) -> TextStates:
        """States of a batch; in training mode, words are dropped by `generator` (default: torch's own)."""
        packing = Packing(batch.lengths, batch.token.device)
        ids = batch.ids[batch.token]  # (M,)
        kept = ids
        if self.training and self.config.word_dropout:
            draw = torch.rand(ids.shape, generator=generator).to(ids.device)
            kept = torch.where((draw < self.config.word_dropout) & (ids != START), UNKNOWN, ids)
        x = F.embedding(kept, self.word.weight) + (batch.grams @ self.gram)[batch.token]  # (M, D)
        x = x + F.embedding(packing.places, self.position.weight)
        for block in self.blocks:
            x = block(x, packing)
        return TextStates(self.norm(x), packing.cu_seqlens, batch.truncated)

    def encode(self, prompts: Sequence[str]) -> TextStates:
        """`forward` of the prompts' tokens."""
        return self(self.tokens(prompts))


class _Block(nn.Module):
    """Pre-norm self-attention and GELU MLP on packed tokens (M, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.grow, self.shrink = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).unbind(1)  # (M, heads, dim)
        x = x + self.mix(packing.attend(q, k, v).flatten(1))
        return x + self.shrink(F.gelu(self.grow(self.norm_mlp(x)), approximate="tanh"))
