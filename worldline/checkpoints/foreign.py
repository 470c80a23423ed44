"""Weights under another project's names, read into a module of ours: what every family's key map needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from worldline.checkpoints.folder import listed
from worldline.errors import UserError

Module = TypeVar("Module", bound=nn.Module)
Reshape = Callable[[str, Tensor, torch.Size], Tensor]


def reshaped(ours: str, value: Tensor, shape: torch.Size) -> Tensor:
    """The default: a kernel of one place is a matrix here."""
    return value.reshape(shape)


def load_renamed(
    build: Callable[[], Module],
    names: Mapping[str, str],
    weights: Mapping[str, Tensor],
    what: str,
    dtype: torch.dtype = torch.float32,
    inwards: Reshape = reshaped,
) -> Module:
    """The module that `build` makes, in eval mode and frozen, with foreign weights.

    Args:
        names: our name of every weight -> theirs.
        weights: theirs.
        what: the name of their class, for the message.
        inwards: (our name, their value, our shape) -> our value.

    Raises one UserError that lists all that does not fit.
    """
    with torch.device("meta"):
        module = build()
    own = module.state_dict()
    problems = {
        "missing": [theirs for theirs in names.values() if theirs not in weights],
        "unexpected": weights.keys() - set(names.values()),
        "mis-shaped": [theirs for ours, theirs in names.items()
                       if theirs in weights and weights[theirs].numel() != own[ours].numel()],
    }  # fmt: skip
    if any(problems.values()):
        found = "; ".join(f"{problem}: {listed(keys)}" for problem, keys in problems.items() if keys)
        raise UserError(f"--vae: the weights do not fit {what} as configured: {found}")
    values = {ours: inwards(ours, weights[theirs], own[ours].shape).to(dtype) for ours, theirs in names.items()}
    module.load_state_dict(values, assign=True)
    return module.eval().requires_grad_(False)
