"""Every path of packed attention equals the plain reference, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worldline.nn import attention as module
from worldline.nn.attention import Segments, attention, reference

CASES = {
    "equal": ([6, 6, 6], None),
    "ragged": ([3, 7, 1, 7], None),
    "cross, equal queries, ragged keys": ([5, 5, 5], [2, 9, 1]),
    "cross, ragged": ([4, 2, 4], [3, 5, 8]),
    "cross, a sample without keys": ([4, 4], [0, 3]),
    "a sample without tokens": ([4, 0, 2], None),
    "one sample": ([9], [4]),
}


def cumulative(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def draw(lengths_q: list[int], lengths_k: list[int] | None) -> tuple[list[Tensor], Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    rows = sum(lengths_q), sum(lengths_q if lengths_k is None else lengths_k)
    shapes = [(rows[0], 2, 4), (rows[1], 2, 4), (rows[1], 2, 4)]
    qkv = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    return qkv, cumulative(lengths_q), None if lengths_k is None else cumulative(lengths_k)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("stored", [True, False], ids=["stored scores", "fused kernel"])
def test_equals_reference(name: str, stored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not stored:
        monkeypatch.setattr(module, "MAX_STORED_SCORES", {True: 0, False: 0})
    qkv, cu_q, cu_k = draw(*CASES[name])
    expected, got = reference(*qkv, cu_q, cu_k), attention(*qkv, cu_q, cu_k)
    # The stored path takes its softmax in fp32 whatever the inputs.
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    want = torch.autograd.grad((expected * weight).sum(), qkv)
    have = torch.autograd.grad((got * weight).sum(), qkv)
    for a, b in zip(have, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_samples_do_not_see_each_other() -> None:
    (q, k, v), cu, _ = draw([3, 5, 3], None)
    before = attention(q, k, v, cu)
    changed = [x.detach().clone() for x in (q, k, v)]
    for x in changed:
        x[3:8] += 1.0
    after = attention(*changed, cu)
    torch.testing.assert_close(after[:3], before[:3], atol=0, rtol=0)
    torch.testing.assert_close(after[8:], before[8:], atol=0, rtol=0)
    assert (after[3:8] - before[3:8]).abs().max() > 0.1


def test_scale_one_means_queries_carry_it() -> None:
    (q, k, v), cu, _ = draw([3, 5], None)
    torch.testing.assert_close(attention(q * 0.5, k, v, cu, scale=1.0), attention(q, k, v, cu))


def test_bfloat16_stays_near_the_reference() -> None:
    qkv, cu_q, cu_k = draw([5, 5, 5], [2, 9, 1])
    low = attention(*(x.bfloat16() for x in qkv), cu_q, cu_k)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), reference(*qkv, cu_q, cu_k), atol=0.03, rtol=0.03)


def test_segments_remember_lengths() -> None:
    segments = Segments(cumulative([2, 0, 3]))
    assert segments.lengths == [2, 0, 3]
    assert [len(rows) for rows in segments.split(torch.zeros(5), [(0, 2), (2, 3)])] == [2, 3]


@pytest.mark.parametrize("stored", [True, False], ids=["stored scores", "fused kernel"])
def test_causal_queries_see_no_later_key(stored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not stored:
        monkeypatch.setattr(module, "MAX_STORED_SCORES", {True: 0, False: 0})
    (q, k, v), cu, _ = draw([3, 5], None)
    got = attention(q, k, v, cu, causal=True)
    for first, length in ((0, 3), (3, 5)):
        for i in range(length):
            seen = slice(first, first + i + 1)
            alone = attention(q[first + i : first + i + 1], k[seen], v[seen], cumulative([1]), cumulative([i + 1]))
            torch.testing.assert_close(got[first + i], alone[0], atol=1e-6, rtol=1e-5)
