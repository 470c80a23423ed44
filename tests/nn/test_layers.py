"""The hand-written layers against their equations and numerical gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worldline.errors import UserError
from worldline.nn import layers
from worldline.nn.attention import attention
from worldline.nn.layers import RowIndex, add_gated, in_bands, modulate, rms_normalise, sinusoids
from worldline.nn.rope import Rope, normalise_rotate, rope_tables


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rms_rows_have_unit_mean_square() -> None:
    y = rms_normalise(normal(5, 16).float() * 30, eps=0.0)
    torch.testing.assert_close(y.square().mean(-1), torch.ones(5))


def test_rms_ignores_scale_and_survives_zero() -> None:
    x = normal(4, 8).float()
    torch.testing.assert_close(rms_normalise(7 * x, 1e-12), rms_normalise(x, 1e-12))
    assert rms_normalise(torch.zeros(2, 8)).abs().max() == 0


def test_rms_gradient_equals_autograd_of_the_equation() -> None:
    x, weight = normal(6, 8).requires_grad_(), normal(6, 8, seed=1)
    (want,) = torch.autograd.grad((x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight).sum(), x)
    (have,) = torch.autograd.grad((rms_normalise(x) * weight).sum(), x)
    torch.testing.assert_close(have, want, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("index", [[0, 0, 2, 2, 2, 2, 1, 1], [0, 1, 1, 2, 0, 0, 0, 1]], ids=["runs of 2", "no runs"])
def test_modulation_reads_each_tokens_row(index: list[int]) -> None:
    rows, table, x = torch.tensor(index), normal(3, 4).requires_grad_(), normal(8, 4, seed=1)
    reader = RowIndex(rows, 3, torch.float64)
    gathered = reader.gather(table)
    torch.testing.assert_close(modulate(x, gathered, gathered), table[rows] + x * table[rows])
    torch.testing.assert_close(add_gated(x, gathered, x), x + x * table[rows])
    (have,) = torch.autograd.grad(modulate(x, gathered, gathered).square().sum(), table)
    (want,) = torch.autograd.grad((table[rows] + x * table[rows]).square().sum(), table)
    torch.testing.assert_close(have, want)


def test_runs_shorten_the_gather() -> None:
    assert len(RowIndex(torch.tensor([0, 0, 0, 0, 1, 1]), 2, torch.float32).index) == 3


def test_many_rows_take_the_other_path() -> None:
    rows, table = torch.arange(300).flip(0), normal(300, 2)
    reader = RowIndex(rows, 300, torch.float64)
    assert reader.one_hot is None
    torch.testing.assert_close(reader.gather(table)[:, 0], table[rows])


def test_sinusoids_tell_times_apart_and_start_at_one_and_zero() -> None:
    features = sinusoids(torch.tensor([0.0, 0.5, 0.501]), 8)
    torch.testing.assert_close(features[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    assert (features[1] - features[2]).abs().max() > 0.1


AXES = (4, 6, 6)


def tables(coords: Tensor) -> Rope:
    return rope_tables(coords, AXES, 100.0, torch.float64)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Queries (N, heads, D) of unit root mean square, rotated."""
    return normalise_rotate(x.repeat(1, 3, 1), torch.ones(2, x.shape[-1], dtype=x.dtype), rope)[0]


def grid() -> Tensor:
    return torch.tensor([[0, 0, 0], [1, 2, 3], [4, 0, 1], [2, 2, 2]])


def test_rotation_keeps_length_and_origin() -> None:
    x = rms_normalise(normal(4, 2, 16))
    y = rotate(x, tables(grid()))
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(y[0], x[0], atol=1e-5, rtol=1e-5)


def test_scores_depend_on_the_difference_of_positions_alone() -> None:
    q, k = normal(4, 1, 16), normal(4, 1, 16, seed=1)
    moved = grid() + torch.tensor([3, 5, 2])
    here = torch.einsum("nhd,mhd->nm", rotate(q, tables(grid())), rotate(k, tables(grid())))
    there = torch.einsum("nhd,mhd->nm", rotate(q, tables(moved)), rotate(k, tables(moved)))
    torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-5)  # angles are computed in fp32
    still = torch.einsum("nhd,mhd->nm", rms_normalise(q), rms_normalise(k))
    assert (here - still).abs().max() > 0.1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_axis_turns_its_own_channels(axis: int) -> None:
    coords = torch.zeros(1, 3, dtype=torch.long)
    coords[0, axis] = 5
    turned = ((rotate(torch.ones(1, 1, 16, dtype=torch.float64), tables(coords)) - 1).abs() > 1e-5).flatten()[:8]
    bands = torch.tensor([0] * 2 + [1] * 3 + [2] * 3)
    assert torch.equal(turned, bands == axis)


def test_queries_and_keys_against_the_equation_and_its_gradient() -> None:
    """The same with complex numbers: pairs (i, i + D/2) of x / rms(x) * gain, times exp(i angle)."""
    qkv, gain = normal(4, 6, 16).requires_grad_(), (1 + 0.3 * normal(2, 16, seed=1)).requires_grad_()
    rope, weights = tables(grid()), normal(3, 4, 2, 16, seed=2)
    turns = torch.complex(rope.cos[..., :8], rope.sin[..., 8:])  # (N, 1, 8)

    def plain(x: Tensor, g: Tensor) -> Tensor:
        y = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * g
        z = torch.complex(y[..., :8], y[..., 8:]) * turns
        return torch.cat([z.real, z.imag], -1)

    expected = (plain(qkv[:, :2], gain[0]), plain(qkv[:, 2:4], gain[1]), qkv[:, 4:])
    got = normalise_rotate(qkv, gain, rope)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    have = torch.autograd.grad(sum((a * w).sum() for a, w in zip(got, weights, strict=True)), (qkv, gain))
    want = torch.autograd.grad(sum((a * w).sum() for a, w in zip(expected, weights, strict=True)), (qkv, gain))
    for a, b in zip(have, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_odd_axes_are_refused() -> None:
    with pytest.raises(UserError, match="rope_axes"):
        rope_tables(grid(), (3, 7, 6), 100.0, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_gradients_the_bits_are_the_same(dtype: torch.dtype) -> None:
    """The hand-written Functions are skipped where nothing is to be differentiated."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3 * 2, 8, generator=generator).to(dtype)
    rope = rope_tables(torch.arange(20)[:, None].expand(-1, 3), (4, 2, 2), 100.0, dtype)
    gain = torch.rand(2, 8, generator=generator).to(dtype)

    def all_three() -> list[torch.Tensor]:
        q, k, v = normalise_rotate(x, gain, rope)
        return [rms_normalise(x), q, k, attention(q, k, v, torch.tensor([0, 7, 20]))]

    with torch.no_grad():
        plain = all_three()
    assert all(torch.equal(a, b) for a, b in zip(plain, all_three(), strict=True))


def test_rows_in_bands_are_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rest in the last band, several inputs and outputs, and differentiated as a whole."""
    seen: list[int] = []

    def f(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(x))
        return x * y, x + y

    monkeypatch.setattr(layers, "BAND_ROWS", 4)
    x, y = torch.randn(2, 10, 3).unbind(0)
    with torch.no_grad():
        got = in_bands(f, x, y)
    whole = in_bands(f, x, y)
    assert seen == [4, 4, 2, 10]
    assert all(torch.equal(a, b) for a, b in zip(got, whole, strict=True))
