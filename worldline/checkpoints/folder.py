"""Reads and writes model folders in the diffusers layout (see layout.py): configs as JSON, weights as safetensors."""

from __future__ import annotations

import dataclasses
import difflib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from worldline import __version__
from worldline.checkpoints import families, keymap, layout
from worldline.checkpoints.families import CONFIG_NAMES
from worldline.checkpoints.keymap import Piece, fitting
from worldline.checkpoints.layout import INDEX, PIPELINE_CLASS, model_hash
from worldline.checkpoints.weights import DTYPES, MB, Weights, write_component, write_json
from worldline.diffusion.timesteps import opensora_shift, resolution_shift, schedule, wan_schedule
from worldline.dit.mmdit import MMDiT
from worldline.dit.model import DiT, DiTConfig
from worldline.errors import UserError
from worldline.text import HFImage, TextEncoder, WordTransformer, encoder_config, from_config
from worldline.vae.codec import VideoCodec
from worldline.vae.latents import Whitening
from worldline.vae.model import VAEConfig, VideoVAE

__all__ = ["Parts", "SchedulerConfig", "convert", "export", "load_parts", "model_hash", "save_pretrained"]

CARD = "README.md"
SHARD_BYTES = 16 * MB  # a file that git hosts and mail servers still take
Config = TypeVar("Config")
Module = TypeVar("Module", bound=nn.Module)

Spacing = Literal["even", "authors", "diffusers", "opensora"]


@dataclass(frozen=True)
class SchedulerConfig:
    """How the model was noised, hence how it is sampled: rectified flow whose timesteps are moved by `shift`.

    Where `base_tokens` is not 0, `shift` is that of a video of so many tokens and others are moved more or less.
    """

    prediction_type: str = "velocity"
    shift: float = 3.0
    base_tokens: int = 0
    # Of the times; "authors" or "diffusers": Wan's, in whole timesteps (see `wan_schedule`); "opensora": even, moved by
    # `opensora_shift` instead of `shift`.
    spacing: Spacing = "even"

    def __post_init__(self) -> None:
        if self.spacing not in get_args(Spacing):
            raise UserError(f"spacing={self.spacing!r}: one of {', '.join(get_args(Spacing))}")

    def times(self, steps: int, tokens: int, frames: int, shift: float | None = None) -> tuple[Tensor, Tensor | None]:
        """Sigmas (steps + 1,) of a video of `tokens` tokens in `frames` latent frames, and the whole timesteps (steps,)
        of 1000 that the model was taught instead of them, if it was. `shift` holds instead of the model's own."""
        shift = self.shift_at(tokens, frames) if shift is None else shift
        if self.spacing == "even" or self.spacing == "opensora":
            return schedule(steps, shift), None
        return wan_schedule(steps, shift, self.spacing)

    def shift_at(self, tokens: int, frames: int = 1) -> float:
        """Shift of the timesteps of a video of `tokens` tokens in `frames` latent frames."""
        if self.spacing == "opensora":
            return opensora_shift(tokens // frames, frames)
        return resolution_shift(tokens, self.base_tokens, self.shift) if self.base_tokens else self.shift


@dataclass(frozen=True)
class Parts:
    """Everything a pipeline is made of. `defaults`: width, height, frames, fps, steps, guidance_scale of `generate`.

    Where there are two experts, `dit` denoises at the times from `boundary` on (1 is pure noise) and `low` below it.
    With `experts`, where the two are read from, one of them has weights at a time, at first `dit`; the other is hollow.
    `image` encodes the pictures that a model is told beside the prompt.
    """

    vae: VideoCodec
    dit: DiT | MMDiT
    text: TextEncoder
    whitening: Whitening
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    low: DiT | None = None
    boundary: float = 0.0
    image: HFImage | None = None
    experts: tuple[Piece[DiT], Piece[DiT]] | None = None


def load_parts(
    path: str | Path | None = None, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Parts:
    """Read a whole model folder (None: the shipped model), or a hub id's; modules in eval mode.

    The transformer and the autoencoder are read into `dtype` and onto `device`. Where nothing is given, our own weights
    become float32 and those of a public model stay as they are stored. Raises UserError for a folder that is missing,
    damaged, foreign, or whose weights do not fit their configs: all misfits of all parts at once, before any weights
    are read.
    """
    folder = layout.check(path)
    family = layout.family(folder)
    if family == families.OPENSORA:
        from worldline.checkpoints import opensora

        return opensora.load(folder, dtype, device)
    if family != PIPELINE_CLASS:
        from worldline.checkpoints import wan

        return wan.load(folder, dtype, device)
    vae_values = layout.config(folder, "vae")
    whitening = Whitening.from_dict(vae_values.pop("whitening", {}))
    vae = _own(folder / "vae", partial(VideoVAE, config_of(VAEConfig, vae_values, folder / "vae")))
    config = config_of(DiTConfig, layout.config(folder, "transformer"), folder / "transformer")
    dit = _own(folder / "transformer", partial(DiT, config), layers=config.depth)
    text = _text(folder)
    pieces: list[Piece[Any]] = [vae, dit, *([text] if isinstance(text, Piece) else [])]
    keymap.check(pieces)
    scheduler = config_of(SchedulerConfig, layout.config(folder, "scheduler"), folder / "scheduler")
    return Parts(
        vae.load(dtype or torch.float32, device),
        dit.load(dtype or torch.float32, device),
        text.load(torch.float32) if isinstance(text, Piece) else text,
        whitening,
        scheduler,
        layout.defaults(folder),
    )


def _own(
    place: Path, build: Callable[[], Module], stem: str = "diffusion_pytorch_model", layers: int = 0
) -> Piece[Module]:
    """One part of our own folder, whose tensors have the names of the module that `build` makes."""
    weights = Weights(layout.files_of(place, stem))
    with fitting(place):
        keymap.check_depth(layers, weights, place)
        return Piece(str(place), build, weights, keymap.own(build))


def _text(folder: Path) -> TextEncoder | Piece[WordTransformer]:
    """The encoder, or what is to be read of the one that the model was trained with."""
    values = layout.config(folder, "text_encoder")
    if values.get("_class_name") != "WordTransformer":
        return from_config(values)

    def build() -> WordTransformer:
        encoder = from_config(values)
        assert isinstance(encoder, WordTransformer)
        return encoder

    with fitting(folder / "text_encoder"):
        return _own(folder / "text_encoder", build, "model", int(values.get("layers", 0)))


LayoutName = Literal["worldline", "diffusers"]


def save_pretrained(
    parts: Parts,
    folder: str | Path,
    dtype: str | None = None,
    overwrite: bool = False,
    layout: LayoutName | None = None,
) -> Path:
    """Write a model folder, whole or not at all.

    Args:
        dtype: of the stored weights; None means float16 for our own models, as they are for public ones.
        layout: "worldline" for our own models, "diffusers" for public ones, which diffusers then opens; None means the
            one that the model has.

    Raises UserError for an unknown dtype, for a layout that the model does not have, for a model that has none, and for
    a folder that exists (unless `overwrite`).
    """
    has = _layout_of(None if isinstance(parts.dit, MMDiT) else isinstance(parts.vae, VideoVAE), layout)
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r}: unknown; one of {', '.join(DTYPES)}")
    with _replacing(Path(folder), overwrite) as new:
        if has == "worldline":
            _write(parts, new, DTYPES[dtype or "float16"])
        else:
            from worldline.checkpoints.wan import save

            save(parts, new, None if dtype is None else DTYPES[dtype])
        if (Path(folder) / CARD).is_file():
            shutil.copy(Path(folder) / CARD, new / CARD)  # the model card is written by hand: keep it
    return Path(folder)


def _layout_of(ours: bool | None, asked: LayoutName | None) -> LayoutName:
    """The layout that a model is written in, ours or Wan's; raises UserError where another is asked for or none is."""
    if ours is None:
        raise UserError("--model: no layout to write Open-Sora 2.0 in is known here, it is only read; copy its folder")
    has: LayoutName = "worldline" if ours else "diffusers"
    if asked not in (None, has):
        raise UserError(f"--layout {asked}: this model has no such layout; it is written as {has}")
    return has


def convert(
    model: str | Path,
    out: str | Path,
    to: LayoutName | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> Path:
    """A model read and written, arguments as `save_pretrained`; raises UserError before any weights are read."""
    source = layout.check(model)
    family = layout.family(source)
    _layout_of(None if family == families.OPENSORA else family == PIPELINE_CLASS, to)
    _check_free(out, overwrite)
    return save_pretrained(load_parts(source), out, dtype, overwrite, to)


def _write(parts: Parts, new: Path, dtype: torch.dtype) -> None:
    """Our own model into a new folder."""
    assert isinstance(parts.vae, VideoVAE)
    text = encoder_config(parts.text)
    text_weights = parts.text.state_dict() if isinstance(parts.text, nn.Module) else {}
    described: tuple[tuple[str, dict[str, Any], Mapping[str, Tensor]], ...] = (
        ("transformer", {"_class_name": "DiT", **asdict(parts.dit.config)}, parts.dit.state_dict()),
        (
            "vae",
            {"_class_name": "VideoVAE", **asdict(parts.vae.config), "whitening": parts.whitening.to_dict()},
            parts.vae.state_dict(),
        ),
        ("text_encoder", text, text_weights),
    )
    index: dict[str, Any] = {"_class_name": PIPELINE_CLASS, "_worldline_version": __version__}
    for part, config, weights in described:
        write_component(new, part, config, sorted(weights.items()), dtype, SHARD_BYTES)
        index[part] = ["worldline", config["_class_name"]]
    write_json(
        new / "scheduler" / CONFIG_NAMES["scheduler"], {"_class_name": "RectifiedFlow", **asdict(parts.scheduler)}
    )
    index["scheduler"] = ["worldline", "RectifiedFlow"]
    write_json(new / INDEX, {**index, "defaults": dict(parts.defaults)})


def export(
    dit: str | Path,
    out: str | Path,
    vae: str | Path | None = None,
    dtype: str = "float16",
    overwrite: bool = False,
    defaults: Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """A model folder from a run of `train dit` (or from another model folder), ready to ship.

    `vae`: a run of `train vae` whose weights replace those that the DiT was trained with; only its decoder may differ,
    since the DiT knows one latent space. `defaults` add to the run's own. `weights`, by names such as "dit.head.weight"
    and "text.word.weight", replace the run's averages. Raises UserError for runs without a model.
    """
    parts = load_parts(_inside("--dit", Path(dit), "model", INDEX))
    if vae is not None:
        place = _inside("--vae", Path(vae), "vae", CONFIG_NAMES["vae"])
        values = {key: v for key, v in layout.read_json(place / CONFIG_NAMES["vae"]).items() if key != "whitening"}
        other = _own(place, partial(VideoVAE, config_of(VAEConfig, values, place))).load(torch.float32)
        if not same_encoder(parts.vae, other):
            raise UserError("--vae: its encoder differs from that of the DiT's training; give that run's VAE")
        parts = replace(parts, vae=other)
    for start, part in (("dit.", parts.dit), ("text.", parts.text)):
        own = {name.removeprefix(start): value for name, value in (weights or {}).items() if name.startswith(start)}
        if own and isinstance(part, nn.Module):
            part.load_state_dict(own, strict=False)  # buffers stay
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


# ---- configs -----------------------------------------------------------------------------------


def config_of(kind: type[Config], values: Mapping[str, Any], place: Path) -> Config:
    """A frozen config from JSON; raises UserError for a field that this version does not know."""
    fields = {entry.name for entry in dataclasses.fields(kind)}  # type: ignore[arg-type]
    chosen = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key[0] != "_"}
    for name in chosen.keys() - fields:
        near = difflib.get_close_matches(name, fields, 1)
        raise UserError(f"--model {place}: config.json has an unknown field '{name}'{f'; {near[0]}?' if near else ''}")
    for entry in dataclasses.fields(kind):  # type: ignore[arg-type]
        if not _alike(chosen.get(entry.name, entry.default), entry.default):
            raise UserError(
                f"--model {place}: config.json has {entry.name}={chosen[entry.name]!r}, which is not of the kind of "
                f"{entry.default!r}"
            )
    with fitting(place):
        return kind(**chosen)


def _alike(value: Any, default: Any) -> bool:
    """Whether a value is of the type of the default that it replaces; whole numbers stand for others too."""
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default) or default in (None, dataclasses.MISSING)


def _check_free(folder: str | Path, overwrite: bool) -> None:
    """Raises UserError for a folder that exists, unless it may be overwritten."""
    folder = Path(folder).resolve()
    if folder.exists() and not overwrite:
        raise UserError(f"--out {folder} exists; the nearest free name is {layout.free_name(folder)}, or --overwrite")


@contextmanager
def _replacing(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well and vanishes when it does not."""
    folder = folder.resolve()
    _check_free(folder, overwrite)
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
