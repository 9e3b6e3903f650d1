"""An archive as a Ray Data job: placement, retries, back-pressure and growing or shrinking are Ray's.

Two stages. Tasks list the units of the archive and cut them into chunks of images; actors, each with the model loaded
once, label a chunk at a time and write the files. What comes back are lines for the manifest, which this process
alone writes. A chunk is the only row of its block, so that it is what Ray hands out, holds back and tries again.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Final

from meanshifter.data.walk import PassedOver
from meanshifter.errors import InputError, RunError
from meanshifter.inference.archive import Finished, Labeller, Runner, Work
from meanshifter.inference.chunks import Chunk, list_unit, told
from meanshifter.inference.listing import Unit, entries
from meanshifter.inference.manifest import Known, Line, line_of
from meanshifter.inference.ray_session import Cluster, require_ray, session
from meanshifter.inference.store import Store

CHUNK: Final = 16
"""Images that a worker takes at a time, and that are lost to its death."""
RETRIES: Final = 2
"""Deaths of a worker that a chunk outlives. Then its images are tried by themselves, which finds the one to blame."""


@dataclass(frozen=True)
class Labelled:
    """What became of a chunk."""

    lines: list[Line]
    skipped: int
    listed: int | None
    problem: InputError | RunError | None
    passed: PassedOver


def on_cluster(cluster: Cluster) -> Runner:
    """Runs on Ray.

    Raises:
        InputError: Ray is not installed; and, when it runs, there is no cluster at the address or it lacks the package.
    """

    require_ray()

    def run(work: Work, units: list[Unit], out: str, known: Callable[[], Known]) -> Iterator[Finished]:
        files = [address for unit in units for address, _ in unit.files[:1]]
        for address in (out, *(unit.address for unit in units), *files):
            if address.startswith("memory://"):
                raise InputError(f"{address}: memory:// is this process's own; leave --on ray out, or copy it")
        with session(cluster):
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

    gpus = _gpus(cluster)
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    items = [{"unit": pickle.dumps(unit)} for unit in units]
    listing = ray.data.from_items(items, override_num_blocks=min(len(items), 1000))
    shared, shared_work = ray.put(known), ray.put(work)
    readers = min(len(items), max(2, int(total.get("CPU", 1)) // 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `max_task_retries` has no other way in yet
        chunks = listing.map_batches(
            list_unit,  # type: ignore[arg-type]  # Ray's type leaves `fn_args` out
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
        first = size == CHUNK  # pass, which tells what the second would tell again
        yield Finished(labelled.lines, labelled.skipped if first else 0, labelled.passed if first else PassedOver())
    return ended == len(units) and came == listed


def _pool(cluster: Cluster, gpus: float, total: dict[str, float]) -> Any:
    """As many workers as asked for; else a local cluster's fill, and those of another come and go with their use."""
    from ray.data import ActorPoolStrategy

    if cluster.workers is not None:
        return ActorPoolStrategy(size=cluster.workers)
    if cluster.where != "local":
        return ActorPoolStrategy(min_size=1)
    fit = total.get("CPU", 1) / cluster.cpus
    return ActorPoolStrategy(size=max(1, int(min(fit, total.get("GPU", 0) / gpus) if gpus else fit)))


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
            problem = told(error)
        return {"labelled": [pickle.dumps(Labelled(lines, chunk.skipped, chunk.listed, problem, chunk.passed))]}

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
