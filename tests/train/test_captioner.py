"""The captioner: batches are pure, its lesson is true, it can learn by heart, and what is exported reads the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worldline.caption.captioner import Shipped, spread
from worldline.caption.net import LESSON, Captioner, CaptionerConfig
from worldline.errors import UserError
from worldline.train import captioner as task
from worldline.train.layout import layout_of
from worldline.train.plan import LoopPlan, OptimPlan
from worldline.train.precompute import ClipsPlan, scene_at
from worldline.worlds.captions import caption, in_order, mirrored
from worldline.worlds.facts import contradictions, read_facts
from worldline.worlds.render import render
from worldline.worlds.scene import Scene, Thing, sample_scene

CONFIG = CaptionerConfig(frames=3, side=32, channels=(8, 16), width=32, layers=1, writer_layers=1, heads=2)


@pytest.fixture(scope="module")
def plan() -> task.CaptionerPlan:
    return task.CaptionerPlan(
        config=CONFIG,
        clips=ClipsPlan(count=8, split="any", frames=3, height=32, width=32, fps=2.0, slice=8, workers=0),
        shapes=("48x32",),
        shape_clips=8,
        batch=2,
        validate_clips=2,
        dtype="float32",
        optim=OptimPlan(lr=3e-3, warmup=2, ema=0.5),
        loop=LoopPlan(steps=4, checkpoint_every=2, log_every=2, validate_every=4),
    )


@pytest.fixture(scope="module")
def finished(plan: task.CaptionerPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("captioner")
    task.train(replace(plan, loop=replace(plan.loop, minutes=1e-9)), out)
    task.train(plan, out, resume=True)
    return out


def test_a_run_stops_resumes_and_exports(plan: task.CaptionerPlan, finished: Path, tmp_path: Path) -> None:
    whole = task.train(plan, tmp_path)
    folder = finished / "captioner"
    for file in ("config.json", "model.safetensors"):
        assert (folder / file).read_bytes() == (tmp_path / "captioner" / file).read_bytes()
    made = Shipped(folder)
    assert made.model == "captioner"
    clip = np.random.default_rng(0).integers(0, 255, (5, 32, 48, 3), np.uint8)
    (said,) = made.describe([clip])
    pixels = task.pixels_of(torch.from_numpy(clip[spread(5, 3)])[None])
    whole.model.float()
    assert whole.model.captions(pixels)[0][0] == said.text  # type: ignore[operator]
    assert said.sure is not None
    assert 0 < said.sure < 1


def test_batches_are_pure_and_true(plan: task.CaptionerPlan, finished: Path) -> None:
    net = task.build(plan)
    worlds = [task.Worlds.of(plan.clips, finished / "clips", print)]
    one, other = (task.make_batch(plan, net, worlds, 3).data for _ in range(2))
    assert torch.equal(one.frames, other.frames)
    assert torch.equal(one.words, other.words)
    assert one.layouts.shape == (2, len(LESSON), 3, 4, 4)
    text = net.text(one.words[0].clamp_min(0).tolist())
    assert read_facts(text).things


def test_any_number_of_clips_of_any_size(finished: Path) -> None:
    made = Shipped(finished / "captioner")
    clips = [np.zeros((n, h, w, 3), np.uint8) for n, h, w in ((1, 16, 16), (40, 20, 90), (7, 200, 64), (3, 32, 32))]
    both = made.describe(clips, "short")
    assert [spoken.text for spoken in both] == [made.describe([clip], "short")[0].text for clip in clips]
    assert made.describe([]) == []
    with pytest.raises(UserError, match="knows short, full"):
        made.describe(clips, "poem")
    with pytest.raises(UserError, match="holds none"):
        Shipped(finished)


def test_it_can_learn_clips_by_heart() -> None:
    torch.manual_seed(0)
    net = Captioner(replace(CONFIG, words=(",", *sorted({"a", "red", "ball", "falls", "blue", "cube", "rises"}))))
    frames = torch.stack([torch.full((3, 3, 32, 32), -0.8), torch.full((3, 3, 32, 32), 0.8)])
    texts = ["a red ball falls", "a blue cube rises, a ball"]
    numbers = [net.numbers(text, "full") for text in texts]
    words = torch.full((2, max(map(len, numbers))), -1)
    for row, own in zip(words, numbers, strict=True):
        row[: len(own)] = torch.tensor(own)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        scores, _ = net(frames, words[:, :-1].clamp_min(0))
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), words[:, 1:].flatten(), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert [text for text, _ in net.captions(frames)] == texts
    assert [net.text(own) for own in numbers] == texts


def test_the_lesson_says_what_lies_where() -> None:
    scene = Scene((Thing("ball", "red", "large", "left"),), floor="striped")
    clip = render(scene, 3, 32, 32, 2.0)
    shares = layout_of(scene, clip.ids[:, None], 8, LESSON).astype(float) / 255
    covered = (clip.ids == 1).reshape(3, 4, 8, 4, 8).mean((2, 4))
    for name in ("ball", "red", "large", "left"):
        np.testing.assert_allclose(shares[LESSON.index(name)], covered, atol=0.003)
    np.testing.assert_allclose(shares[LESSON.index("striped")], 1 - covered, atol=0.003)
    assert shares[LESSON.index("blue")].sum() == 0


def test_a_run_may_begin_with_the_weights_of_another(plan: task.CaptionerPlan, finished: Path, tmp_path: Path) -> None:
    known = Shipped(finished / "captioner").net.state_dict()
    begun = task.build(replace(plan, start=str(finished / "captioner"))).state_dict()
    assert all(torch.equal(value, known[name]) for name, value in begun.items() if not name.startswith("lesson."))
    with pytest.raises(UserError, match="another size"):
        task.build(replace(plan, start=str(finished / "captioner"), config=replace(CONFIG, layers=2)))
    with pytest.raises(UserError, match="holds none"):
        task.build(replace(plan, start=str(tmp_path)))


def test_cameras_are_drawn_more_often_and_lie_where_no_thing_is() -> None:
    plan = ClipsPlan(count=60, split="any", cameras=0.5)
    moving = [scene for scene in (scene_at(plan, i) for i in range(60)) if scene.camera != "static"]
    assert 20 <= len(moving) <= 45
    assert scene_at(plan, 7) == scene_at(replace(plan, count=9), 7)
    clip = render(moving[0], 3, 32, 32, 2.0)
    shares = layout_of(moving[0], clip.ids[:, None], 8, LESSON)
    floors, cameras = (shares[LESSON.index(name)] for name in (moving[0].floor, moving[0].camera))
    np.testing.assert_array_equal(floors, cameras)
    assert cameras.max() == 255


def test_mirrored_scenes_are_mirrored_pictures() -> None:
    rng = np.random.default_rng(4)
    for _ in range(30):
        scene = sample_scene(rng, "any")
        things = tuple(replace(thing, shape="ball") for thing in scene.things)  # a cube's yaw is not mirrored
        scene = replace(scene, things=things)
        one, other = render(scene, 5, 32, 32, 4.0), render(mirrored(scene), 5, 32, 32, 4.0)
        assert (one.ids[:, :, ::-1] != other.ids).mean() < 0.002
        assert mirrored(mirrored(scene)) == scene


def test_things_are_named_in_an_order_that_can_be_seen() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        scene = sample_scene(rng, "any")
        turned = replace(scene, things=scene.things if scene.event else scene.things[::-1])
        text = caption(in_order(scene), rng, "full")
        assert caption(in_order(turned), rng, "full") == text
        assert not contradictions(read_facts(text), read_facts(caption(scene, rng, "full")))


def test_plans_that_cannot_run(plan: task.CaptionerPlan) -> None:
    for change, said in (
        ({"dtype": "float8"}, "dtype"),
        ({"batch": 0}, "batch"),
        ({"shapes": ("60x32",)}, "steps of 16"),
        ({"config": replace(CONFIG, frames=5)}, r"clips\.frames"),
    ):
        with pytest.raises(UserError, match=said):
            task.plan_check(replace(plan, **change))  # type: ignore[arg-type]
    assert "M parameters" in task.dry_run(plan)
