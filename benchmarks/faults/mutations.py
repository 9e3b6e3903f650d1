"""Broken files: every reading call ends in a result or an InputError, soon, small, and without a trace elsewhere.

python benchmarks/faults/mutations.py [--count 1000] [--seed 0] [--commands 20] [--only KIND] [--keep DIR]

Files are broken by flipped bits, truncation, exchanged headers, spliced blocks, numbers in places of lengths and,
where they are text, values of other kinds, tags and bombs. A case is a function of (seed, kind, number). Fails, with
status 1, where anything but an InputError is raised, a call takes more than 10 s, the process grows by more than 500 MB
over where it stood, or a file appears outside the case's folder. With --commands, so many cases also go through the
`meanshifter` command, whose status must be 0 or 2, with one line on standard error at most.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

SECONDS, GROWTH = 10, 500_000_000


class Hang(BaseException):
    """More than SECONDS; no Exception, so that no reader takes it for its own."""


@dataclass
class Tally:
    """What became of the cases of one kind."""

    read: int = 0
    refused: int = 0
    slowest: float = 0.0
    growth: int = 0
    faults: list[str] = field(default_factory=list)

    def row(self, name: str) -> str:
        cases = self.read + self.refused + len(self.faults)
        return (
            f"| {name} | {cases:,} | {self.read:,} | {self.refused:,} | {len(self.faults)} | {self.slowest:.2f} | "
            f"{self.growth / 1e6:.0f} |"
        )


def broken(subject: object, seed: int, number: int, others: list[bytes]) -> bytes:
    from mutators import mend_checksums
    from subjects import Subject

    assert isinstance(subject, Subject)
    rng = random.Random(f"{seed} {crc32(subject.name.encode())} {number}")
    content = rng.choice(list(subject.wholes))
    for way in rng.choices(subject.ways, k=rng.choice((1, 1, 1, 2, 3))):
        content = way(content, rng, others) or b"\0"
    return mend_checksums(content) if rng.random() < 0.5 else content


@contextmanager
def limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(3 * SECONDS, exit=True)  # for what never comes back from C
    try:
        yield
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()


def in_time(read: Callable[[], object]) -> None:
    """Reads; twice where the first time is too long, as another process may have kept the machine busy."""
    try:
        with limited():
            read()
    except Hang:
        with limited():
            read()


def memory(name: str) -> int:
    """Bytes of the process: VmRSS now, or VmHWM at most since `forget_peak`."""
    with open("/proc/self/status") as file:  # noqa: PTH123
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:"))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def tree(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def run_case(subject: object, content: bytes, folder: Path, tally: Tally, label: str) -> None:
    from subjects import Subject

    from meanshifter.errors import InputError

    assert isinstance(subject, Subject)
    path = subject.place(folder, content)
    before, began = memory("VmRSS"), time.process_time()
    forget_peak()
    fault = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            in_time(lambda: subject.read(path))
        tally.read += 1
    except InputError as error:
        fault = "an empty or multi-line message" if not str(error).strip() else None
        tally.refused += fault is None
    except Hang:
        fault = f"more than {SECONDS} s"
    except BaseException as error:  # the point of it all
        fault = f"{type(error).__name__}: {error}"
    tally.slowest = max(tally.slowest, time.process_time() - began)
    grown = memory("VmHWM") - before
    tally.growth = max(tally.growth, grown)
    if fault is None and grown > GROWTH:
        fault = f"grew by {grown / 1e6:.0f} MB"
    if fault is not None:
        tally.faults.append(f"{label}: {' '.join(fault.split())[:300]}")


def through_command(subject: object, content: bytes, root: Path, label: str) -> str | None:
    from subjects import Subject

    assert isinstance(subject, Subject)
    folder, out = root / "case", root / "out"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    path = subject.place(folder, content)
    before = tree(root)
    words = [word.format(file=path, folder=folder, out=out) for word in subject.command]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "meanshifter", *words], capture_output=True, text=True, timeout=120, cwd=root / "cwd"
        )
    except subprocess.TimeoutExpired:
        return f"{label}: `{' '.join(words)}` took more than 120 s"
    lines = done.stderr.splitlines()
    said = f"status {done.returncode}, standard error {done.stderr[-300:]!r}"
    right = (done.returncode == 0 and len(lines) <= 1) or (done.returncode == 2 and len(lines) == 1)
    if not right or any(word in done.stderr + done.stdout for word in ("Traceback", "internal error")):
        return f"{label}: `{' '.join(words)}`: {said}"
    strays = [name for name in tree(root) - before if not name.startswith(str(out))]
    return f"{label}: wrote {strays[:3]}" if strays else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", type=int, default=20)
    parser.add_argument("--only", help="the kinds whose name contains this")
    parser.add_argument("--keep", type=Path, help="put the files of failing cases there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for name in ("cwd", "home", "tmp", "store"):
            (root / name).mkdir()
        os.chdir(root / "cwd")
        os.environ.update(HF_HOME=str(root / "home"), TMPDIR=str(root / "tmp"), HF_HUB_OFFLINE="1")
        tempfile.tempdir = str(root / "tmp")
        return run(args, root)


def run(args: argparse.Namespace, root: Path) -> int:
    import subjects
    import torch

    from meanshifter.errors import InputError

    torch.set_num_threads(1)
    kinds = [kind for kind in subjects.subjects(root / "store") if args.only is None or args.only in kind.name]
    others = [whole for kind in kinds for whole in kind.wholes]
    for kind in kinds:  # what is compiled and imported once is not a case's growth
        for whole in kind.wholes:
            with suppress(InputError):
                kind.read(kind.place(root / "case", whole))
            shutil.rmtree(root / "case")
    before, tallies = tree(root), {kind.name: Tally() for kind in kinds}
    for number in range(args.count):
        kind = kinds[number % len(kinds)]
        label = f"--only {kind.name!r} seed {args.seed} number {number // len(kinds)}"
        content = broken(kind, args.seed, number // len(kinds), others)
        tally = tallies[kind.name]
        known = len(tally.faults)
        run_case(kind, content, root / "case", tally, label)
        shutil.rmtree(root / "case")
        strays = tree(root) - before
        if strays:
            tally.faults.append(f"{label}: wrote {sorted(strays)[:3]}")
            before |= strays
        if len(tally.faults) > known and args.keep is not None:
            args.keep.mkdir(parents=True, exist_ok=True)
            (args.keep / f"{kind.name.replace(' ', '_')}_{number}").write_bytes(content)
    print("| kind | cases | read | refused | faults | slowest, CPU s | growth MB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, tally in tallies.items():
        print(tally.row(name))
    faults = [fault for tally in tallies.values() for fault in tally.faults]
    offered = [kind for kind in kinds if kind.command]
    for number in range(args.commands):
        kind = offered[number % len(offered)]
        content = broken(kind, args.seed, 1_000_000 + number, others)
        fault = through_command(kind, content, root, f"command {number}, {kind.name}")
        faults += [] if fault is None else [fault]
    print(f"\n{args.count:,} cases, {args.commands} through the command: {len(faults)} faults")
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
