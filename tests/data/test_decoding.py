"""Bits, bands, brightness and compression: what a header says decides how a file is read, or that it is refused.

Most files are written byte by byte, so that no library is compared with itself.
"""

from __future__ import annotations

import itertools
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from meanshifter.data.doctor.examine import examine_image, examine_mask
from meanshifter.data.labels import LabelSpace
from meanshifter.data.reading import mask_values, read_image, read_mask, read_sample
from meanshifter.errors import InputError
from meanshifter.inference.preprocess import as_pixels
from tests.data.made import bmp, png, pnm, tiff

rasterio = pytest.importorskip("rasterio")
Array = npt.NDArray[Any]
RNG = np.random.default_rng(0)
SIDES = (13, 11)


def numbers(below: int, shape: tuple[int, ...] = SIDES) -> Array:
    return RNG.integers(0, below, shape).astype(np.uint8 if below <= 256 else np.uint16)


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def read_numbers(path: Path, values: Array) -> Array:
    """By `read_mask`, through classes that stand for themselves; `mask_values` and the doctor must see the same."""
    found = np.unique(values)
    space = LabelSpace(tuple(map(str, found)), raw={int(value): k for k, value in enumerate(found)})
    assert mask_values(path).tolist() == found.tolist()
    counted = examine_mask(path).values
    assert counted is not None
    assert dict(zip(counted.keys.tolist(), counted.counts.tolist(), strict=True)) == {
        int(value): int((values == value).sum()) for value in found
    }
    return found[read_mask(path, space)]


# masks: the numbers that are stored

TIFFS = [
    (bits, kind, photometric, order, deflate)
    for bits, kind in [*((bits, "u") for bits in (1, 2, 4, 8, 12, 16)), (8, "i"), (16, "i"), (32, "i")]
    for photometric, order, deflate in itertools.product((0, 1), "<>", (False, True))
]


@pytest.mark.parametrize(("bits", "kind", "photometric", "order", "deflate"), TIFFS)
def test_the_numbers_of_a_tiff_mask_are_those_stored(
    tmp_path: Path, bits: int, kind: str, photometric: int, order: Any, deflate: bool
) -> None:
    values = RNG.choice(RNG.integers(0, 2**bits, 6) - (2 ** (bits - 1) if kind == "i" else 0), SIDES)
    content = tiff(values.astype(np.dtype(kind + "8")), bits, photometric=photometric, order=order, deflate=deflate)
    np.testing.assert_array_equal(read_numbers(put(tmp_path / "a.tif", content), values), values)


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_bits_in_the_other_order(tmp_path: Path, bits: int, photometric: int) -> None:
    values = numbers(2**bits)
    content = tiff(values, bits, photometric=photometric, lowest_first=True)
    np.testing.assert_array_equal(read_numbers(put(tmp_path / "a.tif", content), values), values)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_numbers_of_a_png_mask_are_those_stored(tmp_path: Path, bits: int) -> None:
    values = numbers(2**bits) if bits <= 8 else RNG.choice([0, 3, 700, 65535], SIDES)
    for chunks in ((), ((b"gAMA", struct.pack(">I", 45455)), (b"tRNS", b"\0\1"))):
        path = put(tmp_path / "a.png", png(values, bits, 0, *chunks))
        np.testing.assert_array_equal(read_numbers(path, values), values)
    if bits <= 8:
        chunks = ((b"PLTE", bytes(range(3 * 2**bits)) if bits < 8 else bytes(768)), (b"tRNS", b"\0\xff"))
        path = put(tmp_path / "p.png", png(values, bits, 3, *chunks))
        np.testing.assert_array_equal(read_numbers(path, values), values)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("white", [1, 2, 3, 15, 100, 254, 255, 256, 1000, 65535])
def test_the_numbers_of_a_pgm_mask_are_those_stored(tmp_path: Path, white: int, text: bool) -> None:
    values = RNG.integers(0, white + 1, SIDES)
    if white > 255:
        values = RNG.choice(values[0], SIDES)
    np.testing.assert_array_equal(read_numbers(put(tmp_path / "a.pgm", pnm(values, white, text=text)), values), values)


def test_the_colors_of_a_ppm_mask_are_those_stored(tmp_path: Path) -> None:
    values = numbers(3)
    path = put(tmp_path / "a.ppm", pnm(np.stack([values, 2 - values, values], axis=2), 3).replace(b"P6", b"P6 #!\n"))
    space = LabelSpace(("a", "b", "c"), colors={(k, 2 - k, k): k for k in range(3)})
    np.testing.assert_array_equal(read_mask(path, space), values)


def test_a_color_map_alone_reads_grays_as_they_are_shown(tmp_path: Path) -> None:
    values = numbers(4)
    space = LabelSpace(tuple("abcd"), colors={(85 * k,) * 3: k for k in range(4)})
    path = put(tmp_path / "a.png", png(values, 2))
    np.testing.assert_array_equal(read_mask(path, space), values)
    path = put(tmp_path / "a.tif", tiff(values, 2, photometric=0))
    np.testing.assert_array_equal(read_mask(path, space), 3 - values)


def test_bits_are_told_by_the_doctor(tmp_path: Path) -> None:
    assert examine_mask(put(tmp_path / "a.png", png(numbers(4), 2))).mode == "2-bit index"


# masks: what is refused


def by_pillow(path: Path, **options: Any) -> Path:
    Image.fromarray(numbers(3, (32, 32))).convert("RGB").save(path, **options)
    return path


def by_gdal(path: Path, count: int = 1, **options: Any) -> Path:
    options |= {"driver": "GTiff", "height": 64, "width": 64, "count": count, "dtype": "uint8"}
    with warnings.catch_warnings(action="ignore"), rasterio.open(path, "w", **options) as file:
        file.write(numbers(3, (count, 64, 64)))
    return path


LOSSY: dict[str, Callable[[Path], Path]] = {
    "JPEG": lambda folder: by_pillow(folder / "a.png", format="JPEG"),
    "TIFF with JPEG": lambda folder: by_pillow(folder / "a.tif", compression="jpeg"),
    "TIFF with JPEG ": lambda folder: by_gdal(folder / "a.tif", compress="jpeg"),
    "TIFF with WebP": lambda folder: by_gdal(folder / "a.tif", 3, compress="webp", photometric="RGB"),
    "TIFF with LERC": lambda folder: by_gdal(folder / "a.tif", compress="lerc", max_z_error=1),
    "AVIF": lambda folder: by_pillow(folder / "a.png", format="AVIF"),
    "JPEG 2000": lambda folder: by_pillow(folder / "a.png", format="JPEG2000"),
    "WebP": lambda folder: by_pillow(folder / "a.png", format="WEBP"),
    "WebP ": lambda folder: by_pillow(folder / "a.png", format="WEBP", exif=Image.Exif(), xmp=b"x" * 101),
}


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_masks_are_refused_by_their_content(tmp_path: Path, kind: str) -> None:
    path = LOSSY[kind](tmp_path)
    with pytest.raises(InputError, match=f"{path.name}: a {kind.strip()} mask; lossy"):
        read_mask(path, LabelSpace.unnamed(3))
    with pytest.raises(InputError, match="lossy"):
        mask_values(path)
    facts = examine_mask(path)
    assert (facts.lossy, facts.values) == (kind.strip(), None)


def test_lossless_compression_is_accepted(tmp_path: Path) -> None:
    values = numbers(3, (32, 32))
    space = LabelSpace(("a", "b", "c"), colors={(k,) * 3: k for k in range(3)})
    picture = Image.fromarray(values).convert("RGB")
    picture.save(tmp_path / "a.webp", lossless=True, xmp=b"x" * 101)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.webp", space), values)
    for compress in ("packbits", "lzw", "deflate", "zstd", "lzma", "webp"):
        options: dict[str, Any] = {"webp_lossless": True} if compress == "webp" else {}
        shape = {"height": 32, "width": 32, "count": 3, "dtype": "uint8", "photometric": "RGB"}
        path = tmp_path / f"{compress}.tif"
        options |= {"driver": "GTiff", "compress": compress, **shape}
        with warnings.catch_warnings(action="ignore"), rasterio.open(path, "w", **options) as file:
            file.write(np.repeat(values[None], 3, axis=0))
        np.testing.assert_array_equal(read_mask(path, space), values)


def test_several_pictures_are_no_mask_and_are_told_of_an_image(tmp_path: Path) -> None:
    first, second = (Image.fromarray(numbers(2, (8, 9))) for _ in range(2))
    for suffix in ("gif", "png", "webp", "tif"):
        path, options = tmp_path / f"a.{suffix}", {"save_all": True, "append_images": [second]}
        first.save(path, None, **options, lossless=True)
        with pytest.raises(InputError, match=rf"a\.{suffix}: holds several pictures"):
            read_mask(path, LabelSpace.unnamed(2))
        if suffix == "tif":  # perhaps the bands of one image
            with pytest.raises(InputError, match=r"a\.tif: a TIFF of several pages"):
                read_image(path)
        else:
            with pytest.warns(UserWarning, match=rf"a\.{suffix}: holds several pictures"):
                read_image(path)
    first.save(tmp_path / "b.tif", save_all=True, append_images=[first.resize((4, 4))])
    with pytest.warns(UserWarning, match=r"b\.tif: holds several"):
        assert read_image(tmp_path / "b.tif").shape == (8, 9, 3)


def test_overviews_are_no_further_pages(tmp_path: Path) -> None:
    path = by_gdal(tmp_path / "a.tif")
    before = read_mask(path, LabelSpace.unnamed(3))
    with warnings.catch_warnings(action="ignore"), rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
    np.testing.assert_array_equal(read_mask(path, LabelSpace.unnamed(3)), before)
    assert read_image(path).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (png(numbers(60000, (4, 4, 2)), 16, 4), "2 bands of 16 bits"),
        (png(numbers(60000, (4, 4, 3)), 16, 2), "3 bands of 16 bits"),
        (tiff(numbers(60000, (4, 4, 3)), 16, photometric=2), "3 bands of 16 bits"),
        (tiff(numbers(9, (4, 4, 5)), 8), "5 bands of 8 bits"),
        (tiff(RNG.random((4, 4)).astype(np.float32), 32), "mode F"),
        (b"P4\n8 2\n\xaa\x55", "a PBM mask"),
        (bmp(numbers(2, (4, 4)), 8, (0, 255)), "two-color BMP"),
        (tiff(np.array([[1, 2**31]], np.uint32), 32), "32 bits|2,147,483,648"),
    ],
)
def test_masks_whose_numbers_cannot_be_told(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read_mask(put(tmp_path / "a.x", content), LabelSpace.unnamed(9))
    assert "\n" not in str(caught.value)


# images


BANDS = [
    (bits, bands, photometric, planes, order, deflate)
    for bits in (8, 16)
    for bands, photometric in ((3, 1), (3, 2), (4, 2), (5, 2), (1, 0), (1, 1))
    for planes, order, deflate in itertools.product((False, True), "<>", (False, True))
]


@pytest.mark.parametrize(("bits", "bands", "photometric", "planes", "order", "deflate"), BANDS)
def test_images_of_every_arrangement(
    tmp_path: Path, bits: int, bands: int, photometric: int, planes: bool, order: Any, deflate: bool
) -> None:
    values = numbers(2**bits, (*SIDES, bands))
    content = tiff(values, bits, photometric=photometric, planes=planes, order=order, deflate=deflate)
    expected = np.broadcast_to((values >> (bits - 8)).astype(np.uint8)[..., :3], (*SIDES, 3))
    path = put(tmp_path / "a.tif", content)
    np.testing.assert_array_equal(read_image(path), 255 - expected if photometric == 0 else expected)
    np.testing.assert_array_equal(read_image("s3://x/a.tif", data=content), read_image(path))


def test_five_bands_without_colors_are_told(tmp_path: Path) -> None:
    values = numbers(60000, (*SIDES, 5))
    with pytest.warns(UserWarning, match=r"a\.tif: .* 5 bands"):
        image = read_image(put(tmp_path / "a.tif", tiff(values, 16)))
    np.testing.assert_array_equal(image, values[..., :3] >> 8)


def test_bands_in_another_order_are_found_by_their_colors(tmp_path: Path) -> None:
    values = numbers(60000, (4, *SIDES))
    shape = {"height": 13, "width": 11, "count": 4, "dtype": "uint16"}
    with warnings.catch_warnings(action="ignore"), rasterio.open(tmp_path / "a.tif", "w", **shape) as file:
        file.write(values)
        names = (rasterio.enums.ColorInterp[name] for name in ("undefined", "blue", "green", "red"))
        file.colorinterp = tuple(names)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), values[[3, 2, 1]].transpose(1, 2, 0) >> 8)


def test_without_rasterio_the_file_and_the_extra_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    path = put(tmp_path / "a.tif", tiff(numbers(60000, (*SIDES, 3)), 16, photometric=2, planes=True))
    with pytest.raises(InputError, match=r'a\.tif: .*3 bands of 16 bits.*"meanshifter\[large\]"'):
        read_image(path)


def declared(low: float, high: float, bands: int, kind: int = 3) -> list[tuple[int, int, int, bytes]]:
    code = f"<{bands}{'H' if kind == 3 else 'f'}"
    return [(tag, kind, bands, struct.pack(code, *[limit] * bands)) for tag, limit in ((340, low), (341, high))]


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("bits", [8, 12])
def test_few_bits_in_many_are_never_read_as_black(tmp_path: Path, bits: int, bands: int) -> None:
    values = RNG.integers(0, 2**bits, (*SIDES, bands)).astype(np.uint16)
    values[0, 0] = 2**bits - 1
    photometric, color = (1, 0) if bands == 1 else (2, 2)
    plain = values if bands > 1 else values[..., 0]
    for name, content in {
        "a.tif": tiff(plain, 16, photometric=photometric),
        "b.tif": tiff(plain.astype(np.uint32), 32, photometric=photometric),
        "c.tif": tiff(plain.astype(np.int16), 16, photometric=photometric),
        "a.png": png(plain, 16, color),
    }.items():
        with pytest.raises(InputError, match=rf"{name}: .* black") as caught:
            read_image(put(tmp_path / name, content))
        assert bands == 3 or f" to {2**bits - 1} " in str(caught.value)
        with pytest.raises(InputError, match="black"):
            examine_image(tmp_path / name)
    told = tiff(plain, 16, photometric=photometric, tags=declared(0, 2**bits - 1, bands))
    expected = np.broadcast_to((values >> (bits - 8)).astype(np.uint8), (*SIDES, 3))
    np.testing.assert_array_equal(read_image(put(tmp_path / "d.tif", told)), expected)
    if bands == 1:
        np.testing.assert_array_equal(read_image(put(tmp_path / "a.pgm", pnm(plain, 2**bits - 1))), expected)


def test_twelve_bits_are_stretched_over_twelve(tmp_path: Path) -> None:
    values = numbers(4096)
    image = read_image(put(tmp_path / "a.tif", tiff(values, 12)))
    np.testing.assert_array_equal(image[..., 0], values >> 4)


def test_blank_images_of_16_bits_are_no_fault(tmp_path: Path) -> None:
    assert not read_image(put(tmp_path / "a.tif", tiff(np.zeros(SIDES, np.uint16), 16))).any()


def test_floating_point_is_read_over_the_range_that_is_declared(tmp_path: Path) -> None:
    values = RNG.random((*SIDES, 3)).astype(np.float32)
    with pytest.raises(InputError, match="floating-point values 0"):
        read_image(put(tmp_path / "a.tif", tiff(values, 32, photometric=2)))
    image = read_image(put(tmp_path / "b.tif", tiff(values, 32, photometric=2, tags=declared(0, 1, 3, kind=11))))
    np.testing.assert_array_equal(image, np.minimum(values * 256, 255).astype(np.uint8))


def test_gray_with_premultiplied_alpha(tmp_path: Path) -> None:
    values = np.stack([numbers(256), np.full(SIDES, 255, np.uint8)], axis=2)
    path = put(tmp_path / "a.tif", tiff(values, 8, tags=[(338, 3, 1, struct.pack("<H", 1))]))
    np.testing.assert_array_equal(read_image(path), np.repeat(values[..., :1], 3, axis=2))
    with pytest.raises(InputError, match="mode La"):
        as_pixels(Image.new("La", (2, 2)))


# reduced JPEGs


@pytest.mark.parametrize("factor", [1 / 4, 1 / 8, 1 / 16])
def test_jpegs_of_every_size_show_the_same_when_they_are_read_reduced(tmp_path: Path, factor: float) -> None:
    """One decoded whole and one decoded reduced, both resized: as near where blocks are cut as where they are not."""
    apart = []
    for side in range(1, 131):
        W, H = (side, 131 - side)[:: 1 if side % 2 else -1]
        coarse = Image.fromarray(RNG.integers(0, 256, (max(2, H // 12), max(2, W // 12), 3), dtype=np.uint8))
        coarse.resize((W, H), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95, subsampling=0)
        mask = put(tmp_path / "a.png", png(np.zeros((H, W), np.uint8), 8))
        target = (max(1, round(W * factor)), max(1, round(H * factor)))
        whole, reduced = (
            read_sample(tmp_path / "a.jpg", mask, LabelSpace.unnamed(1), factor=how)[0]
            for how in (None, lambda height, width: factor)
        )
        assert min(reduced.shape[:2]) >= 1
        small = [
            np.asarray(Image.fromarray(image).resize(target, Image.Resampling.BILINEAR)).astype(float)
            for image in (whole, reduced)
        ]
        apart.append(abs(small[0] - small[1]).mean())
    assert max(apart) < 6
    assert np.mean(apart) < 2.5
