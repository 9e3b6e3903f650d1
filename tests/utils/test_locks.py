"""Locks where there is no fcntl, and what is said where no more files can be opened."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from meanshifter.cli.main import main
from meanshifter.errors import InputError, is_out_of_files
from meanshifter.utils.files import TAKEN, lock_file

WINDOWS = """
import sys, types
import meanshifter.data.remote, filelock, multiprocessing.connection, torch  # what they import is their affair
held = set()
def locking(number, mode, count):
    import os
    place = (os.fstat(number).st_ino, os.lseek(number, 0, os.SEEK_CUR))
    if place in held:
        raise OSError(36, "Resource deadlock avoided")
    held.add(place)
sys.modules["fcntl"] = None
sys.modules.pop("meanshifter.utils.files", None)
sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
import errno
errno.EDEADLK = 36
from pathlib import Path
from meanshifter.cli.main import main
from meanshifter.errors import InputError
from meanshifter.jobs.manifest import FORMAT_VERSION
from meanshifter.analysis.study import is_finished
from meanshifter.utils.files import Lock
from meanshifter.utils.files import lock_file
out = Path(sys.argv[1])
first = Lock(out / "run" / ".lock")
first.take("taken")
try:
    Lock(out / "run" / ".lock").take("taken")
except InputError as error:
    print(error)
with (out / "manifest").open("ab+", buffering=0) as file:
    file.write(b"line")
    place = file.tell()
    lock_file(file)
    assert file.tell() == place
assert (out / "manifest").read_bytes() == b"line"
"""


def test_without_fcntl_the_locks_of_windows_are_taken(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WINDOWS, str(tmp_path)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("taken (process ")


@pytest.mark.parametrize("by_process", [False, True])
def test_a_lock_excludes_other_processes_until_it_is_closed(by_process: bool, tmp_path: Path) -> None:
    code = (
        "import sys; from meanshifter.utils.files import TAKEN, lock_file\n"
        f"try: lock_file(open(sys.argv[1], 'a+'), by_process={by_process})\n"
        "except OSError as error: sys.exit(3 if error.errno in TAKEN else 4)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with (tmp_path / "lock").open("a+") as file:
        lock_file(file, by_process=by_process)
        assert subprocess.run(command, timeout=60).returncode == 3
    assert subprocess.run(command, timeout=60).returncode == 0
    assert errno.EAGAIN in TAKEN


def test_errors_that_come_from_too_many_files_are_known() -> None:
    def wrapped(cause: Exception) -> Exception:
        try:
            try:
                raise cause
            except Exception as error:
                raise InputError("x: cannot be read") from error
        except InputError as error:
            return error

    assert is_out_of_files(OSError(errno.EMFILE, "Too many open files", "x"))
    assert is_out_of_files(wrapped(OSError(errno.ENFILE, "File table overflow")))
    assert is_out_of_files(RuntimeError("unable to open shared memory object: Too many open files (24)"))
    assert not is_out_of_files(wrapped(OSError(errno.ENOENT, "No such file")))


@pytest.mark.parametrize("wrap", [False, True])
def test_a_command_that_may_open_no_more_files_says_so(
    wrap: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: object) -> None:
        try:
            raise OSError(errno.EMFILE, "Too many open files", "model.safetensors")
        except OSError as error:
            raise InputError("model.safetensors: cannot be read; copy it again") if wrap else error from error

    monkeypatch.setattr("meanshifter.cli.models.run", run)
    assert main(["models"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("meanshifter: too many open files")
    assert "ulimit -n" in line
