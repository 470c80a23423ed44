"""`worldline animate | extend | loop | interpolate | blend | remix | recut | inpaint | outpaint | image | variations |
rollout | storyboard`: one verb each for `generate.edit`, `generate.rollout` and `generate.storyboard`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worldline.cli.generate import add_output, add_settings, max_memory_of, read_picture, save, settings_of
from worldline.cli.parser import Parser, Verbs, add_verb, named, note, number, progress
from worldline.errors import UserError

PROMPT = "what the video shows; the prompt that the file itself records unless given"


def add_edits(verbs: Verbs) -> None:
    parser = _verb(verbs, "animate", "a picture comes to life", _animate)
    parser.add_argument("image", metavar="IMAGE", help="the first frame")
    parser.add_argument("prompt", metavar="PROMPT", help="what happens")
    _add_shape(parser)

    parser = _verb(verbs, "image", "make a picture: a video of one frame", _image, output="out.png")
    parser.add_argument("prompt", metavar="PROMPT", help="what the picture shows")
    parser.add_argument("--size", default=None, help="WIDTHxHEIGHT in pixels; the model's own size unless given")

    parser = _verb(verbs, "extend", "a clip goes on, or begins earlier", _extend)
    _add_clip(parser)
    parser.add_argument("--forward", type=number("--forward"), default=1.0, help="seconds added at the end")
    parser.add_argument("--backward", type=number("--backward"), default=0.0, help="seconds added before the beginning")

    parser = _verb(verbs, "loop", "add what leads from a clip's end back to its beginning", _loop)
    _add_clip(parser)
    parser.add_argument("--seconds", type=number("--seconds"), default=0.5, help="seconds added")

    parser = _verb(verbs, "interpolate", "a video from one picture to another", _interpolate)
    parser.add_argument("image", metavar="A", help="the first frame")
    parser.add_argument("last", metavar="B", help="the last frame")
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", default="", help="what happens between them")
    _add_shape(parser)

    parser = _verb(verbs, "blend", "one clip turns into another", _blend)
    parser.add_argument("video", metavar="A", help="the clip that begins")
    parser.add_argument("second", metavar="B", help="the clip that ends")
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", default=None, help=PROMPT)
    parser.add_argument("--seconds", type=number("--seconds"), default=0.5, help="how long the transition is")
    _add_strength(parser, 0.8)

    parser = _verb(verbs, "remix", "paint a clip anew under another prompt", _remix)
    parser.add_argument("video", metavar="VIDEO", help="any video file")
    parser.add_argument("prompt", metavar="PROMPT", help="what the new video shows")
    _add_strength(parser, 0.7)

    parser = _verb(verbs, "recut", "keep stretches of a clip and make the joins anew", _recut)
    _add_clip(parser)
    parser.add_argument("--keep", required=True, help="FROM:TO in seconds, several with commas, for example 0:2,5:7")
    parser.add_argument(
        "--join", type=number("--join"), default=0.5, help="seconds around every cut that are made anew"
    )

    parser = _verb(verbs, "inpaint", "paint part of every frame anew", _inpaint)
    _add_clip(parser)
    parser.add_argument("--mask", required=True, help="picture or video of the clip's size, white where to paint")

    parser = _verb(verbs, "outpaint", "widen a clip beyond its frame", _outpaint)
    _add_clip(parser)
    parser.add_argument("--size", required=True, help="WIDTHxHEIGHT of the result in pixels")

    parser = _verb(verbs, "variations", "other takes of a clip", _variations)
    _add_clip(parser)
    parser.add_argument("--count", type=number("--count", True, "4"), default=4, help="how many")
    _add_strength(parser, 0.8)

    parser = _verb(
        verbs, "rollout", "drive a world: a thing is pushed about, and the model says what follows", _rollout
    )
    parser.add_argument("prompt", metavar="PROMPT", help='what is there, for example "a red ball moves on the floor"')
    about = "DIRECTION:SECONDS, one after the other: left, right, toward, away, none"
    parser.add_argument("--pushes", required=True, help=about + "; for example right:0.5,none:0.25,away:1")
    parser.add_argument("--image", default=None, help="the first frame; drawn from the prompt unless given")
    parser.add_argument("--size", default=None, help="WIDTHxHEIGHT in pixels; the model's own size unless given")

    parser = _verb(verbs, "storyboard", "a video told in cards", _storyboard)
    parser.add_argument("board", metavar="BOARD", help="YAML file, as the example below")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"example:\n\n{_EXAMPLE}\na card may also name an `image` beside the board, its first frame"


_EXAMPLE = """\
  size: 64x64
  fps: 16
  seconds: 3
  cards:
    - at: 0
      text: a red ball rolls to the right
    - at: 1
      text: a red ball jumps
    - at: 2
      cut: true
      text: a blue cube falls to the floor
"""


def _verb(
    verbs: Verbs, name: str, about: str, make: Callable[[argparse.Namespace, Any], Any], output: str = "out.mp4"
) -> Parser:
    def run(args: argparse.Namespace) -> None:
        from worldline.checkpoints import layout
        from worldline.generate.request import check_output

        most = max_memory_of(args)
        folder = layout.check(args.model)
        out = check_output(args.output, args.overwrite, 1 if name == "image" else 2, getattr(args, "count", 1))

        from worldline.generate.load import Deferred

        pipeline = Deferred(folder, layout.defaults(folder), most, args.compile)
        with progress(name) as update:
            args.progress = update
            result = make(args, pipeline)
        save(args, result, out)

    parser = add_verb(verbs, name, run, about)
    add_output(parser, output)
    add_settings(parser)
    if name not in ("animate", "image", "rollout"):
        parser.add_argument("--reencode", action="store_true", help="do not copy known pixels, but decode them as well")
    return parser


def _add_clip(parser: Parser) -> None:
    parser.add_argument("video", metavar="VIDEO", help="any video file")
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", default=None, help=PROMPT)


def _add_shape(parser: Parser) -> None:
    parser.add_argument("--size", default=None, help="WIDTHxHEIGHT in pixels; the model's own size unless given")
    parser.add_argument(
        "--seconds", type=number("--seconds"), default=None, help="length; the model's own unless given"
    )
    parser.add_argument(
        "--frames", type=number("--frames", True, "17"), default=None, help="length as a count of frames"
    )
    parser.add_argument("--fps", default=None, help="frames per second, for example 16 or 30000/1001")


def _add_strength(parser: Parser, default: float) -> None:
    words = "0 keeps the clip, 1 forgets it"
    parser.add_argument("--strength", type=number("--strength", example="0.7"), default=default, help=words)


# ---- what each verb reads and calls ------------------------------------------------------------


def _settings(args: argparse.Namespace, shape: bool = False) -> dict[str, Any]:
    from worldline.generate.request import check_text, read_size

    settings = settings_of(args) | {"progress": args.progress}
    if hasattr(args, "reencode"):
        settings["reencode"] = args.reencode
    check_text("PROMPT", getattr(args, "prompt", None) or "")
    if shape and args.size is not None:
        settings["width"], settings["height"] = read_size(args.size)
    if shape and hasattr(args, "frames"):
        settings |= {"frames": args.frames, "seconds": args.seconds, "fps": args.fps}
    return settings


def _clip(path: str, name: str = "VIDEO", fps: Any = None) -> Any:
    from worldline.media.read import read_video

    with named(name):
        return read_video(path, fps=fps)


def _prompt(args: argparse.Namespace, video: Any) -> str:
    """The prompt given, else the one that the clip was made from, else none."""
    if args.prompt is not None:
        return str(args.prompt)
    from worldline.media.provenance import from_tags

    recorded = str(from_tags(video.metadata).get("prompt", ""))
    note(f"the prompt is the file's own: {recorded!r}" if recorded else "no prompt: the clip alone says what it shows")
    return recorded


def _animate(args: argparse.Namespace, pipeline: Any) -> Any:
    from worldline.generate import edit

    return edit.animate(pipeline, read_picture(args.image, "IMAGE"), args.prompt, **_settings(args, shape=True))


def _image(args: argparse.Namespace, pipeline: Any) -> Any:
    from worldline.generate import edit

    return edit.image(pipeline, args.prompt, **_settings(args, shape=True))


def _extend(args: argparse.Namespace, pipeline: Any) -> Any:
    from worldline.generate import edit

    video, settings = _clip(args.video), _settings(args)
    return edit.extend(pipeline, video, _prompt(args, video), args.forward, args.backward, **settings)


def _loop(args: argparse.Namespace, pipeline: Any) -> Any:
    from worldline.generate import edit

    video, settings = _clip(args.video), _settings(args)
    return edit.loop(pipeline, video, _prompt(args, video), args.seconds, **settings)


def _interpolate(args: argparse.Namespace, pipeline: Any) -> Any:
    from worldline.generate import edit

    first, last = read_picture(args.image, "A"), read_picture(args.last, "B")
    return edit.interpolate(pipeline, first, last, args.prompt, **_settings(args, shape=True))


def _blend(args: argparse.Namespace, pipeline: Any) -> Any:
    from worldline.generate import edit

    a, settings = _clip(args.video, "A"), _settings(args)
    b = _clip(args.second, "B", a.fps)
    return edit.blend(pipeline, a, b, _prompt(args, a), args.seconds, args.strength, **settings)


def _remix(args: argparse.Namespace, pipeline: Any) -> Any:
    from worldline.generate import edit

    return edit.remix(pipeline, _clip(args.video), args.prompt, args.strength, **_settings(args))


def _recut(args: argparse.Namespace, pipeline: Any) -> Any:
    from worldline.generate import edit

    keep = _stretches(args.keep)
    video, settings = _clip(args.video), _settings(args)
    return edit.recut(pipeline, video, keep, _prompt(args, video), args.join, **settings)


def _stretches(text: str) -> list[tuple[float, float]]:
    """ "0:2,5:7" as [(0, 2), (5, 7)]; raises UserError."""
    stretches = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*:\s*(\d+(?:\.\d+)?)\s*", part)
        if match is None:
            raise UserError(f"--keep {part[:40]!r}: not FROM:TO in seconds; write for example 0:2,5:7")
        stretches.append((float(match[1]), float(match[2])))
    return stretches


def _inpaint(args: argparse.Namespace, pipeline: Any) -> Any:
    from worldline.generate import edit

    video, settings = _clip(args.video), _settings(args)
    return edit.inpaint(pipeline, video, _mask(args.mask), _prompt(args, video), **settings)


def _mask(path: str) -> Any:
    """True where a picture (H, W) or video (T, H, W) is more white than black."""
    from worldline.media.read import PICTURE_SUFFIXES, read_image, read_video

    with named("--mask"):
        still = Path(path).suffix.lower() in PICTURE_SUFFIXES
        return (read_image(path) if still else read_video(path).frames).mean(-1) > 127


def _outpaint(args: argparse.Namespace, pipeline: Any) -> Any:
    from worldline.generate import edit
    from worldline.generate.request import read_size

    size = read_size(args.size)
    video, settings = _clip(args.video), _settings(args)
    return edit.outpaint(pipeline, video, *size, _prompt(args, video), **settings)


def _variations(args: argparse.Namespace, pipeline: Any) -> Any:
    from worldline.generate import edit

    video, settings = _clip(args.video), _settings(args)
    return edit.variations(pipeline, video, _prompt(args, video), args.count, args.strength, **settings)


def _rollout(args: argparse.Namespace, pipeline: Any) -> Any:
    from worldline.generate.rollout import rollout

    image, pushes = read_picture(args.image, "--image"), _pushes(args.pushes)
    return rollout(pipeline, args.prompt, pushes, image, **_settings(args, shape=True))


def _pushes(text: str) -> list[tuple[str, float]]:
    """ "right:0.5,away:1" as [("right", 0.5), ("away", 1.0)]; raises UserError."""
    pushes = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([a-z]+)\s*:\s*(\d+(?:\.\d+)?)\s*", part)
        if match is None:
            raise UserError(f"--pushes {part[:40]!r}: not DIRECTION:SECONDS; write for example right:0.5,away:1")
        pushes.append((match[1], float(match[2])))
    return pushes


def _storyboard(args: argparse.Namespace, pipeline: Any) -> Any:
    from worldline.generate.board import read_board
    from worldline.generate.storyboard import storyboard

    with named("BOARD"):
        board = read_board(args.board)
    args.cards = board.files
    return storyboard(pipeline, board, **_settings(args))
