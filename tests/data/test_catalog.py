"""The public datasets: their label maps, their layouts, and the real images."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from meanshifter.data import ADE20K, CamVid, Cityscapes, PascalVOC, open_dataset
from meanshifter.data.catalog.public import PublicDataset
from meanshifter.data.datasets import Dataset
from meanshifter.data.doctor.check import check
from meanshifter.errors import InputError

KINDS: list[type[PublicDataset]] = [ADE20K, CamVid, Cityscapes, PascalVOC]


def write(path: Path, array: npt.NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def photo() -> npt.NDArray[np.uint8]:
    return np.zeros((4, 6, 3), np.uint8)


def found(data: Dataset, index: int) -> set[str]:
    return {data.label_space.names[k] for k in np.unique(data[index].labels) if k != data.label_space.ignore}


# the real images


def test_ade20k_images_hold_the_classes_that_one_sees(shared: Path) -> None:
    data = ADE20K(shared / "data/ade20k_sample", "val")
    assert list(data.names) == ["ADE_val_00000001", "ADE_val_00000002", "ADE_val_00000003"]
    # a stone house behind a lawn; a church against clouds; a street with a bus, a van and a flight of steps
    assert found(data, 0) == {"wall", "building", "sky", "tree", "road", "grass", "plant"}
    assert found(data, 1) == {"wall", "building", "sky", "tree", "earth", "plant"}
    assert found(data, 2) == {
        "wall",
        "building",
        "sky",
        "tree",
        "road",
        "sidewalk",
        "car",
        "signboard",
        "bus",
        "streetlight",
        "escalator",
        "van",
    }
    first = data[0]
    assert first.image.shape == (512, 683, 3)
    sky, grass = (data.label_space.names.index(name) for name in ("sky", "grass"))
    assert first.labels[10, 300] == sky
    assert first.labels[480, 200] == grass
    # the sky is blue and the grass is green
    assert first.image[first.labels == sky].mean(axis=0).argmax() == 2
    assert first.image[first.labels == grass].mean(axis=0).argmax() == 1


def test_ade20k_counts_and_ignored_pixels_match_the_file(shared: Path) -> None:
    root = shared / "data/ade20k_sample"
    raw = np.asarray(Image.open(root / "annotations/validation/ADE_val_00000003.png")).astype(int)
    labels = ADE20K(root)[2].labels.astype(int)
    np.testing.assert_array_equal(labels, np.where(raw == 0, 255, raw - 1))


def test_ade20k_names_are_the_first_of_the_challenge_s(shared: Path) -> None:
    with (shared / "data/ade20k_sample/objectInfo150.csv").open() as file:
        rows = list(csv.DictReader(file))
    # the file separates words as well as synonyms by semicolons: door;double;door
    for k, (row, name) in enumerate(zip(rows, ADE20K.space.names, strict=True)):
        assert int(row["Idx"]) == k + 1
        words = name.split()
        assert row["Name"].split(";")[: len(words)] == words


def test_camvid_reads_what_lies_there(shared: Path) -> None:
    root = shared / "data/camvid"
    sizes = {split: len(CamVid(root, split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 367, "val": 101, "test": 233} == CamVid.about.images
    data = CamVid(root, "val")
    sample = data[0]
    assert sample.image.shape == (360, 480, 3)
    assert sample.name == "0016E5_07959"
    raw = np.asarray(Image.open(data.mask_paths[0]))
    np.testing.assert_array_equal(sample.labels, np.where(raw == 11, 255, raw))
    # looking down a street: sky above, road below, and the sky the brightest class
    top, bottom = (
        np.bincount(part.ravel(), minlength=256).argmax() for part in (sample.labels[:60], sample.labels[-60:])
    )
    assert data.label_space.names[top] in ("sky", "tree", "building")
    assert data.label_space.names[bottom] == "road"
    light = {k: sample.image[sample.labels == k].mean() for k in np.unique(sample.labels)}
    assert data.label_space.names[max(light, key=light.__getitem__)] == "sky"


# layouts and label maps


def test_pascal_voc(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit/VOC2012"
    mask = np.array([[0, 15, 255]], np.uint8)
    for name in ("2007_000032", "2007_000039"):
        write(root / f"JPEGImages/{name}.jpg", photo()[:1, :3])
        write(root / f"SegmentationClass/{name}.png", mask)
    write(root / "JPEGImages/unlisted.jpg", photo())
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("2007_000039\n2007_000032\n")
    for folder in (tmp_path, tmp_path / "VOCdevkit", root):
        data = PascalVOC(folder, "val")
        assert list(data.names) == ["2007_000039", "2007_000032"]
        assert found(data, 0) == {"background", "person"}
        assert data[0].labels[0, 2] == 255
    # the devkit's colormap.m
    assert data.label_space.palette[1] == (128, 0, 0)
    assert data.label_space.palette[15] == (192, 128, 128)
    assert data.label_space.palette[20] == (0, 64, 128)
    with pytest.raises(InputError, match=r"train\.txt: no such file"):
        PascalVOC(root, "train")
    (root / "ImageSets/Segmentation/train.txt").write_text("2007_000032\nlost\n")
    with pytest.raises(InputError, match=r"train\.txt: 1 name without an image \(lost\)"):
        PascalVOC(root, "train")


@pytest.mark.parametrize("place", [".", "..", "../.."])
def test_ade20k_s_test_images_have_no_labels(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "ADEChallengeData2016/release_test"
    for number in (1, 3, 4):
        write(folder / f"testing/ADE_test_{number:08}.jpg", photo())
    data = ADE20K(folder / place, "test")
    assert len(data) == 3
    assert not data.labeled
    assert [path.name for path in data.image_paths] == [f"{name}.jpg" for name in data.names]
    for read in (data.__getitem__, data.read_labels, data.pair, data.files):
        with pytest.raises(InputError, match=r"ade20k: split 'test' has no labels.* `meanshifter predict MODEL ade20k"):
            read(0)
    with pytest.raises(InputError, match="split 'test' has no labels"):
        open_dataset("ade20k", folder, "test")
    assert open_dataset("ade20k", folder, "test", labeled=False).names == data.names
    with pytest.raises(InputError, match="split 'test' has no labels"):
        check("ade20k", folder, ["test"])
    (folder / "list.txt").write_text("ADE_test_00000003.jpg\nADE_test_00000001.jpg\n")
    with pytest.warns(UserWarning, match=r"images that list\.txt does not name \(1\)"):
        assert list(ADE20K(folder, "test").names) == ["ADE_test_00000003", "ADE_test_00000001"]
    (folder / "list.txt").write_text("ADE_test_00000001.jpg\nADE_test_00000002.jpg\n")
    with pytest.raises(InputError, match=r"list\.txt: 1 name without an image \(ADE_test_00000002\.jpg\)"):
        ADE20K(folder, "test")


def test_the_archive_of_the_test_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`meanshifter data download ade20k DIR --split test`"):
        ADE20K(tmp_path, "test")
    with pytest.raises(InputError, match=r"--split: 'val' of ade20k"):
        ADE20K.download(tmp_path, "val")


def test_cityscapes(tmp_path: Path) -> None:
    raw = np.arange(34, dtype=np.uint8)[None]
    stem = "ulm/ulm_000000_000019"
    write(tmp_path / f"leftImg8bit/train/{stem}_leftImg8bit.png", np.zeros((1, 34, 3), np.uint8))
    write(tmp_path / f"gtFine/train/{stem}_gtFine_labelIds.png", raw)
    write(tmp_path / f"gtFine/train/{stem}_gtFine_color.png", np.zeros((1, 34, 3), np.uint8))
    data = Cityscapes(tmp_path, "train")
    assert list(data.names) == [stem]
    names = {raw: data.label_space.names[k] for raw, k in enumerate(data[0].labels[0].tolist()) if k != 255}
    assert len(names) == 19
    assert [names[k] for k in (7, 11, 17, 24, 26, 33)] == ["road", "building", "pole", "person", "car", "bicycle"]
    write(tmp_path / "leftImg8bit/test/bonn/bonn_000000_000019_leftImg8bit.png", photo())
    assert list(Cityscapes(tmp_path, "test").names) == ["bonn/bonn_000000_000019"]
    with pytest.raises(InputError, match=r"registration; get it from https://www\.cityscapes-dataset\.com"):
        Cityscapes.download(tmp_path)


def test_camvid_with_png_images_inside_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "CamVid/val/a.png", photo())
    write(tmp_path / "CamVid/valannot/a.png", np.full((4, 6), 11, np.uint8))
    data = CamVid(tmp_path)
    assert data[0].labels.tolist() == [[255] * 6] * 4
    write(tmp_path / "CamVid/valannot/a.png", np.full((4, 6), 12, np.uint8))
    with pytest.raises(InputError, match=r"a\.png: value 12 \(24 pixels\) outside the label map \(0-11\)"):
        data[0]


@pytest.mark.parametrize("kind", KINDS)
def test_what_all_share(kind: type[PublicDataset], tmp_path: Path) -> None:
    name = kind.about.name
    with pytest.raises(InputError, match=rf"no such folder; .*{name}"):
        kind(tmp_path)
    with pytest.raises(InputError, match=f"{name}: no root"):
        kind(None)
    with pytest.raises(InputError, match=f"{name}: split 'vl' is unknown"):
        kind(tmp_path, "vl")
    assert len(set(kind.space.names)) == kind.about.classes
    assert kind.about.images.keys() <= kind.splits.keys()


def test_data_is_read_without_torch() -> None:
    code = (
        "import sys, meanshifter.data as d, meanshifter.data.augment, meanshifter.cli.data;"
        "d.Shapes(length=1)[0]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
