"""A video told in cards: at which second what is said or shown, within one shot or after a cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from worldline.generate.board import Board, Card
from worldline.generate.canvas import fitted, timeline
from worldline.generate.edit import Job, asked
from worldline.generate.load import Deferred
from worldline.generate.pipeline import Pipeline
from worldline.generate.result import Result
from worldline.media.read import Video


def storyboard(pipeline: Pipeline | Deferred, board: Board, **settings: Any) -> Result:
    """The video of a board. Inside a shot every card goes on from what the cards before it showed, and leads to the
    image of the next card where that has one."""
    size = {} if board.size is None else {"width": board.size[0], "height": board.size[1]}
    request = pipeline.request(board.cards[0].text, **{**asked(settings), **size}, seconds=board.seconds, fps=board.fps)
    starts = board.starts(request)
    ends = [*starts[1:], request.frames]
    blank = timeline([request.frames], (request.height, request.width)).frames
    takes = _takes(board.cards)
    jobs = [
        Job(
            pipeline,
            "storyboard",
            Video(blank, request.fps),
            board.cards[first].text,
            {**settings, "seed": request.seed + first},
        )
        for first, *_ in takes
    ]
    done = np.empty((0, request.height, request.width, 3), np.uint8)
    shot = 0  # where the shot began
    for numbers, job in zip(takes, jobs, strict=True):
        first, last = board.cards[numbers[0]], numbers[-1]
        shot = len(done) if first.cut or not len(done) else shot
        if first.image is not None:
            done = np.concatenate([done, fitted(first.image, request.height, request.width)[None]])
        following = board.cards[last + 1] if last + 1 < len(board.cards) else None
        goal = None
        if following is not None and following.image is not None and not following.cut:
            goal = fitted(following.image, request.height, request.width)[None]
        missing = ends[last] - len(done)
        if missing > 0:
            before = done[shot:] if len(done) > shot else None
            prompts = [(max(0, starts[number] - len(done)), board.cards[number].text) for number in numbers]
            done = np.concatenate([done, job.between(before, missing, goal, prompts)])
    record = [
        {"at": card.at, "text": card.text, "cut": card.cut, "image": card.image is not None} for card in board.cards
    ]
    return jobs[0].result(done[: request.frames], cards=record)


def _takes(cards: Sequence[Card]) -> list[list[int]]:
    """Numbers of the cards that are painted in one go, in latents: up to a cut or to a card that shows an image."""
    takes: list[list[int]] = []
    for number, card in enumerate(cards):
        if not takes or card.cut or card.image is not None:
            takes.append([])
        takes[-1].append(number)
    return takes
