"""What the autoencoder is trained to minimise: squared and absolute error, edges at several scales, a small KL."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from worldline.vae.model import Posterior


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms; every term is a mean per element, pixels in [-1, 1].

    Start with squared error alone (absolute error from the start stalls); add `l1` once the PSNR flattens.
    """

    l2: float = 1.0
    l1: float = 0.0
    edge: float = 0.5
    kl: float = 1e-6
    edge_scales: int = 3


def reconstruction_loss(
    decoded: Tensor, pixels: Tensor, posterior: Posterior, weights: LossWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted loss of a decoded sample of `posterior`, and its terms, detached.

    `decoded` and `pixels` are (B, 3, T, H, W) in [-1, 1]; sums are taken in fp32. The negative evidence lower bound
    of Kingma & Welling (2013, eq. 10) with a small KL weight, as in Rombach et al. (2022, appendix G), and no
    adversary: an edge term keeps contours instead.
    """
    error = decoded.float() - pixels.float()
    terms = {"l2": error.square().mean(), "kl": posterior.kl()}
    loss = weights.l2 * terms["l2"] + weights.kl * terms["kl"]
    if weights.l1:
        terms["l1"] = error.abs().mean()
        loss = loss + weights.l1 * terms["l1"]
    if weights.edge:
        terms["edge"] = edge_loss(decoded, pixels, weights.edge_scales)
        loss = loss + weights.edge * terms["edge"]
    return loss, {name: value.detach() for name, value in terms.items()}


def edge_loss(decoded: Tensor, pixels: Tensor, scales: int = 3) -> Tensor:
    """Squared error of horizontal and vertical differences, mean of `scales` dyadic scales; both (B, 3, T, H, W).

    The gradient difference of Mathieu, Couprie & LeCun (2016, eq. 6, exponent 2) with its signs kept, over a pyramid:
    a contour that is too soft or off by one pixel costs much, a smooth error of brightness almost nothing.
    """
    error = (decoded - pixels).float().flatten(1, 2)  # (B, 3T, H, W)
    total = error.new_zeros(())
    for scale in range(scales):
        if scale:
            error = F.avg_pool2d(error, 2, ceil_mode=True)
        if min(error.shape[-2:]) < 2:
            break
        down, across = error[..., 1:, :] - error[..., :-1, :], error[..., 1:] - error[..., :-1]
        total = total + down.square().mean() + across.square().mean()
    return total / scales
