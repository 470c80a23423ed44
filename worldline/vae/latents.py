"""Whitening: the one place where raw latents of the autoencoder become what the diffusion model sees, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldline.errors import UserError
from worldline.vae.codec import VideoCodec


@dataclass(frozen=True, eq=False)
class Whitening:
    """Per-channel affine map z -> (z - mean) / std * gain; every field is (C,).

    With `gain` = 1 every channel has unit variance (Rombach et al. 2022, section 3.3, per channel). A gain that falls
    with the channel's weight in the picture ("half whitening") lets the coarse channels rise above the noise first.
    """

    mean: Tensor
    std: Tensor
    gain: Tensor

    def __post_init__(self) -> None:
        shapes = {tuple(value.shape) for value in (self.mean, self.std, self.gain)}
        if len(shapes) != 1 or self.mean.ndim != 1:
            raise UserError(f"whitening: mean, std and gain must be vectors of one length, not {sorted(shapes)}")
        for name, value in (("mean", self.mean), ("std", self.std), ("gain", self.gain)):
            if not torch.isfinite(value).all() or (name != "mean" and (value <= 0).any()):
                raise UserError(f"whitening: {name} must be finite{'' if name == 'mean' else ' and above 0'}")

    @classmethod
    def fit(cls, mean: Tensor, std: Tensor, importance: Tensor | None = None, power: float = 1.0) -> Whitening:
        """From statistics (C,) of training latents; `power` 1 whitens fully, 0.5 halfway, 0 not at all.

        The standard deviation after the map is importance ** (1 - power), scaled to a mean square of one;
        `importance` (C,) is what a channel moves in the picture (`pixel_importance`), by default its own `std`.
        """
        spread = (std if importance is None else importance).double() ** (1.0 - power)
        return cls(mean, std, (spread / spread.square().mean().sqrt()).to(std))

    @classmethod
    def identity(cls, channels: int) -> Whitening:
        """The map that changes nothing."""
        return cls(torch.zeros(channels), torch.ones(channels), torch.ones(channels))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Whitening:
        """From lists of numbers, as config.json holds them; raises UserError for anything else."""
        try:
            return cls(*(torch.tensor(values[name], dtype=torch.float32) for name in ("mean", "std", "gain")))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError("whitening: needs mean, std and gain, a list of numbers each") from None

    def to_dict(self) -> dict[str, list[float]]:
        """JSON form; inverse of `from_dict`."""
        return {name: getattr(self, name).tolist() for name in ("mean", "std", "gain")}

    def forward(self, z: Tensor) -> Tensor:
        """Raw latents (..., C, T, H, W) -> whitened."""
        return (z - self._shaped(self.mean, z)) * self._shaped(self.gain / self.std, z)

    def inverse(self, z: Tensor) -> Tensor:
        """Whitened latents (..., C, T, H, W) -> raw; inverse of `forward`."""
        return z * self._shaped(self.std / self.gain, z) + self._shaped(self.mean, z)

    @staticmethod
    def _shaped(value: Tensor, like: Tensor) -> Tensor:
        return value.to(like.device, like.dtype).reshape(-1, 1, 1, 1)


@torch.no_grad()
def pixel_importance(vae: VideoCodec, z: Tensor) -> Tensor:
    """RMS change in the picture when one channel of raw latents `z` (B, C, T, H, W) is set to its mean: (C,)."""
    whole = vae.decode(z)
    changes = []
    for channel in range(z.shape[1]):
        flat = z.clone()
        flat[:, channel] = z[:, channel].mean()
        changes.append((vae.decode(flat) - whole).float().square().mean().sqrt())
    return torch.stack(changes)
