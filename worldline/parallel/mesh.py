"""The processes of a run: how they find each other, what they agree on, and how they notice that one is gone.

Started by `torchrun`, processes form a mesh of (replicate, shard, context): weights are sharded over `shard` and
`context` and copied over `replicate` (HSDP), a sequence is split over `context`. Without it there is one process, and
every question has its trivial answer.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from worldline.errors import Resumable, UserError


@dataclass(frozen=True)
class ParallelPlan:
    """How the work of a step is cut. All processes are used: those that no field names hold shards of the weights.

    The batch of a step is a list of `packs`, the same for any number of processes; each takes equally many of them, one
    after the other (gradient accumulation), so that a run may go on with another number of processes.
    """

    packs: int = 1  # of a step; each is one forward and backward pass of one process, or of those that share a context
    replicate: int = 1  # copies of the sharded weights (HSDP): 1 shards them over all processes
    context: int = 1  # processes that share the tokens of a pack, and the attention heads among them
    recompute: str = "none"  # none | selective (all but products and attention) | full: done again in the backward pass
    compile: bool = False  # torch.compile of every repeated block
    timeout: float = 600.0  # seconds after which a process that gives no sign ends the others


class Crew:
    """All processes of a run, seen from one of them."""

    def __init__(self, plan: ParallelPlan, device: torch.device, store: dist.Store | None = None) -> None:
        self.plan = plan
        self.rank = dist.get_rank() if store is not None else 0
        self.size = dist.get_world_size() if store is not None else 1
        self.device = device
        self.replicas = self.size // plan.context  # processes, or groups of them, that take packs of their own
        self.replica = self.rank // plan.context
        _check(plan, self.size)
        self.mesh: DeviceMesh | None = None  # over which weights are sharded: its last dimension
        self.disk_mesh: DeviceMesh | None = None  # the same for copies of them on the CPU
        self.context: dist.ProcessGroup | None = None
        self.saving: dist.ProcessGroup | None = None  # of the thread that writes checkpoints
        self._control: dist.ProcessGroup | None = None
        self._signs: _Signs | None = None
        self._turns = 0
        self._store = store
        if store is None:
            return
        limit = timedelta(seconds=plan.timeout)
        self._control = dist.new_group(backend="gloo", timeout=limit)
        self.saving = dist.new_group(backend="gloo", timeout=timedelta(hours=24))  # a slow disk is not a dead process
        sides = (plan.replicate, self.size // plan.replicate)
        groups = [self._along(sides, dim, limit) for dim in range(2)]
        self.mesh = _mesh(device.type, sides, groups)
        self.disk_mesh = self.mesh if device.type == "cpu" else _mesh("cpu", sides, groups)
        if plan.context > 1:
            self.context = self._along((self.replicas, plan.context), 1, limit)
        self._signs = _Signs(store, self.rank, self.size, beat=1.0)

    def _along(self, sides: tuple[int, int], dim: int, limit: timedelta) -> dist.ProcessGroup:
        """The group of this process along a side of the mesh. Those that torch makes would wait for half an hour."""
        ranks = torch.arange(self.size).view(sides).movedim(dim, -1).tolist()
        group, _ = dist.new_subgroups_by_enumeration(ranks, timeout=limit)
        assert group is not None
        return group

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes for all."""
        return self.rank == 0

    def packs(self) -> list[int]:
        """Numbers of the packs of a step that this process computes."""
        each = self.plan.packs // self.replicas
        return list(range(self.replica * each, (self.replica + 1) * each))

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all replicas, the same everywhere. Processes that share a context bring the same values."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums, group=self._control)
        return [value / self.plan.context for value in sums.tolist()]

    def gather(self, value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
        """What every process brings, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=group or self._control)
        return values

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process goes through the block, then all others at once: for files that one makes and all read."""
        if self._store is None:
            yield
            return
        self._turns += 1
        turn = f"turn/{self._turns}"
        while not self.first and not self._store.check([turn]):
            time.sleep(0.05)  # without a limit: rendering may take hours; the launcher ends all when the first dies
        try:
            yield
        finally:
            if self.first:
                self._store.set(turn, "done")

    @contextmanager
    def watched(self) -> Iterator[Callable[[str], None]]:
        """Gives a function that says what this process is about. When the others cannot be reached inside the block,
        raises Resumable with the ones that gave no sign and what they were about."""
        if self._signs is None:
            yield lambda doing: None
            return
        try:
            with self._signs:
                yield self._signs.tell
        except RuntimeError as error:
            silent = self._signs.silent()
            if not silent and not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
                raise
            who = "; ".join(silent) or "all processes are alive, but one does not come"
            reason = re.sub(r"^\[[^]]*] ", "", str(error)).partition(". ")[0].splitlines()[0]
            raise Resumable(
                f"process {self.rank} lost the others: {who} ({reason}); start again with --resume"
            ) from None


ENDING = "ending"


class _Signs:
    """A thread that leaves a sign of life in the store; what changes no more belongs to a process that is gone."""

    def __init__(self, store: dist.Store, rank: int, size: int, beat: float) -> None:
        self.store: Any = store.clone()  # type: ignore[attr-defined]  # one connection serves one thread
        self.rank, self.size, self.beat = rank, size, beat
        self.doing = "starting"
        self.count = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def tell(self, doing: str) -> None:
        self.doing = doing
        self._give()

    def _give(self) -> None:
        self.count += 1
        self.store.set(f"sign/{self.rank}", f"{self.count} {self.doing}")

    def _beat(self) -> None:
        while not self._ended.wait(self.beat):
            try:
                self._give()
            except RuntimeError:  # the store is gone, and with it the launcher
                return

    def __enter__(self) -> None:
        self._give()
        self._ended.clear()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._ended.set()
        assert self._thread is not None
        self._thread.join()
        if kind is not None and issubclass(kind, RuntimeError):
            self.doing = ENDING  # or the others would take this one for the cause
            with suppress(RuntimeError):
                self._give()

    def silent(self) -> list[str]:
        """Who gives no other sign for five beats."""
        try:
            before = self._read()
            for _ in range(5):
                time.sleep(self.beat)
                self._give()
            after = self._read()
        except RuntimeError:
            return ["the store of the first process is gone"]
        names = []
        for rank, (old, new) in enumerate(zip(before, after, strict=True)):
            if rank != self.rank and old == new and not new.endswith(ENDING):
                names.append(f"process {rank} gives no sign, it was last {new.partition(' ')[2] or 'starting'}")
        return names

    def _read(self) -> list[str]:
        names = [f"sign/{rank}" for rank in range(self.size)]
        return [self.store.get(name).decode() if self.store.check([name]) else "" for name in names]


def _mesh(device: str, sides: tuple[int, int], groups: list[dist.ProcessGroup]) -> DeviceMesh:
    """(replicate, shard), or (shard,) where there is one copy."""
    if sides[0] == 1:
        return DeviceMesh.from_group(groups[1], device, mesh_dim_names=("shard",))
    ranks = torch.arange(sides[0] * sides[1]).view(sides)
    return DeviceMesh.from_group(groups, device, ranks, mesh_dim_names=("replicate", "shard"))


_crew: Crew | None = None


def join(plan: ParallelPlan, device: str = "cpu") -> Crew:
    """The crew of this process: that of `torchrun`, whose variables it reads, or this process alone.

    Asked again, gives the same crew. Raises UserError for a plan that the number of processes does not fit.
    """
    global _crew
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Crew(plan, torch.device(device))
    if _crew is not None:
        if _crew.plan != plan:
            raise UserError("parallel: this process has joined a crew of another plan already")
        return _crew
    where = torch.device(device)
    if device == "cuda":
        where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(where)
    limit = timedelta(seconds=plan.timeout)
    store, rank, size = next(dist.rendezvous("env://", timeout=limit))
    backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    _crew = Crew(plan, where, dist.PrefixStore("worldline", store))
    return _crew


def leave() -> None:
    """Takes leave of the others, so that no thread waits for them; the process is alone again."""
    global _crew
    if _crew is not None:
        dist.destroy_process_group()
    _crew = None


def _check(plan: ParallelPlan, size: int) -> None:
    for name in ("packs", "replicate", "context"):
        if getattr(plan, name) < 1:
            raise UserError(f"parallel.{name}: {getattr(plan, name)} must be at least 1")
    if plan.recompute not in ("none", "selective", "full"):
        raise UserError(f"parallel.recompute: '{plan.recompute}' is unknown; one of none, selective, full")
    if size % plan.context or size % plan.replicate:
        raise UserError(
            f"parallel: {size} processes are no multiple of context={plan.context}, replicate={plan.replicate}"
        )
    replicas = size // plan.context
    if plan.packs % replicas:
        more = -(-plan.packs // replicas) * replicas
        raise UserError(
            f"parallel.packs: {replicas} processes cannot share {plan.packs} packs; use --set parallel.packs={more}"
        )
