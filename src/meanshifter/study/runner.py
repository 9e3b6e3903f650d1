"""The trainings of a study, several at a time, each in a process of its own; what is finished is never repeated."""

from __future__ import annotations

import multiprocessing as mp
import os
import select
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from filelock import FileLock

from meanshifter.errors import InputError, RunError
from meanshifter.study.plan import Cell
from meanshifter.study.scoring import SCORES, has_scores, is_finished, score_run, write_scores


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
    waiting = [cell for cell in cells if not is_finished(cell, depths, splits)]
    done = len(cells) - len(waiting)
    if done:
        say(f"{done} of {len(cells)} trainings were finished before")
    if again := [cell for cell in waiting if has_scores(cell)]:
        say(
            f"{len(again)} trainings are read out again: their scores are of an earlier version, or lack splits or "
            "numbers of steps that are asked for now"
        )
    threads = threads_of(jobs)
    running: dict[int, tuple[Any, Connection, Cell]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                with signals_held():
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


def process_context() -> Any:
    """How processes of a study start: forked from one that has imported the package, where the system can do so.

    An import takes seconds, and one that has done nothing but import has neither threads nor a GPU to lose.
    """
    if "forkserver" not in mp.get_all_start_methods():
        return mp.get_context("spawn")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["meanshifter.training.loop", "meanshifter.study.scoring"])
    return context


def _start(cell: Cell, depths: Sequence[int], splits: Sequence[str], threads: int) -> tuple[Any, Connection]:
    context = process_context()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(cell, list(depths), list(splits), threads, theirs))
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


def _work(cell: Cell, depths: list[int], splits: list[str], threads: int, pipe: Connection) -> None:
    """In a process of its own: train, score, write, and say in one line how it went."""
    ignore_ctrl_c()
    end_with_study(pipe)
    try:
        import torch

        torch.set_num_threads(threads)
        with _alone(cell.folder):
            said = ("done", _train_and_score(cell, depths, splits))
    except InputError as error:
        said = ("input", str(error))
    except KeyboardInterrupt:
        said = ("stopped", "")
    except Exception as error:
        said = ("error", f"{type(error).__name__}: {error}")
    with suppress(OSError):  # the study has ended meanwhile
        pipe.send(said)


def threads_of(jobs: int) -> int:
    """Threads of each of so many trainings at a time."""
    return max(1, (os.cpu_count() or 1) // jobs)


@contextmanager
def signals_held() -> Iterator[None]:
    """Ctrl-C and SIGTERM take effect after the block; a process started in it does not see Ctrl-C (`ignore_ctrl_c`).

    A process that is being started is thus always noted, and so ended and waited for.
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
            resource_tracker.ensure_running()  # which would end the block, were it started within
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
    """Ctrl-C reaches all processes of a terminal; the study's own stops the others with SIGTERM.

    A training heeds both while it runs, to save first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def end_with_study(pipe: Connection) -> None:
    """End this process once the study is gone, however that ended: nobody can read from `pipe` any more.

    The parent does not tell: it is a server that forks, and lives as long as what it has forked.
    """
    parent, fd = os.getppid(), os.dup(pipe.fileno()) if hasattr(select, "poll") else None

    def watch() -> None:
        if fd is None:  # Windows, which has no server
            while os.getppid() == parent:
                time.sleep(0.2)
        else:
            poll = select.poll()
            poll.register(fd, 0)  # errors alone
            poll.poll()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
    if has_scores(cell) and not resume:
        raise InputError(
            f"{run}: gone, so that the training cannot be read out again; delete {cell.folder / SCORES} to train anew"
        )
    if not resume:
        shutil.rmtree(run, ignore_errors=True)  # a process that ended before the run began
    began = time.perf_counter()
    try:
        train(cell.config, resume=resume, quiet=True)
    except RunError as error:
        write_scores(cell, {"failure": str(error)})
        return f"diverged ({error})"
    facts = score_run(cell, run, depths, splits)
    facts["seconds"] = round(time.perf_counter() - began, 1)
    write_scores(cell, facts)
    own = facts["depths"].index(facts["trained_depth"])
    scores = ", ".join(f"{facts['mIoU'][split][own]:.2f} {split}" for split in splits)
    return f"mIoU {scores} in {facts['seconds']:.0f} s"
