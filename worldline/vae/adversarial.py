"""A discriminator of patches in space and time, and how much it may say: the autoencoder's loss of sharpness.

Where errors in squares and absolutes leave the average of all that is possible, a network that tells patches of real
clips from patches of reconstructions asks for one that is possible (Esser et al. 2021, section 3.1, after Isola et al.
2017; in three dimensions as in Yu et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

MAX_WEIGHT = 1e4  # of the adaptive weight (Esser et al. 2021, their code)


class Discriminator(nn.Module):
    """Clips (B, 3, T, H, W) in [-1, 1] -> a score for every patch (B, 1, T', H', W'); an image is a clip of one frame.

    Each level halves space, and from the second on time as well; a norm over groups of channels stands where PatchGAN
    has one over the batch, so that a clip's score does not depend on the others.
    """

    def __init__(self, width: int = 64, levels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, width, time=1), nn.LeakyReLU(0.2)]
        for _ in range(1, levels):
            inputs, width = width, min(2 * width, 512)
            layers += [_conv(inputs, width, time=2), nn.GroupNorm(min(8, width), width), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv3d(width, 1, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def _conv(inputs: int, outputs: int, time: int) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, (3, 4, 4), stride=(time, 2, 2), padding=(1, 1, 1))


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """What the discriminator minimises (Lim & Ye 2017, eq. 5): real patches above 1, made ones below -1."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + made.float()).mean())


def judged(discriminator: nn.Module, made: Tensor) -> Tensor:
    """What the autoencoder minimises: minus the score of its patches. The discriminator's weights get no gradient."""
    fixed: Mapping[str, Tensor] = {name: p.detach() for name, p in discriminator.named_parameters()}
    return -functional_call(discriminator, dict(fixed), (made,)).float().mean()


def adaptive_weight(loss: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """|d loss / d last| / |d adversarial / d last|: with it both pull equally at the last layer's weights (Esser et al.
    2021, eq. 7). Both graphs stay."""
    (usual,) = torch.autograd.grad(loss, last, retain_graph=True)
    (other,) = torch.autograd.grad(adversarial, last, retain_graph=True)
    ratio = usual.float().norm() / (other.float().norm() + 1e-4)
    return ratio.clamp(0.0, MAX_WEIGHT).detach()
