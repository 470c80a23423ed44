"""What every autoencoder of this package shares: its latent Gaussian, the state of a causal stream, any-size padding.

One-shot coding is a stream of one chunk. An autoencoder writes what each side does to whole frames and what it does
locally, which may run in tiles; `encode`, `decode` and `vae/streaming.py` follow from that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldline.errors import UserError


@dataclass(frozen=True)
class Posterior:
    """Diagonal Gaussian over latents, q(z|x); both fields (B, C, T', H', W')."""

    mean: Tensor
    logvar: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Reparameterised draw (Kingma & Welling 2013, eq. 10)."""
        noise = torch.empty_like(self.mean).normal_(generator=generator)
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def mode(self) -> Tensor:
        """The most probable latent: the mean."""
        return self.mean

    def kl(self) -> Tensor:
        """KL(q(z|x) || N(0, 1)) in nats, mean per element, in fp32 (Kingma & Welling 2013, appendix B)."""
        mean, logvar = self.mean.float(), self.logvar.float()
        return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()


@dataclass(frozen=True)
class Cut:
    """How video is cut on its way through an autoencoder: `frames` latent frames at a time, in tiles of `side` latent
    cells along each axis; a `side` of 0 means whole frames. In tiles one tile goes through all of time before the next,
    so that only what comes out is held for the whole video.

    `blended` is for an autoencoder of `whole_clips`: overlapping pieces are coded apart and faded into each other. It
    is an approximation; without it such an autoencoder takes everything at once. Raises UserError for `frames` < 1.
    """

    frames: int = 4
    side: int = 0
    blended: bool = False

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise UserError(f"chunk={self.frames}: the nearest valid value is 1 latent frame")
        if self.side < 0:
            raise UserError(f"tile={self.side}: the nearest valid value is 0, whole frames")

    def __str__(self) -> str:
        tiles = f" in tiles of {self.side}x{self.side} cells" if self.side else ""
        known = "overlaps faded into each other: an approximation" if self.blended else "exact"
        return f"{self.frames} latent frame{'s' if self.frames > 1 else ''} at a time{tiles}, {known}"


class History:
    """What a causal stream remembers: for each layer that looks back, the last frames of its input.

    `scale`: how many times as large the frames are that its frames stand for; other than 1 where memory is foreseen.
    """

    def __init__(self, started: bool = False, scale: float = 1.0) -> None:
        self.started, self.scale = started, scale
        self._last: dict[nn.Module, Tensor] = {}

    def past(self, owner: nn.Module) -> Tensor | None:
        """The frames (B, frames, ...) that `owner` kept last; None at the start. They change when it keeps others."""
        return self._last.get(owner)

    def keep(self, owner: nn.Module, current: Tensor, frames: int) -> None:
        """Store the last `frames` frames of `owner`'s input `current` (B, T, ...).

        Where too few are known, zeros stand before what is stored. Without gradients they take the place of those
        before: a stream that went on making new tensors would leave ever more holes between them.
        """
        past, last = self._last.get(owner), current[:, -frames:]
        missing = frames - last.shape[1]
        if missing:
            before = last.new_zeros(last.shape[0], missing, *last.shape[2:]) if past is None else past[:, -missing:]
            last = torch.cat([before, last], dim=1)
        if torch.is_grad_enabled():
            self._last[owner] = last
        elif past is None:
            self._last[owner] = last if missing else last.clone()  # a view keeps the whole chunk alive
        else:
            past.copy_(last)


class CodecConfig(Protocol):
    """What a config tells of any autoencoder."""

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""

    @property
    def temporal(self) -> int:
        """Frames per latent frame; the first latent frame of a video holds one."""

    @property
    def spatial(self) -> int:
        """Pixels per latent along each side."""


class VideoCodec(nn.Module, ABC):
    """A causal video autoencoder.

    Pixels are (B, 3, T, H, W) in [-1, 1] of any length and size; latents (B, C, T', H', W') with
    T' = ceil((T-1)/temporal) + 1, H' = ceil(H/spatial), W' = ceil(W/spatial). What does not divide is padded by
    repeating the edge; `decode(..., size)` crops it off.

    Attributes:
        whole_clips: it knows no chunks and no tiles, so that a stream of it waits for its end.
    """

    config: CodecConfig
    whole_clips = False

    @property
    def encode_reach(self) -> int:
        """Latent cells on every side that a place of `encode_local` depends on."""
        return 0

    @property
    def decode_reach(self) -> int:
        """Latent cells on every side that a cell of `decode_local` depends on."""
        return 0

    @abstractmethod
    def encode_local(self, x: Tensor, history: History) -> Tensor:
        """Pixels -> states (B, C, T', H', W') of which each depends on `encode_reach` cells around it."""

    @abstractmethod
    def encode_whole(self, states: Tensor, history: History) -> Posterior:
        """The rest of the encoder, on whole frames."""

    @abstractmethod
    def decode_whole(self, z: Tensor, history: History) -> Tensor:
        """The part of the decoder that needs whole frames: latents -> states (B, C, T', H', W')."""

    @abstractmethod
    def decode_local(self, states: Tensor, history: History) -> Tensor:
        """States -> pixels, of which each depends on `decode_reach` cells around it."""

    def encode_chunk(self, x: Tensor, history: History) -> Posterior:
        """The next frames of a stream: temporal*k+1 in its first chunk, temporal*k in every later one; sizes divide."""
        posterior = self.encode_whole(self.encode_local(x, history), history)
        history.started = True
        return posterior

    def decode_chunk(self, z: Tensor, history: History) -> Tensor:
        """The next latent frames of a stream -> `temporal` frames each, only one for the stream's first."""
        x = self.decode_local(self.decode_whole(z, history), history)
        history.started = True
        return x

    def encode(self, x: Tensor) -> Posterior:
        """Pixels (B, 3, T, H, W) in [-1, 1] -> posterior, fields (B, C, T', H', W'); UserError for another shape."""
        if x.ndim != 5 or x.shape[1] != 3 or 0 in x.shape:
            raise UserError(f"pixels: {tuple(x.shape)} is not (B, 3, T, H, W) with at least one frame and one pixel")
        return self.encode_chunk(self._padded(x), History())

    def decode(self, z: Tensor, size: tuple[int, int, int] | None = None) -> Tensor:
        """Latents (B, C, T', H', W') -> pixels (B, 3, temporal*(T'-1)+1, spatial*H', spatial*W'), cropped to `size`
        (T, H, W) if given."""
        x = self.decode_chunk(z, History())
        return x if size is None else x[:, :, : size[0], : size[1], : size[2]]

    def pad_space(self, x: Tensor) -> Tensor:
        """Repeat the last row and column of (B, 3, T, H, W) until the sizes divide by `spatial`."""
        below, right = -x.shape[3] % self.config.spatial, -x.shape[4] % self.config.spatial
        return F.pad(x, (0, right, 0, below, 0, 0), mode="replicate") if below or right else x

    def _padded(self, x: Tensor) -> Tensor:
        """Repeat the last frame until the length is temporal*k+1, and the edges until the sizes divide."""
        late = -(x.shape[2] - 1) % self.config.temporal
        return self.pad_space(F.pad(x, (0, 0, 0, 0, 0, late), mode="replicate") if late else x)
