"""Which files below a folder are found, and what is said of the others."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from meanshifter.data import Folder
from meanshifter.data.doctor import check
from meanshifter.data.headers import formats
from meanshifter.data.reading import (
    BROKEN_LINKS,
    IMAGE_SUFFIXES,
    LINKED_TWICE,
    NO_FILES,
    PassedOver,
    files_below,
    is_hidden,
    read_image,
    said,
)
from meanshifter.data.remote import tar_images
from meanshifter.errors import InputError

LEFT_BEHIND = (
    ".ipynb_checkpoints/a-checkpoint.png",
    ".Trash-1000/files/a.png",
    "@eaDir/a.png",
    "__MACOSX/a.png",
    "sub/@eaDir/b.png",
    "._a.png",
    "Thumbs.db",
)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(root: Path) -> tuple[list[str], PassedOver]:
    passed = PassedOver()
    return [path.relative_to(root).as_posix() for path in files_below(root, IMAGE_SUFFIXES, passed)], passed


def test_every_format_that_is_read_is_found_by_all_its_endings(tmp_path: Path) -> None:
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for suffix, name in Image.registered_extensions().items():
        if name in formats():
            assert suffix in IMAGE_SUFFIXES
    for suffix in (".jpe", ".jfif", ".gif", ".ppm", ".bmp", ".TIFF", ".WebP", ".JP2", ".avif"):
        name = Image.registered_extensions()[suffix.lower()]
        if name in Image.SAVE and name in formats():
            picture.save(tmp_path / f"x{suffix}", format=name)
            assert read_image(tmp_path / f"x{suffix}").shape == (8, 8, 3)
    assert found(tmp_path) == (sorted(path.name for path in tmp_path.iterdir()), {})
    assert len(list(tmp_path.iterdir())) >= 7


def test_what_other_programs_leave_behind_is_no_image_and_is_counted(tmp_path: Path) -> None:
    names, passed = found(touch(tmp_path, "a.png", "sub/b.jpg", *LEFT_BEHIND))
    assert names == ["a.png", "sub/b.jpg"]
    assert passed == {"hidden or system folders": 5, "hidden files": 1, ".db": 1}
    assert "7 skipped" in said(passed)
    assert "hidden or system folders (5)" in said(passed)


@given(st.text(st.characters(exclude_characters="/\0"), min_size=1))
def test_a_name_is_hidden_by_its_dot_or_as_a_system_s(name: str) -> None:
    systems = ("@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information", "lost+found")
    assert is_hidden(name) == ((name[0] == "." and name not in (".", "..")) or name.casefold() in systems)


def test_linked_folders_are_read_once_and_loops_end(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "own/a.png", "z/b.png")
    touch(tmp_path / "other", "c.png", "deep/d.png")
    (root / "0").symlink_to(root / "z")  # z is read under its own name
    (root / "far").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(root)
    (root / "up").symlink_to(tmp_path)  # else `other` would be read through it
    (root / "own" / "loop").symlink_to(root / "own")
    (root / "own" / "self").symlink_to("self")
    (root / "gone.png").symlink_to(root / "nothing")
    os.mkfifo(root / "pipe.png")
    names, passed = found(root)
    assert names == ["own/a.png", "z/b.png", "far/c.png", "far/deep/d.png"]
    assert passed.pop(LINKED_TWICE) == 4
    assert passed == {BROKEN_LINKS: 1, NO_FILES: 1, "files without extension": 1}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_no_empty_one(tmp_path: Path) -> None:
    (touch(tmp_path, "a.png", "shut/b.png") / "shut").chmod(0)
    with pytest.raises(InputError, match="shut: cannot be listed"):
        found(tmp_path)


def pair(root: Path, name: str) -> None:
    for folder, array in (("images", np.zeros((4, 5, 3), np.uint8)), ("masks", np.eye(4, 5, dtype=np.uint8))):
        (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / folder / f"{name}.png")


def test_copies_in_hidden_folders_are_no_pairs_of_a_training(tmp_path: Path) -> None:
    names = [f"img{k:02}" for k in range(20)]
    for name in (*names, *(f".ipynb_checkpoints/{name}" for name in names), "@eaDir/img00", "._img01"):
        pair(tmp_path, name)
    with pytest.warns(UserWarning, match=r"6 skipped: hidden or system folders \(4\), hidden files \(2\)"):
        splits = {split: list(Folder(tmp_path, split).names) for split in ("train", "val")}
    assert sorted(splits["train"] + splits["val"]) == names
    report = check(tmp_path)
    assert sum(map(len, report.pairs.values())) == 20
    assert [finding.kind for finding in report.findings if "skipped" in finding.message] == ["skipped"]


def test_hidden_members_of_a_tar_are_no_samples(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("./._a.png", "./a.png", "__MACOSX/._a.png", "a.txt", "b.jpg", "b.png"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    passed = PassedOver()
    assert [image.member for image in tar_images(str(tmp_path / "s.tar"), passed=passed)] == ["./a.png", "b.jpg"]
    assert passed == {"hidden files": 2, ".txt": 1, "further images of a sample": 1}
