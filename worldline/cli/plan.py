"""`worldline plan`: what a video would take, from a model's configs and headers alone."""

from __future__ import annotations

import argparse

from worldline.cli.generate import add_max_memory, max_memory_of
from worldline.cli.parser import Verbs, add_verb, emit, number


def add_plan(verbs: Verbs) -> None:
    parser = add_verb(verbs, "plan", run_plan, "what a video would take: tokens, work and memory; loads no weights")
    add = parser.add_argument
    add("--model", default=None, help="model folder or hub id; the shipped model unless given")
    add("--size", default=None, help="WIDTHxHEIGHT in pixels; the model's own size unless given")
    add("--frames", type=number("--frames", True, "17"), default=None, help="length as a count of frames")
    add("--seconds", type=number("--seconds"), default=None, help="length in seconds")
    add("--steps", type=number("--steps", True, "20"), default=None, help="sampler steps")
    add("--guidance-scale", type=number("--guidance-scale", example="5"), default=None, help="1 turns guidance off")
    add("--num-videos", type=number("--num-videos", True, "1"), default=1, help="how many videos")
    add("--image", action="store_true", help="a picture is given as well (`generate --image`): it is encoded first")
    add("--long", default="auto", metavar="PLAN", help="auto, whole, sliding, long-range or hierarchy")
    add("--device", default=None, choices=("cpu", "cuda"), help="the fastest here unless given")
    add_max_memory(parser)


def run_plan(args: argparse.Namespace) -> None:
    """Print the plan that `generate` makes; where it does not fit, end as that would: with the nearest that does and
    exit code 2."""
    from worldline.checkpoints import layout
    from worldline.generate.request import Request, how_of, known_defaults, read_size, request_of

    most = max_memory_of(args)
    how_of(args.long, 1, {})
    given = {"steps": args.steps, "guidance_scale": args.guidance_scale, "num_videos": args.num_videos}
    if args.size is not None:
        given["width"], given["height"] = read_size(args.size)
    length = {"seconds": args.seconds, "frames": args.frames}
    request_of(Request(""), "", **length, **given)  # the user's own values first, even where no model is
    folder = layout.check(args.model)
    defaults, traits = layout.defaults(folder), layout.traits(folder)
    request = request_of(Request("", **known_defaults(defaults), grid=traits.grid), "", **length, **given)
    streamed = how_of(args.long, traits.grid.latent(request.padded).frames, defaults) != "whole"

    from worldline.checkpoints.outline import Outline
    from worldline.generate.load import setting_of
    from worldline.generate.plan import check, plan

    model = Outline.of_folder(folder)
    reads = args.image or traits.pictures > 0
    where = setting_of(model, folder, args.device, most, how=args.long, reads=reads, streamed=streamed)
    made = plan(model, request, where)
    emit(args, {"model": str(folder), **made.as_dict()}, "\n".join(made.lines()))
    if not made.fits:
        check(model, request, where)
