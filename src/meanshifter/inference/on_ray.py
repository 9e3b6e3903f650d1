"""An archive as a Ray Data job: placement, retries, back-pressure and growing or shrinking are Ray's.

Two stages. Tasks list the units of the archive and cut them into chunks of images; actors, each with the model loaded
once, label a chunk at a time and write the files. What comes back are lines for the manifest, which this process
alone writes. A chunk is the only row of its block, so that it is what Ray hands out, holds back and tries again.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import meanshifter
from meanshifter.errors import InputError, RunError
from meanshifter.inference.archive import Finished, Known, Labeller, Runner, Work
from meanshifter.inference.listing import Entry, Unit, entries
from meanshifter.inference.manifest import Line, line_of
from meanshifter.inference.store import Store

CHUNK: Final = 16
"""Images that a worker takes at a time, and that are lost to its death."""
RETRIES: Final = 2
"""Deaths of a worker that a chunk outlives. Then its images are tried by themselves, which finds the one to blame."""
OBJECT_STORE: Final = 2**30
"""Bytes of a local cluster's object store; what lies there are samples of tars on their way to a worker."""


@dataclass(frozen=True)
class Cluster:
    """Where the work is done, and what a worker takes."""

    address: str | None = None
    """Of a running cluster; None: RAY_ADDRESS, else a cluster of this machine for the time of the run."""
    workers: int | None = None
    """None: as many as fit."""
    cpus: int = 1
    """Cores, and so torch's threads, of a worker."""
    device: str | None = None
    """None: a GPU for each worker where the cluster has any, else the CPU."""


@dataclass(frozen=True)
class Chunk:
    """Some images of one unit on their way to a worker."""

    entries: tuple[Entry, ...]
    skipped: int
    """Images passed over since the last chunk."""
    listed: int | None = None
    """In the last chunk of a unit, how many images it has in all."""
    problem: InputError | RunError | None = None
    """Why the run cannot go on."""


@dataclass(frozen=True)
class Labelled:
    """What became of a chunk."""

    lines: list[Line]
    skipped: int
    listed: int | None
    problem: InputError | RunError | None


def on_cluster(cluster: Cluster) -> Runner:
    """Runs on Ray.

    Raises (when it runs):
        InputError: Ray is not installed, there is no cluster at the address, or it lacks the package.
    """

    def run(work: Work, units: list[Unit], out: str, known: Callable[[], Known]) -> Iterator[Finished]:
        for unit in units:
            if unit.address.startswith("memory://"):
                raise InputError(f"{unit.address}: memory:// is this process's own; leave --on ray out, or copy it")
        with _session(cluster):
            for size in (CHUNK, 1):
                whole = yield from _job(cluster, work, units, out, known(), size)
                if whole:
                    return
        left = known()
        lost = (entry for unit in units for entry in entries(unit, out, left) if entry is not None)
        reason = f"the worker that held it died {RETRIES + 1} times; predict it by itself to see why"
        yield from (Finished([line_of(entry, entry.error or f"{entry.address}: {reason}")]) for entry in lost)

    return run


def _job(
    cluster: Cluster, work: Work, units: list[Unit], out: str, known: Known, size: int
) -> Generator[Finished, None, bool]:
    """One pass over the archive; whether all that was listed came back."""
    import ray.data

    _quiet_data()
    gpus = _gpus(cluster)
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    items = [{"unit": pickle.dumps(unit)} for unit in units]
    listing = ray.data.from_items(items, override_num_blocks=min(len(items), 1000))
    shared, shared_work = ray.put(known), ray.put(work)
    readers = min(len(items), max(2, int(total.get("CPU", 1)) // 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `max_task_retries` has no other way in yet
        chunks = listing.map_batches(
            _list_unit,
            batch_size=1,
            num_cpus=0,
            compute=ray.data.TaskPoolStrategy(size=readers),
            fn_args=(out, shared, size),
        )
        results = chunks.map_batches(
            _Worker,
            batch_size=1,
            num_cpus=cluster.cpus,
            num_gpus=gpus,
            compute=_pool(cluster, gpus, total),
            fn_constructor_args=(shared_work, known.store, cluster.cpus, cluster.device),
            max_restarts=-1,
            max_task_retries=RETRIES,
        )
    came = listed = ended = 0
    for row in results.iter_rows():
        labelled: Labelled = pickle.loads(row["labelled"])
        if labelled.problem is not None:
            raise labelled.problem
        came += len(labelled.lines) + labelled.skipped
        if labelled.listed is not None:
            listed, ended = listed + labelled.listed, ended + 1
        yield Finished(labelled.lines, labelled.skipped)
    return ended == len(units) and came == listed


def _pool(cluster: Cluster, gpus: float, total: dict[str, float]) -> Any:
    """As many workers as asked for; else a local cluster's fill, and those of another come and go with their use."""
    from ray.data import ActorPoolStrategy

    if cluster.workers is not None:
        return ActorPoolStrategy(size=cluster.workers)
    if _address(cluster) != "local":
        return ActorPoolStrategy(min_size=1)
    fit = total.get("CPU", 1) / cluster.cpus
    return ActorPoolStrategy(size=max(1, int(min(fit, total.get("GPU", 0) / gpus) if gpus else fit)))


def _list_unit(batch: Any, out: str, shared: Any, size: int) -> Iterator[dict[str, list[bytes]]]:
    """The chunks of one unit; runs on a worker, and is halted by Ray where nobody takes them."""
    import ray

    try:
        for chunk in _chunks(pickle.loads(batch["unit"][0]), out, ray.get(shared), size):
            yield {"chunk": [pickle.dumps(chunk)]}
    except Exception as error:
        yield {"chunk": [pickle.dumps(Chunk((), 0, problem=_told(error)))]}


def _chunks(unit: Unit, out: str, known: Known, size: int) -> Iterator[Chunk]:
    waiting: list[Entry] = []
    skipped = listed = 0
    for entry in entries(unit, out, known):
        listed += 1
        if entry is None:
            skipped += 1
        else:
            waiting.append(entry)
        if len(waiting) == size:
            yield Chunk(tuple(waiting), skipped)
            waiting, skipped = [], 0
    yield Chunk(tuple(waiting), skipped, listed)


def _told(error: Exception) -> InputError | RunError:
    """An error that Ray would only try again, for the process that leads."""
    if isinstance(error, InputError):
        return InputError(str(error))
    return RunError(f"on a worker: {type(error).__name__}: {error}")


class _Worker:
    """An actor: the model, loaded once, and the chunks that it is given."""

    def __init__(self, shared: Any, store: Store, cpus: int, device: str | None) -> None:
        self._made: Labeller | None = None
        self._how = shared, store, cpus, device

    def __call__(self, batch: Any) -> dict[str, list[bytes]]:
        chunk: Chunk = pickle.loads(batch["chunk"][0])
        problem, lines = chunk.problem, []
        try:
            lines = list(self._labeller().label(chunk.entries))
        except Exception as error:
            problem = _told(error)
        return {"labelled": [pickle.dumps(Labelled(lines, chunk.skipped, chunk.listed, problem))]}

    def _labeller(self) -> Labeller:
        """Made on first use, so that what goes wrong can be told."""
        if self._made is None:
            import ray
            import torch

            shared, store, cpus, device = self._how
            torch.set_num_threads(cpus)
            self._made = Labeller(ray.get(shared), device or ("cuda" if ray.get_gpu_ids() else "cpu"), store)
        return self._made


def _gpus(cluster: Cluster) -> float:
    import ray

    if cluster.device is not None:
        return 0 if cluster.device == "cpu" else 1
    return 1 if ray.cluster_resources().get("GPU", 0) > 0 else 0  # type: ignore[no-untyped-call]


def _address(cluster: Cluster) -> str:
    return cluster.address or os.environ.get("RAY_ADDRESS") or "local"


@contextmanager
def _session(cluster: Cluster) -> Iterator[None]:
    """A connection to a cluster; what was started for it ends with it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(f'--on ray: Ray Data is not installed ({error}); pip install "meanshifter[ray]"') from error
    if ray.is_initialized():  # the caller's own, in Python
        yield
        return
    _connect(_address(cluster))
    try:
        _check_package()
        yield
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    import ray

    local: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    try:
        with _standard_error_closed():  # Ray tells there that it was told to be silent
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **(local if address == "local" else {}),
            )
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"--ray-address: {address} cannot be reached ({reason}); `ray status` on one of its machines shows whether "
            "it runs"
        ) from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, handler)  # Ray's own would end the run without a word


@contextmanager
def _standard_error_closed() -> Iterator[None]:
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _check_package() -> None:
    """That workers can import what they are sent."""
    import ray

    @ray.remote(num_cpus=0, max_retries=0)
    def version() -> str:
        try:
            import meanshifter
        except ImportError:
            return "none"
        return meanshifter.__version__

    found = ray.get(version.remote())
    if found != meanshifter.__version__:
        raise InputError(
            f"--ray-address: meanshifter {meanshifter.__version__} is here, {found} on the cluster; install the same "
            "version there"
        )


def _quiet_data() -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # byte: every row is a block
    context.max_errored_blocks = -1  # what is missing is found and tried again by itself
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
