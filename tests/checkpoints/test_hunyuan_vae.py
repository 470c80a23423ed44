"""HunyuanVideo's autoencoder against diffusers, whole and tiled: random checkpoints, key and config maps, pitfalls."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from worldline.checkpoints.hunyuan_vae import (
    SCALING,
    config_from_diffusers,
    config_from_weights,
    config_to_diffusers,
    from_weights,
    load_hunyuan_vae,
    to_weights,
)
from worldline.errors import UserError
from worldline.vae import hunyuan
from worldline.vae.codec import Cut, History
from worldline.vae.hunyuan import HunyuanVAE, HunyuanVAEConfig
from worldline.vae.streaming import decode_stream, encode_stream

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the packages that it imports
    diffusers = pytest.importorskip("diffusers")

LIMIT = 1e-5
TINY = {"latent_channels": 4, "block_out_channels": (16, 16, 32, 32), "layers_per_block": 1, "norm_num_groups": 4}


@pytest.fixture(scope="module")
def pair() -> tuple[Any, HunyuanVAE]:
    """diffusers' model with every parameter random and its temporal tiles off, and ours with the same weights."""
    model = diffusers.AutoencoderKLHunyuanVideo(**TINY).eval()
    model.use_framewise_encoding = model.use_framewise_decoding = False
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(std=0.2 if parameter.ndim == 1 else parameter[0].numel() ** -0.5, generator=generator)
    return model, from_weights(config_from_diffusers(dict(model.config)), model.state_dict())


def video(frames: int, height: int = 32, width: int = 48) -> Tensor:
    return torch.rand(2, 3, frames, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def error(mine: Tensor, theirs: Tensor) -> float:
    assert mine.shape == theirs.shape
    return float((mine - theirs).norm() / theirs.norm())


@torch.no_grad()
def errors(model: Any, vae: HunyuanVAE, frames: int = 5) -> tuple[float, float]:
    """Relative errors of the encoder and of the decoder."""
    posterior, mine = model.encode(video(frames)).latent_dist, vae.encode(video(frames))
    z = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(2))
    encoded = max(error(mine.mean, posterior.mean), error(mine.logvar, posterior.logvar))
    return encoded, error(vae.decode(z), model.decode(z).sample)


@pytest.mark.parametrize("frames", [1, 5, 9, 17])
def test_parity(pair: tuple[Any, HunyuanVAE], frames: int) -> None:
    assert max(errors(*pair, frames)) < LIMIT


def test_weights_and_config_return_as_they_came(pair: tuple[Any, HunyuanVAE]) -> None:
    model, vae = pair
    theirs, back = model.state_dict(), to_weights(vae)
    assert back.keys() == theirs.keys()
    assert all(back[key].shape == theirs[key].shape and torch.equal(back[key], theirs[key]) for key in theirs)
    again = diffusers.AutoencoderKLHunyuanVideo.from_config(config_to_diffusers(vae.config)).config
    assert all(again[key] == (list(value) if isinstance(value, tuple) and key == "block_out_channels" else value)
               for key, value in model.config.items() if not key.startswith("_"))  # fmt: skip


def test_a_folder_and_a_file_without_a_config(pair: tuple[Any, HunyuanVAE], tmp_path: Path) -> None:
    model, vae = pair
    model.save_pretrained(tmp_path)
    save_file(model.state_dict(), tmp_path / "hunyuan_vae.safetensors")
    (tmp_path / "alone").mkdir()
    alone = (tmp_path / "hunyuan_vae.safetensors").rename(tmp_path / "alone" / "hunyuan_vae.safetensors")
    for loaded, whitening in (load_hunyuan_vae(tmp_path), load_hunyuan_vae(alone, groups=4)):
        assert loaded.config == vae.config
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), vae.parameters(), strict=True))
        z = torch.randn(1, 4, 1, 2, 2)
        torch.testing.assert_close(whitening.forward(z), z * SCALING)


def test_published_config() -> None:
    assert config_from_diffusers({}) == HunyuanVAEConfig()
    with torch.device("meta"):
        vae = HunyuanVAE()
        theirs = diffusers.AutoencoderKLHunyuanVideo().state_dict()
    assert {key: value.shape for key, value in to_weights(vae).items()} == {k: v.shape for k, v in theirs.items()}
    assert config_from_weights(theirs) == vae.config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"_class_name": "AutoencoderKLWan"}, "AutoencoderKLWan, not AutoencoderKLHunyuanVideo"),
        ({"temporal_compression_ratio": 8}, "temporal_compression_ratio=8 is not supported, only 4"),
        ({"norm_num_groups": 48}, "groups=48"),
    ],
)
def test_a_foreign_config_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_from_diffusers(values)


def test_foreign_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no keys of"):
        config_from_weights({"weight": torch.zeros(1)})
    with pytest.raises(UserError, match="pickles are never loaded"):
        load_hunyuan_vae(tmp_path / "pytorch_model.pt")


def test_the_norm_keeps_its_digits_on_long_clips() -> None:
    """Values of mean 1 and deviation 0.3, as biases make them."""
    torch.manual_seed(0)
    x, norm = torch.randn(1, 9, 48, 48, 16) * 0.3 + torch.linspace(0.5, 1.5, 16), hunyuan.ClipNorm(4, 16, 1e-6)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_()
        inward = x.movedim(-1, 1).double()
        exact = torch.nn.functional.group_norm(inward, 4, norm.weight.double(), norm.bias.double(), 1e-6)
        assert error(norm(x).double(), exact.movedim(1, -1)) < 1e-6
        assert error(norm(x.bfloat16()).double(), exact.movedim(1, -1)) < 2e-2


# ---- streams: one chunk, or blended --------------------------------------------------------------------------


@torch.no_grad()
def test_a_stream_waits_for_its_end(pair: tuple[Any, HunyuanVAE]) -> None:
    _, vae = pair
    x = video(7, 20, 24)[:1]
    (posterior,) = encode_stream(vae, iter(x.split(3, dim=2)))
    assert torch.equal(posterior.mean, vae.encode(x).mean)
    (pixels,) = decode_stream(vae, iter(posterior.mean.split(1, dim=2)), Cut(1), (7, 20, 24))
    assert torch.equal(pixels, vae.decode(posterior.mean, (7, 20, 24)))
    assert pixels.shape == x.shape
    history = History()
    vae.decode_chunk(posterior.mean, history)
    with pytest.raises(UserError, match="one chunk"):
        vae.decode_chunk(posterior.mean, history)


@pytest.mark.parametrize(("frames", "side"), [(2, 4), (6, 0), (8, 4)])
@torch.no_grad()
def test_blended_pieces_are_those_of_diffusers(frames: int, side: int, pair: tuple[Any, HunyuanVAE]) -> None:
    """Overlapping tiles in time and space faded into each other, however the stream arrives; far from the exact answer,
    which is why they are a choice."""
    model, vae = pair
    z = torch.randn(1, 4, frames, 5, 7, generator=torch.Generator().manual_seed(3))
    x = video(4 * frames - 3, 40, 56)[:1]
    model.use_framewise_encoding = model.use_framewise_decoding = True
    large = 8 * side or 1024
    model.enable_tiling(large, large, 16, 3 * large // 4, 3 * large // 4, 12)
    shown, known = model.decode(z).sample, model.encode(x).latent_dist.mean
    model.use_tiling = False
    model.use_framewise_encoding = model.use_framewise_decoding = False
    cut = Cut(4, side, blended=True)
    pixels = torch.cat(list(decode_stream(vae, iter(z.split(1, dim=2)), cut)), dim=2)
    means = torch.cat([p.mean for p in encode_stream(vae, iter(x.split(5, dim=2)), cut=cut)], dim=2)
    assert max(error(pixels, shown), error(means, known)) < LIMIT
    assert error(vae.decode(z), shown) > 0.1
    assert "approximation" in str(cut)


@torch.no_grad()
def test_the_future_changes_the_past_which_is_why(pair: tuple[Any, HunyuanVAE]) -> None:
    _, vae = pair
    z = torch.randn(1, 4, 3, 2, 2)
    other = torch.cat([z[:, :, :2], -z[:, :, 2:]], dim=2)
    assert error(vae.decode(other)[:, :, :5], vae.decode(z)[:, :, :5]) > 1e-3


# ---- pitfalls: each is put back, and parity must break --------------------------------------------


def zeros_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hunyuan, "bordered", lambda x: torch.nn.functional.pad(x, (0, 0, 1, 1, 1, 1)))


def zeros_before(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = hunyuan.causal_conv
    monkeypatch.setattr(hunyuan, "causal_conv", lambda x, past, *rest, **more: conv(x, None, *rest, **more))


def attention_inside_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = hunyuan.attention
    monkeypatch.setattr(hunyuan, "attention", lambda q, k, v, cu_q, cu_k: attend(q, k[-len(q) :], v[-len(q) :], cu_q))


@pytest.mark.parametrize("pitfall", [zeros_around, zeros_before, attention_inside_frames])
def test_a_pitfall_breaks_parity(pitfall: Any, pair: tuple[Any, HunyuanVAE], monkeypatch: pytest.MonkeyPatch) -> None:
    pitfall(monkeypatch)
    assert min(errors(*pair)) > 1e-4
