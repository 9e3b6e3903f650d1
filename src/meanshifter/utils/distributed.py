"""Multi-process work: rank, number of processes, and collectives.

Processes are started by Fabric (`--devices`, `--num_nodes`), torchrun or SLURM; see lightning.ai/docs/fabric. Every
collective raises a RunError if another process is gone.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from meanshifter.errors import InputError, OtherProcessError, RunError, summarize_error

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Made = TypeVar("Made")
BUCKET = 64 * 2**20
"""Bytes of gradients per all-reduce."""


@dataclass(frozen=True)
class Processes:
    """The processes that work together, as seen by one of them; by default it is alone."""

    rank: int = 0
    count: int = 1
    group: Any = None
    """A gloo group for tensors on the host; gradients use the default group of the devices."""

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which writes files and messages."""
        return self.rank == 0

    def sum(self, numbers: Tensor) -> Tensor:
        """Sum a host tensor of the same shape and dtype over all processes."""
        if self.count > 1:
            numbers = numbers.clone()
            self._collective(lambda: dist.all_reduce(numbers, group=self.group))
        return numbers

    def broadcast(self, make: Callable[[], Made]) -> Made:
        """Return the result of `make()` in the main process, in all processes; it is pickled.

        If it fails, the main process raises its error and the others an OtherProcessError.
        """
        box: list[Any] = [self.run_all(lambda: make() if self.is_main else None)]
        if self.count > 1:
            self._collective(lambda: dist.broadcast_object_list(box, src=0, group=self.group))
        made: Made = box[0]
        return made

    def gather(self, value: Made) -> list[Made]:
        """Return every process's value, by rank, in all processes; values are pickled."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        self._collective(lambda: dist.all_gather_object(values, value, group=self.group))
        return values

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum gradients over all processes, in buckets that are sent concurrently."""
        if self.count > 1:
            self._collective(lambda: _sum_in_buckets([p.grad for p in parameters if p.grad is not None]))

    def all_agree(self, error: Exception | None) -> None:
        """If any process has an error, raise the first in its process, and an OtherProcessError in all others."""
        if self.count == 1:
            if error is not None:
                raise error
            return
        lowest = torch.tensor(self.count if error is None else self.rank)
        self._collective(lambda: dist.all_reduce(lowest, op=dist.ReduceOp.MIN, group=self.group))
        if error is not None and int(lowest) == self.rank:
            raise error
        if int(lowest) < self.count:
            raise OtherProcessError

    def run_all(self, make: Callable[[], Made]) -> Made:
        """Return the result of `make()` in this process; if it fails in any process, all raise as in `all_agree`."""
        failure = None
        try:
            made = make()
        except Exception as error:
            failure = error
        self.all_agree(failure)
        return made

    def _collective(self, exchange: Callable[[], object]) -> None:
        try:
            exchange()
        except RuntimeError as error:
            raise RunError(
                f"process {self.rank + 1} of {self.count}: lost the others, because one has ended or cannot be "
                "reached; see its message, then use --resume or start again"
            ) from error


def _sum_in_buckets(gradients: list[Tensor]) -> None:
    buckets: list[list[Tensor]] = [[]]
    for gradient in gradients:
        if sum(entry.nbytes for entry in buckets[-1]) >= BUCKET:
            buckets.append([])
        buckets[-1].append(gradient)
    flat = [torch.cat([entry.reshape(-1) for entry in bucket]) for bucket in buckets]
    for work in [dist.all_reduce(part, async_op=True) for part in flat]:
        work.wait()
    for bucket, whole in zip(buckets, flat, strict=True):
        parts = torch.split(whole, [entry.numel() for entry in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def create_fabric(
    *, accelerator: str = "auto", devices: int | None = None, num_nodes: int | None = None, precision: Any = None
) -> Fabric:
    """Create a Fabric for devices and nodes, not launched yet.

    Args:
        accelerator: "auto", "cpu", "cuda" or "mps".
        devices: per node; None: the number of processes that torchrun or SLURM started per node, else 1.
        num_nodes: None: the number that torchrun or SLURM started, else 1.
        precision: in the terms of Fabric.

    Raises:
        InputError: Fabric cannot provide the devices, or the numbers contradict torchrun or SLURM.
    """
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # hide notes that would precede one-line errors
    devices, num_nodes = process_counts(devices, num_nodes)
    settings = {} if precision is None else {"precision": precision}
    strategy = "auto" if devices * num_nodes == 1 else "ddp"
    try:
        return Fabric(accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy, **settings)
    except (RuntimeError, ValueError) as error:
        text = summarize_error(error)
        count = "" if devices * num_nodes == 1 else f" with {devices} devices"
        raise InputError(
            f"accelerator: {accelerator!r}{count} is not available ({text}); use 'auto' or 'cpu'"
        ) from error


def process_counts(devices: int | None, num_nodes: int | None) -> tuple[int, int]:
    """Devices per node and number of nodes; None is replaced by what torchrun or SLURM started, else 1.

    Raises:
        InputError: a number is below 1, or contradicts what was started.
    """
    started = _started()
    found = []
    for name, asked, there in (("devices", devices, started[0]), ("num_nodes", num_nodes, started[1])):
        if asked is not None and asked < 1:
            raise InputError(f"{name}: {asked}; expected at least 1")
        if asked is not None and there is not None and asked != there:
            raise InputError(f"{name}: {asked}, but torchrun or SLURM started {there}; leave {name} out")
        wanted = there if asked is None else asked
        found.append(1 if wanted is None else wanted)
    return found[0], found[1]


def _started() -> tuple[int | None, int | None]:
    """Processes per node and number of nodes, if torchrun or SLURM started this process."""
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun, possibly under SLURM
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    if "SLURM_NTASKS" in os.environ:
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

        if SLURMEnvironment.detect():
            nodes = int(os.environ.get("SLURM_NNODES", "1"))
            return int(os.environ["SLURM_NTASKS"]) // nodes, nodes
    return None, None


def is_first_process() -> bool:
    """Whether this process was not started by another one as its helper, or by torchrun or SLURM as one of several."""
    ranks = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def launch(fabric: Fabric) -> Processes:
    """Start the other processes, or join those that torchrun or SLURM started."""
    with _prints_on_stderr():
        fabric.launch()
        if fabric.world_size == 1:
            return Processes()
        atexit.register(_destroy_process_group)
        return Processes(fabric.global_rank, fabric.world_size, dist.new_group(backend="gloo"))


def _destroy_process_group() -> None:
    """At exit, while the interpreter is intact: gloo threads that outlive it occasionally abort the process."""
    with suppress(Exception):  # another process is gone
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _prints_on_stderr() -> Iterator[None]:
    """Keep standard output for results: gloo prints to it in some releases of torch (pytorch/gloo#462)."""
    print(end="", flush=True)
    try:
        kept = os.dup(1)
    except OSError:  # standard output is closed
        yield
        return
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
