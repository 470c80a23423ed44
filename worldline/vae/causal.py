"""The causal 3-D convolutional autoencoder of Wan 2.1 and 2.2 (Wan team 2025, section 4.1), as one configuration each.

A residual network of 3x3x3 convolutions that look two frames back, a channel norm per position and attention inside
each frame at the coarsest level. It halves space at every level but the last and time at those that `halve_time`
names. The first frame of a video is never merged with others: halving and doubling of time pass it through, which is
why an image is a video of one frame. Wan 2.2 adds parameter-free shortcuts around whole levels and folds 2x2 pixels
into channels first.

Attention alone sees the whole frame, and it stands at the coarsest level, where a frame is small: all finer levels
can run in tiles, exactly.

Inside, everything is (B, T, H, W, C), channels last: what the norms, the matrix products and the fast kernels want.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldline.errors import UserError
from worldline.nn.attention import Segments, attention
from worldline.nn.convolution import causal_conv, conv2d, doubled_conv2d
from worldline.vae.codec import History, Posterior, VideoCodec

LOGVAR_RANGE = (-30.0, 20.0)
PIECE_BYTES = 22 * 2**20  # of frames that enter a level of the decoder together


@dataclass(frozen=True)
class CausalVAEConfig:
    """Sizes of the autoencoder; levels are listed fine to coarse, and the decoder runs them backwards."""

    latent_channels: int = 16
    encoder_width: int = 96  # channels at the finest level
    decoder_width: int = 96
    multipliers: tuple[int, ...] = (1, 2, 4, 4)  # widths of the levels
    halve_time: tuple[bool, ...] = (False, True, True)  # between level i and i + 1, where space is always halved
    blocks: int = 2  # per level of the encoder; the decoder has one more
    patch: int = 1  # pixels per side folded into channels
    shortcuts: bool = False  # around each level, by averaging and repeating (Wan 2.2)

    def __post_init__(self) -> None:
        for name in ("multipliers", "halve_time"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON gives lists
        if len(self.halve_time) != len(self.multipliers) - 1:
            raise UserError(
                f"halve_time has {len(self.halve_time)} entries for {len(self.multipliers)} levels; "
                f"it needs one between neighbours, {len(self.multipliers) - 1}"
            )

    @property
    def temporal(self) -> int:
        """Frames per latent frame after the first."""
        return int(2 ** sum(self.halve_time))

    @property
    def spatial(self) -> int:
        """Pixels per latent along each side."""
        return int(self.patch * 2 ** len(self.halve_time))


WAN_2_1 = CausalVAEConfig()
WAN_2_2 = CausalVAEConfig(latent_channels=48, encoder_width=160, decoder_width=256, patch=2, shortcuts=True)


class ChannelNorm(nn.Module):
    """x / rms(x) * gain over channels, in fp32 inside; what `F.normalize` times sqrt(dim) times gain is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, spent: bool = False) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = (math.sqrt(x.shape[-1]) / length.clamp_min(1e-12)).to(x.dtype)
        if torch.is_grad_enabled():
            return x * scale * self.gain
        return (x.mul_(scale) if spent else x * scale).mul_(self.gain)

    def silu(self, x: Tensor, spent: bool = False) -> Tensor:
        """SiLU of the normalised values; where `x` is `spent`, they may take its place."""
        return F.silu(self(x, spent), inplace=not torch.is_grad_enabled())


class CausalConv(nn.Module):
    """3x3x3 convolution over (B, T, H, W, C): zeros around each frame, two frames of history in time."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 3, 3, 3))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor, history: History) -> Tensor:
        y = causal_conv(x, history.past(self), self.weight, self.bias)
        history.keep(self, x, 2)
        return y


class Block(nn.Module):
    """Two convolutions, each behind norm and SiLU, beside the identity or a matrix."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(inputs)
        self.conv1 = CausalConv(inputs, outputs)
        self.norm2 = ChannelNorm(outputs)
        self.conv2 = CausalConv(outputs, outputs)
        self.match = nn.Linear(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, history: History) -> Tensor:
        h = self.conv1(self.norm1.silu(x), history)
        h = self.conv2(self.norm2.silu(h, spent=True), history)
        return h + self.match(x) if torch.is_grad_enabled() else h.add_(self.match(x))


class FrameAttention(nn.Module):
    """One head of self-attention inside each frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, h, w, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(-1, 1, 3 * c).chunk(3, dim=-1)  # (B*T*H*W, 1, C) each
        mixed = attention(q, k, v, Segments(torch.arange(b * t + 1) * (h * w)))
        return x + self.out(mixed).view_as(x)


class Middle(nn.Module):
    """The coarsest level: block, attention, block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before = Block(width, width)
        self.attention = FrameAttention(width)
        self.after = Block(width, width)

    def forward(self, x: Tensor, history: History) -> Tensor:
        return self.after(self.attention(self.before(x, history)), history)


class Shrink(nn.Module):
    """Halves space, then, if asked, time; frame 0 of a video passes the halving of time as it is."""

    def __init__(self, width: int, time: bool) -> None:
        super().__init__()
        self.space = nn.Conv2d(width, width, 3)
        self.time = nn.Linear(3 * width, width) if time else None  # taps side by side

    def forward(self, x: Tensor, history: History) -> Tensor:
        x = F.pad(x, (0, 0, 0, 1, 0, 1))  # zeros at the right and at the bottom only
        x = conv2d(x, self.space.weight, self.space.bias, stride=2)
        if self.time is None:
            return x
        past = history.past(self)
        if past is None and history.started:
            past = torch.zeros_like(x[:, :1])  # a stream out of the middle of a video
        whole = x if past is None else torch.cat([past, x], dim=1)  # pairs, and the frame before them
        history.keep(self, x, 1)
        halved = self.time(torch.cat([whole[:, :-2:2], whole[:, 1::2], whole[:, 2::2]], dim=-1))
        return torch.cat([x[:, :1], halved], dim=1) if past is None else halved


class Grow(nn.Module):
    """Doubles time, if asked, then space; frame 0 of a video passes, and the frames after it do not see it here."""

    def __init__(self, inputs: int, outputs: int, time: bool) -> None:
        super().__init__()
        self.time = nn.Linear(3 * inputs, 2 * inputs) if time else None  # taps side by side -> even and odd frame
        self.space = nn.Conv2d(inputs, outputs, 3)

    @property
    def growth(self) -> float:
        """Numbers that come out for one that goes in."""
        outputs, inputs = self.space.weight.shape[:2]
        return 4 * (1 if self.time is None else 2) * outputs / inputs

    def forward(self, x: Tensor, history: History) -> Tensor:
        if self.time is not None:
            first, rest = (x[:, :0], x) if history.started else (x[:, :1], x[:, 1:])
            x = torch.cat([first, self._double(rest, history)], dim=1) if rest.shape[1] else first
        return doubled_conv2d(x, self.space.weight, self.space.bias)  # type: ignore[arg-type]

    def _double(self, x: Tensor, history: History) -> Tensor:
        """(B, T, H, W, C) -> (B, 2T, H, W, C)."""
        assert self.time is not None
        past = history.past(self)
        whole = torch.cat([x.new_zeros(x.shape[0], 2, *x.shape[2:]) if past is None else past, x], dim=1)
        history.keep(self, x, 2)
        pairs = self.time(torch.cat([whole[:, :-2], whole[:, 1:-1], x], dim=-1))
        return pairs.unflatten(-1, (2, -1)).movedim(4, 2).flatten(1, 2)


class Level(nn.Module):
    """Blocks of one width, then `resize` if there is a next level; `shortcut` runs beside all of it."""

    def __init__(self, inputs: int, outputs: int, blocks: int, resize: Shrink | Grow | None, shortcut: bool) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.blocks = nn.ModuleList(Block(a, b) for a, b in pairwise(widths))
        self.resize = resize
        self.shortcut = shortcut
        self.outputs = outputs

    def forward(self, x: Tensor, history: History) -> Tensor:
        h = x
        for block in self.blocks:
            h = block(h, history)
        return self._resized(h, x if self.shortcut else None, history)

    def grown(self, pieces: Iterator[Tensor], history: History) -> Iterator[Tensor]:
        """What `forward` makes of a stream, in pieces along time: the larger frames of a piece are made when they are
        asked for. What went in is given up as soon as it is used."""
        for h in pieces:
            x = h if self.shortcut else None
            for block in self.blocks:
                h = block(h, history)
            step = _frames(h, self.resize.growth * history.scale) if isinstance(self.resize, Grow) else h.shape[1]
            for first in range(0, h.shape[1], step):
                part = slice(first, first + step)
                beside = None if x is None else x[:, part]
                yield from _in_pieces(self._resized(h[:, part], beside, history), history.scale)
            del h, x  # before the next piece is made

    def _resized(self, h: Tensor, x: Tensor | None, history: History) -> Tensor:
        """The rest of a level behind its blocks; `x`, its input, where there is a shortcut."""
        if self.resize is not None:
            h = self.resize(h, history)
        return h if x is None else h + self._beside(x, history.started)

    def _beside(self, x: Tensor, started: bool) -> Tensor:
        if self.resize is None:
            return x
        time = 1 if self.resize.time is None else 2
        resample = average if isinstance(self.resize, Shrink) else repeat
        return resample(x, self.outputs, time, started)


def average(x: Tensor, outputs: int, time: int, started: bool) -> Tensor:
    """Means over neighbours of the row (channel, time, y, x): (B, T, H, W, C) -> (B, T/time, H/2, W/2, outputs).

    A video's first frame is paired with zeros before it.
    """
    if time == 2 and not started:
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))
    b, t, h, w, c = x.shape
    x = x.reshape(b, t // time, time, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(b, t // time, h // 2, w // 2, outputs, -1).mean(dim=-1)


def repeat(x: Tensor, outputs: int, time: int, started: bool) -> Tensor:
    """Repeats channels, then reads the row as (outputs, time, y, x): -> (B, T*time, 2H, 2W, outputs).

    Of the frames that a video's first frame becomes, only the last is kept.
    """
    b, t, h, w, c = x.shape
    x = x.repeat_interleave(4 * time * outputs // c, dim=-1).reshape(b, t, h, w, outputs, time, 2, 2)
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, t * time, 2 * h, 2 * w, outputs)
    return x if started else x[:, time - 1 :]


class Encoder(nn.Module):
    """Folded pixels (B, T, H, W, 3*patch*patch) -> mean and log-variance (B, T', H', W', 2*latent_channels)."""

    def __init__(self, config: CausalVAEConfig) -> None:
        super().__init__()
        widths = [config.encoder_width * m for m in (1, *config.multipliers)]
        self.stem = CausalConv(3 * config.patch**2, widths[0])
        self.levels = nn.ModuleList()
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            shrink = Shrink(outputs, config.halve_time[i]) if i < len(config.halve_time) else None
            self.levels.append(Level(inputs, outputs, config.blocks, shrink, config.shortcuts))
        self.middle = Middle(widths[-1])
        self.norm = ChannelNorm(widths[-1])
        self.head = CausalConv(widths[-1], 2 * config.latent_channels)
        self.posterior = nn.Linear(2 * config.latent_channels, 2 * config.latent_channels)

    def local(self, x: Tensor, history: History) -> Tensor:
        """Up to the coarsest level: (B, T', H', W', width)."""
        h = self.stem(x, history)
        for level in self.levels:
            h = level(h, history)
        return h

    def whole(self, h: Tensor, history: History) -> Tensor:
        """The rest, which sees whole frames."""
        return self.posterior(self.head(self.norm.silu(self.middle(h, history)), history))


class Decoder(nn.Module):
    """Latents (B, T', H', W', latent_channels) -> folded pixels (B, T, H, W, 3*patch*patch)."""

    def __init__(self, config: CausalVAEConfig) -> None:
        super().__init__()
        widths = [config.decoder_width * m for m in reversed(config.multipliers)]
        self.latent = nn.Linear(config.latent_channels, config.latent_channels)
        self.stem = CausalConv(config.latent_channels, widths[0])
        self.middle = Middle(widths[0])
        self.levels = nn.ModuleList()
        inputs, times = widths[0], config.halve_time[::-1]
        for i, outputs in enumerate(widths):
            grown = outputs if config.shortcuts else outputs // 2
            grow = Grow(outputs, grown, times[i]) if i < len(times) else None
            shortcut = config.shortcuts and grow is not None
            self.levels.append(Level(inputs, outputs, config.blocks + 1, grow, shortcut))
            inputs = grown
        self.norm = ChannelNorm(widths[-1])
        self.head = CausalConv(widths[-1], 3 * config.patch**2)

    def whole(self, z: Tensor, history: History) -> Tensor:
        """The coarsest level's middle, which sees whole frames: (B, T', H', W', width)."""
        return self.middle(self.stem(self.latent(z), history), history)

    def local(self, h: Tensor, history: History) -> Tensor:
        """All levels. A piece of frames is finished before the next is made: a frame is largest at the end, and a chunk
        that fills the first level would fill memory at the last."""
        pieces = _in_pieces(h, history.scale)
        for level in self.levels:
            assert isinstance(level, Level)
            pieces = level.grown(pieces, history)
        made = []
        for piece in pieces:
            made.append(self.head(self.norm.silu(piece, spent=True), history))
            history.started = True  # a stream's first frame is in its first piece
            del piece
        return torch.cat(made, dim=1) if len(made) > 1 else made[0]


def _in_pieces(x: Tensor, scale: float) -> Iterator[Tensor]:
    """(B, T, H, W, C) in as many frames as a level takes at a time. Nothing here keeps a piece that was given out."""
    pieces = list(x.split(_frames(x, scale), dim=1))
    del x
    while pieces:
        yield pieces.pop(0)


def _frames(h: Tensor, growth: float) -> int:
    """How many frames of (B, T, H, W, C), which grow so much, are worked on together: all where they are kept for a
    backward."""
    frame = growth * h[:, :1].numel() * h.element_size()
    return h.shape[1] if torch.is_grad_enabled() else max(1, int(PIECE_BYTES // frame))


class CausalVAE(VideoCodec):
    """Wan's video autoencoder; see the module's docstring for its layout and `VideoCodec` for its shapes."""

    def __init__(self, config: CausalVAEConfig = WAN_2_1) -> None:
        super().__init__()
        self.config: CausalVAEConfig = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """All initialisation.

        | weights                       | distribution                       |
        |-------------------------------|------------------------------------|
        | convolutions, matrices        | N(0, 1/fan_in)                     |
        | second convolution of a block | zero: a block starts as identity   |
        | biases, gains                 | 0, 1                               |
        """
        for name, parameter in self.named_parameters():
            if name.endswith("gain"):
                nn.init.ones_(parameter)
            elif parameter.ndim == 1 or name.endswith("conv2.weight"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)

    @property
    def encode_reach(self) -> int:
        """Latent cells that a state before the encoder's middle sees on every side: in folded pixels one for the stem,
        and at level i 2^i for each convolution and for the change of size."""
        levels, c = len(self.config.multipliers), self.config
        pixels = 1 + sum(2 * c.blocks * 2**i for i in range(levels)) + sum(2**i for i in range(levels - 1))
        return math.ceil(pixels * c.patch / c.spatial)

    @property
    def decode_reach(self) -> int:
        """Latent cells that a pixel sees on every side behind the decoder's middle: at level i, counted from the
        coarsest, 2^-i for each convolution, half of that for the doubling, and the head's."""
        levels, blocks = len(self.config.multipliers), self.config.blocks + 1
        cells = sum(2 * blocks / 2**i for i in range(levels)) + sum(0.5 / 2**i for i in range(levels - 1))
        return math.ceil(cells + 2.0 ** (1 - levels))

    def encode_local(self, x: Tensor, history: History) -> Tensor:
        """Pixels -> states of the coarsest level."""
        return self.encoder.local(fold(x, self.config.patch), history).movedim(-1, 1)

    def encode_whole(self, states: Tensor, history: History) -> Posterior:
        """The middle, which attends to whole frames, and the posterior."""
        mean, logvar = self.encoder.whole(states.movedim(1, -1), history).movedim(-1, 1).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(*LOGVAR_RANGE))

    def decode_whole(self, z: Tensor, history: History) -> Tensor:
        """The middle, which attends to whole frames."""
        return self.decoder.whole(z.movedim(1, -1), history).movedim(-1, 1)

    def decode_local(self, states: Tensor, history: History) -> Tensor:
        """States of the coarsest level -> `temporal` frames each, only one for the stream's first."""
        x = self.decoder.local(states.movedim(1, -1), history)
        return unfold(x, self.config.patch).clamp(-1.0, 1.0)


def fold(x: Tensor, patch: int) -> Tensor:
    """Pixels (B, 3, T, H*patch, W*patch) -> (B, T, H, W, 3*patch*patch), a patch column by column."""
    b, c, t, h, w = x.shape
    x = x.reshape(b, c, t, h // patch, patch, w // patch, patch).permute(0, 2, 3, 5, 1, 6, 4)
    return x.reshape(b, t, h // patch, w // patch, c * patch**2)


def unfold(x: Tensor, patch: int) -> Tensor:
    """Inverse of `fold`."""
    b, t, h, w, d = x.shape
    c = d // patch**2
    x = x.reshape(b, t, h, w, c, patch, patch).permute(0, 4, 1, 2, 6, 3, 5)
    return x.reshape(b, c, t, h * patch, w * patch).contiguous()
