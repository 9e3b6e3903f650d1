"""The command run as a process, without the seconds that a new interpreter spends on imports.

A server that has imported the package, and has done nothing else, forks once for each command: the process has its own
folder, environment, streams, signals and exit, as one that a shell starts.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

SERVER = """
import gc, json, os, sys
import meanshifter.evaluation, meanshifter.inference.archive, meanshifter.inference.predictor, meanshifter.training.loop
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
sys.exit(main())
"""


def run(
    *words: object, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """`meanshifter WORDS`, with what it printed.

    Raises:
        subprocess.TimeoutExpired: it did not end in time, and was killed.
    """
    given = [str(word) for word in words]
    if not sys.platform.startswith("linux"):  # elsewhere a process that has imported torch cannot be forked
        command = [sys.executable, "-m", "meanshifter", *given]
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=timeout, check=False)
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        place, variables = str(Path.cwd() if cwd is None else cwd), dict(os.environ if env is None else env)
        asked = {"words": given, "cwd": place, "env": variables, "out": str(out), "err": str(err)}
        status = _ask(asked, timeout)
        return subprocess.CompletedProcess(given, status, out.read_text("utf-8"), err.read_text("utf-8"))


def _ask(asked: Mapping[str, object], timeout: float) -> int:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(asked).encode() + b"\n")
    server.stdin.flush()
    child = int(server.stdout.readline())
    in_time = bool(select.select([server.stdout], [], [], timeout)[0])
    if not in_time:
        os.killpg(child, signal.SIGKILL)
    status = int(server.stdout.readline())
    if not in_time:
        raise subprocess.TimeoutExpired(str(asked["words"]), timeout)
    return status


@functools.cache
def _server() -> subprocess.Popen[bytes]:
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    atexit.register(server.kill)
    return server
