"""The layout lesson: shares of cells by class, and a loss that is zero where they are met."""

import numpy as np
import torch

from worldline.train.layout import CLASSES, LayoutHead, layout_loss, layout_of
from worldline.train.precompute import frames_of_times
from worldline.worlds.render import render
from worldline.worlds.scene import Scene, Thing


def test_shares_count_the_pixels_of_each_class():
    scene = Scene((Thing("ball", "red", "large", x=-0.7), Thing("cube", "red", "small", x=0.8)))
    clip = render(scene, 9, 64, 64, 16.0)
    layout = layout_of(scene, clip.ids[frames_of_times(range(3))], 8)
    assert layout.shape == (12, 3, 8, 8)
    pixels = {name: layout[CLASSES.index(name)].astype(float).sum((1, 2)) / 255 * 64 for name in CLASSES}
    for group, frames in enumerate((slice(0, 1), slice(1, 5), slice(5, 9))):
        ball, cube = ((clip.ids[frames] == i).sum() / len(clip.ids[frames]) for i in (1, 2))
        assert abs(pixels["ball"][group] - ball) < 1
        assert abs(pixels["cube"][group] - cube) < 1
        assert abs(pixels["red"][group] - ball - cube) < 1
    assert sum(value.sum() for name, value in pixels.items() if name not in ("ball", "cube", "red")) == 0


def test_a_screen_is_no_thing():
    scene = Scene((Thing("cube", "blue", "small", "right", "fast", x=-1.5, z=-0.7),), event="hide")
    clip = render(scene, 17, 64, 64, 16.0)
    layout = layout_of(scene, clip.ids[frames_of_times(range(5))], 8)
    assert (clip.ids == 255).any()
    assert layout[CLASSES.index("cube")].sum() == layout[CLASSES.index("blue")].sum() > 0
    assert np.count_nonzero(layout.sum((1, 2, 3))) == 2


def test_the_loss_is_zero_where_shares_are_met_and_positive_elsewhere():
    shares = torch.rand(50, 48, generator=torch.Generator().manual_seed(0))
    assert abs(float(layout_loss(torch.logit(shares), shares))) < 1e-4
    assert float(layout_loss(torch.zeros(50, 48), shares)) > 0.5
    hard = (shares > 0.5).float()
    assert float(layout_loss(40 * hard - 20, hard)) < 1e-6


def test_the_head_starts_at_an_empty_picture():
    head = LayoutHead(32, 4)
    assert torch.allclose(head(torch.randn(5, 32)), torch.full((5, 48), -4.0))
