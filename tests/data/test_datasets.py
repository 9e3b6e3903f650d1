"""Folders of images and masks: layouts, splits, classes, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meanshifter.data import Folder, open_dataset
from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError


def fill(images: Path, masks: Path, names: list[str], values: tuple[int, ...] = (0, 1)) -> None:
    for k, name in enumerate(names):
        for folder, array, suffix in (
            (images, np.full((4, 5, 3), k, np.uint8), ".jpg"),
            (masks, np.resize(np.array(values, np.uint8), (4, 5)), ".png"),
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / f"{name}{suffix}")


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    fill(tmp_path / "images", tmp_path / "masks", [f"img{k:03d}" for k in range(60)])
    return tmp_path


def test_a_plain_folder_splits_by_name(plain: Path) -> None:
    train, val, everything = (Folder(plain, split) for split in ("train", "val", "all"))
    assert sorted([*train.names, *val.names]) == list(everything.names) == sorted(everything.names)
    assert 3 <= len(val) <= 18
    assert train.label_space == val.label_space
    assert list(Folder(plain, "val").names) == list(val.names)
    before = set(val.names)
    fill(plain / "images", plain / "masks", ["new_a", "new_b"])
    assert before <= set(Folder(plain, "val").names) <= before | {"new_a", "new_b"}


def test_samples_and_iteration(plain: Path) -> None:
    data = Folder(plain, "all")
    assert [sample.name for sample in data] == list(data.names)
    sample = data[-1]
    assert sample.name == "img059"
    assert sample.image.shape == (4, 5, 3)
    assert sample.labels.tolist() == data.read_labels(59).tolist()
    with pytest.raises(IndexError):
        data[60]
    assert pickle.loads(pickle.dumps(data))[3].name == "img003"


@pytest.mark.parametrize("count", [2, 3, 5])
def test_small_folders_have_both_splits(tmp_path: Path, count: int) -> None:
    fill(tmp_path / "images", tmp_path / "masks", [f"only{k}" for k in range(count)])
    assert len(Folder(tmp_path, "train")) >= 1
    assert len(Folder(tmp_path, "val")) >= 1


def test_one_image_cannot_be_split(tmp_path: Path) -> None:
    fill(tmp_path / "images", tmp_path / "masks", ["only"])
    with pytest.raises(InputError, match=": 1 image"):
        Folder(tmp_path, "train")
    assert len(Folder(tmp_path, "all")) == 1


@pytest.mark.parametrize("outside", [False, True])
def test_split_folders(tmp_path: Path, outside: bool) -> None:
    for word, names in (("train", ["a", "b/c"]), ("validation", ["d"])):
        images, masks = (
            (tmp_path / word / kind) if outside else (tmp_path / kind / word) for kind in ("images", "masks")
        )
        fill(images, masks, names, (0, 1, 2) if word == "train" else (0, 1))
    assert list(Folder(tmp_path, "train").names) == ["a", "b/c"]
    assert list(Folder(tmp_path, "val").names) == ["d"]
    assert list(Folder(tmp_path, "all").names) == ["a", "b/c", "d"]
    # the classes are those of all splits together
    assert Folder(tmp_path, "val").label_space.num_classes == 3
    with pytest.raises(InputError, match=r"no split 'test'; it has train, val, and 'all'"):
        Folder(tmp_path, "test")


def test_lists(plain: Path) -> None:
    images = [plain / "images/img001.jpg", plain / "images/img000.jpg"]
    masks = [plain / "masks/img005.png", plain / "masks/img006.png"]
    data = Folder.from_lists(images, masks, LabelSpace(("a", "b")))
    assert list(data.names) == ["img001", "img000"]
    assert data[0].image[0, 0, 0] == 1
    with pytest.raises(InputError, match="2 images and 1 masks"):
        Folder.from_lists(images, masks[:1], LabelSpace(("a", "b")))


def test_unpaired_files_are_counted_and_named(plain: Path) -> None:
    for k in range(5):
        (plain / f"masks/img{k:03d}.png").unlink()
    (plain / "images/img059.jpg").unlink()
    with pytest.raises(InputError) as caught:
        Folder(plain, "train")
    assert "5 images without mask (img000, img001, img002, …) and 1 mask without image (img059)" in str(caught.value)


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        Folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"images/; "):
        Folder(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "notes.txt").touch()
    (tmp_path / "masks").mkdir()
    with pytest.raises(InputError, match=r"images: no images \(1 skipped: .txt \(1\)\).* jpg jpeg png"):
        Folder(tmp_path)
    with pytest.raises(InputError, match="no root"):
        Folder(None)


def test_one_name_twice(plain: Path) -> None:
    Image.new("RGB", (5, 4)).save(plain / "images/img000.PNG")
    with pytest.raises(InputError, match=r"has the same name up to the extension"):
        Folder(plain)


def test_hidden_files_are_passed_over(plain: Path) -> None:
    (plain / "images/._img000.jpg").write_bytes(b"resource fork")
    with pytest.warns(UserWarning, match=r"1 skipped: hidden files \(1\)"):
        assert len(Folder(plain, "all")) == 60


def test_a_jpeg_mask_is_refused_with_its_reason(tmp_path: Path) -> None:
    fill(tmp_path / "images", tmp_path / "masks", ["a", "b"])
    Image.new("L", (5, 4)).save(tmp_path / "masks/a.jpg")
    (tmp_path / "masks/a.png").unlink()
    with pytest.raises(InputError, match=r"a\.jpg: a JPEG mask; lossy"):
        Folder(tmp_path, "all")


# classes


def test_classes_are_discovered(tmp_path: Path) -> None:
    fill(tmp_path / "images", tmp_path / "masks", ["a", "b"], (0, 1, 2, 255))
    labels = Folder(tmp_path, "all").label_space
    assert labels.names == ("class 0", "class 1", "class 2")
    assert labels.raw is None
    fill(tmp_path / "images", tmp_path / "masks", ["c"], (7, 255))
    data = Folder(tmp_path, "all")
    assert data.label_space.names == ("class 0", "class 1", "class 2", "class 7")
    assert set(data.read_labels(2).ravel().tolist()) == {3, 255}


def test_masks_of_0_and_255_are_asked_about(tmp_path: Path) -> None:
    fill(tmp_path / "images", tmp_path / "masks", ["a", "b"], (0, 255))
    with pytest.raises(InputError, match=r"only 0 and 255, and 255 means ignored .*labels\.json"):
        Folder(tmp_path, "all")
    (tmp_path / "labels.json").write_text('{"names": ["background", "object"], "raw": {"0": 0, "255": 1}}')
    assert set(Folder(tmp_path, "all").read_labels(0).ravel().tolist()) == {0, 1}
    assert set(Folder(tmp_path, "all", classes=["x", "y"], raw={0: 1, 255: 0}).read_labels(0).ravel().tolist()) == {
        0,
        1,
    }


def test_one_value_is_no_task(tmp_path: Path) -> None:
    fill(tmp_path / "images", tmp_path / "masks", ["a", "b"], (0,))
    with pytest.raises(InputError, match="only the value 0"):
        Folder(tmp_path, "all")


def test_given_classes_win_over_files(plain: Path) -> None:
    (plain / "classes.txt").write_text("sky\nroad\n\n")
    assert Folder(plain).label_space.names == ("sky", "road")
    (plain / "labels.json").write_text(json.dumps(LabelSpace(("u", "v"), colors={(1, 2, 3): 0}).to_dict()))
    assert Folder(plain).label_space == LabelSpace(("u", "v"), colors={(1, 2, 3): 0})
    assert Folder(plain, classes=["p", "q"]).label_space.names == ("p", "q")
    assert Folder(plain, label_space=LabelSpace(("m", "n"))).label_space.names == ("m", "n")
    assert Folder(plain, raw={0: 255, 1: 0, 2: 1}).label_space.names == ("class 0", "class 1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSON"),
        ("[]", '"names"'),
        ('{"names": ["a"], "colours": []}', "'colours'.*'colors'"),
        ('{"names": ["a", "a"]}', "class name 'a' occurs twice"),
        ('{"names": ["a"], "raw": {"0": 3}}', "raw maps 0 to 3"),
        ('{"names": ["a"], "colors": [[1, 2], 0]}', '"colors" \\[\\[r, g, b\\], train id\\] pairs'),
    ],
)
def test_label_files_that_mean_nothing(plain: Path, text: str, message: str) -> None:
    (plain / "labels.json").write_text(text)
    with pytest.raises(InputError, match=rf"labels\.json: .*{message}"):
        Folder(plain)


def test_color_masks_need_a_map(tmp_path: Path) -> None:
    fill(tmp_path / "images", tmp_path / "masks", ["a", "b"])
    for name in "ab":
        Image.new("RGB", (5, 4), (128, 0, 0)).save(tmp_path / f"masks/{name}.png")
    with pytest.raises(InputError, match="RGB mask without a color map"):
        Folder(tmp_path, "all")
    data = Folder(tmp_path, "all", classes=["x"], colors={(128, 0, 0): 0})
    assert data[0].labels.max() == 0


# by name


def test_open_dataset(plain: Path) -> None:
    assert open_dataset("folder", plain, "all").names == open_dataset(str(plain), None, "all").names
    assert open_dataset("shapes", None, "val").name == "shapes"
    with pytest.raises(InputError, match=r"'camvd' is unknown; did you mean 'camvid'\?"):
        open_dataset("camvd", None, "val")
    with pytest.raises(InputError, match="folder, camvid, "):
        open_dataset("???", None, "val")


def test_label_spaces_of_lists_and_of_tuples_are_one() -> None:
    colors = [(1, 2, 3), (4, 5, 6)]
    listed = LabelSpace(["a", "b"], palette=[list(color) for color in colors])  # type: ignore[arg-type]
    assert listed == LabelSpace(("a", "b"), palette=tuple(colors))
    assert listed == LabelSpace.from_dict(listed.to_dict())
    with pytest.raises(InputError, match=r"names .*'road'"):
        LabelSpace("road")  # type: ignore[arg-type]
