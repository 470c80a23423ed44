"""`worldline caption` and `worldline rewrite`: what clips show in words, and prompts as the captions a model knows."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from worldline.cli.parser import Parser, Verbs, add_verb, emit, note, number, progress
from worldline.errors import UserError


def add_caption(verbs: Verbs) -> None:
    about = "say what clips show; captions are added to captions.parquet and never overwritten"
    parser = add_verb(verbs, "caption", run_caption, about)
    add = parser.add_argument
    add("sources", metavar="SRC", nargs="+", help="manifest of `worldline curate`, other dataset, folder or video")
    add("--out", default=None, help="where captions are added; captions.parquet beside the dataset unless given")
    add("--style", choices=("short", "full", "both"), default="full", help="one sentence, or all there is to say")
    _add_writer(
        parser, "--captioner", "address of an OpenAI-compatible endpoint (https://host/v1) or folder of a model"
    )
    add("--prompt", default="", help="what an endpoint or local model is asked; a request for the style unless given")
    add("--frames", type=number("--frames", True, "8"), default=8, help="that an endpoint or local model is shown")
    add("--dry-run", action="store_true", help="say how many captions are missing, make none")


def _add_writer(parser: Parser, flag: str, what: str) -> None:
    add = parser.add_argument
    add(flag, default=None, metavar="NAME", help=f"{what}; the shipped one unless given")
    add(f"{flag}-model", default="", metavar="ID", help="model at the endpoint; its first unless given")
    add("--concurrency", type=number("--concurrency", True, "8"), default=8, help="requests to an endpoint at once")
    add("--retries", type=number("--retries", True, "5"), default=5, help="of a request that fails in passing")
    add("--timeout", type=number("--timeout"), default=120.0, help="seconds that a request may take")
    add("--key-variable", default="OPENAI_API_KEY", help="environment variable with the endpoint's key")


def _ways(args: argparse.Namespace, flag: str) -> Any:
    from worldline.caption.captioner import Ways
    from worldline.generate.request import check_range

    check_range("--concurrency", args.concurrency, 1, 256, whole=True)
    check_range("--retries", args.retries, 0, 20, whole=True)
    check_range("--timeout", args.timeout, 1, 3600)
    frames = getattr(args, "frames", 8)
    check_range("--frames", frames, 1, 64, whole=True)
    return Ways(
        model=getattr(args, f"{flag}_model"),
        prompt=getattr(args, "prompt", ""),
        frames=frames,
        concurrency=args.concurrency,
        retries=args.retries,
        timeout=args.timeout,
        key_variable=args.key_variable,
    )


def run_caption(args: argparse.Namespace) -> None:
    """Open the dataset and the captioner, add what is missing, say what was added and what it cost."""
    ways = _ways(args, "captioner")

    from worldline.caption.captioner import captioner_of
    from worldline.caption.run import caption_all, missing
    from worldline.data.dataset import captions_beside, open_dataset
    from worldline.records import read_captions

    broken: list[str] = []
    examples, outs = [], []
    for source in args.sources:
        opened = open_dataset(source, lambda name, reason: broken.append(reason))
        examples += opened
        outs.append(captions_beside(Path(source)))
    out = Path(args.out) if args.out else outs[0]
    if len(set(outs)) > 1 and not args.out:
        raise UserError("--out: the sources lie in several places; name the file that captions are added to")
    captioner = captioner_of(args.captioner, ways)
    styles = ("short", "full") if args.style == "both" else (args.style,)
    for reason in broken:
        note(f"left out: {reason}")
    clips = [example.clip for example in examples]
    todo = missing(clips, captioner, styles, read_captions(out))
    data: dict[str, Any] = {"out": str(out), "clips": len(clips), "missing": len(todo), "captioner": captioner.model}
    data |= {"version": captioner.version, "left_out": broken}
    if args.dry_run:
        return emit(args, data, f"{len(clips)} clips, {len(todo)} captions missing in {out}")
    with progress("captioning") as update:
        made = caption_all(todo, captioner, out, update, note)
    if cost := getattr(getattr(captioner, "endpoint", None), "cost", None):
        data["cost"] = cost.as_dict()
        note(", ".join(f"{value} {name.replace('_', ' ')}" for name, value in cost.as_dict().items()))
    sources = {clip.id: clip for clip in clips}
    lines = [f"{_name(sources[c.clip])}\n    {c.text}{_doubt(c)}" for c in made]
    data["captions"] = [
        {"source": sources[c.clip].source, "clip": c.clip, "text": c.text, "sure": c.sure} for c in made
    ]
    emit(args, data, "\n".join([*lines, f"{out}: {len(made)} captions added by {captioner.model}"]))


def _name(clip: Any) -> str:
    return f"{clip.source} {clip.start:.2f}-{clip.end:.2f} s"


def _doubt(caption: Any) -> str:
    from worldline.caption.captioner import SURE

    if caption.sure is None or caption.sure >= SURE:
        return ""
    return f"\n    (sure of {caption.sure:.0%} a word: not one of the worlds that the shipped captioner knows)"


def add_rewrite(verbs: Verbs) -> None:
    about = "a short prompt as a caption of the kind that the model was trained on; no stated fact changes"
    parser = add_verb(verbs, "rewrite", run_rewrite, about)
    parser.add_argument("prompt", metavar="PROMPT", help="what the video shall show")
    _add_writer(parser, "--writer", "address of an OpenAI-compatible endpoint or folder of a local language model")


def run_rewrite(args: argparse.Namespace) -> None:
    """Rewrite one prompt and print it."""
    from worldline.generate.request import check_prompt

    check_prompt(args.prompt)
    ways = _ways(args, "writer")

    from worldline.caption.rewrite import rewrite, writer_of

    made = rewrite(args.prompt, *writer_of(args.writer, ways))
    if made.note:
        note(f"{made.note}; the prompt stays as it is")
    emit(args, {"prompt": made.prompt, "text": made.text, "by": made.by, "note": made.note}, made.text)
