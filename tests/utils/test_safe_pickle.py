from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import meanshifter as ms
from meanshifter.utils.safe_pickle import STAND_INS, read_pickle


class Command:
    """Unpickling it runs a command."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> Any:
        return os.system, (self.text,)


@pytest.fixture
def trap(tmp_path: Path) -> tuple[Command, Path]:
    """A pickle's command, and the file that would be there if it had run."""
    return Command(f"touch {tmp_path / 'ran'}"), tmp_path / "ran"


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"state_dict": {"w": [torch.zeros(1), (x,)]}}])
@pytest.mark.parametrize("legacy", [False, True])
def test_what_a_pickle_asks_for_is_named_and_does_not_run(
    wrap: Any, legacy: bool, trap: tuple[Command, Path], tmp_path: Path
) -> None:
    command, ran = trap
    torch.save(wrap(command), tmp_path / "evil.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ms.InputError, match=r"evil\.pth: rejected .*: it asks for \w+\.system"):
        read_pickle(tmp_path / "evil.pth")
    assert not ran.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nor_does_a_plain_pickle_of_any_protocol(protocol: int, trap: tuple[Command, Path], tmp_path: Path) -> None:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(trap[0], protocol))
    with pytest.raises(ms.InputError, match=r"rejected|cannot be read"):
        read_pickle(tmp_path / "evil.pth")
    assert not trap[1].exists()


def test_nor_one_that_was_put_into_a_healthy_archive(trap: tuple[Command, Path], tmp_path: Path) -> None:
    healthy = io.BytesIO()
    torch.save({"w": torch.zeros(3)}, healthy)
    with zipfile.ZipFile(healthy) as old, zipfile.ZipFile(tmp_path / "evil.pth", "w") as new:
        for name in old.namelist():
            new.writestr(name, pickle.dumps(trap[0], 2) if name.endswith("data.pkl") else old.read(name))
    with pytest.raises(ms.InputError, match="it asks for"):
        read_pickle(tmp_path / "evil.pth")
    assert not trap[1].exists()


@pytest.mark.parametrize("name", ["getattr", "Namespace", "_reconstruct"])
def test_names_that_training_tools_store_become_nothing(name: str, tmp_path: Path) -> None:
    import argparse

    import numpy as np

    stored = {"getattr": Looked(), "Namespace": argparse.Namespace(lr=1), "_reconstruct": np.arange(3.0)}[name]
    torch.save({"w": torch.ones(2), "extra": stored}, tmp_path / "model.pth")
    found = read_pickle(tmp_path / "model.pth")
    assert torch.equal(found["w"], torch.ones(2))
    assert not vars(found["extra"])
    assert any(entry.endswith(name) for entry in STAND_INS)


class Looked:
    """Its pickle looks an attribute up, as bound methods in a history of MMEngine do."""

    def __reduce__(self) -> Any:
        return getattr, (torch.Size, "numel")


@pytest.mark.parametrize("content", [b"not a pickle", b"PK\x03\x04 torn"])
def test_a_damaged_file_gets_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "torn.pth").write_bytes(content)
    with pytest.raises(ms.InputError, match=r"torn\.pth: (cannot be read|rejected)") as caught:
        read_pickle(tmp_path / "torn.pth")
    assert "\n" not in str(caught.value)


def test_a_truncated_checkpoint_gets_one_line(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, tmp_path / "torn.pth")
    whole = (tmp_path / "torn.pth").read_bytes()
    (tmp_path / "torn.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ms.InputError, match=r"torn\.pth: cannot be read as a file of torch\.save"):
        read_pickle(tmp_path / "torn.pth")


def test_what_is_asked_for_in_operations_that_torch_does_not_know_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"w": Command("false")}, 4))
        file.writestr("archive/version", "3\n")
    with pytest.raises(ms.InputError, match=r"rejected .*: it asks for (posix|nt)\.system;"):
        read_pickle(path)
    path.write_bytes(b"\xfe\xd8 noise")
    with pytest.raises(ms.InputError, match=r"cannot be read as a file of torch\.save"):
        read_pickle(path)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("photo.jpg", b"\xff\xd8\xff\xe0 more", "photo.jpg: a JPEG image"),
        ("model.pth", b"\n<!DOCTYPE html><html>", "model.pth: a web page"),
        ("model.pth", b"version https://git-lfs.github.com/spec/v1\noid", "model.pth: a Git LFS .* `git lfs pull`"),
        ("model.pth", b"", "model.pth: empty"),
        ("model.onnx", b"\x08\x07", "model.onnx: an ONNX .* `meanshifter export`"),
        ("segmenter_vit-t.py", b"model = dict()", "segmenter_vit-t.py: a configuration"),
    ],
)
def test_what_a_file_is_instead_is_said(name: str, content: bytes, line: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ms.InputError, match=line):
        ms.load_model(tmp_path / name)


def test_safetensors_alone_are_no_model(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "vit.safetensors")
    with pytest.raises(ms.InputError, match=r"without the config\.json .* `encoder_weights`"):
        ms.load_model(tmp_path / "vit.safetensors")


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("legacy", [False, True])
def test_names_that_are_harmless_are_not_what_is_blamed(
    protocol: int, legacy: bool, trap: tuple[Command, Path], tmp_path: Path
) -> None:
    content = OrderedDict([(trap[0], torch.zeros(1))])
    options: dict[str, Any] = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": not legacy}
    torch.save(content, tmp_path / "evil.pth", **options)
    with pytest.raises(ms.InputError, match=r"rejected .*: it asks for (posix|nt)\.system;"):
        read_pickle(tmp_path / "evil.pth")
    assert not trap[1].exists()
