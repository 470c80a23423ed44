"""Trains the video VAE on cached world clips and, when given, real clips; exports the averaged weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldline.checkpoints.image_vae import load_image_vae
from worldline.errors import UserError
from worldline.parallel.mesh import join
from worldline.train.loop import Callback, Hook, Outcome, Pack, Task
from worldline.train.loop import train as run_task
from worldline.train.plan import LoopPlan, OptimPlan, ParallelPlan, numpy_rng, plan_dict, torch_rng
from worldline.train.precompute import ClipsPlan, Slices, cache_clips, held_out, to_pixels
from worldline.vae.adversarial import Discriminator, adaptive_weight, hinge, judged
from worldline.vae.codec import CodecConfig, VideoCodec
from worldline.vae.image import ImageVAE, ImageVAEConfig
from worldline.vae.losses import Distance, LossWeights, reconstruct
from worldline.vae.model import VAEConfig, VideoVAE
from worldline.vae.perceptual import Lpips

WEIGHTS = "diffusion_pytorch_model.safetensors"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class VAEPlan:
    """Everything about a VAE run. `real`: .npy files of uint8 (N, T, H, W, 3) clips; their last 5 % only validate."""

    name: str = "vae"
    seed: int = 0
    config: VAEConfig = field(default_factory=VAEConfig)
    clips: ClipsPlan = field(default_factory=ClipsPlan)
    real: tuple[str, ...] = ()
    real_fraction: float = 0.25  # of the rows of a batch, when `real` is given
    batch: int = 8  # clips of full length; shorter ones come in more rows, so that every step costs the same
    lengths: tuple[int, ...] = (17, 17, 17, 9, 1)  # frames, drawn uniformly per step; 1 is an image
    sharpen_from: float = 0.3  # share of the run after which l1 and edge join the squared error (L1 first stalls)
    l1: float = 0.05
    edge: float = 0.5
    structure: float = 0.0  # of 1 - MS-SSIM, from `sharpen_from` on as well
    perceptual: float = 0.0  # of LPIPS, likewise; needs `lpips`
    lpips: str = ""  # safetensors with the weights of LPIPS, see `vae.perceptual`
    adversarial: float = 0.0  # of the discriminator's verdict, times a weight that makes it as strong as the rest
    adversarial_from: float = 0.5  # share of the run after which it joins
    discriminator_width: int = 64
    image: str = ""  # folder of a Stable Diffusion autoencoder: only layers in time of its decoder are trained
    kl: float = 1e-6
    noise: float = 0.0  # largest spread of the noise that the decoder learns to mend (latents have about 1)
    validate_clips: int = 64
    dtype: str = "bfloat16"
    device: str = "cpu"
    optim: OptimPlan = field(default_factory=lambda: OptimPlan(lr=2e-3, warmup=100, ema=0.999))
    loop: LoopPlan = field(default_factory=LoopPlan)
    parallel: ParallelPlan = field(default_factory=ParallelPlan)


@dataclass(frozen=True)
class Batch:
    """Pixels float (B, 3, T, H, W) in [-1, 1], the noise of the posterior's sample, and how far the run is (0..1)."""

    pixels: Tensor
    noise: torch.Generator
    done: float


class RealClips:
    """Clips of several .npy files as one list; random crops in space and time bring them to the batch's shape."""

    def __init__(self, paths: tuple[str, ...], height: int, width: int) -> None:
        self.files = [_open_clips(path, height, width) for path in paths]
        self.sizes = [max(1, int(len(file) * 0.95)) for file in self.files]
        self.height, self.width = height, width

    def draw(self, rng: np.random.Generator, rows: int, frames: int) -> np.ndarray:
        """Training rows (rows, frames, height, width, 3); a clip that is too short holds its last frame."""
        share = np.array(self.sizes) / sum(self.sizes)
        files = rng.choice(len(self.files), rows, p=share)
        return np.stack([self._crop(rng, self.files[k][rng.integers(self.sizes[k])], frames) for k in files])

    def validation(self, count: int, frames: int) -> np.ndarray:
        """Up to `count` clips that training never draws, centre-cropped."""
        pairs = zip(self.files, self.sizes, strict=True)
        kept = [file[index] for file, size in pairs for index in range(size, len(file))]
        chosen = [kept[i] for i in np.linspace(0, len(kept) - 1, min(count, len(kept))).astype(int)]
        return np.stack([self._crop(None, clip, frames) for clip in chosen]) if chosen else np.empty((0,), np.uint8)

    def _crop(self, rng: np.random.Generator | None, clip: np.ndarray, frames: int) -> np.ndarray:
        starts = []
        for have, want in zip(clip.shape[:3], (frames, self.height, self.width), strict=True):
            room = max(0, have - want)
            starts.append(int(rng.integers(room + 1)) if rng is not None else room // 2)
        t, y, x = starts
        piece = np.asarray(clip[t : t + frames, y : y + self.height, x : x + self.width])
        short = frames - len(piece)
        return np.concatenate([piece, np.repeat(piece[-1:], short, 0)]) if short else piece


def _open_clips(path: str, height: int, width: int) -> np.ndarray:
    try:
        clips: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"real: {path} is not a readable .npy file ({error})") from None
    if clips.ndim != 5 or clips.dtype != np.uint8 or clips.shape[4] != 3 or min(clips.shape[:2]) < 1:
        raise UserError(f"real: {path} holds {clips.dtype} {clips.shape}; uint8 (N, T, H, W, 3) is needed")
    if clips.shape[2] < height or clips.shape[3] < width:
        size = f"{clips.shape[3]}x{clips.shape[2]}"
        raise UserError(f"real: {path} holds frames of {size}; at least {width}x{height} is needed")
    return clips


def make_batch(plan: VAEPlan, clips: Slices, real: RealClips | None, step: int, number: int = 0) -> Pack:
    """A pack of a step: rows, lengths and crops all follow from (plan.seed, step, number); packs are of one length."""
    full = plan.clips.frames
    frames = min(int(numpy_rng(plan.seed, step, "vae-length").choice(plan.lengths)), full)
    rng = numpy_rng(plan.seed, step, f"vae-pack-{number}")
    batch = plan.batch // plan.parallel.packs
    rows = min(batch * 4, max(1, batch * full // frames))
    real_rows = round(rows * plan.real_fraction) if real is not None else 0
    chosen = rng.integers(len(clips), size=rows - real_rows)
    world = clips[chosen]
    start = int(rng.integers(full - frames + 1))
    arrays = [world[:, start : start + frames]]
    if real is not None and real_rows:
        arrays.append(real.draw(rng, real_rows, frames))
    pixels = to_pixels(np.concatenate(arrays))
    noise = torch_rng(plan.seed, step, f"vae-noise-{number}", plan.device)
    names = (*(f"world/{row}" for row in chosen), *["real"] * real_rows)
    return Pack(Batch(pixels, noise, step / plan.loop.steps), (float(rows),), names)


class Trainee(nn.Module):
    """The autoencoder, and the discriminator that learns beside it where a plan has one.

    They are one model to the loop: one optimizer, one checkpoint, one resume.
    """

    def __init__(self, vae: VideoCodec, discriminator: Discriminator | None = None) -> None:
        super().__init__()
        self.vae = vae
        self.discriminator = discriminator


def trainee_loss(
    plan: VAEPlan, model: Trainee, batch: Batch, distance: Distance | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted loss of `vae.losses`, and once it has begun what both sides of the discriminator minimise.

    One backward pass serves both: the verdict on the reconstruction sees the discriminator's weights as numbers, the
    discriminator's own loss sees the reconstruction as numbers.
    """
    weight = next(model.vae.parameters())
    pixels = batch.pixels.to(weight.device, weight.dtype)
    made = reconstruct(model.vae, pixels, weights_of(plan, batch.done), batch.noise, distance)
    judge = model.discriminator
    if judge is None or batch.done < plan.adversarial_from:
        return made.loss, made.terms
    verdict = judged(judge, made.pixels)
    strength = adaptive_weight(made.loss, verdict, last_layer(model.vae))
    apart = hinge(judge(pixels), judge(made.pixels.detach()))
    terms = {**made.terms, "verdict": verdict.detach(), "strength": strength, "judge": apart.detach()}
    return made.loss + plan.adversarial * strength * verdict + apart, terms


def last_layer(vae: VideoCodec) -> Tensor:
    """The weights at which losses are held against each other: the last that are trained."""
    trained = [value for name, value in vae.named_parameters() if value.requires_grad and value.ndim > 1]
    head: Tensor = vae.get_submodule("decoder.head").weight  # type: ignore[assignment]
    return head if head.requires_grad else trained[-1]


def weights_of(plan: VAEPlan, done: float) -> LossWeights:
    """The weights of the terms once so much of the run is over."""
    weights = LossWeights(kl=plan.kl, noise=plan.noise)
    if done < plan.sharpen_from:
        return weights
    return replace(weights, l1=plan.l1, edge=plan.edge, structure=plan.structure, perceptual=plan.perceptual)


@torch.no_grad()
def psnr(vae: VideoCodec, clips: np.ndarray, batch: int = 16) -> float:
    """Mean over clips of the PSNR in dB of the posterior mean's reconstruction; clips uint8 (N, T, H, W, 3)."""
    weight = next(vae.parameters())
    values = []
    for start in range(0, len(clips), batch):
        pixels = to_pixels(clips[start : start + batch])
        decoded = vae.decode(vae.encode(pixels.to(weight)).mean, tuple(pixels.shape[2:]))  # type: ignore[arg-type]
        decoded = decoded.float().clamp(-1, 1).cpu()
        error = (decoded - pixels).square().mean((1, 2, 3, 4))
        values.append(10 * torch.log10(4.0 / error.clamp_min(1e-10)))
    return float(torch.cat(values).mean())


def train(
    plan: VAEPlan,
    out: str | Path,
    resume: bool = False,
    callbacks: Mapping[str, Callback] | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Trains and exports `out/vae/` (config.json, safetensors). Callbacks "sample" and "score" get (step, vae, folder).

    World clips are rendered once into `out/clips`. Raises UserError for a plan that cannot run.
    """
    out = Path(out)
    plan_check(plan)
    crew = join(plan.parallel, plan.device)
    unseen = held_out(plan.clips, plan.validate_clips)
    with crew.first_alone():
        clips = cache_clips(plan.clips, out / "clips", say)
        worlds = cache_clips(unseen, out / "clips-validation", say)[np.arange(plan.validate_clips)]
    real = RealClips(plan.real, plan.clips.height, plan.clips.width) if plan.real else None
    footage = real.validation(plan.validate_clips, plan.clips.frames) if real else np.empty((0,), np.uint8)
    model = build(plan, clips, real).to(crew.device)
    frozen = {name: value.detach().cpu().clone() for name, value in model.vae.state_dict().items()}
    distance = Lpips.load(plan.lpips).to(crew.device, DTYPES[plan.dtype]) if plan.perceptual else None

    def validate(averaged: nn.Module) -> dict[str, float]:
        assert isinstance(averaged, Trainee)
        values = {"psnr_world": psnr(averaged.vae, worlds)}
        if len(footage):
            values["psnr_real"] = psnr(averaged.vae, footage)
        return values

    task = Task(
        model=model,
        pack=lambda step, number: make_batch(plan, clips, real, step, number),
        loss=lambda module, batch: trainee_loss(plan, module, batch, distance),  # type: ignore[arg-type]
        samples=plan.batch,
        dtype=DTYPES[plan.dtype],
        validate=validate,
    )
    calls = {name: _of_vae(call) for name, call in (callbacks or {}).items()}
    outcome = run_task(task, plan, out, resume, hooks_of(plan.loop, calls))
    if crew.first:
        learned = {name.removeprefix("vae."): v for name, v in outcome.weights.items() if name.startswith("vae.")}
        export(model.vae.config, {**frozen, **learned}, out / "vae")
    return outcome


def _of_vae(call: Callback) -> Callback:
    """A callback that is asked for the autoencoder alone."""
    return lambda step, averaged, folder: call(step, averaged.vae, folder)  # type: ignore[arg-type]


def build(plan: VAEPlan, clips: Slices, real: RealClips | None) -> Trainee:
    """The untrained networks, seeded; the autoencoder's skip path is the closed-form PCA codec of some training clips,
    or it is that of `plan.image`, frozen but for its layers in time."""
    torch.manual_seed(plan.seed)
    if plan.image:
        image = load_image_vae(plan.image)
        image.train_time_only()
        vae: VideoCodec = image
    else:
        vae = own = VideoVAE(plan.config)
        rng = numpy_rng(plan.seed, 0, "vae-pca")
        sample = clips[rng.integers(len(clips), size=min(256, len(clips)))]
        if real is not None:
            sample = np.concatenate([sample, real.draw(rng, len(sample), plan.clips.frames)])
        own.init_from_pca(to_pixels(sample))
    return Trainee(vae, Discriminator(plan.discriminator_width) if plan.adversarial else None)


def hooks_of(limits: LoopPlan, callbacks: Mapping[str, Callback] | None) -> list[Hook]:
    """The callbacks with their intervals."""
    every = {"sample": limits.sample_every, "score": limits.score_every}
    for name in callbacks or {}:
        if name not in every:
            raise UserError(f"callbacks: '{name}' is unknown; one of {', '.join(every)}")
    return [Hook(every[name], call) for name, call in (callbacks or {}).items()]


def plan_check(plan: VAEPlan) -> None:
    """Raises UserError for values that no run can have."""
    if plan.dtype not in DTYPES:
        raise UserError(f"dtype: '{plan.dtype}' is unknown; one of {', '.join(DTYPES)}")
    if plan.batch < 1 or plan.clips.count < 1 or not plan.lengths or min(plan.lengths) < 1:
        raise UserError("batch, clips.count and lengths must be at least 1")
    if plan.loop.steps < 1:
        raise UserError(f"loop.steps: {plan.loop.steps} must be at least 1")
    if plan.perceptual and not plan.lpips:
        raise UserError("perceptual: name the weights of LPIPS, for example --set lpips=lpips.safetensors, or use "
                        "structure, which needs none")  # fmt: skip
    if plan.adversarial and plan.discriminator_width % 8:
        raise UserError(f"discriminator_width: {plan.discriminator_width} must be a multiple of 8")
    if plan.batch % plan.parallel.packs:
        raise UserError(f"batch: {plan.batch} clips cannot be cut into {plan.parallel.packs} packs")


def export(config: VAEConfig | CodecConfig, weights: Mapping[str, Tensor], folder: Path) -> Path:
    """Writes config.json and the weights (fp32) of a VAE as a component folder."""
    kind = "ImageVAE" if isinstance(config, ImageVAEConfig) else "VideoVAE"
    return write_component(folder, {"_class_name": kind, **plan_dict(config)}, weights, WEIGHTS)


def write_component(folder: Path, config: Mapping[str, object], weights: Mapping[str, Tensor], file: str) -> Path:
    """Writes one component of a model folder; each file appears by one rename, the config last."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{file}.part"
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, temporary)
    os.replace(temporary, folder / file)
    temporary = folder / ".config.json.part"
    temporary.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(temporary, folder / "config.json")
    return folder


def load(folder: str | Path) -> VideoVAE:
    """A trained VAE of our own kind, as `load_codec`; raises UserError for another."""
    vae = load_codec(folder)
    if not isinstance(vae, VideoVAE):
        raise UserError(f"vae: {folder} holds an image autoencoder, whose latents nothing here is trained on yet")
    return vae


def load_codec(folder: str | Path) -> VideoCodec:
    """A trained VAE (fp32, eval) from a component folder, or from a folder that holds one as `vae/`."""
    folder = Path(folder)
    if (folder / "vae").is_dir():
        folder = folder / "vae"
    try:
        config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / WEIGHTS)
    except (OSError, ValueError) as error:
        raise UserError(f"vae: {folder} holds no trained VAE ({error}); run `worldline train vae` first") from None
    kind: Any = ImageVAE if config.get("_class_name") == "ImageVAE" else VideoVAE
    sizes: Any = ImageVAEConfig if kind is ImageVAE else VAEConfig
    vae: VideoCodec = kind(sizes(**{name: config[name] for name in sizes.__dataclass_fields__ if name in config}))
    try:
        vae.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"vae: {folder} holds weights that do not fit its config.json ({reason})") from None
    return vae.eval().requires_grad_(False)


def vae_hash(vae: VideoVAE) -> str:
    """A short name of the VAE's weights, under which latents are cached."""
    digest = hashlib.sha256()
    for name, value in sorted(vae.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
