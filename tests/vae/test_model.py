"""The autoencoder: sizes, causality, images as one-frame videos, the closed-form start, noise and divergence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from worldline.errors import UserError
from worldline.vae.model import (
    MICRO,
    TINY,
    History,
    Posterior,
    VAEConfig,
    VideoVAE,
    depth_to_space,
    fold,
    space_to_depth,
    unfold,
)


def busy_vae(seed: int = 0) -> VideoVAE:
    """A small autoencoder whose zero heads were filled, so that every path shows in the output."""
    torch.manual_seed(seed)
    vae = VideoVAE(MICRO)
    for head in (vae.encoder.head, vae.decoder.head):
        torch.nn.init.normal_(head.weight, std=0.2)
    return vae.eval()


def video(frames: int, height: int = 16, width: int = 24, batch: int = 2, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, frames, height, width, generator=generator) * 2 - 1


@pytest.mark.parametrize("space", [2, 4])
def test_folding_is_a_bijection(space: int) -> None:
    x = video(8)
    folded = fold(x, 4, space)
    assert folded.shape == (2, 2, 16 // space, 24 // space, 3 * 4 * space**2)
    assert torch.equal(unfold(folded, 4, space), x)
    assert torch.equal(depth_to_space(space_to_depth(folded, 2), 2), folded)


def test_two_folds_of_two_keep_each_patch_together() -> None:
    """The linear path folds by 4, then by 2: one row must hold exactly the pixels of one 8x8 patch."""
    x = video(4, 16, 16, batch=1)
    row = space_to_depth(fold(x, 4, 4), 2)[0, 0, 1, 0]  # the patch at rows 8..15, columns 0..7
    assert torch.equal(row.sort().values, x[0, :, :, 8:, :8].flatten().sort().values)


@pytest.mark.parametrize("size", [(1, 8, 8), (2, 17, 9), (5, 16, 24), (6, 1, 31), (17, 23, 40)])
@torch.no_grad()
def test_any_size_and_length(size: tuple[int, int, int]) -> None:
    vae, (frames, height, width) = busy_vae(), size
    x = video(*size)
    z = vae.encode(x).mean
    assert z.shape == (2, 16, math.ceil((frames - 1) / 4) + 1, math.ceil(height / 8), math.ceil(width / 8))
    assert vae.decode(z, size).shape == x.shape
    assert vae.decode(z).shape[2] == 4 * (z.shape[2] - 1) + 1


@torch.no_grad()
def test_padding_repeats_the_edge() -> None:
    vae, x = busy_vae(), video(6, 13, 18)
    by_hand = torch.cat([x] + [x[:, :, -1:]] * 3, dim=2)
    by_hand = torch.cat([by_hand] + [by_hand[..., -1:, :]] * 3, dim=3)
    by_hand = torch.cat([by_hand] + [by_hand[..., -1:]] * 6, dim=4)
    torch.testing.assert_close(vae.encode(x).mean, vae.encode(by_hand).mean)


@torch.no_grad()
def test_an_image_is_the_first_frame_of_a_video() -> None:
    vae, x = busy_vae(), video(13)
    z = vae.encode(x).mean
    torch.testing.assert_close(vae.encode(x[:, :, :1]).mean, z[:, :, :1], atol=1e-5, rtol=0)
    torch.testing.assert_close(vae.decode(z[:, :, :1]), vae.decode(z)[:, :, :1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("changed", [1, 5, 9])
@torch.no_grad()
def test_the_future_does_not_change_the_past(changed: int) -> None:
    vae, x = busy_vae(), video(13)
    other = x.clone()
    other[:, :, changed:] = -x[:, :, changed:]
    z, z_other = vae.encode(x).mean, vae.encode(other).mean
    groups = (changed - 1) // 4 + 1  # latent frames whose pixels are all before the change
    torch.testing.assert_close(z_other[:, :, :groups], z[:, :, :groups], atol=1e-5, rtol=0)
    assert (z_other[:, :, groups] - z[:, :, groups]).abs().max() > 0.1
    mixed = torch.cat([z[:, :, :groups], z_other[:, :, groups:]], dim=2)
    pixels, pixels_mixed = vae.decode(z), vae.decode(mixed)
    torch.testing.assert_close(pixels_mixed[:, :, :changed], pixels[:, :, :changed], atol=1e-5, rtol=0)
    assert (pixels_mixed[:, :, changed] - pixels[:, :, changed]).abs().max() > 0.05


@torch.no_grad()
def test_the_past_reaches_the_future() -> None:
    """Without this, an autoencoder that codes every group alone would pass for causal."""
    vae, x = busy_vae(), video(9)
    other = x.clone()
    other[:, :, 0] = -x[:, :, 0]
    assert (vae.encode(x).mean[:, :, 1] - vae.encode(other).mean[:, :, 1]).abs().max() > 1e-3
    z = vae.encode(x).mean
    changed = torch.cat([-z[:, :, :1], z[:, :, 1:]], dim=2)
    assert (vae.decode(z)[:, :, 1:5] - vae.decode(changed)[:, :, 1:5]).abs().max() > 1e-3


@torch.no_grad()
def test_the_start_is_the_closed_form_linear_codec() -> None:
    """Eckart & Young 1936: the error of the best rank-16 code is the energy outside 16 singular values."""
    torch.manual_seed(0)
    vae, x = VideoVAE(MICRO), video(9, 32, 32, batch=6)
    x = torch.nn.functional.avg_pool3d(x, 3, 1, 1, count_include_pad=False) * 2
    claimed = vae.init_from_pca(x)
    groups = torch.cat([x[:, :, :1].expand(-1, -1, 3, -1, -1), x], dim=2)
    patches = space_to_depth(fold(groups, 4, 4), 2).flatten(0, 3).double()
    outside = torch.linalg.svdvals(patches - patches.mean(0))[16:].square().sum() / patches.numel()
    assert claimed == pytest.approx(10 * math.log10(4 / outside), abs=0.01)
    posterior = vae.encode(x)
    decoded = vae.decoder(posterior.mean.permute(0, 2, 3, 4, 1), History())  # with the three frames that decode drops
    assert float((decoded - groups).square().mean()) == pytest.approx(float(outside), rel=1e-3)
    spread = posterior.mean.transpose(0, 1).flatten(1).std(dim=1)
    torch.testing.assert_close(spread, torch.ones(16), atol=0.02, rtol=0)


@torch.no_grad()
def test_the_first_noise_is_equal_in_pixels_and_small() -> None:
    torch.manual_seed(0)
    vae, x = VideoVAE(MICRO), video(9, 32, 32, batch=6)
    vae.init_from_pca(x)
    posterior = vae.encode(x)
    noise = torch.exp(0.5 * posterior.logvar[0, :, 0, 0, 0])
    reach = noise * vae.decoder.pca.weight.norm(dim=0)  # pixels moved by one standard deviation of each channel
    torch.testing.assert_close(reach, reach.mean().expand(16), rtol=1e-3, atol=0)


def test_divergence_against_torch_distributions() -> None:
    mean, logvar = torch.randn(2, 16, 1, 2, 2), torch.randn(2, 16, 1, 2, 2)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, torch.exp(0.5 * logvar)), normal(0.0, 1.0)).mean()
    torch.testing.assert_close(Posterior(mean, logvar).kl(), expected)
    assert Posterior(torch.zeros(1), torch.zeros(1)).kl() == 0


def test_samples_have_the_posterior_s_moments_and_follow_the_generator() -> None:
    posterior = Posterior(torch.full((1, 1, 1, 200, 200), 2.0), torch.full((1, 1, 1, 200, 200), math.log(0.25)))
    draw = posterior.sample(torch.Generator().manual_seed(3))
    assert float(draw.mean()) == pytest.approx(2.0, abs=0.02)
    assert float(draw.std()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(draw, posterior.sample(torch.Generator().manual_seed(3)))


def test_every_weight_of_a_working_network_has_a_gradient() -> None:
    vae = busy_vae().train()
    posterior = vae.encode(video(9))
    (vae.decode(posterior.sample()).square().mean() + posterior.kl()).backward()
    dead = [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@torch.no_grad()
def test_half_precision_stays_close() -> None:
    vae, x = busy_vae(), video(5)
    exact = vae.decode(vae.encode(x).mean)
    rough = vae.bfloat16().decode(vae.encode(x.bfloat16()).mean)
    assert rough.dtype == torch.bfloat16
    assert float((rough.float() - exact).abs().mean()) < 0.02 * float(exact.abs().mean())


def test_config_survives_json_lists_and_refuses_odd_factors() -> None:
    assert VAEConfig(widths=[192, 128, 64], decoder_blocks=[2, 4, 1]) == TINY  # type: ignore[arg-type]
    with pytest.raises(UserError, match="spatial=6"):
        VAEConfig(spatial=6)


@pytest.mark.parametrize("shape", [(3, 5, 8, 8), (1, 4, 5, 8, 8), (1, 3, 0, 8, 8), (1, 3, 1, 8, 0)])
def test_pixels_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="pixels"):
        busy_vae().encode(torch.zeros(shape))
