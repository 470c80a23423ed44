"""What is alive in memory while a part of a model runs: the model's own code on tensors without numbers
(`nn/hollow.py`), from configs alone."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from worldline.dit.mmdit import MMDiT
from worldline.dit.model import DiT
from worldline.dit.told import Told
from worldline.nn.hollow import Ledger, bare
from worldline.vae.codec import History, VideoCodec

SAMPLER = 8  # float32 copies of all tokens that a sampler and guidance keep
SMALL = 256  # latent cells of a frame up to which it is traced itself


@lru_cache(maxsize=256)
def dit_bytes(kind: Any, config: Any, tokens: int, told: tuple[int, int], samples: int, dtype: torch.dtype) -> int:
    """Of one pass over so many samples of so many tokens, each told so many rows of text and of pictures, with what was
    read of those."""
    dit: DiT | MMDiT = _hollow(kind, config, dtype)
    c, count, (rows, seen) = config, tokens * samples, (size * samples for size in told)
    cu, cu_text, cu_image = (torch.arange(samples + 1) * size for size in (tokens, *told))
    timestep = torch.ones(count)
    with torch.no_grad(), Ledger() as ledger:
        state = ledger.hollow(SAMPLER, count, c.token_width)
        coords: Tensor = ledger.hollow(count, 3, dtype=torch.int64)
        if getattr(c, "factorised", False):  # its order is found from the numbers
            coords = torch.cartesian_prod(torch.arange(count), torch.arange(1), torch.arange(1))
        states = Told(ledger.hollow(rows, c.text_width), cu_text)
        if isinstance(dit, MMDiT):
            states = states._replace(vector=ledger.hollow(samples, c.vector_width))
        if seen:
            states = states._replace(image=ledger.hollow(seen, c.image_width), cu_image=cu_image)
        masked = getattr(c, "mask_values", 1) * c.cells
        known, mask = (ledger.hollow(count, width, dtype=dtype) for width in (c.token_width, masked))
        dit(ledger.hollow(count, c.token_width), coords, cu, timestep, dit.read(states), known=known, mask=mask)
        del state
    return ledger.peak


@lru_cache(maxsize=16)
def _hollow(kind: Any, config: Any, dtype: torch.dtype) -> Any:
    """A module without numbers."""
    with bare():
        return kind(config).to(dtype)


@lru_cache(maxsize=4096)
def traced(
    kind: Any,
    config: Any,
    dtype: torch.dtype,
    way: str,
    alone: bool,
    frames: int,
    height: int,
    width: int,
    scale: float = 1.0,
) -> tuple[int, int]:
    """Peak bytes of a stream's second chunk of so many latent frames, or of its only one where it is `alone`; and bytes
    of what comes out. As many frames are worked on together as if they were `scale` times as large."""
    vae: VideoCodec = _hollow(kind, config, dtype)
    history = History(scale=scale)
    c = vae.config
    with torch.no_grad(), Ledger() as ledger:
        for count in (frames,) if alone else (1, frames):
            ledger.restart()
            before = ledger.live
            if way.startswith("encode"):
                pixels = c.temporal * count - (0 if history.started else c.temporal - 1)
                x = ledger.hollow(1, 3, pixels, c.spatial * height, c.spatial * width, dtype=dtype)
            else:
                x = ledger.hollow(1, _inputs(vae, way), count, height, width, dtype=dtype)
            made = getattr(vae, way)(x, history)
            history.started = True
            del x
            out = ledger.live - before
            del made
    return ledger.peak, out


def _inputs(vae: VideoCodec, way: str) -> int:
    """Channels that go into a part of the decoder."""
    if way != "decode_local":
        return vae.config.latent_channels
    with torch.no_grad(), Ledger() as ledger:
        z = ledger.hollow(1, vae.config.latent_channels, 1, 8, 8, dtype=next(vae.parameters()).dtype)
        return int(vae.decode_whole(z, History()).shape[1])


def coding_bytes(
    vae: VideoCodec, dtype: torch.dtype, way: str, frames: int, height: int, width: int, alone: bool = False
) -> float:
    """Peak bytes of `way` ("decode_chunk", "encode_chunk", or a part of them) over so many latent frames at a time, or
    once where they are `alone`.

    Larger frames are followed from two small ones that are worked on as they are: what layers hold grows as the area
    does, beside what is the same for all.
    """
    model: tuple[Any, ...] = (type(vae), vae.config, dtype, way, alone)
    area, least, most = height * width, 16 * 12, 16 * 16
    if area <= SMALL:
        return traced(*model, frames, height, width)[0]
    small, large = (traced(*model, frames, 16, cells // 16, area / cells)[0] for cells in (least, most))
    return small + (large - small) / (most - least) * (area - least)
