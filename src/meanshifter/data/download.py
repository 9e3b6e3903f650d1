"""Download files, resume interrupted downloads, check their hashes and unpack archives.

Nothing is written outside the given folder, and an incomplete download or folder never gets its final name.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import shutil
import tarfile
import time
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Any, Final
from urllib.error import HTTPError, URLError

from meanshifter.errors import InputError, summarize_error
from meanshifter.utils.files import temp_sibling, write_text
from meanshifter.utils.progress import ProgressBar

SECONDS: Final = 6.0
"""Time limit of `why_unreachable`, including the name lookup."""
RESERVE: Final = 100_000_000
"""Bytes of the disk that stay free."""
CHUNK: Final = 1 << 20
TIMEOUT: Final = 60
"""Seconds to wait for data."""
FIRST_TIMEOUT = 8.0
"""Seconds to wait for the first response of a server, after which the network is assumed to be down."""
ATTEMPTS: Final = 5
"""Consecutive attempts without progress."""
BACK_OFF = 1.0
"""Seconds before the second attempt, doubled before each further one."""
_TRANSIENT: Final = (408, 425, 429, 500, 502, 503, 504)  # HTTP status codes after which waiting may help


def why_unreachable(url: str, seconds: float = SECONDS) -> str | None:
    """The reason why the server of `url` does not respond; None if it does, whatever the response.

    Asked once before libraries would retry for minutes.
    """
    from huggingface_hub import get_session

    found: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(url, timeout=seconds)
            found.append(None)
        except Exception as error:  # of requests or httpx, whichever the Hub's client uses
            found.append(summarize_error(error))

    thread = Thread(target=ask, daemon=True)  # the name lookup has no time limit
    thread.start()
    thread.join(seconds)
    return found[0] if found else f"no response within {seconds:g} seconds"


def unpack(file: Path, folder: str, target: Path) -> None:
    """Unpack `folder` of a zip or tar archive as `target`, through a temporary folder next to it.

    Raises:
        InputError: the archive is broken, has a member that leads outside or is neither file nor folder, does not fit
            on the disk, or lacks the folder. Nothing is left behind in that case.
    """
    staging = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        room = shutil.disk_usage(target.parent).free - RESERVE
        if zipfile.is_zipfile(file):
            _unpack_zip(file, folder, staging, room)
        else:
            _unpack_tar(file, folder, staging, room)
        if not (staging / folder).is_dir():
            raise InputError(f"{file}: no folder {folder} in the archive")
        (staging / folder).rename(target)
    except InputError:
        raise
    except tarfile.FilterError as error:
        raise InputError(f"{file}: unsafe member, nothing was unpacked ({error})") from error
    except Exception as error:  # of zlib, lzma, struct or the file system
        reason = summarize_error(error)
        raise InputError(f"{file}: broken archive or full disk ({reason}); remove the file and try again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _unpack_zip(file: Path, folder: str, staging: Path, room: int) -> None:
    with zipfile.ZipFile(file) as archive:
        members = [info for info in archive.infolist() if f"{info.filename}/".startswith(f"{folder}/")]
        for info in members:
            path = PurePosixPath(info.filename)
            if path.is_absolute() or ".." in path.parts or "\\" in info.filename or ":" in path.parts[0]:
                raise InputError(f"{file}: unsafe member {info.filename!r}, nothing was unpacked")
            if (info.external_attr >> 16) & 0o170000 == 0o120000:
                raise InputError(f"{file}: unsafe member {info.filename!r} (a link), nothing was unpacked")
        _check_room(file, sum(info.file_size for info in members), room)  # zipfile stops at the stated size
        archive.extractall(staging, members)


def _unpack_tar(file: Path, folder: str, staging: Path, room: int) -> None:
    unpacked = 0

    def wanted(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        nonlocal unpacked
        safe = tarfile.data_filter(member, path)  # rejects devices, and names and links that lead outside
        if not f"{PurePosixPath(safe.name)}/".startswith(f"{folder}/"):
            return None
        if member.issym() or member.islnk():  # a chain of links longer than the limit on paths hides where it ends
            raise InputError(f"{file}: unsafe member {member.name!r} (a link), nothing was unpacked")
        unpacked += safe.size
        _check_room(file, unpacked, room)
        return safe

    with tarfile.open(file) as tar:
        tar.extractall(staging, filter=wanted)


def _check_room(file: Path, size: int, room: int) -> None:
    if size > room:
        raise InputError(f"{file}: unpacks to {size:,} bytes or more, but the disk has room for {max(room, 0):,}")


def fetch_file(url: str, file: Path, digest: str | None = None, published_by: str = "its publisher") -> None:
    """Download `url` as `file`, with a progress bar on standard error; the file appears when it is complete.

    Downloaded bytes are always kept as `FILE.partial`, and the next call resumes there if the server supports it and
    still has the same file (Range and If-Range, RFC 9110); otherwise it starts again.

    Args:
        url: the address.
        file: where the file goes.
        digest: algorithm:hex, of which the hash of the file must have the given digits; other files are deleted.
        published_by: who published the digest, for messages.

    Raises:
        InputError: the server does not respond, connections keep breaking, the disk is full, or the hash differs.
    """
    partial = _Partial(url, file)
    try:
        with ProgressBar(file.name, unit="bytes") as bar:
            _fetch(partial, bar.update)
    except KeyboardInterrupt as stop:
        stop.args = (f"stopped; {partial.size:,} bytes are kept in {partial.path}; run the same command to resume",)
        raise
    if digest is not None and (wrong := _difference(partial.path, digest, url, published_by)) is not None:
        partial.begin(None)
        raise InputError(f"{file}: {wrong}; the download was deleted: try again, or download the file manually")
    partial.path.replace(file)
    partial.notes.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Partial:
    """A partial download and its version."""

    url: str
    file: Path

    @property
    def path(self) -> Path:
        return self.file.with_name(f"{self.file.name}.partial")

    @property
    def notes(self) -> Path:
        """The file that holds the URL and the version."""
        return temp_sibling(self.file, "partial.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def version(self) -> str | None:
        """The ETag or date of the partial download; None if it is unknown."""
        try:
            notes: dict[str, Any] = json.loads(self.notes.read_text("utf-8"))
            return str(notes["version"]) if notes["url"] == self.url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def begin(self, version: str | None) -> None:
        """Delete what was downloaded, and note the version of what follows."""
        self.path.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)
        if version is not None:
            write_text(self.notes, json.dumps({"url": self.url, "version": version}))


_Show = Callable[[int, int | None], object]  # called with the bytes downloaded so far and their total, if it is known


def _fetch(partial: _Partial, show: _Show) -> None:
    """Retry until the file is complete."""
    failures, answered = 0, False
    while True:
        before = partial.size
        try:
            _attempt(partial, show, TIMEOUT if answered else FIRST_TIMEOUT)
            return
        except (OSError, http.client.HTTPException) as error:
            failures = 1 if partial.size > before else failures + 1
            answered |= partial.size > before or isinstance(error, HTTPError | ConnectionResetError)
            if failures >= (ATTEMPTS if answered else 1) or not _is_transient(error):
                reason = summarize_error(error.reason if isinstance(error, URLError) else error)
                kept = f"; {partial.size:,} bytes are kept, run this again to resume" if partial.size else ""
                raise InputError(
                    f"{partial.url}: download failed ({reason}){kept}; or download it some other way and save it as "
                    f"{partial.file}"
                ) from error
        time.sleep(BACK_OFF * 2 ** (failures - 1))


def _attempt(partial: _Partial, show: _Show, timeout: float) -> None:
    headers, start = {"User-Agent": "meanshifter"}, partial.size
    version = partial.version()
    if start and version is not None:
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(partial.url, headers=headers), timeout=timeout)
    except HTTPError as error:
        if error.code != 416:
            raise
        partial.begin(None)  # the file is shorter than the partial download, so it is a different one
        raise ConnectionError("the file has changed") from error
    with answer as source:
        if source.status != 206 or not str(source.headers.get("Content-Range")).startswith(f"bytes {start}-"):
            partial.begin(_version(source.headers))
            start = 0
        rest = source.headers.get("Content-Length")
        total = None if rest is None else start + int(rest)
        _check_free_space(partial, 0 if rest is None else int(rest))
        with partial.path.open("ab") as sink:
            show(start, total)
            while block := source.read(CHUNK):
                sink.write(block)
                show(sink.tell(), total)
        if total is not None and partial.size < total:
            raise ConnectionError(f"connection closed after {partial.size:,} of {total:,} bytes")


def _version(headers: Any) -> str | None:
    """What identifies this version of the file strongly enough to resume its download."""
    tag = headers.get("ETag")
    if tag is not None and not tag.startswith("W/"):
        return str(tag)
    date = headers.get("Last-Modified")
    return None if date is None else str(date)


def _is_transient(error: Exception) -> bool:
    if isinstance(error, HTTPError):
        return error.code in _TRANSIENT
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return False
    return not isinstance(getattr(error, "reason", error), str)  # urllib's reason is a string for an invalid URL


def _check_free_space(partial: _Partial, coming: int) -> None:
    free = shutil.disk_usage(partial.file.parent).free
    if coming > free:
        raise InputError(f"{partial.file}: {coming:,} more bytes to download, but the disk has only {free:,} free")


def check_digest(file: Path, digest: str, url: str, published_by: str) -> None:
    """Check that an existing file has the hash algorithm:hex, which may be its first digits only.

    Raises:
        InputError: the hash differs; the file is kept.
    """
    if (wrong := _difference(file, digest, url, published_by)) is not None:
        raise InputError(f"{file}: {wrong}; remove it and try again, or use it manually if you trust it")


def _difference(file: Path, digest: str, url: str, published_by: str) -> str | None:
    algorithm, _, wanted = digest.partition(":")
    with file.open("rb") as stream:
        got = hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    if got.startswith(wanted):
        return None
    return f"{algorithm} is {got[: len(wanted)]}, but {published_by} lists {wanted}: damaged, or changed at {url}"


@dataclass(frozen=True)
class Archive:
    """The archive of a dataset."""

    url: str
    filename: str
    digest: str
    """Published hash as algorithm:hex, such as md5:6cd6…"""
    published_by: str
    """Who published the digest."""
    folder: str
    """The folder of the archive that is kept, under the last part of its name."""


def fetch_and_unpack(archive: Archive, root: str | Path) -> Path:
    """Download an archive into `root`, check it, unpack it and remove it; returns the dataset's folder.

    An archive that `root` already holds under its own name is checked and used.

    Raises:
        InputError: the folder exists, the server does not respond, the hash differs, or the archive cannot be unpacked.
    """
    root = Path(root)
    target = root / PurePosixPath(archive.folder).name
    if target.exists():
        raise InputError(f"{target}: already exists; use it, or remove it to download it again")
    root.mkdir(parents=True, exist_ok=True)
    file = root / archive.filename
    if file.exists():
        check_digest(file, archive.digest, archive.url, archive.published_by)
    else:
        fetch_file(archive.url, file, archive.digest, archive.published_by)
    unpack(file, archive.folder, target)
    file.unlink()
    return target
