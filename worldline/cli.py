"""The command `worldline <verb>`: each verb parses, calls one function and prints.

A verb's imports load when it runs, so that `worldline --help` stays fast.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from worldline import __version__
from worldline.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one-line UserErrors with the nearest known flag or choice."""

    def error(self, message: str) -> NoReturn:
        name = self.prog.removeprefix("worldline").strip()
        raise UserError(f"{name}: {message} (see `{self.prog} --help`)" if name else f"{message}; try --help")

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """Raise for arguments that no verb knows, naming the nearest flag that one does."""
        word = words[0].split("=")[0]
        close = difflib.get_close_matches(word, self._known(), 1)
        hint = f"did you mean {close[0]}?" if close else "remove it, or put the prompt in quotes"
        raise UserError(f"unknown argument {words[0][:60]!r}; {hint}")

    def _known(self) -> list[str]:
        flags = [flag for action in self._actions for flag in action.option_strings]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                flags += [flag for sub in action.choices.values() for flag in sub._known()]
        return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line. Returns the exit code: 0 done, 2 a mistake of the user (one line on stderr), 130 Ctrl-C."""
    parser = build_parser()
    try:
        args, rest = parser.parse_known_args(normalised(sys.argv[1:] if argv is None else argv))
        if rest:
            parser.unknown(rest)
        args.run(args)
        sys.stdout.flush()
        return 0
    except UserError as error:
        return _fail(str(error))
    except BrokenPipeError:  # `worldline ... | head`: the reader left, which is no error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _fail("interrupted", code=130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
            raise
        return _fail(f"{error.filename or 'output'}: {error.strerror}; free some space or choose another place")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return _fail("not enough memory; ask for a smaller --size, fewer --seconds or fewer --num-videos")


def _fail(message: str, code: int = 2) -> int:
    print("worldline: " + " ".join(message.split()), file=sys.stderr)
    return code


def normalised(argv: Sequence[str]) -> list[str]:
    """The command line with `--guidance_scale=5` written as `--guidance-scale=5`; words after `--` stay as they are."""
    words, done = [], False
    for word in argv:
        done = done or word == "--"
        name, equals, value = word.partition("=")
        is_flag = not done and name.startswith("--") and " " not in name
        words.append(name.replace("_", "-") + equals + value if is_flag else word)
    return words


def build_parser() -> Parser:
    """The whole command line. Importing nothing heavy keeps `worldline --help` fast."""
    parser = Parser("worldline", description="Text to video, with a verifier that checks what was made.")
    parser.add_argument("--version", action="version", version=f"worldline {__version__}")
    parser.set_defaults(run=lambda args: parser.print_help())
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", parser_class=Parser)
    for add in (_add_generate, _add_worlds, _add_train, _add_eval, _add_export, _add_info):
        add(verbs)
    return parser


Verbs = Any  # argparse's subparser action, whose type is private


def _verb(verbs: Verbs, name: str, run: Callable[[argparse.Namespace], None], about: str) -> Parser:
    parser: Parser = verbs.add_parser(
        name, help=about, description=about, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def number(flag: str, whole: bool = False, example: str = "1") -> Callable[[str], Any]:
    """A converter for argparse that raises a UserError naming the flag and a valid value."""

    def convert(text: str) -> float | int:
        try:
            return int(text) if whole else float(text)
        except ValueError:
            kind = "whole number" if whole else "number"
            raise UserError(f"{flag} {text[:40]!r}: not a {kind}; a valid value is {example}") from None

    return convert


def emit(args: argparse.Namespace, data: dict[str, Any], text: str) -> None:
    """Print the answer: JSON when asked for, else text for people."""
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str) if args.json else text)


def note(line: str) -> None:
    """One line for people, on stderr so that stdout stays machine-readable."""
    print(f"note: {line}", file=sys.stderr)


@contextmanager
def named(argument: str) -> Iterator[None]:
    """Puts the name of the argument before the message of a UserError that knows only a file or a value."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{argument} {error}") from None


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with the time left on stderr, as a callback (done, total)."""
    from tqdm import tqdm

    with tqdm(desc=label, unit="step", dynamic_ncols=True, leave=False, disable=None, file=sys.stderr) as bar:

        def update(done: int, total: int) -> None:
            if done <= bar.n:
                bar.reset()  # the next of several passes
            bar.total = total
            bar.update(done - bar.n)

        yield update


# ---- generate -------------------------------------------------------------------------------------------------


def _add_generate(verbs: Verbs) -> None:
    parser = _verb(verbs, "generate", run_generate, "make a video (or with --frames 1 a picture) from a sentence")
    add = parser.add_argument
    add("prompt", metavar="PROMPT", help="what the video shows, in one quoted sentence")
    add("-o", "--output", default="out.mp4", help="file to write: .mp4, .gif, .webp, or .png for one frame")
    add("--size", default=None, help="WIDTHxHEIGHT in pixels; the model's own size unless given")
    add("--seconds", type=number("--seconds"), default=None, help="length; the model's own length unless given")
    add("--frames", type=number("--frames", True, "17"), default=None, help="length as a count of frames")
    add("--fps", default=None, help="frames per second of the file, for example 16 or 30000/1001")
    add("--steps", type=number("--steps", True, "20"), default=None, help="sampler steps")
    add("--guidance-scale", type=number("--guidance-scale", example="5"), default=None, help="1 turns guidance off")
    add("--negative-prompt", default="", help="what the video shall not show")
    add("--seed", type=number("--seed", True, "0"), default=0, help="video i is drawn from seed + i")
    add("--num-videos", type=number("--num-videos", True, "1"), default=1, help="how many videos")
    add("--image", default=None, help="picture to begin with, kept as the first frame")
    add("--model", default=None, help="model folder; the shipped model unless given")
    add("--sheet", nargs="?", const="", default=None, help="also write a contact sheet, by default beside the video")
    add("--dry-run", action="store_true", help="check everything and print the plan, without making the video")
    add("--overwrite", action="store_true", help="replace files that exist")


def _request(args: argparse.Namespace, defaults: dict[str, Any]) -> Any:
    from worldline.generate.request import Request, frames_of, read_fps, read_size

    size = args.size or f"{defaults.get('width', Request.width)}x{defaults.get('height', Request.height)}"
    width, height = read_size(size)
    fps = read_fps(args.fps if args.fps is not None else defaults.get("fps", Request.fps))
    frames = frames_of(args.seconds, args.frames, fps, defaults.get("frames", Request.frames))
    steps = defaults.get("steps", Request.steps) if args.steps is None else args.steps
    scale = args.guidance_scale
    return Request(
        prompt=args.prompt,
        negative_prompt=args.negative_prompt,
        width=width,
        height=height,
        frames=frames,
        fps=fps,
        seed=args.seed,
        num_videos=args.num_videos,
        steps=steps,
        guidance_scale=defaults.get("guidance_scale", Request.guidance_scale) if scale is None else scale,
    )


def run_generate(args: argparse.Namespace) -> None:
    """Check the whole request, then load the model, sample, and write files."""
    from worldline.checkpoints import layout
    from worldline.generate.request import TRAINED, check_output, numbered
    from worldline.shapes import VideoShape

    started = time.perf_counter()
    request = _request(args, {})  # the user's own values first: they are checked even where no model is
    folder = layout.check(args.model)
    defaults = layout.read_json(folder / layout.INDEX).get("defaults", {})
    request = _request(args, defaults)
    out = check_output(args.output, args.overwrite, request.frames, request.num_videos)
    sheet = _sheet_path(args, out)
    image = _read_image(args.image)
    trained = VideoShape(*(defaults.get(k, getattr(TRAINED, k)) for k in ("frames", "height", "width")))
    for line in request.notes(trained):
        note(line)
    if args.dry_run:
        plan = {**request.as_dict(), "tokens": request.tokens.count, "model": str(folder)}
        plan["output"] = [str(file) for file in numbered(out, request.num_videos)]
        return emit(args, plan, "\n".join(f"{key:16} {value}" for key, value in plan.items()))

    from worldline.generate.pipeline import load

    pipeline = load(folder)
    for line in pipeline.hints(request):
        note(line)
    with progress("sampling") as update:
        result = pipeline.run(request, image=image, progress=update)
    files = result.save(out, overwrite=args.overwrite)
    if sheet is not None:
        result.save_sheet(sheet)
    seconds = time.perf_counter() - started
    data = {**result.metadata, "output": [str(file) for file in files], "sheet": sheet and str(sheet)}
    data |= {"timings": result.timings, "seconds": round(seconds, 3)}
    shape = f"{request.width}x{request.height}, {request.frames} frames at {float(request.fps):g} fps"
    emit(
        args,
        data,
        "\n".join(
            [f"{file}  ({shape}, seed {request.seed + i})" for i, file in enumerate(files)]
            + ([f"{sheet}  (contact sheet)"] if sheet else [])
        ),
    )


def _sheet_path(args: argparse.Namespace, out: Path) -> Path | None:
    if args.sheet is None:
        return None
    from worldline.media.write import check_writable

    path = args.sheet or out.with_name(f"{out.stem}-sheet.png")
    return check_writable(path, args.overwrite, (".png",))


def _read_image(path: str | None) -> Any:
    if path is None:
        return None
    from worldline.media.read import read_image

    with named("--image"):
        return read_image(path)


# ---- worlds ---------------------------------------------------------------------------------------------------


def _add_worlds(verbs: Verbs) -> None:
    group: Parser = verbs.add_parser("worlds", help="the procedural world: render clips, verify any video")
    below = group.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=Parser)
    parser = _verb(below, "render", run_worlds_render, "render clips of random scenes with their captions")
    add = parser.add_argument
    add("--n", type=number("--n", True, "8"), default=8, help="how many clips")
    add("--sheet", default=None, help="contact sheet to write (.png)")
    add("-o", "--output", default=None, help="folder for the clips as mp4, one per scene")
    add("--seed", type=number("--seed", True, "0"), default=0, help="seed of the first scene")
    add("--size", default="64x64", help="WIDTHxHEIGHT in pixels")
    add("--seconds", type=number("--seconds"), default=1.0, help="length of each clip")
    add("--fps", default="16", help="frames per second")
    add("--split", choices=("train", "heldout", "any"), default="any", help="compositions to draw from")
    add("--overwrite", action="store_true", help="replace files that exist")

    parser = _verb(below, "verify", run_worlds_verify, "say what a video shows: objects, colours, motion, camera")
    parser.add_argument("video", metavar="VIDEO", help="any video file")


def run_worlds_render(args: argparse.Namespace) -> None:
    """Draw n scenes, render them, write a contact sheet and, with -o, the clips."""
    from worldline.generate.request import check_range, frames_of, read_fps, read_size
    from worldline.media.write import check_writable

    check_range("--n", args.n, 1, 10_000, whole=True)
    check_range("--seed", args.seed, 0, 2**63 - 1, whole=True)
    fps = read_fps(args.fps)
    width, height = read_size(args.size)
    frames = frames_of(args.seconds, None, fps, 17)
    sheet = args.sheet or (None if args.output else "sheet.png")
    files = _clip_files(args.output, args.n, args.overwrite)
    if sheet:
        check_writable(sheet, args.overwrite, (".png",))

    import numpy as np

    from worldline.media.preview import contact_sheet
    from worldline.media.write import write_image, write_video
    from worldline.worlds.captions import caption
    from worldline.worlds.render import render
    from worldline.worlds.scene import sample_scene

    clips, labels = [], []
    with progress("rendering") as update:
        for index in range(args.n):
            rng = np.random.default_rng([args.seed, index])
            scene = sample_scene(rng, args.split)
            labels.append(caption(scene, rng))
            frames_of_scene = render(scene, frames, height, width, float(fps)).frames
            if files:
                write_video(files[index], frames_of_scene, fps, {"prompt": labels[-1], "scene": scene.to_json()})
            if sheet:
                clips.append(frames_of_scene)
            update(index + 1, args.n)
    if sheet:
        write_image(sheet, contact_sheet(clips, labels, scale=max(1, 128 // max(width, height))))
    data = {"captions": labels, "sheet": sheet, "output": [str(file) for file in files]}
    written = ([str(sheet)] if sheet else []) + [str(file) for file in files]
    emit(args, data, "\n".join([f"{i:4}  {label}" for i, label in enumerate(labels)] + written))


def _clip_files(folder: str | None, count: int, overwrite: bool) -> list[Path]:
    if folder is None:
        return []
    from worldline.media.write import check_writable

    place = Path(folder)
    if place.exists() and not place.is_dir():
        raise UserError(f"-o/--output {folder} is a file; give a folder for the clips")
    if not place.exists():
        check_writable(place.with_suffix(".mp4"))
        place.mkdir()
    return [check_writable(place / f"world-{i:04d}.mp4", overwrite) for i in range(count)]


def run_worlds_verify(args: argparse.Namespace) -> None:
    """Read a video file and print what the verifier sees in it."""
    from worldline.media.read import read_video

    with named("VIDEO"):
        video = read_video(args.video)

    from worldline.worlds.verify import read

    seen = read(video.frames, float(video.fps))
    words = ("colour", "shape", "size", "motion", "speed", "confidence", "travel", "onset", "hidden")
    objects = [{word: getattr(thing, word) for word in words} for thing in seen.objects]
    data = {"objects": objects, "count": seen.count, "camera": seen.camera, "screen": seen.screen}
    lines = [f"{seen.count} object{'' if seen.count == 1 else 's'}, camera: {seen.camera}"]
    lines += [f"  {o.size} {o.colour} {o.shape}: {o.motion} {o.speed}".rstrip() for o in seen.objects]
    emit(args, {**data, "frames": seen.frames, "fps": seen.fps}, "\n".join(lines))


# ---- train, eval, models -----------------------------------------------------------------------


def _add_train(verbs: Verbs) -> None:
    parser = _verb(verbs, "train", run_train, "train the video autoencoder or the diffusion transformer")
    add = parser.add_argument
    add("what", choices=("vae", "dit"), help="which of the two")
    add("--recipe", default="tiny", help="plan to start from")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="change a value, for example optim.lr=1e-4")
    add("--out", default=None, help="folder of the run; runs/<name of the plan> unless given")
    add("--resume", action="store_true", help="continue the run in --out from its newest checkpoint")
    add("--dry-run", action="store_true", help="print the plan and its cost, train nothing")


def run_train(args: argparse.Namespace) -> None:
    """Read the recipe, apply --set, and run."""
    recipe = _recipe(args.recipe)

    from worldline.train.plan import plan_dict, plan_overrides

    plan = plan_overrides(getattr(recipe, args.what)(), args.set)
    trainer = importlib.import_module(f"worldline.train.{args.what}")
    if args.dry_run:
        return emit(args, plan_dict(plan), trainer.dry_run(plan))
    from worldline.generate.preview import reconstruction_sheet, sample_sheet

    out = Path(args.out or f"runs/{plan.name}")
    callbacks = {"sample": reconstruction_sheet} if args.what == "vae" else {"sample": sample_sheet, "score": _score}
    outcome = trainer.train(plan, out, args.resume, callbacks, say=lambda line: print(line, file=sys.stderr))
    data = {"out": str(out), "step": outcome.step, "finished": outcome.finished}
    state = "finished" if outcome.finished else "stopped, continue with --resume"
    emit(args, data, f"{out}: {state} at step {outcome.step}")


def _score(step: int, parts: Any, folder: Path) -> dict[str, float]:
    """The world score of a model in training: share of 64 prompts obeyed in everything, and with one object."""
    from worldline.eval.runner import run_worlds
    from worldline.generate.pipeline import Pipeline

    rates = run_worlds(Pipeline(parts).answer, n=64).rates("model")
    named = {"world_score": "everything", "world_score_1": "1 object", "world_score_2": "2 objects"}
    return {name: rates[group]["all"].share for name, group in named.items() if group in rates}


def _recipe(name: str) -> Any:
    """The recipe module of that name; raises UserError naming the nearest."""
    import pkgutil

    import worldline.recipes as recipes

    names = [module.name for module in pkgutil.iter_modules(recipes.__path__)]
    if name not in names:
        near = difflib.get_close_matches(name, names, 1) or names
        raise UserError(f"--recipe {name[:40]!r}: unknown; the nearest is {near[0]}")
    return importlib.import_module(f"worldline.recipes.{name}")


def _add_eval(verbs: Verbs) -> None:
    group: Parser = verbs.add_parser("eval", help="score a model")
    below = group.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=Parser)
    parser = _verb(below, "worlds", run_eval_worlds, "held-out prompts -> videos -> verifier -> table")
    add = parser.add_argument
    add("--model", default=None, help="model folder; the shipped model unless given")
    add("--n", type=number("--n", True, "64"), default=256, help="how many prompts")
    add("--seed", type=number("--seed", True, "0"), default=0, help="seed of the prompts and of the videos")
    add("--out", default=None, help="folder for table, JSON, plot and contact sheet of failures")


def run_eval_worlds(args: argparse.Namespace) -> None:
    """Generate a video for each held-out prompt and let the verifier judge."""
    from worldline.checkpoints import layout
    from worldline.generate.request import check_range

    check_range("--n", args.n, 2, 100_000, whole=True)
    check_range("--seed", args.seed, 0, 2**62, whole=True)
    folder = layout.check(args.model)

    from worldline.eval.runner import prepare_folder, run_worlds
    from worldline.generate.pipeline import load

    out = Path(args.out) if args.out else None
    if out is not None:
        prepare_folder(out)
    pipeline = load(folder)
    with progress("judging") as update:
        report = run_worlds(
            pipeline.answer,
            n=args.n,
            seed=args.seed,
            out=out,
            reconstruct=pipeline.reconstruct,
            fps=float(pipeline.defaults.fps),
            progress=lambda _, done, total: update(done, total),
        )
    data = {"model": str(folder), "model_hash": pipeline.model_hash, "seed": args.seed, **report.as_dict()}
    emit(args, data, report.table())


def _add_export(verbs: Verbs) -> None:
    parser = _verb(verbs, "export", run_export, "a model folder, ready to ship, from a training run")
    add = parser.add_argument
    add("--dit", required=True, help="run folder of `train dit`, which names its VAE")
    add("--vae", default=None, help="run folder of `train vae` with a better decoder for the same latents")
    add("--out", required=True, help="model folder to write")
    add("--dtype", default="float16", choices=("float16", "bfloat16", "float32"), help="type of the stored weights")
    add("--overwrite", action="store_true", help="replace a model folder that exists")


def run_export(args: argparse.Namespace) -> None:
    """Write the averaged weights of a run as a model folder."""
    from worldline.checkpoints import layout
    from worldline.checkpoints.folder import export

    folder = export(args.dit, args.out, args.vae, args.dtype, args.overwrite)
    data = layout.info(folder)
    emit(args, data, f"{folder}: {data['parameters'] / 1e6:.2f} M parameters, {data['bytes'] / 1e6:.1f} MB")


def _add_info(verbs: Verbs) -> None:
    parser = _verb(verbs, "info", run_info, "what a model folder holds")
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", default=None, help="model folder; default: the shipped one"
    )


def run_info(args: argparse.Namespace) -> None:
    """Print parameters, bytes and configs of a model folder, read from its headers."""
    from worldline.checkpoints import layout

    data = layout.info(args.model)
    lines = [f"{data['folder']}", f"hash {data['hash'][:16]}, {data['bytes'] / 1e6:.1f} MB in all"]
    for name, part in data["components"].items():
        size = f"{part['parameters'] / 1e6:8.2f} M parameters  {part['bytes'] / 1e6:7.1f} MB"
        lines.append(f"  {name:13}{size}  {', '.join(part['dtypes'])}")
    lines += [f"  default {key:16} {value}" for key, value in data["defaults"].items()]
    emit(args, data, "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
