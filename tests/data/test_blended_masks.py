"""Values of smoothed, resampled or compressed edges are no classes."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from meanshifter.data import Folder
from meanshifter.data.doctor import check
from meanshifter.data.masks import blended_masks, count_indices, is_blended
from meanshifter.errors import InputError


def drawn(levels: tuple[int, ...], shift: int = 0) -> Image.Image:
    """Ellipses of the levels after the first, four times as large as a mask."""
    picture = Image.new("L", (512, 512), levels[0])
    draw = ImageDraw.Draw(picture)
    for place, level in enumerate(levels[1:]):
        left = 40 + 110 * place + shift
        draw.ellipse((left, 100, left + 180, 360), fill=level)
    return picture


def compressed(picture: Image.Image) -> Image.Image:
    picture.save(file := BytesIO(), "JPEG", quality=80)
    return Image.open(file)


SPOILED = {
    "resampled": lambda mask: mask.resize((128, 128), Image.Resampling.BILINEAR),
    "enlarged": lambda mask: mask.resize((64, 64), 0).resize((160, 160), Image.Resampling.BICUBIC),
    "smoothed": lambda mask: mask.resize((128, 128), 0).filter(ImageFilter.GaussianBlur(1.5)),
    "compressed": lambda mask: compressed(mask.resize((128, 128), 0)),
}


@pytest.mark.parametrize("levels", [(0, 255), (0, 128, 255), (20, 120)])
@pytest.mark.parametrize("how", SPOILED)
def test_spoiled_masks_are_refused_in_one_line(tmp_path: Path, levels: tuple[int, ...], how: str) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for number in range(4):
        mask = SPOILED[how](drawn(levels, 9 * number))
        Image.new("RGB", mask.size, (number, 9, 9)).save(tmp_path / f"images/{number}.png")
        mask.convert("L").save(tmp_path / f"masks/{number}.png")
    with pytest.raises(InputError, match=r"masks/\d\.png: \d+ rare values .* of 4 masks") as refused:
        Folder(tmp_path, "all")
    assert "\n" not in str(refused.value)
    assert {finding.kind for finding in check(tmp_path).faults if "image" not in finding.kind} >= {"blended"}
    (tmp_path / "classes.txt").write_text("background\nobject\n")
    with pytest.raises(InputError, match=r"outside the label map .* edges that were smoothed"):
        Folder(tmp_path, "all").read_labels(0)


@pytest.mark.parametrize("levels", [(0, 255), (0, 128, 255), (0, 50, 100, 150)])
def test_masks_resized_by_the_nearest_pixel_are_sound(levels: tuple[int, ...]) -> None:
    assert not is_blended(*count_indices(np.asarray(drawn(levels).resize((128, 128), 0))))


@pytest.mark.parametrize("step", [1, 10])
def test_many_rare_classes_are_sound(step: int) -> None:
    """Numbered in a row or in tens, a few frequent and all others rare, as in ADE20K and Cityscapes."""
    rng = np.random.default_rng(0)
    share = np.geomspace(1, 0.001, 25)
    masks = []
    for number in range(20):
        values = rng.choice(rng.permutation(25), 10_000, p=share / share.sum()) * step
        masks.append((Path(str(number)), *count_indices(values.astype(np.uint8))))
    assert blended_masks(masks) == ([], 0)


def test_real_masks_are_sound(shared: Path) -> None:
    for folder in ("camvid/trainannot", "ade20k_sample/annotations/validation"):
        paths = sorted((shared / "data" / folder).glob("*.png"))[:40]
        masks = [(path, *count_indices(np.asarray(Image.open(path)))) for path in paths]
        assert masks
        assert blended_masks(masks) == ([], 0)
