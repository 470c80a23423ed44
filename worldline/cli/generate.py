"""`worldline generate`: a sentence becomes a video."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from worldline.cli.parser import Verbs, add_verb, emit, named, note, number, progress


def add_generate(verbs: Verbs) -> None:
    parser = add_verb(verbs, "generate", run_generate, "make a video (or with --frames 1 a picture) from a sentence")
    add = parser.add_argument
    add("prompt", metavar="PROMPT", help="what the video shows, in one quoted sentence")
    add("-o", "--output", default="out.mp4", help="file to write: .mp4, .gif, .webp, or .png for one frame")
    add("--size", default=None, help="WIDTHxHEIGHT in pixels; the model's own size unless given")
    add("--seconds", type=number("--seconds"), default=None, help="length; the model's own length unless given")
    add("--frames", type=number("--frames", True, "17"), default=None, help="length as a count of frames")
    add("--fps", default=None, help="frames per second of the file, for example 16 or 30000/1001")
    add("--steps", type=number("--steps", True, "20"), default=None, help="sampler steps")
    add("--guidance-scale", type=number("--guidance-scale", example="5"), default=None, help="1 turns guidance off")
    add("--guidance-rescale", type=number("--guidance-rescale", example="0.7"), default=None, help="0 to 1: undo glare")
    add("--guidance-interval", default=None, metavar="LOW,HIGH", help="times that guidance acts at, within 0,1")
    add("--sampler", default=None, help="euler, heun or dpmpp_2m")
    add("--negative-prompt", default="", help="what the video shall not show")
    add("--seed", type=number("--seed", True, "0"), default=0, help="video i is drawn from seed + i")
    add("--num-videos", type=number("--num-videos", True, "1"), default=1, help="how many videos")
    add("--image", default=None, help="picture to begin with, kept as the first frame")
    add("--model", default=None, help="model folder; the shipped model unless given")
    add("--sheet", nargs="?", const="", default=None, help="also write a contact sheet, by default beside the video")
    add("--dry-run", action="store_true", help="check everything and print the plan, without making the video")
    add("--overwrite", action="store_true", help="replace files that exist")


def _request(args: argparse.Namespace, defaults: dict[str, Any]) -> Any:
    from worldline.generate.request import Request, frames_of, read_fps, read_interval, read_size

    size = args.size or f"{defaults.get('width', Request.width)}x{defaults.get('height', Request.height)}"
    width, height = read_size(size)
    fps = read_fps(args.fps if args.fps is not None else defaults.get("fps", Request.fps))
    frames = frames_of(args.seconds, args.frames, fps, defaults.get("frames", Request.frames))
    interval = None if args.guidance_interval is None else read_interval(args.guidance_interval)
    given = {"steps": args.steps, "sampler": args.sampler, "guidance_scale": args.guidance_scale}
    given |= {"guidance_rescale": args.guidance_rescale, "guidance_interval": interval}
    chosen = {
        name: defaults.get(name, getattr(Request, name)) if value is None else value for name, value in given.items()
    }
    chosen["guidance_interval"] = tuple(chosen["guidance_interval"])
    return Request(
        prompt=args.prompt,
        negative_prompt=args.negative_prompt,
        width=width,
        height=height,
        frames=frames,
        fps=fps,
        seed=args.seed,
        num_videos=args.num_videos,
        **chosen,
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
