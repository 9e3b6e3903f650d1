"""Extra training data: folders of other images, label maps of a model, and pixels that are ignored by confidence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meanshifter.data import Folder, LabelSpace, Shapes
from meanshifter.data.doctor import check
from meanshifter.data.extra import Concatenated, open_extra, shared_images
from meanshifter.data.predictions import RECORD, record_predictions
from meanshifter.errors import InputError

SPACE = LabelSpace(("sky", "road", "tree"))
SIZE = (20, 30)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "trip/b.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def pseudo(photos: Path, tmp_path: Path) -> Path:
    """Label maps of both photos with margins from 0 to 1, as `predict --confidence margin` writes them."""
    out, rng = tmp_path / "pseudo", np.random.default_rng(1)
    for name in ("a", "trip/b"):
        for folder, values in ((out, rng.integers(0, 3, SIZE, np.uint8)), (out / "confidence" / "margin", margins())):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(folder / f"{name}.png")
    record_predictions(out, SPACE, {out / "a.png": photos / "a.jpg", out / "trip" / "b.png": photos / "trip" / "b.png"})
    return out


def margins() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 65536, SIZE).astype(np.uint16)


def write_folder(root: Path, names: tuple[str, ...] = ("sky", "road", "tree"), split: str = "") -> Path:
    rng = np.random.default_rng(3)
    for kind, shape in (("images", (*SIZE, 3)), ("masks", SIZE)):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 3, shape, np.uint8)).save(root / kind / split / f"c{split}.png")
    (root / "classes.txt").write_text("\n".join(names))
    return root


def test_label_maps_of_a_model_are_a_data_set_whose_images_lie_elsewhere(pseudo: Path, photos: Path) -> None:
    data = Folder(pseudo, "all")
    assert list(data.names) == ["a", "trip/b"]
    assert data.label_space == SPACE
    np.testing.assert_array_equal(data[1].image, np.asarray(Image.open(photos / "trip" / "b.png")))
    np.testing.assert_array_equal(data[1].labels, np.asarray(Image.open(pseudo / "trip" / "b.png")))
    assert not check(str(pseudo)).faults


def test_a_folder_that_is_moved_with_its_images_keeps_its_record(pseudo: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    for name in ("photos", "pseudo"):
        shutil.move(tmp_path / name, tmp_path / "new" / name)
    assert len(Folder(tmp_path / "new" / "pseudo", "all")) == 2
    shutil.rmtree(tmp_path / "new" / "photos")
    with pytest.raises(InputError, match=r"predictions.json: 2 of 2 images are missing.*a\.jpg"):
        Folder(tmp_path / "new" / "pseudo", "all")


def test_a_second_prediction_adds_to_the_record_unless_its_classes_differ(pseudo: Path, photos: Path) -> None:
    for name, space, expected in (("c", SPACE, ["a", "c", "trip/b"]), ("d", LabelSpace(("x", "y")), ["d"])):
        shutil.copy(pseudo / "a.png", pseudo / f"{name}.png")
        record_predictions(pseudo, space, {pseudo / f"{name}.png": photos / "a.jpg", pseudo / "gone.png": photos})
        data = Folder(pseudo, "all")
        assert (list(data.names), data.label_space.names) == (expected, space.names)


def test_a_folder_with_images_and_masks_is_read_as_such_whatever_was_predicted_into_it(pseudo: Path) -> None:
    write_folder(pseudo, names=("x", "y", "z"))
    data = Folder(pseudo, "all")
    assert (list(data.names), data.label_space.names) == (["c"], ("x", "y", "z"))


@pytest.mark.parametrize("least", [0.0, 0.25, 0.5, 1.0])
def test_pixels_below_the_margin_are_ignored_and_no_others(pseudo: Path, least: float) -> None:
    (data,) = open_extra([str(pseudo)], SPACE, least=least)
    stored = np.asarray(Image.open(pseudo / "a.png"))
    expected = np.where(margins() / 65535 < least, 255, stored)
    for labels in (data[0].labels, data.read_labels(0), data.read_reduced(0, lambda *_: 0.1).labels):
        np.testing.assert_array_equal(labels, expected)
        assert labels.dtype == SPACE.dtype
    np.testing.assert_array_equal(data[0].image, Folder(pseudo, "all")[0].image)


def test_confidence_that_is_missing_or_does_not_fit_is_refused_by_name(pseudo: Path) -> None:
    with pytest.raises(InputError, match=r"confidence/probability/a\.png: missing.*extra_min_confidence is 0\.5"):
        open_extra([str(pseudo)], SPACE, measure="probability", least=0.5)
    path = pseudo / "confidence" / "margin" / "a.png"
    (data,) = open_extra([str(pseudo)], SPACE, least=0.5)
    Image.fromarray(margins()[:5]).save(path)
    with pytest.raises(InputError, match=r"a\.png: 30×5, but its label map is 30×20"):
        data[0]
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(path)
    with pytest.raises(InputError, match=r"a\.png: not 16-bit gray"):
        data[0]


def test_an_ordinary_folder_gives_its_training_split_and_needs_the_same_classes(tmp_path: Path) -> None:
    more = write_folder(tmp_path / "more")
    (data,) = open_extra([str(more)], SPACE)
    assert list(data.names) == ["c"]
    for split in ("train", "val"):
        write_folder(tmp_path / "split", split=split)
    (data,) = open_extra([str(tmp_path / "split")], SPACE)
    assert list(data.names) == ["ctrain"]
    other = write_folder(tmp_path / "other", ("sky", "roof", "tree"))
    with pytest.raises(InputError, match=r"in .*other class 1 is 'roof', but in the training data class 1 is 'road'"):
        open_extra([str(other)], SPACE)
    other = write_folder(tmp_path / "fewer", ("sky", "road"))
    with pytest.raises(InputError, match=r"fewer there is no class 2, but in the training data class 2 is 'tree'"):
        open_extra([str(other)], SPACE)


def test_without_a_class_file_masks_hold_train_ids_or_nothing_is_assumed(tmp_path: Path) -> None:
    more = write_folder(tmp_path / "more")
    (more / "classes.txt").unlink()
    (data,) = open_extra([str(more)], SPACE)
    assert data[0].labels.max() == 2
    with pytest.raises(InputError, match=r"more: no labels\.json or classes\.txt"):
        open_extra([str(more)], LabelSpace(SPACE.names, raw={7: 0, 8: 1, 9: 2}))


def test_the_ignored_value_of_a_folder_becomes_that_of_the_training_data(tmp_path: Path) -> None:
    more = write_folder(tmp_path / "more")
    (more / "classes.txt").unlink()
    labels = {"names": SPACE.names, "ignore": 99, "raw": {"0": 0, "1": 1, "2": 99}}
    (more / "labels.json").write_text(json.dumps(labels))
    (data,) = open_extra([str(more)], SPACE)
    stored = np.asarray(Image.open(more / "masks" / "c.png"))
    np.testing.assert_array_equal(data[0].labels, np.where(stored == 2, 255, stored))
    assert data.label_space.ignore == 255


def test_a_folder_that_is_neither_says_how_to_write_the_record(pseudo: Path) -> None:
    (pseudo / RECORD).unlink()
    with pytest.raises(InputError, match=r"pseudo has neither images/ and masks/ nor predictions\.json.*--confidence"):
        open_extra([str(pseudo)], SPACE)
    (pseudo / RECORD).write_text("{}")
    with pytest.raises(InputError, match=r"predictions\.json: not a record"):
        open_extra([str(pseudo)], SPACE)


def test_data_sets_are_joined_in_order() -> None:
    first, second = Shapes(split="train", length=3), Shapes(split="val", length=2)
    both = Concatenated([first, second])
    assert len(both) == 5
    assert list(both.names) == [*first.names, *second.names]
    for index, sample in enumerate([*first, *second]):
        np.testing.assert_array_equal(both[index].image, sample.image)
        np.testing.assert_array_equal(both.read_labels(index), sample.labels)
    assert both[-1].name == second[1].name
    with pytest.raises(IndexError):
        both[5]


def test_images_of_two_data_sets_are_found_however_their_folders_are_named(pseudo: Path, photos: Path) -> None:
    (pseudo.parent / "link").symlink_to(photos)
    other = Folder.from_lists([pseudo.parent / "link" / "a.jpg"], [pseudo / "a.png"], SPACE)
    assert shared_images(Folder(pseudo, "all"), other) == [photos / "a.jpg"]
