"""What a study would cost on this machine, measured on a few real steps and images of each of its models."""

from __future__ import annotations

import heapq
import math
import os
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from meanshifter.errors import InputError, RunError
from meanshifter.study.plan import Cell, has_block
from meanshifter.study.runner import end_with_study, ignore_ctrl_c, process_context, signals_held, threads_of
from meanshifter.study.scoring import COUNTS, count, has_scores, is_finished, open_split, reader
from meanshifter.study.setup import Setup, set_up
from meanshifter.training.recipe import TrainConfig

WARM_UP: Final = 2
"""Steps that are not timed: kernels are compiled in them, workers started."""
SECONDS: Final = 3.0
"""For which steps of each model are timed, one at least."""
IMAGES: Final = 3
"""Images of each split whose reading out is timed."""


@dataclass(frozen=True)
class Cost:
    """Of one training, in seconds and bytes."""

    start: float
    """Until its first step: a process, its imports, data, model."""
    step: float
    """Of one optimiser step, with the wait for its crops."""
    training: float
    """All steps, evaluations and checkpoints."""
    scoring: float
    """Reading out what the study scores."""
    disk: int
    memory: int
    """Most that its process held, and its data workers."""
    device_memory: int
    """Most that it held of a GPU; 0 without one."""

    @property
    def seconds(self) -> float:
        """From the start of its process to its end."""
        return self.start + self.training + self.scoring


@dataclass(frozen=True)
class Estimate:
    """A study's plan and cost; `str` is what `--dry-run` prints."""

    setup: Setup
    images: Mapping[str, int]
    """Split → images that are scored."""
    costs: Mapping[tuple[str, int], Cost]
    """Of each training that is not finished, by row and seed; where it is only read out again, without its training."""
    device: str

    @property
    def seconds(self) -> float:
        """From the start of the study to its end, with `jobs` trainings at a time."""
        lanes = [0.0] * self.setup.jobs
        for cost in self.costs.values():
            heapq.heappush(lanes, heapq.heappop(lanes) + cost.seconds)
        return max(lanes)

    @property
    def disk(self) -> int:
        """Bytes that it adds to its folder."""
        return sum(cost.disk for cost in self.costs.values())

    @property
    def memory(self) -> int:
        """Bytes of its trainings together, those that run at a time."""
        return sum(sorted((cost.memory for cost in self.costs.values()), reverse=True)[: self.setup.jobs])

    @property
    def device_memory(self) -> int:
        """As `memory`, of a GPU."""
        return sum(sorted((cost.device_memory for cost in self.costs.values()), reverse=True)[: self.setup.jobs])

    def __str__(self) -> str:
        return "\n".join([*self._plan(), *self._cost()])

    def _plan(self) -> Iterator[str]:
        job, cells = self.setup, self.setup.chosen
        rows = list(dict.fromkeys(cell.row for cell in cells))
        yield f"{job.plan.name}: {len(rows)} rows, {len(cells)} trainings into {job.folder}; recipe {job.plan.recipe}"
        width = max(map(len, rows))
        for row in rows:
            of_row = [cell for cell in cells if cell.row == row]
            config, seeds = of_row[0].config, " ".join(str(cell.seed) for cell in of_row)
            length = f"{config.minutes:g} minutes" if config.minutes is not None else f"{config.steps:,} steps"
            step = next((f", {cost.step:.3g} s each" for (name, _), cost in self.costs.items() if name == row), "")
            extra = " ".join(map(str, job.depths)) if has_block(config) else ""
            yield f"  {row:{width}}  seeds {seeds}; {length}{step}" + (f"; also read out with {extra}" if extra else "")
        scored = ", ".join(f"{images:,} images of {split}" for split, images in self.images.items())
        yield f"scored: {scored}"

    def _cost(self) -> Iterator[str]:
        job = self.setup
        done = len(job.chosen) - len(self.costs)
        if done:
            yield f"{done} of {len(job.chosen)} trainings are finished"
        if not self.costs:
            return
        each = [cost.seconds for cost in self.costs.values()]
        training = sum(cost.training for cost in self.costs.values())
        scoring = sum(cost.scoring for cost in self.costs.values())
        least, most = _time(min(each)), _time(max(each))
        how = f"{self.device}; {job.jobs} at a time, {threads_of(job.jobs)} threads each"
        yield f"measured here ({how}): a training takes {least}" + ("" if least == most else f" to {most}")
        yield (f"time:   {_time(self.seconds)} in all (trainings {_time(training)}, scores {_time(scoring)} added up)")
        yield f"disk:   {_size(self.disk)} in {job.folder}"
        yield f"memory: {_size(self.memory)}" + (
            f", and {_size(self.device_memory)} of the GPU" if self.device_memory else ""
        )


def estimate_study(study: str, out: str | Path | None = None, **choices: Any) -> Estimate:
    """The plan and the cost of `run_study` with these arguments; nothing is trained or written into its folder.

    A few steps and images of each model that differs are run as the study would run them: through the same code, on the
    same data, as many at a time and with as many threads. A training that was stopped counts as a whole one.

    Raises:
        InputError: as `run_study`.
        RunError: a measurement that fails.
    """
    job = set_up(study, out, **choices)
    waiting = [cell for cell in job.chosen if not is_finished(cell, job.depths, job.splits)]
    kinds: list[Cell] = []
    for cell in waiting:
        if not any(_kind(cell) == _kind(other) for other in kinds):
            kinds.append(cell)
    measured, device = _measure_all(kinds, job) if kinds else ({}, "")
    costs = {}
    for cell in waiting:
        place = next(n for n, kind in enumerate(kinds) if _kind(kind) == _kind(cell))
        cost = measured[place]
        costs[cell.row, cell.seed] = replace(cost, training=0.0) if has_scores(cell) else cost
    return Estimate(job, _images(job), costs, device)


def _kind(cell: Cell) -> TrainConfig:
    return replace(cell.config, seed=0, out=None)


def _images(job: Setup) -> dict[str, int]:
    limit = job.chosen[0].config.evaluation.limit
    lengths = {split: len(open_split(job.chosen[0], split)) for split in job.splits}
    return {split: length if limit is None else min(limit, length) for split, length in lengths.items()}


def _measure_all(kinds: Sequence[Cell], job: Setup) -> tuple[dict[int, Cost], str]:
    """The cost of each kind, by its place, and the device; as many are measured at a time as the study trains."""
    context, device, failure = process_context(), "", None
    costs: dict[int, Cost] = {}
    with tempfile.TemporaryDirectory(prefix="meanshifter-") as folder:
        running: list[tuple[Any, Any]] = []
        try:
            for lane in range(job.jobs):
                places = list(range(lane, len(kinds), job.jobs)) or [lane % len(kinds)]
                ours, theirs = context.Pipe(duplex=False)
                share = {place: kinds[place] for place in places}
                where = Path(folder) / str(lane)
                args = (share, list(job.depths), list(job.splits), threads_of(job.jobs), where, theirs)
                with signals_held():
                    process = context.Process(target=_work, args=(*args, time.time()))
                    process.start()
                    running.append((process, ours))
                theirs.close()
            for process, pipe in running:
                try:
                    found, device, failure = pipe.recv()
                except EOFError:
                    process.join()
                    failure = RunError(f"a measurement ended with status {process.exitcode}")
                if failure is not None:
                    raise failure
                costs |= found
        finally:
            for process, _ in running:
                process.terminate()
            for process, _ in running:
                process.join()
    return costs, device


def _work(
    share: Mapping[int, Cell],
    depths: list[int],
    splits: list[str],
    threads: int,
    folder: Path,
    pipe: Any,
    began: float,
) -> None:
    """In a process of its own: measure several kinds, one after the other."""
    ignore_ctrl_c()
    end_with_study(pipe)
    costs: dict[int, Cost] = {}
    failure: Exception | None = None
    device = ""
    try:
        import torch

        import meanshifter.training.loop  # noqa: F401 (so that its import counts)

        torch.set_num_threads(threads)
        start = time.time() - began
        for place, cell in share.items():
            costs[place], device = _measure(cell, depths, splits, folder / str(place), start)
    except (InputError, RunError) as error:
        failure = error
    except Exception as error:
        failure = RunError(f"{next(iter(share.values())).row}: {type(error).__name__}: {error}")
    with suppress(OSError):  # the study has ended meanwhile
        pipe.send((costs, device, failure))


def _measure(cell: Cell, depths: Sequence[int], splits: Sequence[str], folder: Path, start: float) -> tuple[Cost, str]:
    import torch

    from meanshifter.evaluation.evaluate import count_images
    from meanshifter.model.checkpoint import load_model
    from meanshifter.training.display import Pace
    from meanshifter.training.scoring import image_seconds, step_figures

    began = time.perf_counter()
    with _session(cell, folder) as (session, config):
        start += time.perf_counter() - began
        step = _step_seconds(session, config)
        saving = _timed(lambda: (session.save(), session.keep_best(0.0)))
        images = count_images(session.val_set, config.evaluation.limit)
        evaluation = images * image_seconds(session, config) + _timed(lambda: step_figures(session, config))
        evaluations = Pace(config.steps, config.evaluation.every).evaluations(config.steps)
        training = config.steps * step + evaluations * (evaluation + 2 * saving)
        training += saving * (config.steps // config.save_every)
        device, cached = session.fabric.device, _cache_bytes(session, config)
    if config.minutes is not None:
        training = 60 * config.minutes
    model = load_model(folder / "checkpoints" / "last")
    scoring, kept = _scoring(cell, model, depths, splits, folder)
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else f"{os.cpu_count()} cores"
    cost = Cost(
        start=start,
        step=step,
        training=training,
        scoring=scoring,
        disk=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) + kept,
        memory=_most_memory(config.data.workers) + cached,
        device_memory=torch.cuda.max_memory_allocated(device) if on_gpu else 0,
    )
    return cost, name


@contextmanager
def _session(cell: Cell, folder: Path) -> Iterator[tuple[Any, TrainConfig]]:
    """The training as it stands before its first step, but in another folder, and with a rate that changes nothing."""
    from meanshifter.training.session import prepare, resolve

    still = replace(cell.config.optimizer, lr=1e-12, head_lr=None, min_lr=1e-12)
    config = resolve(replace(cell.config, out=str(folder), optimizer=still))
    session = prepare(config, resume=False)
    try:
        yield session, config
    finally:
        if isinstance(session.feed, Generator):
            session.feed.close()  # and with it its workers
        session.run.release()


def _step_seconds(session: Any, config: TrainConfig) -> float:
    """The mean of a few steps, with the wait for their crops."""
    from meanshifter.training.loop import Log, take_step

    with Log(session) as log:
        first = number = 0
        began = warm = time.perf_counter()
        while number < config.steps and (number <= first or time.perf_counter() - warm < SECONDS):
            take_step(session, config, number, log, nullcontext(), 0)
            number += 1
            if first < WARM_UP and number < config.steps and (number == 1 or time.perf_counter() - began < SECONDS):
                first, warm = number, time.perf_counter()
        return (time.perf_counter() - warm) / (number - first)


def _scoring(cell: Cell, model: Any, depths: Sequence[int], splits: Sequence[str], folder: Path) -> tuple[float, int]:
    """Seconds of reading all images of all splits out, with the diagnostics; bytes that are kept of it."""
    from meanshifter.evaluation.diagnosis import IMAGES as DIAGNOSED
    from meanshifter.evaluation.diagnosis import diagnose_model
    from meanshifter.study.counts import save_counts

    predictor = reader(cell, model)
    own, limit = predictor.mean_shift_layers, cell.config.evaluation.limit
    steps = sorted({own, *depths}) if model.has_steps else [0]
    seconds, kept = 0.0, 0
    for split in splits:
        dataset = open_split(cell, split)
        images = len(dataset) if limit is None else min(limit, len(dataset))
        few = min(IMAGES, images)
        count(predictor, dataset, steps, own, 1)
        began = time.perf_counter()
        counts, _ = count(predictor, dataset, steps, own, few)
        seconds += (time.perf_counter() - began) * images / few
        folder.mkdir(exist_ok=True)
        path = folder / COUNTS
        with path.open("wb") as file:
            save_counts(file, {split: counts})
        kept += path.stat().st_size * images // few
        path.unlink()
    dataset = open_split(cell, splits[0])
    one = _timed(lambda: diagnose_model(predictor, dataset, max(steps), images=1))
    return seconds + one * min(DIAGNOSED, len(dataset)), kept


def _cache_bytes(session: Any, config: TrainConfig) -> int:
    """What decoded training images will take in the end, as far as they are kept (`data.cache`)."""
    if config.data.cache == 0:
        return 0
    sample = session.stream.dataset[0]
    return int(
        min(config.data.cache * 1_000_000, len(session.stream.dataset) * (sample.image.nbytes + sample.labels.nbytes))
    )


def _most_memory(workers: int) -> int:
    """Bytes that this process held at most, and its data workers; 0 where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    theirs = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss if workers else 0
    return int(mine + workers * theirs) * (1 if os.uname().sysname == "Darwin" else 1024)


def _timed(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.1f} h"


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 0.1):.1f} MB"
