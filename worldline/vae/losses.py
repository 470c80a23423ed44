"""What the autoencoder is trained to minimise: squared and absolute error, edges at several scales, and a small KL."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from worldline.vae.model import VideoVAE


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms; every term is a mean per element, pixels in [-1, 1].

    Start with squared error alone (absolute error from the start stalls); add `l1` and `edge` once the PSNR flattens.
    `noise` is no term: it is the largest standard deviation of noise added to a clip's latents (each clip draws its own
    from 0 to it), so that the decoder mends what a diffusion model gets slightly wrong (Yang et al. 2025, l-DeTok).
    """

    l2: float = 1.0
    l1: float = 0.0
    edge: float = 0.0
    edge_scales: int = 2
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


def vae_loss(
    vae: VideoVAE, pixels: Tensor, weights: LossWeights = MSE_FIRST, generator: torch.Generator | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Encode, sample, decode `pixels` (B, 3, T, H, W) in [-1, 1]; return the weighted loss and its detached terms."""
    posterior = vae.encode(pixels)
    latents = posterior.sample(generator)
    if weights.noise:
        spread = torch.empty_like(latents[:, :1, :1, :1, :1]).uniform_(0.0, weights.noise, generator=generator)
        latents = latents + spread * torch.empty_like(latents).normal_(generator=generator)
    output = vae.decode(latents, tuple(pixels.shape[2:]))  # type: ignore[arg-type]
    error = (output - pixels).float()
    terms = {"l2": error.square().mean(), "kl": posterior.kl()}
    loss = weights.l2 * terms["l2"] + weights.kl * terms["kl"]
    if weights.l1:
        terms["l1"] = error.abs().mean()
        loss = loss + weights.l1 * terms["l1"]
    if weights.edge:
        terms["edge"] = edge_loss(output, pixels, weights.edge_scales)
        loss = loss + weights.edge * terms["edge"]
    return loss, {name: value.detach() for name, value in terms.items()}
