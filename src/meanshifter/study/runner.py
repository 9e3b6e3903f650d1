"""The trainings of a study, several at a time, each in a process of its own; what is finished is never repeated."""

from __future__ import annotations

import json
import math
import multiprocessing as mp
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from meanshifter.documents import dump_json
from meanshifter.errors import InputError, RunError
from meanshifter.files import write_beside, write_text
from meanshifter.study.plan import Cell

SCORES, COUNTS = "scores.json", "confusions.npz"


def run_cells(
    cells: Sequence[Cell],
    *,
    depths: Sequence[int],
    splits: Sequence[str],
    jobs: int,
    say: Callable[[str], None] = print,
) -> None:
    """Train and score what is not finished yet, `jobs` at a time.

    A process that is killed, whether a training's or this one, costs the steps since its last checkpoint: the next
    call goes on there. A training whose loss is not finite is a result; its row says so.

    Raises:
        InputError: what a training refuses; the others are stopped, and go on with the next call.
    """
    waiting = [cell for cell in cells if not is_finished(cell)]
    done = len(cells) - len(waiting)
    if done:
        say(f"{done} of {len(cells)} trainings were finished before")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    running: dict[int, tuple[Any, Connection, Cell]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                process, pipe = _start(waiting[0], depths, splits, threads)
                running[process.sentinel] = (process, pipe, waiting.pop(0))
            ended = set(wait(list(running)))
            for sentinel in [key for key in running if key in ended]:
                process, pipe, cell = running.pop(sentinel)
                done += 1
                say(f"{done}/{len(cells)}  {cell.row}, seed {cell.seed}: {_outcome(process, pipe, cell)}")
    except KeyboardInterrupt as stop:
        stop.args = ("stopped; the same command goes on",)
        raise
    finally:
        for process, _, _ in running.values():
            process.terminate()
        for process, _, _ in running.values():
            process.join()


def is_finished(cell: Cell) -> bool:
    """Whether its scores are there."""
    return (cell.folder / SCORES).is_file()


def scores_of(cell: Cell) -> dict[str, Any]:
    """What a finished training left: protocol, scores, parameters; `failure` in their place if it diverged."""
    facts: dict[str, Any] = json.loads((cell.folder / SCORES).read_text("utf-8"))
    return facts | {name: _numbers(facts[name]) for name in ("mIoU", "boundary", "diagnostics") if name in facts}


def _numbers(value: Any) -> Any:
    """Figures as they were before JSON, which has no NaN and holds null for it."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return math.nan if value is None else value


def confusions_of(cell: Cell, split: str) -> np.ndarray[Any, Any]:
    """(depths, images, K, K) pixels, in the order of `scores_of(cell)["depths"]`."""
    with np.load(cell.folder / COUNTS) as counts:
        return np.asarray(counts[split], dtype=np.int64)


def _start(cell: Cell, depths: Sequence[int], splits: Sequence[str], threads: int) -> tuple[Any, Connection]:
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(cell, list(depths), list(splits), threads, theirs, os.getpid()))
    process.start()
    theirs.close()
    return process, ours


def _outcome(process: Any, pipe: Connection, cell: Cell) -> str:
    """One line about a process that ended, or the error that stops the study."""
    process.join()
    kind, text = ("killed", "") if not pipe.poll() else _receive(pipe)
    if kind == "input":
        raise InputError(f"{cell.row}, seed {cell.seed}: {text}")
    if kind == "stopped":
        raise KeyboardInterrupt
    if kind in ("killed", "error"):
        what = text or f"ended with status {process.exitcode}"
        raise RunError(f"{cell.row}, seed {cell.seed}: {what}; the same command goes on where it stopped")
    return text


def _receive(pipe: Connection) -> tuple[str, str]:
    try:
        kind, text = pipe.recv()
    except EOFError:
        return "killed", ""
    return kind, text


def _work(cell: Cell, depths: list[int], splits: list[str], threads: int, pipe: Connection, parent: int) -> None:
    """In a process of its own: train, score, write, and say in one line how it went."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        import torch

        torch.set_num_threads(threads)
        with _alone(cell.folder):
            pipe.send(("done", _train_and_score(cell, depths, splits)))
    except InputError as error:
        pipe.send(("input", str(error)))
    except KeyboardInterrupt:
        pipe.send(("stopped", ""))
    except Exception as error:
        pipe.send(("error", f"{type(error).__name__}: {error}"))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder for this process, once one that is ending has let go of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        yield


def _train_and_score(cell: Cell, depths: list[int], splits: list[str]) -> str:
    from meanshifter.training.loop import train

    run = Path(str(cell.config.out))
    resume = (run / "config.yaml").is_file()
    if not resume:
        shutil.rmtree(run, ignore_errors=True)  # a process that ended before the run began
    began = time.perf_counter()
    try:
        train(cell.config, resume=resume, quiet=True)
    except RunError as error:
        _write_scores(cell, {"failure": str(error)})
        return f"diverged ({error})"
    facts = _score(cell, run, depths, splits)
    facts["seconds"] = round(time.perf_counter() - began, 1)
    _write_scores(cell, facts)
    own = facts["depths"].index(facts["trained_depth"])
    scores = ", ".join(f"{facts['mIoU'][split][own]:.2f} {split}" for split in splits)
    return f"mIoU {scores} in {facts['seconds']:.0f} s"


def _score(cell: Cell, run: Path, depths: list[int], splits: list[str]) -> dict[str, Any]:
    """Read the last weights out at every depth on every split; the confusions of each image are kept too."""
    from meanshifter.evaluation.confusion import mean_iou
    from meanshifter.evaluation.diagnosis import boundary_figures, diagnose_model
    from meanshifter.inference.predictor import Predictor
    from meanshifter.interop.weights import weights_hash
    from meanshifter.model.checkpoint import load_model

    model = load_model(run / "checkpoints" / "last")
    reading = cell.config.evaluation
    predictor = Predictor(
        model,
        window=reading.window,
        stride=reading.stride,
        short_side=reading.short_side,
        long_side=reading.long_side,
        precision=cell.config.precision,
    )
    own = predictor.mean_shift_layers
    steps = sorted({own, *depths}) if model.has_steps else [0]
    counts, boundary = {}, {}
    for split in splits:
        counts[split], near = _count(predictor, open_split(cell, split), steps, own, reading.limit)
        boundary[split] = boundary_figures(near)
    write_beside(cell.folder / COUNTS, lambda file: np.savez_compressed(file, **counts))
    protocol = {**predictor.protocol(), "weights": weights_hash(model)}
    del protocol["mean_shift_layers"]
    return {
        "protocol": protocol,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained_depth": own,
        "depths": steps,
        "images": {split: int(count.shape[1]) for split, count in counts.items()},
        "mIoU": {split: mean_iou(count.sum(1)).tolist() for split, count in counts.items()},
        "boundary": boundary,
        "diagnostics": diagnose_model(predictor, open_split(cell, splits[0]), max(steps)),
    }


def _count(predictor: Any, dataset: Any, steps: list[int], own: int, limit: int | None) -> tuple[Any, Any]:
    """Confusions (depths, images, K, K), and those of all pixels near boundaries after `own` steps (radii, K, K)."""
    from meanshifter.evaluation.confusion import confusion_matrix
    from meanshifter.evaluation.diagnosis import near_boundaries
    from meanshifter.evaluation.evaluate import image_maps

    K, ignore = dataset.labels.num_classes, dataset.labels.ignore
    counts, near = [], 0
    for sample, maps in image_maps(predictor, dataset, steps, limit=limit):
        counts.append([confusion_matrix(sample.labels, each, K, ignore=ignore) for each in maps])
        near = near + near_boundaries(sample.labels, [maps[steps.index(own)]], K, ignore)[0]
    return np.stack(counts, axis=1), near


def open_split(cell: Cell, split: str) -> Any:
    """The data set that a split of the plan names."""
    from meanshifter.data.catalog import open_dataset
    from meanshifter.data.subset import Subset

    data = cell.config.data
    if split != "held_out":
        return open_dataset(data.name, data.root, split, data.layout)
    if data.hold_out is None:
        raise InputError("splits: held_out, but data.hold_out is null; set it to a pattern such as 0006R0_*")
    return Subset(open_dataset(data.name, data.root, data.train_split, data.layout), data.hold_out, matching=True)


def _write_scores(cell: Cell, facts: dict[str, Any]) -> None:
    head = {"format_version": 1, "row": cell.row, "seed": cell.seed}
    write_text(cell.folder / SCORES, dump_json({**head, **facts}, indent=1) + "\n")
