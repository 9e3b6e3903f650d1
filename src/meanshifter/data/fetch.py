"""One file over HTTP: gone on with where a connection was cut, and checked before it gets its name."""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError, URLError

from meanshifter.errors import InputError
from meanshifter.files import beside, write_text

CHUNK: Final = 1 << 20
TIMEOUT: Final = 60
"""Seconds without an answer."""
FIRST_TIMEOUT = 8.0
"""Seconds without the first answer of a server, after which the network is taken to be missing."""
ATTEMPTS: Final = 5
"""In a row, without a byte more."""
BACK_OFF = 1.0
"""Seconds before the second attempt; twice as many before each further one."""
_PASSING: Final = (408, 425, 429, 500, 502, 503, 504)
"""Answers after which it may help to wait."""


def fetch_file(url: str, file: Path, digest: str | None = None, published_by: str = "its publisher") -> None:
    """Download `url` as `file`, with a bar on standard error; the name appears when the file is whole.

    What has come is kept as `FILE.partial` whatever happens, and the next call goes on from there if the server can and
    has the same file still (Range and If-Range, RFC 9110); otherwise it begins again.

    Args:
        url: the address.
        file: where it goes.
        digest: algorithm:hex that the file, or its first digits that the hash, must have; a file of another is removed.
        published_by: who says so.

    Raises:
        InputError: the address does not answer, connections keep ending before the file does, the disk is full, or the
            hash is another one.
    """
    partial = Partial(url, file)
    try:
        with _bar(file.name) as show:
            _fetch(partial, show)
    except KeyboardInterrupt as stop:
        stop.args = (f"stopped; {partial.size:,} bytes are kept as {partial.path}, the same command goes on",)
        raise
    if digest is not None:
        _check_fetched(partial, digest, published_by)
    partial.path.replace(file)
    partial.notes.unlink(missing_ok=True)


@dataclass(frozen=True)
class Partial:
    """What has come of a file, and which version of it."""

    url: str
    file: Path

    @property
    def path(self) -> Path:
        """The bytes."""
        return self.file.with_name(f"{self.file.name}.partial")

    @property
    def notes(self) -> Path:
        """The address and the version."""
        return beside(self.file, "partial.json")

    @property
    def size(self) -> int:
        """Bytes that have come."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def version(self) -> str | None:
        """The ETag or date of what has come; None where it is not known."""
        try:
            notes: dict[str, Any] = json.loads(self.notes.read_text("utf-8"))
            return str(notes["version"]) if notes["url"] == self.url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def begin(self, version: str | None) -> None:
        """Forget what has come."""
        self.path.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)
        if version is not None:
            write_text(self.notes, json.dumps({"url": self.url, "version": version}))


Show = Callable[[int, int | None], object]
"""Told the bytes that are there and their total, as far as it is known."""


def _fetch(partial: Partial, show: Show) -> None:
    """Attempts until the file is whole."""
    failures, answered = 0, False
    while True:
        before = partial.size
        try:
            _attempt(partial, show, TIMEOUT if answered else FIRST_TIMEOUT)
            return
        except (OSError, http.client.HTTPException) as error:
            failures = 1 if partial.size > before else failures + 1
            answered |= partial.size > before or isinstance(error, HTTPError | ConnectionResetError)
            if failures >= (ATTEMPTS if answered else 1) or not _may_pass(error):
                raise _failure(partial, error) from error
        time.sleep(BACK_OFF * 2 ** (failures - 1))


def _attempt(partial: Partial, show: Show, timeout: float) -> None:
    headers, start = {"User-Agent": "meanshifter"}, partial.size
    version = partial.version()
    if start and version is not None:
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(partial.url, headers=headers), timeout=timeout)
    except HTTPError as error:
        if error.code != 416:
            raise
        partial.begin(None)  # the file is shorter than what has come: another one
        raise ConnectionError("the file has changed") from error
    with answer as source:
        if source.status != 206 or not str(source.headers.get("Content-Range")).startswith(f"bytes {start}-"):
            partial.begin(_version(source.headers))
            start = 0
        rest = source.headers.get("Content-Length")
        total = None if rest is None else start + int(rest)
        _refuse_full(partial, 0 if rest is None else int(rest))
        with partial.path.open("ab") as sink:
            show(start, total)
            while block := source.read(CHUNK):
                sink.write(block)
                show(sink.tell(), total)
        if total is not None and partial.size < total:
            raise ConnectionError(f"the connection ended after {partial.size:,} of {total:,} bytes")


def _version(headers: Any) -> str | None:
    """What tells this file from an earlier or later one of its address, strongly enough to go on with it."""
    tag = headers.get("ETag")
    if tag is not None and not tag.startswith("W/"):
        return str(tag)
    date = headers.get("Last-Modified")
    return None if date is None else str(date)


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HTTPError):
        return error.code in _PASSING
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return False
    refused = getattr(error, "reason", error)
    return not isinstance(refused, str)  # urllib's own words: of addresses that are none


def _failure(partial: Partial, error: Exception) -> InputError:
    reason = " ".join(str(error.reason if isinstance(error, URLError) else error).split())
    kept = f"; {partial.size:,} bytes are kept, and running this again goes on from there" if partial.size else ""
    return InputError(
        f"{partial.url}: not fetched ({reason}){kept}; or fetch it another way and save it as {partial.file}"
    )


def _refuse_full(partial: Partial, coming: int) -> None:
    free = shutil.disk_usage(partial.file.parent).free
    if coming > free:
        raise InputError(f"{partial.file}: {coming:,} bytes are to come, and the disk has {free:,}; make room for it")


def _check_fetched(partial: Partial, digest: str, published_by: str) -> None:
    wrong = _difference(partial.path, digest, partial.url, published_by)
    if wrong is not None:
        partial.begin(None)
        raise InputError(f"{partial.file}: {wrong}; what came is removed: try again, or fetch it by hand")


def check_digest(file: Path, digest: str, url: str, published_by: str) -> None:
    """Make sure that a file that lies there has the hash algorithm:hex, of which the first digits will do.

    Raises:
        InputError: it has another one; the file is left alone.
    """
    if (wrong := _difference(file, digest, url, published_by)) is not None:
        raise InputError(f"{file}: {wrong}; remove it and try again, or use it by hand if you trust it")


def _difference(file: Path, digest: str, url: str, published_by: str) -> str | None:
    algorithm, _, wanted = digest.partition(":")
    with file.open("rb") as stream:
        got = hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    if got.startswith(wanted):
        return None
    return f"{algorithm} is {got[: len(wanted)]}, but {published_by} lists {wanted}: damaged, or changed at {url}"


@contextmanager
def _bar(title: str) -> Iterator[Show]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(escape(title), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
