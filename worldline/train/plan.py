"""Plans: the frozen dataclasses that say everything about a training run, and how to change, save and draw from them.

A batch is a pure function of (plan, seed, step): every random draw of a run comes from a generator
that `torch_rng` or `numpy_rng` seeds with a hash of the seed, the step and the name of the use.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from worldline.errors import UserError
from worldline.parallel.mesh import ParallelPlan

__all__ = ["LoopPlan", "OptimPlan", "ParallelPlan"]

Plan = TypeVar("Plan")

OPTIMIZERS = ("adamw", "muon")
WIDEST = 0.288  # all weights of the run count alike: 1 / sqrt(12)
SCHEDULES = ("cosine", "linear", "constant", "trapezoid")


@dataclass(frozen=True)
class OptimPlan:
    """The optimizer, its schedule and averages of the weights. `lr` is the peak; `final` its fraction at the last step.

    Raises UserError for values that no run can have.
    """

    kind: str = "adamw"  # adamw | muon: for matrices inside blocks, and AdamW for the rest, at the same rate
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.95  # of muon
    weight_decay: float = 0.01
    clip: float = 1.0  # global gradient norm
    schedule: str = "cosine"  # cosine | linear | constant | trapezoid (constant, then linear over the last 20 %)
    warmup: int = 200  # steps
    final: float = 0.02
    ema: float = 0.9995  # reached gradually: min(ema, (1 + step) / (10 + step))
    # Instead, power-function averages of these widths, in shares of the run; the first is looked at and shipped, and
    # `worldline export --ema WIDTH` makes others of all that the checkpoints hold.
    ema_widths: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (("kind", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise UserError(f"optim.{name}: '{getattr(self, name)}' is unknown; one of {', '.join(known)}")
        for width in self.ema_widths:
            if not 0 < width <= WIDEST or self.ema_widths.count(width) > 1:
                raise UserError(f"optim.ema_widths: {width:g} must come once, above 0 and up to {WIDEST}")


@dataclass(frozen=True)
class LoopPlan:
    """How long a run lasts and how often it saves and looks. Intervals are in steps; 0 means never."""

    steps: int = 10_000
    minutes: float = 0.0  # stop after this much wall time (0: no limit); the schedule still follows `steps`
    checkpoint_every: int = 500
    keep: int = 2
    skips: int = 10  # steps in a row that may be lost to NaN before the run goes back to its last checkpoint
    rollbacks: int = 3  # times that it may
    log_every: int = 20
    validate_every: int = 1000
    sample_every: int = 2000
    score_every: int = 0
    readers: int = -1  # threads that read samples ahead; -1: two beside a GPU, none on a CPU, whose cores they share
    track: str = ""  # trackio or wandb, beside TensorBoard


def seed_of(seed: int, step: int, use: str) -> int:
    """A 63-bit seed from (seed, step, use): SHA-256, so neighbouring steps share nothing."""
    digest = hashlib.sha256(f"{seed}/{step}/{use}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def torch_rng(seed: int, step: int, use: str, device: str = "cpu") -> torch.Generator:
    """PyTorch generator for one use in one step."""
    return torch.Generator(device).manual_seed(seed_of(seed, step, use))


def numpy_rng(seed: int, step: int, use: str) -> np.random.Generator:
    """NumPy generator for one use in one step."""
    return np.random.default_rng(seed_of(seed, step, use))


def plan_dict(plan: Any) -> dict[str, Any]:
    """A plan as plain JSON types."""
    return {name: _plain(value) for name, value in dataclasses.asdict(plan).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def completed(stored: dict[str, Any], plan: Any) -> dict[str, Any]:
    """A stored `plan_dict` of a plan of the same kind, with the defaults of fields that have been added since."""

    def fill(held: Any, usual: Any) -> Any:
        if not isinstance(held, dict) or not isinstance(usual, dict):
            return held
        return {**usual, **{name: fill(value, usual.get(name)) for name, value in held.items()}}

    whole: dict[str, Any] = fill(stored, plan_dict(type(plan)()))
    return whole


def plan_changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """The fields that differ between two `plan_dict`s, as `name: old -> new`."""
    lines: list[str] = []
    for name in sorted(set(old) | set(new)):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += plan_changes(before, after, f"{prefix}{name}.")
        elif before != after:
            lines.append(f"{prefix}{name}: {before} -> {after}")
    return lines


def plan_overrides(plan: Plan, settings: Sequence[str]) -> Plan:
    """Applies settings such as `optim.lr=1e-4` to a plan; each value is read by the type of its field.

    Raises UserError naming the setting and the nearest existing field.
    """
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write it as name=value, for example optim.lr=1e-4")
        plan = _replaced(plan, path.strip().split("."), text.strip(), setting)
    return plan


def _replaced(plan: Any, path: list[str], text: str, setting: str) -> Any:
    names = [field.name for field in dataclasses.fields(plan)]
    name, rest = path[0], path[1:]
    if name not in names:
        near = (difflib.get_close_matches(name, names, 1) or [", ".join(names)])[0]
        raise UserError(f"--set {setting}: {type(plan).__name__} has no '{name}'; nearest: {near}")
    value = getattr(plan, name)
    if rest:
        if not dataclasses.is_dataclass(value):
            raise UserError(f"--set {setting}: '{name}' is a plain value; write {name}={text}")
        return dataclasses.replace(plan, **{name: _replaced(value, rest, text, setting)})
    if dataclasses.is_dataclass(value):
        inner = dataclasses.fields(value)[0].name
        raise UserError(f"--set {setting}: '{name}' is a group; name a field, for example {name}.{inner}")
    kind = typing.get_type_hints(type(plan))[name]
    try:
        return dataclasses.replace(plan, **{name: _read(text, kind)})
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--set {setting}: '{name}' takes a value such as {value!r}") from error


def _read(text: str, kind: Any) -> Any:
    """`text` as `kind`: bool, int, float, str, an optional of these, or a tuple of them split at commas."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        if text.lower() == "none" and type(None) in options:
            return None
        return _read(text, next(option for option in options if option is not type(None)))
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return tuple(_read(part.strip(), inner) for part in text.split(",") if part.strip())
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise ValueError(text)
        return text.lower() in ("true", "1", "yes")
    if kind is int:
        return int(text.replace("_", ""))
    if kind is float:
        value = float(text)
        if math.isnan(value):
            raise ValueError(text)
        return value
    return text


def describe(plan: Any, indent: str = "  ") -> str:
    """The plan as indented `name  value` lines, for `--dry-run`."""
    lines = []
    for field in dataclasses.fields(plan):
        value = getattr(plan, field.name)
        if dataclasses.is_dataclass(value):
            lines += [f"{indent}{field.name}:", describe(value, indent + "  ")]
        else:
            lines.append(f"{indent}{field.name:<18} {value}")
    return "\n".join(lines)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
