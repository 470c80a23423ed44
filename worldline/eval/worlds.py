"""Does the video show what the prompt says? Prompts with known scenes, videos, the verifier's word, a report.

`runner.py` asks a model; the judging itself takes anyone's videos:

    cases  = sample_cases(256, seed=0)                  half seen compositions, half held out
    videos = anyone's answers to [case.prompt ...]      arrays or files
    report = evaluate(videos, cases, worldline.worlds.verify, others={"ceiling: ground truth": renders(cases)})
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from worldline.errors import UserError
from worldline.eval.report import Failure, Report, Verdict
from worldline.media.read import read_video
from worldline.worlds.captions import SIZE_WORDS, SPEED_WORDS, caption
from worldline.worlds.scene import Scene, is_heldout, sample_scene

MODEL, FLOOR = "model", "floor: shuffled prompts"
MAX_FAILURES = 24  # clips kept for the contact sheet
PURPOSE = 0x77657661  # keeps these scenes apart from those that training draws with equal seeds


class Verifier(Protocol):
    """What `worldline.worlds.verify` is: reads frames, then holds the reading against a scene."""

    def read(self, frames: np.ndarray, fps: float) -> Any:
        """A reading of uint8 (T, H, W, 3)."""

    def judge(self, reading: Any, scene: Scene) -> Mapping[str, bool]:
        """For every attribute whether the reading agrees with the scene."""


@dataclass(frozen=True)
class Case:
    """A prompt and the scene it was said of."""

    prompt: str
    scene: Scene

    @property
    def seen(self) -> bool:
        """Whether training shows such compositions (never this very prompt)."""
        return not is_heldout(self.scene)

    def asks_for(self, attribute: str) -> bool:
        """Whether the prompt commits a video to `attribute`; size and speed only if it says them of every thing."""
        things = self.scene.things[:1] if self.scene.group else self.scene.things
        if attribute == "size":
            return _mentions(self.prompt, [word for words in SIZE_WORDS.values() for word in words]) >= len(things)
        if attribute == "speed":
            marked = [thing for thing in things if thing.speed]
            words = [word for thing in marked for word in SPEED_WORDS[thing.speed]]
            return bool(marked) and _mentions(self.prompt, words) >= len(marked)
        return True


def sample_cases(n: int, seed: int, style: str = "paraphrase") -> list[Case]:
    """`n` prompts, alternately of seen and of held-out compositions; a pure function of its arguments."""
    if n < 2:
        raise UserError(f"--n: {n} prompts cannot cover seen and unseen; use 2 or more")
    cases = []
    for index in range(n):
        rng = np.random.default_rng([PURPOSE, seed, index])
        scene = sample_scene(rng, "train" if index % 2 == 0 else "heldout")
        cases.append(Case(caption(scene, rng, style), scene))
    return cases


def renders(
    cases: Sequence[Case], frames: int = 17, height: int = 64, width: int = 64, fps: float = 16
) -> Iterator[np.ndarray]:
    """The true video uint8 (T, H, W, 3) of every case: what a perfect model would make."""
    from worldline.worlds.render import render

    for case in cases:
        yield render(case.scene, frames, height, width, fps).frames


def evaluate(
    videos: Iterable[np.ndarray | str | Path],
    cases: Sequence[Case],
    verifier: Verifier,
    fps: float | Fraction = 16,
    others: Mapping[str, Iterable[np.ndarray | str | Path]] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Judges one video per case, arrays uint8 (T, H, W, 3) at `fps` or files at their own rate.

    `others` are further answers to the same cases, such as the ceilings (ground truth, the autoencoder's
    reconstructions). The floor judges the same videos against each other's prompts. `progress` gets
    (set, done, total). Raises UserError when videos and cases differ in number.
    """
    say = progress or (lambda name, done, total: None)
    failures: list[Failure] = []
    readings: list[Any] = []
    sets: dict[str, list[Verdict]] = {MODEL: []}
    for case, reading, frames in _read(videos, cases, verifier, fps, MODEL, say):
        verdict = _verdict(case, reading, verifier)
        sets[MODEL].append(verdict)
        readings.append(reading)
        if not verdict.obeyed and len(failures) < MAX_FAILURES:
            failures.append(Failure(case.prompt, verdict.wrong, frames))
    for name, clips in (others or {}).items():
        answers = _read(clips, cases, verifier, fps, name, say)
        sets[name] = [_verdict(case, reading, verifier) for case, reading, _ in answers]
    if len(cases) > 1:
        # Two steps on, so that a seen prompt is exchanged for a seen one and an unseen one for an unseen.
        step = 2 if len(cases) > 2 else 1
        shuffled = readings[step:] + readings[:step]
        sets[FLOOR] = [_verdict(case, other, verifier) for case, other in zip(cases, shuffled, strict=True)]
    return Report(sets, failures)


def _read(
    videos: Iterable[np.ndarray | str | Path],
    cases: Sequence[Case],
    verifier: Verifier,
    fps: float | Fraction,
    name: str,
    say: Callable[[str, int, int], None],
) -> Iterator[tuple[Case, Any, np.ndarray]]:
    """(case, reading, frames) one by one, so that only one clip is in memory."""
    count = 0
    for count, video in enumerate(videos, 1):
        if count > len(cases):
            raise UserError(f"{name}: more videos than the {len(cases)} prompts; give one for each")
        frames, rate = video, fps
        if not isinstance(frames, np.ndarray):
            clip = read_video(frames)
            frames, rate = clip.frames, clip.fps
        yield cases[count - 1], verifier.read(frames, float(rate)), frames
        say(name, count, len(cases))
    if count < len(cases):
        raise UserError(f"{name}: {count} videos for {len(cases)} prompts; give one for each")


def _verdict(case: Case, reading: Any, verifier: Verifier) -> Verdict:
    judged = verifier.judge(reading, case.scene)
    asked = {attribute: bool(right) for attribute, right in judged.items() if case.asks_for(attribute)}
    asked.pop("all", None)  # obedience is counted over what the prompt asks for
    return Verdict(case.prompt, case.seen, case.scene.count, asked)


def _mentions(text: str, phrases: Sequence[str]) -> int:
    """How often any of the phrases stands in the text as whole words."""
    choices = "|".join(re.escape(phrase) for phrase in sorted(phrases, key=len, reverse=True))
    return len(re.findall(rf"\b(?:{choices})\b", text))
