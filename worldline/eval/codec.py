"""How an autoencoder keeps clips: PSNR, SSIM and flicker of its reconstructions, beside what it saves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from worldline.eval.quality import flicker, psnr, ssim
from worldline.vae.codec import VideoCodec


@dataclass(frozen=True)
class Kept:
    """Means over clips: PSNR in dB, SSIM, and flicker in 8-bit levels of the clips and of their reconstructions."""

    clips: int
    psnr: float
    ssim: float
    flicker_before: float
    flicker: float


@dataclass(frozen=True)
class CodecReport:
    """An autoencoder's strides, its compression in numbers, and what it keeps of each set of clips."""

    temporal: int
    spatial: int
    channels: int
    sets: Mapping[str, Kept]

    @property
    def compression(self) -> float:
        """Numbers of a long clip over numbers of its latents."""
        return 3 * self.temporal * self.spatial**2 / self.channels

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {**asdict(self), "compression": self.compression}

    def table(self) -> str:
        """For people."""
        stride = f"{self.temporal}x{self.spatial}x{self.spatial}"
        lines = [f"{stride}, {self.channels} channels: {self.compression:.0f} to 1"]
        lines.append(f"{'clips':12}{'n':>5}{'PSNR':>9}{'SSIM':>8}{'flicker':>10}{'of the clips':>14}")
        for name, kept in self.sets.items():
            numbers = f"{kept.psnr:9.2f}{kept.ssim:8.3f}{kept.flicker:10.2f}{kept.flicker_before:14.2f}"
            lines.append(f"{name:12}{kept.clips:5}{numbers}")
        return "\n".join(lines)


@torch.no_grad()
def judge(vae: VideoCodec, sets: Mapping[str, np.ndarray], batch: int = 8) -> CodecReport:
    """Codes sets of clips, uint8 (N, T, H, W, 3) each, by the posterior's mean, and compares in 8 bits."""
    config = vae.config
    found = {name: _kept(clips, _coded(vae, clips, batch)) for name, clips in sets.items() if len(clips)}
    return CodecReport(config.temporal, config.spatial, config.latent_channels, found)


def _coded(vae: VideoCodec, clips: np.ndarray, batch: int) -> np.ndarray:
    weight, out = next(vae.parameters()), []
    for start in range(0, len(clips), batch):
        pixels = torch.from_numpy(clips[start : start + batch]).permute(0, 4, 1, 2, 3).to(weight) / 127.5 - 1
        made = vae.decode(vae.encode(pixels).mean, tuple(pixels.shape[2:]))  # type: ignore[arg-type]
        out.append(((made.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).cpu().numpy())
    return np.concatenate(out)


def _kept(clips: np.ndarray, coded: np.ndarray) -> Kept:
    pairs = list(zip(clips, coded, strict=True))
    return Kept(
        len(clips),
        _mean([psnr(one, other) for one, other in pairs]),
        _mean([ssim(one, other) for one, other in pairs]),
        _mean([flicker(one) for one, _ in pairs if len(one) > 2]),
        _mean([flicker(other) for _, other in pairs if len(other) > 2]),
    )


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan
