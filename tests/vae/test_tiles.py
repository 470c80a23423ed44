"""Tiles of every autoencoder whose layers are local: equal to whole frames, and not with less overlap."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from worldline.vae.causal import CausalVAE, CausalVAEConfig
from worldline.vae.codec import Cut, VideoCodec
from worldline.vae.model import MICRO, VAEConfig, VideoVAE
from worldline.vae.streaming import decode_stream, encode_stream
from worldline.vae.tiles import crossfaded, spans, windows

WAN_2_1 = CausalVAEConfig(latent_channels=4, encoder_width=8, decoder_width=8, multipliers=(1, 2, 2), blocks=1,
                          halve_time=(True, True))  # fmt: skip
WAN_2_2 = CausalVAEConfig(latent_channels=12, encoder_width=8, decoder_width=16, multipliers=(1, 2, 2), blocks=1,
                          halve_time=(True, True), patch=2, shortcuts=True)  # fmt: skip
KINDS: dict[str, Callable[[], VideoCodec]] = {
    "own": lambda: VideoVAE(MICRO),
    "own, finer blocks": lambda: VideoVAE(VAEConfig(widths=(32, 16, 16), encoder_blocks=(1, 2))),
    "2.1": lambda: CausalVAE(WAN_2_1),
    "2.2": lambda: CausalVAE(WAN_2_2),
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS.keys())
def vae(request: pytest.FixtureRequest) -> VideoCodec:
    """Every parameter random, so that every path shows in the output."""
    torch.manual_seed(0)
    made: VideoCodec = request.param().eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("gain") or ("norm" in name and name.endswith("weight")):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.2 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    return made


def latents(vae: VideoCodec) -> Tensor:
    return torch.randn(1, vae.config.latent_channels, 3, 14, 23, generator=torch.Generator().manual_seed(1))


def video(vae: VideoCodec) -> Tensor:
    height, width = 14 * vae.config.spatial - 3, 23 * vae.config.spatial
    return torch.rand(1, 3, 9, height, width, generator=torch.Generator().manual_seed(2)) * 2 - 1


def decoded(vae: VideoCodec, cut: Cut) -> Tensor:
    return torch.cat(list(decode_stream(vae, latents(vae), cut)), dim=2)


def encoded(vae: VideoCodec, cut: Cut) -> Tensor:
    """Mean and log-variance."""
    parts = list(encode_stream(vae, video(vae).split([3, 4, 2], dim=2), cut=cut))
    return torch.cat([torch.cat([p.mean, p.logvar], dim=1) for p in parts], dim=2)


@pytest.mark.parametrize("cut", [Cut(3, 5), Cut(1, 8), Cut(2, 3)], ids=str)
@torch.no_grad()
def test_tiles_equal_whole_frames(cut: Cut, vae: VideoCodec) -> None:
    """Tiles with whole chunks, and both together."""
    torch.testing.assert_close(decoded(vae, cut), vae.decode(latents(vae)), atol=1e-5, rtol=0)
    whole = vae.encode(video(vae))
    torch.testing.assert_close(encoded(vae, cut), torch.cat([whole.mean, whole.logvar], 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["encode", "decode"])
@torch.no_grad()
def test_no_less_overlap_would_do(side: str, vae: VideoCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pixel that changes is seen as far as the reach says, within a cell: three fourths of it already show."""
    make = decoded if side == "decode" else encoded
    whole = make(vae, Cut(3))
    reach = getattr(vae, f"{side}_reach")
    monkeypatch.setattr(type(vae), f"{side}_reach", 3 * reach // 4)
    assert float((make(vae, Cut(3, 5)) - whole).abs().max()) > 1e-4


@torch.no_grad()
def test_a_stream_out_of_the_middle_keeps_its_tiles(vae: VideoCodec) -> None:
    x = video(vae)[:, :, 1:9]
    whole = [p.mean for p in encode_stream(vae, [x], started=True)]
    tiles = [p.mean for p in encode_stream(vae, x.split(4, dim=2), started=True, cut=Cut(side=5))]
    torch.testing.assert_close(torch.cat(tiles, 2), torch.cat(whole, 2), atol=1e-5, rtol=0)


def test_tiles_fill_a_frame_nearly_equally() -> None:
    assert spans(10, 0) == spans(10, 10) == [(0, 10)]
    assert spans(10, 4) == [(0, 3), (3, 6), (6, 10)]
    assert all(b - a <= 7 for a, b in spans(100, 7))


def test_a_fade_runs_from_the_old_to_the_new() -> None:
    before, after = torch.zeros(1, 6), torch.ones(1, 6)
    assert crossfaded(before, after, 4, 1)[0].tolist() == [0, 0.25, 0.5, 0.75, 1, 1]
    assert crossfaded(before[:, :2], after, 4, 1)[0].tolist() == [0, 0.5, 1, 1, 1, 1]
    assert crossfaded(before, after[:, :0], 4, 1).shape == (1, 0)


@pytest.mark.parametrize("pieces", [[11], [1] * 11, [4, 7]])
def test_windows_overlap_and_leave_no_lone_frame(pieces: list[int]) -> None:
    x = torch.arange(11.0).view(1, 1, 11, 1, 1)
    found = [window.flatten().tolist() for window in windows(iter(x.split(pieces, dim=2)), 5, 3)]
    assert found == [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7], [6, 7, 8, 9, 10], [9, 10]]
    assert [len(w.flatten()) for w in windows(iter([x[:, :, :4]]), 5, 3)] == [4]
    assert [len(w.flatten()) for w in windows(iter([x[:, :, :1]]), 5, 3)] == [1]
