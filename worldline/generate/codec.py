"""Between pixels and what the transformer reads of them: whitened latents, and states of pictures."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from worldline.checkpoints.folder import Parts
from worldline.dit.conditions import Conditions, none
from worldline.generate.canvas import Canvas, runs
from worldline.generate.cuts import standard_cut
from worldline.generate.device import Timings
from worldline.generate.request import check_pictures
from worldline.shapes import Grid
from worldline.vae.codec import Cut
from worldline.vae.streaming import decode_stream, encode_stream


class Codec:
    """The autoencoder, the whitening, and the encoder of pictures of a model that has one.

    `cuts`: how frames of so many latent cells (height, width) are cut, where that is not as `standard_cut` says.
    """

    def __init__(self, parts: Parts, grid: Grid, device: torch.device, dtype: torch.dtype, timings: Timings) -> None:
        """Moves the autoencoder of `parts` to a device and a type."""
        self.vae = parts.vae.to(device, dtype)
        self.whitening, self.image, self.config = parts.whitening, parts.image, parts.dit.config
        self.grid, self.device, self.dtype, self.timings = grid, device, dtype, timings
        self.cuts: dict[tuple[int, int], Cut] = {}

    def cut(self, height: int, width: int) -> Cut:
        """How frames of so many latent cells are cut."""
        return self.cuts.get((height, width)) or standard_cut(height, width)

    @torch.inference_mode()
    def condition(self, canvas: Canvas) -> Conditions:
        """What is known of a canvas, as whitened latents and a mask over cells; unknown stretches are not encoded but
        for a model that reads clips."""
        pictures = self._pictures(canvas) if self.config.image_width else None
        canvas = canvas.padded(self.grid)
        if self.config.holding == "clip":
            with self.timings.of("vae"):
                clip = self.encode(canvas.frames, known=canvas.known)
            return Conditions(clip, torch.from_numpy(canvas.cells_of_frames(self.grid)).float(), pictures=pictures)
        cells = torch.from_numpy(canvas.cells(self.grid)).float()[None]  # (1, T', H', W')
        conditions = none((self.config.in_channels, *cells.shape[1:]))
        frames = canvas.filled()
        with self.timings.of("vae"):
            for first, stop in runs(cells.flatten(2).amax((0, 2)).bool().tolist()):
                conditions.known[:, first:stop] = self.encode(frames, first, stop)
        return Conditions(conditions.known * cells, cells, pictures=pictures)

    @torch.inference_mode()
    def encode(
        self, frames: np.ndarray, first: int = 0, stop: int | None = None, known: np.ndarray | None = None
    ) -> Tensor:
        """Whitened latents (C, stop - first, H', W') of the latent frames `first` to `stop` - 1 of a video uint8
        (T, H, W, 3) of 4k+1 frames; streamed, and beginning one latent frame early for what lies before. An autoencoder
        of whole clips takes them for a clip of their own, which begins with the last frame of the first.

        `known`: bool (T, H, W); the other pixels are grey.
        """
        temporal = self.vae.config.temporal
        cut = self.cut(*(-(-side // self.vae.config.spatial) for side in frames.shape[1:3]))
        stop = (len(frames) - 1) // temporal + 1 if stop is None else stop
        whole = self.vae.whole_clips
        lead = first if whole else max(0, first - 1)
        begin = temporal * first if whole else max(0, temporal * (lead - 1) + 1)
        end, step = temporal * (stop - 1) + 1, temporal * cut.frames

        def chunks() -> Iterator[Tensor]:
            for i in range(begin, end, step):
                part = slice(i, min(i + step, end))
                pixels = torch.from_numpy(np.ascontiguousarray(frames[part])).permute(3, 0, 1, 2)[None].float()
                pixels = pixels / 127.5 - 1  # (1, 3, t, H, W)
                grey = pixels if known is None else pixels * torch.from_numpy(np.ascontiguousarray(known[part]))
                yield grey.to(self.device, self.dtype)

        stream = encode_stream(self.vae, chunks(), started=lead > 0, cut=cut)
        means = torch.cat([posterior.mean[0].float().cpu() for posterior in stream], dim=1)
        return self.whitening.forward(means[:, first - lead :])

    @torch.inference_mode()
    def decode(self, latents: Iterable[Tensor]) -> Iterator[np.ndarray]:
        """Whitened latents in pieces (C, t', H', W') -> pixels uint8 (t, H, W, 3), in constant memory but for an
        autoencoder of whole clips; in tiles, which the plan takes where whole frames are too large, after the last
        piece."""
        pieces = (piece for piece in latents if piece.shape[1])
        first = next(pieces, None)
        if first is None:
            return
        raw = (self.whitening.inverse(piece.float().cpu())[None].to(self.device, self.dtype)
               for piece in itertools.chain([first], pieces))  # fmt: skip
        stream = decode_stream(self.vae, raw, self.cut(*first.shape[2:]), shown=in_bytes)
        while True:
            with self.timings.of("vae"):
                pixels = next(stream, None)
            if pixels is None:
                return
            yield pixels[0].permute(1, 2, 3, 0).numpy()

    @torch.inference_mode()
    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """uint8 (T, H, W, 3) through the autoencoder and back: the ceiling of what the model can draw."""
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        mean = self.vae.encode(pixels.to(self.device, self.dtype)).mean  # (1, C, T', H', W')
        size = (frames.shape[0], frames.shape[1], frames.shape[2])
        return np.concatenate([to_uint8(chunk[0]) for chunk in decode_stream(self.vae, mean, size=size)])

    def _pictures(self, canvas: Canvas) -> Tensor:
        """States (K, image_width) of the first frame of which something is known, for some models of the last too."""
        shown, needed = np.flatnonzero(canvas.known.any((1, 2))), self.config.pictures
        both = needed == 2
        check_pictures(needed, 2 if both and {0, len(canvas.known) - 1} <= set(shown) else min(len(shown), 1))
        frames = [
            Canvas(canvas.frames[t][None], canvas.known[t][None]).filled() for t in shown[[0, -1] if both else [0]]
        ]
        pixels = torch.from_numpy(np.concatenate(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1  # (P, 3, H, W)
        assert self.image is not None
        with self.timings.of("image"):
            return self.image.encode(pixels).flatten(0, 1)


def to_uint8(pixels: Tensor) -> np.ndarray:
    """(3, T, H, W) in [-1, 1] -> uint8 (T, H, W, 3)."""
    frames: np.ndarray = in_bytes(pixels).permute(1, 2, 3, 0).numpy()
    return frames


def in_bytes(pixels: Tensor) -> Tensor:
    """Values in [-1, 1] as uint8 on the CPU."""
    return ((pixels.float() + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8).cpu()
