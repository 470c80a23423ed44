"""Packing: every sample once an epoch, no pack over its budget, equal work for every rank, no memory."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.data.packing import Cost, Packer, balanced
from worldline.errors import UserError

MIXED = np.random.default_rng(0).choice([16, 80, 120, 144, 240, 320, 1200, 1800], 12_000)
COST = Cost(1.0, 1 / 1500)


@pytest.mark.parametrize("ranks", [1, 4, 8])
@pytest.mark.parametrize("count", [5, 500, 12_000])
def test_every_sample_once_and_no_pack_over_its_budget(ranks: int, count: int) -> None:
    packer = Packer(MIXED[:count], 4096, 0, ranks, COST)
    packs = [pack for step in packer.steps(0) for pack in step]
    assert all(len(step) == ranks for step in packer.steps(0))
    assert all(0 < MIXED[pack].sum() <= 4096 for pack in packs)
    held = sorted(i for pack in packs for i in pack)
    assert sorted(set(held)) == list(range(count))
    assert len(held) == max(count, ranks)


def test_packs_are_full_and_ranks_equal() -> None:
    report = Packer(MIXED, 4096, 0, 8, COST).report()
    assert report["filled"] >= 0.98
    assert report["imbalance"] < 0.01
    drawn = np.random.default_rng(1).permutation(len(MIXED))  # packs as the samples come, of the same budget
    naive = [drawn[np.cumsum(MIXED[drawn]) // 4096 == k] for k in range(1400)]
    loads = np.array([COST.of(MIXED[pack]).sum() for pack in naive]).reshape(-1, 8)
    assert (loads.max(1) / loads.mean(1) - 1).mean() > 20 * report["imbalance"]


def test_a_step_depends_on_nothing_but_index_seed_and_number() -> None:
    one = Packer(MIXED, 4096, 3, 2, COST)
    per_epoch = len(one.steps(0))
    forward = [one.batch(k, 1) for k in range(per_epoch + 20)]
    other = Packer(MIXED.copy(), 4096, 3, 2, COST)
    assert [other.batch(k, 1) for k in reversed(range(per_epoch + 20))] == forward[::-1]
    assert Packer(MIXED, 4096, 4, 2, COST).batch(0) != one.batch(0)
    assert forward[per_epoch] != forward[0]  # another epoch, another order


def test_what_cannot_be_packed_is_told() -> None:
    with pytest.raises(UserError, match="a sample has 1800, more than the 1024 of a pack"):
        Packer(MIXED, 1024, 0)
    with pytest.raises(UserError, match="no samples"):
        Packer([], 1024, 0)


def test_balanced_parts_hold_every_item_once_and_cost_alike():
    rng = np.random.default_rng(0)
    costs = COST.of(rng.integers(50, 1500, 64)).tolist()
    parts = balanced(costs, 4)
    assert sorted(item for part in parts for item in part) == list(range(64))
    assert all(part == sorted(part) for part in parts)
    loads = [sum(costs[i] for i in part) for part in parts]
    assert max(loads) < 1.02 * min(loads)
    assert balanced(costs, 1) == [list(range(64))]
    assert balanced([1.0], 3) == [[0], [], []]
