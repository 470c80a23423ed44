"""What a module would hold in memory, found by running it on tensors that have shapes and no numbers.

A `Hollow` tensor says that it is on the CPU and computes nothing: its shape is worked out on torch's meta device, as
`torch.compile` does it. The code that runs is the model's own, so that the count is that of its very operations and
lifetimes: what is alive in torch's allocator, without what kernels take for themselves. Tensors that hold numbers
(where samples begin, timesteps) may stand among them and are computed with as ever.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Hollow(Tensor):
    """A tensor without numbers; made by a `Ledger`, and only usable inside its block."""

    meta: Tensor

    @staticmethod
    def __new__(cls, meta: Tensor) -> Hollow:
        made: Hollow = torch.Tensor._make_wrapper_subclass(
            cls, meta.size(), strides=meta.stride(), storage_offset=meta.storage_offset(), dtype=meta.dtype,
            device=torch.device("cpu"),
        )  # type: ignore[assignment]  # fmt: skip
        made.meta = meta
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(f"{func}: a hollow tensor outside its ledger's block")


class Ledger(TorchDispatchMode):
    """Counts the bytes of all hollow tensors that are alive: `live` now, `peak` at most. Weights on the meta device are
    read and not counted.

        with torch.no_grad(), Ledger() as ledger:
            module(ledger.hollow(2, 3))
        ledger.peak
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live, self.peak = 0, 0
        self._held: dict[int, Any] = {}

    def hollow(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of that shape, counted while it lives."""
        return self._counted(torch.empty(shape, dtype=dtype, device="meta"))

    def restart(self) -> None:
        """Forget the peak: what is alive now is where the next begins."""
        self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation, on the meta device where a hollow tensor or a weight without numbers takes part."""
        kwargs = kwargs or {}
        tensors = [value for value in _flat((*args, *kwargs.values())) if isinstance(value, Tensor)]
        if not any(isinstance(value, Hollow) or value.device.type == "meta" for value in tensors):
            return func(*args, **kwargs)
        if isinstance(kwargs.get("out"), Hollow):  # nothing to work out, and torch takes 0.2 ms for that
            return kwargs["out"]
        known = {id(value.meta): value for value in tensors if isinstance(value, Hollow)}
        read = {_storage(_meta(value)) for value in tensors}
        inner = {name: _mapped(_meta, value) for name, value in kwargs.items()}
        if "device" in inner:
            inner["device"] = torch.device("meta")

        def outward(made: Tensor) -> Tensor:
            if id(made) in known:  # written in place
                return known[id(made)]
            return Hollow(made) if _storage(made) in read else self._counted(made)

        return _mapped(outward, func(*_mapped(_meta, args), **inner))

    def _counted(self, made: Tensor) -> Tensor:
        storage = made.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._held:
            self.live += size
            self.peak = max(self.peak, self.live)
            self._held[key] = weakref.ref(storage, lambda _: self._freed(key, size))
        return Hollow(made)

    def _freed(self, key: int, size: int) -> None:
        self.live -= size
        del self._held[key]


def _meta(value: Tensor) -> Tensor:
    if isinstance(value, Hollow):
        return value.meta
    return value if value.device.type == "meta" else value.to("meta")


def _storage(value: Tensor) -> int:
    return value.untyped_storage()._cdata


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(_mapped(change, each) for each in value) if isinstance(value, list | tuple) else value


def is_hollow(module: torch.nn.Module) -> bool:
    """Whether a module has shapes and no numbers, as after `module.to("meta")`."""
    return next(module.parameters()).is_meta


class _Undrawn(TorchDispatchMode):
    """Weights are not initialised: on the meta device torch loads its compiler for that, which takes two seconds."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch's word for "does not need the compiler either"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation, unless it writes into a tensor."""
        return args[0] if func._schema.name.endswith("_") else func(*args, **(kwargs or {}))


@contextmanager
def bare() -> Iterator[None]:
    """Modules that are built inside have shapes and no numbers: they are on the meta device and not initialised."""
    with torch.device("meta"), _Undrawn():
        yield
