"""Moving averages of the fp32 master weights: what is sampled, scored and shipped.

Beside the exponential average there are power-function averages (Karras et al. 2024, section 3.1), whose width is a
share of the run however long that is, and out of saved ones of two widths another can be made afterwards (section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldline.errors import UserError
from worldline.train import checkpoint
from worldline.train.optim import Optimizer
from worldline.train.plan import WIDEST


class EMA:
    """Averages of all masters after every update.

    Args:
        decay: of the exponential average. It is reached gradually, as min(decay, (1 + n) / (10 + n)) after update n, so
            that early weights fade fast.
        widths: of power-function averages, kept instead of the exponential one where there are any.

    `averages`: what this process holds of each, by its name in checkpoints ("ema", "ema-0.05") and the weights' names.
    """

    def __init__(self, optimizer: Optimizer, decay: float, widths: Sequence[float] = ()) -> None:
        self.decay, self.widths = decay, tuple(widths)
        self.masters = [master.detach() for master in optimizer.masters.values()]
        names = [_named(width) for width in widths] or ["ema"]
        self.averages: dict[str, dict[str, Tensor]] = {
            name: {key: master.detach().clone() for key, master in optimizer.masters.items()} for name in names
        }

    @property
    def weights(self) -> dict[str, Tensor]:
        """The average that is looked at."""
        return next(iter(self.averages.values()))

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Moves the averages towards the masters after update number `updates` (1-based)."""
        # Karras et al. 2024, eq. 2: beta = (1 - 1 / n)^(gamma + 1)
        decays = [(1.0 - 1.0 / updates) ** (exponent(width) + 1.0) for width in self.widths]
        for average, decay in zip(
            self.averages.values(), decays or [min(self.decay, (1 + updates) / (10 + updates))], strict=True
        ):
            torch._foreach_lerp_(list(average.values()), self.masters, 1.0 - decay)


def _named(width: float) -> str:
    return f"ema-{width:g}"


def exponent(width: float) -> float:
    """gamma of the profile t^gamma whose standard deviation is the share `width` of the run (Karras et al. 2024,
    algorithm 2)."""
    t = width**-2
    return float(np.roots([1.0, 7.0, 16.0 - t, 12.0 - t]).real.max())


def profile(width: float, updates: int, length: int) -> np.ndarray:
    """(length,) share of the weights after each of the first `length` updates in the average after `updates`."""
    reached = np.minimum(np.arange(length + 1), updates) / updates
    return np.diff(reached ** (exponent(width) + 1.0))


def reconstruct(folder: Path, width: float) -> tuple[dict[str, Tensor], float]:
    """The average of any width at the end of a run, as nearly as those in its checkpoints add up to it.

    Args:
        folder: of the checkpoints; the more there are, of two widths, the nearer.

    Returns:
        fp32 weights by name, and the relative error of their profile: 0 where the average is exact.

    Raises UserError for a width that cannot be, and where no checkpoint holds power-function averages.
    """
    if not 0 < width <= WIDEST:
        raise UserError(f"--ema {width:g}: a share of the run above 0 and up to {WIDEST}, for example 0.1")
    held: list[tuple[Path, float, int]] = []
    for step in checkpoint.steps(folder):
        path = folder / f"step-{step:08d}"
        try:
            state = checkpoint.checked(path)
        except checkpoint.Damaged:
            continue
        held += [(path, own, int(state["updates"])) for own in state["plan"]["optim"]["ema_widths"]]
    if not held:
        raise UserError(f"--ema: {folder} holds no averages; train with --set optim.ema_widths=0.05,0.1 loop.keep=20")
    last = max(updates for _, _, updates in held)
    profiles = np.stack([profile(own, updates, last) for _, own, updates in held])
    wanted = profile(width, last, last)
    shares = np.linalg.lstsq(profiles.T, wanted, rcond=None)[0]
    weights: dict[str, Tensor] = {}
    for share, (path, own, _) in zip(shares, held, strict=True):
        start = f"{_named(own)}/"
        for name, value in checkpoint.load(path, start).tensors.items():
            key = name.removeprefix(start)
            weights[key] = weights.get(key, torch.zeros_like(value, dtype=torch.float64)) + share * value.double()
    error = np.linalg.norm(shares @ profiles - wanted) / np.linalg.norm(wanted)
    return {name: value.float() for name, value in weights.items()}, float(error)
