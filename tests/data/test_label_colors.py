"""Colors of classes: inherited where masks or label files have them, else distinct, the background black."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import meanshifter as ms
from meanshifter.cli.main import main
from meanshifter.data import Folder, LabelSpace
from meanshifter.data.doctor import check, check_sample
from meanshifter.data.label_files import read_labels_json, with_mask_palette
from meanshifter.data.labels import default_palette, distinct_colors
from meanshifter.errors import InputError

VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0)]


def make(folder: Path, palettes: list[list[tuple[int, int, int]]], order: list[list[int]] | None = None) -> Path:
    """Palette masks of three classes; mask number i stores class k as `order[i][k]`."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number, palette in enumerate(palettes):
        Image.fromarray(rng.integers(0, 256, (8, 12, 3), np.uint8)).save(folder / f"images/{number}.png")
        classes = np.arange(96, dtype=np.uint8).reshape(8, 12) % 3
        stored = classes if order is None else np.array(order[number], np.uint8)[classes]
        mask = Image.fromarray(stored)
        mask.putpalette([channel for color in palette for channel in color])
        mask.save(folder / f"masks/{number}.png")
    return folder


@given(st.integers(1, 400))
def test_default_colors_are_distinct(count: int) -> None:
    assert len(set(distinct_colors(count))) == count
    assert len(set(default_palette(["background", *(f"c{k}" for k in range(count))]))) == count + 1


def test_the_first_default_colors_are_far_apart() -> None:
    colors = np.array([*distinct_colors(24), (0, 0, 0), (128, 128, 128)])
    distance = np.abs(colors[:, None] - colors[None]).max(2)
    assert distance[~np.eye(len(colors), dtype=bool)].min() >= 36


@pytest.mark.parametrize(
    ("names", "black"),
    [
        (("background", "car"), 0),
        (("car", "Void"), 1),
        (("class 0", "class 1"), 0),
        (("sky", "road"), None),
        (("class 1", "class 2"), None),
    ],
)
def test_the_background_is_black_in_label_maps_and_overlays(names: tuple[str, ...], black: int | None) -> None:
    palette = LabelSpace(names).palette
    assert [k for k, color in enumerate(palette) if color == (0, 0, 0)] == ([] if black is None else [black])


def test_colors_of_the_label_file_are_those_of_the_classes() -> None:
    colors = {(9, 9, 9): 255, (0, 0, 0): 1, (128, 64, 0): 0, (1, 1, 1): 1}
    assert LabelSpace(("a", "b"), colors=colors).palette == ((128, 64, 0), (0, 0, 0))
    partly = LabelSpace(("a", "b", "c"), colors={distinct_colors(1)[0]: 2}).palette
    assert partly[2] == distinct_colors(1)[0]
    assert len(set(partly)) == 3


@pytest.mark.parametrize("file", ["", "classes.txt", "labels.json"])
def test_the_palette_inside_the_masks_is_inherited_and_kept_by_the_model(tmp_path: Path, file: str) -> None:
    folder = make(tmp_path / "data", [VOC] * 3)
    if file == "classes.txt":
        (folder / file).write_text("a\nb\nc\n")
    elif file:
        (folder / file).write_text(json.dumps({"names": ["c", "b", "a"], "raw": {"0": 2, "1": 1, "2": 0}}))
    labels = Folder(folder, "all").label_space
    assert labels.palette == tuple(VOC[::-1] if file == "labels.json" else VOC)
    assert check(folder).label_space == labels
    model = ms.create_model(
        "segmenter-ti16",
        classes=labels,
        image_size=32,
        encoder="vit_tiny_patch16_224",
        encoder_args={"patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2},
    )
    model.save(tmp_path / "model")
    assert ms.load_model(tmp_path / "model").label_space.palette == labels.palette


def test_a_palette_that_tells_no_classes_apart_is_not_inherited(tmp_path: Path) -> None:
    grays = [(k, k, k) for k in range(3)]
    labels = Folder(make(tmp_path / "data", [grays] * 2), "all").label_space
    assert labels.palette == default_palette(labels.names)
    assert with_mask_palette(labels, [VOC[:2]]) == labels
    assert with_mask_palette(labels, [VOC]).palette == tuple(VOC)


def test_palettes_that_only_look_different_are_told(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", [VOC, [*VOC[:2], (0, 0, 128)], VOC])
    (folder / "classes.txt").write_text("a\nb\nc\n")
    assert [finding.kind for finding in check(folder).faults] == ["palettes"]
    data = Folder(folder, "all")
    assert data.label_space.palette == default_palette(data.label_space.names)
    with pytest.warns(UserWarning, match="index 2 is .* in its palette, but"):
        check_sample([data], "CHECK")


def test_palettes_that_number_the_colors_for_themselves_stop(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", [VOC, [VOC[0], VOC[2], VOC[1]], VOC], [[0, 1, 2], [0, 2, 1], [0, 1, 2]])
    (folder / "classes.txt").write_text("a\nb\nc\n")
    assert [finding.kind for finding in check(folder).faults] == ["renumbered"]
    with pytest.raises(InputError, match=r"index 1 is .* in its palette, but"):
        check_sample([Folder(folder, "all")], "CHECK")
    assert main(["data", "check", str(folder), "--write-labels"]) == 2
    assert set(read_labels_json(folder / "labels.json").colors or {}) == set(VOC)
    data = Folder(folder, "all")
    np.testing.assert_array_equal(data.read_labels(0), data.read_labels(1))
    assert check(folder).faults == []


@pytest.mark.parametrize("ignore", [0, 1])
def test_an_ignored_value_that_is_a_class_is_refused(tmp_path: Path, ignore: int) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"names": ["a", "b"], "ignore": ignore}))
    with pytest.raises(InputError, match=rf"labels\.json: .*ignore is {ignore}, .*'{'ab'[ignore]}'"):
        read_labels_json(path)
