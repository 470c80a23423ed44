"""A lesson beside the diffusion loss: from its middle states the DiT must say which shapes and colours lie where.

The velocity's error hardly changes between a ball and a cube; the worlds know the difference exactly. The head that
answers is dropped after training (representation alignment, Yu et al. 2024, with ground truth in the teacher's place).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldline.nn.layers import rms_normalise
from worldline.worlds.scene import COLOURS, SHAPES, Scene

CLASSES = (*SHAPES, *COLOURS)  # 12; a thing counts in two of them


def layout_of(scene: Scene, ids: np.ndarray, spatial: int, classes: Sequence[str] = CLASSES) -> np.ndarray:
    """Share of every latent cell that things of each class cover, times 255.

    Args:
        ids: (G, t, H, W) uint8 of `worlds.render.Clip`, the t frames of G latent frames; sides divide by `spatial`.
        spatial: pixels of a latent cell.
        classes: shapes, colours, sizes, motions, or floors and cameras, which count where no thing is; no two of the
            same name.

    Returns:
        uint8 (len(classes), G, H / spatial, W / spatial).
    """
    groups, frames, height, width = ids.shape
    cells = ids.reshape(groups, frames, height // spatial, spatial, width // spatial, spatial)
    shares = np.zeros((len(classes), len(cells), height // spatial, width // spatial))
    for name in (scene.floor, scene.camera):
        if name in classes:
            shares[classes.index(name)] = (cells == 0).mean(axis=(1, 3, 5))
    for i, thing in enumerate(scene.things):
        covered = (cells == i + 1).mean(axis=(1, 3, 5))
        for name in (thing.shape, thing.colour, thing.size, thing.motion):
            if name in classes:
                shares[classes.index(name)] += covered
    return np.rint(shares * 255).astype(np.uint8)


class LayoutHead(nn.Module):
    """Reads `CLASSES` x cells of a token from its states."""

    def __init__(self, width: int, cells: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, len(CLASSES) * cells)
        nn.init.zeros_(self.out.weight)
        nn.init.constant_(self.out.bias, -4.0)  # a class covers about 2 % of the picture

    def forward(self, states: Tensor) -> Tensor:
        """States (N, width) -> logits (N, 12 * cells), channels as in `dit.patchify`."""
        return self.out(F.silu(self.hidden(rms_normalise(states))))  # type: ignore[no-any-return]


def layout_loss(logits: Tensor, shares: Tensor) -> Tensor:
    """Binary cross-entropy against shares (N, 12 * cells) in 0..1, less their own entropy, summed over the classes.

    Mean over tokens and cells; 0 where every share is met.
    """
    shares = shares.float()
    error = F.binary_cross_entropy_with_logits(logits.float(), shares, reduction="sum")
    least = torch.special.entr(shares).sum() + torch.special.entr(1.0 - shares).sum()
    return (error - least) * len(CLASSES) / shares.numel()
