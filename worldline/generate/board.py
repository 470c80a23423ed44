"""What a storyboard says, checked whole before torch is imported or a model is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from worldline.errors import UserError
from worldline.generate.request import MAX_PROMPT, Request, check_range, check_text, read_size
from worldline.media.read import read_image

MAX_CARDS = 100
BOARD, CARD = ("size", "fps", "seconds", "cards"), ("at", "text", "image", "cut")


@dataclass(frozen=True)
class Card:
    """From second `at` on: what is shown, its first frame uint8 (h, w, 3), and whether it begins a new shot."""

    at: float
    text: str
    image: np.ndarray | None = None
    cut: bool = False


@dataclass(frozen=True)
class Board:
    """Cards in order of time and the settings of the whole, None where the model's own hold. Raises UserError for cards
    that are not in order."""

    cards: tuple[Card, ...]
    seconds: float
    size: tuple[int, int] | None = None  # width, height
    fps: float | str | None = None
    files: tuple[Path, ...] = ()  # the pictures that cards were read from

    def __post_init__(self) -> None:
        _check_order(self.cards, self.seconds)

    def starts(self, request: Request) -> list[int]:
        """The frame that each card begins with; raises UserError for a card that lasts none."""
        starts = [round(card.at * request.fps) for card in self.cards]
        for number, (a, b) in enumerate(pairwise([*starts, request.frames]), 1):
            if b <= a:
                raise UserError(
                    f"cards: card {number} lasts no frame at {float(request.fps):g} fps; "
                    f"the nearest valid value of the next `at` is {float((a + 1) / request.fps):g}"
                )
        return starts


def read_board(path: str | Path) -> Board:
    """A board from a YAML file; images lie beside it. Raises UserError for anything else."""
    import yaml

    file = Path(path)
    try:
        held = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" in line {where.line + 1}" if where else ""
        raise UserError(f"{file}: no YAML{line}; see `worldline storyboard --help`") from None
    board = _fields(held, "the board", BOARD)
    cards = board.get("cards")
    if not isinstance(cards, list) or not 1 <= len(cards) <= MAX_CARDS:
        raise UserError(f"cards: a board has a list of 1 to {MAX_CARDS} of them")
    read = [_card(card, number, file.parent) for number, card in enumerate(cards, 1)]
    seconds = _number(board.get("seconds", read[-1].at + 1), "seconds")
    size = read_size(str(board["size"])) if "size" in board else None
    files = tuple(file.parent / str(card["image"]) for card in cards if card.get("image"))
    return Board(tuple(read), seconds, size, board.get("fps"), files)


def _card(held: Any, number: int, folder: Path) -> Card:
    name = f"card {number}"
    card = _fields(held, name, CARD)
    text = str(card.get("text", ""))
    check_text(f"{name}: text", text)
    if len(text) > MAX_PROMPT or not (text.strip() or card.get("image")):
        raise UserError(f"{name}: needs a text or an image")
    if not isinstance(card.get("cut", False), bool):
        raise UserError(f"{name}: cut: {str(card['cut'])[:40]!r} is neither true nor false")
    image = read_image(folder / str(card["image"])) if card.get("image") else None
    return Card(_number(card.get("at", 0), f"{name}: at"), text, image, card.get("cut", False))


def _fields(held: Any, name: str, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(held, dict):
        raise UserError(f"{name}: expected {', '.join(known)}; see `worldline storyboard --help`")
    for field in held:
        if field not in known:
            raise UserError(f"{name}: {str(field)[:40]!r} is unknown; one of {', '.join(known)}")
    return held


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name}: {str(value)[:40]!r} is not a number; write seconds such as 1.5")
    check_range(name, value, 0, 3600)
    return float(value)


def _check_order(cards: Sequence[Card], seconds: float) -> None:
    if cards[0].at != 0:
        raise UserError(f"card 1: at {cards[0].at:g}: a board begins at 0")
    for number, (a, b) in enumerate(pairwise(cards), 2):
        if b.at <= a.at:
            raise UserError(
                f"card {number}: at {b.at:g} is not after card {number - 1} at {a.at:g}; sort the cards by time"
            )
    if cards[-1].at >= seconds:
        raise UserError(
            f"seconds: {seconds:g} ends before the last card at {cards[-1].at:g}; "
            f"the nearest valid value is {cards[-1].at + 0.1:g}"
        )
