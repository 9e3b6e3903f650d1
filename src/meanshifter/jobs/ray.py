"""Label an archive as a Ray Data job: placement, retries, back-pressure and autoscaling are Ray's.

There are two stages. Tasks list the units of the archive and cut them into chunks of images; actors, each of which
loads the model once, label a chunk at a time and write the files. They return manifest lines, which only the driver
process writes. Every chunk is a block of one row, so that it is what Ray schedules, holds back and retries.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import meanshifter
from meanshifter.data.reading import PassedOver
from meanshifter.errors import InputError, RunError, summarize_error
from meanshifter.jobs.archive import Finished, Labeler, Runner, Work
from meanshifter.jobs.listing import Entry, Unit, entries
from meanshifter.jobs.manifest import Known, Line, Store, line_of
from meanshifter.utils.environment import install_hint, require_versions

CHUNK: Final = 16
"""Images that a worker takes at a time, and that are retried when it dies."""
RETRIES: Final = 2
"""Retries of a chunk whose worker died. Then its images are tried one by one, to find the one that is to blame."""
OBJECT_STORE: Final = 2**30
"""Bytes of a local cluster's object store, which holds samples of tars on their way to a worker."""
ANSWER: Final = 10
"""Timeout in seconds for connecting to a cluster."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster and the resources of a worker."""

    address: str | None = None
    """Address of a running cluster; None: RAY_ADDRESS, else a local cluster for the time of the run."""
    workers: int | None = None
    """None: as many as fit."""
    cpus: int = 1
    """Cores, and so torch threads, per worker."""
    device: str | None = None
    """None: a GPU for each worker where the cluster has any, else the CPU."""

    @property
    def where(self) -> str:
        """The address in the form that `ray.init` expects."""
        return self.address or os.environ.get("RAY_ADDRESS") or "local"


@dataclass(frozen=True)
class Chunk:
    """Images of one unit on their way to a worker."""

    entries: tuple[Entry, ...]
    skipped: int
    """Images skipped since the last chunk."""
    listed: int | None = None
    """In the last chunk of a unit: the number of its images."""
    passed: PassedOver = field(default_factory=PassedOver)
    """In the last chunk of a unit: other files in it."""
    problem: InputError | RunError | None = None
    """An error that ends the run."""


def on_cluster(cluster: Cluster) -> Runner:
    """A runner on Ray.

    Raises:
        InputError: Ray is not installed. When it runs: there is no cluster at the address, or it lacks the package.
    """
    require_ray()

    def run(work: Work, units: list[Unit], out: str, known: Callable[[], Known]) -> Iterator[Finished]:
        files = [address for unit in units for address, _ in unit.files[:1]]
        for address in (out, *(unit.address for unit in units), *files):
            if address.startswith("memory://"):
                raise InputError(
                    f"{address}: memory:// is not visible to workers; copy it elsewhere, or remove --backend ray"
                )
        with session(cluster):
            for size in (CHUNK, 1):
                complete = yield from _job(cluster, work, units, out, known(), size)
                if complete:
                    return
        left = known()
        lost = (entry for unit in units for entry in entries(unit, out, left) if entry is not None)
        reason = f"its worker died {RETRIES + 1} times; predict it without --backend ray to see why"
        yield from (Finished([line_of(entry, entry.error or f"{entry.address}: {reason}")]) for entry in lost)

    return run


def _job(
    cluster: Cluster, work: Work, units: list[Unit], out: str, known: Known, size: int
) -> Generator[Finished, None, bool]:
    """Run over the archive once; returns whether all listed images came back."""
    import ray.data

    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = int(total.get("GPU", 0) > 0 if cluster.device is None else cluster.device != "cpu")
    items = [{"unit": pickle.dumps(unit)} for unit in units]
    listing = ray.data.from_items(items, override_num_blocks=min(len(items), 1000))
    shared, shared_work = ray.put(known), ray.put(work)
    readers = min(len(items), max(2, int(total.get("CPU", 1)) // 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `max_task_retries` has no other way in yet
        chunks = listing.map_batches(
            list_unit,  # type: ignore[arg-type]  # Ray's type lacks `fn_args`
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
        lines, chunk = pickle.loads(row["labeled"])
        if chunk.problem is not None:
            raise chunk.problem
        came += len(lines) + chunk.skipped
        if chunk.listed is not None:
            listed, ended = listed + chunk.listed, ended + 1
        first = size == CHUNK  # the second pass would count the same again
        yield Finished(lines, chunk.skipped if first else 0, chunk.passed if first else PassedOver())
    return ended == len(units) and came == listed


def _pool(cluster: Cluster, gpus: int, total: dict[str, float]) -> Any:
    """As many workers as requested; by default a local cluster is filled, and any other one autoscales."""
    from ray.data import ActorPoolStrategy

    if cluster.workers is not None:
        return ActorPoolStrategy(size=cluster.workers)
    if cluster.where != "local":
        return ActorPoolStrategy(min_size=1)
    fit = total.get("CPU", 1) / cluster.cpus
    return ActorPoolStrategy(size=max(1, int(min(fit, total.get("GPU", 0) / gpus) if gpus else fit)))


class _Worker:
    """An actor, which loads the model once and labels the chunks that it is given."""

    def __init__(self, shared: Any, store: Store, cpus: int, device: str | None) -> None:
        self._made: Labeler | None = None
        self._arguments = shared, store, cpus, device

    def __call__(self, batch: Any) -> dict[str, list[bytes]]:
        chunk: Chunk = pickle.loads(batch["chunk"][0])
        lines: list[Line] = []
        try:
            lines = list(self._labeler().label(chunk.entries))
        except Exception as error:
            chunk = replace(chunk, problem=as_package_error(error))
        return {"labeled": [pickle.dumps((lines, replace(chunk, entries=())))]}

    def _labeler(self) -> Labeler:
        """Create the labeler on first use, so that its errors can be reported."""
        if self._made is None:
            import ray
            import torch

            shared, store, cpus, device = self._arguments
            torch.set_num_threads(cpus)
            self._made = Labeler(ray.get(shared), device or ("cuda" if ray.get_gpu_ids() else "cpu"), store)
        return self._made


def list_unit(batch: Any, out: str, shared: Any, size: int) -> Iterator[dict[str, list[bytes]]]:
    """The chunks of one unit; runs on a worker, and Ray pauses it while no chunk is taken."""
    import ray

    try:
        for chunk in chunks(pickle.loads(batch["unit"][0]), out, ray.get(shared), size):
            yield {"chunk": [pickle.dumps(chunk)]}
    except Exception as error:
        yield {"chunk": [pickle.dumps(Chunk((), 0, problem=as_package_error(error)))]}


def chunks(unit: Unit, out: str, known: Known, size: int) -> Iterator[Chunk]:
    """The images of a unit that are not known, `size` at a time; the last chunk may be empty."""
    waiting: list[Entry] = []
    skipped, listed, passed = 0, 0, PassedOver()
    for entry in entries(unit, out, known, passed):
        listed += 1
        if entry is None:
            skipped += 1
        else:
            waiting.append(entry)
        if len(waiting) == size:
            yield Chunk(tuple(waiting), skipped)
            waiting, skipped = [], 0
    yield Chunk(tuple(waiting), skipped, listed, passed=passed)


def as_package_error(error: Exception) -> InputError | RunError:
    """An error for the driver to raise; an exception in a task would only make Ray retry it."""
    if isinstance(error, InputError):
        return InputError(str(error))
    return RunError(f"on a worker: {type(error).__name__}: {error}")


def require_ray() -> None:
    """Make sure that Ray can be imported, with its usage statistics turned off.

    Raises:
        InputError: it is not installed, or its version is not supported.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # for what is printed here; Ray's log files have it all
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise InputError(f"--backend ray: Ray Data is not installed ({error}); {install_hint('ray')}") from error
    require_versions("--backend ray", "ray", "ray")


@contextmanager
def session(cluster: Cluster) -> Iterator[None]:
    """Connect to Ray for the block, with one row per Ray Data block; whatever is started for that ends with it.

    Raises:
        InputError: there is no cluster at the address, it lacks the package, or it is too small.
    """
    require_ray()
    import ray

    own = not ray.is_initialized()  # otherwise the caller's
    if own:
        _check_address(cluster.where)
        _connect(cluster.where)
    try:
        _check_package()
        _check_size(cluster)
        with _settings():
            yield
    finally:
        if own:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Refuse an address HOST:PORT that does not answer, which Ray would retry for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--address: no answer from {address} ({error}); run `ray status` on a node of the cluster to check it"
        ) from error


def _connect(address: str) -> None:
    import ray

    local: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    try:
        with _stderr_closed():  # Ray announces there that it has been silenced
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **(local if address == "local" else {}),
            )
    except Exception as error:
        reason = summarize_error(error)
        raise InputError(
            f"--address: cannot connect to {address} ({reason}); run `ray status` on a node of the cluster to check it"
        ) from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, handler)  # Ray's own would end the run silently


@contextmanager
def _stderr_closed() -> Iterator[None]:
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _check_package() -> None:
    """Check that workers have the same version of the package."""
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
            f"--address: version mismatch, meanshifter {meanshifter.__version__} here and {found} on the cluster; "
            "install the same version there"
        )


def _check_size(cluster: Cluster) -> None:
    """Check that the workers fit into a local cluster; other clusters may grow."""
    import ray

    asked = cluster.cpus * (cluster.workers or 1)
    cores = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
    if cluster.where == "local" and asked > cores:
        raise InputError(
            f"--workers: {cluster.workers or 1} with --cpus-per-worker {cluster.cpus} need {asked} cores, but this "
            f"machine has {cores}; request fewer"
        )


@contextmanager
def _settings() -> Iterator[None]:
    """Set Ray Data's options for the block, and restore them afterwards."""
    import ray.data

    context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    wanted: dict[str, Any] = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "target_max_block_size": 1,  # byte, so that every row is a block
        "max_errored_blocks": -1,  # missing images are found and tried one by one
    }
    before, level = {name: getattr(context, name, None) for name in wanted}, log.level
    try:
        for name, value in wanted.items():
            setattr(context, name, value)
        log.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"ray\.")  # advice against settings that are intended
            yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        log.setLevel(level)
