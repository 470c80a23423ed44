"""Plans: overrides are read by type, mistakes name the nearest field, seeds never collide."""

from dataclasses import dataclass, field

import pytest
import torch

from worldline.errors import UserError
from worldline.recipes import tiny
from worldline.train.plan import OptimPlan, completed, plan_changes, plan_dict, plan_overrides, seed_of, torch_rng


@dataclass(frozen=True)
class Example:
    seed: int = 0
    name: str = "a"
    sizes: tuple[int, ...] = (1, 2)
    limit: float | None = 3.0
    fast: bool = False
    optim: OptimPlan = field(default_factory=OptimPlan)


def test_overrides_follow_the_types():
    settings = ["optim.lr=1e-4", "seed=12", "sizes=4,5,6", "limit=none", "fast=true", "name=b=c"]
    plan = plan_overrides(Example(), settings)
    assert plan == Example(12, "b=c", (4, 5, 6), None, True, OptimPlan(lr=1e-4))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("optim.lrr=1", "nearest: lr"),
        ("sede=1", "nearest: seed"),
        ("seed", "name=value"),
        ("seed=1.5", "'seed' takes a value such as 0"),
        ("optim.lr=nan", "'lr' takes a value such as"),
        ("optim=3", "is a group"),
        ("seed.x=3", "plain value"),
        ("fast=maybe", "'fast' takes a value"),
    ],
)
def test_mistakes_are_one_line_with_a_way_out(setting, words):
    with pytest.raises(UserError) as error:
        plan_overrides(Example(), [setting])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_seeds_differ_in_every_argument():
    seeds = {seed_of(a, b, c) for a in range(20) for b in range(20) for c in ("x", "y")}
    assert len(seeds) == 800
    assert not torch.equal(
        torch.randn(4, generator=torch_rng(0, 1, "x")), torch.randn(4, generator=torch_rng(0, 2, "x"))
    )


def test_changes_name_the_fields():
    old, new = plan_dict(tiny.vae()), plan_dict(plan_overrides(tiny.vae(), ["optim.lr=0.5"]))
    assert plan_changes(old, new) == [f"optim.lr: {tiny.vae().optim.lr} -> 0.5"]
    assert plan_changes(old, old) == []
    stored = {**old, "optim": {name: value for name, value in old["optim"].items() if name != "kind"}}
    assert plan_changes(completed(stored, tiny.vae()), old) == []  # a field that came later


def test_every_recipe_field_can_be_set():
    for plan in (tiny.vae(), tiny.dit()):
        assert plan_overrides(plan, ["loop.minutes=5", "clips.count=3"]).clips.count == 3
