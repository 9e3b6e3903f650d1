"""Pascal VOC's `trainaug`: the list, the masks of SBD, and what they are made of."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from meanshifter.cli.main import main
from meanshifter.data import PascalVOC
from meanshifter.data.doctor.check import check
from meanshifter.errors import InputError

SIZE = (6, 4)


def write(path: Path, array: npt.NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def own_mask() -> npt.NDArray[np.uint8]:
    """As VOC draws: a person with a border that is ignored."""
    return np.tile(np.array([0, 255, 15, 15, 255, 0], np.uint8), (4, 1))


def sbd_mask(k: int) -> npt.NDArray[np.uint8]:
    """As SBD draws: no border."""
    return np.tile(np.array([0, 0, k, k, k, 0], np.uint8), (4, 1))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """VOC with train a and b, val v; JPEGs c and d besides, which have no mask of VOC's."""
    voc = tmp_path / "VOCdevkit/VOC2012"
    rng = np.random.default_rng(0)
    for name in "abcdv":
        write(voc / f"JPEGImages/{name}.jpg", rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))
    for name in "abv":
        write(voc / f"SegmentationClass/{name}.png", own_mask())
    (voc / "ImageSets/Segmentation").mkdir(parents=True)
    (voc / "ImageSets/Segmentation/train.txt").write_text("a\nb\n")
    (voc / "ImageSets/Segmentation/val.txt").write_text("v\n")
    return tmp_path


def lists(root: Path) -> Path:
    return root / "VOCdevkit/VOC2012/ImageSets/Segmentation"


def add_sbd(root: Path, **masks: npt.NDArray[Any]) -> Path:
    scipy = pytest.importorskip("scipy.io")
    folder = root / "benchmark_RELEASE/dataset"
    (folder / "cls").mkdir(parents=True)
    for name, mask in ({"b": sbd_mask(1), "c": sbd_mask(2), "d": sbd_mask(20), "v": sbd_mask(3)} | masks).items():
        # the struct of the published files: GTcls with Segmentation, Boundaries and CategoriesPresent
        content = {"Segmentation": mask, "Boundaries": np.zeros((20, 1), object), "CategoriesPresent": mask.max()}
        scipy.savemat(folder / f"cls/{name}.mat", {"GTcls": content}, do_compression=True)
    (folder / "train.txt").write_text("b\nc\n")
    (folder / "val.txt").write_text("d\nv\n")
    return folder


def test_masks_of_sbd_are_read_where_voc_has_none(root: Path) -> None:
    (lists(root) / "trainaug.txt").write_text("a\nc\nb\n")
    write(root / "VOCdevkit/VOC2012/SegmentationClassAug/b.png", sbd_mask(1))
    write(root / "VOCdevkit/VOC2012/SegmentationClassAug/c.png", sbd_mask(2))
    data = PascalVOC(root, "trainaug")
    assert list(data.names) == ["a", "c", "b"]
    np.testing.assert_array_equal(data[1].labels, sbd_mask(2))
    np.testing.assert_array_equal(data[2].labels, own_mask())
    # the other lists keep to VOC's own masks
    (lists(root) / "train.txt").write_text("a\nc\n")
    with pytest.raises(InputError, match=r"1 image without mask \(c\)"):
        PascalVOC(root, "train")


def test_what_is_lacking_is_told_with_the_command_that_makes_it(root: Path) -> None:
    command = "`meanshifter data download pascal_voc DIR --split trainaug`"
    with pytest.raises(InputError, match=rf"trainaug\.txt: no such file; .*{command}"):
        PascalVOC(root, "trainaug")
    (lists(root) / "trainaug.txt").write_text("a\nc\nd\n")
    with pytest.raises(InputError, match=rf"trainaug\.txt: 2 images without mask \(c, d\); {command}"):
        PascalVOC(root, "trainaug")
    (lists(root) / "train.txt").write_text("a\nb\na\n")
    with pytest.warns(UserWarning, match=r"names listed again \(1\)"):
        assert list(PascalVOC(root, "train").names) == ["a", "b"]


@pytest.mark.filterwarnings("always")
def test_sbd_becomes_masks_and_list(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_sbd(root)
    with pytest.warns(UserWarning, match=r"trainaug\.txt: 4 images, .*10,582"):
        made = PascalVOC.download(root, "trainaug")
    assert sorted(path.name for path in made.iterdir()) == ["c.png", "d.png"]
    assert (lists(root) / "trainaug.txt").read_text().split() == ["a", "b", "c", "d"]
    data = PascalVOC(root, "trainaug")
    np.testing.assert_array_equal(data[1].labels, own_mask())
    np.testing.assert_array_equal(data[3].labels, sbd_mask(20))
    with Image.open(made / "d.png") as picture:
        assert picture.convert("RGB").getpixel((2, 0)) == (0, 64, 128)
    # again, and by the command: all is there
    assert main(["data", "download", "pascal_voc", str(root), "--split", "trainaug"]) == 0
    said = capsys.readouterr()
    assert f"pascal_voc trainaug is in {made}" in said.out
    assert "trainaug.txt: 4 images, " in said.err
    (made / "d.png").unlink()
    with (
        pytest.warns(UserWarning, match="10,582"),
        pytest.raises(InputError, match=r"Aug: .* 1 masks \(d"),
    ):
        PascalVOC.download(root, "trainaug")


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (sbd_mask(21), r"c\.mat: GTcls\.Segmentation is uint8 of shape \(4, 6\) up to 21"),
        (np.zeros((2, 2, 2), np.uint8), r"c\.mat: GTcls\.Segmentation .* two dimensions"),
        (None, r"c\.mat: holds no GTcls\.Segmentation"),
    ],
)
def test_a_file_that_is_not_sbd_s_leaves_nothing_behind(root: Path, mask: Any, said: str) -> None:
    sbd = add_sbd(root, **({} if mask is None else {"c": mask}))
    if mask is None:
        (sbd / "cls/c.mat").write_bytes(b"MATLAB 5.0 MAT-file, or not")
    with pytest.warns(UserWarning, match="10,582"), pytest.raises(InputError, match=said):
        PascalVOC.download(root, "trainaug")
    assert not (root / "VOCdevkit/VOC2012/SegmentationClassAug").exists()
    assert not (lists(root) / "trainaug.txt").exists()


def test_without_scipy_or_voc(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_sbd(root)
    with pytest.raises(InputError, match=r"VOC 2012.*`meanshifter data download pascal_voc"):
        PascalVOC.download(tmp_path / "elsewhere", "trainaug")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.warns(UserWarning, match="10,582"), pytest.raises(InputError, match="pip install scipy"):
        PascalVOC.download(root, "trainaug")
    with pytest.raises(InputError, match=r"--split: 'val' of pascal_voc .*trainaug"):
        PascalVOC.download(root, "val")


def test_lists_that_are_not_there_are_no_fault(root: Path) -> None:
    report = check("pascal_voc", root, None)
    assert {split: len(pairs) for split, pairs in report.pairs.items()} == {"train": 2, "val": 1}
    assert "unreadable-split" not in {finding.kind for finding in report.findings}
    # what trainaug holds beyond train is looked at; asked for by name, a list that is missing is a fault
    write(root / "VOCdevkit/VOC2012/SegmentationClassAug/c.png", sbd_mask(2))
    (lists(root) / "trainaug.txt").write_text("a\nb\nc\n")
    report = check("pascal_voc", root, None)
    assert [pair.name for pair in report.pairs["trainaug"]] == ["c"]
    report = check("pascal_voc", root, ["train", "trainval"])
    assert "unreadable-split" in {finding.kind for finding in report.findings}
    (lists(root) / "val.txt").unlink()
    assert "unreadable-split" in {finding.kind for finding in check("pascal_voc", root, None).findings}


def test_an_image_of_val_in_trainaug_is_a_fault(root: Path) -> None:
    (lists(root) / "trainaug.txt").write_text("a\nb\nv\n")
    report = check("pascal_voc", root, None)
    assert [finding.kind for finding in report.findings if finding.fault] == ["copy-across"]
