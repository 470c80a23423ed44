"""A tiny diffusion transformer's plan, with an untrained autoencoder and cached latents, for all tests of training."""

import pytest
import torch

from worldline.dit.model import DiTConfig
from worldline.text import WordConfig
from worldline.train.dit_plan import DiTPlan
from worldline.train.plan import LoopPlan, OptimPlan
from worldline.train.precompute import ClipsPlan, cache_latents
from worldline.train.vae import export, vae_hash
from worldline.train.vae import load as load_vae
from worldline.vae.latents import Whitening
from worldline.vae.model import MICRO, VideoVAE

SMALL = DiTConfig(width=32, depth=2, heads=2, text_width=16, rope_axes=(4, 6, 6), learned_positions=(8, 8, 8))


@pytest.fixture(scope="session")
def setting(tmp_path_factory):
    """A plan with an untrained VAE on disk, its cached latents and their whitening."""
    folder = tmp_path_factory.mktemp("dit")
    torch.manual_seed(0)
    vae = VideoVAE(MICRO)
    export(MICRO, vae.state_dict(), folder / "run" / "vae")
    plan = DiTPlan(
        vae=str(folder / "run"),
        config=SMALL,
        text=WordConfig(words=(), heads=2),
        clips=ClipsPlan(count=12, frames=9, height=32, width=32, slice=12, workers=0),
        latents=str(folder / "latents"),
        batch=4,
        images=(0.2,),
        validate_clips=4,
        dtype="float32",
        optim=OptimPlan(lr=2e-3, warmup=3, ema=0.9),
        loop=LoopPlan(steps=20, checkpoint_every=5, log_every=5, validate_every=10, sample_every=10),
    )
    loaded = load_vae(plan.vae)
    latents = cache_latents(plan.clips, loaded, vae_hash(loaded), folder / "latents" / "train", None, print)
    return plan, latents, Whitening.fit(latents.mean, latents.std)
