"""Several processes at one piece of work: how many there are, which one this is, and what all of them add up to.

Fabric starts them (`--devices`, `--num_nodes`), or torchrun or SLURM have; see lightning.ai/docs/fabric.
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

from meanshifter.errors import InputError, OtherProcessError, RunError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Made = TypeVar("Made")
BUCKET = 64 * 2**20
"""Bytes of gradients that are sent together."""


@dataclass(frozen=True)
class Processes:
    """The processes at one piece of work, as one of them sees it; by default it is alone."""

    rank: int = 0
    count: int = 1
    group: Any = None
    """Of gloo, for numbers on the host; gradients travel over the devices' own group."""

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over all processes of a tensor on the host, whose shape and dtype are the same in each.

        Raises:
            RunError: another process is gone.
        """
        if self.count > 1:
            numbers = numbers.clone()
            self._speak(lambda: dist.all_reduce(numbers, group=self.group))
        return numbers

    def from_first(self, make: Callable[[], Made]) -> Made:
        """What `make()` gives in the first process, in all of them; it is pickled on the way.

        Raises:
            OtherProcessError: what it raises in the first, everywhere else.
            RunError: another process is gone.
        """
        box: list[Any] = [None]
        failure = None
        if self.first:
            try:
                box[0] = make()
            except Exception as error:
                failure = error
        self.agree(failure)
        if self.count > 1:
            self._speak(lambda: dist.broadcast_object_list(box, src=0, group=self.group))
        made: Made = box[0]
        return made

    def gather(self, value: Made) -> list[Made]:
        """What every process has, in their order, in all of them; it is pickled on the way.

        Raises:
            RunError: another process is gone.
        """
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        self._speak(lambda: dist.all_gather_object(values, value, group=self.group))
        return values

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up the gradients of all processes, in buckets that are all under way at once.

        Raises:
            RunError: another process is gone.
        """
        if self.count > 1:
            self._speak(lambda: _sum_in_buckets([p.grad for p in parameters if p.grad is not None]))

    def agree(self, error: Exception | None) -> None:
        """Go on where no process has an error; else the first that has one raises it, and the others leave.

        Raises:
            OtherProcessError: what is to be said is said by another process.
            RunError: another process is gone.
        """
        if self.count == 1:
            if error is not None:
                raise error
            return
        lowest = torch.tensor(self.count if error is None else self.rank)
        self._speak(lambda: dist.all_reduce(lowest, op=dist.ReduceOp.MIN, group=self.group))
        if error is not None and int(lowest) == self.rank:
            raise error
        if int(lowest) < self.count:
            raise OtherProcessError

    def together(self, make: Callable[[], Made]) -> Made:
        """What `make()` gives in this process; where it fails in any, none goes on.

        Raises:
            OtherProcessError: what is to be said is said by another process.
            RunError: another process is gone.
        """
        failure = None
        try:
            made = make()
        except Exception as error:
            failure = error
        self.agree(failure)
        return made

    def _speak(self, exchange: Callable[[], object]) -> None:
        try:
            exchange()
        except RuntimeError as error:
            raise RunError(
                f"process {self.rank + 1} of {self.count}: lost the others, of which one has ended or cannot be "
                "reached; see its message, and go on with --resume or start again"
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
    """A Fabric for so many devices of so many machines, not yet launched.

    Args:
        accelerator: "auto", "cpu", "cuda", "mps".
        devices: of one machine; None: as many as torchrun or SLURM started processes there, else 1.
        num_nodes: machines; None likewise.
        precision: as Fabric calls it.

    Raises:
        InputError: what Fabric cannot give, or numbers that contradict torchrun or SLURM.
    """
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # its notes would stand before our one-line errors
    devices, num_nodes = process_counts(devices, num_nodes)
    settings = {} if precision is None else {"precision": precision}
    strategy = "auto" if devices * num_nodes == 1 else "ddp"
    try:
        return Fabric(accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy, **settings)
    except (RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        asked = "" if devices * num_nodes == 1 else f" with {devices} devices"
        raise InputError(f"accelerator: {accelerator!r}{asked} cannot be used ({text}); 'auto' or 'cpu' can") from error


def process_counts(devices: int | None, num_nodes: int | None) -> tuple[int, int]:
    """Devices of a machine, and machines, where None is what torchrun or SLURM started, else 1.

    Raises:
        InputError: a number below 1, or one that contradicts what was started.
    """
    started = _started()
    found = []
    for name, asked, there in (("devices", devices, started[0]), ("num_nodes", num_nodes, started[1])):
        if asked is not None and asked < 1:
            raise InputError(f"{name}: {asked}; at least 1")
        if asked is not None and there is not None and asked != there:
            raise InputError(f"{name}: {asked}, but torchrun or SLURM has started {there}; leave {name} out")
        wanted = there if asked is None else asked
        found.append(1 if wanted is None else wanted)
    return found[0], found[1]


def _started() -> tuple[int | None, int | None]:
    """Processes of this machine, and machines, where torchrun or SLURM started this process."""
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun, which may itself run under SLURM
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    if "SLURM_NTASKS" in os.environ:
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

        if SLURMEnvironment.detect():
            nodes = int(os.environ.get("SLURM_NNODES", "1"))
            return int(os.environ["SLURM_NTASKS"]) // nodes, nodes
    return None, None


def launch(fabric: Fabric) -> Processes:
    """Start the other processes, or join those that torchrun or SLURM started."""
    with _prints_on_stderr():
        fabric.launch()
        if fabric.world_size == 1:
            return Processes()
        atexit.register(_leave)
        return Processes(fabric.global_rank, fabric.world_size, dist.new_group(backend="gloo"))


def _leave() -> None:
    """Take leave while the interpreter is whole: threads of gloo that outlive it abort the process now and then."""
    with suppress(Exception):  # another process is gone
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _prints_on_stderr() -> Iterator[None]:
    """Standard output is for results, and gloo greets there in some releases of torch (pytorch/gloo#462)."""
    print(end="", flush=True)
    try:
        kept = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
