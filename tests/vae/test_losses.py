"""Losses: their values on errors with a known answer, and the composition of the terms."""

from __future__ import annotations

import pytest
import torch

from worldline.vae.losses import LossWeights, edge_loss, reconstruct, structure_loss
from worldline.vae.model import MICRO, VideoVAE


def test_an_error_of_brightness_has_no_edges() -> None:
    x = torch.rand(1, 3, 2, 16, 16)
    assert float(edge_loss(x + 0.25, x)) == pytest.approx(0.0, abs=1e-10)


def test_a_ramp_has_a_closed_form() -> None:
    """An error of s*x has difference s at scale 0 and, after 2x2 averaging, 2s at scale 1: (s^2 + 4 s^2) / 2."""
    x = torch.zeros(1, 3, 2, 16, 16)
    ramp = 0.1 * torch.arange(16.0).expand_as(x)
    assert float(edge_loss(x + ramp, x, scales=1)) == pytest.approx(0.01, rel=1e-5)
    assert float(edge_loss(x + ramp, x, scales=2)) == pytest.approx(0.025, rel=1e-5)


def test_a_soft_edge_costs_more_than_a_smooth_error_of_the_same_energy() -> None:
    step = (torch.arange(16) >= 8).float().expand(1, 3, 1, 16, 16)
    soft = step.clone()
    soft[..., 7], soft[..., 8] = 0.25, 0.75
    energy = (soft - step).square().mean().sqrt()
    assert edge_loss(soft, step) > 2 * edge_loss(step + energy * torch.linspace(-1, 1, 16) * 3**0.5, step)


def test_tiny_pictures_have_no_second_scale() -> None:
    x = torch.rand(1, 3, 1, 2, 2)
    assert torch.isfinite(edge_loss(x, -x, scales=3))


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    torch.manual_seed(0)
    vae, x = VideoVAE(MICRO), torch.rand(1, 3, 5, 16, 16) * 2 - 1
    weights = LossWeights(l2=2.0, l1=0.3, edge=0.7, kl=1e-3)
    _, loss, terms = reconstruct(vae, x, weights, torch.Generator().manual_seed(0))
    expected = 2.0 * terms["l2"] + 0.3 * terms["l1"] + 0.7 * terms["edge"] + 1e-3 * terms["kl"]
    torch.testing.assert_close(loss.detach(), expected)
    assert loss.requires_grad
    assert not any(term.requires_grad for term in terms.values())
    _, again, _ = reconstruct(vae, x, weights, torch.Generator().manual_seed(0))
    assert torch.equal(loss, again)


def test_a_clip_whose_size_does_not_divide_is_compared_without_its_padding() -> None:
    vae, x = VideoVAE(MICRO), torch.rand(1, 3, 3, 10, 13) * 2 - 1
    _, _, terms = reconstruct(vae, x, LossWeights(kl=0.0), torch.Generator().manual_seed(1))
    posterior = vae.encode(x)
    decoded = vae.decode(posterior.sample(torch.Generator().manual_seed(1)))[:, :, :3, :10, :13]
    torch.testing.assert_close(terms["l2"], (decoded - x).square().mean().detach())


def test_a_few_steps_lower_the_loss_below_the_linear_codec() -> None:
    torch.manual_seed(0)
    vae = VideoVAE(MICRO)
    x = torch.rand(2, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae.init_from_pca(x)
    optimiser = torch.optim.Adam(vae.parameters(), lr=2e-3)
    losses = []
    for step in range(25):
        _, loss, _ = reconstruct(vae, x, LossWeights(), torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.97 * losses[0]


def test_structure_is_nothing_for_equals_and_grows_with_blur() -> None:
    x = torch.rand(1, 3, 2, 48, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert float(structure_loss(x, x)) == pytest.approx(0.0, abs=1e-5)
    soft = torch.nn.functional.avg_pool3d(x, (1, 3, 3), stride=1, padding=(0, 1, 1))
    softer = torch.nn.functional.avg_pool3d(x, (1, 5, 5), stride=1, padding=(0, 2, 2))
    assert 0.05 < float(structure_loss(soft, x)) < float(structure_loss(softer, x)) < 1


def test_one_scale_of_structure_is_the_ssim_of_the_paper() -> None:
    """Against the independent SSIM of `eval.quality`, on pictures too small for a second scale."""
    from worldline.eval.quality import ssim

    x = torch.rand(1, 3, 2, 20, 21, generator=torch.Generator().manual_seed(1)) * 2 - 1
    y = (x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))).clamp(-1, 1)
    one, other = (clip[0].permute(1, 2, 3, 0).double().numpy() for clip in (x, y))
    assert 1 - float(structure_loss(y, x)) == pytest.approx(ssim(one, other), abs=2e-4)


def test_structure_joins_the_sum_and_a_distance_where_there_is_one() -> None:
    torch.manual_seed(0)
    vae, x = VideoVAE(MICRO), torch.rand(1, 3, 1, 16, 16) * 2 - 1
    weights = LossWeights(structure=0.5, perceptual=2.0)
    made = reconstruct(
        vae, x, weights, torch.Generator().manual_seed(0), lambda a, b: (a - b).abs().mean((1, 2, 3)) + 1
    )
    expected = made.terms["l2"] + 1e-6 * made.terms["kl"] + 0.5 * made.terms["structure"] + 2 * made.terms["perceptual"]
    torch.testing.assert_close(made.loss.detach(), expected)
    assert float(made.terms["perceptual"]) > 1
