"""Archives that would write elsewhere, or more than there is room for."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from meanshifter.data.download import unpack
from meanshifter.errors import InputError


def tar(path: Path, *members: tuple[str, bytes, dict[str, Any]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content, more in [("top/Data/a", b"whole", {}), *members]:
            info = tarfile.TarInfo(name)
            info.size = 0 if more else len(content)
            for key, value in more.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("../evil", {}),
        ("/evil", {}),
        ("top/Data/link", {"type": tarfile.SYMTYPE, "linkname": "../../../../etc/passwd"}),
        ("top/Data/link", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("top/Data/hard", {"type": tarfile.LNKTYPE, "linkname": "../../etc/passwd"}),
        ("top/Data/inside", {"type": tarfile.SYMTYPE, "linkname": "a"}),
        ("top/Data/inside", {"type": tarfile.LNKTYPE, "linkname": "top/Data/a"}),
        ("top/Data/device", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}),
        ("top/Data/pipe", {"type": tarfile.FIFOTYPE}),
    ],
)
def test_tar_members_that_lead_out_or_are_no_files_are_refused(tmp_path: Path, name: str, more: dict[str, Any]) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    file = tar(inner / "a.tar", (name, b"evil", more))
    if name.startswith("/"):  # tarfile drops the slash, so that it stays inside, and is not of the folder wanted
        unpack(file, "top/Data", inner / "Data")
    else:
        with pytest.raises(InputError, match=r"unsafe member.*, nothing was unpacked"):
            unpack(file, "top/Data", inner / "Data")
        assert [path.name for path in inner.iterdir()] == ["a.tar"]
    assert not list(tmp_path.rglob("*evil*"))
    assert not Path("/evil").exists()


def test_links_in_zips_are_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("top/Data/link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match=r"unsafe member 'top/Data/link' \(a link\)"):
        unpack(tmp_path / "a.zip", "top/Data", tmp_path / "Data")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_bombs_are_refused_before_they_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    class Usage:
        free = 100_000_000 + 40_000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    file, zeros = tmp_path / f"a.{kind}", bytes(30_000)
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for k in range(2):
                archive.writestr(f"top/Data/{k}", zeros)
    else:
        with tarfile.open(file, "w:gz") as packed:
            for k in range(2):
                info = tarfile.TarInfo(f"top/Data/{k}")
                info.size = len(zeros)
                packed.addfile(info, io.BytesIO(zeros))
    with pytest.raises(InputError, match=r"unpacks to 60,000 bytes or more, but the disk has room for 40,000"):
        unpack(file, "top/Data", tmp_path / "Data")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_locked_and_broken_archives_are_said_in_one_line(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("top/Data/a", "text")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    for place in (6, content.find(b"PK\x01\x02") + 8):  # the flag that says encrypted
        content[place] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"broken archive.*encrypted"):
        unpack(tmp_path / "a.zip", "top/Data", tmp_path / "Data")
