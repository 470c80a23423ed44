"""An image autoencoder (Stable Diffusion's; Rombach et al. 2022) that learns to decode video.

Frames are encoded one by one. Behind every level of the decoder stands one layer that looks at the two frames before
(as in Blattmann et al. 2023, section 3.1.2): what differs from them, in features, goes through a 3x3 convolution and a
matrix that begins at zero. A frame that has none before it, or none that differs, is left as it is: an image, a
still video and a first frame are decoded by the image autoencoder alone, before training and after.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldline.errors import UserError
from worldline.vae.codec import History, Posterior, VideoCodec

EPS = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class ImageVAEConfig:
    """Sizes of the autoencoder; levels are listed fine to coarse, and the decoder runs them backwards."""

    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2  # per level of the encoder; the decoder has one more
    groups: int = 32  # of the norms

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))  # JSON gives lists
        if not self.widths or any(width % self.groups for width in self.widths):
            raise UserError(f"groups={self.groups} does not divide every width of {self.widths}")

    @property
    def temporal(self) -> int:
        """Frames per latent frame."""
        return 1

    @property
    def spatial(self) -> int:
        """Pixels per latent along each side."""
        return int(2 ** (len(self.widths) - 1))


class Block(nn.Module):
    """Two convolutions, each behind norm and SiLU, beside the identity or a matrix. (N, C, H, W)."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, EPS)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs, EPS)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.match = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(h))) + self.match(x)  # type: ignore[no-any-return]


class FrameAttention(nn.Module):
    """One head of self-attention inside each frame. (N, C, H, W)."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, EPS)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(x).flatten(2).transpose(1, 2)  # (N, H*W, C)
        mixed = F.scaled_dot_product_attention(*(layer(rows)[:, None] for layer in (self.q, self.k, self.v)))[:, 0]
        return x + self.out(mixed).transpose(1, 2).unflatten(2, x.shape[2:])


class TimeLayer(nn.Module):
    """What a frame takes from the two before it; nothing where they are alike. (B, T, C, H, W)."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, EPS)
        self.conv = nn.Conv2d(2 * width, width, 3, padding=1, bias=False)
        self.out = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, x: Tensor, history: History) -> Tensor:
        h = self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        first = h[:, :1]  # of a stream: it stands before itself
        past = history.past(self)
        whole = torch.cat([first, first, h] if past is None else [past, h], dim=1)  # (B, 2 + T, C, H, W)
        history.keep(self, whole[:, 1:], 2)
        changes = torch.cat([whole[:, :-2] - h, whole[:, 1:-1] - h], dim=2).flatten(0, 1)
        return x + self.out(F.silu(self.conv(changes))).unflatten(0, x.shape[:2])


class Level(nn.Module):
    """Blocks of one width, and the change of size behind them if there is a next level."""

    def __init__(self, inputs: int, outputs: int, blocks: int, groups: int, resize: nn.Conv2d | None) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.blocks = nn.ModuleList(Block(a, b, groups) for a, b in pairwise(widths))
        self.resize = resize


class Middle(nn.Module):
    """The coarsest level: block, attention, block."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.before = Block(width, width, groups)
        self.attention = FrameAttention(width, groups)
        self.after = Block(width, width, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.attention(self.before(x)))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Pixels (N, 3, H, W) -> mean and log-variance (N, 2 * latent_channels, H', W')."""

    def __init__(self, config: ImageVAEConfig) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, config.widths[0], 3, padding=1)
        self.levels = nn.ModuleList()
        inputs, last = config.widths[0], len(config.widths) - 1
        for number, outputs in enumerate(config.widths):
            shrink = nn.Conv2d(outputs, outputs, 3, stride=2) if number < last else None
            self.levels.append(Level(inputs, outputs, config.blocks, config.groups, shrink))
            inputs = outputs
        self.middle = Middle(inputs, config.groups)
        self.norm = nn.GroupNorm(config.groups, inputs, EPS)
        self.head = nn.Conv2d(inputs, 2 * config.latent_channels, 3, padding=1)
        self.posterior = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for level in self.levels:
            assert isinstance(level, Level)
            for block in level.blocks:
                h = block(h)
            if level.resize is not None:
                h = level.resize(F.pad(h, (0, 1, 0, 1)))  # zeros at the right and at the bottom only
        return self.posterior(self.head(F.silu(self.norm(self.middle(h)))))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Latents (B, T, latent_channels, H', W') -> pixels (B, T, 3, H, W)."""

    def __init__(self, config: ImageVAEConfig) -> None:
        super().__init__()
        inputs = config.widths[-1]
        self.latent = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.stem = nn.Conv2d(config.latent_channels, inputs, 3, padding=1)
        self.middle = Middle(inputs, config.groups)
        self.levels = nn.ModuleList()
        last = len(config.widths) - 1
        for number, outputs in enumerate(reversed(config.widths)):
            grow = nn.Conv2d(outputs, outputs, 3, padding=1) if number < last else None
            self.levels.append(Level(inputs, outputs, config.blocks + 1, config.groups, grow))
            inputs = outputs
        self.time = nn.ModuleList(TimeLayer(width, config.groups) for width in reversed(config.widths))
        self.norm = nn.GroupNorm(config.groups, inputs, EPS)
        self.head = nn.Conv2d(inputs, 3, 3, padding=1)

    def forward(self, z: Tensor, history: History) -> Tensor:
        clip = z.shape[:2]
        h = self.middle(self.stem(self.latent(_rows(z))))
        for level, time in zip(self.levels, self.time, strict=True):
            assert isinstance(level, Level)
            for block in level.blocks:
                h = block(h)
            h = time(h.unflatten(0, clip), history).flatten(0, 1)
            if level.resize is not None:
                h = level.resize(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.head(F.silu(self.norm(h))).unflatten(0, clip)  # type: ignore[no-any-return]


def _rows(x: Tensor) -> Tensor:
    """(B, T, C, H, W) -> (B * T, C, H, W), channels before pixels in memory.

    Where channels stood last, the backward pass through this network ended the process (torch 2.13, CPU).
    """
    return x.flatten(0, 1).contiguous()


class ImageVAE(VideoCodec):
    """Stable Diffusion's autoencoder with eyes for time; see the module's docstring, and `VideoCodec` for shapes."""

    def __init__(self, config: ImageVAEConfig | None = None) -> None:
        super().__init__()
        self.config: ImageVAEConfig = config or ImageVAEConfig()
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        self.init_time()

    @torch.no_grad()
    def init_time(self) -> None:
        """The layers in time begin as the identity: norm 1 and 0, convolution N(0, 1/fan_in), matrix 0."""
        for layer in self.decoder.time:
            assert isinstance(layer, TimeLayer)
            nn.init.normal_(layer.conv.weight, std=layer.conv.weight[0].numel() ** -0.5)
            nn.init.zeros_(layer.out.weight)

    def train_time_only(self) -> None:
        """Freezes all that an image needs."""
        self.requires_grad_(False)
        self.decoder.time.requires_grad_(True)

    def encode_local(self, x: Tensor, history: History) -> Tensor:
        """Nothing is local: norms and attention see whole frames."""
        return x

    def encode_whole(self, states: Tensor, history: History) -> Posterior:
        """Every frame for itself."""
        frames = states.transpose(1, 2)  # (B, T, 3, H, W)
        coded = self.encoder(_rows(frames)).unflatten(0, frames.shape[:2]).transpose(1, 2)
        mean, logvar = coded.chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(*LOGVAR_RANGE))

    def decode_whole(self, z: Tensor, history: History) -> Tensor:
        """Frames in the light of the two before each."""
        return self.decoder(z.transpose(1, 2), history).transpose(1, 2)  # type: ignore[no-any-return]

    def decode_local(self, states: Tensor, history: History) -> Tensor:
        """Nothing is local."""
        return states
