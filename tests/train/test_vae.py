"""VAE training: batches are pure, training beats the linear codec it starts from, real clips join, resume is exact."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from worldline.checkpoints.image_vae import load_image_vae
from worldline.errors import UserError
from worldline.train import vae as task
from worldline.train.plan import LoopPlan, OptimPlan
from worldline.train.precompute import ClipsPlan, cache_clips
from worldline.vae.model import COMPRESSIONS, MICRO

PLAN = task.VAEPlan(
    config=MICRO,
    clips=ClipsPlan(count=16, frames=9, height=32, width=32, slice=16, workers=0),
    batch=4,
    lengths=(9, 9, 5, 1),
    validate_clips=4,
    dtype="float32",
    optim=OptimPlan(lr=2e-3, warmup=5, ema=0.9),
    loop=LoopPlan(steps=40, checkpoint_every=10, log_every=10, validate_every=20),
)


def quiet(line):
    pass


def test_batches_are_pure_and_cost_the_same(tmp_path):
    clips = cache_clips(PLAN.clips, tmp_path, quiet)
    batches = [task.make_batch(PLAN, clips, None, step).data for step in range(12)]
    for step, batch in enumerate(batches):
        again = task.make_batch(PLAN, clips, None, step).data
        assert torch.equal(batch.pixels, again.pixels)
        assert batch.noise.initial_seed() == again.noise.initial_seed()
        assert batch.pixels.abs().max() <= 1
    shapes = {tuple(batch.pixels.shape) for batch in batches}
    assert (16, 3, 1, 32, 32) in shapes  # images: more rows
    assert (4, 3, 9, 32, 32) in shapes


def test_training_beats_the_linear_codec_and_resumes_exactly(tmp_path):
    plan = dataclasses.replace(PLAN, lengths=(9,), sharpen_from=1.0)  # squared error alone: what PSNR measures
    clips = cache_clips(plan.clips, tmp_path / "clips", quiet)
    linear = task.psnr(task.build(plan, clips, None).vae, clips[np.arange(8)])
    whole = task.train(plan, tmp_path / "whole", say=quiet)
    cut = dataclasses.replace(plan, loop=dataclasses.replace(plan.loop, minutes=1e-9))
    assert not task.train(cut, tmp_path / "cut", say=quiet).finished
    resumed = task.train(plan, tmp_path / "cut", resume=True, say=quiet)
    assert all(torch.equal(value, resumed.weights[name]) for name, value in whole.weights.items())
    trained = task.load(tmp_path / "whole")
    assert task.psnr(trained, clips[np.arange(8)]) > linear + 0.2


def test_real_clips_join_the_batch_and_the_last_stay_unseen(tmp_path):
    footage = np.arange(40, dtype=np.uint8)[:, None, None, None, None] * np.ones((1, 12, 48, 40, 3), np.uint8)
    np.save(tmp_path / "real.npy", footage)
    plan = dataclasses.replace(PLAN, real=(str(tmp_path / "real.npy"),), real_fraction=0.5, lengths=(9,))
    real = task.RealClips(plan.real, 32, 32)
    clips = cache_clips(plan.clips, tmp_path / "clips", quiet)
    seen = set()
    for step in range(40):
        rows = task.make_batch(plan, clips, real, step).data.pixels[2:]
        assert rows.shape == (2, 3, 9, 32, 32)
        seen |= {round(float(row.mean() + 1) * 127.5) for row in rows}
    assert max(seen) <= 37  # 38 and 39 are the last 5 %
    assert set(real.validation(8, 9)[:, 0, 0, 0, 0].tolist()) == {38, 39}


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 3, 4), r"uint8 \(N, T, H, W, 3\)"),
        ((2, 3, 8, 8, 3), "at least 32x32"),
    ],
)
def test_bad_real_files_are_named(tmp_path, shape, words):
    np.save(tmp_path / "bad.npy", np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match=words):
        task.RealClips((str(tmp_path / "bad.npy"),), 32, 32)


def test_not_an_array_and_not_a_vae(tmp_path):
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(UserError, match="not a readable"):
        task.RealClips((str(tmp_path / "text.npy"),), 32, 32)
    with pytest.raises(UserError, match="holds no trained VAE"):
        task.load(tmp_path)
    with pytest.raises(UserError, match="dtype: 'float8'"):
        task.plan_check(dataclasses.replace(PLAN, dtype="float8"))


def test_a_discriminator_joins_late_learns_and_resumes_exactly(tmp_path):
    plan = dataclasses.replace(
        PLAN, adversarial=0.5, adversarial_from=0.5, discriminator_width=8, structure=0.1, sharpen_from=0.0,
        lengths=(9, 1), loop=LoopPlan(steps=8, checkpoint_every=3, log_every=1, validate_every=0),
    )  # fmt: skip
    whole = task.train(plan, tmp_path / "whole", say=quiet)
    judge = {name: value for name, value in whole.weights.items() if name.startswith("discriminator.")}
    clips = cache_clips(plan.clips, tmp_path / "whole" / "clips", quiet)
    first = task.build(plan, clips, None).state_dict()
    assert any(not torch.equal(value, first[name]) for name, value in judge.items())
    records = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert ["judge" in record for record in records] == [False] * 4 + [True] * 4
    assert all(record["structure"] > 0 for record in records)
    cut = dataclasses.replace(plan, loop=dataclasses.replace(plan.loop, minutes=1e-9))
    assert not task.train(cut, tmp_path / "cut", say=quiet).finished
    resumed = task.train(plan, tmp_path / "cut", resume=True, say=quiet)
    assert whole.weights.keys() == resumed.weights.keys()
    assert all(torch.equal(value, resumed.weights[name]) for name, value in whole.weights.items())
    assert not any("discriminator" in name for name in task.load(tmp_path / "whole").state_dict())


def test_an_image_autoencoder_learns_time_and_nothing_else(tmp_path):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(**blocks, block_out_channels=(8, 16), norm_num_groups=4).save_pretrained(tmp_path / "sd")
    plan = dataclasses.replace(
        PLAN, image=str(tmp_path / "sd"), lengths=(5,),
        loop=LoopPlan(steps=4, checkpoint_every=2, log_every=1, validate_every=2),
    )  # fmt: skip
    task.train(plan, tmp_path / "run", say=quiet)
    before, after = load_image_vae(tmp_path / "sd").state_dict(), task.load_codec(tmp_path / "run").state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("decoder.time.") for name in changed)
    with pytest.raises(UserError, match="image autoencoder"):
        task.load(tmp_path / "run")


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_every_compression_trains(name, tmp_path):
    """Of the preset's strides, with few channels."""
    preset = COMPRESSIONS[name]
    assert preset.compression == {"4x8x8": 48, "4x16x16": 64, "8x32x32": 192}[name]
    config = dataclasses.replace(MICRO, temporal=preset.temporal, spatial=preset.spatial)
    clips = np.random.default_rng(0).integers(0, 255, (2, 9, 64, 96, 3), np.uint8)
    model = task.build(dataclasses.replace(PLAN, config=config), clips, None)
    batch = task.Batch(task.to_pixels(clips), torch.Generator().manual_seed(0), 1.0)
    loss, _ = task.trainee_loss(PLAN, model, batch)
    loss.backward()
    latent = model.vae.encode(batch.pixels).mean.shape
    assert latent[2:] == (8 // preset.temporal + 1, 64 // preset.spatial, 96 // preset.spatial)


def test_lpips_needs_its_weights():
    with pytest.raises(UserError, match=r"lpips=lpips\.safetensors"):
        task.plan_check(dataclasses.replace(PLAN, perceptual=1.0))
