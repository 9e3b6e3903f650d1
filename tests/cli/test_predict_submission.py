"""`meanshifter predict` on the test split of a dataset, and the archive that its evaluation server takes."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import meanshifter as ms
from meanshifter.cli.main import main
from meanshifter.data import ADE20K, Cityscapes, PascalVOC
from meanshifter.data.catalog.public import PublicDataset
from meanshifter.data.labels import LabelSpace
from tests import commands

SMALL = {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8}
SIZES = {"ADE_test_00000001": (30, 20), "ADE_test_00000003": (25, 33), "ADE_test_00003489": (40, 24)}
"""(W, H); numbers are left out in the real list too."""


def save_model(kind: type[PublicDataset], folder: Path) -> Path:
    torch.manual_seed(0)
    names = list(kind.space.names)
    model = ms.create_model("segmenter-ti16", classes=names, image_size=32, encoder_args=SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save(folder)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(ADE20K, tmp_path_factory.mktemp("models") / "ade20k")


def save_photo(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, size in SIZES.items():
        save_photo(tmp_path / f"data/release_test/testing/{name}.jpg", size)
    (tmp_path / "data/release_test/list.txt").write_text("".join(f"{name}.jpg\n" for name in SIZES))
    return tmp_path / "data"


def read_zip(file: Path) -> dict[str, Image.Image]:
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        return {name: Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist()}


def test_ade20k_s_test_images_become_the_server_s_zip(model_folder: Path, root: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "sent/labels.zip"
    options = ["predict", model_folder, "ade20k", "--root", root, "--out", out, "--window", "none"]
    done = commands.run(*options, "--submission", file)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 label maps written" in done.stdout
    assert f"values 1 to 150 packed into {file}" in done.stdout
    assert "3 label maps, but split 'test' of ade20k has 3,352 images" in done.stderr
    found = read_zip(file)
    assert list(found) == [f"{name}.png" for name in SIZES]
    predictor = ms.Predictor(ms.load_model(model_folder), window=None)
    for name, size in SIZES.items():
        picture = found[f"{name}.png"]
        assert (picture.mode, picture.size) == ("L", size)
        labels = predictor(root / f"release_test/testing/{name}.jpg").labels
        np.testing.assert_array_equal(np.asarray(picture), labels + 1)
        assert len(np.unique(labels)) > 1


def test_an_unfinished_set_is_no_zip_and_the_same_command_resumes_it(
    model_folder: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "out", tmp_path / "labels.zip"
    command = ["predict", str(model_folder), "ade20k", "--root", str(root / "release_test"), "--out", str(out)]
    command += ["--submission", str(file), "--window", "none"]
    broken = root / "release_test/testing/ADE_test_00000003.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "1 of 3 label maps are missing" in said
    assert str(broken) in said
    assert not file.exists()
    broken.write_bytes(whole)
    assert main(command) == 0
    assert "1 of 1 label map written" in capsys.readouterr().out
    first = file.read_bytes()
    assert len(read_zip(file)) == 3
    # nothing is left to label, and the same archive comes, byte by byte; nothing else lies beside it
    file.unlink()
    assert main(command) == 0
    assert file.read_bytes() == first
    assert {path.name for path in tmp_path.iterdir()} == {"data", "out", "labels.zip"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--submission", "labels.tgz"], "--submission: labels.tgz"),
        (["--submission", "a.zip", "--split", "tset"], "split 'tset' is unknown"),
        (["--submission", "a.zip", "--out", "s3://bucket/labels"], "--out: s3://bucket/labels is an address"),
        (["--submission", "a.zip", "--mean-shift-layers", "0", "1"], "--mean-shift-layers: 0 1"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_is_read(
    options: list[str], said: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "no-such-model", "ade20k", "--root", str(root), *options]) == 2
    assert said in capsys.readouterr().err


def test_options_of_a_data_set_need_one(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = str(root / "release_test/testing")
    for command, said in (
        (["predict", "m", "ade20k"], "--root: missing; ade20k is read from a folder"),
        (["predict", "m", photos, "--submission", "a.zip"], "--submission: only applies to datasets by name"),
        (["predict", "m", photos, "--root", str(root)], "is unknown"),
        (["predict", "m", "shapes", "--root", str(root)], "--root: shapes "),
        (["predict", "m", "ade20k", "camvid", "--root", str(root)], "--root: given with 2 inputs"),
    ):
        assert main(command) == 2
        assert said in capsys.readouterr().err


def test_a_model_of_other_classes_is_refused(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_photo(tmp_path / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png", (16, 8))
    command = ["predict", str(model_folder), "cityscapes", "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main([*command, "--submission", str(tmp_path / "a.zip")]) == 2
    assert "150 classes, but cityscapes has 19" in capsys.readouterr().err
    assert not (tmp_path / "a.zip").exists()


def test_cityscapes_and_voc_are_packed_in_their_own_forms(tmp_path: Path) -> None:
    from meanshifter.jobs.submission import write_submission

    save_photo(tmp_path / "cs/leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png", (19, 2))
    lists = tmp_path / "voc/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "test.txt").write_text("2008_000006\n")
    save_photo(tmp_path / "voc/JPEGImages/2008_000006.jpg", (21, 2))
    for name, kind in (("berlin_000000_000019_leftImg8bit", Cityscapes), ("2008_000006", PascalVOC)):
        K = kind.space.num_classes
        (tmp_path / "maps").mkdir(exist_ok=True)
        Image.fromarray(np.tile(np.arange(K, dtype=np.uint8), (2, 1))).save(tmp_path / f"maps/{name}.png")
    assert write_submission(Cityscapes(tmp_path / "cs", "test"), tmp_path / "maps", tmp_path / "cs.zip") == 1
    packed = read_zip(tmp_path / "cs.zip")["berlin_000000_000019_leftImg8bit.png"]
    # cityscapesScripts: road 7, sky 23, bicycle 33
    values = np.asarray(packed)[0]
    assert [values[k] for k in (0, 10, 18)] == [7, 23, 33]
    for file in (tmp_path / "first.tgz", tmp_path / "again.tgz"):
        assert write_submission(PascalVOC(tmp_path / "voc", "test"), tmp_path / "maps", file) == 1
    assert (tmp_path / "first.tgz").read_bytes() == (tmp_path / "again.tgz").read_bytes()
    with tarfile.open(tmp_path / "first.tgz", "r:gz") as tar:
        (member,) = tar.getmembers()
        assert member.name == "results/VOC2012/Segmentation/comp6_test_cls/2008_000006.png"
        content = tar.extractfile(member)
        assert content is not None
        picture = Image.open(io.BytesIO(content.read()))
        np.testing.assert_array_equal(np.asarray(picture)[0], np.arange(21))
        assert picture.convert("RGB").getpixel((15, 0)) == (192, 128, 128)


def test_label_maps_that_are_not_what_they_should_be(root: Path, tmp_path: Path) -> None:
    from meanshifter.errors import InputError
    from meanshifter.jobs.submission import write_submission

    data, maps, file = ADE20K(root, "test"), tmp_path / "maps", tmp_path / "a.zip"
    maps.mkdir()
    file.write_bytes(b"of an earlier run")
    for name, (width, height) in list(SIZES.items())[1:]:
        Image.fromarray(np.full((height, width), 7, np.uint8)).save(maps / f"{name}.png")
    first = maps / "ADE_test_00000001.png"
    cases: list[tuple[np.ndarray | None, str]] = [
        (None, r"lacks 1 of 3 label maps \(ADE_test_00000001\.png\)"),
        (np.zeros((30, 20), np.uint8), r"00000001\.png: 20×30, but its image .* is 30×20"),
        (np.full((20, 30), 150, np.uint8), r"00000001\.png: value 150"),
        (np.full((20, 30), 255, np.uint8), r"00000001\.png: value 255 "),
    ]
    for pixels, said in cases:
        if pixels is not None:
            Image.fromarray(pixels).save(first)
        with pytest.raises(InputError, match=said):
            write_submission(data, maps, file)
        assert file.read_bytes() == b"of an earlier run"


def test_a_score_on_withheld_labels_is_refused(
    model_folder: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remedy = "split 'test' has no labels to train or score on, only images; `meanshifter predict MODEL ade20k"
    assert main(["evaluate", str(model_folder), "ade20k", "--root", str(root), "--split", "test"]) == 2
    assert remedy in capsys.readouterr().err
    fields = {"data.name": "ade20k", "data.root": root, "data.train_split": "test", "data.val_split": "test"}
    words = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    assert main(["train", "shapes", *words, "--out", str(tmp_path / "run")]) == 2
    assert remedy in capsys.readouterr().err
    assert not (tmp_path / "run/checkpoints").exists()


def test_raw_values_undo_the_map() -> None:
    for kind in (ADE20K, Cityscapes, PascalVOC):
        raw = kind.space.raw
        for k, value in enumerate(kind.space.raw_values()):
            assert value == k if raw is None else raw[value] == k
    assert LabelSpace(("a", "b"), raw={9: 1, 8: 1, 3: 0}).raw_values() == (3, 9)
