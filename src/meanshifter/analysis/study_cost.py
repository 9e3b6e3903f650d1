"""The cost of a study on this machine, measured on a few real steps and images of each of its models."""

from __future__ import annotations

import heapq
import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from meanshifter.analysis.study import (
    end_processes,
    end_with_study,
    ignore_ctrl_c,
    signals_held,
    start_process,
    threads_of,
)
from meanshifter.analysis.study_plan import Cell, Setup, has_block, set_up
from meanshifter.analysis.study_scores import COUNTS, count, has_scores, is_finished, reader, save_counts
from meanshifter.analysis.study_training import is_cross_validated, number_of_trainings
from meanshifter.errors import InputError, RunError, counted
from meanshifter.training.config import TrainConfig
from meanshifter.training.setup import open_split

WARM_UP: Final = 2
"""Steps that are not timed, in which kernels are compiled and workers started."""
SECONDS: Final = 3.0
"""Duration of the timed steps of each model; at least one is timed."""
IMAGES: Final = 3
"""Images of each split whose scoring is timed."""


@dataclass(frozen=True)
class Cost:
    """The cost of one training, in seconds and bytes."""

    start: float
    """Until its first step: process, imports, data, model."""
    step: float
    """One optimizer step, including the wait for its crops."""
    training: float
    """All steps, evaluations and checkpoints."""
    scoring: float
    """The scores of the study."""
    disk: int
    memory: int
    """Peak of its process and data workers."""
    device_memory: int
    """Peak on the GPU; 0 without one."""

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
    """By row and seed, for each training that is not finished; without the training where it is only scored again."""
    device: str

    @property
    def seconds(self) -> float:
        """From the start of the study to its end, with `jobs` trainings in parallel."""
        lanes = [0.0] * self.setup.jobs
        for cost in self.costs.values():
            heapq.heappush(lanes, heapq.heappop(lanes) + cost.seconds)
        return max(lanes)

    @property
    def disk(self) -> int:
        """Bytes that are added to its folder."""
        return sum(cost.disk for cost in self.costs.values())

    @property
    def memory(self) -> int:
        """Bytes of the largest trainings that can run in parallel."""
        return self._largest(cost.memory for cost in self.costs.values())

    @property
    def device_memory(self) -> int:
        """As `memory`, on a GPU."""
        return self._largest(cost.device_memory for cost in self.costs.values())

    def _largest(self, sizes: Iterable[int]) -> int:
        return sum(sorted(sizes, reverse=True)[: self.setup.jobs])

    def __str__(self) -> str:
        return "\n".join([*self._plan(), *self._cost()])

    def _plan(self) -> Iterator[str]:
        job, cells = self.setup, self.setup.chosen
        rows = list(dict.fromkeys(cell.row for cell in cells))
        counts = f"{counted(len(rows), 'row')}, {counted(len(cells), 'training')}"
        yield f"{job.plan.name}: {counts} into {job.folder}; recipe {job.plan.recipe}"
        width = max(map(len, rows))
        for row in rows:
            of_row = [cell for cell in cells if cell.row == row]
            config, seeds = of_row[0].config, " ".join(str(cell.seed) for cell in of_row)
            length = f"{config.minutes:g} minutes" if config.minutes is not None else counted(config.steps, "step")
            step = next((f", {cost.step:.3g} s each" for (name, _), cost in self.costs.items() if name == row), "")
            extra = " ".join(map(str, job.depths)) if has_block(config) else ""
            yield f"  {row:{width}}  seeds {seeds}; {length}{step}" + (
                f"; also scored with L'_ms {extra}" if extra else ""
            )
        scored = ", ".join(f"{counted(images, 'image')} of {split}" for split, images in self.images.items())
        yield f"scored: {scored}"

    def _cost(self) -> Iterator[str]:
        job = self.setup
        done = len(job.chosen) - len(self.costs)
        if done:
            yield f"{done} of {counted(len(job.chosen), 'training')} finished"
        if not self.costs:
            return
        each = [cost.seconds for cost in self.costs.values()]
        training = sum(cost.training for cost in self.costs.values())
        scoring = sum(cost.scoring for cost in self.costs.values())
        least, most = _time(min(each)), _time(max(each))
        how = f"{self.device}; {job.jobs} in parallel, {threads_of(job.jobs)} threads each"
        yield f"measured here ({how}): a training takes {least}" + ("" if least == most else f" to {most}")
        yield f"time:   {_time(self.seconds)} in total (sum of trainings {_time(training)}, of scores {_time(scoring)})"
        yield f"disk:   {_size(self.disk)} in {job.folder}"
        yield f"memory: {_size(self.memory)}" + (
            f", and {_size(self.device_memory)} of the GPU" if self.device_memory else ""
        )


def estimate_study(study: str, out: str | Path | None = None, **choices: Any) -> Estimate:
    """The plan and the cost of `run_study` with these arguments; nothing is written into its folder.

    A few steps and images of each different model are run as in the study: through the same code and on the same data,
    with as many processes and threads. A stopped training counts as if it had not begun.

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
        cost = measured[next(n for n, kind in enumerate(kinds) if _kind(kind) == _kind(cell))]
        costs[cell.row, cell.seed] = replace(cost, training=0.0) if has_scores(cell) else cost
    images = {split: _scored(job.chosen[0], open_split(job.chosen[0].config.data, split)) for split in job.splits}
    return Estimate(job, images, costs, device)


def _kind(cell: Cell) -> TrainConfig:
    return replace(cell.config, seed=0, out=None)


def _scored(cell: Cell, dataset: Any) -> int:
    """The number of images of a dataset that are scored."""
    limit = cell.config.evaluation.limit
    return len(dataset) if limit is None else min(limit, len(dataset))


def _measure_all(kinds: Sequence[Cell], job: Setup) -> tuple[dict[int, Cost], str]:
    """The cost of each kind, by its index, and the device; measured with as many processes as the study trains with."""
    device, failure = "", None
    costs: dict[int, Cost] = {}
    with tempfile.TemporaryDirectory(prefix="meanshifter-") as folder:
        running: list[tuple[Any, Any]] = []
        try:
            for lane in range(job.jobs):
                places = list(range(lane, len(kinds), job.jobs)) or [lane % len(kinds)]
                share = {place: kinds[place] for place in places}
                where, depths, splits = Path(folder) / str(lane), list(job.depths), list(job.splits)
                with signals_held():
                    began = time.time()
                    running.append(start_process(_work, share, depths, splits, threads_of(job.jobs), where, began))
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
            end_processes([process for process, _ in running])
    return costs, device


def _work(
    share: Mapping[int, Cell],
    depths: list[int],
    splits: list[str],
    threads: int,
    folder: Path,
    began: float,
    pipe: Any,
) -> None:
    """Measure several kinds one after the other, in a process; sends costs, device and error."""
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
    with suppress(OSError):  # the study has ended
        pipe.send((costs, device, failure))


def _measure(cell: Cell, depths: Sequence[int], splits: Sequence[str], folder: Path, start: float) -> tuple[Cost, str]:
    import torch

    from meanshifter.evaluation.evaluate import count_images
    from meanshifter.model.saving import read_model
    from meanshifter.training.display import Pace
    from meanshifter.training.loop import image_seconds, step_figures

    began = time.perf_counter()
    with _prepared(cell, folder) as (setup, config):
        start += time.perf_counter() - began
        step = _step_seconds(setup, config)
        run, learner, feed, val_set, _ = setup
        state, processes = learner.state, learner.processes
        saving = _timed(lambda: (run.save_last(state, processes), run.save_best(state, 0.0, processes)))
        images = count_images(val_set, config.evaluation.limit)
        evaluation = images * image_seconds(config, learner, val_set)
        evaluation += _timed(lambda: step_figures(config, state.evaluated, val_set))
        evaluations = Pace(config.steps, config.evaluation.interval).evaluations(config.steps)
        training = config.steps * step + evaluations * (evaluation + 2 * saving)
        training += saving * (config.steps // config.save_every)
        device, cached = learner.fabric.device, _cache_bytes(feed.stream.dataset, config)
    if config.minutes is not None:
        training = 60 * config.minutes
    training *= number_of_trainings(cell)
    model = read_model(folder / "checkpoints" / "last")
    scoring, kept = _scoring(cell, model, depths, splits, folder)
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else f"{os.cpu_count()} cores"
    cost = Cost(
        start=start,
        step=step,
        training=training,
        scoring=scoring,
        disk=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) + kept,
        memory=_peak_memory(config.data.workers) + cached,
        device_memory=torch.cuda.max_memory_allocated(device) if on_gpu else 0,
    )
    return cost, name


@contextmanager
def _prepared(cell: Cell, folder: Path) -> Iterator[tuple[Any, TrainConfig]]:
    """The training before its first step, but in another folder, and with a learning rate that changes nothing."""
    from meanshifter.training.setup import prepare, resolve

    config = cell.config if cell.teacher is None else cell.teacher  # whose label maps are not there yet
    if is_cross_validated(cell):
        config = replace(config, data=replace(config.data, fold=0))
    still = replace(config.optimizer, lr=1e-12, head_lr=None, min_lr=1e-12)
    config = resolve(replace(config, out=str(folder), optimizer=still))
    setup = prepare(config, resume=False)
    try:
        yield setup, config
    finally:
        setup.feed.close()
        setup.run.release()


def _step_seconds(setup: Any, config: TrainConfig) -> float:
    """The mean duration of a few steps, including the wait for their crops."""
    from meanshifter.training.display import Log
    from meanshifter.training.loop import take_step

    run, learner, feed, *_ = setup
    with Log(run, learner.state, learner.processes) as log:
        first = number = 0
        began = warm = time.perf_counter()
        while number < config.steps and (number <= first or time.perf_counter() - warm < SECONDS):
            take_step(config, run, learner, feed, number, log)
            number += 1
            if first < WARM_UP and number < config.steps and (number == 1 or time.perf_counter() - began < SECONDS):
                first, warm = number, time.perf_counter()
        return (time.perf_counter() - warm) / (number - first)


def _scoring(cell: Cell, model: Any, depths: Sequence[int], splits: Sequence[str], folder: Path) -> tuple[float, int]:
    """Seconds of scoring all images of all splits, with the diagnostics; bytes of the files that are kept."""
    from meanshifter.evaluation.diagnostics import IMAGES as DIAGNOSED
    from meanshifter.evaluation.diagnostics import diagnose_model

    predictor = reader(cell, model)
    own = predictor.mean_shift_layers
    steps = sorted({own, *depths}) if model.has_steps else [0]
    seconds, kept = 0.0, 0
    folder.mkdir(exist_ok=True)
    path = folder / COUNTS
    for split in splits:
        dataset = open_split(cell.config.data, split)
        images = _scored(cell, dataset)
        few = min(IMAGES, images)
        count(predictor, dataset, steps, own, 1)
        began = time.perf_counter()
        counts, _ = count(predictor, dataset, steps, own, few)
        seconds += (time.perf_counter() - began) * images / few
        with path.open("wb") as file:
            save_counts(file, {split: counts})
        kept += path.stat().st_size * images // few
        path.unlink()
    dataset = open_split(cell.config.data, splits[0])
    one = _timed(lambda: diagnose_model(predictor, dataset, max(steps), images=1))
    folds = number_of_trainings(cell) if is_cross_validated(cell) else 1
    return seconds * folds + one * min(DIAGNOSED, len(dataset)), kept


def _cache_bytes(dataset: Any, config: TrainConfig) -> int:
    """The size that the cache of decoded training images (`data.cache`) will reach."""
    if config.data.cache == 0:
        return 0
    sample = dataset[0]
    return int(min(config.data.cache * 1_000_000, len(dataset) * (sample.image.nbytes + sample.labels.nbytes)))


def _peak_memory(workers: int) -> int:
    """Peak bytes of this process and its data workers; 0 where the system does not report them (Windows)."""
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
