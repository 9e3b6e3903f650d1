"""The doctor finds what is planted, and nothing else; its copy passes; a training is stopped before it starts."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from meanshifter.cli.main import main
from meanshifter.data import Folder, LabelSpace, Shapes
from meanshifter.data.doctor import check, check_sample, repair
from meanshifter.data.doctor.examine import count_values, map_values
from meanshifter.data.reading import read_mask
from meanshifter.errors import InputError

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/faults/doctor.py"
NAMES = ("background", *(f"thing {k}" for k in range(1, 4)))


def planter() -> Any:
    """The module that plants faults for the benchmark."""
    spec = importlib.util.spec_from_file_location("plant_faults", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(folder: Path, counts: dict[str, int]) -> Path:
    """Coarse random pictures, so that no two are alike, and masks with all four classes and the ignored value 4."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for part in ("images", "masks"):
            (folder / part / split).mkdir(parents=True)
        for number in range(count):
            coarse = rng.integers(0, 256, (9, 12, 3), np.uint8)
            picture = Image.fromarray(coarse).resize((96, 72), Image.Resampling.BICUBIC)
            picture.save(folder / f"images/{split}/{split}{number:02}.jpg", quality=90)
            mask = rng.integers(0, 5, (9, 12), np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(mask).save(folder / f"masks/{split}/{split}{number:02}.png")
    labels = {"names": NAMES, "raw": {0: 0, 1: 1, 2: 2, 3: 3, 4: 255}}
    (folder / "labels.json").write_text(json.dumps(labels))
    return folder


def test_every_kind_is_found_and_nothing_in_the_clean_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, report = make(tmp_path / "data", {"train": 24, "val": 6}), tmp_path / "report.json"
    tool = planter()
    assert main(["data", "check", str(folder), "--json", str(report)]) == 0
    assert tool.found_in(report) == set()
    expected = tool.plant(folder, rare=3, ignored=4)
    capsys.readouterr()
    page = tmp_path / "page.html"
    assert main(["data", "check", str(folder), "--json", str(report), "--out", str(page)]) == 2
    assert tool.found_in(report) == expected
    assert len({kind for kind, _ in expected}) >= 15
    out, err = capsys.readouterr()
    assert "value 77 (12 pixels) outside the label map" in out
    assert "with 1 subtracted, every value would fit" in out
    assert err.count("\n") == 1
    text = page.read_text()
    assert "cannot be read" in text
    assert text.count("<img") > 15
    assert 'src="http' not in text


@pytest.mark.filterwarnings("ignore:.*turned upright by its EXIF orientation 3:UserWarning")
@pytest.mark.parametrize("ignore", [False, True])
def test_the_repaired_copy_passes_and_holds_the_same_pixels(tmp_path: Path, ignore: bool) -> None:
    folder = make(tmp_path / "data", {"train": 24, "val": 6})
    planter().plant(folder, rare=3, ignored=4)
    done = repair(check(folder), tmp_path / "fixed", ignore_unknown=ignore)
    assert check(tmp_path / "fixed").faults == []
    fixed = {split: Folder(tmp_path / "fixed", split) for split in ("train", "val")}
    assert sum(map(len, fixed.values())) == done.kept
    assert done.kept == (23 if ignore else 21)
    left = "\n".join(f"{file}: {why}" for file, why in done.left_out)
    assert "mask with lossy compression" in left
    assert ("values outside" in left) == (not ignore)
    space = LabelSpace(NAMES, raw={0: 0, 1: 1, 2: 2, 3: 3, 4: 255})
    for sample in fixed["train"]:
        original = folder / f"masks/train/{sample.name}.png"
        if sample.image.shape[:2] == (72, 96) and sample.name not in ("train10", "train11", "train12"):
            np.testing.assert_array_equal(sample.labels, read_mask(original, space))
    turned = next(sample for sample in fixed["train"] if sample.image.shape[:2] == (96, 72))
    stored = read_mask(folder / f"masks/train/{turned.name}.png", space)
    np.testing.assert_array_equal(turned.labels, np.rot90(stored, -1))


def test_the_original_is_never_written_to(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", {"train": 2, "val": 2})
    with pytest.raises(InputError, match="lies within"):
        repair(check(folder), folder / "fixed")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    with pytest.raises(InputError, match="exists; name a new folder"):
        repair(check(folder), tmp_path / "full")


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16", "RGB", "RGBA", "LA"])
@pytest.mark.parametrize("kind", ["raw", "colors"])
def test_counts_are_mapped_as_pixels_are(tmp_path: Path, mode: str, kind: str) -> None:
    values = np.random.default_rng(1).integers(0, 2, (13, 17), np.uint8)
    picture = Image.fromarray(values.astype(np.uint16)) if mode == "I;16" else Image.fromarray(values)
    if mode == "P":
        picture.putpalette([0, 0, 0, 255, 0, 0])
    elif mode == "1":
        picture = Image.fromarray(values * 255).convert("1")
    elif mode != "I;16":
        picture = picture.convert(mode)
    colors = {(v, v, v): 0 for v in (0, 255)} | {(1, 1, 1): 1, (255, 0, 0): 1}
    space = LabelSpace(("a", "b"), raw={0: 255, 1: 1}) if kind == "raw" else LabelSpace(("a", "b"), colors=colors)
    picture.save(path := tmp_path / "mask.png")
    mapped = map_values(count_values(Image.open(path)), space)
    if mapped is None:
        with pytest.raises(InputError):
            read_mask(path, space)
    elif kind == "raw" or mode != "I;16":
        expected = np.bincount(read_mask(path, space).ravel(), minlength=256)
        assert (mapped.classes.tolist(), mapped.ignored) == (expected[:2].tolist(), expected[255])


def test_a_folder_without_label_file_is_read_as_folder_reads_it(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", {"train": 3, "val": 3})
    (folder / "labels.json").unlink()
    report = check(folder)
    assert report.label_space == Folder(folder, "train").label_space
    assert report.faults == []
    (folder / "labels.json").write_text("{")
    assert [finding.kind for finding in check(folder).faults] == ["label-file"]


def test_a_sample_stops_a_training_whose_validation_masks_are_wrong(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", {"train": 3, "val": 3})
    sets = [Folder(folder, "train"), Folder(folder, "val"), Shapes(split="val")]
    check_sample(sets, "meanshifter data check DIR")
    path = folder / "masks/val/val01.png"
    planter().edit_mask(path, lambda values: values + 1)
    with pytest.raises(InputError, match=r"val01\.png: value 5 .* 1 of 3 .*`meanshifter data check DIR`"):
        check_sample(sets, "meanshifter data check DIR")
    planter().edit_mask(path, lambda values: np.full_like(values, 4))
    with pytest.warns(UserWarning, match="pixels are ignored"):
        check_sample(sets, "meanshifter data check DIR")


def test_train_refuses_before_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "data", {"train": 3, "val": 3})
    planter().truncate(folder / "masks/val/val02.png")
    words = ["train", str(folder), "--model.encoder_weights", "null", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "val02.png" in err
    assert f"meanshifter data check {folder}" in err
    assert not (tmp_path / "run").exists()


def test_the_page_shows_samples_where_all_is_well(tmp_path: Path) -> None:
    folder, page = make(tmp_path / "data", {"train": 9, "val": 2}), tmp_path / "page.html"
    assert main(["data", "check", str(folder), "--out", str(page)]) == 0
    text = page.read_text()
    assert text.count("<img") == 2 * (4 + 2)
    assert f"{check(folder).ignored_share:.1%} of all pixels are ignored" in text
    for name in NAMES:
        assert f"</span>{name}</li>" in text


def test_every_planted_kind_is_found_in_camvid(shared: Path) -> None:
    words = [sys.executable, str(SCRIPT), str(shared / "data/camvid"), "--pairs", "90", "--no-speed"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing else found" in done.stdout


def test_names_of_files_cannot_forge_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "data", {"train": 8, "val": 4})
    (folder / "images/train/train00.jpg").rename(folder / "images/train/a\nno faults\x1b[2J.jpg")
    page = tmp_path / "page.html"
    assert main(["data", "check", str(folder), "--out", str(page)]) == 2
    out = capsys.readouterr().out
    assert "a no faults\\x1b[2J.jpg: no mask" in out
    assert "\x1b" not in out
    assert "\nno faults" not in out


def test_an_orientation_that_is_text_turns_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", {"train": 2, "val": 2})
    path = folder / "images/train/train00.jpg"
    # a TIFF's directory of one entry: tag 0x0112, of type 2 (text), 4 bytes
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0six\0\0\0\0\0"
    with Image.open(path) as picture:
        picture.save(path, exif=exif)
    with Image.open(path) as picture:
        assert picture.getexif()[0x0112] == "six"
    done = repair(check(folder), tmp_path / "copy")
    assert (done.kept, done.left_out) == (4, [])
    assert (tmp_path / "copy/images/train/train00.jpg").read_bytes() == path.read_bytes()
