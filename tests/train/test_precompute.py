"""Caches: a clip is a pure function of its number, work resumes, and latents belong to one VAE."""

import dataclasses

import numpy as np
import pytest
import torch

from worldline.errors import UserError
from worldline.train import precompute
from worldline.train.layout import layout_of
from worldline.train.precompute import ClipsPlan, cache_clips, cache_latents, scene_at, to_pixels
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
    assert np.array_equal(latents.layouts[np.array([5])][0], layout_of(scene, clip.ids, 4, 8))
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
