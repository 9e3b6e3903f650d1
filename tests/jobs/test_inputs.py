from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meanshifter.data.reading import PassedOver
from meanshifter.errors import InputError
from meanshifter.jobs.inputs import file_name, plan


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in (
        "photos/a.jpg",
        "photos/trip/b.JPG",
        "photos/trip/c.png",
        "photos/notes.txt",
        "photos/.hidden/d.jpg",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "photos"


def targets(inputs: list[str], out: Path, *, overlay: bool = False) -> list[str]:
    return sorted(job.mask.relative_to(out).as_posix() for job in plan(inputs, out, overlay=overlay))


def test_folders_keep_their_structure(photos: Path, tmp_path: Path) -> None:
    assert targets([str(photos)], tmp_path / "out") == ["a.png", "trip/b.png", "trip/c.png"]


def test_globs_keep_what_is_below_their_fixed_part(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert targets([f"{photos}/**/*.[jJ]*"], out) == ["a.png", "trip/b.png"]
    assert targets([f"{photos}/trip/*"], out) == ["b.png", "c.png"]


def test_files_and_repetitions(photos: Path, tmp_path: Path) -> None:
    jobs = plan([str(photos / "a.jpg"), str(photos)], tmp_path / "out", overlay=True)
    assert [job.mask.name for job in jobs].count("a.png") == 1
    assert jobs[0].overlay == tmp_path / "out" / "overlays" / "a.png"


def test_earlier_results_inside_the_input_are_passed_over(photos: Path) -> None:
    out = photos / "out"
    out.mkdir()
    (out / "a.png").touch()
    assert targets([str(photos)], out) == ["a.png", "trip/b.png", "trip/c.png"]


@pytest.mark.parametrize(
    ("inputs", "out", "message"),
    [
        (["{0}/nowhere"], "out", "nowhere: no such file or folder"),
        (["{0}/*.tiff"], "out", r"\*.tiff: no images; .*\.png"),
        (["{0}/empty"], "out", r"empty: no images .*\.txt \(1\)"),
        (
            ["{0}/one", "{0}/two"],
            "out",
            r"x.png: would be written for both .*one.x.jpg and .*two.x.jpg; rename",
        ),
        (["{0}/three"], "three", "y.png: .*three.y.png"),
        (["{0}/one"], "file", "--out: .*file"),
    ],
)
def test_conflicts_are_found_before_any_work(tmp_path: Path, inputs: list[str], out: str, message: str) -> None:
    for name in ("one/x.jpg", "two/x.jpg", "three/y.png", "empty/readme.txt", "file"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=message):
        plan([text.format(tmp_path) for text in inputs], tmp_path / out, overlay=False)


def test_overlays_must_not_meet_masks(tmp_path: Path) -> None:
    for name in ("in/x.jpg", "in/overlays/x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="would be written for both"):
        plan([str(tmp_path / "in")], tmp_path / "out", overlay=True)
    assert len(plan([str(tmp_path / "in")], tmp_path / "out", overlay=False)) == 2


def test_what_is_no_image_by_its_name_is_counted(photos: Path, tmp_path: Path) -> None:
    (photos / "._a.jpg").touch()
    for named, hidden in ((str(photos), "hidden or system folders"), (f"{photos}/*", None)):
        passed = PassedOver()
        plan([named], tmp_path / "out", overlay=False, passed=passed)
        assert passed == {".txt": 1, "hidden files": 1, **({} if hidden is None else {hidden: 1})}


def test_links_that_a_recursive_glob_does_not_enter_are_counted(photos: Path, tmp_path: Path) -> None:
    (photos / "elsewhere").symlink_to(photos / "trip")
    passed = PassedOver()
    plan([f"{photos}/**/*.png"], tmp_path / "out", overlay=False, passed=passed)
    assert [(kind, count) for kind, count in passed.items() if "link" in kind] == [
        ("linked folders, which ** does not follow", 1)
    ]


@given(st.lists(st.text(max_size=3), min_size=2, max_size=30, unique=True))
def test_no_two_names_give_one_folder(names: list[str]) -> None:
    folders = {file_name(name) for name in names}
    assert len(folders) == len(names)
    assert not any(folder in ("", ".", "..") or "/" in folder for folder in folders)
