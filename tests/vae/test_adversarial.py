"""The discriminator: any length, gradients that reach one side each, and a weight that balances the pull."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from worldline.vae.adversarial import Discriminator, adaptive_weight, hinge, judged


@pytest.mark.parametrize("frames", [1, 2, 5, 17])
def test_a_clip_of_any_length_has_patches(frames: int) -> None:
    scores = Discriminator(8)(torch.zeros(2, 3, frames, 32, 40))
    assert scores.shape == (2, 1, -(-frames // 4), 4, 5)


def test_a_score_does_not_depend_on_the_other_clips() -> None:
    torch.manual_seed(0)
    judge, clips = Discriminator(8), torch.randn(3, 3, 5, 32, 32)
    torch.testing.assert_close(judge(clips)[1:2], judge(clips[1:2]))


def test_hinge_asks_no_more_of_what_is_told_apart() -> None:
    far = torch.full((4,), 3.0)
    assert float(hinge(far, -far)) == 0
    assert float(hinge(torch.zeros(4), torch.zeros(4))) == 1
    assert float(hinge(-far, far)) == 4


def test_the_verdict_moves_the_maker_alone() -> None:
    torch.manual_seed(0)
    judge = Discriminator(8)
    made = torch.randn(1, 3, 5, 16, 16, requires_grad=True)
    verdict = judged(judge, made)
    assert verdict.detach() == -judge(made).mean().detach()
    verdict.backward()
    assert made.grad is not None
    assert made.grad.abs().max() > 0
    assert all(p.grad is None for p in judge.parameters())


def test_the_weight_makes_both_pulls_equal() -> None:
    last = nn.Linear(4, 4)
    x = last(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
    loss, verdict = x.square().mean(), -7.0 * x.mean()
    weight = adaptive_weight(loss, verdict, last.weight)
    (usual,) = torch.autograd.grad(loss, last.weight, retain_graph=True)
    (other,) = torch.autograd.grad(weight * verdict, last.weight)
    assert float(other.norm()) == pytest.approx(float(usual.norm()), rel=1e-3)


def test_a_few_steps_tell_noise_from_smooth_clips() -> None:
    torch.manual_seed(0)
    judge = Discriminator(8)
    optimiser = torch.optim.Adam(judge.parameters(), lr=2e-3)
    losses = []
    for _ in range(30):
        real, made = torch.ones(2, 3, 1, 1, 1) * torch.randn(2, 3, 5, 1, 1), torch.randn(2, 3, 5, 16, 16)
        loss = hinge(judge(real.expand(2, 3, 5, 16, 16)), judge(made))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) / 5 < 0.5 * losses[0]
