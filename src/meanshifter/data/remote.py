"""Read files through fsspec (local paths, s3://, gs://, https://, memory://), and the samples of a tar.

A tar is read sequentially and never unpacked to disk. An address is a local path or an fsspec URL; a sample of a tar
has the address SHARD.tar::MEMBER.
"""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import IO, Any, Final

import fsspec

from meanshifter.data.reading import HIDDEN_FILES, IMAGE_SUFFIXES, PassedOver, ending, is_hidden
from meanshifter.errors import InputError, summarize_error

TAR_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz")
MAX_MEMBER: Final = 2 * 1024**3
"""Larger members of a tar, in bytes, are rejected, since they are held in memory."""
_PACKAGES: Final = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "az": "adlfs", "abfs": "adlfs"}
_WEB: Final = ("http://", "https://")


def is_address(text: str) -> bool:
    """Whether `text` is an fsspec URL such as s3://bucket/a.jpg, not a local path."""
    return "://" in text


def is_web(address: str) -> bool:
    """Whether `address` is on a web server, which has files but no folders."""
    return address.startswith(_WEB)


def is_tar(address: str) -> bool:
    """Whether `address` has the extension of a tar."""
    return base_name(address).lower().endswith(TAR_SUFFIXES)


def is_image(address: str) -> bool:
    """Whether `address` has the extension of an image."""
    return posixpath.splitext(base_name(address))[1].lower() in IMAGE_SUFFIXES


def base_name(address: str) -> str:
    """The file name of an address, without the query of a URL or the archive of a chained address."""
    path = address.partition("::")[0] if is_address(address) else address
    path = path.split("?")[0].split("#")[0] if is_web(path) else path
    return posixpath.basename(path.rstrip("/"))


def expand_braces(text: str) -> list[str]:
    """Expand `shard-{000..009}.tar` to ten names and `{train,val}.tar` to two."""
    parts = re.split(r"\{([^{}]*)\}", text)
    choices = [[part] if i % 2 == 0 else _choices(part) for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(inside: str) -> list[str]:
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if span:
        first, last = span.groups()
        width = len(first) if len(first) == len(last) or first.startswith("0") else 0
        step = 1 if int(first) <= int(last) else -1
        return [str(i).zfill(width) for i in range(int(first), int(last) + step, step)]
    return inside.split(",") if "," in inside else [f"{{{inside}}}"]


def file_system(address: str) -> tuple[Any, str]:
    """The fsspec file system of `address`, without a cache of listings, and the path in it.

    Raises:
        InputError: the protocol is unknown, or its package is not installed.
    """
    try:
        return fsspec.url_to_fs(address, use_listings_cache=False)  # type: ignore[no-any-return]
    except ImportError as error:
        package = _PACKAGES.get(address.split("://")[0].split("::")[-1])
        remedy = summarize_error(error) if package is None else f"pip install {package}"
        raise InputError(f"{address}: the protocol needs a package that is not installed; {remedy}") from error
    except Exception as error:  # errors about credentials and settings have no common base class
        raise _unreadable(address, error) from error


def address_of(files: Any, path: str, given: str) -> str:
    """The address of `path` in `files`, the file system of `given`; chained if `given` is."""
    head, chain, rest = given.partition("::")
    if not chain:
        return str(files.unstrip_protocol(path))
    return f"{head.partition('://')[0]}://{path}::{rest}"


def leads_out(place: str) -> bool:
    """Whether a path with slashes, joined to a folder, may lead out of it."""
    return place.startswith("/") or ".." in place.split("/")


def read_bytes(address: str) -> bytes:
    """Read a file.

    Raises:
        InputError: the file is missing or cannot be read.
    """
    files, path = file_system(address)
    try:
        return bytes(files.cat_file(path))
    except Exception as error:
        raise _unreadable(address, error) from error


def stamp(info: dict[str, Any]) -> tuple[int | None, str | None]:
    """The size in bytes, and a version of the file: its ETag, a hash or the time of its last change."""
    for key in ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated"):
        if info.get(key) is not None:
            return info.get("size"), str(info[key]).strip('"')
    return info.get("size"), None


def file_stamp(address: str) -> tuple[int | None, str | None]:
    """The `stamp` of one file; (None, None) if it is not available, in which case reading reports what is wrong."""
    try:
        files, path = file_system(address)
        return stamp(files.info(path))
    except Exception:
        return None, None


@dataclass(frozen=True)
class TarImage:
    """The image of one sample in a tar."""

    key: str
    """Path in the tar up to the first dot of the file name, as in WebDataset."""
    member: str
    """Path in the tar."""
    size: int
    """Size in bytes."""
    data: bytes | None
    """None if `skip` returned True."""
    error: str | None = None
    """What is wrong with the sample, without its address."""


def tar_images(
    address: str, skip: Callable[[TarImage], bool] = lambda _: False, passed: PassedOver | None = None
) -> Iterator[TarImage]:
    """Yield the images of a tar in the WebDataset format, in order.

    If a sample has several images, such as KEY.jpg and a mask KEY.png, the first by `IMAGE_SUFFIXES` is the image. A
    member with more dots, such as KEY.seg.png, is not an image, and a sample with nothing else gets an error. Other
    samples without an image are skipped, and so are hidden members, such as ._KEY.jpg, which macOS adds to each file.

    Args:
        address: the tar, compressed or not.
        skip: called with an image without its bytes; True leaves out the bytes.
        passed: counts of skipped members are added here.

    Raises:
        InputError: the tar is missing or ends early; everything before that point has been yielded.
    """
    found: TarImage | None = None
    passed = PassedOver() if passed is None else passed
    with _opened(address) as stream, tarfile.open(fileobj=stream, mode="r|*") as tar:
        for member in tar:
            if member.isdir():
                continue
            if any(is_hidden(part) for part in member.name.split("/")):
                passed[HIDDEN_FILES] += 1
                continue
            if not member.isfile():
                passed["links or devices"] += 1
                continue
            key, suffix = _key(member.name)
            if found is not None and key != found.key:
                yield found
                found = None
            if suffix.lower() in IMAGE_SUFFIXES and _comes_before(suffix, found):
                found = _image(tar, member, key, skip)
            elif found is None and is_image(member.name):
                error = f"no image of sample {key}: the extension starts at the first dot of a name; rename the member"
                found = TarImage(key, member.name, member.size, None, error)
            else:
                passed["further images of a sample" if is_image(member.name) else ending(member.name)] += 1
        if found is not None:
            yield found


def _image(tar: tarfile.TarFile, member: tarfile.TarInfo, key: str, skip: Callable[[TarImage], bool]) -> TarImage:
    name, size = member.name, member.size
    if leads_out(name):
        return TarImage(key, name, size, None, "its name leads out of the output folder; write the tar again")
    if size > MAX_MEMBER:
        return TarImage(key, name, size, None, f"{size:,} bytes; a member may have at most {MAX_MEMBER:,}")
    image = TarImage(key, name, size, None)
    if skip(image):
        return image
    file = tar.extractfile(member)
    return replace(image, data=b"" if file is None else file.read())


def _key(member: str) -> tuple[str, str]:
    """The key of a member and the rest of its name, including the dot."""
    folder, name = posixpath.split(member.removeprefix("./"))
    key, dot, suffix = name.partition(".")
    return posixpath.join(folder, key), dot + suffix


def _comes_before(suffix: str, found: TarImage | None) -> bool:
    if found is None or found.error is not None:
        return True
    rank = IMAGE_SUFFIXES.index
    return rank(suffix.lower()) < rank(_key(found.member)[1].lower())


@contextmanager
def _opened(address: str) -> Iterator[IO[bytes]]:
    """A file opened for sequential reading; errors within become InputErrors about it."""
    files, path = file_system(address)
    try:
        with files.open(path, "rb") as stream:
            yield stream
    except InputError:
        raise
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{address}: not a complete tar ({summarize_error(error)}); copy it again") from error
    except Exception as error:
        raise _unreadable(address, error) from error


def _unreadable(address: str, error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    if isinstance(error, FileNotFoundError):
        return InputError(f"{address}: no such file; check the address")
    reason = summarize_error(error)
    return InputError(f"{address}: cannot be read ({reason}); check the address and your access to it")


def absolute(path: str) -> str:
    """An absolute local path, as the machines of a cluster need it; URLs are returned unchanged."""
    return path if is_address(path) else str(Path(path).absolute())
