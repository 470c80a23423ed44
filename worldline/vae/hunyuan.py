"""The autoencoder of HunyuanVideo (Kong et al. 2024, section 4.1), which Open-Sora 2.0 also uses.

Its convolutions are causal, like those of `vae/causal.py`, but repeat the edge where those have zeros, and its norms
take their statistics over the whole clip: no latent is final before the last frame is known, and none is local. A
stream therefore has one chunk and no tiles (`whole_clips`), and its memory grows with the clip; in less memory it can
only be approximated (`Cut.blended`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldline.errors import UserError
from worldline.nn.attention import Segments, attention
from worldline.nn.convolution import causal_conv, doubled_causal_conv
from worldline.vae.codec import History, Posterior, VideoCodec

EPS = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class HunyuanVAEConfig:
    """Sizes of the autoencoder; levels are listed fine to coarse. All but the last halve space, and the last two of
    those halve time; on the way back, too, the two finer of them double time."""

    latent_channels: int = 16
    widths: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2  # per level of the encoder; the decoder has one more
    groups: int = 32  # of the norms

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))  # JSON gives lists
        if len(self.widths) < 3:
            raise UserError(f"widths has {len(self.widths)} levels; halving time twice needs at least 3")
        whole = isinstance(self.groups, int) and self.groups > 0
        if not whole or any(width % self.groups for width in self.widths):
            raise UserError(f"groups={self.groups!r} does not divide every width of {self.widths}")

    @property
    def temporal(self) -> int:
        """Frames per latent frame after the first."""
        return 4

    @property
    def spatial(self) -> int:
        """Pixels per latent along each side."""
        return int(2 ** (len(self.widths) - 1))

    def stride(self, index: int) -> tuple[int, int] | None:
        """(time, space) of the change of size behind the level that runs at place `index`; None behind the last."""
        last = len(self.widths) - 1
        return None if index == last else (2 if index >= last - 2 else 1, 2)


class ClipNorm(nn.GroupNorm):
    """Group norm over the whole clip, channels last."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == torch.float32:
            return self._two_pass(x)
        return super().forward(x.movedim(-1, 1)).movedim(1, -1)

    def _two_pass(self, x: Tensor) -> Tensor:
        """Variance from deviations: the kernel's own takes E[x^2] - E[x]^2, which loses 3e-5 on 65 thousand values
        of mean 1 and more on longer clips."""
        flat = x.flatten(1, 3)  # (B, T*H*W, C)
        mean = flat.mean(dim=1, keepdim=True)
        deviation = flat - mean
        per_channel = deviation.square().mean(dim=1, keepdim=True)
        grouped = mean.unflatten(-1, (self.num_groups, -1))  # (B, 1, groups, C / groups)
        apart = grouped - grouped.mean(dim=-1, keepdim=True)  # of a channel's mean from its group's
        variance = (per_channel.view_as(apart) + apart.square()).mean(dim=-1, keepdim=True)
        scale = (variance + self.eps).rsqrt().expand_as(apart).flatten(2) * self.weight
        return torch.addcmul(self.bias + apart.flatten(2) * scale, deviation, scale).view_as(x)

    def silu(self, x: Tensor) -> Tensor:
        """SiLU of the normalised values."""
        return F.silu(self(x), inplace=not torch.is_grad_enabled())


class EdgeConv(nn.Module):
    """Causal 3x3x3 convolution over whole clips (B, T, H, W, C) that repeats the edge, the first frame included."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 3, 3, 3))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        x = bordered(x)
        past = x[:, :1].expand(-1, 2, -1, -1, -1)
        if self.stride == (1, 1):
            return causal_conv(x, past, self.weight, self.bias, margin=0)
        time, space = self.stride
        whole = torch.cat([past, x], dim=1).permute(0, 4, 1, 2, 3)
        return F.conv3d(whole, self.weight, self.bias, stride=(time, space, space)).permute(0, 2, 3, 4, 1)


def bordered(x: Tensor) -> Tensor:
    """The edge of every frame repeated once: (B, T, H, W, C) -> (B, T, H + 2, W + 2, C)."""
    images = x.flatten(0, 1).permute(0, 3, 1, 2)
    return F.pad(images, (1, 1, 1, 1), mode="replicate").permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


class Enlarge(EdgeConv):
    """Every pixel twice along both sides, every frame but the first twice if asked, then a convolution."""

    def __init__(self, width: int, time: int) -> None:
        super().__init__(width, width)
        self.time = time

    def forward(self, x: Tensor) -> Tensor:
        if self.time == 2:
            return doubled_causal_conv(bordered(x), self.weight, self.bias)
        return super().forward(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


class Block(nn.Module):
    """Two convolutions, each behind norm and SiLU, beside the identity or a matrix."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = ClipNorm(groups, inputs, EPS)
        self.conv1 = EdgeConv(inputs, outputs)
        self.norm2 = ClipNorm(groups, outputs, EPS)
        self.conv2 = EdgeConv(outputs, outputs)
        self.match = nn.Linear(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1.silu(x))
        return self.conv2(self.norm2.silu(h)) + self.match(x)


class ClipAttention(nn.Module):
    """One head of self-attention over all places of a frame and of those before it."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = ClipNorm(groups, width, EPS)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, t, h, w, c = x.shape
        normal = self.norm(x)
        q, k, v = (layer(normal).reshape(b, t * h * w, 1, c) for layer in (self.q, self.k, self.v))
        mixed = []
        for clip in range(b):
            for frame in range(t):
                begin, end = frame * h * w, (frame + 1) * h * w
                queries, keys = (Segments(torch.tensor([0, n])) for n in (h * w, end))
                mixed.append(attention(q[clip, begin:end], k[clip, :end], v[clip, :end], queries, keys))
        return x + self.out(torch.cat(mixed).view(b, t, h, w, c))


class Middle(nn.Module):
    """The coarsest level: block, attention, block."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.before = Block(width, width, groups)
        self.attention = ClipAttention(width, groups)
        self.after = Block(width, width, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.attention(self.before(x)))


class Level(nn.Module):
    """Blocks of one width, then `resize` if there is a next level."""

    def __init__(self, inputs: int, outputs: int, blocks: int, groups: int, resize: EdgeConv | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(outputs if i else inputs, outputs, groups) for i in range(blocks))
        self.resize = resize

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.resize is None else self.resize(x)


class Encoder(nn.Module):
    """Pixels (B, T, H, W, 3) -> mean and log-variance (B, T', H', W', 2*latent_channels)."""

    def __init__(self, config: HunyuanVAEConfig) -> None:
        super().__init__()
        self.stem = EdgeConv(3, config.widths[0])
        self.levels = nn.ModuleList()
        inputs = config.widths[0]
        for i, outputs in enumerate(config.widths):
            stride = config.stride(i)
            shrink = EdgeConv(outputs, outputs, stride) if stride else None
            self.levels.append(Level(inputs, outputs, config.blocks, config.groups, shrink))
            inputs = outputs
        self.middle = Middle(inputs, config.groups)
        self.norm = ClipNorm(config.groups, inputs, EPS)
        self.head = EdgeConv(inputs, 2 * config.latent_channels)
        self.posterior = nn.Linear(2 * config.latent_channels, 2 * config.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for level in self.levels:
            h = level(h)
        return self.posterior(self.head(self.norm.silu(self.middle(h))))


class Decoder(nn.Module):
    """Latents (B, T', H', W', latent_channels) -> pixels (B, T, H, W, 3)."""

    def __init__(self, config: HunyuanVAEConfig) -> None:
        super().__init__()
        inputs = config.widths[-1]
        self.latent = nn.Linear(config.latent_channels, config.latent_channels)
        self.stem = EdgeConv(config.latent_channels, inputs)
        self.middle = Middle(inputs, config.groups)
        self.levels = nn.ModuleList()
        for i, outputs in enumerate(reversed(config.widths)):
            stride = config.stride(i)
            grow = Enlarge(outputs, stride[0]) if stride else None
            self.levels.append(Level(inputs, outputs, config.blocks + 1, config.groups, grow))
            inputs = outputs
        self.norm = ClipNorm(config.groups, inputs, EPS)
        self.head = EdgeConv(inputs, 3)

    def forward(self, z: Tensor) -> Tensor:
        h = self.middle(self.stem(self.latent(z)))
        for level in self.levels:
            h = level(h)
        return self.head(self.norm.silu(h))


class HunyuanVAE(VideoCodec):
    """HunyuanVideo's autoencoder; see the module's docstring, and `VideoCodec` for shapes. Pixels are not clamped."""

    whole_clips = True

    def __init__(self, config: HunyuanVAEConfig | None = None) -> None:
        super().__init__()
        self.config: HunyuanVAEConfig = config or HunyuanVAEConfig()
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """All initialisation: kernels and matrices N(0, 1/fan_in), norms 1, biases 0."""
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            else:
                nn.init.constant_(parameter, float("norm" in name and name.endswith("weight")))

    def encode_local(self, x: Tensor, history: History) -> Tensor:
        """Nothing is local."""
        return x

    def encode_whole(self, states: Tensor, history: History) -> Posterior:
        """The whole clip, 4k+1 frames; UserError for a second chunk."""
        _check_first(history)
        mean, logvar = self.encoder(states.movedim(1, -1)).movedim(-1, 1).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(*LOGVAR_RANGE))

    def decode_whole(self, z: Tensor, history: History) -> Tensor:
        """All latents of a clip -> its 4k+1 frames; UserError for a second chunk."""
        _check_first(history)
        return self.decoder(z.movedim(1, -1)).movedim(-1, 1).contiguous()

    def decode_local(self, states: Tensor, history: History) -> Tensor:
        """Nothing is local."""
        return states


def _check_first(history: History) -> None:
    if history.started:
        raise UserError("HunyuanVideo's autoencoder normalises over the whole clip: give it as one chunk")
