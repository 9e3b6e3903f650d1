from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError
from meanshifter.inference.segmentation import Segmentation

SPACE = LabelSpace(("sky", "road", "tree"), ((70, 130, 180), (128, 64, 128), (0, 100, 0)))


def scene() -> Segmentation:
    labels = np.array([[0, 0, 2, 2], [0, 2, 2, 255]], dtype=np.uint8)
    image = np.full((2, 4, 3), 100, dtype=np.uint8)
    return Segmentation(labels, image, SPACE)


def test_saved_png_holds_train_ids_and_palette(tmp_path: Path) -> None:
    scene().save(tmp_path / "new" / "mask.png")
    with Image.open(tmp_path / "new" / "mask.png") as saved:
        assert saved.mode == "P"
        np.testing.assert_array_equal(np.array(saved), scene().labels)
        colored = np.array(saved.convert("RGB"))
    np.testing.assert_array_equal(colored[0, 0], SPACE.palette[0])
    np.testing.assert_array_equal(colored[0, 2], SPACE.palette[2])
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["mask.png"]


def test_few_classes_are_saved_with_one_byte_per_pixel(tmp_path: Path) -> None:
    Segmentation(np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.uint8), LabelSpace.unnamed(2)).save(
        tmp_path / "m.png"
    )
    header = (tmp_path / "m.png").read_bytes()
    assert header[24] == 8  # bit depth, in the IHDR chunk


@pytest.mark.parametrize(("classes", "mode"), [(255, "P"), (300, "I;16")])
def test_many_classes_keep_every_id(tmp_path: Path, classes: int, mode: str) -> None:
    labels = np.arange(classes, dtype=np.uint16).reshape(5, -1)
    Segmentation(labels, np.zeros((*labels.shape, 3), np.uint8), LabelSpace.unnamed(classes)).save(tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as saved:
        assert saved.mode == mode
        np.testing.assert_array_equal(np.array(saved), labels)


@pytest.mark.parametrize("classes", [255, 256])
def test_no_class_stays_apart_from_the_last_class(tmp_path: Path, classes: int) -> None:
    space = LabelSpace.unnamed(classes)
    labels = np.array([[classes - 1, space.ignore]], np.uint16)
    Segmentation(labels, np.zeros((1, 2, 3), np.uint8), space).save(tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as saved:
        np.testing.assert_array_equal(np.array(saved), labels)


def test_label_maps_are_not_saved_as_jpeg(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mask\.jpg: .*\.png"):
        scene().save(tmp_path / "mask.jpg")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(InputError, match=r"mask\.png: cannot be written"):
        scene().save(tmp_path / "file" / "mask.png")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_class_areas_are_fractions_largest_first() -> None:
    assert scene().class_areas() == {"tree": 0.5, "sky": 0.375}
    assert list(scene().class_areas()) == ["tree", "sky"]


@pytest.mark.parametrize(("classes", "dtype"), [(11, np.uint8), (300, np.uint16)])
def test_overlay_rounds_the_mean_of_image_and_color(classes: int, dtype: type[np.unsignedinteger[Any]]) -> None:
    space, rng = LabelSpace.unnamed(classes), np.random.default_rng(0)
    labels = rng.integers(0, classes, (40, 50)).astype(dtype)
    labels[:5] = space.ignore
    image = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    colors = np.asarray(space.palette, np.float32)[np.where(labels < classes, labels, 0)]
    for alpha in (0.0, 0.1, 0.37, 0.5, 1.0):
        mixed = np.round((1 - alpha) * image.astype(np.float32) + alpha * colors).astype(np.uint8)
        mixed[:5] = image[:5]
        np.testing.assert_array_equal(np.array(Segmentation(labels, image, space).overlay(alpha)), mixed)


def test_overlay_mixes_and_leaves_ignored_pixels() -> None:
    picture = np.array(scene().overlay(alpha=0.25))
    assert picture.shape == (2, 4, 3)
    np.testing.assert_array_equal(picture[0, 0], np.round(0.75 * 100 + 0.25 * np.array(SPACE.palette[0])))
    np.testing.assert_array_equal(picture[1, 3], [100, 100, 100])
    np.testing.assert_array_equal(np.array(scene().overlay(alpha=0)), scene().image)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(InputError, match="alpha"):
        scene().overlay(alpha=alpha)


@pytest.mark.parametrize("size", [(1, 1), (40, 600), (900, 30), (700, 900)])
@pytest.mark.parametrize("classes", [1, 150])
def test_legend_shows_the_classes_present_beside_the_image(size: tuple[int, int], classes: int) -> None:
    space = LabelSpace.unnamed(200)
    labels = (np.arange(size[0] * size[1]).reshape(size) % classes).astype(np.uint8)
    segmentation = Segmentation(labels, np.zeros((*size, 3), np.uint8), space)
    plain, picture = segmentation.overlay(), np.array(segmentation.overlay(legend=True))
    np.testing.assert_array_equal(picture[: size[0], : size[1]], np.array(plain))
    panel = {tuple(color) for color in picture[:, size[1] :].reshape(-1, 3).tolist()}
    present = {space.palette[k] for k in np.unique(labels)}
    assert present <= panel  # a swatch for each class present,
    gray = {color for color in panel if max(color) - min(color) < 2}
    absent = {space.palette[k] for k in range(classes, 200)} - present - gray
    assert not absent & panel  # none for the others,
    assert (0, 0, 0) in panel  # and text


def test_its_representation_is_short() -> None:
    assert repr(scene()) == "Segmentation(2×4 pixels, 3 classes)"
