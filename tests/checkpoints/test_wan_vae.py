"""Wan's autoencoders against diffusers: parity on random checkpoints, both published layouts, and the known pitfalls.

Every parameter is random, gains included: at their defaults a wrong norm or bias would not show.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from worldline.checkpoints import wan_vae
from worldline.checkpoints.wan_vae import (
    config_from_diffusers,
    config_from_native,
    config_to_diffusers,
    from_weights,
    load_wan_vae,
    published_whitening,
    to_weights,
    whitening_from,
)
from worldline.errors import UserError
from worldline.vae import causal
from worldline.vae.causal import WAN_2_1, WAN_2_2, CausalVAE, CausalVAEConfig
from worldline.vae.codec import History

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the packages that it imports
    diffusers = pytest.importorskip("diffusers")

LIMIT = 1e-5  # relative, fp32; the weakest pitfall below is a thousand times larger
STATISTICS = {"latents_mean": [0.5, -1.0, 0.0, 2.0], "latents_std": [1.0, 2.0, 3.0, 0.5]}
WAN_2_1_TINY = {"base_dim": 16, "z_dim": 4, "num_res_blocks": 1, **STATISTICS}
WAN_2_2_TINY = {
    "base_dim": 8, "decoder_base_dim": 16, "z_dim": 4, "num_res_blocks": 1, "is_residual": True, "patch_size": 2,
    "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16, **STATISTICS,
}  # fmt: skip
MODULES_2_1 = """
    encoder.conv1 encoder.downsamples.0.residual.0 encoder.downsamples.0.residual.2 encoder.downsamples.0.residual.3
    encoder.downsamples.0.residual.6 encoder.downsamples.1.resample.1 encoder.downsamples.1.time_conv
    encoder.downsamples.2.residual.0 encoder.downsamples.2.residual.2 encoder.downsamples.2.residual.3
    encoder.downsamples.2.residual.6 encoder.downsamples.2.shortcut
    encoder.middle.0.residual.0 encoder.middle.0.residual.2 encoder.middle.0.residual.3 encoder.middle.0.residual.6
    encoder.middle.1.norm encoder.middle.1.to_qkv encoder.middle.1.proj
    encoder.middle.2.residual.0 encoder.middle.2.residual.2 encoder.middle.2.residual.3 encoder.middle.2.residual.6
    encoder.head.0 encoder.head.2 conv1 conv2 decoder.conv1
    decoder.middle.0.residual.0 decoder.middle.0.residual.2 decoder.middle.0.residual.3 decoder.middle.0.residual.6
    decoder.middle.1.norm decoder.middle.1.to_qkv decoder.middle.1.proj
    decoder.middle.2.residual.0 decoder.middle.2.residual.2 decoder.middle.2.residual.3 decoder.middle.2.residual.6
    decoder.upsamples.0.residual.0 decoder.upsamples.0.residual.2 decoder.upsamples.0.residual.3
    decoder.upsamples.0.residual.6 decoder.upsamples.1.residual.0 decoder.upsamples.1.residual.2
    decoder.upsamples.1.residual.3 decoder.upsamples.1.residual.6
    decoder.upsamples.2.resample.1 decoder.upsamples.2.time_conv
    decoder.upsamples.3.residual.0 decoder.upsamples.3.residual.2 decoder.upsamples.3.residual.3
    decoder.upsamples.3.residual.6 decoder.upsamples.4.residual.0 decoder.upsamples.4.residual.2
    decoder.upsamples.4.residual.3 decoder.upsamples.4.residual.6 decoder.head.0 decoder.head.2
"""


def peer(values: dict[str, Any]) -> Any:
    """diffusers' model with every parameter random."""
    model = diffusers.AutoencoderKLWan(**values).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                std = 0.2 if parameter.ndim == 1 else 0.8 * parameter[0].numel() ** -0.5
                parameter.normal_(std=std, generator=generator)
    return model


def ours(model: Any) -> CausalVAE:
    return from_weights(config_from_diffusers(dict(model.config)), model.state_dict(), "diffusers", torch.float32)


@pytest.fixture(scope="module", params=[WAN_2_1_TINY, WAN_2_2_TINY], ids=["2.1", "2.2"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, CausalVAE]:
    model = peer(request.param)
    return model, ours(model)


def video(frames: int, height: int = 32, width: int = 48) -> Tensor:
    return torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def error(mine: Tensor, theirs: Tensor) -> float:
    assert mine.shape == theirs.shape
    return float((mine - theirs).norm() / theirs.norm())


@torch.no_grad()
def errors(model: Any, vae: CausalVAE, frames: int = 9) -> tuple[float, float]:
    """Relative errors of the encoder and of the decoder."""
    x = video(frames)
    posterior = model.encode(x).latent_dist
    z = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(2))
    mine = vae.encode(x)
    encoded = max(error(mine.mean, posterior.mean), error(mine.logvar, posterior.logvar))
    return encoded, error(vae.decode(z), model.decode(z).sample)


@pytest.mark.parametrize("frames", [1, 5, 9, 17])
def test_parity(pair: tuple[Any, CausalVAE], frames: int) -> None:
    assert max(errors(*pair, frames)) < LIMIT


@torch.no_grad()
def test_a_length_or_size_that_does_not_divide_is_padded_instead_of_cut(pair: tuple[Any, CausalVAE]) -> None:
    """diffusers drops an incomplete group and refuses odd sizes; ours completes both by repeating the edge."""
    model, vae = pair
    x = video(6, 30, 41)
    padded = torch.nn.functional.pad(x, (0, 7, 0, 2, 0, 3), mode="replicate")
    assert error(vae.encode(x).mean, model.encode(padded).latent_dist.mean) < LIMIT


# ---- layouts -----------------------------------------------------------------------------------


def test_weights_and_config_return_as_they_came(pair: tuple[Any, CausalVAE]) -> None:
    model, vae = pair
    theirs, back = model.state_dict(), to_weights(vae)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)
    values = config_to_diffusers(vae.config, whitening_from(dict(model.config)))
    again = diffusers.AutoencoderKLWan.from_config(values).config
    expected = {**model.config, "decoder_base_dim": vae.config.decoder_width}
    assert all(again[key] == value for key, value in expected.items() if not key.startswith("_"))


def test_a_diffusers_folder(pair: tuple[Any, CausalVAE], tmp_path: Path) -> None:
    model, vae = pair
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    loaded, whitening = load_wan_vae(tmp_path)
    assert loaded.config == vae.config
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), vae.parameters(), strict=True))
    assert (whitening.mean.tolist(), whitening.std.tolist()) == tuple(STATISTICS.values())
    z = torch.randn(2, 4, 1, 3, 3)
    shaped = [torch.tensor(value).reshape(-1, 1, 1, 1) for value in STATISTICS.values()]
    torch.testing.assert_close(whitening.inverse(z), z * shaped[1] + shaped[0])  # what the pipelines do before decode


def test_the_authors_layout(pair: tuple[Any, CausalVAE]) -> None:
    """The same numbers under the authors' keys: sizes follow from the shapes, outputs are equal."""
    _, vae = pair
    native = to_weights(vae, "native")
    config = config_from_native(native)
    assert config == vae.config
    assert config_from_native(to_weights(random_vae(2), "native")).blocks == 2
    again = from_weights(config, native, "native", torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), vae.parameters(), strict=True))


def test_the_authors_names() -> None:
    """As wan/modules/vae.py names them, checked there once: one block per level, two levels, time halved between."""
    config = CausalVAEConfig(4, 8, 8, multipliers=(1, 2), halve_time=(True,), blocks=1)
    native = to_weights(CausalVAE(config), "native")
    assert {key.rsplit(".", 1)[0] for key in native} == set(MODULES_2_1.split())
    shapes = {key: tuple(value.shape) for key, value in native.items()}
    assert shapes["encoder.downsamples.1.time_conv.weight"] == (8, 8, 3, 1, 1)
    assert shapes["decoder.upsamples.2.time_conv.weight"] == (32, 16, 3, 1, 1)
    assert shapes["encoder.middle.1.to_qkv.weight"] == (48, 16, 1, 1)
    assert (shapes["encoder.middle.1.norm.gamma"], shapes["encoder.head.0.gamma"]) == ((16, 1, 1), (16, 1, 1, 1))
    assert shapes["encoder.downsamples.2.shortcut.weight"] == (16, 8, 1, 1, 1)
    nested = to_weights(CausalVAE(CausalVAEConfig(4, 8, 8, blocks=1, patch=2, shortcuts=True)), "native")
    for key in (
        "encoder.downsamples.1.downsamples.1.time_conv.weight",
        "decoder.upsamples.0.upsamples.2.time_conv.bias",
    ):
        assert key in nested


def random_vae(blocks: int) -> CausalVAE:
    return CausalVAE(CausalVAEConfig(latent_channels=16, encoder_width=8, decoder_width=8, blocks=blocks))


def test_a_file_of_the_authors_layout_has_the_release_s_whitening(tmp_path: Path) -> None:
    vae = random_vae(1)
    save_file(to_weights(vae, "native"), tmp_path / "Wan2.1_VAE.safetensors")
    loaded, whitening = load_wan_vae(tmp_path / "Wan2.1_VAE.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), vae.parameters(), strict=True))
    defaults = diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=1).config
    torch.testing.assert_close(whitening.mean, torch.tensor(defaults.latents_mean))
    torch.testing.assert_close(whitening.std, torch.tensor(defaults.latents_std))
    assert published_whitening(48).mean.shape == (48,)


def test_published_configs() -> None:
    assert config_from_diffusers({}) == WAN_2_1
    residual = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "z_dim": 48}
    assert config_from_diffusers({"base_dim": 160, "decoder_base_dim": 256, **residual}) == WAN_2_2
    for config in (WAN_2_1, WAN_2_2):
        with torch.device("meta"):
            native = to_weights(CausalVAE(config), "native")
        assert config_from_native(native) == config


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"_class_name": "AutoencoderKLMochi"}, "AutoencoderKLMochi, not AutoencoderKLWan"),
        ({"attn_scales": [0.5]}, "attn_scales"),
        ({"patch_size": 2}, "in_channels=3 must be 12"),
    ],
)
def test_a_foreign_config_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_from_diffusers(values)


def test_weights_that_do_not_fit_are_listed_at_once(tmp_path: Path) -> None:
    vae = random_vae(1)
    weights = to_weights(vae)
    weights["surplus"] = weights.pop("decoder.conv_in.bias")
    weights["quant_conv.bias"] = torch.zeros(5)
    found = r"missing: decoder\.conv_in\.bias; unexpected: surplus; mis-shaped: quant_conv\.bias"
    with pytest.raises(UserError, match=found):
        from_weights(vae.config, weights, "diffusers", torch.float32)
    turned = {**to_weights(vae), "decoder.conv_in.weight": to_weights(vae)["decoder.conv_in.weight"].transpose(0, 1)}
    with pytest.raises(UserError, match=r"mis-shaped: decoder\.conv_in\.weight"):  # as many values are not enough
        from_weights(vae.config, turned, "diffusers", torch.float32)
    with pytest.raises(UserError, match="no key"):
        config_from_native({"weight": torch.zeros(1)})
    with pytest.raises(UserError, match="4 latent channels"):
        published_whitening(4)
    with pytest.raises(UserError, match="pickles are never loaded"):
        load_wan_vae(tmp_path / "Wan2.1_VAE.pth")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "VideoVAE"}))
    with pytest.raises(UserError, match="VideoVAE"):
        load_wan_vae(tmp_path)


# ---- pitfalls: each is put back, and parity must break --------------------------------------------


def edge_in_time(monkeypatch: pytest.MonkeyPatch, vae: CausalVAE) -> None:
    """The first frame repeated before the video, where the original has zeros."""
    causal_conv = causal.causal_conv

    def repeated(x: Tensor, past: Tensor | None, *args: Any) -> Tensor:
        return causal_conv(x, x[:, :1].expand(-1, 2, -1, -1, -1) if past is None else past, *args)

    monkeypatch.setattr(causal, "causal_conv", repeated)


def first_frame_in_the_history(monkeypatch: pytest.MonkeyPatch, vae: CausalVAE) -> None:
    """Doubling of time that remembers the frame it passed through."""
    forward = causal.Grow.forward

    def remembering(self: causal.Grow, x: Tensor, history: History) -> Tensor:
        if self.time is not None and not history.started:
            history.keep(self, x[:, :1], 2)
        return forward(self, x, history)

    monkeypatch.setattr(causal.Grow, "forward", remembering)


def padding_on_the_left(monkeypatch: pytest.MonkeyPatch, vae: CausalVAE) -> None:
    """The zeros of halving space at the top and left, where the original has them at the bottom and right."""
    conv2d = causal.conv2d
    monkeypatch.setattr(causal, "conv2d", lambda x, *args, **more: conv2d(x.roll((1, 1), (2, 3)), *args, **more))


def norm_without_the_root(monkeypatch: pytest.MonkeyPatch, vae: CausalVAE) -> None:
    """Unit length instead of unit root mean square."""
    forward = causal.ChannelNorm.forward
    monkeypatch.setattr(
        causal.ChannelNorm, "forward", lambda self, x, spent=False: forward(self, x) / x.shape[-1] ** 0.5
    )


def no_matrix_before_the_decoder(monkeypatch: pytest.MonkeyPatch, vae: CausalVAE) -> None:
    monkeypatch.setattr(vae.decoder, "latent", nn.Identity())


def attention_across_frames(monkeypatch: pytest.MonkeyPatch, vae: CausalVAE) -> None:
    segments = causal.Segments
    monkeypatch.setattr(causal, "Segments", lambda bounds: segments(bounds[[0, -1]]))


def patches_row_by_row(monkeypatch: pytest.MonkeyPatch, vae: CausalVAE) -> None:
    """The order in which most others fold; without folding there is nothing to confuse."""
    fold, unfold = causal.fold, causal.unfold
    monkeypatch.setattr(causal, "fold", lambda x, patch: fold(x.mT, patch).transpose(2, 3))
    monkeypatch.setattr(causal, "unfold", lambda x, patch: unfold(x.transpose(2, 3), patch).mT)


def unpaired_first_frame(monkeypatch: pytest.MonkeyPatch, vae: CausalVAE) -> None:
    """The first frame averaged with itself, where the original has zeros."""
    average = causal.average

    def repeated(x: Tensor, outputs: int, time: int, started: bool) -> Tensor:
        return average(x if started or time == 1 else torch.cat([x[:, :1], x], dim=1), outputs, time, True)

    monkeypatch.setattr(causal, "average", repeated)


BOTH, ENCODER, DECODER = (True, True), (True, False), (False, True)


@pytest.mark.parametrize(
    ("pitfall", "values", "sides"),
    [
        (edge_in_time, WAN_2_1_TINY, BOTH),
        (first_frame_in_the_history, WAN_2_1_TINY, DECODER),
        (padding_on_the_left, WAN_2_1_TINY, ENCODER),
        (norm_without_the_root, WAN_2_1_TINY, BOTH),
        (no_matrix_before_the_decoder, WAN_2_1_TINY, DECODER),
        (attention_across_frames, WAN_2_1_TINY, BOTH),
        (patches_row_by_row, WAN_2_2_TINY, BOTH),
        (unpaired_first_frame, WAN_2_2_TINY, ENCODER),
    ],
)
def test_a_pitfall_breaks_parity(  # type: ignore[no-untyped-def]
    pitfall, values: dict[str, Any], sides: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = peer(values)
    vae = ours(model)
    assert max(errors(model, vae, 5)) < LIMIT
    pitfall(monkeypatch, vae)
    for value, broken in zip(errors(model, vae, 5), sides, strict=True):
        assert value > 1e-3 if broken else value < LIMIT


def test_the_map_names_every_weight_once() -> None:
    for config in (WAN_2_1, WAN_2_2):
        for kind in ("diffusers", "native"):
            table = wan_vae.table(config, kind)  # type: ignore[arg-type]
            assert len({entry.theirs for entry in table}) == len(table)
