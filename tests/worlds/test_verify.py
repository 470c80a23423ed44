"""The reader is right about worlds, whole or damaged, and wrong prompts are refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from benchmarks.verify import changed
from worldline.errors import UserError
from worldline.worlds.render import Clip, render
from worldline.worlds.scene import COLOURS, KINDS, Scene, Thing, sample_scene
from worldline.worlds.verify import ATTRIBUTES, REQUIRED, Reading, judge, read
from worldline.worlds.verify_nets import WEIGHTS, shape_log_probs
from worldline.worlds.verify_training import blurred, mixed, train_shapes, vae_like

CLIPS = 63  # nine of each kind


@cache
def _clips() -> list[Clip]:
    rng = np.random.default_rng(20261121)
    return [render(sample_scene(rng, "any", list(KINDS)[i % len(KINDS)])) for i in range(CLIPS)]


@cache
def _readings() -> list[Reading]:
    return [read(clip.frames) for clip in _clips()]


def test_clean_clips_are_read_right() -> None:
    verdicts = [judge(reading, clip.scene) for reading, clip in zip(_readings(), _clips(), strict=True)]
    wrong = [(v, c.scene) for v, c in zip(verdicts, _clips(), strict=True) if not v["all"]]
    assert len(wrong) <= 1, wrong
    for attribute in ATTRIBUTES:
        assert np.mean([v[attribute] for v in verdicts]) >= 0.96, attribute


@pytest.mark.parametrize("damage", [blurred, vae_like])
def test_damaged_clips_are_read_right(damage: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    right = [judge(read(damage(clip.frames, rng)), clip.scene)["all"] for clip in _clips()]
    assert np.mean(right) >= 0.95


def test_the_caption_of_another_clip_is_refused() -> None:
    scenes = [clip.scene for clip in _clips()]
    accepted = [judge(r, scenes[(i + k) % CLIPS])["all"] for i, r in enumerate(_readings()) for k in (1, 7, 14, 30)]
    assert np.mean(accepted) <= 0.01


def test_one_changed_attribute_is_refused() -> None:
    rng = np.random.default_rng(1)
    accepted = []
    for reading, clip in zip(_readings(), _clips(), strict=True):
        for name, scene in changed(clip.scene, rng).items():
            verdict = judge(reading, scene)
            accepted.append((name, clip.scene) if verdict["all"] else None)
    assert sum(a is not None for a in accepted) <= 0.01 * len(accepted), [a for a in accepted if a]


def test_a_wrong_attribute_does_not_spoil_the_others() -> None:
    scene = Scene((Thing("ball", "red", "small", "right", x=-0.8),))
    reading = read(render(scene).frames)
    assert judge(reading, scene)["all"]
    green = dataclasses.replace(scene, things=(dataclasses.replace(scene.things[0], colour="green"),))
    verdict = judge(reading, green)
    assert [name for name in REQUIRED if not verdict[name]] == ["colour"]


def test_left_and_right_of() -> None:
    red, blue = Thing("ball", "red", "small", x=-0.8), Thing("cube", "blue", "small", x=0.8)
    reading = read(render(Scene((red, blue))).frames)
    assert judge(reading, Scene((red, blue)))["relation"]
    swapped = Scene((dataclasses.replace(red, x=0.8), dataclasses.replace(blue, x=-0.8)))
    assert not judge(reading, swapped)["relation"]


@pytest.mark.parametrize(("frames", "height", "width"), [(17, 96, 96), (17, 64, 112), (33, 64, 64), (9, 128, 128)])
def test_any_size_and_length(frames: int, height: int, width: int) -> None:
    rng = np.random.default_rng(frames + width)
    scenes = [sample_scene(rng, "any", kind) for kind in ("single", "pair", "camera", "group")]
    right = [
        judge(read(render(s, frames, height, width, (frames - 1.0)).frames, frames - 1.0), s)["all"] for s in scenes
    ]
    assert sum(right) >= 3


def test_vanishing_without_a_screen_is_not_hiding() -> None:
    scene = Scene((Thing("cube", "green", "small", "right", "fast", x=-1.5, z=-0.7),), event="hide", floor="plain")
    clip = render(scene)
    assert judge(read(clip.frames), scene)["all"]
    empty = render(Scene((dataclasses.replace(scene.things[0], x=50.0),), floor="plain")).frames
    erased = np.where((clip.ids == 255)[..., None], empty, clip.frames)
    verdict = judge(read(erased), scene)
    assert not verdict["relation"]


def test_a_lone_flickering_frame_changes_nothing() -> None:
    scene = Scene((Thing("cone", "yellow", "large", "left", x=0.8),), floor="checkered")
    frames = render(scene).frames.copy()
    frames[7] = frames[7] // 3
    assert judge(read(frames), scene)["all"]


def test_an_empty_video_shows_nothing() -> None:
    reading = read(np.full((17, 64, 64, 3), 128, np.uint8))
    assert reading.count == 0
    assert reading.camera == "static"
    assert not judge(reading, Scene((Thing("ball", "red", "small"),)))["all"]
    assert read(np.full((1, 8, 200, 3), 90, np.uint8)).count == 0


@pytest.mark.parametrize("seed", range(6))
def test_nonsense_is_read_without_a_crash(seed: int) -> None:
    """Noise, stripes of colour and scattered boxes, of odd sizes: a generator may draw anything."""
    rng = np.random.default_rng(seed)
    total, height, width = int(rng.integers(1, 12)), int(rng.integers(8, 90)), int(rng.integers(8, 90))
    frames = rng.integers(0, 256, (total, height, width, 3)).astype(np.uint8)
    if seed % 3:
        frames[:] = 128
        for _ in range(40):
            t, y, x = (int(rng.integers(0, n)) for n in (total, height, width))
            box = frames[t:, y : y + int(rng.integers(1, 6)), x : x + int(rng.integers(1, 60))]
            box[:] = rng.choice(np.array(list(COLOURS.values()))) * 255
    reading = read(frames)
    assert all(len(o.track) == total for o in reading.objects)
    assert set(judge(reading, Scene((Thing("ball", "red", "small"),)))) == {*ATTRIBUTES, "all"}


def test_a_still_image_can_be_read() -> None:
    scene = Scene((Thing("ball", "red", "large"), Thing("cube", "blue", "small", x=1.2)))
    scene = dataclasses.replace(scene, things=(dataclasses.replace(scene.things[0], x=-0.6), scene.things[1]))
    verdict = judge(read(render(scene, frames=1).frames), scene)
    assert verdict["all"]


def test_tracks_follow_the_objects() -> None:
    scene = Scene((Thing("ball", "cyan", "small", "right", "fast", x=-1.1),))
    clip = render(scene)
    found = read(clip.frames).objects[0]
    for t in range(17):
        rows, columns = np.nonzero(clip.ids[t] == 1)
        truth = ((columns.mean() + 0.5 - 32) / 32, (32 - rows.mean() - 0.5) / 32)
        np.testing.assert_allclose(found.track[t], truth, atol=0.04)
    assert found.visible.all()
    assert found.confidence > 0.9


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((4, 64, 64, 3), np.float32),
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((0, 64, 64, 3), np.uint8),
        np.zeros((4, 64, 64, 4), np.uint8),
        np.zeros((4, 4, 64, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(UserError, match="frames"):
        read(frames)


def test_reading_needs_neither_numba_nor_torch() -> None:
    code = (
        "import sys, numpy as np; from worldline.worlds.verify import read; "
        "read(np.zeros((3, 64, 64, 3), np.uint8)); "
        "assert not {'numba', 'torch'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_weights_are_small() -> None:
    assert WEIGHTS.stat().st_size <= 600_000


def test_the_numpy_net_is_the_trained_torch_net() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    crops = rng.normal(size=(16, 2, 20, 20)).astype(np.float32)
    w = train_shapes(crops, rng.integers(0, 4, 16), steps=3)
    x = torch.from_numpy(crops)
    for i in range(2):
        x = torch.conv2d(x, torch.from_numpy(w[f"conv.{i}.weight"]), torch.from_numpy(w[f"conv.{i}.bias"]), padding=1)
        x = torch.max_pool2d(x.relu(), 2)
    x = (x.flatten(1) @ torch.from_numpy(w["head.0.weight"]).T + torch.from_numpy(w["head.0.bias"])).relu()
    x = x @ torch.from_numpy(w["head.1.weight"]).T + torch.from_numpy(w["head.1.bias"])
    expected = x.log_softmax(-1).numpy()
    np.testing.assert_allclose(np.exp(shape_log_probs(w, crops)), np.exp(expected), atol=1e-4)


def test_damage_keeps_shape_and_type() -> None:
    frames = _clips()[0].frames
    out = [mixed(frames, np.random.default_rng(seed)) for seed in range(4)]
    assert all(x.shape == frames.shape and x.dtype == np.uint8 for x in out)
    assert len({x.tobytes() for x in out}) > 2
