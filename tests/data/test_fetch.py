"""Downloads from a server that cuts connections, changes its files and does not know ranges."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from meanshifter.data import download
from meanshifter.data.download import fetch_file
from meanshifter.errors import InputError

CONTENT = random.Random(0).randbytes(300_000)
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers with `content`, at most `cut` bytes at a time."""

    content, tag = CONTENT, '"one"'
    cut: int | None = None
    ranges = True
    failures: list[int]
    asked: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(self.headers.get("Range"))
        if server.failures:
            self.send_error(server.failures.pop(0))
            return
        start = 0
        asked = self.headers.get("Range")
        if server.ranges and asked is not None and self.headers.get("If-Range") == server.tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        else:
            self.send_response(200)
        self.send_header("ETag", server.tag)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        stop = len(server.content) if server.cut is None else start + server.cut
        self.wfile.write(server.content[start:stop])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "BACK_OFF", 0.001)
    monkeypatch.setattr(download, "CHUNK", 10_000)
    made = Server(("127.0.0.1", 0), Handler)
    made.failures, made.asked = [], []
    thread = threading.Thread(target=made.serve_forever, args=(0.02,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}/a.bin"


def test_cut_connections_are_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.cut = 70_000
    fetch_file(address(server), tmp_path / "a.bin", DIGEST)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.asked == [None, *(f"bytes={k * 70_000}-" for k in range(1, 5))]
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_stopped_download_is_gone_on_with_by_the_next_call(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_check_free_space", _interrupting())
    server.cut = 50_000
    with pytest.raises(KeyboardInterrupt, match=r"50,000 bytes .*a\.bin\.partial"):
        fetch_file(address(server), tmp_path / "a.bin", DIGEST)
    assert not (tmp_path / "a.bin").exists()
    server.cut = None
    fetch_file(address(server), tmp_path / "a.bin", DIGEST)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=50000-"


def _interrupting() -> object:
    calls = []

    def second(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    return second


@pytest.mark.parametrize("change", ["changed", "no ranges"])
def test_a_changed_file_and_a_server_without_ranges_begin_again(server: Server, tmp_path: Path, change: str) -> None:
    server.cut, server.failures = 50_000, []
    with pytest.raises(InputError, match=r"a\.bin: .*50,000 of 300,000 bytes"):
        fetch_file(_without_ranges(server), tmp_path / "a.bin", DIGEST)
    server.cut, server.ranges = None, change == "changed"
    server.tag = '"two"' if change == "changed" else server.tag
    server.content = CONTENT[::-1] if change == "changed" else CONTENT
    fetch_file(address(server), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == server.content


def _without_ranges(server: Server) -> str:
    server.ranges = False
    return address(server)


def test_busy_servers_are_waited_for_and_absent_files_are_not(server: Server, tmp_path: Path) -> None:
    server.failures = [503, 429]
    fetch_file(address(server), tmp_path / "a.bin", DIGEST)
    assert len(server.asked) == 3
    server.failures = [404]
    with pytest.raises(InputError, match=r"a\.bin: .*Not Found"):
        fetch_file(address(server), tmp_path / "b.bin")
    assert len(server.asked) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_silent_server_is_told_soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(download, "FIRST_TIMEOUT", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address, began = f"http://127.0.0.1:{silent.getsockname()[1]}/a.zip", time.monotonic()
        with pytest.raises(InputError, match=rf"{address}: .*timed out.* as .*a\.zip"):
            fetch_file(address, tmp_path / "a.zip")
    assert time.monotonic() - began < 20


def test_another_hash_removes_what_came(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.bin: sha256 is \w{8}, but its publisher lists 00000000"):
        fetch_file(address(server), tmp_path / "a.bin", "sha256:00000000")
    assert not list(tmp_path.iterdir())
    fetch_file(address(server), tmp_path / "a.bin", DIGEST[:15])
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_more_than_the_disk_holds_is_refused_before_it_comes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(InputError, match=r"a\.bin: 300,000 .* 1,000 "):
        fetch_file(address(server), tmp_path / "a.bin")
