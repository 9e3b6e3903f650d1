"""Files that ask for more than they are, made by hand; and honest ones, which are read as torch reads them."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import meanshifter as ms
from meanshifter.utils.safe_pickle import read_pickle

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
"""How a file of torch.save before version 1.6 begins."""


def name(module: str, member: str) -> bytes:
    return f"c{module}\n{member}\n".encode()


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def whole(*operations: bytes) -> bytes:
    return b"\x80\x02" + b"".join(operations) + b"."


def persistent(count: int, key: str = "0") -> bytes:
    """A storage of the file, as archives (five parts) name it."""
    return b"(" + text("storage") + name("torch", "FloatStorage") + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(storage: bytes, size: int, stride: int = 1, rebuild: str = "_rebuild_tensor") -> bytes:
    return (
        name("torch._utils", rebuild) + b"(" + storage + number(0) + number(size) + b"\x85" + number(stride) + b"\x85tR"
    )


GIB = number(2**30)
ENCODE = name("_codecs", "encode")
HOSTILE: dict[str, bytes] = {
    "bytearray": whole(name("builtins", "bytearray"), GIB, b"\x85R"),
    "bytearray, as Python 2 calls it": whole(name("__builtin__", "bytearray"), GIB, b"\x85R"),
    "bytearray, its arguments a list": whole(name("builtins", "bytearray"), b"]", GIB, b"aR"),
    "bytearray, its arguments a size": whole(
        name("builtins", "bytearray"), name("torch", "Size"), GIB, b"\x85\x85RR"
    ),
    "tensor of a number": whole(name("torch", "FloatTensor"), GIB, b"\x85R"),
    "storage of a number": whole(name("torch.storage", "UntypedStorage"), GIB, b"\x85R"),
    "tensor over a smaller storage": whole(tensor(persistent(4), 2**29)),
    "tensor with far strides": whole(tensor(persistent(4), 2, 2**29)),
    "tensor over no storage": whole(tensor(name("torch.storage", "UntypedStorage") + b")R", 2**30)),
    "tensor enlarged as it takes its state": whole(
        name("torch", "Tensor"), b")\x81(", persistent(4), number(0), number(2**29), b"\x85", number(1), b"\x85tb"
    ),
    "the same by the keys of a dict": whole(
        name("torch", "Tensor"), b")\x81}(", persistent(4), b"N", number(0), b"N", GIB, b"\x85N", b"\x85", b"Nub"
    ),
    "quantized tensor": whole(tensor(persistent(4), 2**30, 0, "_rebuild_qtensor")),
    "storage larger than the file": whole(persistent(2**28)),
    "many names of one record": whole(b"](", *[persistent(4096, key) for key in ("a", "A")], b"e"),
    "bytes encoded over and over": whole(
        ENCODE * 30, text("a" * 64), text("latin1"), b"\x86R", (text("hex_codec") + b"\x86R") * 29
    ),
    "copies of a long list": whole(
        name("builtins", "set"), b"q\x00](", b"K\x01" * 20000, b"eq\x01](", b"h\x00h\x01\x85R" * 20000, b"e"
    ),
    "tuples of tuples": whole(b")q\x00", b"h\x00h\x00\x86q\x00" * 60, b"}h\x00K\x01s"),
    "tuples too deep to hash": whole(b"})", b"\x85" * 90000, b"K\x01s"),
    "long tuples hashed often": whole(b"(", b"K\x01" * 50000, b"tq\x00}(", b"h\x00N" * 30000, b"u"),
    "text longer than the file": b"\x80\x02X\xff\xff\xff\xffabc.",
    "a number of bytes": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"a.",
    "a copy of a tensor": whole(
        name("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"), b"(",
        tensor(persistent(4), 2**30, 0), name("torch", "float64"), text("cpu"), b"\x89tR",
    ),
}  # fmt: skip
HOSTILE["copies of a long text"] = whole(
    ENCODE, b"q\x00", text("a" * 50000), b"q\x01](", (b"h\x00h\x01" + text("latin1") + b"\x86R") * 30000, b"e"
)


def archive(path: Path, records: list[tuple[str, bytes]]) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for record, content in records:
            file.writestr(record, content)


def write(folder: Path) -> dict[str, str]:
    """Every hostile pickle as an archive and as a plain file: what it is, by its path."""
    found = {}
    for i, (kind, content) in enumerate(HOSTILE.items()):
        with_parts = content.replace(b"tQ", b"NtQ")  # six parts
        (folder / f"{i}.pth").write_bytes(MAGIC + with_parts + pickle.dumps([], 2))
        found[str(folder / f"{i}.pth")] = kind
        records = [("a/data.pkl", content), ("a/data/0", b"\0" * 16), ("a/data/a", b"\0" * 16384)]
        archive(folder / f"{i}.zip.pth", records)
        found[str(folder / f"{i}.zip.pth")] = kind
    return found


READ = """
import json, resource, sys
import torch
from meanshifter.errors import InputError
from meanshifter.utils.safe_pickle import read_pickle
read_pickle(sys.argv[1])
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 400 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
before, told = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, {}
for path in sys.argv[2:]:
    try:
        told[path] = f"read: {type(read_pickle(path))}"
    except InputError as error:
        told[path] = f"refused: {error}"
print(json.dumps([told, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


def test_what_asks_for_more_than_it_is_gets_a_line_and_no_memory(tmp_path: Path) -> None:
    kinds, plain = write(tmp_path), tmp_path / "plain.pth"
    torch.save({"w": torch.zeros(3)}, plain)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(plain), *kinds], capture_output=True, text=True, check=True, timeout=100
    )
    told, grown = json.loads(done.stdout)
    assert not [kinds[path] + path[-8:] for path, line in told.items() if not line.startswith("refused")]
    assert not [line for line in told.values() if "\n" in line or "memory" in line]
    assert grown < 100_000, "kB"


DOUBLES: dict[str, Callable[[bytes, bytes], list[tuple[str, bytes]]]] = {
    "upper case": lambda good, evil: [("a/DATA.PKL", evil), ("a/data.pkl", good)],
    "twice": lambda good, evil: [("a/data.pkl", evil), ("a/data.pkl", good)],
    "upper case alone": lambda good, evil: [("a/version", b"3"), ("a/Data.Pkl", evil)],
    "another folder": lambda good, evil: [("a/data.pkl", good), ("A/data.pkl", evil)],
    "no folder": lambda good, evil: [("data.pkl", evil), ("a/data.pkl", good)],
    "null byte": lambda good, evil: [("a/data.pkl", good), ("a/data.pkl@x", evil)],
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", DOUBLES)
def test_every_pickle_of_an_archive_is_looked_at(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    archive(path, DOUBLES[kind](whole(b"}"), HOSTILE["tuples of tuples"]))
    path.write_bytes(path.read_bytes().replace(b"pkl@x", b"pkl\0x"))
    with pytest.raises(ms.InputError, match=r"model\.pth: (rejected.*tuple|an archive that)"):
        read_pickle(path)


@pytest.mark.parametrize("kind", ["in front", "behind", "comment"])
def test_an_archive_has_one_directory(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    archive(path, [("a/data.pkl", whole(b"}")), ("a/version", b"3")])
    other = path.read_bytes()
    archive(path, [("a/data.pkl", HOSTILE["tuples of tuples"])])
    if kind == "comment":
        with zipfile.ZipFile(path, "a") as file:
            file.comment = other
    else:
        path.write_bytes(path.read_bytes() + other if kind == "in front" else other + path.read_bytes())
    with pytest.raises(ms.InputError, match=r"model\.pth: (cannot be read|rejected)"):
        read_pickle(path)


def test_other_formats_of_torch_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "old.pth", "w") as tar:
        for record in ("storages", "tensors", "pickle"):
            tar.addfile(tarfile.TarInfo(record), io.BytesIO())
    with pytest.raises(ms.InputError, match=r"old\.pth: a tar archive"):
        read_pickle(tmp_path / "old.pth")
    archive(tmp_path / "program.pth", [("a/data.pkl", whole(b"}")), ("a/constants.pkl", whole(b")"))])
    with pytest.raises(ms.InputError, match=r"program\.pth: a TorchScript .*state_dict"):
        read_pickle(tmp_path / "program.pth")


def honest() -> dict[str, Any]:
    weight = torch.nn.Parameter(torch.randn(4, 3))
    weight.note = "kept"  # type: ignore[attr-defined]
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    plain = torch.arange(12.0)
    plain.note = "kept"  # type: ignore[attr-defined]
    return {
        "parameter": weight,
        "with attributes": plain,
        "optimizer": optimizer.state_dict(),
        "views": [plain, plain[3:], plain.view(3, 4).T, plain[::2], plain[:0], torch.empty(0), torch.tensor(1.0)],
        "expanded": torch.arange(3).expand(2, 3),
        "kinds": [torch.ones(2, dtype=kind) for kind in (torch.bool, torch.bfloat16, torch.uint16, torch.complex128)],
        "meta": torch.empty(3, device="meta"),
        "plain": [OrderedDict(a=1), Counter("aab"), {1, (2, 3)}, bytearray(b"\x00\xff"), b"\xfe", 1j, torch.Size([2]),
                  torch.device("cpu"), torch.float16, 2**70, -5, None, (1, (2, (3,))), "ü\ud800", True, bytearray()],
        "long": [list(range(3000)), tuple(range(3000)), "x" * 100_000, bytearray(b"x" * 100_000), set(range(3000))],
    }  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "kind", ["parameter", "with attributes", "optimizer", "views", "expanded", "kinds", "meta", "plain", "long"]
)
def test_what_torch_saves_is_read(kind: str, legacy: bool, tmp_path: Path) -> None:
    content = honest()[kind]
    if kind == "kinds" and legacy:
        del content[2]  # torch cannot read its own
    torch.save(content, tmp_path / "model.pth", _use_new_zipfile_serialization=not legacy)
    read, expected = read_pickle(tmp_path / "model.pth"), torch.load(tmp_path / "model.pth", weights_only=True)
    ours, theirs = (
        [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
        for tree in (read, expected)
    )
    torch.testing.assert_close(ours, theirs)
    assert str(read) == str(expected)


def test_arrays_of_numpy_become_nothing(tmp_path: Path) -> None:
    torch.save({"a": np.arange(1e4), "b": np.float64(1.5), "w": torch.ones(2)}, tmp_path / "model.pth")
    assert torch.equal(read_pickle(tmp_path / "model.pth")["w"], torch.ones(2))


KEYS = st.recursive(
    st.integers() | st.text() | st.floats(allow_nan=False), lambda inner: st.lists(inner, max_size=4).map(tuple)
)


@settings(max_examples=30, deadline=None)
@given(
    st.recursive(
        KEYS | st.binary(min_size=1) | st.booleans() | st.none(),
        lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner) | st.lists(inner).map(tuple),
    ),
    st.booleans(),
)
def test_whatever_is_plain_is_read(tmp_path_factory: pytest.TempPathFactory, value: object, legacy: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "plain.pth"
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    assert read_pickle(path) == value
