"""Reading other people's `.pth` files, which are pickles, without running what they ask for.

torch's own restricted unpickler does the work: tensors and plain containers are allowed, everything else is refused by
name. A few more names that training frameworks store beside the weights become inert stand-ins, whose values are lost.
"""

from __future__ import annotations

import io
import mmap
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from meanshifter.errors import InputError
from meanshifter.file_kinds import other_kind
from meanshifter.files import require_file
from meanshifter.pickle_archives import open_archive
from meanshifter.pickle_calls import TorchCalls, is_harmless
from meanshifter.pickle_sizes import PICKLES, Refused, Walk, names_asked

if TYPE_CHECKING:
    from torch import Tensor


class Inert:
    """What stands in for an object that is not needed: takes any arguments and state, and keeps none."""

    def __new__(cls, *_: Any) -> Inert:
        """An empty one, whatever the arguments."""
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __repr__(self) -> str:
        return "an object that is not read"


STAND_INS = (
    "argparse.Namespace",
    "builtins.getattr",
    "mmengine.logging.history_buffer.HistoryBuffer",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float64", "Float32", "Int64", "Int32", "Bool")),
)
"""Names that become `Inert`: what DeiT and MMEngine store beside the weights.

None is what it is called: `builtins.getattr`, by which members of enumerations are pickled, looks nothing up.
"""


def read_pickle(path: str | Path) -> Any:
    """What a file that `torch.save` wrote holds, on the CPU.

    Raises:
        InputError: it is missing or damaged, or asks for anything but tensors, containers and `STAND_INS`; the
            message names what it asked for, and nothing of it ran.
    """
    import torch

    path = Path(path)
    require_file(path)
    with suppress(OSError):  # torch says it
        if (kind := other_kind(path)) is not None:
            raise InputError(f"{path}: {kind[0]}, no file of torch.save; {kind[1]}")
    _refuse_unsafe(path)
    # one class each, as torch looks them up by identity
    allowed: list[Any] = [(type(name, (Inert,), {}), name) for name in STAND_INS]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols that torch.save does not use
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        raise _refusal(path, f"it asks for {asked[1]}" if asked else "it is no file of torch.save") from error
    except Exception as error:  # what torch raises for damaged files depends on where the damage is
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: cannot be read as a file of torch.save ({type(error).__name__}: {_last_words(error)}); it is damaged "
        "or of another kind, copy it again"
    )


def _refusal(path: Path, what: str) -> InputError:
    return InputError(
        f"{path}: refused, nothing of it ran: {what}; only tensors and plain containers as torch.save writes them "
        "are read, so ask for the weights as safetensors, or for a file of the state_dict alone"
    )


def _refuse_unsafe(path: Path) -> None:
    """Walk every pickle that torch could find in the file, and refuse what torch.save does not write.

    Raises:
        InputError: something in them is refused, or cannot be followed, so that torch must not try either.
    """
    try:
        for calls, pickles in _pickles(path):
            walk = Walk(calls)
            for stream in pickles:
                try:
                    walk.pickle(stream)
                except Refused as error:
                    raise _refusal(path, str(error)) from error
                except Exception as error:  # ValueError of pickletools, IndexError of a stack that underflows, and more
                    asked = _asked(stream)
                    raise (_unreadable(path, error) if asked is None else _refusal(path, asked)) from error
    except zipfile.BadZipFile as error:
        raise _unreadable(path, error) from error


def _pickles(path: Path) -> Iterator[tuple[TorchCalls, Iterable[IO[bytes]]]]:
    """What torch will unpickle of a file, in groups that share tensors: it is an archive if it begins as one."""
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
                f"{path}: a tar archive, as torch wrote before version 0.2, and not read; load it with torch and save "
                "it again"
            )
        # a map ends where the file does, whatever length a pickle states
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            stream = cast("IO[bytes]", mapped)
            yield TorchCalls(STAND_INS, None, room), (stream for _ in range(PICKLES))


def _asked(stream: IO[bytes]) -> str | None:
    """What a pickle with operations that torch.save does not use asks for, if it is more than that."""
    stream.seek(0)
    for name in names_asked(stream):
        if not is_harmless(name, STAND_INS):
            return f"it asks for {name}"
    return None


def check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not plain numbers, each stored once.

    Raises:
        InputError: a tensor without data, sparse, quantised, of integers or complex numbers, with values that are not
            finite, or that repeats what the file holds once (and would fill a disk when it is written).
    """
    import torch

    for name, value in tensors.items():
        if name.endswith("num_batches_tracked"):
            continue
        if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
            wrong = f"of layout {value.layout}" if value.layout != torch.strided else "quantised or without data"
        elif value.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            wrong = f"of {value.dtype}"
        elif value.numel() * value.itemsize > value.untyped_storage().nbytes():
            wrong = f"{tuple(value.shape)} made from {value.untyped_storage().nbytes():,} bytes"
        elif not torch.isfinite(value).all():
            wrong = "not finite everywhere"
        else:
            continue
        raise InputError(f"{path}: {name} is {wrong}; weights are dense floating-point numbers: save them again so")


def _last_words(error: BaseException) -> str:
    """The reason within torch's advice, in a few words."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].split("Check the documentation")[0]
    return " ".join(text.split()).split(". ")[0][:120]
