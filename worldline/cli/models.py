"""`worldline train | export | convert | info`: models made, packed, rewritten and described."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from worldline.cli.parser import Verbs, add_verb, emit, number, recipe, staged


def add_train(verbs: Verbs) -> None:
    parser = add_verb(
        verbs, "train", run_train, "train the video autoencoder, the diffusion transformer or the captioner"
    )
    add = parser.add_argument
    add("what", choices=("vae", "dit", "captioner"), help="which of them")
    add("--recipe", default="tiny", help="plan to start from, or a Python file of your own")
    add("--stage", default=None, help="one stage of a recipe that has several; all, one after another, unless given")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="change a value, for example optim.lr=1e-4")
    add("--out", default=None, help="folder of the run; runs/<name of the plan> unless given")
    add("--resume", action="store_true", help="continue the run in --out from its newest checkpoint")
    add("--dry-run", action="store_true", help="print tokens, operations, memory and time, train nothing")
    add = parser.add_argument_group("of --dry-run, the machine that is to train").add_argument
    add("--gpus", type=number("--gpus", True, "64"), default=None, help="how many; this machine unless given")
    add("--tflops", type=number("--tflops", example="989"), default=989.0, help="peak of one, of an H100 in bf16")
    add("--mfu", type=number("--mfu", example="0.4"), default=0.4, help="share of the peak that the model reaches")
    add("--price", type=number("--price", example="2.5"), default=0.0, help="of one for an hour")
    add("--gpu-memory", type=number("--gpu-memory", example="80"), default=80.0, help="GB of one")
    add("--shard", type=number("--shard", True, "8"), default=0, help="ranks that hold one copy of the weights; 0: all")
    add("--context", type=number("--context", True, "2"), default=1, help="ranks that hold one sample")


def run_train(args: argparse.Namespace) -> int | None:
    """Read the recipe, apply --set, and run; under torchrun with the other processes, of which the first speaks."""
    plans = staged(recipe(args.recipe, args.what), args.stage)

    from worldline.train.plan import plan_overrides

    plans = [plan_overrides(plan, args.set) for plan in plans]
    trainer = importlib.import_module(f"worldline.train.{args.what}")
    if args.dry_run:
        _dry_run(args, trainer, plans)
        return None
    from worldline.errors import EXIT_RESUMABLE
    from worldline.generate.preview import reconstruction_sheet, sample_sheet
    from worldline.parallel.mesh import join, leave
    from worldline.train.report import write_report

    crew = join(plans[0].parallel, plans[0].device)
    previews: dict[str, dict[str, Any]] = {
        "vae": {"sample": reconstruction_sheet},
        "dit": {"sample": sample_sheet, "score": _score},
        "captioner": {},
    }

    def say(line: str) -> None:
        if crew.first:
            print(line, file=sys.stderr)

    for plan, out in in_folders(plans, args.recipe, args.out):
        outcome = trainer.train(plan, out, args.resume, previews[args.what], say=say)
        report = write_report(out, plan, "finished" if outcome.finished else "stopped") if crew.first else None
        if not outcome.finished:
            break
    leave()
    data = {"out": str(out), "step": outcome.step, "finished": outcome.finished, "report": str(report)}
    state = "finished" if outcome.finished else "stopped, continue with --resume"
    if crew.first:
        emit(args, data, f"{out}: {state} at step {outcome.step}; {report}")
    return EXIT_RESUMABLE if outcome.told else None


def in_folders(plans: Sequence[Any], name: str, out: str | None) -> Iterator[tuple[Any, Path]]:
    """Each plan with its run's folder; of several, the later ones begin with the weights of the one before."""
    if len(plans) == 1:
        yield plans[0], Path(out or f"runs/{plans[0].name}")
        return
    root, before = Path(out or f"runs/{name}"), None
    for plan in plans:
        yield plan if before is None else replace(plan, start=str(before / "model")), root / plan.name
        before = root / plan.name


def _dry_run(args: argparse.Namespace, trainer: Any, plans: Sequence[Any]) -> None:
    """Print what training would take: here, or on the GPUs that are asked for."""
    from worldline.train import cost
    from worldline.train.plan import describe, plan_dict

    if args.what == "captioner":
        return emit(args, plan_dict(plans[0]), trainer.dry_run(plans[0]))
    machine = cost.here(plans[0]) if args.gpus is None else cost.Machine(
        args.gpus, args.tflops * 1e12, args.mfu, args.price, args.gpu_memory * 1e9, args.shard, args.context
    )  # fmt: skip
    found = cost.estimate(plans, machine)
    settings = [describe(plan) for plan in plans] if len(plans) == 1 else []
    emit(args, cost.as_json(plans, found), "\n".join([*found.lines(), *settings]))


def _score(step: int, parts: Any, folder: Path) -> dict[str, float]:
    """The world score of a model in training: share of 64 prompts obeyed in everything, and with one object."""
    from worldline.eval.runner import run_worlds
    from worldline.generate.pipeline import Pipeline

    rates = run_worlds(Pipeline(parts).answer, n=64).rates("model")
    named = {"world_score": "everything", "world_score_1": "1 object", "world_score_2": "2 objects"}
    return {name: rates[group]["all"].share for name, group in named.items() if group in rates}


def add_export(verbs: Verbs) -> None:
    parser = add_verb(verbs, "export", run_export, "a model folder, ready to ship, from a training run")
    add = parser.add_argument
    add("--dit", required=True, help="run folder of `train dit`, which names its VAE")
    add("--vae", default=None, help="run folder of `train vae` with a better decoder for the same latents")
    add(
        "--ema",
        type=number("--ema", example="0.1"),
        default=None,
        metavar="WIDTH",
        help="average of another width, "
        "made of those in the run's checkpoints; the run needs --set optim.ema_widths=0.05,0.1 and a loop.keep of many",
    )
    add("--out", required=True, help="model folder to write")
    add("--dtype", default="float16", choices=("float16", "bfloat16", "float32"), help="type of the stored weights")
    add("--overwrite", action="store_true", help="replace a model folder that exists")


def run_export(args: argparse.Namespace) -> None:
    """Write the averaged weights of a run as a model folder."""
    from worldline.checkpoints import layout
    from worldline.checkpoints.folder import export

    weights, said = None, ""
    if args.ema is not None:
        from worldline.train.ema import reconstruct

        weights, error = reconstruct(Path(args.dit) / "checkpoints", args.ema)
        said = f"; average of width {args.ema:g}, its profile off by {error:.2%}"
    folder = export(args.dit, args.out, args.vae, args.dtype, args.overwrite, weights=weights)
    data = layout.info(folder)
    emit(args, data, f"{folder}: {data['parameters'] / 1e6:.2f} M parameters, {data['bytes'] / 1e6:.1f} MB{said}")


def add_convert(verbs: Verbs) -> None:
    parser = add_verb(verbs, "convert", run_convert, "write a model in another layout or type")
    add = parser.add_argument
    add("model", metavar="MODEL", help="model folder, of Wan also as its authors publish it, or hub id")
    add("out", metavar="OUT", help="model folder to write")
    add("--layout", default=None, choices=("worldline", "diffusers"), help="the model's own unless given")
    add("--dtype", default=None, choices=("float16", "bfloat16", "float32"), help="type of the stored weights")
    add("--overwrite", action="store_true", help="replace a model folder that exists")


def run_convert(args: argparse.Namespace) -> None:
    """Read a model and write it whole."""
    from worldline.checkpoints import layout
    from worldline.checkpoints.folder import convert

    folder = convert(args.model, args.out, args.layout, args.dtype, args.overwrite)
    data = layout.info(folder)
    emit(args, data, f"{folder}: {data['parameters'] / 1e6:.2f} M parameters, {data['bytes'] / 1e6:.1f} MB")


def add_info(verbs: Verbs) -> None:
    parser = add_verb(verbs, "info", run_info, "what a model holds")
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", default=None, help="model folder, hub id or one safetensors file"
    )


def run_info(args: argparse.Namespace) -> None:
    """Print parameters, bytes and configs of a model folder, read from its headers."""
    from worldline.checkpoints import layout

    data = layout.info(args.model)
    if "file" in data:
        size = f"{data['tensors']} tensors, {data['parameters'] / 1e6:.2f} M parameters, {data['bytes'] / 1e6:.1f} MB"
        text = f"{data['file']}\n{data['what']}: {size}, {', '.join(data['dtypes'])}\nit needs {data['needs']}"
        return emit(args, data, text)
    lines = [f"{data['folder']}", f"hash {data['hash'][:16]}, {data['bytes'] / 1e6:.1f} MB in all"]
    for name, part in data["components"].items():
        size = f"{part['parameters'] / 1e6:8.2f} M parameters  {part['bytes'] / 1e6:7.1f} MB"
        lines.append(f"  {name:13}{size}  {', '.join(part['dtypes'])}")
    lines += [f"  default {key:16} {value}" for key, value in data["defaults"].items()]
    emit(args, data, "\n".join(lines))
