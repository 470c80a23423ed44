"""Causal convolutions: every kernel equals the plain equation, and each runs where it may."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from worldline.nn import convolution
from worldline.nn.convolution import (
    causal_conv,
    direct,
    doubled_causal_conv,
    doubled_conv2d,
    minimal_filtering,
    narrow,
    transforms,
)


def case(channels: int, outputs: int, frames: int, height: int, width: int, past: bool) -> tuple[Any, ...]:
    torch.manual_seed(0)
    x = torch.randn(2, frames, height, width, channels)
    before = torch.randn(2, 2, height, width, channels) if past else None
    return x, before, torch.randn(outputs, channels, 3, 3, 3) / (27 * channels) ** 0.5, torch.randn(outputs)


def plain(x: Tensor, past: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
    """Zeros around, two frames before, in fp64 and channels first."""
    whole = torch.cat([torch.zeros_like(x[:, :1].expand(-1, 2, -1, -1, -1)) if past is None else past, x], 1)
    padded = F.pad(whole.permute(0, 4, 1, 2, 3).double(), (1, 1, 1, 1))
    return F.conv3d(padded, weight.double(), bias.double()).permute(0, 2, 3, 4, 1)


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("size", [(1, 7, 9), (2, 8, 4), (3, 5, 30), (1, 1, 1)])
@pytest.mark.parametrize("kernel", [causal_conv, direct, narrow, minimal_filtering])
def test_every_kernel_is_the_equation(kernel: Any, size: tuple[int, int, int], past: bool) -> None:
    args = case(16, 24, *size, past)
    expected = plain(*args)
    assert float((kernel(*args) - expected).norm() / expected.norm()) < 2e-6
    x, before, *parameters = args
    bordered = [None if frames is None else F.pad(frames, (0, 0, 1, 1, 1, 1)) for frames in (x, before)]
    torch.testing.assert_close(kernel(*bordered, *parameters, margin=0), kernel(*args), atol=1e-5, rtol=0)


def test_bands_of_rows_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    args = case(16, 16, 3, 22, 18, True)
    whole = minimal_filtering(*args)
    monkeypatch.setattr(convolution, "BAND_BYTES", 1)
    torch.testing.assert_close(minimal_filtering(*args), whole, atol=1e-5, rtol=0)


def test_the_filter_is_the_correlation_of_six_values_with_three() -> None:
    """Lavin & Gray 2016, eq. 6, in fp64."""
    a, g, b = transforms()
    d, k = torch.randn(6, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    expected = torch.stack([(d[i : i + 3] * k).sum() for i in range(4)])
    torch.testing.assert_close(a @ ((g @ k) * (b @ d)), expected)


def test_the_fast_kernel_takes_no_gradient_and_no_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    x, past, weight, bias = case(16, 16, 2, 24, 24, True)
    called: list[int] = []
    monkeypatch.setattr(convolution, "minimal_filtering", lambda *args: called.append(1))
    causal_conv(x.bfloat16(), past.bfloat16(), weight.bfloat16(), bias.bfloat16())
    causal_conv(x, past, weight.requires_grad_(), bias).sum().backward()
    assert weight.grad is not None
    assert called == []
    with torch.no_grad():
        causal_conv(x, past, weight, bias)
    assert called == [1]


def test_doubling_then_convolving_needs_no_doubled_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 3, 5, 4, 6), torch.randn(7, 6, 3, 3), torch.randn(7)
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(0, 1).permute(0, 3, 1, 2)
    expected = F.conv2d(doubled, weight, bias, padding=1).permute(0, 2, 3, 1).unflatten(0, (2, 3))
    torch.testing.assert_close(doubled_conv2d(x, weight, bias), expected, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(convolution, "BAND_BYTES", 2 * 2 * 10 * 8 * 7 * 4)  # two frames of the result
    with torch.no_grad():
        torch.testing.assert_close(doubled_conv2d(x, weight, bias), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_doubling_time_as_well_needs_no_doubled_clip(frames: int) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, frames, 5, 4, 6), torch.randn(7, 6, 3, 3, 3), torch.randn(7)
    doubled = torch.cat([x[:, :1], x[:, 1:].repeat_interleave(2, 1)], 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    inner = doubled[:, :, 1:-1, 1:-1]  # a border of one small pixel is two doubled ones; a kernel reaches one
    expected = direct(inner, inner[:, :1].expand(-1, 2, -1, -1, -1), weight, bias, margin=0)
    torch.testing.assert_close(doubled_causal_conv(x, weight, bias), expected, atol=2e-5, rtol=1e-5)
