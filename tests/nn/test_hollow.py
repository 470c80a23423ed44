"""Memory that is counted without being taken: equal to arithmetic, and to what runs on numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from worldline.nn.attention import Segments, attention
from worldline.nn.hollow import Hollow, Ledger
from worldline.vae.causal import CausalVAE, CausalVAEConfig
from worldline.vae.codec import History, VideoCodec
from worldline.vae.model import MICRO, VideoVAE


def test_bytes_are_counted_while_they_live() -> None:
    with torch.no_grad(), Ledger() as ledger:
        x = ledger.hollow(10, 100)
        assert (ledger.live, ledger.peak) == (4000, 4000)
        y = x.T[:50] * 2
        assert ledger.live == 6000  # a view is not a copy
        y.add_(1)
        assert ledger.live == 6000  # what is written in place neither
        del x
        assert (ledger.live, ledger.peak) == (2000, 6000)
        ledger.restart()
        torch.cat([y, y])
        assert (ledger.live, ledger.peak) == (2000, 6000)
        assert y.to(torch.float16).dtype == torch.float16
    assert isinstance(y, Hollow)
    assert y.device.type == "cpu"


def test_weights_are_read_and_numbers_stay_numbers() -> None:
    with torch.device("meta"):
        linear = nn.Linear(8, 16)
    cu = torch.tensor([0, 3, 7])
    with torch.no_grad(), Ledger() as ledger:
        x = linear(ledger.hollow(7, 8)).view(7, 2, 8)
        assert Segments(cu).lengths == [3, 4]
        assert attention(x, x, x, cu).shape == (7, 2, 8)
        assert float(torch.ones(3).sum()) == 3
    assert ledger.peak < 7 * 16 * 4 * 8


def test_a_hollow_tensor_computes_nothing_elsewhere() -> None:
    with Ledger() as ledger:
        x = ledger.hollow(2)
    with pytest.raises(RuntimeError, match="outside its ledger"):
        F.relu(x)


SMALL = CausalVAEConfig(4, 8, 8, multipliers=(1, 2), halve_time=(True,), blocks=1)


@pytest.mark.parametrize("kind", ["own", "causal"])
def test_a_stream_holds_the_same_after_any_number_of_chunks(kind: str) -> None:
    """Of every autoencoder with chunks: peak memory does not grow with length, to the byte."""
    with torch.device("meta"):
        vae: VideoCodec = VideoVAE(MICRO) if kind == "own" else CausalVAE(SMALL)
    spatial, temporal = vae.config.spatial, vae.config.temporal
    with torch.no_grad(), Ledger() as ledger:
        for way in ("encode", "decode"):
            history, peaks = History(), []
            for number in range(6):
                ledger.restart()
                if way == "decode":
                    vae.decode_chunk(ledger.hollow(1, vae.config.latent_channels, 2, 8, 8), history)
                else:
                    frames = 2 * temporal + (0 if number else 1)
                    vae.encode_chunk(ledger.hollow(1, 3, frames, 8 * spatial, 8 * spatial), history)
                peaks.append((ledger.peak, ledger.live))
            assert peaks[2] == peaks[5]
            del history
    assert ledger.live == 0


def test_shapes_are_those_of_numbers() -> None:
    vae = CausalVAE(SMALL).eval()
    with torch.no_grad():
        x = torch.zeros(1, 3, 5, 16, 24)
        posterior = vae.encode(x)
        shown = vae.decode(posterior.mean)
        with torch.device("meta"):
            empty = CausalVAE(SMALL)
        with Ledger() as ledger:
            hollow = empty.encode(ledger.hollow(*x.shape))
            again = empty.decode(hollow.mean)
    assert (hollow.mean.shape, again.shape) == (posterior.mean.shape, shown.shape)
    assert again.stride() == shown.stride()
