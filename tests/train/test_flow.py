"""Batches of packed tokens: known cells are clean and cost nothing, velocity leads from noise to data."""

from dataclasses import replace

import pytest
import torch

from worldline.diffusion.timesteps import unshift
from worldline.dit.patchify import patchify
from worldline.train.flow import Sample, assemble, flow_loss
from worldline.train.plan import torch_rng

CPU = torch.device("cpu")


def test_known_cells_are_clean_and_cost_nothing(setting):
    plan, _, _ = setting
    samples = [Sample(torch.randn(16, 3, 4, 4), torch.zeros(1, 3, 4, 4), range(3)) for _ in range(2)]
    samples[0].mask[:, :1] = 1
    times = unshift(torch.tensor([0.9, 0.5]), plan.shift)
    batch = assemble(plan, samples, times, ["a", "b"], torch_rng(0, 0, "test"))
    known = batch.mask.amin(-1) > 0
    assert known.sum() == 4
    assert torch.equal(batch.noisy[known], batch.known[known])
    assert (batch.timestep[known] == 0).all()
    torch.testing.assert_close(batch.timestep[~known].unique(), torch.tensor([0.5, 0.9]))
    answer = torch.where(known[:, None], 1e6, batch.target)  # wrong only where known

    class Oracle(torch.nn.Module):
        def forward(self, batch, device):
            return answer, None

    assert float(flow_loss(Oracle(), batch, CPU)[0]) == 0.0


def test_velocity_leads_from_noise_to_data(setting):
    plan, _, _ = setting
    clean = torch.randn(16, 3, 4, 4)
    times = unshift(torch.tensor([0.7]), plan.shift)
    batch = assemble(plan, [Sample(clean, torch.zeros(1, 3, 4, 4), range(3))], times, [""], torch_rng(0, 0, "test"))
    tokens, _ = patchify(clean, plan.config.patch)
    torch.testing.assert_close(batch.noisy - 0.7 * batch.target, tokens, rtol=1e-5, atol=1e-5)


def test_larger_samples_are_noised_more(setting):
    plan, _, _ = setting
    plan = replace(plan, base_tokens=4)
    samples = [Sample(torch.zeros(16, t, 4, 4), torch.zeros(1, t, 4, 4), range(t)) for t in (1, 4)]
    batch = assemble(plan, samples, torch.tensor([0.5, 0.5]), ["", ""], torch_rng(0, 0, "test"))
    small, large = (float(x) for x in batch.timestep.unique())
    assert small == pytest.approx(3 / 4)
    assert large == pytest.approx(6 / 7)  # four times the tokens, twice the shift
