"""Reads and writes model folders in the diffusers layout (see layout.py): configs as JSON, weights as safetensors."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldline import __version__
from worldline.checkpoints import layout
from worldline.checkpoints.layout import CONFIG_NAMES, INDEX, PIPELINE_CLASS, WEIGHT_STEMS, model_hash
from worldline.diffusion.timesteps import resolution_shift, schedule, wan_schedule
from worldline.dit.model import DiT, DiTConfig
from worldline.errors import UserError
from worldline.text import HFImage, TextEncoder, encoder_config, from_config
from worldline.vae.codec import VideoCodec
from worldline.vae.latents import Whitening
from worldline.vae.model import VAEConfig, VideoVAE

__all__ = ["Parts", "SchedulerConfig", "export", "load_parts", "model_hash", "save_pretrained"]

CARD = "README.md"
SHARD_BYTES = 16 * 2**20  # a file that git hosts and mail servers still take
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
Config = TypeVar("Config")


Spacing = Literal["even", "authors", "diffusers"]


@dataclass(frozen=True)
class SchedulerConfig:
    """How the model was noised, hence how it is sampled: rectified flow whose timesteps are moved by `shift`.

    Where `base_tokens` is not 0, `shift` is that of a video of so many tokens and others are moved more or less.
    """

    prediction_type: str = "velocity"
    shift: float = 3.0
    base_tokens: int = 0
    spacing: Spacing = "even"  # of the times; "authors" or "diffusers": Wan's, in whole timesteps (see `wan_schedule`)

    def __post_init__(self) -> None:
        if self.spacing not in get_args(Spacing):
            raise UserError(f"spacing={self.spacing!r}: one of {', '.join(get_args(Spacing))}")

    def times(self, steps: int, tokens: int) -> tuple[Tensor, Tensor | None]:
        """Sigmas (steps + 1,) of a video of `tokens` tokens, and the whole timesteps (steps,) of 1000 that the model
        was taught instead of them, if it was."""
        if self.spacing == "even":
            return schedule(steps, self.shift_at(tokens)), None
        return wan_schedule(steps, self.shift, self.spacing)

    def shift_at(self, tokens: int) -> float:
        """Shift of the timesteps of a video of `tokens` tokens."""
        return resolution_shift(tokens, self.base_tokens, self.shift) if self.base_tokens else self.shift


@dataclass(frozen=True)
class Parts:
    """Everything a pipeline is made of. `defaults`: width, height, frames, fps, steps, guidance_scale of `generate`.

    Where there are two experts, `dit` denoises at the times from `boundary` on (1 is pure noise) and `low` below it.
    `image` encodes the pictures that a model is told beside the prompt.
    """

    vae: VideoCodec
    dit: DiT
    text: TextEncoder
    whitening: Whitening
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    low: DiT | None = None
    boundary: float = 0.0
    image: HFImage | None = None


def load_parts(path: str | Path | None = None) -> Parts:
    """Read a whole model folder (None: the shipped model) as float32 modules in eval mode.

    Raises UserError for a folder that is missing, damaged, foreign, or whose weights do not fit their configs.
    """
    folder = layout.check(path)
    if layout.read_json(folder / INDEX)["_class_name"] != PIPELINE_CLASS:
        from worldline.checkpoints.wan import load

        return load(folder)
    vae_values = dict(layout.read_json(folder / "vae" / CONFIG_NAMES["vae"]))
    whitening = Whitening.from_dict(vae_values.pop("whitening", {}))
    vae = VideoVAE(_config(VAEConfig, vae_values, folder / "vae"))
    dit_values = layout.read_json(folder / "transformer" / CONFIG_NAMES["transformer"])
    dit = DiT(_config(DiTConfig, dit_values, folder / "transformer"))
    for module, component in ((vae, "vae"), (dit, "transformer")):
        load_weights(module, layout.weight_files(folder, component))
        module.eval().requires_grad_(False)
    scheduler_values = layout.read_json(folder / "scheduler" / CONFIG_NAMES["scheduler"])
    scheduler = _config(SchedulerConfig, scheduler_values, folder / "scheduler")
    defaults = layout.defaults(folder)
    return Parts(vae, dit, _load_text(folder), whitening, scheduler, defaults)


def save_pretrained(parts: Parts, folder: str | Path, dtype: str = "float16", overwrite: bool = False) -> Path:
    """Write a model folder, whole or not at all; weights are stored as `dtype` in shards of at most 16 MB.

    Raises UserError for an unknown dtype, a folder that exists (unless `overwrite`), or the parts of a public model.
    """
    if not isinstance(parts.vae, VideoVAE):
        raise UserError("only our own models are written so far: copy the folder of a public one")
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r}: unknown; one of {', '.join(DTYPES)}")
    with _replacing(Path(folder), overwrite) as new:
        vae_config = {**asdict(parts.vae.config), "whitening": parts.whitening.to_dict()}
        write_component(new, "vae", "VideoVAE", vae_config, parts.vae.state_dict(), DTYPES[dtype])
        write_component(new, "transformer", "DiT", asdict(parts.dit.config), parts.dit.state_dict(), DTYPES[dtype])
        text_weights = parts.text.state_dict() if isinstance(parts.text, nn.Module) else {}
        text_config = encoder_config(parts.text)
        write_component(new, "text_encoder", text_config["_class_name"], text_config, text_weights, DTYPES[dtype])
        scheduler = new / "scheduler" / CONFIG_NAMES["scheduler"]
        _write_json(scheduler, {"_class_name": "RectifiedFlow", **asdict(parts.scheduler)})
        index: dict[str, Any] = {"_class_name": PIPELINE_CLASS, "_worldline_version": __version__}
        for component in CONFIG_NAMES:
            name = layout.read_json(new / component / CONFIG_NAMES[component]).get("_class_name", component)
            index[component] = ["worldline", name]
        _write_json(new / INDEX, {**index, "defaults": dict(parts.defaults)})
        if (Path(folder) / CARD).is_file():
            shutil.copy(Path(folder) / CARD, new / CARD)  # the model card is written by hand: keep it
    return Path(folder)


def _load_text(folder: Path) -> TextEncoder:
    encoder = from_config(layout.read_json(folder / "text_encoder" / CONFIG_NAMES["text_encoder"]))
    if isinstance(encoder, nn.Module):
        load_weights(encoder, layout.weight_files(folder, "text_encoder"))
        encoder.eval().requires_grad_(False)
    return encoder


def export(
    dit: str | Path,
    out: str | Path,
    vae: str | Path | None = None,
    dtype: str = "float16",
    overwrite: bool = False,
    defaults: Mapping[str, Any] | None = None,
) -> Path:
    """A model folder from a run of `train dit` (or from another model folder), ready to ship.

    `vae`: a run of `train vae` whose weights replace those that the DiT was trained with; only its decoder may differ,
    since the DiT knows one latent space. `defaults` add to the run's own. Raises UserError for runs without a model.
    """
    parts = load_parts(_inside("--dit", Path(dit), "model", INDEX))
    if vae is not None:
        place = _inside("--vae", Path(vae), "vae", CONFIG_NAMES["vae"])
        values = {key: v for key, v in layout.read_json(place / CONFIG_NAMES["vae"]).items() if key != "whitening"}
        other = VideoVAE(_config(VAEConfig, values, place))
        load_weights(other, sorted(place.glob("*.safetensors")))
        if not same_encoder(parts.vae, other):
            raise UserError("--vae: its encoder differs from that of the DiT's training; give that run's VAE")
        parts = replace(parts, vae=other)
    parts = replace(parts, defaults={**parts.defaults, **(defaults or {})})
    return save_pretrained(parts, out, dtype, overwrite)


def _inside(argument: str, run: Path, part: str, file: str) -> Path:
    """`run` or `run/part`, whichever holds `file`."""
    for place in (run, run / part):
        if (place / file).is_file():
            return place
    raise UserError(f"{argument} {run}: neither it nor {run / part} holds {file}; give the folder of a finished run")


def same_encoder(old: VideoCodec, new: VideoCodec) -> bool:
    """Whether both give the latents that a DiT knows: equal up to the rounding of storage."""
    clip = torch.linspace(-1, 1, 3 * 5 * 32 * 32).reshape(1, 3, 5, 32, 32).sin()
    with torch.no_grad():
        a, b = old.encode(clip).mean, new.encode(clip).mean
    return a.shape == b.shape and torch.allclose(a, b, atol=0.05 * float(a.std()))


# ---- weights -----------------------------------------------------------------------------------


def write_component(
    folder: Path,
    component: str,
    name: str,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> None:
    """`folder/component/` with its config and its weights as `dtype`."""
    _write_json(folder / component / CONFIG_NAMES[component], {"_class_name": name, **config})
    if not weights:
        return
    stored = {key: _stored(value, dtype) for key, value in weights.items()}
    shards = list(_shards(stored))
    stem = WEIGHT_STEMS[component]
    where: dict[str, str] = {}
    for index, shard in enumerate(shards):
        file = f"{stem}-{index + 1:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else f"{stem}.safetensors"
        save_file(shard, folder / component / file, metadata={"format": "pt"})
        where |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = sum(value.nbytes for value in stored.values())
        record = {"metadata": {"total_size": total}, "weight_map": where}
        _write_json(folder / component / f"{stem}.safetensors.index.json", record)


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    value = value.detach().cpu()
    if value.is_floating_point():
        if dtype == torch.float16 and value.numel() and float(value.abs().max()) > torch.finfo(dtype).max:
            dtype = torch.bfloat16  # same size, wider range
        value = value.to(dtype)
    return value.contiguous().clone()  # clone: safetensors refuses tensors that share memory


def _shards(weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The weights in name order, cut into pieces of at most SHARD_BYTES (a larger single tensor stands alone)."""
    shard: dict[str, Tensor] = {}
    size = 0
    for key in sorted(weights):
        if shard and size + weights[key].nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[key] = weights[key]
        size += weights[key].nbytes
    yield shard


def read_weights(files: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of a component's files; raises UserError naming a damaged one."""
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"--model {file} cannot be read ({error}); copy the model folder again") from None
    return weights


def load_weights(module: nn.Module, files: Iterable[Path]) -> None:
    """Copy weights into a module in the module's own dtype; raises one UserError that lists all that does not fit."""
    files = list(files)
    weights = read_weights(files)
    own = module.state_dict()
    wrong = [f"{key} {tuple(weights[key].shape)} for {tuple(own[key].shape)}"
             for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape]  # fmt: skip
    problems = {"missing": own.keys() - weights.keys(), "unexpected": weights.keys() - own.keys(), "mis-shaped": wrong}
    if any(problems.values()):
        found = "; ".join(f"{kind}: {listed(keys)}" for kind, keys in problems.items() if keys)
        place = files[0].parent if files else "weights"
        raise UserError(f"--model {place} does not fit its config.json: {found}; copy the model folder again")
    module.load_state_dict(weights)


def listed(keys: Iterable[str], most: int = 6) -> str:
    """The first of the names, and how many more there are."""
    names = sorted(keys)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# ---- configs -----------------------------------------------------------------------------------


def _config(kind: type[Config], values: Mapping[str, Any], place: Path) -> Config:
    """A frozen config from JSON; raises UserError for a field that this version does not know."""
    fields = {entry.name for entry in dataclasses.fields(kind)}  # type: ignore[arg-type]
    chosen = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key[0] != "_"}
    for name in chosen.keys() - fields:
        near = difflib.get_close_matches(name, fields, 1)
        raise UserError(f"--model {place}: config.json has an unknown field '{name}'{f'; {near[0]}?' if near else ''}")
    try:
        return kind(**chosen)
    except TypeError as error:
        raise UserError(f"--model {place}: config.json does not fit ({error})") from None


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _replacing(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well and vanishes when it does not."""
    folder = folder.resolve()
    if folder.exists() and not overwrite:
        raise UserError(f"--out {folder} exists; the nearest free name is {layout.free_name(folder)}, or --overwrite")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.parent / f".{folder.name}.part-{os.getpid()}"
    old = folder.parent / f".{folder.name}.old-{os.getpid()}"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
