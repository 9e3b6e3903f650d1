"""Archives from the web: fetched, checked against their published hash, unpacked into place.

Nothing is written outside the folder named, and a half-finished download or folder never gets its final name.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final
from urllib.error import URLError

from meanshifter.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK: Final = 1 << 20
TIMEOUT: Final = 60
"""Seconds without an answer."""


@dataclass(frozen=True)
class Archive:
    """Where a data set is fetched from, and what must come."""

    url: str
    filename: str
    digest: str
    """algorithm:hex, such as md5:6cd6…, as published."""
    published_by: str
    """Who lists the digest."""
    folder: str
    """The folder inside the archive that is kept; its last part is its name afterwards."""


def fetch_and_unpack(archive: Archive, root: str | Path) -> Path:
    """Download into `root`, check, unpack, and remove the archive; returns the data set's folder.

    An archive that already lies in `root` under its own name is checked and used.

    Raises:
        InputError: the folder exists, the address does not answer, the hash differs, or a member points outside.
    """
    root = Path(root)
    target = root / PurePosixPath(archive.folder).name
    if target.exists():
        raise InputError(f"{target}: exists already; use it, or remove it to download it again")
    root.mkdir(parents=True, exist_ok=True)
    file = root / archive.filename
    if not file.exists():
        fetch_file(archive.url, file)
    _check(file, archive)
    unpack(file, archive.folder, target)
    file.unlink()
    return target


def fetch_file(url: str, file: Path) -> None:
    """Download `url` as `file`, with a bar on standard error; the name appears when the file is whole.

    Raises:
        InputError: the address does not answer, or the connection ends before the file does.
    """
    partial = file.with_name(file.name + ".partial")
    request = urllib.request.Request(url, headers={"User-Agent": "meanshifter"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as source, partial.open("wb") as sink:
            total = int(source.headers.get("Content-Length") or 0)
            _copy(source.read, sink.write, total, file.name)
        partial.replace(file)
    except (URLError, TimeoutError, ConnectionError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise InputError(
            f"{url}: not fetched ({reason}); fetch it another way, save it as {file} and run this again"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _copy(read: Callable[[int], bytes], write: Callable[[bytes], int], total: int, title: str) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    done = 0
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total or None)
        while block := read(CHUNK):
            write(block)
            done += len(block)
            progress.update(task, advance=len(block))
    if done < total:
        raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")


def _check(file: Path, archive: Archive) -> None:
    algorithm, _, wanted = archive.digest.partition(":")
    with file.open("rb") as stream:
        got = hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    if got != wanted:
        raise InputError(
            f"{file}: {algorithm} is {got}, but {archive.published_by} lists {wanted}; the file is damaged or has "
            f"changed at {archive.url}; remove it and try again, or unpack it by hand if you trust it"
        )


def unpack(file: Path, folder: str, target: Path) -> None:
    """Unpack `folder` of a zip or tar archive as `target`, through a temporary folder beside it.

    Raises:
        InputError: a broken archive, a member that points outside, or no such folder in it.
    """
    staging = target.with_name(f".{target.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                members = [name for name in archive.namelist() if f"{name}/".startswith(f"{folder}/")]
                for name in members:
                    _refuse_escape(file, name)
                archive.extractall(staging, members)
        else:
            with tarfile.open(file) as tar:
                tar.extractall(staging, filter="data")
        if not (staging / folder).is_dir():
            raise InputError(f"{file}: no folder {folder} in the archive")
        (staging / folder).rename(target)
    except tarfile.FilterError as error:
        raise InputError(f"{file}: unsafe member, nothing was unpacked ({error})") from error
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise InputError(f"{file}: broken archive ({error}); remove it and try again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _refuse_escape(file: Path, name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
        raise InputError(f"{file}: unsafe member {name!r}, nothing was unpacked")
