"""Batches of worlds: pure functions of their step, of many shapes in one budget, with what is taught beside them."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from worldline.errors import UserError
from worldline.train.dit import build
from worldline.train.dit_plan import PUSHES, plan_check, shapes_of
from worldline.train.flow import flow_loss
from worldline.train.plan import numpy_rng
from worldline.train.precompute import cache_latents
from worldline.train.vae import load as load_vae
from worldline.train.worlds import draw, make_batch, prompt_of

CPU = torch.device("cpu")


def test_batches_are_pure(setting):
    plan, latents, whitening = setting
    kinds = set()
    for step in range(20):
        one, two = (make_batch(plan, [latents], whitening, step).data for _ in range(2))
        assert one.prompts == two.prompts
        for name in ("noisy", "target", "timestep", "known", "mask", "coords", "cu_seqlens"):
            assert torch.equal(getattr(one, name), getattr(two, name))
        kinds.add((len(one.prompts), len(one.noisy)))
    assert kinds == {(4, 4 * 3 * 4), (12, 12 * 4)}  # clips of 3 latent frames, and as many single frames


def test_the_layout_is_taught_where_asked(setting):
    plan, latents, whitening = setting
    plan = replace(plan, layout=2.0)
    model = build(plan)
    first = make_batch(plan, [latents], whitening, 0).data
    assert first.layout.shape == (len(first.noisy), 12 * plan.config.cells)
    assert 0 < first.layout.max() <= 1
    loss, terms = flow_loss(model, first, CPU)
    torch.testing.assert_close(loss, terms["flow"] + 2 * terms["layout"])
    loss.backward()
    assert float(model.layout.out.weight.grad.abs().sum()) > 0
    assert make_batch(replace(plan, layout=0.0), [latents], whitening, 0).data.layout is None


def test_phases_move_the_timesteps_and_the_scenes(setting):
    plan, latents, whitening = setting
    plan = replace(plan, phases=(0, 10), time_mean=(0.0, 3.0), several=(1.0, 50.0), crossing=(1.0,))
    early, late = (
        [make_batch(plan, [latents], whitening, step).data for step in steps] for steps in (range(10), range(10, 20))
    )
    noise = [torch.stack([batch.timestep.mean() for batch in batches]).mean() for batches in (early, late)]
    assert noise[1] > noise[0] + 0.1
    drawn = draw(numpy_rng(0, 0, "test"), latents, 2000, 3.0)
    share = latents.several.mean()
    assert abs(latents.several[drawn].mean() - 3 * share / (1 + 2 * share)) < 0.04
    twice = draw(numpy_rng(0, 0, "test"), latents, 2000, 1.0, 2.0)
    share = latents.crossing.mean()
    assert abs(latents.crossing[twice].mean() - 2 * share / (1 + share)) < 0.04
    for wrong in ({"phases": (1, 2)}, {"several": ()}, {"time_mean": (0.0, 1.0, 2.0)}, {"shares": (1.0, 2.0)}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            plan_check(replace(plan, **wrong))


def test_steps_mix_shapes_within_one_budget_of_tokens(setting, tmp_path):
    plan, latents, whitening = setting
    plan = replace(
        plan, shapes=("48x32x5", "32x32x65/4"), shares=(0.4, 0.3, 0.3), shape_clips=(12,), batch=8, base_tokens=12
    )
    vae = load_vae(plan.vae)
    caches = [latents] + [
        cache_latents(clips, vae, "x", tmp_path / str(i), None, print)
        for i, clips in enumerate(shapes_of(plan).values())
    ]
    lengths = set()
    for step in range(20):
        batch = make_batch(plan, caches, whitening, step).data
        assert len(batch.noisy) <= 8 * 12 == 96
        sizes = batch.cu_seqlens.diff().tolist()
        lengths |= set(sizes)
        changes = sum(a != b for a, b in pairwise(sizes))
        assert changes < len(set(sizes))  # equal sizes lie side by side
        assert len(batch.noisy) > 96 / 2
    assert lengths == {12, 16, 4, 6}  # clips of 3x2x2 and 2x2x3 tokens; 4 or 3 latent frames of 2x2; images
    plain = replace(plan, phases=(0, 30), plain=(0.0, 1.0), images=(0.0,))
    alike, mixed = (make_batch(plain, caches, whitening, step).data.cu_seqlens.diff().unique() for step in (30, 29))
    assert alike.tolist() == [12]
    assert len(mixed) > 1
    farthest = max(int(make_batch(plan, caches, whitening, step).data.coords[:, 0].max()) for step in range(20))
    assert farthest > 4


def test_pushed_worlds_carry_what_drives_them(setting, tmp_path):
    plan, latents, whitening = setting
    plan = replace(plan, shapes=("32x32x65/4+pushes",), shares=(0.5, 0.5), shape_clips=(12,), images=(0.0,))
    with pytest.raises(UserError, match="actions"):
        plan_check(plan)
    plan = replace(plan, config=replace(plan.config, actions=PUSHES))
    plan_check(plan)
    (clips,) = shapes_of(plan).values()
    pushed = cache_latents(clips, load_vae(plan.vae), "x", tmp_path / "pushed", None, print)
    seen = 0
    for step in range(6):
        batch = make_batch(plan, [latents, pushed], whitening, step).data
        lengths = batch.cu_seqlens.diff().tolist()
        if batch.actions is None:
            assert set(lengths) == {12}
            continue
        assert batch.actions.shape == (len(batch.noisy), PUSHES + 1)
        for part, cells in zip(batch.actions.split(lengths), batch.mask.split(lengths), strict=True):
            assert part[:, -1].unique().numel() == 1
            if part[0, -1]:
                seen += 1
                frames = cells.amin(-1).view(-1, 4)[:, 0]  # of 2x2 tokens each
                assert frames[0] == 1
                assert (frames.diff() <= 0).all()
                assert (part.view(len(frames), 4, -1) == part.view(len(frames), 4, -1)[:, :1]).all()
            else:
                assert (part == 0).all()
        driving = batch
    assert seen > 3
    model = build(plan)
    torch.nn.init.normal_(model.dit.head.weight, std=0.1)  # zero at first, and with it every gradient
    flow_loss(model, driving, CPU)[0].backward()
    assert float(model.dit.actions.down.weight.grad.abs().sum()) > 0


def test_prompts_are_dropped_at_the_stated_rate(setting):
    plan, latents, _ = setting
    rng = numpy_rng(0, 0, "test")
    empty = sum(prompt_of(plan, latents.scenes[0], rng) == "" for _ in range(2000))
    assert abs(empty / 2000 - plan.drop_text) < 0.03
