"""255 means two things: masks in which the ignored value is a class are asked about, and healthy ones are not."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meanshifter.cli.main import main
from meanshifter.data import Folder
from meanshifter.data.catalog import open_dataset
from meanshifter.data.doctor import check, check_sample
from meanshifter.data.doctor.check import SampleReport
from meanshifter.data.label_files import read_labels_json
from meanshifter.errors import InputError

Draw = Callable[[int, np.random.Generator], np.ndarray]
COUNT = 30


def of(*values: int) -> Draw:
    """A mask of 6×8 patches, each of one of the values."""
    return lambda _, rng: rng.choice(np.array(values, np.uint8), (6, 8)).repeat(4, 0).repeat(4, 1)


def either(one: Draw, other: Draw, every: int = 2) -> Draw:
    """Each `every`-th mask is drawn as the first says, the rest as the second does."""
    return lambda number, rng: (other if number % every else one)(number, rng)


def make(folder: Path, draw: Draw, names: Sequence[str] | None = None, labels: object = None) -> Path:
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(COUNT):
        noise = rng.integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"images/{number:02}.png")
        Image.fromarray(draw(number, rng)).save(folder / f"masks/{number:02}.png")
    if names is not None:
        (folder / "classes.txt").write_text("\n".join(names))
    if labels is not None:
        (folder / "labels.json").write_text(json.dumps(labels))
    return folder


def before_training(folder: Path) -> SampleReport:
    return check_sample([Folder(folder, "train"), Folder(folder, "val")], "CHECK")


TWO = ["background", "object"]
ASKED = {
    "0 and 255": (of(0, 255), TWO, None),
    "half otherwise": (either(of(0, 1), of(0, 255)), TWO, None),
    "half otherwise, without names": (either(of(0, 1), of(0, 255)), None, None),
    "one of several classes": (of(0, 1, 255), ["a", "b", "c"], None),
    "most classes": (of(0, 255), ["a", "b", "c"], None),
    "a class without a value": (of(0, 255), None, {"names": TWO, "raw": {"0": 0, "255": 255}}),
}


@pytest.mark.parametrize(("draw", "names", "labels"), ASKED.values(), ids=ASKED)
def test_the_ignored_value_may_be_a_class(
    tmp_path: Path, draw: Draw, names: list[str] | None, labels: object, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "data", draw, names, labels)
    assert "ignored-class" in {finding.kind for finding in check(folder).faults}
    with pytest.raises(InputError, match=r"255.*'.*'\? .*labels\.json.*`CHECK`") as refused:
        before_training(folder)
    assert "\n" not in str(refused.value)
    answer = re.search(r"labels\.json: (\{.*?\}\})", str(refused.value))
    assert answer is not None
    (folder / "labels.json").write_text(answer[1])
    assert before_training(folder).ignored == 0
    (folder / "labels.json").unlink()
    if labels is None:
        assert main(["data", "check", str(folder), "--write-labels"]) == 2
        assert "labels.json" in capsys.readouterr().out
        assert check(folder).faults == []
        assert before_training(folder).ignored == 0


@pytest.mark.parametrize("values", [(0, 255), (0, 128, 255), (0, 85, 170, 255), (0, 40, 255)])
def test_gray_levels_without_names_are_asked_about(tmp_path: Path, values: tuple[int, ...]) -> None:
    folder = make(tmp_path / "data", of(*values))
    with pytest.raises(InputError, match=r"255.* labels\.json: (\{.*\})") as refused:
        before_training(folder)
    assert [finding.kind for finding in check(folder).faults] == ["no-classes"]
    answers = re.findall(r"labels\.json: (\{.*?\}\})|ignored: (\{.*?\}\})", str(refused.value))
    assert len(answers) == (1 if len(values) == 2 else 2)
    for classes, text in zip((len(values), len(values) - 1), (a or b for a, b in answers), strict=False):
        (folder / "labels.json").write_text(text)
        assert before_training(folder).classes == classes


def test_the_skeleton_gives_named_classes_the_values_that_occur(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", of(0, 128, 255), ["low", "middle", "high"])
    assert main(["data", "check", str(folder), "--write-labels", str(tmp_path / "own.json")]) == 2
    assert read_labels_json(tmp_path / "own.json").raw == {0: 0, 128: 1, 255: 2}
    assert read_labels_json(tmp_path / "own.json").names == ("low", "middle", "high")
    with pytest.raises(InputError, match=r"value 128"):
        before_training(folder)


def test_the_skeleton_of_color_masks_holds_every_color_and_overwrites_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colors = np.array([[0, 0, 0], [128, 64, 0], [0, 128, 128]], np.uint8)
    folder = make(tmp_path / "data", lambda number, rng: colors[of(0, 1, 2)(number, rng)])
    assert main(["data", "check", str(folder), "--write-labels"]) == 2
    space = read_labels_json(folder / "labels.json")
    assert set(space.colors or {}) == {(0, 0, 0), (128, 64, 0), (0, 128, 128)}
    assert space.palette == tuple(space.colors or {})
    assert check(folder).faults == []
    capsys.readouterr()
    assert main(["data", "check", str(folder), "--write-labels"]) == 2
    assert "labels.json: exists" in capsys.readouterr().err


HEALTHY = {
    "borders": (of(0, 1, 2, 255), ["a", "b", "c"], None),
    "a class in one mask of all": (
        either(of(0, 1, 2), of(0, 1, 255), every=29),
        ["a", "b", "c"],
        None,
    ),
    "tiles beyond the edge": (either(of(0, 1, 255), either(of(0, 255), of(0, 1)), every=5), TWO, None),
    "said to be ignored": (
        of(0, 1, 255),
        None,
        {"names": ["a", "b", "c"], "raw": {"0": 0, "1": 1, "2": 2, "255": 255}},
    ),
    "another value is ignored": (of(0, 1, 11), None, {"names": ["a", "b"], "raw": {"0": 0, "1": 1, "11": 255}}),
    "nothing is ignored": (of(0, 1), ["a", "b", "c"], None),
    "discovered": (of(0, 1, 2, 255), None, None),
}


@pytest.mark.parametrize(("draw", "names", "labels"), HEALTHY.values(), ids=HEALTHY)
def test_healthy_masks_are_not_asked_about(tmp_path: Path, draw: Draw, names: list[str] | None, labels: object) -> None:
    folder = make(tmp_path / "data", draw, names, labels)
    assert check(folder).faults == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before_training(folder)


def test_several_absent_classes_beside_borders_are_a_notice(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", of(0, 1, 2, 3, 255), list("abcdef"))
    report = check(folder)
    assert report.faults == []
    assert "ignored-class-unsure" in report.by_kind
    with pytest.warns(UserWarning, match="'e', 'f'.*255"):
        before_training(folder)


def test_the_look_says_where_names_are_from_and_what_is_ignored(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", of(0, 1, 2, 255), ["a", "b", "c"])
    look = before_training(folder)
    pixels = [np.asarray(Image.open(path)) for path in sorted((folder / "masks").iterdir())]
    assert (look.classes, look.named_by) == (3, "classes.txt")
    assert look.ignored == pytest.approx(np.mean([mask == 255 for mask in pixels]), abs=0.03)
    assert check(folder).ignored_share == pytest.approx(np.mean([mask == 255 for mask in pixels]))
    assert "classes.txt" in look.origin
    assert f"{look.ignored:.1%}" in look.origin
    (folder / "classes.txt").unlink()
    assert before_training(folder).named_by == "the values of the masks"


def test_real_data_sets_are_not_asked_about(shared: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, root, splits in (
            ("camvid", "camvid", ("train", "val")),
            ("folder", "facades", ("train", "test")),
            ("ade20k", "ade20k_sample", ("val",)),
        ):
            sets = [open_dataset(name, shared / "data" / root, split) for split in splits]
            assert 0 < check_sample(sets, "CHECK").ignored < 0.5


def test_more_masks_are_read_until_the_question_is_settled(tmp_path: Path) -> None:
    def drawn(only: int) -> Draw:
        return lambda number, rng: of(0, 1, 2 if number == only else 255)(number, rng)

    for only in (3, 13, 23):  # of one mask a split is looked at, and at most one of these can be it
        folder = make(tmp_path / str(only), drawn(only), "abc")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_sample([Folder(folder, "train"), Folder(folder, "val")], "CHECK", count=1)
