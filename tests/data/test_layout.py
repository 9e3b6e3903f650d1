"""Folders that lie otherwise: their names given, their masks told by a suffix, a share held out, and what is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meanshifter.data import Folder, open_dataset
from meanshifter.data.doctor import check
from meanshifter.data.layout import FolderLayout
from meanshifter.errors import InputError

NAMES = [f"img{k:03}" for k in range(40)]


def fill(root: Path, images: str, masks: str, suffix: str = "", names: list[str] = NAMES, ending: str = ".jpg") -> Path:
    for name in names:
        for path, array in (
            (root / images / f"{name}{ending}", np.zeros((4, 5, 3), np.uint8)),
            (root / masks / f"{name}{suffix}.png", np.eye(4, 5, dtype=np.uint8)),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    return root


@pytest.mark.parametrize(
    ("images", "masks", "suffix"),
    [
        ("JPEGImages", "SegmentationClass", ""),
        ("x/photos", "y/truth", "_mask"),
        (".", ".", "_mask"),
        ("both", "both", "-gt"),
        (".", "masks", ""),
        ("images", "images/masks", ""),
    ],
)
def test_names_and_suffix_are_given(tmp_path: Path, images: str, masks: str, suffix: str) -> None:
    fill(tmp_path, images, masks, suffix)
    layout = FolderLayout(images, masks, suffix or None)
    data = Folder(tmp_path, "all", layout=layout)
    assert list(data.names) == NAMES
    assert all(suffix + ".png" in path.name for path in data.mask_paths)
    assert data[3].labels.sum() == 4
    assert open_dataset("folder", tmp_path, "val", layout).names == Folder(tmp_path, "val", layout=layout).names
    report = check(tmp_path, layout=layout)
    assert sum(map(len, report.pairs.values())) == len(NAMES)
    assert not [finding for finding in report.findings if "without" in finding.kind]


@pytest.mark.parametrize("outside", [False, True])
def test_named_folders_have_splits_too(tmp_path: Path, outside: bool) -> None:
    for split, names in (("train", NAMES[:30]), ("val", NAMES[30:])):
        images, masks = (f"{split}/{kind}" if outside else f"{kind}/{split}" for kind in ("img", "gt"))
        fill(tmp_path, images, masks, names=names)
    layout = FolderLayout("img", "gt")
    assert list(Folder(tmp_path, "val", layout=layout).names) == NAMES[30:]


def test_one_folder_needs_a_suffix_that_some_masks_have(tmp_path: Path) -> None:
    fill(tmp_path, "both", "both", "_mask")
    with pytest.raises(InputError, match=r"both: .*--data\.mask_suffix"):
        Folder(tmp_path, "all", layout=FolderLayout("both", "both"))
    with pytest.raises(InputError, match=r"none of 80 masks.*'_gt'"):
        Folder(tmp_path, "all", layout=FolderLayout("both", "both", "_gt"))


def test_masks_without_the_suffix_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, "images", "masks", "_mask")
    Image.new("L", (5, 4)).save(tmp_path / "masks" / "preview.png")
    with pytest.warns(UserWarning, match=r"masks that do not end in _mask \(1\)"):
        assert len(Folder(tmp_path, "all", layout=FolderLayout(mask_suffix="_mask"))) == 40


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6])
def test_a_share_is_held_out(tmp_path: Path, share: float) -> None:
    fill(tmp_path, "images", "masks")
    layout = FolderLayout(val_share=share)
    val, train = (Folder(tmp_path, split, layout=layout) for split in ("val", "train"))
    assert sorted([*val.names, *train.names]) == NAMES
    assert abs(len(val) / 40 - share) < 0.2
    usual = set(Folder(tmp_path, "val").names)
    assert usual <= set(val.names) or set(val.names) <= usual  # by the same hash
    assert f"{share:g}" in val.split
    assert {split: len(pairs) for split, pairs in check(tmp_path, layout=layout).pairs.items()} == {
        "train": len(train),
        "val": len(val),
    }


def test_a_share_of_the_split_train_is_held_out_where_there_is_no_val(tmp_path: Path) -> None:
    for split, names in (("train", NAMES[:30]), ("test", NAMES[30:])):
        fill(tmp_path, f"images/{split}", f"masks/{split}", names=names)
    with pytest.raises(InputError, match=r"no split 'val'; .*--data\.val_split test.*--data\.val_share"):
        Folder(tmp_path, "val")
    layout = FolderLayout(val_share=0.3)
    val, train, test = (Folder(tmp_path, split, layout=layout).names for split in ("val", "train", "test"))
    assert sorted([*val, *train]) == NAMES[:30]
    assert list(test) == NAMES[30:]
    assert sorted(check(tmp_path, layout=layout).pairs) == ["test", "train", "val"]
    fill(tmp_path, "images/val", "masks/val", names=["other"])
    with pytest.raises(InputError, match=r"val_share: 0.3, but .* has a folder for 'val'"):
        Folder(tmp_path, "val", layout=layout)


@pytest.mark.parametrize("share", [0, 1, -0.1, 20, float("nan")])
def test_a_share_lies_between_0_and_1(share: float) -> None:
    with pytest.raises(InputError, match=f"val_share: {share}"):
        FolderLayout(val_share=share)


def test_a_layout_is_for_folders_alone(tmp_path: Path) -> None:
    for name in ("camvid", "shapes"):
        with pytest.raises(InputError, match=f"--data.masks labels: .*{name}"):
            open_dataset(name, tmp_path, "val", FolderLayout(masks="labels"))


def test_no_image_is_in_two_splits_and_no_split_in_two_folders(tmp_path: Path) -> None:
    fill(tmp_path / "a", "images/train", "masks/train")
    (tmp_path / "a/images/val").symlink_to(tmp_path / "a/images/train")
    (tmp_path / "a/masks/val").symlink_to(tmp_path / "a/masks/train")
    with pytest.raises(InputError, match=r"images/val: .*'train'"):
        Folder(tmp_path / "a", "train")
    for word in ("val", "validation"):
        fill(tmp_path / "b", f"images/{word}", f"masks/{word}", names=[word])
    with pytest.raises(InputError, match=r"images/validation: .*'val'.*images/val;"):
        Folder(tmp_path / "b", "val")


def test_images_beside_split_folders_are_counted(tmp_path: Path) -> None:
    for folder in ("train", "val", "extra"):
        fill(tmp_path, f"images/{folder}", f"masks/{folder}", names=[folder])
    fill(tmp_path, "images", "masks", names=["loose"])
    with pytest.warns(UserWarning, match=r"2 skipped: .*split.* \(1\), .*split.* \(1\)"):
        assert len(Folder(tmp_path, "all")) == 2


@pytest.mark.parametrize(
    ("images", "masks", "suffix", "wanted"),
    [
        ("JPEGImages", "SegmentationClass", "", "--data.images JPEGImages --data.masks SegmentationClass"),
        ("imgs", "labels", "_mask", "--data.images imgs --data.masks labels --data.mask_suffix _mask"),
        ("train/img", "train/gt", "", "--data.images img --data.masks gt"),
        ("all", "all", "_mask", "--data.images all --data.masks all --data.mask_suffix _mask"),
        ("train", "train_masks", "_mask", "--data.images train --data.masks train_masks --data.mask_suffix _mask"),
        ("images", "annotations/png", "", "--data.images images --data.masks annotations/png"),
    ],
)
def test_the_nearest_layout_is_told_and_reads_the_folder(
    tmp_path: Path, images: str, masks: str, suffix: str, wanted: str
) -> None:
    fill(tmp_path, images, masks, suffix)
    with pytest.raises(InputError) as caught:
        Folder(tmp_path, "all")
    message = str(caught.value)
    assert message.endswith(wanted)
    assert f"{images}/: " in message
    words = wanted.split()
    given = {name.removeprefix("--data."): value for name, value in zip(words[::2], words[1::2], strict=True)}
    data = Folder(tmp_path, "all", layout=FolderLayout(**given))  # type: ignore[arg-type]
    assert len(data) == 40


def test_what_there_is_is_told_where_nothing_would_read_it(tmp_path: Path) -> None:
    fill(tmp_path, "photos", "photos", names=["a", "b"])
    for k in range(1004):
        (tmp_path / f"labels/{k}.mat").parent.mkdir(exist_ok=True)
        (tmp_path / f"labels/{k}.mat").touch()
    with pytest.raises(InputError, match=r"images/; .*labels/: 1,004 \.mat; photos/: 2 \.jpg, 2 \.png"):
        Folder(tmp_path, "all")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="images/; "):
        Folder(tmp_path / "none", "all")


def test_a_known_data_set_is_recognized(tmp_path: Path) -> None:
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    with pytest.raises(InputError, match=r"pascal_voc; .*--data\.name pascal_voc"):
        Folder(tmp_path, "all")
