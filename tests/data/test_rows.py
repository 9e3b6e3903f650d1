from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from meanshifter.data import rows as module
from meanshifter.data.reading import MAX_PIXELS, read_image
from meanshifter.data.rows import LargeFile, large_file
from meanshifter.errors import InputError

rasterio = pytest.importorskip("rasterio")
Pixels = npt.NDArray[np.uint8]
H, W = 301, 203


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 1)


def noise(channels: int = 3, dtype: type[np.unsignedinteger[Any]] = np.uint8) -> npt.NDArray[Any]:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (H, W, channels)).astype(dtype)


def by_pillow(path: Path, **options: Any) -> None:
    Image.fromarray(noise()).save(path, **options)


def by_rasterio(path: Path, pixels: npt.NDArray[Any] | None = None, **options: Any) -> None:
    pixels = noise() if pixels is None else pixels
    profile = {"height": H, "width": W, "count": pixels.shape[2], "dtype": pixels.dtype, "photometric": "RGB"}
    with warnings.catch_warnings(action="ignore"), rasterio.open(path, "w", **{**profile, **options}) as file:
        file.write(pixels.transpose(2, 0, 1))


def smooth() -> Pixels:
    """As in a photo, rows and columns go on from those before."""
    y, x = np.mgrid[:H, :W]
    return np.stack([x + y // 3, 2 * y, (x * y) // 50], -1).astype(np.uint8)


def texts(**entries: str) -> PngInfo:
    info = PngInfo()
    for key, text in entries.items():
        info.add_text(key.replace("_", " "), text, zip=True)
    return info


READABLE: dict[str, Callable[[Path], None]] = {
    "uncompressed": by_pillow,
    "one strip": lambda path: by_rasterio(path, blockysize=H, compress="deflate"),
    "one row per strip": lambda path: by_rasterio(path, blockysize=1),
    "deflate": lambda path: by_pillow(path, compression="tiff_adobe_deflate"),
    "old deflate": lambda path: by_pillow(path, compression="tiff_deflate"),
    "packbits": lambda path: by_pillow(path, compression="packbits"),
    "LZW with differences": lambda path: by_rasterio(path, compress="lzw", predictor=2, blockysize=16),
    "tiles": lambda path: by_rasterio(path, tiled=True, blockxsize=64, blockysize=48, compress="deflate"),
    "planes": lambda path: by_rasterio(path, interleave="band", compress="deflate"),
    "big-endian": lambda path: by_rasterio(path, endianness="BIG"),
    "BigTIFF": lambda path: by_rasterio(path, bigtiff="YES"),
    "PNG": lambda path: by_pillow(path, format="PNG"),
    "PNG, stored": lambda path: by_pillow(path, format="PNG", compress_level=0),
    "PNG, all filters": lambda path: Image.fromarray(smooth()).save(path, format="PNG", optimize=True),
    "PNG with a text": lambda path: by_pillow(path, format="PNG", pnginfo=texts(Title="a street")),
    "near infrared": lambda path: by_rasterio(path, noise(4), alpha="NO"),
}


@pytest.mark.parametrize("write", READABLE.values(), ids=READABLE)
def test_rows_are_those_of_the_whole_image(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "a.tif"
    write(path)
    found = large_file(path, MAX_PIXELS)
    assert isinstance(found, LargeFile)
    assert (found.path, found.shape) == (path, (H, W, 3))
    whole = read_image(path)
    np.testing.assert_array_equal(found.pixels(), whole)
    with found.rows() as pixels:
        for y, x in ((0, 0), (0, 150), (37, 20), (240, 0), (240, 150)):
            np.testing.assert_array_equal(pixels[y : y + 61, x : x + 53], whole[y : y + 61, x : x + 53])


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6
    return exif


LEFT: dict[str, Callable[[Path], None]] = {
    "BMP": lambda path: by_pillow(path, format="BMP"),
    "gray PNG": lambda path: Image.fromarray(noise()[..., 0]).save(path, format="PNG"),
    "palette PNG": lambda path: Image.fromarray(noise()).quantize(16).save(path, format="PNG"),
    "alpha PNG": lambda path: Image.fromarray(noise(4)).save(path, format="PNG"),
    "PNG of 16 bits": lambda path: Image.fromarray(noise(dtype=np.uint16)[..., 0]).save(path, format="PNG"),
    "PNG with a transparent color": lambda path: by_pillow(path, format="PNG", transparency=(1, 2, 3)),
    "turned PNG": lambda path: by_pillow(path, format="PNG", exif=turned()),
    "PNG with EXIF as text": lambda path: by_pillow(path, format="PNG", pnginfo=texts(Raw_profile_type_exif="00")),
    "animated PNG": lambda path: by_pillow(path, format="PNG", save_all=True, append_images=[Image.new("RGB", (W, H))]),
    "gray": lambda path: Image.fromarray(noise()[..., 0]).save(path),
    "alpha": lambda path: Image.fromarray(noise(4)).save(path),
    "CMYK": lambda path: Image.fromarray(noise()).convert("CMYK").save(path),
    "palette": lambda path: Image.fromarray(noise()).quantize(16).save(path),
    "16 bits": lambda path: by_rasterio(path, noise(dtype=np.uint16)),
    "turned": lambda path: by_pillow(path, tiffinfo={274: 6}),
    "JPEG": lambda path: by_pillow(path, compression="jpeg"),
    "YCbCr": lambda path: by_rasterio(path, compress="jpeg", photometric="YCbCr"),
    "previews": lambda path: by_pillow(path, save_all=True, append_images=[Image.new("RGB", (9, 9))]),
}


@pytest.mark.parametrize("write", LEFT.values(), ids=LEFT)
def test_what_pillow_converts_turns_or_decodes_with_loss_is_left_to_it(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "a.tif"
    write(path)
    with warnings.catch_warnings(action="ignore"):  # of the frames that are not read
        assert read_image(path).size == H * W * 3
    assert large_file(path, MAX_PIXELS) is None


def test_absent_blocks_are_not_taken_for_black(tmp_path: Path) -> None:
    by_rasterio(tmp_path / "a.tif", np.zeros((H, W, 3), np.uint8), tiled=True, sparse_ok=True)
    assert large_file(tmp_path / "a.tif", MAX_PIXELS) is None


def test_small_files_large_blocks_and_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    by_pillow(path, compression="tiff_adobe_deflate")
    assert large_file(path, H * W) is not None
    assert large_file(path, H * W - 1) is None
    with monkeypatch.context() as patch:
        patch.setattr(module, "LARGE", H * W + 1)
        assert large_file(path, MAX_PIXELS) is None
    monkeypatch.setattr(module, "CACHE", 100 * W * 3)
    assert large_file(path, MAX_PIXELS) is None


def test_without_rasterio_there_is_no_reading_in_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_pillow(tmp_path / "a.tif")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert large_file(tmp_path / "a.tif", MAX_PIXELS) is None


@pytest.mark.parametrize("place", [24, 25, 28], ids=["bits", "colors", "interlaced"])
def test_headers_of_other_pngs_are_left_to_read_image(tmp_path: Path, place: int) -> None:
    path = tmp_path / "a.png"
    by_pillow(path)
    data = bytearray(path.read_bytes())
    data[place] += 1
    path.write_bytes(data)
    assert large_file(path, MAX_PIXELS) is None


@pytest.mark.parametrize("lost", [1, 12, 5000])
def test_a_png_without_its_end_is_left_to_read_image(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "a.png"
    by_pillow(path)
    assert large_file(path, MAX_PIXELS) is not None
    path.write_bytes(path.read_bytes()[:-lost])
    assert large_file(path, MAX_PIXELS) is None


def test_missing_and_truncated_files_are_left_to_read_image(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    assert large_file(path, MAX_PIXELS) is None
    by_pillow(path)
    path.write_bytes(path.read_bytes()[:-9])
    assert large_file(path, MAX_PIXELS) is None


def test_a_file_that_breaks_in_between_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    by_pillow(path)
    found = large_file(path, MAX_PIXELS)
    assert found is not None
    Image.new("RGB", (W, H - 1)).save(path)
    with pytest.raises(InputError, match=rf"a\.tif: .*{W}×{H - 1}.*{W}×{H}"):
        found.pixels()
    path.unlink()
    with pytest.raises(InputError, match=r"a\.tif: cannot be decoded \(.*No such file.*\); copy or"), found.rows():
        pass
