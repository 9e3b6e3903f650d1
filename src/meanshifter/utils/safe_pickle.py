"""Read untrusted `.pth` files, which are pickles, without running code from them.

torch's restricted unpickler allows tensors and plain containers, and rejects everything else by name. A few more names
that training frameworks store next to the weights become stubs, whose values are lost.

torch reads archives in its own way: it ignores the case of names, takes the first of two equal names, and looks for the
directory where Python does not. The files that are read must be the files that were checked.
"""

from __future__ import annotations

import io
import mmap
import pickle
import re
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, cast

from meanshifter.errors import InputError
from meanshifter.utils.files import other_kind, require_file
from meanshifter.utils.pickle_sizes import PICKLES, Refused, TorchCalls, Walk, is_harmless, names_asked

if TYPE_CHECKING:
    pass


class _PickleStub:
    """Stands in for an object that is not needed: accepts any arguments and state, and keeps none."""

    def __new__(cls, *_: Any) -> _PickleStub:
        """Ignore all arguments."""
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __repr__(self) -> str:
        return "an object that was not read"


STAND_INS = (
    "argparse.Namespace",
    "builtins.getattr",
    "mmengine.logging.history_buffer.HistoryBuffer",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float64", "Float32", "Int64", "Int32", "Bool")),
)
"""Names that become a `_PickleStub`: what DeiT and MMEngine store next to the weights.

Even `builtins.getattr`, which pickles members of enumerations, is a stub and looks nothing up.
"""


def read_pickle(path: str | Path) -> Any:
    """Read a `torch.save` file to the CPU.

    Raises:
        InputError: the file is missing or damaged, or asks for anything but tensors, containers and `STAND_INS`; the
            message names what it asked for, and nothing of it was run.
    """
    import torch

    path = Path(path)
    require_file(path)
    with suppress(OSError):  # reported by torch
        if (kind := other_kind(path)) is not None:
            raise InputError(f"{path}: {kind[0]}, not a file of torch.save; {kind[1]}")
    _refuse_unsafe(path)
    # one class each, since torch looks them up by identity
    allowed: list[Any] = [(type(name, (_PickleStub,), {}), name) for name in STAND_INS]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols that torch.save does not use
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        raise _refusal(path, f"it asks for {asked[1]}" if asked else "it is not a file of torch.save") from error
    except Exception as error:  # torch raises various errors for damaged files
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    text = str(error).rpartition("WeightsUnpickler error: ")[2].split("Check the documentation")[0]
    reason = " ".join(text.split()).split(". ")[0][:120]  # without torch's advice
    return InputError(
        f"{path}: cannot be read as a file of torch.save ({type(error).__name__}: {reason}); it is damaged or of "
        "another format: download or copy it again"
    )


def _refusal(path: Path, what: str) -> InputError:
    return InputError(
        f"{path}: rejected as unsafe, nothing in it was run: {what}; only tensors and plain containers are supported, "
        "so ask for the weights as safetensors, or for a file with only the state_dict"
    )


def _refuse_unsafe(path: Path) -> None:
    """Walk all pickles that torch might find in the file, and reject what torch.save does not write."""
    try:
        for calls, pickles in _pickles(path):
            walk = Walk(calls)
            for stream in pickles:
                try:
                    walk.pickle(stream)
                except Refused as error:
                    raise _refusal(path, str(error)) from error
                except Exception as error:  # ValueError of pickletools, IndexError of an empty stack, and others
                    asked = _asked(stream)
                    raise (_unreadable(path, error) if asked is None else _refusal(path, asked)) from error
    except zipfile.BadZipFile as error:
        raise _unreadable(path, error) from error


def _pickles(path: Path) -> Iterator[tuple[TorchCalls, Iterable[IO[bytes]]]]:
    """The pickles that torch would read, in groups that share tensors; files that start like an archive are one."""
    with path.open("rb") as file:
        room = path.stat().st_size
        if file.read(4) == b"PK\x03\x04":
            with open_archive(path) as archive:
                records = archive.records
                for name in records:
                    if name.casefold().endswith(".pkl"):
                        yield TorchCalls(STAND_INS, records, room), [io.BytesIO(archive.read(name))]
            return
        if tarfile.is_tarfile(path):
            raise InputError(
                f"{path}: a tar archive, as written by torch before version 0.2, is not supported; load it with torch "
                "and save it again"
            )
        # a memory map ends with the file, whatever length a pickle states
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            stream = cast("IO[bytes]", mapped)
            yield TorchCalls(STAND_INS, None, room), (stream for _ in range(PICKLES))


def _asked(stream: IO[bytes]) -> str | None:
    """What a pickle with operations that torch.save does not use asks for, if it is not harmless."""
    stream.seek(0)
    for name in names_asked(stream):
        if not is_harmless(name, STAND_INS):
            return f"it asks for {name}"
    return None


_END: Final = struct.Struct("<4s4H2LH")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCATOR: Final = struct.Struct("<4sLQL")
_NONE32: Final = 0xFFFFFFFF
"""Placeholder in the old record for a number that only the new record holds."""


class Archive:
    """An open archive: bytes of each record, by its name in the folder that contains them all."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self._file = file
        entries = file.infolist()
        self._folder = entries[0].filename.partition("/")[0] + "/" if entries else ""
        self.records = {entry.filename.removeprefix(self._folder): entry.file_size for entry in entries}
        wrong = _wrong(entries, self._folder)
        if wrong is None and sum(self.records.values()) > path.stat().st_size:
            wrong = f"unpacks to {sum(self.records.values()):,} bytes, more than its size"
        if wrong is not None:
            raise InputError(
                f"{path}: an archive that {wrong}, which torch.save never writes; ask for the original file"
            )
        if "constants.pkl" in self.records:
            raise InputError(f"{path}: a TorchScript program, not weights; save its state_dict() with torch.save")

    def read(self, name: str) -> bytes:
        """The content of a record; a BadZipFile error if it is damaged or its compression is not supported."""
        with _one_error():
            return self._file.read(self._folder + name)


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an archive, if there is only one way to read it.

    Raises:
        InputError: torch could find records that Python does not, the content is larger than the file, or it is a
            TorchScript program.
        zipfile.BadZipFile: it is not an archive, or damaged.
    """
    _check_directory(path)
    with _one_error():
        file = zipfile.ZipFile(path)
    with file:
        yield Archive(path, file)


@contextmanager
def _one_error() -> Iterator[None]:
    """Turn the various errors of zipfile for damaged files into BadZipFile."""
    try:
        yield
    except (zipfile.BadZipFile, OSError):
        raise
    except Exception as error:
        raise zipfile.BadZipFile(f"{type(error).__name__}: {error}") from error


def _wrong(entries: list[zipfile.ZipInfo], folder: str) -> str | None:
    """What is wrong with the names in an archive."""
    names: set[str] = set()
    for entry in entries:
        name = entry.orig_filename
        if name != entry.filename or not name.isascii() or not name.isprintable() or "\\" in name:
            return f"has a name with unusual characters ({name!r:.60})"
        if not name.startswith(folder) or folder == "/":
            return f"has {name!r:.60} outside the folder {folder!r:.60}"
        if name.lower() in names:
            return f"has {name!r:.60} twice"
        names.add(name.lower())
    return None


def _check_directory(path: Path) -> None:
    """Check that the directory is at the end of the file, where both ways of looking for it find it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - _END.size - _LOCATOR.size - _END64.size, 0))
        tail = file.read().rjust(_END.size + _LOCATOR.size + _END64.size, b"\0")
    mark, *_, length, start, comment = _END.unpack(tail[-_END.size :])
    if mark != b"PK\x05\x06" or comment:
        raise zipfile.BadZipFile("its directory is not at its end")
    end = size - _END.size
    locator = _LOCATOR.unpack(tail[_END64.size : -_END.size])
    if locator[0] == b"PK\x06\x07":
        end -= _LOCATOR.size + _END64.size
        mark, *_, wide_length, wide_start = _END64.unpack(tail[: _END64.size])
        agree = all(old in (new, _NONE32) for old, new in ((length, wide_length), (start, wide_start)))
        if mark != b"PK\x06\x06" or locator[2] != end or not agree:
            raise zipfile.BadZipFile("its directory is declared in two places")
        length, start = wide_length, wide_start
    if start + length != end:
        raise zipfile.BadZipFile("its directory is not where it is declared")
