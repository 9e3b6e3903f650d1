"""Files: kinds, atomic writing, locks of two kinds, and safe reading of text, YAML and JSON.

`flock` belongs to an open file: forked processes share it, and the last one to exit releases it. `lockf` (POSIX)
belongs to a process: forked workers do not hold it, and closing any handle of the file releases it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from meanshifter.errors import InputError, summarize_error

if TYPE_CHECKING:
    from yaml import Node, SafeLoader


LONGEST_NAME: Final = 255
"""Maximum bytes of a file name on common file systems."""


def require_file(path: str | Path) -> None:
    """Raise an InputError unless `path` is a regular file or a link to one; reading a pipe or device may never end."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 (links are followed)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:  # link loops, missing permission; null bytes in the name
        reason = summarize_error(error)
        raise InputError(f"{path}: cannot be read ({reason}); check the path") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{path}: is a folder; expected a file")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: is a pipe, socket or device; expected a regular file")


def temp_sibling(path: Path, kind: str) -> Path:
    """A hidden temporary name in the folder of `path`, within the length limit of file names."""
    name = f".{path.name}.{kind}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}.{kind}"
    return path.with_name(name)


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a temporary file and rename it to `path`, replacing an old file; creates folders.

    Raises:
        InputError: the file cannot be written; nothing is left behind.
    """
    write_all_or_none({Path(path): write})


def write_all_or_none(contents: Mapping[Path, Callable[[IO[bytes]], object]]) -> None:
    """As `write_atomically`, for several files: if one cannot be written, all keep their old content."""
    parts = {path: [temp_sibling(path, f"{os.getpid()}.{kind}") for kind in ("tmp", "old")] for path in contents}
    path, ready = next(iter(contents)), False
    try:
        for path, write in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with parts[path][0].open("wb") as file:
                write(file)
        for path in list(parts)[:-1]:  # replacing the last one completes the write
            if path.exists():
                shutil.copy2(path, parts[path][1])
        ready = True
        for path, (temporary, _) in parts.items():
            temporary.replace(path)
    except BaseException as error:
        replaced = [path for path, (temporary, _) in parts.items() if ready and not temporary.exists()]
        for done in replaced if len(replaced) < len(parts) else ():
            old = parts[done][1]
            old.replace(done) if old.exists() else done.unlink()
        if not isinstance(error, OSError):
            raise
        raise _unwritable(path, error) from error
    finally:
        for left in (left for pair in parts.values() for left in pair):
            with suppress(OSError):  # missing after success, or if the folder could not be created
                left.unlink()


def _unwritable(path: str | Path, error: OSError) -> InputError:
    reason = summarize_error(error)
    return InputError(f"{path}: cannot be written ({reason}); choose a place with free space and write access")


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically; undecodable bytes of file names are escaped."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def require_replaceable(path: str | Path) -> Path:
    """The folder at `path`, with links resolved, if it can be replaced by renaming another folder.

    Raises:
        InputError: it is the current folder, a mount point, or a loop of links.
    """
    try:
        found = Path(path).resolve()
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be resolved ({error}); choose another folder") from error
    if found == Path.cwd():
        raise InputError(f"{path}: is the current folder, which cannot be replaced; choose a folder in it")
    if found.is_mount():
        raise InputError(f"{path}: is a mount point, which cannot be replaced; choose a folder in it")
    return found


@contextmanager
def replace_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder that replaces `path` at the end, unless the block raises.

    If `path` is a link, the folder it points to is replaced.

    Raises:
        InputError: the folder cannot be created, filled or renamed; nothing is left behind, and the old one is kept.
    """
    place = require_replaceable(path)
    temporary, old = (temp_sibling(place, f"{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if place.exists():
            place.replace(old)
        temporary.replace(place)
    except OSError as error:
        if not (error.filename is None or str(error.filename).startswith((str(temporary), str(place)))):
            raise  # from a file that the block read
        raise _unwritable(path, error) from error
    finally:
        if old.exists() and not place.exists():
            old.replace(place)
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)


_IMAGE: Final = "expected a model here; pass images as images"
_BEGINNINGS: Final = (
    (b"\xff\xd8\xff", "a JPEG image", _IMAGE),
    (b"\x89PNG", "a PNG image", _IMAGE),
    (b"II*\x00", "a TIFF image", _IMAGE),
    (b"MM\x00*", "a TIFF image", _IMAGE),
    (b"version https://git-lfs", "a Git LFS pointer", "download the file itself with `git lfs pull`"),
    (b"\x1f\x8b", "compressed", "unpack it with gunzip"),
    (b"<", "a web page", "download the file itself, logged in if necessary"),
)
_SUFFIXES: Final = {
    ".onnx": ("an ONNX model", "use the folder written by `meanshifter export`"),
    ".xml": ("an OpenVINO model", "use the folder written by `meanshifter export`"),
    ".py": ("a configuration", "use the checkpoint that was trained with it"),
    ".yml": ("a configuration", "use the checkpoint next to it"),
    ".yaml": ("a configuration", "use the checkpoint next to it"),
    ".json": ("a configuration", "use the folder of a complete model"),
}
_SAFETENSORS: Final = (
    "a safetensors file without the config.json of a MeanShifter model",
    "pass encoder weights as `encoder_weights`, with the suffix .safetensors",
)


def other_kind(path: Path) -> tuple[str, str] | None:
    """What a file is that was not written by `torch.save`, and a remedy; None if it may have been."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "empty", "copy it again"
    if path.suffix.lower() in _SUFFIXES:
        return _SUFFIXES[path.suffix.lower()]
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return _SAFETENSORS
    return next((found[1:] for found in _BEGINNINGS if head.lstrip().startswith(found[0])), None)


_posix: Any
try:
    _posix = import_module("fcntl")
except ImportError:  # Windows
    _posix = None

TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
"""Error numbers that mean that a lock is taken."""
_FAR = 2**30
"""Offset of the locked byte on Windows, beyond all content, since a locked byte cannot be read or written."""


def lock_file(file: IO[Any], *, by_process: bool = False) -> None:
    """Lock `file` until it is closed; others can still read and write it.

    Args:
        file: an open file.
        by_process: the process owns the lock, not the open file: forked processes do not keep it alive, and the process
            may take it twice.

    Raises:
        OSError: the lock is taken (`TAKEN`), or the file system has no locks.
    """
    if _posix is not None:
        (_posix.lockf if by_process else _posix.flock)(file, _posix.LOCK_EX | _posix.LOCK_NB)
        return
    msvcrt: Any = import_module("msvcrt")
    before = file.tell()
    file.seek(_FAR)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    finally:
        file.seek(before)


class Lock:
    """A lock on a file that belongs to the process, so that forked workers do not keep it alive after a kill."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def take(self, refusal: str) -> None:
        """Take the lock, and record its owner in the file.

        Raises:
            InputError: another process has the lock, with a message that starts with `refusal`; or the folder cannot be
                created.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise _unwritable(self.path.parent, error) from error
        try:
            lock_file(file, by_process=True)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip()
            file.close()
            if error.errno in TAKEN:
                raise InputError(f"{refusal} ({holder}); wait until it exits, or choose another --out") from error
            return  # the file system has no locks
        if not self._exists(file):  # its owner removed it between opening and locking
            file.close()
            self.take(refusal)
            return
        with suppress(OSError):  # the owner is only informative
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        self._file = file

    def _exists(self, file: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def drop(self) -> None:
        """Release the lock and remove its file."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None


LARGEST_YAML: Final = 256 * 1024
"""Bytes; recipes have 1 or 2 thousand, and the parser takes a second for half a million."""
LARGEST: Final = 10_000_000
"""Bytes of JSON and of lists."""
LARGEST_EXPANSION: Final = 100_000
"""Values of a YAML file after expanding all aliases."""


def read_text(path: str | Path, largest: int = LARGEST) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        InputError: the file is missing, not a regular file, larger than `largest` bytes, or not text.
    """
    path = Path(path)
    require_file(path)
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({summarize_error(error)}); check its permissions") from error
    if len(content) > largest:
        raise InputError(f"{path}: larger than {largest:,} bytes; check that this is the right file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error


def parse_json(text: str, source: object) -> Any:
    """The values in `text`; an InputError that names `source` if it is invalid or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InputError(f"{source}: invalid JSON (nested too deeply)") from error
    except ValueError as error:  # also for numbers with thousands of digits
        raise InputError(
            f"{source}: invalid JSON ({summarize_error(error)}); correct the file or restore a copy"
        ) from error


def dump_json(value: Any, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """`value` as strict JSON: numbers that are not finite become null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def parse_yaml(text: str, source: object, loader: type[SafeLoader] | None = None) -> Any:
    """The plain values in `text`; tags that construct other objects are rejected.

    Raises:
        InputError: the YAML is invalid, longer than `LARGEST_YAML`, nested too deeply, or its aliases explode.
    """
    import yaml

    if len(text) > LARGEST_YAML:
        raise InputError(f"{source}: more than {LARGEST_YAML:,} characters of YAML; check that this is the right file")
    try:
        reader = (loader or yaml.SafeLoader)(text)
        try:
            node = reader.get_single_node()
            if node is None:
                return None
            _expansion(node, {}, source)
            return reader.construct_document(node)
        finally:
            reader.dispose()
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(f"{source}: invalid YAML (nested too deeply)") from error
    except Exception as error:  # PyYAML also raises errors of int, datetime and dict
        raise InputError(f"{source}: not YAML with plain values ({summarize_error(error)}); correct it") from error


def _expansion(node: Node, known: dict[int, int], source: object) -> int:
    """Number of values of a node after expanding all aliases; a loop exceeds every limit."""
    from yaml import CollectionNode

    if not isinstance(node, CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = LARGEST_EXPANSION  # while in progress: if met again, it contains itself
        parts = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_expansion(part, known, source) for part in parts)
        if known[id(node)] > LARGEST_EXPANSION:
            raise InputError(
                f"{source}: its aliases expand to more than {LARGEST_EXPANSION:,} values, or contain themselves; write "
                "the values out"
            )
    return known[id(node)]
