"""The causal video autoencoder: pixels to Gaussian latents, 4x shorter in time and 8x smaller per side, and back.

Four frames form one *group*; the first frame is repeated three times in front, so that an image (one frame) is one
whole group and every latent frame covers exactly one group. A group is folded into channels and the network is
(2+1)-D: 3x3 convolutions inside a group and a causal two-tap mix with the group before. That tap is the only thing
that sees time, so its last input is the whole state of a stream (`History`); one-shot coding is a stream of one chunk.

A linear 4x8x8 patch code (PCA, `init_from_pca`) runs beside the network, whose heads start at zero: before its first
step the model already is the best linear codec of its data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldline.errors import UserError
from worldline.vae.codec import History, Posterior, VideoCodec

LOGVAR_RANGE = (-14.0, 2.0)  # standard deviations from 1e-3 to e


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the autoencoder. Widths and block counts are listed coarse to fine: H/8, H/4, H/2."""

    latent_channels: int = 16
    temporal: int = 4
    spatial: int = 8
    widths: tuple[int, int, int] = (192, 128, 64)
    encoder_blocks: tuple[int, int] = (2, 1)  # at H/8, H/4
    decoder_blocks: tuple[int, int, int] = (2, 4, 1)  # at H/8, H/4, H/2

    def __post_init__(self) -> None:
        if self.spatial % 4 or self.spatial < 4:
            raise UserError(f"spatial={self.spatial} must be a multiple of 4; the nearest valid value is 8")
        for name in ("widths", "encoder_blocks", "decoder_blocks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON gives lists

    @property
    def compression(self) -> float:
        """Values of a long clip over values of its latents."""
        return self.patch_dim / self.latent_channels

    @property
    def patch_dim(self) -> int:
        """Values in the pixels that one latent position covers (3 * 4 * 8 * 8 = 768)."""
        return 3 * self.temporal * self.spatial**2


TINY = VAEConfig()
# Compression in time and along each side; numbers of a clip over numbers of its latents: 48, 64 and 192.
COMPRESSIONS = {
    "4x8x8": TINY,
    "4x16x16": VAEConfig(latent_channels=48, spatial=16, widths=(384, 256, 128)),
    "8x32x32": VAEConfig(latent_channels=128, temporal=8, spatial=32, widths=(768, 512, 256)),
}
EXACT_PCA = 4096  # values of a patch up to which all components are found
MICRO = VAEConfig(widths=(32, 32, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1, 1))  # for tests


class TemporalMix(nn.Module):
    """Causal two-tap convolution over groups, as one matrix product on (this group, the one before)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, history: History) -> Tensor:
        past = history.past(self)  # (B, 1, H, W, C)
        shifted = torch.cat([torch.zeros_like(x[:, :1]) if past is None else past, x[:, :-1]], dim=1)  # (B, T, H, W, C)
        history.keep(self, x, 1)
        return self.linear(torch.cat([x, shifted], dim=-1))


class Block(nn.Module):
    """Residual block: channel norm, 3x3 convolution inside the group, SiLU, causal mix.

    The norm is per position over channels: one over time would make a chunk differ from the whole.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.mix = TemporalMix(width)

    def forward(self, x: Tensor, history: History) -> Tensor:
        h = self.norm(x).flatten(0, 1)  # (B*T, H, W, C)
        h = self.conv(h.permute(0, 3, 1, 2))  # (B*T, C, H, W), channels_last in memory
        h = F.silu(h.permute(0, 2, 3, 1)).unflatten(0, x.shape[:2])  # (B, T, H, W, C)
        return x + self.mix(h, history)


def fold(x: Tensor, time: int, space: int) -> Tensor:
    """Pixels (B, C, T*time, H*space, W*space) -> (B, T, H, W, time*space*space*C)."""
    b, c, t, h, w = x.shape
    x = x.reshape(b, c, t // time, time, h // space, space, w // space, space)
    x = x.permute(0, 2, 4, 6, 3, 5, 7, 1)  # B T H W (time, sy, sx, C)
    return x.reshape(b, t // time, h // space, w // space, time * space * space * c)


def unfold(x: Tensor, time: int, space: int) -> Tensor:
    """Inverse of `fold`."""
    b, t, h, w, d = x.shape
    c = d // (time * space * space)
    x = x.reshape(b, t, h, w, time, space, space, c)
    x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)  # B C T time H sy W sx
    return x.reshape(b, c, t * time, h * space, w * space)


def space_to_depth(x: Tensor, factor: int) -> Tensor:
    """(B, T, H*f, W*f, C) -> (B, T, H, W, f*f*C)."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h // factor, factor, w // factor, factor, c).permute(0, 1, 2, 4, 3, 5, 6)
    return x.reshape(b, t, h // factor, w // factor, factor * factor * c)


def depth_to_space(x: Tensor, factor: int) -> Tensor:
    """Inverse of `space_to_depth`."""
    b, t, h, w, d = x.shape
    x = x.reshape(b, t, h, w, factor, factor, d // factor**2).permute(0, 1, 2, 4, 3, 5, 6)
    return x.reshape(b, t, h * factor, w * factor, d // factor**2)


class Encoder(nn.Module):
    """Groups of pixels (B, 3, 4T, H, W) -> (B, T, H/8, W/8, 2 * latent_channels)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        coarse, middle, _ = config.widths
        self.time, self.fine = config.temporal, config.spatial // 2
        self.stem = nn.Linear(3 * self.time * self.fine**2, middle)
        self.fine_blocks = nn.ModuleList(Block(middle) for _ in range(config.encoder_blocks[1]))
        self.down = nn.Linear(4 * middle, coarse)
        self.coarse_blocks = nn.ModuleList(Block(coarse) for _ in range(config.encoder_blocks[0]))
        self.norm = nn.LayerNorm(coarse)
        self.head = nn.Linear(coarse, 2 * config.latent_channels)
        self.pca = nn.Linear(config.patch_dim, config.latent_channels)

    def forward(self, x: Tensor, history: History) -> Tensor:
        x = fold(x, self.time, self.fine)  # (B, T, H/4, W/4, 192)
        linear = self.pca(space_to_depth(x, 2))  # (B, T, H/8, W/8, 16)
        h = self.stem(x)
        for block in self.fine_blocks:
            h = block(h, history)
        h = self.down(space_to_depth(h, 2))
        for block in self.coarse_blocks:
            h = block(h, history)
        mean, logvar = self.head(self.norm(h)).chunk(2, dim=-1)
        return torch.cat([mean + linear, logvar], dim=-1)


class Decoder(nn.Module):
    """Latents (B, T, H/8, W/8, latent_channels) -> pixels (B, 3, 4T, H, W); works mostly at H/4, refines at H/2."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        coarse, middle, fine = config.widths
        self.time, self.fine = config.temporal, config.spatial // 4
        self.stem = nn.Linear(config.latent_channels, coarse)
        self.coarse_blocks = nn.ModuleList(Block(coarse) for _ in range(config.decoder_blocks[0]))
        self.up_middle = nn.Linear(coarse, 4 * middle)
        self.middle_blocks = nn.ModuleList(Block(middle) for _ in range(config.decoder_blocks[1]))
        self.up_fine = nn.Linear(middle, 4 * fine)
        self.fine_blocks = nn.ModuleList(Block(fine) for _ in range(config.decoder_blocks[2]))
        self.norm = nn.LayerNorm(fine)
        self.head = nn.Linear(fine, 3 * self.time * self.fine**2)
        self.pca = nn.Linear(config.latent_channels, config.patch_dim)

    def forward(self, z: Tensor, history: History) -> Tensor:
        h = self.stem(z)
        for block in self.coarse_blocks:
            h = block(h, history)
        h = depth_to_space(self.up_middle(h), 2)  # H/4
        for block in self.middle_blocks:
            h = block(h, history)
        h = depth_to_space(self.up_fine(h), 2)  # H/2
        for block in self.fine_blocks:
            h = block(h, history)
        linear = depth_to_space(depth_to_space(self.pca(z), 2), 2)  # (B, T, H/2, W/2, 48)
        return unfold(self.head(self.norm(h)) + linear, self.time, self.fine)


class VideoVAE(VideoCodec):
    """Causal video autoencoder with a diagonal Gaussian latent; see the module's docstring for its layout."""

    def __init__(self, config: VAEConfig = TINY) -> None:
        super().__init__()
        self.config: VAEConfig = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """All initialisation.

        | weights            | distribution                                                    |
        |--------------------|-----------------------------------------------------------------|
        | stems, ups, downs  | N(0, 1/fan_in)                                                  |
        | block convolutions | N(0, 2/fan_in) (He et al. 2015)                                 |
        | block mixes        | N(0, 1/(2 fan_in)), tap of the group before scaled by 1/2       |
        | heads              | zero; log-variance bias -6                                      |
        | PCA maps           | orthogonal rows until `init_from_pca`                           |
        | biases, norms      | 0, 1                                                            |
        """
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                fan_in = module.weight[0].numel()
                gain = 2.0 if isinstance(module, nn.Conv2d) else 1.0
                module.weight.normal_(std=math.sqrt(gain / fan_in))
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        for module in self.modules():
            if isinstance(module, TemporalMix):
                module.linear.weight.mul_(math.sqrt(0.5))
                module.linear.weight[:, module.linear.weight.shape[1] // 2 :].mul_(0.5)
        for head in (self.encoder.head, self.decoder.head):
            head.weight.zero_()
        self.encoder.head.bias[self.config.latent_channels :] = -6.0
        nn.init.orthogonal_(self.encoder.pca.weight)
        self.decoder.pca.weight.copy_(self.encoder.pca.weight.T.index_select(0, self._decoder_order()))
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def init_from_pca(self, clips: Tensor) -> float:
        """Set the linear path to the principal components of `clips` (B, 3, T, H, W) in [-1, 1]; return its PSNR, dB.

        Latent channels get unit variance, in falling order of the variance they explain. The posterior's noise
        starts equal in *pixels* for every channel (reverse water-filling, Cover & Thomas 2006, section 10.3.3):
        2 % of the weakest channel's variance. Raises UserError for fewer patches than channels.
        """
        channels = self.config.latent_channels
        x = self._lead(self._padded(clips.float()))
        x = fold(x, self.config.temporal, self.config.spatial // 2)
        patches = space_to_depth(x, 2).flatten(0, 3)  # (N, 768)
        mean = patches.mean(dim=0)
        centred = (patches - mean).double()
        if len(centred) < channels:
            raise UserError(f"clips: {len(centred)} patches cannot tell {channels} channels apart; give more")
        if centred.shape[1] <= EXACT_PCA:
            variance, axes = torch.linalg.eigh(centred.T @ centred / len(centred))  # ascending
            variance, axes = variance.flip(0), axes.flip(1)
        else:  # of a wide patch only what is kept is found (Halko et al. 2011, algorithm 5.1)
            _, lengths, axes = torch.svd_lowrank(centred, min(channels + 16, *centred.shape), niter=4)
            variance = lengths.square() / len(centred)
        kept, basis = variance[:channels].clamp(min=1e-12), axes[:, :channels]  # (C,), (768, C)
        scale = kept.sqrt()
        encoder, decoder = self.encoder, self.decoder
        encoder.pca.weight.copy_((basis / scale).T)
        encoder.pca.bias.copy_(-(mean.double() @ basis) / scale)
        order = self._decoder_order()
        decoder.pca.weight.copy_((basis * scale)[order])
        decoder.pca.bias.copy_(mean[order])
        encoder.head.bias[channels:] = torch.log(0.02 * kept[-1] / kept).to(encoder.head.bias)
        left = centred.square().sum() / len(centred) - kept.sum()
        residual = float(left / self.config.patch_dim)  # mean squared error per pixel
        return 10.0 * math.log10(4.0 / max(residual, 1e-12))

    @property
    def encode_reach(self) -> int:
        """Latent cells that a latent sees on every side: one for each convolution at H/8, half for one at H/4."""
        coarse, fine = self.config.encoder_blocks
        return math.ceil(coarse + fine / 2)

    @property
    def decode_reach(self) -> int:
        """Latent cells that a pixel sees on every side."""
        coarse, middle, fine = self.config.decoder_blocks
        return math.ceil(coarse + middle / 2 + fine / 4)

    def encode_local(self, x: Tensor, history: History) -> Tensor:
        """Pixels (B, 3, T, H, W) -> mean and log-variance (B, 2C, T', H', W')."""
        return self.encoder(x if history.started else self._lead(x), history).movedim(-1, 1)

    def encode_whole(self, states: Tensor, history: History) -> Posterior:
        """The two halves, apart."""
        mean, logvar = states.chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(*LOGVAR_RANGE))

    def decode_whole(self, z: Tensor, history: History) -> Tensor:
        """Nothing needs whole frames."""
        return z

    def decode_local(self, states: Tensor, history: History) -> Tensor:
        """Latents -> four frames each, only one for the stream's first."""
        x = self.decoder(states.movedim(1, -1), history)
        return x if history.started else x[:, :, self.config.temporal - 1 :]

    def _decoder_order(self) -> Tensor:
        """Index into the encoder's order of a patch (folds of 4, 2) for each value of the decoder's (2, 2, 2)."""
        # Numbers even where the module is made without any.
        place = torch.arange(float(self.config.patch_dim), device="cpu").reshape(1, 1, 1, 1, -1)
        patch = unfold(depth_to_space(place, 2), self.config.temporal, self.config.spatial // 2)  # (1, 3, 4, 8, 8)
        fine = fold(patch, self.config.temporal, self.config.spatial // 4)
        return space_to_depth(space_to_depth(fine, 2), 2).flatten().long()

    def _lead(self, x: Tensor) -> Tensor:
        """Repeat the first frame so that it fills a group of its own."""
        return torch.cat([x[:, :, :1].expand(-1, -1, self.config.temporal - 1, -1, -1), x], dim=2)
