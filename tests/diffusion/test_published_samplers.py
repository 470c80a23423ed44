"""Samplers step by step against the schedulers of diffusers, on the same sigmas and a smooth invented denoiser.

In double precision wherever the scheduler allows it: a difference is then one of method, not of rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from worldline.diffusion.samplers import dpmpp_2m, euler, unipc
from worldline.diffusion.timesteps import Spacing, at_timesteps, wan_schedule

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
Sampler = Callable[..., Tensor]


def invented(x: Tensor, t: Tensor) -> Tensor:
    """A velocity without structure that a solver could profit from; its places see each other."""
    return torch.tanh(2 * x + 0.3 * x.roll(1, -1)) * (1.2 - t) + 0.5 * torch.sin(3 * t) + 0.2 * x


def noise(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def worst_step(scheduler: Any, sampler: Sampler, sigmas: Tensor, x: Tensor) -> float:
    """Largest relative difference of the two after any step, both from the same noise on the scheduler's own way."""
    scheduler.sigmas = sigmas.clone()
    ours: list[Tensor] = []
    sampler(invented, x, sigmas, lambda i, x: ours.append(x))
    worst = 0.0
    for i, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(invented(x, sigmas[i]), timestep, x, return_dict=False)[0]
        worst = max(worst, float((x - ours[i]).norm() / x.norm()))
    assert len(ours) == len(scheduler.timesteps)
    return worst


def unipc_scheduler(steps: int, shift: float, **changes: Any) -> Any:
    """As the Wan pipelines configure it."""
    settings = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift, **changes}
    scheduler = diffusers.UniPCMultistepScheduler(**settings)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("spacing", ["authors", "diffusers"])
@pytest.mark.parametrize(("steps", "shift"), [(1, 3.0), (2, 3.0), (3, 1.0), (4, 3.0), (20, 5.0), (50, 16.0)])
def test_unipc_is_that_of_diffusers(spacing: Spacing, steps: int, shift: float) -> None:
    """Measured: at most 6e-16 in double precision, 4e-7 in single, where its coefficients are rounded and ours not."""
    sigmas, _ = wan_schedule(steps, shift, spacing)
    assert worst_step(unipc_scheduler(steps, shift), unipc, sigmas.double(), noise()) < 1e-13
    assert worst_step(unipc_scheduler(steps, shift), unipc, sigmas, noise(torch.float32)) < 1e-6


@pytest.mark.parametrize(
    "changes",
    [{"solver_type": "bh1"}, {"solver_order": 1}, {"solver_order": 3}, {"disable_corrector": list(range(20))},
     {"lower_order_final": False, "final_sigmas_type": "sigma_min"}],
)  # fmt: skip
def test_unipc_is_none_of_its_relatives(changes: dict[str, Any]) -> None:
    """The comparison tells bh2, order 2, the corrector and the last step's order from what they might be."""
    sigmas, _ = wan_schedule(10, 3.0)
    if "final_sigmas_type" in changes:
        sigmas = torch.cat([sigmas[:-1], torch.tensor([0.1])])
    assert worst_step(unipc_scheduler(10, 3.0, **changes), unipc, sigmas.double(), noise()) > 1e-4


def test_unipc_begins_at_pure_noise() -> None:
    """At 1, where log(alpha / sigma) is infinite, it is the limit of beginnings close to 1."""
    sigmas = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0], dtype=torch.float64)
    near = sigmas.clone()
    near[0] -= 1e-12
    difference = unipc(invented, noise(), sigmas) - unipc(invented, noise(), near)
    assert 1e-6 < difference.abs().max() < 0.02  # r = -26 instead of infinity: the slope fades as 1 / log


@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (4, 3.0), (20, 5.0)])
def test_euler_is_that_of_diffusers(steps: int, shift: float) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    assert worst_step(scheduler, euler, scheduler.sigmas.double(), noise()) < 1e-6  # it casts x to float32


numpy_2 = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # within diffusers


def dpm_scheduler(steps: int, shift: float) -> Any:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    scheduler.set_timesteps(steps)
    return scheduler


@numpy_2
@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (2, 3.0), (4, 3.0), (20, 5.0)])
def test_dpmpp_2m_is_that_of_diffusers(steps: int, shift: float) -> None:
    """Where sigmas begin below 1 and end at 0, as all of diffusers' own do."""
    sigmas = dpm_scheduler(steps, shift).sigmas.double()
    assert worst_step(dpm_scheduler(steps, shift), dpmpp_2m, sigmas, noise()) < 1e-6  # it casts x to float32


@numpy_2
def test_dpmpp_2m_from_pure_noise_is_that_of_diffusers_but_nothing_short_of_clean() -> None:
    """Both begin at 1 alike; where sigmas end above 0 only diffusers' last step is of order 1."""
    sigmas = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0], dtype=torch.float64)
    assert worst_step(dpm_scheduler(4, 1.0), dpmpp_2m, sigmas, noise()) < 1e-6
    sigmas[-1] = 0.1
    assert worst_step(dpm_scheduler(4, 1.0), dpmpp_2m, sigmas, noise()) > 1e-4


def test_a_model_of_timesteps_hears_its_own_in_order() -> None:
    sigmas, timesteps = wan_schedule(6, 5.0)
    heard: list[int] = []

    def predict(x: Tensor, timestep: Tensor) -> Tensor:
        heard.append(int(timestep))
        return invented(x, timestep / 1000)

    unipc(at_timesteps(predict, sigmas, timesteps), noise(torch.float32), sigmas)
    assert heard == timesteps.tolist()
