"""LPIPS: distance of pictures in the features of VGG-16, as people judge it (Zhang et al. 2018, eq. 1).

The weights are no part of this package. `Lpips.load` reads one safetensors file with the convolutions of torchvision's
VGG-16 (`features.N.weight`, `features.N.bias`) and the linear layers of LPIPS 0.1 (`lin0.model.1.weight` and so on).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from worldline.errors import UserError

# Convolutions of VGG-16 by their number in torchvision's `features`; a level ends before its picture is halved.
LEVELS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
WIDTHS = (64, 128, 256, 512, 512)
MEAN, DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pixels in [-1, 1]
LEAST_SIDE = 16  # four halvings


class Lpips(nn.Module):
    """Distances of frames (N, 3, H, W) in [-1, 1]: (N,)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        inputs = 3
        for width, numbers in zip(widths, LEVELS, strict=True):
            convolutions = []
            for _ in numbers:
                convolutions.append(nn.Conv2d(inputs, width, 3, padding=1))
                inputs = width
            self.levels.append(nn.ModuleList(convolutions))
        self.weights = nn.ParameterList(torch.zeros(width) for width in widths)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)

    @classmethod
    def load(cls, path: str | Path) -> Lpips:
        """From a safetensors file; raises UserError for a file that is none, or lacks what is needed."""
        try:
            found = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"lpips: {path} is not a readable safetensors file ({error})") from None
        names = {}
        for level, numbers in enumerate(LEVELS):
            for place, number in enumerate(numbers):
                for leaf in ("weight", "bias"):
                    names[f"levels.{level}.{place}.{leaf}"] = f"features.{number}.{leaf}"
            names[f"weights.{level}"] = f"lin{level}.model.1.weight"
        missing = [theirs for theirs in names.values() if theirs not in found]
        if missing:
            raise UserError(f"lpips: {path} lacks {len(missing)} tensors, the first of them {missing[0]}")
        model = cls(tuple(found[f"lin{level}.model.1.weight"].numel() for level in range(len(LEVELS))))
        try:
            model.load_state_dict({ours: found[theirs].reshape(model.state_dict()[ours].shape)
                                   for ours, theirs in names.items()})  # fmt: skip
        except RuntimeError as error:
            raise UserError(f"lpips: {path} holds no VGG-16 ({str(error).splitlines()[-1].strip()})") from None
        return model

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        total = x.new_zeros(len(x), dtype=torch.float32)
        both = (torch.cat([x, y]) - self.mean) / self.deviation
        for number, (level, weight) in enumerate(zip(self.levels, self.weights, strict=True)):
            if number:
                both = F.max_pool2d(both, 2)
            for convolution in level:  # type: ignore[attr-defined]
                both = F.relu(convolution(both))
            one, other = (both.float() / (both.float().square().sum(1, keepdim=True).sqrt() + 1e-10)).chunk(2)
            total = total + ((one - other).square() * weight[:, None, None]).sum(1).mean((1, 2))
        return total
