"""The command run as a process, without the seconds that a new interpreter spends on imports.

A server that has imported the package, and has done nothing else, forks once for each command: the process has its own
folder, environment, streams, signals and exit, as one that a shell starts.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

SERVER = """
import gc, json, os, sys
import meanshifter.evaluation, meanshifter.jobs.archive, meanshifter.inference.predictor, meanshifter.training.loop
from meanshifter.cli.main import main

gc.freeze()  # a child that ends does not go through what it was born with
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        break
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    os._exit(0)

os.setsid()
for number, path in enumerate((os.devnull, asked["out"], asked["err"])):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), number)
sys.stdin = open(0, encoding="utf-8")
os.chdir(asked["cwd"])
os.environ.clear()
os.environ.update(asked["env"])
sys.argv = ["meanshifter", *asked["words"]]
if asked["code"] is None:
    sys.exit(main())
exec(asked["code"])
"""


_started: list[Running] = []


class Running:
    """A process that was started."""

    def __init__(self, words: Sequence[str], server: subprocess.Popen[bytes], asked: Mapping[str, object]) -> None:
        assert server.stdin is not None
        assert server.stdout is not None
        self._words, self._answers = words, server.stdout
        self.out, self.err = (Path(str(asked[name])) for name in ("out", "err"))
        for path in (self.out, self.err):  # may be read before the process has opened them
            path.touch()
        self.ended = False
        server.stdin.write(json.dumps(asked).encode() + b"\n")
        server.stdin.flush()
        self.pid = int(self._answers.readline())

    def wait(self, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Its status and what it printed; one that does not end in time is killed, with subprocess.TimeoutExpired."""
        in_time = bool(select.select([self._answers], [], [], timeout)[0])
        if not in_time:
            os.killpg(self.pid, signal.SIGKILL)
        status = int(self._answers.readline())
        self.ended = True
        if not in_time:
            raise subprocess.TimeoutExpired(list(self._words), timeout)
        out, err = (path.read_text("utf-8", errors="surrogateescape") for path in (self.out, self.err))
        return subprocess.CompletedProcess(list(self._words), status, out, err)


def start(*words: object, cwd: Path | None = None, code: str | None = None) -> Running:
    """`meanshifter WORDS`, or Python's `code` with these words as its arguments; one at a time."""
    given, folder = [str(word) for word in words], Path(tempfile.mkdtemp(dir=_folder()))
    place, variables = str(Path.cwd() if cwd is None else cwd), dict(os.environ)
    asked = {"words": given, "code": code, "cwd": place, "env": variables}
    if _started and not _started[-1].ended:  # by a test that failed; the answers are read in order
        os.killpg(_started[-1].pid, signal.SIGKILL)
        _started[-1].wait()
    _started.append(Running(given, _server(), {**asked, "out": str(folder / "out"), "err": str(folder / "err")}))
    return _started[-1]


def run(
    *words: object, cwd: Path | None = None, code: str | None = None, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """What `start` begins, from its start to its end."""
    if platform.system() == "Linux":
        return start(*words, cwd=cwd, code=code).wait(timeout)
    # elsewhere a process that has imported torch cannot be forked
    program = ["-m", "meanshifter"] if code is None else ["-c", code]
    command = [sys.executable, *program, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout, check=False)


@functools.cache
def _folder() -> str:
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return folder.name


@functools.cache
def _server() -> subprocess.Popen[bytes]:
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    atexit.register(server.kill)
    return server
