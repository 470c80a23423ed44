"""Caches: a clip is a pure function of its number, work resumes, and latents belong to one VAE."""

import dataclasses

import numpy as np
import pytest
import torch

from worldline.errors import UserError
from worldline.train import precompute
from worldline.train.layout import layout_of
from worldline.train.precompute import (
    ClipsPlan,
    Excerpt,
    cache_clips,
    cache_latents,
    excerpt_at,
    frames_of_times,
    scene_at,
    to_pixels,
)
from worldline.vae.model import MICRO, VideoVAE
from worldline.worlds.render import render
from worldline.worlds.scene import Scene

PLAN = ClipsPlan(count=6, frames=5, height=16, width=16, slice=4, workers=0)


def quiet(line):
    pass


def test_clip_i_is_scene_i_however_it_was_cached(tmp_path):
    clips = cache_clips(PLAN, tmp_path, quiet)
    index = np.array([5, 0])
    expected = np.stack([render(scene_at(PLAN, i), 5, 16, 16, PLAN.fps).frames for i in index])
    assert np.array_equal(clips[index], expected)
    assert len(clips) == 6


def test_a_cache_grows_and_finished_slices_stay(tmp_path, monkeypatch):
    cache_clips(PLAN, tmp_path, quiet)
    rendered = []
    monkeypatch.setattr(precompute, "render", lambda *a: rendered.append(a) or render(*a))
    grown = cache_clips(dataclasses.replace(PLAN, count=10), tmp_path, quiet)
    assert len(grown) == 10
    assert len(rendered) == PLAN.slice


def test_the_middle_of_a_picture_is_kept(tmp_path):
    plan = dataclasses.replace(PLAN, width=32, crop=(16, 16))
    whole = cache_clips(dataclasses.replace(plan, crop=()), tmp_path / "whole", quiet)
    for _ in range(2):  # a finished cache is known again
        cut = cache_clips(plan, tmp_path / "cut", quiet)
    index = np.arange(6)
    assert np.array_equal(cut[index], whole[index][:, :, :, 8:24])
    with pytest.raises(UserError, match="crop"):
        cache_clips(dataclasses.replace(plan, crop=(8, 16)), tmp_path / "cut", quiet)


def test_another_plan_is_refused(tmp_path):
    cache_clips(PLAN, tmp_path, quiet)
    with pytest.raises(UserError, match="frames 5, not 9"):
        cache_clips(dataclasses.replace(PLAN, frames=9), tmp_path, quiet)


def test_latents_are_the_posterior_means_beside_their_scenes(tmp_path):
    torch.manual_seed(0)
    vae = VideoVAE(MICRO).eval().requires_grad_(False)
    latents = cache_latents(PLAN, vae, "a", tmp_path / "latents", None, quiet)
    assert len(latents.values) == len(latents.scenes) == 6
    left = {path.name.split("-")[0] for path in (tmp_path / "latents").glob("*.npy")}
    assert left == {"latents", "layouts"}
    scene = Scene.from_json(latents.scenes[5])
    clip = render(scene, 5, 16, 16, PLAN.fps)
    assert np.array_equal(latents.layouts.row(5), layout_of(scene, clip.ids[frames_of_times((0, 1))], 8))
    assert latents.excerpts[5] == Excerpt(2, (0, 1))
    expected = vae.encode(to_pixels(clip.frames[None])).mean
    torch.testing.assert_close(torch.from_numpy(latents.values[np.array([5])]).float(), expected, rtol=2e-3, atol=2e-3)
    every = torch.from_numpy(np.concatenate(latents.values.maps)).double()
    torch.testing.assert_close(latents.mean, every.mean((0, 2, 3, 4)).float())
    torch.testing.assert_close(latents.std, every.std((0, 2, 3, 4), correction=0).float())
    with pytest.raises(UserError, match="vae a, not b"):
        cache_latents(PLAN, vae, "b", tmp_path / "latents", None, quiet)


def test_frames_of_a_vae_run_are_used(tmp_path, monkeypatch):
    cache_clips(PLAN, tmp_path / "clips", quiet)
    vae = VideoVAE(MICRO).eval().requires_grad_(False)
    whole = cache_latents(PLAN, vae, "a", tmp_path / "one", None, quiet)
    monkeypatch.setattr(precompute, "render", lambda *a: pytest.fail("rendered again"))
    reused = cache_latents(PLAN, vae, "a", tmp_path / "two", tmp_path / "clips", quiet)
    index = np.arange(6)
    assert np.array_equal(whole.values[index], reused.values[index])
    assert (tmp_path / "clips" / "frames-00001.npy").exists()


LONG = dataclasses.replace(PLAN, frames=241, groups=5)


def test_excerpts_are_of_every_kind_and_lie_within_their_clips():
    excerpts = [excerpt_at(LONG, i) for i in range(400)]
    assert excerpts == [excerpt_at(LONG, i) for i in range(400)]
    for excerpt in excerpts:
        times = np.array(excerpt.times)
        assert len(times) == 5
        assert (np.diff(times) > 0).all()
        assert 0 <= times[0] <= times[-1] < excerpt.total <= 61
    gaps = [set(np.diff(excerpt.times).tolist()) for excerpt in excerpts]
    assert sum(excerpt.whole for excerpt in excerpts) > 120
    assert sum(gap == {1} for gap in gaps) > 60  # neighbours
    assert sum(len(gap) == 1 and gap != {1} for gap in gaps) > 60  # a stretch
    assert sum(max(gap) > 3 and 1 in gap for gap in gaps) > 20  # far and near
    assert max(excerpt.total for excerpt in excerpts) > 45
    assert min(excerpt.total for excerpt in excerpts) < 8


def test_excerpts_of_pushed_things_are_neighbours_and_often_the_beginning():
    excerpts = [excerpt_at(dataclasses.replace(LONG, pushed=True), i) for i in range(300)]
    assert all(set(np.diff(excerpt.times).tolist()) == {1} for excerpt in excerpts)
    assert 80 < sum(excerpt.times[0] == 0 for excerpt in excerpts) < 200


def test_a_latent_of_an_excerpt_is_that_of_its_clip(tmp_path):
    torch.manual_seed(0)
    vae = VideoVAE(MICRO).eval().requires_grad_(False)
    latents = cache_latents(LONG, vae, "a", tmp_path, None, quiet)
    for row in range(LONG.count):
        excerpt = latents.excerpts[row]
        clip = render(Scene.from_json(latents.scenes[row]), 4 * (excerpt.total - 1) + 1, 16, 16, LONG.fps)
        numbers = frames_of_times(excerpt.times)
        assert np.array_equal(latents.layouts.row(row), layout_of(clip.scene, clip.ids[numbers], 8))
        expected = vae.encode(to_pixels(clip.frames[None])).mean[0][:, list(excerpt.times)]
        error = torch.from_numpy(latents.values.row(row).astype(np.float32)) - expected
        assert error.square().mean() < 0.02 * expected.square().mean()  # the past beyond one latent frame is left out
        if excerpt.times[0] == 0:
            assert error[:, 0].abs().max() < 0.01
