"""What the autoencoder is trained to minimise: squared and absolute error, edges, structure, perception and KL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worldline.vae.codec import VideoCodec


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms; every term is a mean per element, pixels in [-1, 1].

    Start with squared error alone (absolute error from the start stalls); add `l1`, `edge` and `structure`, or
    `perceptual` where its weights are at hand, once the PSNR flattens.
    `noise` is no term: it is the largest standard deviation of noise added to a clip's latents (each clip draws its own
    from 0 to it), so that the decoder mends what a diffusion model gets slightly wrong (Yang et al. 2025, l-DeTok).
    """

    l2: float = 1.0
    l1: float = 0.0
    edge: float = 0.0
    edge_scales: int = 2
    structure: float = 0.0
    perceptual: float = 0.0
    kl: float = 1e-6
    noise: float = 0.0


MSE_FIRST = LossWeights()


def edge_loss(output: Tensor, target: Tensor, scales: int = 2) -> Tensor:
    """Squared error of horizontal and vertical differences at `scales` dyadic scales; both (B, 3, T, H, W).

    The pixel-difference term of Mathieu, Couprie & LeCun 2016 (eq. 6, exponent 2), averaged over a pyramid: an edge one
    pixel too soft costs far more here than in plain squared error, a smooth error of brightness nothing.
    """
    error = (output - target).flatten(1, 2)  # (B, 3T, H, W)
    total = error.new_zeros((), dtype=torch.float32)
    for scale in range(scales):
        if scale:
            error = F.avg_pool2d(error, 2)
        if min(error.shape[-2:]) < 2:
            break
        down, across = error[..., 1:, :] - error[..., :-1, :], error[..., 1:] - error[..., :-1]
        total = total + down.float().square().mean() + across.float().square().mean()
    return total / scales


# Of the scales of MS-SSIM, finest first (Wang, Simoncelli & Bovik 2003, section 3.2).
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SPREAD = 11, 1.5  # of the Gaussian under which statistics are taken, in pixels


def structure_loss(output: Tensor, target: Tensor) -> Tensor:
    """1 - MS-SSIM, mean over frames and channels; both (B, 3, T, H, W) in [-1, 1].

    Of small pictures as many scales are taken as hold a window, their weights made to sum to one; a picture smaller
    than a window has a smaller one. Contrast and structure count at every scale, luminance at the coarsest (eq. 7).
    """
    x, y = (clip.float().transpose(1, 2).flatten(0, 2)[:, None] for clip in (output, target))  # (N, 1, H, W)
    side = min(x.shape[-2:])
    scales = max(1, sum(side >> scale >= WINDOW for scale in range(len(SCALES))))
    weights = [weight / sum(SCALES[:scales]) for weight in SCALES[:scales]]
    kernel = _gaussian(min(WINDOW, side), x)
    total = x.new_ones(len(x))
    for scale, weight in enumerate(weights):
        if scale:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        luminance, contrast = _similarity(x, y, kernel)
        score = luminance * contrast if scale == scales - 1 else contrast
        total = total * score.mean((1, 2, 3)).clamp_min(1e-6) ** weight
    return 1.0 - total.mean()


def _gaussian(size: int, like: Tensor) -> Tensor:
    """(size,), of sum one."""
    x = torch.arange(size, device=like.device, dtype=like.dtype) - (size - 1) / 2
    weights = torch.exp(-0.5 * (x / SPREAD) ** 2)
    return weights / weights.sum()


def _similarity(x: Tensor, y: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast with structure, of (N, 1, H, W) in [-1, 1] (Wang et al. 2004, eq. 6 and 13)."""
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    moments = torch.cat([x, y, x * x, y * y, x * y], dim=1)  # (N, 5, H, W)
    taps = kernel.expand(5, 1, -1)
    moments = F.conv2d(F.conv2d(moments, taps[..., None], groups=5), taps[:, :, None], groups=5)
    mean_x, mean_y, xx, yy, xy = moments.split(1, dim=1)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    contrast = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
    return luminance, contrast


Distance = Callable[[Tensor, Tensor], Tensor]  # of frames (N, 3, H, W): (N,)


class Reconstruction(NamedTuple):
    """What came of a batch: pixels (B, 3, T, H, W), the weighted loss, and its detached terms."""

    pixels: Tensor
    loss: Tensor
    terms: dict[str, Tensor]


def reconstruct(
    vae: VideoCodec,
    pixels: Tensor,
    weights: LossWeights = MSE_FIRST,
    generator: torch.Generator | None = None,
    distance: Distance | None = None,
) -> Reconstruction:
    """Encode, sample, decode `pixels` (B, 3, T, H, W) in [-1, 1], and weigh what is wrong.

    `distance` is the perceptual one, needed where `weights.perceptual` is not zero.
    """
    posterior = vae.encode(pixels)
    latents = posterior.sample(generator)
    if weights.noise:
        spread = torch.empty_like(latents[:, :1, :1, :1, :1]).uniform_(0.0, weights.noise, generator=generator)
        latents = latents + spread * torch.empty_like(latents).normal_(generator=generator)
    output = vae.decode(latents, tuple(pixels.shape[2:]))  # type: ignore[arg-type]
    error = (output - pixels).float()
    terms = {"l2": error.square().mean(), "kl": posterior.kl()}
    if weights.l1:
        terms["l1"] = error.abs().mean()
    if weights.edge:
        terms["edge"] = edge_loss(output, pixels, weights.edge_scales)
    if weights.structure:
        terms["structure"] = structure_loss(output, pixels)
    if weights.perceptual and distance is not None:
        frames = (clip.transpose(1, 2).flatten(0, 1) for clip in (output, pixels))
        terms["perceptual"] = distance(*frames).mean()
    loss = sum((getattr(weights, name) * term for name, term in terms.items()), start=error.new_zeros(()))
    return Reconstruction(output, loss, {name: value.detach() for name, value in terms.items()})
