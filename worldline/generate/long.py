"""Videos longer than one pass of the model: which latent frames are painted together, in view of which others.

A plan is a list of steps, pure arithmetic on the numbers of latent frames; `paint` carries it out. Extending, joining
and filling in are the same plans with something known at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from worldline.dit.conditions import Conditions
from worldline.generate.canvas import runs


@dataclass(frozen=True)
class Step:
    """One pass of the sampler: latent frames `new` are painted in view of `seen`; numbers in rising order."""

    new: tuple[int, ...]
    seen: tuple[int, ...] = ()

    @property
    def times(self) -> list[int]:
        """All that the model looks at, in order."""
        return sorted(self.new + self.seen)


def whole(known: Sequence[bool], window: int) -> list[Step]:
    """Everything at once, however long: attention over all frames."""
    missing = tuple(t for t, done in enumerate(known) if not done)
    return [Step(missing, tuple(t for t, done in enumerate(known) if done))] if missing else []


def sliding(known: Sequence[bool], window: int, far: int = 0) -> list[Step]:
    """Window after window, each in view of the last third of the one before; backwards where only the end is known.

    `far` of the frames in view are spread over all that was painted before (long-range sampling, Harvey et al. 2022).
    """
    overlap, total, steps = max(1, window // 3), len(known), []
    for first, stop in runs([not done for done in known]):
        if first == 0 and stop < total:
            while stop > 0:
                seen = tuple(range(stop, min(total, stop + overlap)))
                new = tuple(range(max(0, stop - window + len(seen)), stop))
                steps.append(Step(new, seen))
                stop = new[0]
            continue
        after = tuple(range(stop, _end_of_known(known, stop, overlap)))
        while first < stop:
            near = tuple(range(max(0, first - overlap), first))
            spread = _spread(0, near[0], far) if near else ()
            room = window - len(near) - len(spread)
            last = first + room - len(after) >= stop
            new = tuple(range(first, stop if last else min(first + room, stop)))
            steps.append(Step(new, spread + near + (after if last else ())))
            first = new[-1] + 1
    return steps


def long_range(known: Sequence[bool], window: int) -> list[Step]:
    """`sliding` that keeps a third of its view for frames far back, so that what left the window is not forgotten."""
    return sliding(known, window, far=max(1, window // 3))


def hierarchy(known: Sequence[bool], window: int) -> list[Step]:
    """Key frames over the whole span first, then the frames between, the earliest first.

    Each level divides its gaps into `window` - 1, so 60 s at 4 levels of 5 frames is painted from far to near.
    """
    total, overlap, steps = len(known), max(1, window // 3), []
    for first, stop in runs([not done for done in known]):
        before = tuple(range(first - _run_before(known, first, overlap), first))
        after = tuple(range(stop, _end_of_known(known, stop, overlap)))
        if before and after:
            steps += _between(first - 1, stop, window)
            continue
        # An open end: its key frames stand at even distances from what is known to the end of the video.
        ends = (first - 1 if before else 0, stop if after else total - 1)
        count = window - len(before + after) + (1 if before or after else 0)
        keys = [t for t in _even(*ends, count) if first <= t < stop]
        steps.append(Step(tuple(keys), before + after))
        marks = [*before[-1:], *keys, *after[:1]]
        for a, b in pairwise(marks):
            steps += _between(a, b, window)
    return steps


PLANS: dict[str, Callable[[Sequence[bool], int], list[Step]]] = {
    "whole": whole,
    "sliding": sliding,
    "long-range": long_range,
    "hierarchy": hierarchy,
}


def plan(known: Sequence[bool], window: int, how: str) -> list[Step]:
    """The steps that paint every latent frame not `known` by the plan `how`, at most `window` in view at once (but for
    "whole")."""
    return PLANS[how](known, max(window, 3))


def paint(
    conditions: Conditions,
    steps: Sequence[Step],
    sample: Callable[[int, Step, Conditions], Tensor],
) -> Iterator[tuple[int, Tensor]]:
    """Carries out `steps` on the timeline `conditions`, which it fills; yields (steps done, finished latents).

    `sample(number, step, part)` paints the frames `step.times`, of which `part` holds what is known, and returns
    latents (C, len(step.times), H', W'). Latents are given out in order of time, each once, as soon as all before
    them are finished: (C, t, H', W'), t at least 0.
    """
    given = 0
    for number, step in enumerate(steps):
        times = step.times
        painted = sample(number, step, conditions.at(times))
        places = [times.index(t) for t in step.new]
        conditions.known[:, list(step.new)] = painted[:, places].to(conditions.known)
        conditions.mask[:, list(step.new)] = 1
        finished = conditions.mask.flatten(2).amin((0, 2)).bool().tolist()
        stop = finished.index(False) if False in finished else len(finished)
        yield number + 1, conditions.known[:, given:stop]
        given = max(given, stop)
    if given < conditions.known.shape[1]:
        yield len(steps), conditions.known[:, given:]


def seed_of(seed: int, number: int) -> int:
    """The seed of step `number`: the first is the video's own, so that a short video does not depend on the plan."""
    if number == 0:
        return seed
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _run_before(known: Sequence[bool], first: int, most: int) -> int:
    """How many known frames end right before `first`, at most `most`."""
    count = 0
    while count < most and first - count > 0 and known[first - count - 1]:
        count += 1
    return count


def _end_of_known(known: Sequence[bool], stop: int, most: int) -> int:
    """The end of the run of known frames that begins at `stop`, at most `most` long."""
    end = stop
    while end < len(known) and end - stop < most and known[end]:
        end += 1
    return end


def _even(first: int, last: int, count: int) -> list[int]:
    """`count` or fewer distinct numbers at even distances, both ends among them."""
    return sorted({int(t) for t in np.linspace(first, last, max(2, count)).round()})


def _spread(first: int, stop: int, count: int) -> tuple[int, ...]:
    """Up to `count` numbers from `first` to `stop` - 1 at even distances."""
    return tuple(_even(first, stop - 1, count))[:count] if count > 0 and stop > first else ()


def _between(a: int, b: int, window: int) -> list[Step]:
    """Steps that paint everything between the finished frames a and b."""
    if b - a < 2:
        return []
    marks = _even(a, b, window)
    steps = [Step(tuple(marks[1:-1]), (a, b))]
    for left, right in pairwise(marks):
        steps += _between(left, right, window)
    return steps
