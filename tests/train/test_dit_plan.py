"""Plans of the diffusion transformer: shapes are read, mistakes are named."""

from dataclasses import replace

import pytest

from worldline.errors import UserError
from worldline.train.dit_plan import plan_check, shapes_of
from worldline.train.vae import hooks_of


def test_shapes_are_read(setting):
    plan, *_ = setting
    shapes = ("48x32x5", "32x32x65/4", "32x32x5@64x48", "32x32x65/4+pushes")
    tall, long, cut, pushed = shapes_of(replace(plan, shapes=shapes)).values()
    assert (tall.width, tall.height, tall.frames, tall.groups, tall.crop) == (48, 32, 5, 0, ())
    assert (long.frames, long.groups) == (65, 4)
    assert (cut.width, cut.height, cut.frames, cut.crop) == (64, 48, 5, (32, 32))
    assert [clips.pushed for clips in (tall, long, cut, pushed)] == [False, False, False, True]
    counts = replace(plan, shapes=shapes[:2], shape_clips=(7, 9))
    assert [clips.count for clips in shapes_of(counts).values()] == [7, 9]
    with pytest.raises(UserError, match="shape_clips"):
        shapes_of(replace(counts, shape_clips=(1, 2, 3)))
    assert len({clips.seed for clips in (tall, long, cut)}) == 3
    for wrong in ("48x32", "48x32x5/", "64x64x5@32x64", "ax32x5"):
        with pytest.raises(UserError, match="shapes"):
            shapes_of(replace(plan, shapes=(wrong,)))


def test_a_model_without_masks_learns_from_nothing_known(setting):
    plan, *_ = setting
    bare = replace(plan, config=replace(plan.config, masks=False), vae="somewhere")
    with pytest.raises(UserError, match="nothing_known"):
        plan_check(bare)
    plan_check(replace(bare, nothing_known=(1.0,)))


def test_mistakes_are_named(setting):
    plan, _, _ = setting
    with pytest.raises(UserError, match="vae: name the folder"):
        plan_check(replace(plan, vae=""))
    with pytest.raises(UserError, match="styles"):
        plan_check(replace(plan, styles=(1.0,)))
    with pytest.raises(UserError, match="'scores' is unknown"):
        hooks_of(plan.loop, {"scores": lambda *a: None})
