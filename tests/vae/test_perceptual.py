"""LPIPS: the published formula on random weights, and files that are none."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from worldline.errors import UserError
from worldline.vae.perceptual import DEVIATION, LEVELS, MEAN, Lpips

THIN = (4, 6, 8, 8, 8)


@pytest.fixture
def weights():
    g, found, inputs = torch.Generator().manual_seed(0), {}, 3
    for level, (width, numbers) in enumerate(zip(THIN, LEVELS, strict=True)):
        for number in numbers:
            found[f"features.{number}.weight"] = torch.randn(width, inputs, 3, 3, generator=g) / (3 * inputs**0.5)
            found[f"features.{number}.bias"] = 0.1 * torch.randn(width, generator=g)
            inputs = width
        found[f"lin{level}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=g)
    return found


def by_hand(found, x, y):
    """Torchvision's `features` one number after another: convolution, ReLU, and a pooling before each later level."""
    total = 0.0
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, DEVIATION))
    a, b = (x - shift) / scale, (y - shift) / scale
    pools = {4, 9, 16, 23}
    taps = {numbers[-1]: level for level, numbers in enumerate(LEVELS)}
    for number in range(29):
        if number in pools:
            a, b = F.max_pool2d(a, 2, 2), F.max_pool2d(b, 2, 2)
        if f"features.{number}.weight" not in found:
            continue
        a, b = (
            F.conv2d(z, found[f"features.{number}.weight"], found[f"features.{number}.bias"], padding=1).relu()
            for z in (a, b)
        )
        if number in taps:
            apart = (F.normalize(a, dim=1, eps=1e-10) - F.normalize(b, dim=1, eps=1e-10)).square()
            total = total + F.conv2d(apart, found[f"lin{taps[number]}.model.1.weight"]).mean((1, 2, 3))
    return total


def test_it_is_the_published_formula(tmp_path, weights) -> None:
    save_file(weights, tmp_path / "lpips.safetensors")
    model = Lpips.load(tmp_path / "lpips.safetensors")
    x, y = torch.rand(2, 2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    torch.testing.assert_close(model(x, y), by_hand(weights, x, y), atol=1e-6, rtol=1e-5)
    assert model(x, x).abs().max() == 0
    assert not any(p.requires_grad for p in model.parameters())


def test_files_that_do_not_hold_it_are_named(tmp_path, weights) -> None:
    with pytest.raises(UserError, match="not a readable safetensors"):
        Lpips.load(tmp_path / "none.safetensors")
    weights.pop("features.12.bias")
    save_file(weights, tmp_path / "short.safetensors")
    with pytest.raises(UserError, match=r"lacks 1 tensors.*features\.12\.bias"):
        Lpips.load(tmp_path / "short.safetensors")
