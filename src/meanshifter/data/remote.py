"""Bytes from wherever fsspec reaches: local paths, s3://, gs://, https://, memory://, and the samples of a tar.

A tar is read from its start to its end and never unpacked to disk. An address is a local path or an fsspec address;
a sample of a tar is called SHARD.tar::MEMBER.
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

from meanshifter.data.reading import IMAGE_SUFFIXES
from meanshifter.data.walk import HIDDEN_FILES, PassedOver, ending, is_hidden
from meanshifter.errors import InputError

TAR_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz")
MAX_MEMBER: Final = 2 * 1024**3
"""Bytes; a larger member of a tar is refused, since it would have to be held in memory."""
_PACKAGES: Final = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "az": "adlfs", "abfs": "adlfs"}
_WEB: Final = ("http://", "https://")


def is_address(text: str) -> bool:
    """Whether `text` names a place that needs fsspec, as s3://bucket/a.jpg does, and is not a local path."""
    return "://" in text


def is_web(address: str) -> bool:
    """Whether `address` is that of a web server, which has files and no folders."""
    return address.startswith(_WEB)


def is_tar(address: str) -> bool:
    """Whether `address` names a tar of samples."""
    return base_name(address).lower().endswith(TAR_SUFFIXES)


def is_image(address: str) -> bool:
    """Whether `address` ends as images do."""
    return posixpath.splitext(base_name(address))[1].lower() in IMAGE_SUFFIXES


def base_name(address: str) -> str:
    """What follows the last slash, without a web address's query or the archive that a chained address names."""
    path = address.partition("::")[0] if is_address(address) else address
    path = path.split("?")[0].split("#")[0] if is_web(path) else path
    return posixpath.basename(path.rstrip("/"))


def expand_braces(text: str) -> list[str]:
    """`shard-{000..009}.tar` as ten names, `{train,val}.tar` as two; a text without such braces is itself."""
    parts = re.split(r"\{([^{}]*)\}", text)
    choices = [[part] if i % 2 == 0 else _choices(part) for i, part in enumerate(parts)]
    return ["".join(several) for several in product(*choices)]


def _choices(inside: str) -> list[str]:
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if span:
        first, last = span.groups()
        width = len(first) if len(first) == len(last) or first.startswith("0") else 0
        step = 1 if int(first) <= int(last) else -1
        return [str(i).zfill(width) for i in range(int(first), int(last) + step, step)]
    return inside.split(",") if "," in inside else [f"{{{inside}}}"]


def file_system(address: str) -> tuple[Any, str]:
    """fsspec's file system for `address`, which keeps no listings, and the path there.

    Raises:
        InputError: a protocol that is not known, or whose package is not installed.
    """
    try:
        return fsspec.url_to_fs(address, use_listings_cache=False)  # type: ignore[no-any-return]
    except ImportError as error:
        package = _PACKAGES.get(address.split("://")[0].split("::")[-1])
        remedy = " ".join(str(error).split()) if package is None else f"pip install {package}"
        raise InputError(f"{address}: its protocol needs another package; {remedy}") from error
    except Exception as error:  # what the packages raise about credentials and settings has no common base
        raise _unreadable(address, error) from error


def address_of(files: Any, path: str, given: str) -> str:
    """The address of what `files`, the file system of `given`, calls `path`; chained where `given` is."""
    head, chain, rest = given.partition("::")
    if not chain:
        return str(files.unstrip_protocol(path))
    return f"{head.partition('://')[0]}://{path}::{rest}"


def leads_out(place: str) -> bool:
    """Whether a path with slashes, joined to a folder, may name what is not in it."""
    return place.startswith("/") or ".." in place.split("/")


def read_bytes(address: str) -> bytes:
    """All of one file.

    Raises:
        InputError: it is missing or cannot be read.
    """
    files, path = file_system(address)
    try:
        return bytes(files.cat_file(path))
    except Exception as error:
        raise _unreadable(address, error) from error


def stamp(info: dict[str, Any]) -> tuple[int | None, str | None]:
    """Size in bytes and what else tells one version of a file from the next: its ETag, or when it was changed."""
    for key in ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated"):
        if info.get(key) is not None:
            return info.get("size"), str(info[key]).strip('"')
    return info.get("size"), None


def file_stamp(address: str) -> tuple[int | None, str | None]:
    """As `stamp`, of one file; both None where the place does not tell, and reading will say what is wrong."""
    try:
        files, path = file_system(address)
        return stamp(files.info(path))
    except Exception:
        return None, None


_DOTS: Final = "what follows the first dot of a member's name is its kind, jpg or png; rename it"


@dataclass(frozen=True)
class TarImage:
    """The image of one sample in a tar."""

    key: str
    """Its path in the tar up to the first dot of the file's name, as WebDataset has it."""
    member: str
    """Its path in the tar."""
    size: int
    """Bytes."""
    data: bytes | None
    """None where `skip` wanted it left out."""
    error: str | None = None
    """What is wrong with the sample, without its address."""


def tar_images(
    address: str, skip: Callable[[TarImage], bool] = lambda _: False, passed: PassedOver | None = None
) -> Iterator[TarImage]:
    """The images of a tar of samples in WebDataset form, in order.

    Of a sample with several images, KEY.jpg and a mask KEY.png, the first by `IMAGE_SUFFIXES` is the image; a member
    with more dots, as KEY.seg.png, is none, and a sample of nothing else has an error. Other samples without an image
    are passed over, and so are hidden members, such as the ._KEY.jpg that macOS packs beside each file.

    Args:
        address: the tar, compressed or not.
        skip: says of an image, which it gets without its bytes, whether they are not wanted.
        passed: members that are passed over are added here.

    Raises:
        InputError: the tar is missing or ends early; what was before has been yielded.
    """
    found: TarImage | None = None
    passed = PassedOver() if passed is None else passed
    with _opened(address) as stream, tarfile.open(fileobj=stream, mode="r|*") as tar:
        for member in tar:
            if member.isdir():
                continue
            if (kind := _why_not(member)) is not None:
                passed[kind] += 1
                continue
            key, suffix = _key(member.name)
            if found is not None and key != found.key:
                yield found
                found = None
            if suffix.lower() in IMAGE_SUFFIXES and _comes_before(suffix, found):
                found = _image(tar, member, key, skip)
            elif found is None and is_image(member.name):
                found = TarImage(key, member.name, member.size, None, f"no image of sample {key}: {_DOTS}")
            else:
                passed["further images of a sample" if is_image(member.name) else ending(member.name)] += 1
        if found is not None:
            yield found


def _image(tar: tarfile.TarFile, member: tarfile.TarInfo, key: str, skip: Callable[[TarImage], bool]) -> TarImage:
    name, size = member.name, member.size
    if leads_out(name):
        return TarImage(key, name, size, None, "its name leads out of the output folder; write the tar again")
    if size > MAX_MEMBER:
        return TarImage(key, name, size, None, f"{size:,} bytes, above the {MAX_MEMBER:,} that a member may have")
    image = TarImage(key, name, size, None)
    if skip(image):
        return image
    file = tar.extractfile(member)
    return replace(image, data=b"" if file is None else file.read())


def _why_not(member: tarfile.TarInfo) -> str | None:
    """The kind under which a member is passed over whatever its ending; None: it may be an image."""
    if any(is_hidden(part) for part in member.name.split("/")):
        return HIDDEN_FILES
    return None if member.isfile() else "links or devices"


def _key(member: str) -> tuple[str, str]:
    """A member's key and what follows it, dot included."""
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
    """A file to be read from its start to its end; whatever goes wrong inside is said in one line."""
    files, path = file_system(address)
    try:
        with files.open(path, "rb") as stream:
            yield stream
    except InputError:
        raise
    except (tarfile.TarError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{address}: not a whole tar ({reason}); copy it again") from error
    except Exception as error:
        raise _unreadable(address, error) from error


def _unreadable(address: str, error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    if isinstance(error, FileNotFoundError):
        return InputError(f"{address}: no such file; check the address")
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{address}: cannot be read ({reason}); check the address and your access to it")


def absolute(path: str) -> str:
    """A local path from the root on, as machines of a cluster need it; addresses are their own."""
    return path if is_address(path) else str(Path(path).absolute())
