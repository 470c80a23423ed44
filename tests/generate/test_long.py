"""Plans of long videos: every frame painted once, in view of finished frames only, never too many at a time."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from worldline.dit.conditions import Conditions
from worldline.generate.long import PLANS, Step, paint, plan, seed_of

TIMELINES = {
    "nothing known": "." * 61,
    "a picture begins": "#" + "." * 40,
    "goes on": "###" + "." * 30,
    "what came before": "." * 30 + "##",
    "a join": "##" + "." * 20 + "###",
    "a short join": "##..#",
    "holes": "#..##......#...#",
    "one hole": "#." * 3,
    "short": "...",
    "one frame": ".",
    "all known": "####",
}


@pytest.mark.parametrize("timeline", TIMELINES)
@pytest.mark.parametrize("how", PLANS)
@pytest.mark.parametrize("window", [3, 5, 9])
def test_every_frame_is_painted_once_in_view_of_finished_ones(how: str, timeline: str, window: int) -> None:
    known = [mark == "#" for mark in TIMELINES[timeline]]
    finished = list(known)
    for step in plan(known, window, how):
        assert step.new
        assert all(finished[t] for t in step.seen)
        assert not any(finished[t] for t in step.new)
        assert step.times == sorted(set(step.times))
        if how != "whole":
            assert len(step.times) <= window
        for t in step.new:
            finished[t] = True
    assert all(finished)


def test_windows_see_their_neighbours_and_joins_both_sides() -> None:
    steps = plan([False] * 20, 6, "sliding")
    assert steps[0] == Step((0, 1, 2, 3, 4, 5))
    assert steps[1] == Step((6, 7, 8, 9), (4, 5))
    join = plan([True] * 4 + [False] * 2 + [True] * 4, 6, "sliding")
    assert join == [Step((4, 5), (2, 3, 6, 7))]
    backwards = plan([False] * 8 + [True] * 3, 6, "sliding")
    assert backwards == [Step((4, 5, 6, 7), (8, 9)), Step((0, 1, 2, 3), (4, 5))]


def test_long_range_looks_far_back() -> None:
    last = plan([False] * 100, 9, "long-range")[-1]
    assert last.seen[0] == 0
    assert last.seen[-1] == last.new[0] - 1
    assert any(20 < t < 60 for t in last.seen)


def test_a_hierarchy_begins_with_the_whole_span_and_then_goes_from_left_to_right() -> None:
    steps = plan([False] * 65, 9, "hierarchy")
    assert steps[0] == Step(tuple(range(0, 65, 8)))
    assert steps[1] == Step(tuple(range(1, 8)), (0, 8))
    assert [step.new[0] for step in steps[1:]] == [1 + 8 * i for i in range(8)]


@pytest.mark.parametrize("how", PLANS)
def test_painting_gives_out_each_latent_once_in_order(how: str) -> None:
    known = [True, True] + [False] * 15 + [True]
    mask = torch.tensor(known).float()[None, :, None, None].expand(1, -1, 2, 2).clone()
    latents = torch.arange(len(known)).float()[None, :, None, None].expand(3, -1, 2, 2) * mask
    seen: list[Step] = []

    def sample(number: int, step: Step, part: Conditions) -> torch.Tensor:
        assert number == len(seen)
        seen.append(step)
        expected = torch.tensor([t in step.seen for t in step.times]).float()
        assert torch.equal(part.mask[0, :, 0, 0], expected)
        assert torch.equal(part.known[0, :, 0, 0], torch.tensor(step.times) * expected)
        return torch.tensor(step.times).float()[None, :, None, None].expand(3, -1, 2, 2)

    steps = plan(known, 6, how)
    pieces = list(paint(Conditions(latents, mask), steps, sample))
    assert [done for done, _ in pieces] == list(range(1, len(steps) + 1))
    joined = torch.cat([piece for _, piece in pieces], dim=1)
    assert joined[0, :, 0, 0].tolist() == list(range(18))


def test_nothing_to_paint_gives_what_is_known() -> None:
    latents = torch.randn(3, 4, 2, 2)
    ((done, piece),) = paint(Conditions(latents, torch.ones(1, 4, 2, 2)), [], lambda *a: pytest.fail("painted"))
    assert done == 0
    assert torch.equal(piece, latents)


def test_seeds_differ_by_step() -> None:
    seeds = {seed_of(seed, number) for seed in range(3) for number in range(50)}
    assert len(seeds) == 150
    assert seed_of(7, 0) == 7
    assert all(a >= 0 for a, _ in pairwise(seeds))
