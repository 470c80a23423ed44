"""The causal autoencoder by itself: sizes, streams equal to one shot, bounded state, gradients. Parity with published
checkpoints is in tests/checkpoints."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.vae.chunks import pieces
from worldline.errors import UserError
from worldline.vae import causal
from worldline.vae.causal import WAN_2_1, WAN_2_2, CausalVAE, CausalVAEConfig, average, fold, repeat, unfold
from worldline.vae.codec import Cut, History
from worldline.vae.streaming import decode_stream, encode_stream

TINY_2_1 = CausalVAEConfig(latent_channels=4, encoder_width=8, decoder_width=8, blocks=1)
TINY_2_2 = CausalVAEConfig(latent_channels=12, encoder_width=8, decoder_width=16, blocks=1, patch=2, shortcuts=True)


def busy(config: CausalVAEConfig) -> CausalVAE:
    """Every parameter random, so that every path shows in the output."""
    torch.manual_seed(0)
    vae = CausalVAE(config).eval()
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if name.endswith("gain"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.2 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    return vae


@pytest.fixture(scope="module", params=[TINY_2_1, TINY_2_2], ids=["2.1", "2.2"])
def vae(request: pytest.FixtureRequest) -> CausalVAE:
    return busy(request.param)


def video(frames: int, height: int = 32, width: int = 48) -> Tensor:
    return torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def latents(vae: CausalVAE, frames: int) -> Tensor:
    return torch.randn(1, vae.config.latent_channels, frames, 2, 3, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("config", [TINY_2_1, TINY_2_2], ids=["2.1", "2.2"])
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_levels_in_pieces_are_the_same_levels(
    config: CausalVAEConfig, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few frames a level takes at a time, in one shot and in a stream whose first chunk is cut as well."""
    vae, z = busy(config), latents(busy(config), 5)
    with torch.no_grad():
        whole = vae.decode(z)
        monkeypatch.setattr(causal, "_frames", lambda h, growth: frames)
        torch.testing.assert_close(vae.decode(z), whole, atol=1e-5, rtol=1e-5)
        streamed = torch.cat(list(decode_stream(vae, z, Cut(3))), dim=2)
    torch.testing.assert_close(streamed, whole, atol=1e-5, rtol=1e-5)


def test_published_sizes() -> None:
    """Compression as published, and the parameters counted from the authors' modules: 127 and 705 million."""
    with torch.device("meta"):
        counts = [sum(p.numel() for p in CausalVAE(config).parameters()) for config in (WAN_2_1, WAN_2_2)]
    assert (WAN_2_1.temporal, WAN_2_1.spatial, WAN_2_2.temporal, WAN_2_2.spatial) == (4, 8, 4, 16)
    assert [round(count / 1e6) for count in counts] == [127, 705]


@pytest.mark.parametrize("size", [(1, 16, 16), (2, 17, 9), (6, 1, 31)])
@torch.no_grad()
def test_any_size_and_length(vae: CausalVAE, size: tuple[int, int, int]) -> None:
    z = vae.encode(video(*size)).mean
    side = vae.config.spatial
    frames, height, width = size
    assert z.shape[2:] == (math.ceil((frames - 1) / 4) + 1, math.ceil(height / side), math.ceil(width / side))
    assert vae.decode(z, size).shape[2:] == size
    assert vae.decode(z).shape[2] == 4 * (z.shape[2] - 1) + 1


@pytest.mark.parametrize("lengths", [[], [1, 4, 4, 4, 4], [1], [3, 5, 2], [9]])
@torch.no_grad()
def test_encoding_in_chunks_equals_one_shot(vae: CausalVAE, lengths: list[int]) -> None:
    x = video(15)
    whole, parts = vae.encode(x), list(encode_stream(vae, pieces(x, lengths)))
    torch.testing.assert_close(torch.cat([p.mean for p in parts], 2), whole.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat([p.logvar for p in parts], 2), whole.logvar, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk", [1, 2, 3])
@torch.no_grad()
def test_decoding_in_chunks_equals_one_shot(vae: CausalVAE, chunk: int) -> None:
    z = latents(vae, 5)
    torch.testing.assert_close(torch.cat(list(decode_stream(vae, z, Cut(chunk))), 2), vae.decode(z), atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_state_of_a_stream_is_two_frames_per_layer_and_keeps_no_chunk_alive(vae: CausalVAE) -> None:
    history = History()
    sizes = []
    for chunk in latents(vae, 9).split([1, 4, 4], dim=2):
        vae.decode_chunk(chunk, history)
        held = list(history._last.values())
        assert all(tensor.shape[1] <= 2 and tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in held)
        sizes.append(sum(tensor.nbytes for tensor in held))
    assert sizes[1] == sizes[2]


@torch.no_grad()
def test_an_image_is_the_first_frame_of_a_video(vae: CausalVAE) -> None:
    x, z = video(9), latents(vae, 3)
    torch.testing.assert_close(vae.encode(x[:, :, :1]).mean, vae.encode(x).mean[:, :, :1], atol=1e-5, rtol=0)
    torch.testing.assert_close(vae.decode(z[:, :, :1]), vae.decode(z)[:, :, :1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_future_does_not_change_the_past_but_the_past_the_future(vae: CausalVAE) -> None:
    x = video(9)
    other = torch.cat([x[:, :, :5], -x[:, :, 5:]], dim=2)
    z, changed = vae.encode(x).mean, vae.encode(other).mean
    torch.testing.assert_close(changed[:, :, :2], z[:, :, :2], atol=1e-5, rtol=0)
    assert (changed[:, :, 2] - z[:, :, 2]).abs().max() > 0.01
    first = torch.cat([-x[:, :, :1], x[:, :, 1:]], dim=2)
    assert (vae.encode(first).mean[:, :, 1] - z[:, :, 1]).abs().max() > 1e-3


def test_gradients_reach_every_weight_and_leave_the_output_as_it_is(vae: CausalVAE) -> None:
    x = video(5)
    with torch.no_grad():
        expected = vae.encode(x).mean
    posterior = vae.encode(x)
    torch.testing.assert_close(posterior.mean, expected, atol=1e-5, rtol=0)
    (vae.decode(posterior.mean).square().mean() + posterior.kl()).backward()
    dead = [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.any()]
    vae.zero_grad()
    assert dead == []


def test_folding_reads_a_patch_column_by_column() -> None:
    x = torch.arange(16.0).reshape(1, 1, 1, 4, 4).expand(1, 3, 1, 4, 4)
    assert fold(x, 2)[0, 0, 0, 0, :4].tolist() == [0.0, 4.0, 1.0, 5.0]
    assert torch.equal(unfold(fold(x, 2), 2), x)


def test_shortcuts_without_parameters_undo_each_other() -> None:
    """Repeating and averaging back is the identity; a video's first frame is averaged with zeros."""
    x = torch.rand(1, 3, 2, 2, 8)
    assert repeat(x, 8, 2, started=False).shape == (1, 5, 4, 4, 8)
    torch.testing.assert_close(average(repeat(x, 8, 2, started=True), 8, 2, started=True), x)
    torch.testing.assert_close(average(repeat(x, 8, 2, started=False), 8, 2, started=False)[:, 1:], x[:, 1:])
    torch.testing.assert_close(average(x[:, :1], 64, 2, started=False)[..., 0], torch.zeros(1, 1, 1, 1))


def test_config_survives_json_lists_and_counts_its_levels() -> None:
    assert CausalVAEConfig(multipliers=[1, 2, 4, 4]) == WAN_2_1  # type: ignore[arg-type]
    with pytest.raises(UserError, match="halve_time has 3 entries for 2 levels"):
        CausalVAEConfig(multipliers=(1, 2))
