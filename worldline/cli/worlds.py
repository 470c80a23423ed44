"""`worldline worlds render | verify` and `worldline eval worlds`: the procedural world and the score that it gives."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worldline.cli.parser import Parser, Verbs, add_verb, emit, named, number, progress
from worldline.errors import UserError


def add_worlds(verbs: Verbs) -> None:
    group: Parser = verbs.add_parser("worlds", help="the procedural world: render clips, verify any video")
    below = group.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=Parser)
    parser = add_verb(below, "render", run_worlds_render, "render clips of random scenes with their captions")
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

    parser = add_verb(below, "verify", run_worlds_verify, "say what a video shows: objects, colours, motion, camera")
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


def add_eval(verbs: Verbs) -> None:
    group: Parser = verbs.add_parser("eval", help="score a model")
    below = group.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=Parser)
    about = "held-out prompts -> videos -> verifier -> table"
    _add_scored(add_verb(below, "worlds", run_eval_worlds, about), 256)
    about = "permanence, gravity, collisions, cameras, identity and framing, with ceilings and floors"
    _add_scored(add_verb(below, "simulator", run_eval_simulator, about), 96)
    about = "every editing verb: joins, identity, obedience and speed, with ceilings and floors"
    parser = add_verb(below, "verbs", run_eval_verbs, about)
    _add_common(parser, 16, "how many worlds per verb")
    parser.add_argument("--verbs", default=None, help="those to score, with commas; all unless given")

    about = "a pushed thing against the simulator, at 1, 4 and 16 times a trained clip"
    parser = add_verb(below, "rollout", run_eval_rollout, about)
    _add_common(parser, 16, "how many worlds")
    parser.add_argument("--lengths", default="17,65,257", help="frames after which is looked, with commas")

    about = "an autoencoder: PSNR, SSIM and flicker of what it keeps of unseen worlds and of footage"
    parser = add_verb(below, "vae", run_eval_vae, about)
    add = parser.add_argument
    add("--vae", default=None, help="run of `train vae`, or model folder; the shipped model's unless given")
    add("--real", action="append", default=[], metavar="NPY", help="clips, uint8 (N, T, H, W, 3), none of them learned")
    add("--n", type=number("--n", True, "32"), default=32, help="how many worlds, and how many clips of each file")
    add("--size", default="64x64", help="WIDTHxHEIGHT of the worlds in pixels")
    add("--seed", type=number("--seed", True, "0"), default=0, help="seed of the worlds")


def run_eval_vae(args: argparse.Namespace) -> None:
    """Code unseen clips and compare."""
    from worldline.generate.request import check_range, read_size

    check_range("--n", args.n, 1, 10_000, whole=True)
    width, height = read_size(args.size)

    import numpy as np

    from worldline.checkpoints import layout
    from worldline.eval.codec import judge
    from worldline.train.vae import RealClips, load_codec
    from worldline.worlds.render import render
    from worldline.worlds.scene import sample_scene

    vae = load_codec(args.vae or layout.check(None))
    footage = {Path(path).stem: RealClips((path,), 1, 1).files[0] for path in args.real}
    worlds = []
    with progress("rendering") as update:
        for index in range(args.n):
            scene = sample_scene(np.random.default_rng([args.seed, index]), "heldout")
            worlds.append(render(scene, 17, height, width, 16.0).frames)
            update(index + 1, args.n)
    chosen = {name: clips[np.linspace(0, len(clips) - 1, min(args.n, len(clips))).astype(int)]
              for name, clips in footage.items()}  # fmt: skip
    report = judge(vae, {"worlds": np.stack(worlds), **chosen})
    emit(args, {"vae": str(args.vae or "shipped"), **report.as_dict()}, report.table())


def _add_scored(parser: Parser, n: int) -> None:
    _add_common(parser, n, "how many prompts")
    help = "length; the model's own length unless given"
    parser.add_argument("--seconds", type=number("--seconds"), default=None, help=help)


def _add_common(parser: Parser, n: int, about: str) -> None:
    add = parser.add_argument
    add("--model", default=None, help="model folder; the shipped model unless given")
    add("--n", type=number("--n", True, "64"), default=n, help=about)
    add("--seed", type=number("--seed", True, "0"), default=0, help="seed of the prompts and of the videos")
    add("--size", default=None, help="WIDTHxHEIGHT in pixels; the model's own size unless given")
    add("--out", default=None, help="folder for table, JSON, plot and contact sheet of failures")


def run_eval_worlds(args: argparse.Namespace) -> None:
    """Generate a video for each held-out prompt and let the verifier judge."""
    _score(args, lambda: {})


def run_eval_simulator(args: argparse.Namespace) -> None:
    """Generate a video for each scene that tests what lasts, falls, bounces and stays."""

    def checks() -> dict[str, Any]:
        from worldline.eval import simulator

        cases = simulator.sample_cases(args.n, args.seed)
        return {"cases": cases, "verifier": simulator, "spoil": simulator.shuffled}

    _score(args, checks)


def run_eval_verbs(args: argparse.Namespace) -> None:
    """Edit known worlds with every verb and hold the answers against them."""
    folder, request = _checked(args)

    from worldline.eval.verbs import TRIALS, Trial, check, run_verbs
    from worldline.generate import edit

    verbs = list(TRIALS) if args.verbs is None else args.verbs.split(",")
    size = request.height, request.width
    check(verbs, size)
    pipeline, out = _prepared(args, folder)

    def ask(verb: str, trial: Trial, seed: int) -> Any:
        return getattr(edit, verb)(pipeline, *trial.arguments, seed=seed, **trial.settings).frames

    with progress("editing") as update:
        results = run_verbs(
            ask,
            n=args.n,
            seed=args.seed,
            verbs=verbs,
            size=size,
            reconstruct=pipeline.codec.reconstruct,
            out=out,
            progress=update,
        )
    _emit_scores(args, folder, pipeline, request, results)


def run_eval_rollout(args: argparse.Namespace) -> None:
    """Drive known worlds and hold where things are against the simulator."""
    lengths = [int(number("--lengths", True, "17,65,257")(word)) for word in args.lengths.split(",")]
    folder, request = _checked(args, frames=max(2, *lengths))

    from worldline.eval.rollout import run_rollouts
    from worldline.generate.load import Deferred
    from worldline.generate.request import check_range
    from worldline.generate.rollout import check_driven, rollout

    for length in lengths:
        check_range("--lengths", length, 2, 4097, whole=True)
    check_driven(Deferred(folder, {}))
    pipeline, out = _prepared(args, folder)

    def ask(image: Any, prompt: str, pushes: Any, seed: int) -> Any:
        return rollout(pipeline, prompt, pushes, image, seed=seed).frames

    size = request.height, request.width
    with progress("driving") as update:
        results = run_rollouts(ask, args.n, args.seed, lengths, size, pipeline.codec.reconstruct, out, update)
    _emit_scores(args, folder, pipeline, request, results)


def _score(args: argparse.Namespace, more: Callable[[], dict[str, Any]]) -> None:
    """Check the request, load the model, score it; `more` are arguments for `run_worlds`."""
    folder, request = _checked(args, seconds=args.seconds)
    shape = {"width": request.width, "height": request.height, "frames": request.frames}

    from worldline.eval.runner import run_worlds

    pipeline, out = _prepared(args, folder)
    with progress("judging") as update:
        report = run_worlds(
            lambda prompts, seeds: pipeline.answer(prompts, seeds, **shape),
            n=args.n,
            seed=args.seed,
            out=out,
            reconstruct=pipeline.codec.reconstruct,
            fps=float(pipeline.defaults.fps),
            progress=lambda _, done, total: update(done, total),
            **more(),
        )
    _emit_scores(args, folder, pipeline, request, report)


def _checked(args: argparse.Namespace, **shape: Any) -> tuple[Path, Any]:
    """The model's folder, and a request of it that has the asked shape."""
    from worldline.checkpoints import layout
    from worldline.generate.request import Request, check_range, known_defaults, read_size, request_of

    check_range("--n", args.n, 2, 100_000, whole=True)
    check_range("--seed", args.seed, 0, 2**62, whole=True)
    folder = layout.check(args.model)
    if args.size is not None:
        shape["width"], shape["height"] = read_size(args.size)
    defaults = Request("", **known_defaults(layout.defaults(folder)))
    return folder, request_of(defaults, "", **shape)


def _prepared(args: argparse.Namespace, folder: Path) -> tuple[Any, Path | None]:
    """The loaded model, after the report's folder was made."""
    from worldline.eval.runner import prepare_folder
    from worldline.generate.load import load

    out = Path(args.out) if args.out else None
    if out is not None:
        prepare_folder(out)
    return load(folder), out


def _emit_scores(args: argparse.Namespace, folder: Path, pipeline: Any, request: Any, scores: Any) -> None:
    shape = {"width": request.width, "height": request.height, "frames": request.frames}
    about = {"model": str(folder), "model_hash": pipeline.model_hash, "seed": args.seed, **shape}
    emit(args, {**about, **scores.as_dict()}, scores.table())
