"""Deliberate mistakes in the training code: each must make a test fail.

python benchmarks/faults/mutated_training.py [--only WORD] [--jobs 1] [--list]

Every mistake is put into a copy of the package, never into this one, and the tests that should notice run on the copy
until one fails. Fails, with status 1, where the tests fail without a mistake, where the text that a mistake replaces is
no longer in the code exactly once, or where more than two mistakes go unnoticed; SURVIVORS says why some may.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from training_mistakes import MISTAKES, SURVIVORS, Mistake

ROOT = Path(__file__).resolve().parents[2]
MOST_SURVIVORS, MINUTES = 2, 10
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["lightning_fabric", "numba", "pytest", "safetensors.torch", "tensorboard", "timm", "torch"]
)


@dataclass(frozen=True)
class Outcome:
    """What the tests made of one mistake."""

    mistake: Mistake
    verdict: str
    """noticed, SURVIVED or NOT FOUND."""
    by: str
    """The first test that failed."""

    def row(self) -> str:
        return f"| {self.mistake.file} | {self.mistake.name} | {self.verdict} | {self.by} |"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default="", help="only mistakes in whose file or name this occurs")
    options.add_argument("--jobs", type=int, default=1, help="copies that are tested at a time")
    options.add_argument("--list", action="store_true", help="list the mistakes and leave")
    args = options.parse_args()
    chosen = [mistake for mistake in MISTAKES if args.only in mistake.file or args.only in mistake.name]
    if args.list:
        print("\n".join(f"{mistake.file}: {mistake.name}" for mistake in chosen))
        return 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(args.jobs):
            copies.put(copied(Path(folder) / str(number)))
        sound = copies.get()
        failed = first_failure(sound, sorted({test for mistake in chosen for test in mistake.tests}))
        copies.put(sound)
        if failed is not None:
            print(f"the tests fail without a mistake: {failed}")
            return 1
        print("| file | mistake | verdict | by |\n| --- | --- | --- | --- |", flush=True)
        with ThreadPoolExecutor(args.jobs) as pool:
            outcomes = []
            for outcome in pool.map(lambda mistake: judged(mistake, copies), chosen):
                outcomes.append(outcome)
                print(outcome.row(), flush=True)
    return summarize(outcomes, time.monotonic() - began)


def summarize(outcomes: Sequence[Outcome], seconds: float) -> int:
    count = {verdict: sum(outcome.verdict == verdict for outcome in outcomes) for verdict in ("SURVIVED", "NOT FOUND")}
    print(
        f"\n{len(outcomes)} mistakes, {count['SURVIVED']} survived, {count['NOT FOUND']} not found in the code, "
        f"{seconds / 60:.0f} minutes"
    )
    for outcome in outcomes:
        if outcome.verdict == "SURVIVED":
            print(f"{outcome.mistake.name}: {SURVIVORS.get(outcome.mistake.name, 'NOT EXPLAINED')}")
    return int(count["NOT FOUND"] > 0 or count["SURVIVED"] > MOST_SURVIVORS)


def copied(folder: Path) -> Path:
    """A copy of what the tests need, with the times of its files, so that compiled kernels stay usable."""
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy2(ROOT / "pyproject.toml", folder)
    return folder


def judged(mistake: Mistake, copies: SimpleQueue[Path]) -> Outcome:
    folder = copies.get()
    path = folder / "src" / "meanshifter" / "training" / mistake.file
    whole = path.read_text("utf-8") if path.is_file() else ""
    try:
        if whole.count(mistake.old) != 1:
            return Outcome(mistake, "NOT FOUND", f"{whole.count(mistake.old)} times in the code")
        path.write_text(whole.replace(mistake.old, mistake.new), "utf-8")
        failed = first_failure(folder, mistake.tests)
        path.write_text(whole, "utf-8")
        return Outcome(mistake, "SURVIVED" if failed is None else "noticed", failed or "")
    finally:
        copies.put(folder)


def first_failure(folder: Path, tests: Sequence[str]) -> str | None:
    """The first test that fails in a copy; None: all pass."""
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=run_tests, args=(folder, [f"tests/{test}.py" for test in tests], theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(60 * MINUTES):
            process.kill()
            return f"none within {MINUTES} minutes"
        failed: str | None = ours.recv()
        return failed
    except EOFError:
        return "the process ended"
    finally:
        process.join()


def run_tests(folder: Path, files: Sequence[str], pipe: Connection) -> None:
    """In a process of its own, forked from one that has imported what all tests need."""
    import pytest

    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder / "src")
    sys.path[:0] = [str(folder / "src")]
    sys.dont_write_bytecode = True  # a mistake may have the size and the second of the code that it replaces
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    watch = Watch()
    words = ["-x", "-n", "0", "-p", "no:cacheprovider", "--tb=no", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    status = pytest.main([*words, *files], plugins=[watch])
    pipe.send(None if status == 0 else watch.failed or f"pytest ended with status {int(status)}")


class Watch:
    """A plugin of pytest that remembers the first failure."""

    failed: str | None = None

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._note(report)

    def pytest_collectreport(self, report: Any) -> None:
        self._note(report)

    def _note(self, report: Any) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid


if __name__ == "__main__":
    sys.exit(main())
