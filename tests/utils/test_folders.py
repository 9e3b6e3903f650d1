"""Folders are put in place whole, and what was there is not lost on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from meanshifter.errors import InputError
from meanshifter.utils.files import replace_folder, require_replaceable, write_all_or_none


def fill(place: Path, text: str) -> None:
    with replace_folder(place) as beside:
        (beside / "file").write_text(text)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    fill(tmp_path / "deep" / "place", "old")
    return tmp_path / "deep" / "place"


def test_a_folder_replaces_another(old: Path) -> None:
    fill(old, "new")
    assert (old / "file").read_text() == "new"
    assert list(old.parent.iterdir()) == [old]


@pytest.mark.parametrize("raised", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("ending", [".old", "place"])
def test_what_stops_between_the_two_renames_loses_nothing(
    raised: BaseException | type[BaseException], ending: str, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def stopped(path: Path, target: Path) -> Path:
        monkeypatch.undo()
        done = replace(path, target)
        if not str(target).endswith(ending):
            monkeypatch.setattr(Path, "replace", stopped)
            return done
        if ending == "place":  # the second of them, before it is done
            replace(target, path)
        raise raised

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises((KeyboardInterrupt, InputError)):
        fill(old, "new")
    assert (old / "file").read_text() == "old"
    assert list(old.parent.iterdir()) == [old]


def test_a_link_stays_and_what_it_points_to_is_replaced(old: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(old)
    (tmp_path / "dangling").symlink_to(tmp_path / "deep" / "later")
    for link in ("link", "dangling"):
        fill(tmp_path / link, "new")
        assert (tmp_path / link).is_symlink()
        assert ((tmp_path / link).resolve() / "file").read_text() == "new"
    assert sorted(path.name for path in old.parent.iterdir()) == ["later", "place"]
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match="loop: cannot be resolved"):
        require_replaceable(tmp_path / "loop")


def test_a_file_that_could_not_be_read_is_not_taken_for_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"), replace_folder(tmp_path / "place"):
        (tmp_path / "absent").read_text()
    with (
        pytest.raises(InputError, match=r"place: cannot be written \(No such file or directory\)"),
        replace_folder(tmp_path / "place") as beside,
    ):
        (beside / "absent" / "file").write_text("")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["a.tmp", "b.tmp", "a", "b"])
@pytest.mark.parametrize("before", [True, False])
def test_files_that_belong_together_are_replaced_together(
    place: str, before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stops it, in writing or in renaming the one or the other."""
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths if before else []:
        path.write_text(f"old {path.name}")
    replace = Path.replace

    def write(path: Path) -> Callable[[IO[bytes]], object]:
        def fill(file: IO[bytes]) -> object:
            if place == f"{path.name}.tmp":
                raise OSError(28, "No space left on device")
            return file.write(b"new")

        return fill

    def stopped(path: Path, target: Path) -> Path:
        if target.name == place and path.suffix == ".tmp":
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises((KeyboardInterrupt, InputError)):
        write_all_or_none({path: write(path) for path in paths})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == (
        {"a": "old a", "b": "old b"} if before else {}
    )
    monkeypatch.undo()
    write_all_or_none({path: lambda file: file.write(b"new") for path in paths})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new", "b": "new"}
