"""Run a study, from its plan to its tables."""

from __future__ import annotations

import hashlib
import multiprocessing as mp
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from meanshifter.analysis.findings import Findings
from meanshifter.analysis.study_plan import FORMAT_VERSION, PSEUDO, Cell, Table, set_up
from meanshifter.analysis.study_scores import SCORES, has_scores, is_finished, score_run, scores_of, write_scores
from meanshifter.analysis.study_training import is_begun, train_cell
from meanshifter.analysis.tables import write_tables
from meanshifter.errors import InputError, RunError, counted
from meanshifter.training.stored_config import changed_fields
from meanshifter.utils.environment import describe
from meanshifter.utils.files import write_text

STUDY = "study.yaml"


def run_study(
    study: str,
    out: str | Path | None = None,
    *,
    fields: Sequence[str] = (),
    recipe: str | None = None,
    seeds: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    splits: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    only_table: Table | None = None,
    jobs: int = 1,
    say: Callable[[str], None] = print,
) -> Path:
    """Train and score what is missing of a study, and write its tables; returns its folder.

    The tables include all finished trainings of the plan, also those of earlier calls that are not chosen now.

    Args:
        study: name or YAML file.
        out: folder; None: runs/studies/NAME.
        fields: overrides for all trainings, as on the command line of `meanshifter train`.
        recipe: name or file; None: the study's.
        seeds: seeds of all rows; None: the study's.
        depths: numbers of mean shift steps to evaluate with, in addition to the trained one; None: the study's.
        splits: what is scored; None: the study's, or the recipe's validation split.
        rows: names of rows, or patterns such as "Segmenter*", to train only these; None: all.
        only_table: 1 evaluates models with the trained number of steps only; 2 trains only the rows of the table over
            L'_ms; None: both tables.
        jobs: number of trainings in parallel, which share the CPU cores.
        say: called with a line for each training that ends.

    Raises:
        InputError: an invalid plan or argument, missing data, or a folder of another study, before anything is trained.
        RunError: a training process that ended without a result.
    """
    choices = {"recipe": recipe, "seeds": seeds, "depths": depths, "splits": splits, "rows": rows}
    job = set_up(study, out, fields=fields, only_table=only_table, jobs=jobs, **choices)  # type: ignore[arg-type]
    claim(job.folder, job.cells)
    run_cells(job.chosen, depths=job.depths, splits=job.splits, jobs=jobs, say=say)
    finished = [cell for cell in job.cells if is_finished(cell, job.depths if cell in job.chosen else (), job.splits)]
    write_tables(Findings(job.plan, finished), job.folder, job.tables, {"command": job.command, "machine": describe()})
    return job.folder


def claim(folder: Path, cells: Sequence[Cell]) -> None:
    """Record the trainings of this study in its folder; refuse a folder with other settings for one of them."""
    trained = {}
    for cell in cells:
        trained[f"{cell.row}, seed {cell.seed}"] = facts = cell.config.to_dict()
        for name in ("out", "log_every", "save_every", "devices", "num_nodes"):  # without effect on the result
            del facts[name]
        if cell.teacher is not None:  # which has the same settings, but for this folder
            facts["data"]["extra_train"] = [PSEUDO]
        _make_portable(facts)
    path = folder / STUDY
    if path.is_file():
        try:
            before = yaml.safe_load(path.read_text("utf-8"))["trainings"]
            for facts in before.values():
                _make_portable(facts)
            changed = [key for key, facts in trained.items() if key in before and changed_fields(before[key], facts)]
        except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
            raise InputError(f"{path}: is not a readable study file; choose another folder with --out DIR") from error
        if changed:
            raise InputError(
                f"{folder}: {changed[0]!r} was trained there with other settings; choose another folder with --out DIR"
            )
        trained = {**before, **trained}
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: already exists and is not a study; choose another folder with --out DIR")
    text = yaml.safe_dump({"format_version": FORMAT_VERSION, "trainings": trained}, sort_keys=False)
    write_text(path, text)


def _make_portable(facts: dict[str, Any]) -> None:
    """Leave out where data and weights lie, so that a study goes on elsewhere; weights are known by their content."""
    facts.get("data", {}).pop("root", None)
    weights = facts.get("model", {}).get("encoder_weights")
    if weights is not None and Path(weights).is_file():
        facts["model"]["encoder_weights"] = f"sha256 {_digest(Path(weights))}"


@lru_cache(maxsize=8)
def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_cells(
    cells: Sequence[Cell],
    *,
    depths: Sequence[int],
    splits: Sequence[str],
    jobs: int,
    say: Callable[[str], None] = print,
) -> None:
    """Train and score what is not finished yet, `jobs` in parallel.

    If a process is killed, be it a training's or this one, the next call resumes from the last checkpoint. A training
    whose loss is not finite counts as a result, which its row reports.

    Raises:
        InputError: an error of one training; the others are stopped, and resumed by the next call.
    """
    waiting = [cell for cell in cells if not is_finished(cell, depths, splits)]
    done = len(cells) - len(waiting)
    if done:
        say(f"{done} of {counted(len(cells), 'training')} already finished")
    if again := [cell for cell in waiting if has_scores(cell)]:
        say(
            f"{counted(len(again), 'training')} to score again: the scores are of an earlier version, or lack splits "
            "or numbers of steps that are requested now"
        )
    threads = threads_of(jobs)
    running: dict[int, tuple[Any, Connection, Cell]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                with signals_held():
                    process, pipe = start_process(_work, waiting[0], list(depths), list(splits), threads)
                    running[process.sentinel] = (process, pipe, waiting.pop(0))
            ended = set(wait(list(running)))
            for sentinel in [key for key in running if key in ended]:
                process, pipe, cell = running.pop(sentinel)
                done += 1
                say(f"{done}/{len(cells)}  {cell.row}, seed {cell.seed}: {_outcome(process, pipe, cell)}")
    except KeyboardInterrupt as stop:
        stop.args = ("stopped; resume with the same command",)
        raise
    finally:
        end_processes([process for process, _, _ in running.values()])


def start_process(work: Callable[..., None], *args: Any) -> tuple[Any, Connection]:
    """Start `work(*args, pipe)` in a process; returns it and the receiving end of the pipe.

    Where possible, it is forked from a server that has imported the package: an import takes seconds, and a process
    that has only imported has neither threads nor a GPU that a fork would break.
    """
    context: Any = mp.get_context("spawn")
    if "forkserver" in mp.get_all_start_methods():
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(["meanshifter.training.loop", "meanshifter.analysis.study_scores"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(*args, theirs))
    process.start()
    theirs.close()
    return process, ours


def end_processes(processes: Sequence[Any]) -> None:
    """Terminate processes and wait for them."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


def _outcome(process: Any, pipe: Connection, cell: Cell) -> str:
    """A line on a process that ended, unless it failed, which raises."""
    process.join()
    kind, text = "killed", ""
    if pipe.poll():
        with suppress(EOFError):
            kind, text = pipe.recv()
    if kind == "input":
        raise InputError(f"{cell.row}, seed {cell.seed}: {text}")
    if kind == "stopped":
        raise KeyboardInterrupt
    if kind in ("killed", "error"):
        what = text or f"ended with status {process.exitcode}"
        raise RunError(f"{cell.row}, seed {cell.seed}: {what}; resume with the same command")
    return text


def _work(cell: Cell, depths: list[int], splits: list[str], threads: int, pipe: Connection) -> None:
    """Train and score in a process; sends the outcome and a line on it."""
    ignore_ctrl_c()
    end_with_study(pipe)
    try:
        import torch

        torch.set_num_threads(threads)
        cell.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(cell.folder / "lock"):  # until an earlier process that is ending has released the folder
            sent = ("done", _train_and_score(cell, depths, splits))
    except InputError as error:
        sent = ("input", str(error))
    except KeyboardInterrupt:
        sent = ("stopped", "")
    except Exception as error:
        sent = ("error", f"{type(error).__name__}: {error}")
    with suppress(OSError):  # the study has ended
        pipe.send(sent)


def threads_of(jobs: int) -> int:
    """The number of threads of each of `jobs` parallel trainings, at most OMP_NUM_THREADS."""
    share, limit = max(1, (os.cpu_count() or 1) // jobs), os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(limit)) if limit.isdecimal() and int(limit) > 0 else share


@contextmanager
def signals_held() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until after the block; a process started in it ignores Ctrl-C (`ignore_ctrl_c`).

    A process that is being started is thus always registered, and so ended and waited for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda it, _: came.append(it)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    mask = getattr(signal, "pthread_sigmask", None)  # not on Windows
    try:
        if mask is not None:
            resource_tracker.ensure_running()  # if it were started within the block, it would unblock the signals
            mask(signal.SIG_BLOCK, [signal.SIGINT])
        yield
    finally:
        if mask is not None:
            mask(signal.SIG_UNBLOCK, [signal.SIGINT])
        for number, handler in before.items():
            signal.signal(number, handler)
    for late in came[:1]:
        signal.raise_signal(late)


def ignore_ctrl_c() -> None:
    """Ignore Ctrl-C, which reaches all processes of a terminal; the main process stops the others with SIGTERM.

    During a training both signals are handled, to save a checkpoint first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def end_with_study(pipe: Connection) -> None:
    """End this process once the study has ended in any way: no other process can read from `pipe` any more.

    The parent does not show it: it is the fork server, which lives as long as the processes it has forked.
    """
    parent, fd = os.getppid(), os.dup(pipe.fileno()) if hasattr(select, "poll") else None

    def watch() -> None:
        if fd is None:  # Windows has no fork server
            while os.getppid() == parent:
                time.sleep(0.2)
        else:
            poll = select.poll()
            poll.register(fd, 0)  # errors only
            poll.poll()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _train_and_score(cell: Cell, depths: list[int], splits: list[str]) -> str:
    resumed = is_begun(cell)
    if has_scores(cell) and not resumed:
        raise InputError(
            f"{cell.config.out}: not found, so its training cannot be scored again; delete {cell.folder / SCORES} to "
            "train it again"
        )
    began = time.perf_counter()
    try:
        cpu_seconds = train_cell(cell, splits)
    except RunError as error:
        write_scores(cell, {"failure": str(error)})
        return f"diverged ({error})"
    before = scores_of(cell).get("cpu_seconds") if has_scores(cell) else None
    facts = score_run(cell, depths, splits)
    facts["seconds"] = round(time.perf_counter() - began, 1)
    facts["cpu_seconds"] = before if resumed else round(cpu_seconds, 1)
    write_scores(cell, facts)
    own = facts["depths"].index(facts["trained_depth"])
    scores = ", ".join(f"{facts['mIoU'][split][own]:.2f} {split}" for split in splits)
    return f"mIoU {scores} in {facts['seconds']:.0f} s"
