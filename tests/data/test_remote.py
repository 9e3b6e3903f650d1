from __future__ import annotations

import io
import tarfile
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meanshifter.data.remote import expand_braces, read_bytes, tar_images
from meanshifter.errors import InputError

Member = tuple[str, bytes]


def tar(path: Path, *members: Member, mode: str = "w") -> str:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return str(path)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("shard-{000..002}.tar", ["shard-000.tar", "shard-001.tar", "shard-002.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{train,val}/{0..1}.tar", ["train/0.tar", "train/1.tar", "val/0.tar", "val/1.tar"]),
        ("s3://b/plain.tar", ["s3://b/plain.tar"]),
        ("odd{1}.tar", ["odd{1}.tar"]),
    ],
)
def test_braces_stand_for_several_names(text: str, names: list[str]) -> None:
    assert expand_braces(text) == names


@given(st.integers(0, 2000), st.integers(0, 50), st.integers(1, 6))
def test_ranges_keep_their_width(first: int, more: int, width: int) -> None:
    names = expand_braces(f"a{{{first:0{width}}..{first + more:0{width}}}}b")
    assert [int(name[1:-1]) for name in names] == list(range(first, first + more + 1))
    assert all(len(name) >= width + 2 for name in names)


def test_the_image_of_a_sample_is_no_mask_and_no_other_member(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "s.tar",
        ("a/1.png", b"mask"),
        ("a/1.jpg", b"image"),
        ("a/1.cls", b"3"),
        ("./2.seg.png", b"mask"),
        ("./2.png", b"second"),
        ("notes.txt", b"none"),
    )
    assert [(image.key, image.member, image.data) for image in tar_images(path)] == [
        ("a/1", "a/1.jpg", b"image"),
        ("2", "./2.png", b"second"),
    ]


def test_members_that_lead_out_or_have_no_kind_are_told_apart(tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", ("../up.jpg", b"x"), ("/root.jpg", b"x"), ("IMG.2021.jpg", b"x"), ("good.jpg", b"x"))
    images = list(tar_images(path))
    assert [image.error is None for image in images] == [False, False, False, True]
    assert all(image.data is None for image in images[:3])


def test_compressed_tars_from_any_file_system(tmp_path: Path) -> None:
    data = Path(tar(tmp_path / "s.tgz", ("a.jpg", b"image"), mode="w:gz")).read_bytes()
    fsspec.filesystem("memory").pipe_file("/remote/s.tgz", data)
    assert [image.data for image in tar_images("memory://remote/s.tgz")] == [b"image"]


def test_bytes_are_left_where_they_are_not_wanted(tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", ("a.jpg", b"1"), ("b.jpg", b"2"))
    assert [image.data for image in tar_images(path, lambda image: image.key == "a")] == [None, b"2"]


def test_a_tar_that_ends_early_gives_what_it_has(tmp_path: Path) -> None:
    path = Path(tar(tmp_path / "s.tar", ("a.jpg", b"1" * 2000), ("b.jpg", b"2" * 20000)))
    path.write_bytes(path.read_bytes()[:8000])
    images = tar_images(str(path))
    assert next(images).key == "a"
    with pytest.raises(InputError, match=r"s\.tar: "):
        list(images)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nope://bucket/a.jpg", r"nope://bucket/a\.jpg: cannot be read .Protocol not known"),
        ("memory://no/such.jpg", "memory://no/such.jpg: no such file"),
    ],
)
def test_what_cannot_be_reached_is_said_in_one_line(address: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_bytes(address)


def test_the_package_that_is_lacking_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object, **__: object) -> None:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "url_to_fs", lacking)
    with pytest.raises(InputError, match=r"gs://b/a\.jpg: .*pip install gcsfs"):
        read_bytes("gs://b/a.jpg")
