"""What all verbs share: the parser and its complaints, numbers with names, answers as text or JSON, progress."""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from worldline.errors import UserError
from worldline.media.identity import SIGN_WITH, UNSIGNED


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one-line UserErrors with the nearest known flag or choice."""

    def error(self, message: str) -> NoReturn:
        name = self.prog.removeprefix("worldline").strip()
        raise UserError(f"{name}: {message} (see `{self.prog} --help`)" if name else f"{message}; try --help")

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """Raise for arguments that this verb does not know, naming its nearest flag."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        close = difflib.get_close_matches(words[0].split("=")[0], flags, 1)
        hint = f"did you mean {close[0]}?" if close else "remove it, or put the prompt in quotes"
        raise UserError(f"unknown argument {words[0][:60]!r}; {hint}")


Verbs = Any  # argparse's subparser action, whose type is private


def add_verb(verbs: Verbs, name: str, run: Callable[[argparse.Namespace], int | None], about: str) -> Parser:
    parser: Parser = verbs.add_parser(
        name, help=about, description=about, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def add_sign_with(parser: Parser) -> None:
    """Who signs what is written, here and in processes that are started from here."""

    class Set(argparse.Action):
        def __call__(self, parser: Any, args: Any, value: Any, option: str | None = None) -> None:
            os.environ[SIGN_WITH] = str(value)

    words = f"PEM file of the key and certificates that sign files, or {UNSIGNED}; also from {SIGN_WITH}; else "
    words += "a development certificate, made on first use"
    parser.add_argument("--sign-with", action=Set, metavar="PEM", default=argparse.SUPPRESS, help=words)


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


def recipe(name: str, what: str) -> Any:
    """The plan for `what` of the recipe of that name, or of a Python file of one's own; raises UserError naming the
    nearest recipe that has one, or what is wrong with the file."""
    module = _own_recipe(name) if name.endswith(".py") else _recipe_named(name)
    if not hasattr(module, what):
        raise UserError(f"--recipe {name}: has no plan for `{what}`; use {'footage' if what == 'curate' else 'tiny'}")
    return getattr(module, what)()


def _recipe_named(name: str) -> Any:
    import pkgutil

    import worldline.recipes as recipes

    names = [module.name for module in pkgutil.iter_modules(recipes.__path__)]
    if name not in names:
        near = difflib.get_close_matches(name, names, 1) or names
        raise UserError(f"--recipe {name[:40]!r}: unknown; the nearest is {near[0]}")
    return importlib.import_module(f"worldline.recipes.{name}")


def _own_recipe(path: str) -> Any:
    import runpy
    from types import SimpleNamespace

    try:
        return SimpleNamespace(**runpy.run_path(path))
    except Exception as error:
        raise UserError(f"--recipe {path}: cannot be run ({type(error).__name__}: {error})") from error


def staged(plans: Any, stage: str | None) -> list[Any]:
    """The stages of a recipe's plan, or the one that is asked for; raises UserError naming those that there are."""
    found = list(plans) if isinstance(plans, tuple) else [plans]
    if stage is None:
        return found
    names = [plan.name for plan in found]
    if stage not in names:
        raise UserError(f"--stage {stage[:40]!r}: unknown; one of {', '.join(names)}")
    return [found[names.index(stage)]]
