"""The small video captioner: a few frames in, the words of a caption out, one after the other.

Convolutions read every frame, a transformer joins frames and places, a second one writes words while it looks at them.
Positions are coordinates, so a clip may have any shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldline.nn.attention import Segments, attention
from worldline.worlds.scene import CAMERAS, COLOURS, FLOORS, MOTIONS, SHAPES, SIZES

CELL = 16  # pixels of a token; sides of what the net reads divide by it
# What every 8-pixel cell is asked for while it learns: of the thing that it shows, of floor and camera where none is.
LESSON = (*SHAPES, *COLOURS, *SIZES, *MOTIONS, *FLOORS, *CAMERAS[1:])
END = 0  # ends every caption; the words follow the styles


@dataclass(frozen=True)
class CaptionerConfig:
    """Size and vocabulary. `styles` are the kinds of caption that it was taught, `words` all that it can say."""

    words: tuple[str, ...] = ()
    styles: tuple[str, ...] = ("short", "full")
    frames: int = 9
    side: int = 64  # shorter side of a frame, pixels
    channels: tuple[int, int] = (32, 64)  # of the convolutions at 4 and at 8 pixels
    width: int = 128
    layers: int = 3
    writer_layers: int = 2
    heads: int = 4
    max_words: int = 64


class Captioner(nn.Module):
    """Frames (B, T, 3, H, W) in [-1, 1] -> words. `captions` writes them; `forward` scores given ones."""

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        self.config = config
        fine, coarse = config.channels
        self.stem = nn.Conv2d(48, fine, 3, padding=1)
        self.fine = _Convs(fine)
        self.halve = nn.Conv2d(fine, coarse, 4, stride=2, padding=1)
        self.coarse = nn.ModuleList(_Convs(coarse) for _ in range(2))
        self.through = nn.ModuleList(nn.Conv2d(3 * coarse, coarse, 1) for _ in range(2))
        self.lesson = nn.Conv2d(coarse, len(LESSON), 1)
        self.cells = nn.Conv2d(coarse, config.width, 2, stride=2)
        self.place = nn.Linear(6 * FREQUENCIES, config.width)
        self.blocks = nn.ModuleList(_Block(config.width, config.heads, False) for _ in range(config.layers))
        self.seen = nn.LayerNorm(config.width)
        count = 1 + len(config.styles) + len(config.words)
        self.word = nn.Embedding(count, config.width)
        self.position = nn.Parameter(torch.randn(config.max_words + 1, config.width) * 0.1)
        self.writer = nn.ModuleList(_Block(config.width, config.heads, True) for _ in range(config.writer_layers))
        self.norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.word.weight, std=0.1)
        nn.init.constant_(self.lesson.bias, -4.0)  # type: ignore[arg-type]  # a class covers about 2 % of a picture

    def look(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (B, T, 3, H, W) -> what was seen (B, n, width), and logits (B, T, classes, H/8, W/8) of `LESSON`."""
        b, t = frames.shape[:2]
        x = F.pixel_unshuffle(frames.flatten(0, 1), 4)  # (B*T, 48, H/4, W/4)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        x = self.halve(self.fine(x))  # (B*T, C, H/8, W/8)
        for convs, through in zip(self.coarse, self.through, strict=True):
            x = convs(x + through(_neighbours(x, t)))
        logits = self.lesson(x).unflatten(0, (b, t))
        x = self.cells(x)  # (B*T, width, H/16, W/16)
        h, w = x.shape[-2:]
        x = x.unflatten(0, (b, t)).permute(0, 1, 3, 4, 2).flatten(1, 3)  # (B, n, width)
        x = (x + self.place(_places(t, h, w, x))).flatten(0, 1)
        segments = _even(b, t * h * w, x)
        for block in self.blocks:
            x = block(x, segments)
        return self.seen(x).unflatten(0, (b, -1)), logits

    def write(self, seen: Tensor, words: Tensor) -> Tensor:
        """Scores (B, L, words) of what follows each of `words` (B, L), the first of which is a style."""
        b, length = words.shape
        x = (self.word(words) + self.position[:length].to(seen.dtype)).flatten(0, 1)
        own, other = _even(b, length, x), _even(b, seen.shape[1], x)
        for block in self.writer:
            x = block(x, own, seen.flatten(0, 1), other)
        return (self.norm(x) @ self.word.weight.T).unflatten(0, (b, length))

    def forward(self, frames: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of `write`, logits of `look`."""
        seen, logits = self.look(frames)
        return self.write(seen, words), logits

    @torch.no_grad()
    def captions(self, frames: Tensor, style: str = "full") -> list[tuple[str, float]]:
        """The likeliest caption, word by word, of frames (B, T, 3, H, W), with its mean probability per word."""
        seen, _ = self.look(frames)
        words = torch.full((len(frames), 1), 1 + self.config.styles.index(style), device=frames.device)
        sure = torch.zeros(len(frames), device=frames.device)
        count = torch.zeros_like(sure)
        for _ in range(self.config.max_words):
            chances = self.write(seen, words)[:, -1].float().log_softmax(-1)
            best, chosen = chances.max(-1)
            going = (words[:, -1] != END) if words.shape[1] > 1 else torch.ones_like(sure, dtype=torch.bool)
            sure, count = sure + best * going, count + going
            words = torch.cat([words, torch.where(going, chosen, END)[:, None]], 1)
            if not (words[:, -1] != END).any():
                break
        sureness = (sure / count.clamp_min(1)).exp().tolist()
        return [(self.text(row), chance) for row, chance in zip(words[:, 1:].tolist(), sureness, strict=True)]

    def numbers(self, text: str, style: str) -> list[int]:
        """A caption as numbers: its style, its words, END. Raises KeyError for a word that is not known."""
        first = 1 + len(self.config.styles)
        index = {word: first + i for i, word in enumerate(self.config.words)}
        words = [index[word] for word in text.replace(",", " ,").split()]
        return [1 + self.config.styles.index(style), *words[: self.config.max_words - 1], END]

    def text(self, numbers: Sequence[int]) -> str:
        """Words of numbers, up to END."""
        first = 1 + len(self.config.styles)
        ends = numbers.index(END) if END in numbers else len(numbers)
        return " ".join(self.config.words[n - first] for n in numbers[:ends] if n >= first).replace(" ,", ",")


FREQUENCIES = 4


def _places(t: int, h: int, w: int, like: Tensor) -> Tensor:
    """(t*h*w, 24): waves of time in 0..1 and of height and width in shorter sides from the middle."""
    short = min(h, w)
    axes = [torch.linspace(0, 1, t)]
    axes += [(torch.arange(n) + 0.5 - n / 2) / short for n in (h, w)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)  # (n, 3)
    angle = grid[:, :, None] * math.pi * 2.0 ** torch.arange(FREQUENCIES)
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(1).to(like)


def _even(count: int, length: int, like: Tensor) -> Segments:
    return Segments(torch.arange(count + 1, device=like.device) * length)


def _neighbours(x: Tensor, frames: int) -> Tensor:
    """(B*T, C, h, w) -> (B*T, 3C, h, w): each frame with the one before and the one after it."""
    clips = x.unflatten(0, (-1, frames))
    before = torch.cat([clips[:, :1], clips[:, :-1]], 1)
    after = torch.cat([clips[:, 1:], clips[:, -1:]], 1)
    return torch.cat([before, clips, after], 2).flatten(0, 1)


class _Convs(nn.Module):
    """Two 3x3 convolutions beside a way around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Pre-norm attention and MLP on packed tokens (N, D); a writer's is causal and looks at what was seen as well."""

    def __init__(self, width: int, heads: int, writes: bool) -> None:
        super().__init__()
        self.heads, self.writes = heads, writes
        self.norm_own, self.qkv, self.mix = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        if writes:
            self.norm_seen, self.ask = nn.LayerNorm(width), nn.Linear(width, width)
            self.told, self.take = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.norm_mlp, self.grow = nn.LayerNorm(width), nn.Linear(width, 4 * width)
        self.shrink = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, own: Segments, seen: Tensor | None = None, other: Segments | None = None) -> Tensor:
        q, k, v = self.qkv(self.norm_own(x)).unflatten(-1, (3, self.heads, -1)).unbind(1)
        x = x + self.mix(attention(q, k, v, own, causal=self.writes).flatten(1))
        if seen is not None:
            q = self.ask(self.norm_seen(x)).unflatten(-1, (self.heads, -1))
            k, v = self.told(seen).unflatten(-1, (2, self.heads, -1)).unbind(1)
            x = x + self.take(attention(q, k, v, own, other).flatten(1))
        return x + self.shrink(F.gelu(self.grow(self.norm_mlp(x)), approximate="tanh"))
