"""Whitening: unit variance, the half-way lever, round trips through its inverse and JSON, refusals."""

from __future__ import annotations

import json

import pytest
import torch

from worldline.errors import UserError
from worldline.vae.latents import Whitening, pixel_importance
from worldline.vae.model import MICRO, VideoVAE

MEAN, STD = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([3.0, 1.0, 0.25])


def latents() -> torch.Tensor:
    noise = torch.randn(8, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    return noise * STD.view(-1, 1, 1, 1) + MEAN.view(-1, 1, 1, 1)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_spread_after_whitening(power: float) -> None:
    """Standard deviations are std^(1 - power) up to one factor, and their mean square is one."""
    z = Whitening.fit(MEAN, STD, power=power).forward(latents())
    spread = z.transpose(0, 1).flatten(1).std(dim=1)
    torch.testing.assert_close(spread / spread[1], STD ** (1 - power), rtol=0.03, atol=0)
    assert float(spread.square().mean()) == pytest.approx(1.0, rel=0.03)
    torch.testing.assert_close(z.mean((0, 2, 3, 4)), torch.zeros(3), atol=0.05, rtol=0)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_inverse(power: float) -> None:
    whitening, z = Whitening.fit(MEAN, STD, power=power), latents()
    torch.testing.assert_close(whitening.inverse(whitening.forward(z)), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whitening.forward(z)[0], whitening.forward(z[0]))  # with and without a batch


def test_json_round_trip_is_exact() -> None:
    whitening = Whitening.fit(MEAN, STD, importance=torch.tensor([9.0, 4.0, 1.0]), power=0.5)
    again = Whitening.from_dict(json.loads(json.dumps(whitening.to_dict())))
    assert torch.equal(again.forward(latents()), whitening.forward(latents()))


def test_identity_changes_nothing() -> None:
    assert torch.equal(Whitening.identity(3).forward(latents()), latents())


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"mean": [0.0], "std": [1.0]},
        {"mean": [0.0], "std": [1.0, 1.0], "gain": [1.0]},
        {"mean": [0.0], "std": [0.0], "gain": [1.0]},
        {"mean": [float("nan")], "std": [1.0], "gain": [1.0]},
        {"mean": "many", "std": [1.0], "gain": [1.0]},
    ],
)
def test_damaged_values_are_refused_in_one_line(values: dict[str, object]) -> None:
    with pytest.raises(UserError, match="whitening") as error:
        Whitening.from_dict(values)
    assert "\n" not in str(error.value)


def test_importance_of_the_linear_codec_is_known() -> None:
    """At the start the decoder is linear: RMS change of a channel = its std * |column| / sqrt(768)."""
    torch.manual_seed(0)
    vae, x = VideoVAE(MICRO), torch.rand(32, 3, 1, 32, 32) * 2 - 1
    vae.init_from_pca(x)
    with torch.no_grad():
        z = vae.encode(x).mean
    measured = pixel_importance(vae, z)
    expected = z.transpose(0, 1).flatten(1).std(dim=1) * vae.decoder.pca.weight.norm(dim=0) / 768**0.5
    torch.testing.assert_close(measured, expected.detach(), rtol=1e-2, atol=0)
    assert (measured.diff() < 0).all()  # principal components come in falling order
