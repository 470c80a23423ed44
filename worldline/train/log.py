"""What a run says of itself: a progress line for people, `log.jsonl` for programs, TensorBoard when installed, and
a tracker (trackio, W&B) where one is asked for."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from worldline.errors import UserError
from worldline.train.plan import clock


class RunLog:
    """Writes the measurements of one run under `folder`; on resume, records past `step` (lost steps) are dropped."""

    def __init__(self, folder: Path, step: int, quiet: bool = False, track: str = "") -> None:
        self.tracker = _tracker(track, folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.quiet = quiet
        self.path = folder / "log.jsonl"
        self._drop_after(step)
        self.file: TextIO = self.path.open("a")
        self.board = _tensorboard(folder / "tensorboard", step)
        self.started = self.spoken = time.monotonic()
        self.terminal = sys.stdout.isatty()
        self.open_line = False

    def _drop_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                if json.loads(line).get("step", 0) <= step:
                    kept.append(line + "\n")
            except ValueError:  # the last line of a killed run may be cut short
                continue
        temporary = self.path.with_suffix(".part")
        temporary.write_text("".join(kept))
        os.replace(temporary, self.path)

    def record(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one record: numbers also go to TensorBoard."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self.board.add_scalar(name, value, step)
        if self.tracker is not None:
            self.tracker.log(
                {name: value for name, value in values.items() if isinstance(value, int | float)}, step=step
            )

    def progress(self, step: int, steps: int, values: Mapping[str, float], left: float) -> None:
        """The progress line: in place on a terminal, every 30 s elsewhere."""
        now = time.monotonic()
        if self.quiet or (not self.terminal and now - self.spoken < 30 and step < steps):
            return
        self.spoken = now
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        text = f"{step}/{steps}  {numbers}  elapsed {clock(now - self.started)}  left {clock(left)}"
        if self.terminal:
            print(f"\r\033[K{text}", end="", flush=True)
            self.open_line = True
        else:
            print(text, flush=True)

    def say(self, text: str) -> None:
        """A line of its own."""
        if self.quiet:
            return
        if self.open_line:
            print()
            self.open_line = False
        print(text, flush=True)

    def close(self) -> None:
        """Closes the files."""
        if self.open_line:
            print()
        self.file.close()
        if self.board is not None:
            self.board.close()
        if self.tracker is not None:
            self.tracker.finish()


def _tensorboard(folder: Path, step: int) -> Any:
    """A TensorBoard writer that forgets steps after `step`, or None when the extra is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step or None)  # type: ignore[no-untyped-call]


TRACKERS = ("trackio", "wandb")  # which speak alike


def _tracker(name: str, folder: Path) -> Any:
    """The module of a tracker with this run begun, or continued under its name; None where none is asked for."""
    if not name:
        return None
    if name not in TRACKERS:
        raise UserError(f"loop.track: '{name}' is unknown; one of {', '.join(TRACKERS)}")
    try:
        tracker = importlib.import_module(name)
    except ImportError:
        raise UserError(f"loop.track: {name} is not installed; pip install 'worldline[{name}]'") from None
    more = {"id": folder.name, "dir": str(folder)} if name == "wandb" else {}
    tracker.init(project="worldline", name=folder.name, resume="allow", **more)
    return tracker
