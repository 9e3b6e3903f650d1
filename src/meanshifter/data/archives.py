"""Unpacking archives that others packed: into one folder, within the disk, files and folders only."""

from __future__ import annotations

import os
import shutil
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Final

from meanshifter.errors import InputError

RESERVE: Final = 100_000_000
"""Bytes of the disk that stay free."""


def unpack(file: Path, folder: str, target: Path) -> None:
    """Unpack `folder` of a zip or tar archive as `target`, through a temporary folder beside it.

    Raises:
        InputError: a broken archive, a member that points outside or is no file or folder, more than the disk holds, or
            no such folder in it. Nothing is left behind then.
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
    except Exception as error:  # of zlib, lzma, struct and the file system, as the archive is broken
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{file}: broken archive, or no room for it ({reason}); remove it and try again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _unpack_zip(file: Path, folder: str, staging: Path, room: int) -> None:
    with zipfile.ZipFile(file) as archive:
        members = [info for info in archive.infolist() if f"{info.filename}/".startswith(f"{folder}/")]
        for info in members:
            _refuse_escape(file, info.filename)
            if (info.external_attr >> 16) & 0o170000 == 0o120000:
                raise InputError(f"{file}: unsafe member {info.filename!r} (a link), nothing was unpacked")
        _refuse_larger(file, sum(info.file_size for info in members), room)  # zipfile stops at the size stated
        archive.extractall(staging, members)


def _unpack_tar(file: Path, folder: str, staging: Path, room: int) -> None:
    unpacked = 0

    def wanted(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        nonlocal unpacked
        safe = tarfile.data_filter(member, path)  # refuses ways out, by name or by link, and devices
        if not f"{PurePosixPath(safe.name)}/".startswith(f"{folder}/"):
            return None
        if member.issym() or member.islnk():  # a chain of links longer than a path may be hides where it ends
            raise InputError(f"{file}: unsafe member {member.name!r} (a link), nothing was unpacked")
        unpacked += safe.size
        _refuse_larger(file, unpacked, room)
        return safe

    with tarfile.open(file) as tar:
        tar.extractall(staging, filter=wanted)


def _refuse_larger(file: Path, size: int, room: int) -> None:
    if size > room:
        raise InputError(f"{file}: unpacks to {size:,} bytes or more, but the disk has room for {max(room, 0):,}")


def _refuse_escape(file: Path, name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
        raise InputError(f"{file}: unsafe member {name!r}, nothing was unpacked")
