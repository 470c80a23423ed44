"""Borrowed answers: none without leave, the right ones with it, and an error that is the true one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.dit.test_model import RAGGED, awake
from worldline.dit.mmdit import MMDiT, MMDiTConfig
from worldline.dit.reuse import Reuse


def blocks(scale: float) -> dict[str, Any]:
    return {"others": lambda left: left + scale, "answer": lambda x: 2 * x}


def test_only_small_changes_are_borrowed_and_the_rest_is_computed() -> None:
    reuse, entered = Reuse(0.1), torch.zeros(3, 2)
    first = torch.ones(3, 2)
    assert torch.equal(reuse(entered, first, **blocks(1.0)), torch.full((3, 2), 4.0))
    # The first block's share has changed by 5 %: the others are taken to add what they did, 1, whatever they would.
    assert torch.equal(reuse(entered, 1.05 * first, **blocks(5.0)), 2 * (1.05 * first + 1))
    assert (reuse.asked, reuse.reused, reuse.errors) == (2, 1, [])
    # By 15 % of what it was when all blocks last ran: they run, and 2 (1.15 + 1) would have stood for 2 (1.15 + 5).
    assert torch.equal(reuse(entered, 1.15 * first, **blocks(5.0)), 2 * (1.15 * first + 5))
    assert (reuse.asked, reuse.reused) == (3, 1)
    assert reuse.errors == pytest.approx([4 / 6.15])


def test_another_shape_begins_anew() -> None:
    reuse = Reuse(1.0)
    for rows in (3, 2):
        assert torch.equal(reuse(torch.zeros(rows, 2), torch.ones(rows, 2), **blocks(1.0)), torch.full((rows, 2), 4.0))
    assert reuse.reused == 0


@torch.no_grad()
def test_a_model_asked_twice_alike_runs_one_block_and_says_the_same() -> None:
    model, ran = awake(), list[int]()
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))  # type: ignore[misc]
    exact = model(**RAGGED)
    reuse = Reuse(0.01)
    ran.clear()
    for _ in range(2):
        torch.testing.assert_close(model(**RAGGED, reuse=reuse), exact, rtol=0, atol=1e-5)
    assert ran == [0, 1, 0]
    other: dict[str, Any] = {**RAGGED, "timestep": torch.zeros_like(RAGGED["timestep"])}
    assert torch.equal(model(**other, reuse=reuse), model(**other))
    assert len(reuse.errors) == 1
    assert reuse.errors[0] > 0.01


@torch.no_grad()
def test_text_and_tokens_in_two_streams_borrow_as_well() -> None:
    torch.manual_seed(0)
    small: dict[str, Any] = {"in_channels": 4, "width": 32, "heads": 2, "text_width": 12, "rope_axes": (4, 6, 6)}
    model = MMDiT(MMDiTConfig(depth=2, single_depth=2, vector_width=6, **small))
    samples = {"vector": torch.randn(4, 6)}
    batch: dict[str, Any] = {**RAGGED, "text": RAGGED["text"]._replace(**samples)}
    exact, reuse = model(**batch), Reuse(0.01)
    for _ in range(2):
        torch.testing.assert_close(model(**batch, reuse=reuse), exact, rtol=0, atol=1e-5)
    assert (reuse.asked, reuse.reused) == (2, 1)
