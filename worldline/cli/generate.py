"""`worldline generate`: a sentence becomes a video."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from worldline.cli.parser import Parser, Verbs, add_sign_with, add_verb, emit, named, note, number, progress

# What the arguments that name files are to what is made of them.
ROLES: dict[str, Any] = {"video": "opened", "second": "placed", "image": "input", "last": "input", "mask": "input"}


def add_generate(verbs: Verbs) -> None:
    parser = add_verb(verbs, "generate", run_generate, "make a video (or with --frames 1 a picture) from a sentence")
    add = parser.add_argument
    add("prompt", metavar="PROMPT", help="what the video shows, in one quoted sentence")
    add_output(parser, "out.mp4")
    add("--size", default=None, help="WIDTHxHEIGHT in pixels; the model's own size unless given")
    add("--seconds", type=number("--seconds"), default=None, help="length; the model's own length unless given")
    add("--frames", type=number("--frames", True, "17"), default=None, help="length as a count of frames")
    add("--fps", default=None, help="frames per second of the file, for example 16 or 30000/1001")
    add_settings(parser)
    add("--num-videos", type=number("--num-videos", True, "1"), default=1, help="how many videos")
    add("--image", default=None, help="picture to begin with, kept as the first frame")
    words = "draw the prompt as a caption of the kind that the model was trained on (see `worldline rewrite`)"
    add("--rewrite", nargs="?", const="", default=None, metavar="WRITER", help=words)
    add("--dry-run", action="store_true", help="check everything and print the plan, without making the video")


def add_output(parser: Parser, default: str) -> None:
    """Where the result goes."""
    add = parser.add_argument
    add("-o", "--output", default=default, help="file to write: .mp4, .gif, .webp, or .png for one frame")
    add("--sheet", nargs="?", const="", default=None, help="also write a contact sheet, by default beside the video")
    add("--overwrite", action="store_true", help="replace files that exist")
    add_sign_with(parser)


def add_settings(parser: Parser) -> None:
    """How a model draws, the same for every verb."""
    add = parser.add_argument
    add("--seed", type=number("--seed", True, "0"), default=0, help="video i is drawn from seed + i")
    add("--steps", type=number("--steps", True, "20"), default=None, help="sampler steps")
    add("--guidance-scale", type=number("--guidance-scale", example="5"), default=None, help="1 turns guidance off")
    words = "that of the low-noise expert of a model with two"
    add("--guidance-scale-2", type=number("--guidance-scale-2", example="3"), default=None, help=words)
    words = "that of what is known, for a model that is guided by it"
    add("--guidance-scale-image", type=number("--guidance-scale-image", example="3"), default=None, help=words)
    add("--guidance-rescale", type=number("--guidance-rescale", example="0.7"), default=None, help="0 to 1: undo glare")
    add("--guidance-interval", default=None, metavar="LOW,HIGH", help="times that guidance acts at, within 0,1")
    words = "no guidance in every other step after the tenth; as the model was published unless given"
    add("--guidance-oscillation", action=argparse.BooleanOptionalAction, default=None, help=words)
    words = "moves the times towards noise, 1 not at all; as the model was published unless given"
    add("--shift", type=number("--shift", example="5"), default=None, help=words)
    add("--sampler", default=None, help="euler, heun, dpmpp_2m or unipc")
    words = "approximate: a step reuses what most blocks added as long as the first block's share has changed by less"
    add("--reuse", type=number("--reuse", example="0.1"), default=None, metavar="SHARE", help=f"{words}, e.g. 0.1")
    add("--negative-prompt", default=None, help="what the video shall not show; the model's own words unless given")
    words = 'ends what the model reads, as it was taught; {fps} stands for the rate; "" adds nothing'
    add("--prompt-suffix", default=None, help=words)
    words = "what is longer than the model's window: auto, whole, sliding, long-range or hierarchy"
    add("--long", default="auto", metavar="PLAN", help=words)
    add("--model", default=None, help="model folder or hub id; the shipped model unless given")
    words = "compile the transformer first (torch.compile): up to a minute, which pays for long sampling in bfloat16"
    add("--compile", action="store_true", help=words)
    add_max_memory(parser)


def add_max_memory(parser: Parser) -> None:
    """How much may be taken."""
    words = "most memory that may be held, for example 8GB; frames are cut to it. What is free unless given"
    parser.add_argument("--max-memory", default=None, metavar="SIZE", help=words)


def max_memory_of(args: argparse.Namespace) -> float | None:
    """--max-memory in bytes."""
    from worldline.generate.request import read_bytes

    return None if args.max_memory is None else read_bytes("--max-memory", args.max_memory)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The flags of `add_settings` as `Pipeline.request` takes them, and `long`."""
    from worldline.generate.request import how_of, read_interval

    scales = ("guidance_scale", "guidance_scale_2", "guidance_scale_image", "guidance_rescale", "guidance_oscillation")
    names = ("seed", "steps", "sampler", "reuse", "shift", *scales, "negative_prompt", "prompt_suffix", "long")
    settings = {name: getattr(args, name) for name in names}
    how_of(args.long, 1, {})  # an unknown plan is told at once
    interval = None if args.guidance_interval is None else read_interval(args.guidance_interval)
    return {**settings, "guidance_interval": interval}


def _request(args: argparse.Namespace, defaults: dict[str, Any], **grid: Any) -> Any:
    from worldline.generate.request import Request, known_defaults, read_size, request_of

    settings = settings_of(args)
    del settings["long"]
    if args.size is not None:
        settings["width"], settings["height"] = read_size(args.size)
    base = Request("", **known_defaults(defaults), **grid)
    length = {"seconds": args.seconds, "frames": args.frames, "fps": args.fps}
    if args.rewrite is not None:
        settings["rewritten_from"] = args.stated
    return request_of(base, args.prompt, num_videos=args.num_videos, **length, **settings)


def _rewrite(args: argparse.Namespace) -> None:
    """Put the rewritten prompt in the prompt's place, and keep the user's own."""
    args.stated = args.prompt
    if args.rewrite is None:
        return
    from worldline.caption.rewrite import rewrite, writer_of

    made = rewrite(args.prompt, *writer_of(args.rewrite or None))
    args.prompt = made.text
    note(f"{made.note}; the prompt stays as it is" if made.note else f"the prompt became: {made.text}")


def run_generate(args: argparse.Namespace) -> None:
    """Check the whole request, then load the model, sample, and write files."""
    from worldline.checkpoints import layout
    from worldline.generate.request import TRAINED, check_output, check_pictures, check_prompt, how_of, numbered
    from worldline.shapes import VideoShape

    started = time.perf_counter()
    check_prompt(args.prompt)
    _rewrite(args)
    most = max_memory_of(args)
    # The user's own values first: they are checked even where no model is.
    request = _request(args, {"guidance_scale_2": 1.0, "guidance_scale_image": 1.0})
    folder = layout.check(args.model)
    defaults, traits = layout.defaults(folder), layout.traits(folder)
    request = _request(args, defaults, grid=traits.grid)
    out = check_output(args.output, args.overwrite, request.frames, request.num_videos)
    image = read_picture(args.image, "--image")
    check_pictures(traits.pictures, 0 if image is None else 1)
    _sheet_path(args, out)
    trained = VideoShape(*(defaults.get(k, getattr(TRAINED, k)) for k in ("frames", "height", "width")))
    for line in request.notes(trained):
        note(line)
    latent = traits.grid.latent(request.padded)
    long = how_of(args.long, latent.frames, defaults) != "whole" and out.suffix.lower() == ".mp4"

    from worldline.generate.load import check_memory, load

    cut = check_memory(folder, request, most, how=args.long, reads=image is not None, streamed=long)
    if cut.blended:
        note(f"in the memory at hand the autoencoder takes {cut}")
    if args.dry_run:
        how = how_of(args.long, latent.frames, defaults)
        plan = {**request.as_dict(), "tokens": request.tokens.count, "long": how, "model": str(folder)}
        plan |= {"output": [str(file) for file in numbered(out, request.num_videos)], "autoencoder": str(cut)}
        return emit(args, plan, "\n".join(f"{key:16} {value}" for key, value in plan.items()))
    pipeline = load(folder, max_memory=most, compiled=args.compile)
    for line in pipeline.hints(request):
        note(line)
    pipeline.reel.plan_for(latent.frames, args.long)  # pieces are refused where the model reads clips as wholes
    with progress("sampling") as update:
        if long:
            return _write_long(args, pipeline, request, image, out, update)
        result = pipeline.run(request, image=image, progress=update, how=args.long)
    save(args, result, out, started)


def _write_long(args: argparse.Namespace, pipeline: Any, request: Any, image: Any, out: Path, update: Any) -> None:
    """Videos that are written while they are made, one after the other."""
    from worldline.generate.request import numbered
    from worldline.generate.unfinished import unfinished, write_long
    from worldline.media.preview import contact_sheet
    from worldline.media.read import read_video
    from worldline.media.write import growing, write_image

    sheet, files = _sheet_path(args, out), numbered(out, request.num_videos)
    for i, file in enumerate(files):
        kept = "; goes on where it stopped" if unfinished(file).exists() else ""
        note(f"watch it grow in {growing(file)}; after an interruption the same command goes on{kept}")
        one = replace(request, seed=request.seed + i, num_videos=1)
        write_long(pipeline, one, file, image, args.long, update, args.overwrite, parents_of(args))
    if sheet is not None:
        shown = contact_sheet([read_video(file).frames for file in files], [request.prompt] * len(files))
        write_image(sheet, shown, pipeline.record(request))
    data = {**pipeline.record(request), "output": [str(file) for file in files], "sheet": sheet and str(sheet)}
    _note_approximations(data)
    shape = f"{request.width}x{request.height}, {request.frames} frames at {float(request.fps):g} fps"
    lines = [f"{file}  ({shape}, seed {request.seed + i})" for i, file in enumerate(files)]
    emit(
        args, {**data, "timings": pipeline.timings}, "\n".join(lines + ([f"{sheet}  (contact sheet)"] if sheet else []))
    )


def save(args: argparse.Namespace, result: Any, out: Path, started: float | None = None) -> None:
    """Write a result and its sheet, and say where they are."""
    sheet = _sheet_path(args, out)
    files = result.save(out, args.overwrite, parents_of(args))
    if sheet is not None:
        result.save_sheet(sheet)
    data = {**result.metadata, "output": [str(file) for file in files], "sheet": sheet and str(sheet)}
    data |= {"timings": result.timings}
    if started is not None:
        data["seconds"] = round(time.perf_counter() - started, 3)
    _note_approximations(data)
    frames, height, width = result.frames.shape[:3]
    shape = f"{width}x{height}, {frames} frames at {float(result.fps):g} fps"
    lines = [f"{file}  ({shape}, seed {result.record(i)['seed']})" for i, file in enumerate(files)]
    emit(args, data, "\n".join(lines + ([f"{sheet}  (contact sheet)"] if sheet else [])))


def _note_approximations(data: dict[str, Any]) -> None:
    """Say in what the result is not what the model would exactly have made."""
    if data.get("known") == "replacement":
        note("the model was not trained with masks: what is known was held by replacement, and joins may show")
    if "reused" in data:
        made = data["reused"]
        line = f"{made['borrowed']} of the model's {made['asked']} answers borrow from the step before"
        off = f"; where none did, borrowing would have been {made['error']:.1%} off" if "error" in made else ""
        note(line + off)


def parents_of(args: argparse.Namespace) -> list[Any]:
    """The files that a command line names to make others from."""
    from worldline.media.provenance import Parent

    named = [Parent(Path(getattr(args, name)), role) for name, role in ROLES.items() if getattr(args, name, None)]
    return [*named, *(Parent(file, "input") for file in getattr(args, "cards", ()))]  # of a storyboard


def _sheet_path(args: argparse.Namespace, out: Path) -> Path | None:
    if args.sheet is None:
        return None
    from worldline.media.write import check_writable

    path = args.sheet or out.with_name(f"{out.stem}-sheet.png")
    return check_writable(path, args.overwrite, (".png",))


def read_picture(path: str | None, name: str) -> Any:
    """A picture uint8 (H, W, 3), or None without a path; raises UserError naming the argument."""
    if path is None:
        return None
    from worldline.media.read import read_image

    with named(name):
        return read_image(path)
