"""Files → arrays: every kind of image and mask, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from meanshifter.data.labels import LabelSpace
from meanshifter.data.reading import mask_values, read_image, read_mask, read_sample
from meanshifter.errors import InputError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
SPACE = LabelSpace(("a", "b", "c"))
ORIENTATION = 0x0112


def save(path: Path, array: npt.NDArray[Any], mode: str | None = None, **options: Any) -> Path:
    picture = Image.fromarray(array)
    (picture if mode is None else picture.convert(mode)).save(path, **options)
    return path


def with_orientation(path: Path, array: npt.NDArray[Any], turn: int) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    return save(path, array, exif=exif)


# images


def test_rgb_and_gray(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", PIXELS)), PIXELS)
    gray = read_image(save(tmp_path / "b.png", PIXELS[..., 0]))
    np.testing.assert_array_equal(gray, np.stack([PIXELS[..., 0]] * 3, axis=2))
    assert gray.dtype == np.uint8
    assert read_image(str(tmp_path / "a.png")).flags.writeable


def test_16_bit_keeps_the_upper_8(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (6, 9), dtype=np.uint16)
    for suffix in ("png", "tif"):
        image = read_image(save(tmp_path / f"a.{suffix}", values))
        np.testing.assert_array_equal(image, np.stack([values // 256] * 3, axis=2))


def test_cmyk(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.tif", PIXELS, "CMYK"))
    np.testing.assert_array_equal(image, PIXELS)


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putdata([0, 1])
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "b.png", transparency=bytes([0, 128]))
    for name in ("a.png", "b.png"):
        assert read_image(tmp_path / name).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_alpha_is_dropped_and_the_stored_colors_stay(tmp_path: Path) -> None:
    alpha = RNG.integers(0, 256, (6, 9, 1), dtype=np.uint8)
    image = read_image(save(tmp_path / "a.png", np.concatenate([PIXELS, alpha], axis=2)))
    np.testing.assert_array_equal(image, PIXELS)
    gray = read_image(save(tmp_path / "b.png", np.concatenate([PIXELS[..., :1], alpha], axis=2)))
    np.testing.assert_array_equal(gray[..., 1], PIXELS[..., 0])


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_turns_the_image_upright(tmp_path: Path, turn: int) -> None:
    # EXIF 2.32, tag 0x0112: where the stored row 0 and column 0 are in the upright picture
    upright = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.swapaxes(0, 1),
        6: PIXELS[::-1].swapaxes(0, 1),
        7: PIXELS[::-1, ::-1].swapaxes(0, 1),
        8: PIXELS[:, ::-1].swapaxes(0, 1),
    }[turn]
    np.testing.assert_array_equal(read_image(with_orientation(tmp_path / "a.png", PIXELS, turn)), upright)


def test_unreadable_images_are_named_in_one_line(tmp_path: Path) -> None:
    big = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = save(tmp_path / "whole.jpg", big).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.png").write_bytes(save(tmp_path / "w.png", big).read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    save(tmp_path / "float.tif", np.zeros((2, 2), np.float32))
    for name, reason in [
        ("cut.jpg", "truncated"),
        ("cut.png", "cannot be decoded"),
        ("text.png", "not an image"),
        ("empty.jpg", "not an image"),
        ("missing.jpg", "no such file"),
        (".", "is a folder"),
        ("float.tif", "floating-point"),
    ]:
        with pytest.raises(InputError, match=reason) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_pillows_limit_on_pixels_is_replaced_by_ours_and_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.png", np.zeros((20, 30, 3), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(path).shape == (20, 30, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(InputError, match=r"30×20 is 600 pixels, above max_pixels 500"):
        read_image(path, max_pixels=500)


def test_tall_images_are_read_band_by_band(tmp_path: Path) -> None:
    tall = RNG.integers(0, 256, (700, 3, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", tall)), tall)
    picture = Image.fromarray(tall).quantize(8)
    picture.save(tmp_path / "p.png", transparency=3)
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize(
    ("factor", "sides"), [(0.3, (401, 600)), (0.25, (201, 300)), (0.06, (50, 75)), (0.01, (50, 75))]
)
def test_a_large_jpeg_that_will_be_made_small_comes_smaller(
    tmp_path: Path, factor: float, sides: tuple[int, int]
) -> None:
    coarse = Image.fromarray(RNG.integers(0, 256, (10, 15, 3), dtype=np.uint8))
    picture = coarse.resize((600, 401), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "a.jpg", quality=95)
    picture.save(tmp_path / "a.tif")
    mask = save(tmp_path / "m.png", np.zeros((401, 600), np.uint8))
    whole, _ = read_sample(tmp_path / "a.jpg", mask, SPACE)
    reduced, labels = read_sample(tmp_path / "a.jpg", mask, SPACE, factor=lambda height, width: factor)
    assert reduced.shape[:2] == sides
    assert labels.shape == (401, 600)
    target = (max(int(600 * factor), 1), max(int(401 * factor), 1))
    small, expected = (
        np.asarray(Image.fromarray(image).resize(target, Image.Resampling.BILINEAR)).astype(float)
        for image in (reduced, whole)
    )
    assert abs(small - expected).mean() < 2
    assert read_sample(tmp_path / "a.tif", mask, SPACE, factor=lambda height, width: 0.01)[0].shape[:2] == (401, 600)


# masks


def test_index_palette_and_1_bit_masks(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2], [255, 2, 0]], np.uint8)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "l.png", values), SPACE), values)
    picture = Image.fromarray(values)
    picture.putpalette([9, 9, 9] * 256)
    picture.save(tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as stored:
        assert stored.mode == "P"
    np.testing.assert_array_equal(read_mask(tmp_path / "p.png", SPACE), values)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "1.png", values == 1), SPACE), values == 1)
    with_alpha = np.stack([values, np.full_like(values, 7)], axis=2)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "la.png", with_alpha), SPACE), values)


def test_16_bit_masks_and_more_than_255_classes(tmp_path: Path) -> None:
    values = np.array([[0, 299, 65535]], np.uint16)
    labels = read_mask(save(tmp_path / "a.png", values), LabelSpace.unnamed(300))
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, values)


def test_32_bit_masks_go_through_the_raw_map(tmp_path: Path) -> None:
    values = np.array([[26001, 7, -1]], np.int32)
    space = LabelSpace(("a", "b"), raw={26001: 1, 7: 0, -1: 255})
    assert read_mask(save(tmp_path / "a.tif", values), space).tolist() == [[1, 0, 255]]
    with pytest.raises(InputError, match=r"a\.tif: value 26001 \(1 pixel\)"):
        read_mask(tmp_path / "a.tif", LabelSpace(("a", "b"), raw={7: 0, -1: 255}))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), classes=st.integers(1, 12), seed=st.integers(0, 999))
def test_raw_and_color_maps_agree_with_a_dictionary(
    tmp_path: Path, data: st.DataObject, classes: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    keys = data.draw(st.lists(st.integers(0, 255), min_size=classes, max_size=40, unique=True))
    targets = [k if k < classes else int(rng.choice([255, *range(classes)])) for k in range(len(keys))]
    colors = {(k, int(rng.integers(256)), int(rng.integers(256))): t for k, t in zip(keys, targets, strict=True)}
    names = tuple(map(str, range(classes)))
    choice = rng.integers(0, len(keys), (5, 7))
    expected = np.array(targets)[choice]
    raw_file = save(tmp_path / "raw.png", np.array(keys, np.uint8)[choice])
    color_file = save(tmp_path / "color.png", np.array(list(colors), np.uint8)[choice])
    raw = dict(zip(keys, targets, strict=True))
    np.testing.assert_array_equal(read_mask(raw_file, LabelSpace(names, raw=raw)), expected)
    np.testing.assert_array_equal(read_mask(color_file, LabelSpace(names, colors=colors)), expected)
    np.testing.assert_array_equal(read_mask(color_file, LabelSpace(names, raw=raw, colors=colors)), expected)


def test_a_color_map_alone_reads_palette_masks_by_color(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([128, 0, 0, 0, 128, 0])
    picture.putdata([1, 0])
    picture.save(tmp_path / "p.png")
    colors = {(128, 0, 0): 0, (0, 128, 0): 1}
    assert read_mask(tmp_path / "p.png", LabelSpace(("a", "b"), colors=colors)).tolist() == [[1, 0]]
    assert read_mask(tmp_path / "p.png", LabelSpace(("a", "b"), raw={0: 1, 1: 0}, colors=colors)).tolist() == [[0, 1]]


def test_transparent_color_masks_keep_their_colors(tmp_path: Path) -> None:
    rgba = np.array([[[128, 0, 0, 0], [0, 128, 0, 255]]], np.uint8)
    space = LabelSpace(("a", "b"), colors={(128, 0, 0): 0, (0, 128, 0): 1})
    assert read_mask(save(tmp_path / "a.png", rgba), space).tolist() == [[0, 1]]


def test_values_outside_the_map_name_the_most_frequent(tmp_path: Path) -> None:
    values = np.zeros((100, 100), np.uint8)
    values[:20] = 42
    values[20:25] = 43
    values[30, :3] = (44, 45, 45)
    path = save(tmp_path / "odd.png", values)
    with pytest.raises(InputError) as caught:
        read_mask(path, SPACE)
    message = str(caught.value)
    assert message.startswith(f"{path}: values 42 (2,000 pixels), 43 (500 pixels), 45 (2 pixels) and 1 more outside")
    assert "(0-2, 255)" in message
    with pytest.raises(InputError, match=r"value 44 \(1 pixel\) outside .* `raw`"):
        read_mask(path, LabelSpace(("a",), raw=dict.fromkeys((0, 42, 43, 45), 0)))


def test_colors_outside_the_map_are_named(tmp_path: Path) -> None:
    mask = np.zeros((4, 4, 3), np.uint8)
    mask[0, 0] = (1, 2, 3)
    with pytest.raises(InputError, match=r"value \(1, 2, 3\) \(1 pixel\) outside the label map of 1 colors.*`colors`"):
        read_mask(save(tmp_path / "a.png", mask), LabelSpace(("a",), colors={(0, 0, 0): 0}))


def test_color_masks_without_a_map_and_jpeg_masks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.png: an RGB mask without a color map; give one \(`colors`"):
        read_mask(save(tmp_path / "a.png", PIXELS), SPACE)
    with pytest.raises(InputError, match="without a color map"):
        read_mask(tmp_path / "a.png", LabelSpace(("a",), colors={}))
    with pytest.raises(InputError, match=r"outside the label map \(empty\)"):
        read_mask(save(tmp_path / "0.png", PIXELS[..., 0]), LabelSpace(("a",), raw={}))
    with pytest.raises(InputError, match=r"a\.jpg: a JPEG mask; lossy"):
        read_mask(save(tmp_path / "a.jpg", PIXELS[..., 0]), SPACE)
    # the contents count, not the name, and a turn does not hide them
    with_orientation(tmp_path / "b.jpg", PIXELS[..., 0], 6).rename(tmp_path / "b.png")
    with pytest.raises(InputError, match="a JPEG mask"):
        read_mask(tmp_path / "b.png", SPACE)
    with pytest.raises(InputError, match="mode CMYK"):
        read_mask(save(tmp_path / "c.tif", PIXELS, "CMYK"), SPACE)


def test_mask_values(tmp_path: Path) -> None:
    assert mask_values(save(tmp_path / "a.png", np.array([[3, 0, 255, 3]], np.uint8))).tolist() == [0, 3, 255]
    assert mask_values(save(tmp_path / "b.png", np.array([[300, 0]], np.uint16))).tolist() == [0, 300]


# pairs


def test_sizes_must_agree(tmp_path: Path) -> None:
    image = save(tmp_path / "a.png", PIXELS)
    mask = save(tmp_path / "m.png", np.zeros((6, 8), np.uint8))
    with pytest.raises(InputError, match=r"m\.png: 8×6, but its image .*a\.png is 9×6"):
        read_sample(image, mask, SPACE)


def test_a_mask_of_the_image_before_its_exif_turn_is_noticed(tmp_path: Path) -> None:
    values = RNG.integers(0, 3, (6, 9), dtype=np.uint8)
    image = with_orientation(tmp_path / "a.png", PIXELS, 6)
    lying = save(tmp_path / "lying.png", values)
    with pytest.raises(
        InputError, match=r"lying\.png: 9×6 like .*a\.png as stored, but .* EXIF orientation turns it to 6×9"
    ):
        read_sample(image, lying, SPACE)
    upright = save(tmp_path / "upright.png", np.ascontiguousarray(values[::-1].T))
    pixels, labels = read_sample(image, upright, SPACE)
    np.testing.assert_array_equal(labels, values[::-1].T)
    assert pixels.shape == (9, 6, 3)
    # a mask that carries the same orientation is turned along
    np.testing.assert_array_equal(read_sample(image, with_orientation(tmp_path / "t.png", values, 6), SPACE)[1], labels)


@pytest.mark.parametrize(("turn", "size"), [(3, (6, 9)), (2, (6, 9)), (6, (6, 6))])
def test_where_the_size_cannot_tell_there_is_a_warning(tmp_path: Path, turn: int, size: tuple[int, int]) -> None:
    image = with_orientation(tmp_path / "a.png", np.zeros((*size, 3), np.uint8), turn)
    mask = save(tmp_path / "m.png", np.zeros(size, np.uint8))
    with pytest.warns(
        UserWarning, match=rf"a\.png: turned upright by its EXIF orientation {turn}, which .*m\.png lacks"
    ):
        read_sample(image, mask, SPACE)
