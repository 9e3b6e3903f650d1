"""Fetching, checking and unpacking, from a server on this machine; and the command in front of it."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from meanshifter.cli.main import main
from meanshifter.data.catalog.ade20k import ADE20K
from meanshifter.data.catalog.camvid import CamVid
from meanshifter.data.catalog.pascal_voc import PascalVOC
from meanshifter.data.download import Archive, fetch_and_unpack
from meanshifter.errors import InputError


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def zipped(members: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def tarred(members: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def offer(served: tuple[Path, str], content: bytes, folder: str = "top/Data", digest: str | None = None) -> Archive:
    (served[0] / "a.bin").write_bytes(content)
    digest = "sha1:" + hashlib.sha1(content).hexdigest() if digest is None else digest
    return Archive(f"{served[1]}/a.bin", "a.bin", digest, "the test", folder)


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_fetched_checked_and_unpacked(served: tuple[Path, str], tmp_path: Path, pack: Any) -> None:
    archive = offer(served, pack({"top/Data/x/y.txt": "hello", "top/readme.txt": "not kept"}))
    target = fetch_and_unpack(archive, tmp_path / "new/root")
    assert target == tmp_path / "new/root/Data"
    assert (target / "x/y.txt").read_text() == "hello"
    assert [path.name for path in target.parent.iterdir()] == ["Data"]
    with pytest.raises(InputError, match="Data: already exists"):
        fetch_and_unpack(archive, tmp_path / "new/root")


def test_another_hash_is_refused_before_unpacking(served: tuple[Path, str], tmp_path: Path) -> None:
    archive = offer(served, zipped({"top/Data/a": "b"}), digest="md5:" + "0" * 32)
    with pytest.raises(InputError, match=r"a\.bin: md5 is [0-9a-f]{32}, but the test lists 0{32}"):
        fetch_and_unpack(archive, tmp_path / "root")
    assert not list((tmp_path / "root").iterdir())
    (tmp_path / "root/a.bin").write_bytes(b"somebody's own")
    with pytest.raises(InputError, match=r"a\.bin: md5 is "):
        fetch_and_unpack(archive, tmp_path / "root")
    assert (tmp_path / "root/a.bin").read_bytes() == b"somebody's own"


def test_an_archive_that_lies_there_is_used(served: tuple[Path, str], tmp_path: Path) -> None:
    content = zipped({"top/Data/a": "b"})
    archive = offer(served, content)
    (served[0] / "a.bin").unlink()
    (tmp_path / "a.bin").write_bytes(content)
    assert (fetch_and_unpack(archive, tmp_path) / "a").read_text() == "b"


def test_no_answer(served: tuple[Path, str], tmp_path: Path) -> None:
    archive = offer(served, b"")
    (served[0] / "a.bin").unlink()
    with pytest.raises(InputError, match=r"a\.bin: .*[Nn]ot [Ff]ound.* as .*root/a\.bin"):
        fetch_and_unpack(archive, tmp_path / "root")
    assert not list((tmp_path / "root").iterdir())


@pytest.mark.parametrize("name", ["top/Data/../../../evil", "top/Data/..\\..\\evil"])
def test_zip_members_stay_inside(served: tuple[Path, str], tmp_path: Path, name: str) -> None:
    archive = offer(served, zipped({"top/Data/a": "b", name: "evil"}))
    with pytest.raises(InputError, match=r"unsafe member .*nothing was unpacked"):
        fetch_and_unpack(archive, tmp_path / "root")
    assert not list(tmp_path.rglob("*evil*"))
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["a.bin"]


def test_tar_members_stay_inside(served: tuple[Path, str], tmp_path: Path) -> None:
    archive = offer(served, tarred({"top/Data/a": "b", "top/Data/../../../evil": "evil"}))
    with pytest.raises(InputError, match="unsafe member, nothing was unpacked"):
        fetch_and_unpack(archive, tmp_path / "root")
    assert not list(tmp_path.rglob("*evil*"))


def test_broken_archives_and_other_contents(served: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="broken archive"):
        fetch_and_unpack(offer(served, b"no archive"), tmp_path / "a")
    with pytest.raises(InputError, match="no folder top/Data in the archive"):
        fetch_and_unpack(offer(served, zipped({"other/a": "b"})), tmp_path / "b")


# the command


def test_list_names_every_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "classes", "download", "images"]
    rows = {line.split()[0]: line for line in lines[1:6]}
    assert rows.keys() == {"shapes", "camvid", "ade20k", "pascal_voc", "cityscapes"}
    assert "150" in rows["ade20k"]
    assert "20,210" in rows["ade20k"]
    assert "manual" in rows["cityscapes"]
    assert any(line.startswith("cityscapes: ") and "registration" in line for line in lines)


def test_download_by_name(
    served: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = offer(served, zipped({"top/CamVid/val/a.txt": "b"}), "top/CamVid")
    about = CamVid.about
    monkeypatch.setattr(CamVid, "about", type(about)(**{**vars(about), "archive": archive}))
    assert main(["data", "download", "camvid", str(tmp_path / "to")]) == 0
    assert (tmp_path / "to/CamVid/val/a.txt").is_file()
    assert "personal and research use" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cityscapes", "registration; get it from"),
        ("camvd", "did you mean 'camvid'"),
        ("shapes", "nothing to download"),
    ],
)
def test_refusals_end_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    assert main(["data", "download", name, str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_what_a_split_needs_is_fetched_apart(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["ADE_test_00000001", "ADE_test_00000003"]
    members = {f"release_test/testing/{name}.jpg": "" for name in names} | {"release_test/list.txt": "\n".join(names)}
    archive = offer(served, zipped(members), folder="release_test")
    monkeypatch.setattr(ADE20K, "about", replace(ADE20K.about, archives={"test": archive}))
    assert main(["data", "download", "ade20k", str(tmp_path / "root"), "--split", "test"]) == 0
    assert f"ade20k test is in {tmp_path / 'root/release_test'}" in capsys.readouterr().out
    assert list(ADE20K(tmp_path / "root", "test").names) == names
    assert main(["data", "download", "pascal_voc", str(tmp_path / "root"), "--split", "test"]) == 2
    assert "--split: 'test' of pascal_voc" in capsys.readouterr().err


def test_sbd_is_fetched_where_it_is_not_there(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (tmp_path / "SegmentationClass").mkdir()
    for split in ("train", "val"):
        (lists / f"{split}.txt").write_text(f"{split}_1\n")
        (tmp_path / f"SegmentationClass/{split}_1.png").touch()
    inside = "benchmark_RELEASE/dataset"
    members = {f"{inside}/cls/train_1.mat": "", f"{inside}/train.txt": "train_1", f"{inside}/val.txt": "val_1"}
    archive = offer(served, tarred(members), folder="benchmark_RELEASE")
    monkeypatch.setattr("meanshifter.data.catalog.pascal_voc.ARCHIVE", archive)
    with pytest.warns(UserWarning, match=r"trainaug\.txt: 1 images, .*10,582"):
        PascalVOC.download(tmp_path, "trainaug")
    assert (lists / "trainaug.txt").read_text() == "train_1\n"  # which has VOC's own mask
    assert (tmp_path / inside / "val.txt").is_file()
