"""Folders are put in place whole, and what was there is not lost on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from meanshifter.errors import InputError
from meanshifter.files import folder_beside, require_replaceable


def fill(place: Path, text: str) -> None:
    with folder_beside(place) as beside:
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
    with pytest.raises(InputError, match="loop: cannot be followed"):
        require_replaceable(tmp_path / "loop")


def test_a_file_that_could_not_be_read_is_not_taken_for_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"), folder_beside(tmp_path / "place"):
        (tmp_path / "absent").read_text()
    with (
        pytest.raises(InputError, match=r"place: cannot be written \(No such file or directory\)"),
        folder_beside(tmp_path / "place") as beside,
    ):
        (beside / "absent" / "file").write_text("")
    assert not list(tmp_path.iterdir())
