"""A connection to a Ray cluster, one of this machine by default, that ends with its use and keeps quiet meanwhile."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import meanshifter
from meanshifter.errors import InputError
from meanshifter.packages import install_hint, require_versions

OBJECT_STORE: Final = 2**30
"""Bytes of a local cluster's object store; what lies there are samples of tars on their way to a worker."""

ANSWER: Final = 10
"""Seconds within which a cluster must answer."""


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

    @property
    def where(self) -> str:
        """As `ray.init` wants it."""
        return self.address or os.environ.get("RAY_ADDRESS") or "local"


def require_ray() -> None:
    """Make sure that Ray can be imported, and sends nothing home.

    Raises:
        InputError: it is not installed, or in a version that is not known to work.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # of what it prints here; it is all in its logs
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise InputError(f"--on ray: Ray Data is not installed ({error}); {install_hint('ray')}") from error
    require_versions("--on ray", "ray", "ray")


@contextmanager
def session(cluster: Cluster) -> Iterator[None]:
    """Within, Ray is connected, and its blocks are rows; what was started for that ends with it.

    Raises:
        InputError: there is no cluster at the address, it lacks the package, or it is too small.
    """
    require_ray()
    import ray

    own = not ray.is_initialized()  # else the caller's, in Python
    if own:
        _knock(cluster.where)
        _connect(cluster.where)
    try:
        _check_package()
        _check_size(cluster)
        with _settings():
            yield
    finally:
        if own:
            ray.shutdown()


def _knock(address: str) -> None:
    """Refuse an address HOST:PORT where nobody answers: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--ray-address: nobody answers at {address} ({error}); `ray status` on one of its machines shows whether "
            "and where it runs"
        ) from error


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


def _check_size(cluster: Cluster) -> None:
    """That workers fit into a local cluster; others may grow."""
    import ray

    asked = cluster.cpus * (cluster.workers or 1)
    cores = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
    if cluster.where == "local" and asked > cores:
        raise InputError(
            f"--workers: {cluster.workers or 1} with --cpus-per-worker {cluster.cpus} need {asked} cores, and this "
            f"machine has {cores}; ask for fewer"
        )


@contextmanager
def _settings() -> Iterator[None]:
    """Ray Data's settings for this process, put back afterwards."""
    import ray.data

    context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    wanted: dict[str, Any] = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "target_max_block_size": 1,  # byte: every row is a block
        "max_errored_blocks": -1,  # what is missing is found and tried again by itself
    }
    before, level = {name: getattr(context, name, None) for name in wanted}, log.level
    try:
        for name, value in wanted.items():
            setattr(context, name, value)
        log.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"ray\.")  # advice on settings that are meant
            yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        log.setLevel(level)
