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

import meanshifter as ms
from meanshifter.data import rasters
from meanshifter.data import rows as module
from meanshifter.data.reading import read_image
from meanshifter.data.rows import LargeFile
from meanshifter.errors import InputError

rasterio = pytest.importorskip("rasterio")
Make = Callable[..., ms.Segmenter]
H, W = 301, 123
STRIPS = {"blockysize": 16}
DEFLATE = {"blockysize": 16, "compress": "deflate"}
PNG = {"driver": "PNG"}
TILES = {"tiled": True, "blockxsize": 48, "blockysize": 64, "compress": "deflate"}


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 1)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record the files that rasterio opens."""
    found: list[Any] = []
    usual = rasters.open_raster

    def spy(path: Path, driver: str) -> Any:
        found.append(usual(path, driver))
        return found[-1]

    monkeypatch.setattr(module, "open_raster", spy)
    return found


def write(path: Path, **options: Any) -> Path:
    blocks = np.kron(np.random.default_rng(0).integers(0, 256, (3, H // 7 + 1, W // 7 + 1)), np.ones((7, 7)))
    profile = {"height": H, "width": W, "count": 3, "dtype": "uint8", "photometric": "RGB"}
    with warnings.catch_warnings(action="ignore"), rasterio.open(path, "w", **profile, **options) as file:
        file.write(blocks[:, :H, :W].astype(np.uint8))
    return path


def break_data(path: Path) -> Path:
    """Corrupt compressed rows halfway down, leaving the header intact."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = b"\x55" * 400
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("options", [STRIPS, DEFLATE, TILES, PNG], ids=["strips", "deflate", "tiles", "png"])
@pytest.mark.parametrize(("window", "stride"), [(32, 24), (64, 64), (None, 480)])
def test_labels_are_those_of_the_image_in_memory(
    tiny_model: Make, tmp_path: Path, options: dict[str, Any], window: int | None, stride: int
) -> None:
    path = write(tmp_path / "a.tif", **options)
    asked: dict[str, Any] = {"confidence": ("margin",), "probabilities": ("class 1",)}
    predictor = ms.Predictor(tiny_model(), window=window, window_stride=stride, short_side=None, batch_size=3, **asked)
    assert isinstance(predictor.load(path), LargeFile)
    pixels = read_image(path)
    found, expected = predictor(path), predictor(pixels)
    assert len(np.unique(expected.labels)) > 1
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.confidence["margin"], expected.confidence["margin"])
    np.testing.assert_array_equal(found.probabilities["class 1"], expected.probabilities["class 1"])
    for a, b in zip(predictor.label_maps(str(path), [0, 2]), predictor.label_maps(pixels, [0, 2]), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(found.image, pixels)
    assert found.overlay().size == (W, H)


def test_each_row_of_windows_is_read_in_one_call(
    tiny_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[slice] = []
    usual = module.FileRows._read

    def spy(rows: module.FileRows, place: slice) -> npt.NDArray[np.uint8]:
        read.append(place)
        return usual(rows, place)

    monkeypatch.setattr(module.FileRows, "_read", spy)
    monkeypatch.setattr("meanshifter.inference.predictor.as_pixels", None)
    ms.Predictor(tiny_model(), window=32, window_stride=24, short_side=None, batch_size=4)(write(tmp_path / "a.tif"))
    assert read == [slice(min(y, H - 32), min(y + 32, H)) for y in range(0, H - 32 + 23, 24)]


@pytest.mark.parametrize(
    "reading", [{"short_side": 64}, {"flip": True}, {"scales": (0.5,)}, {"scales": (1.0, 0.5)}], ids=str
)
def test_an_image_that_is_resized_or_read_twice_is_read_into_memory(
    tiny_model: Make, tmp_path: Path, reading: dict[str, Any]
) -> None:
    predictor = ms.Predictor(tiny_model(), **{"short_side": None, **reading})
    assert isinstance(predictor.load(write(tmp_path / "a.tif")), np.ndarray)


def test_an_image_that_fits_already_is_not_resized(tiny_model: Make, tmp_path: Path) -> None:
    assert isinstance(ms.Predictor(tiny_model(), short_side=W).load(write(tmp_path / "a.tif")), LargeFile)


def test_without_rasterio_pillow_gives_the_same_result(
    tiny_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.tif", **DEFLATE)
    predictor = ms.Predictor(tiny_model(), window=32, window_stride=24, short_side=None)
    expected = predictor(path).labels
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert isinstance(predictor.load(path), np.ndarray)
    np.testing.assert_array_equal(predictor(path).labels, expected)


def test_files_are_closed_and_nothing_is_printed(
    tiny_model: Make, tmp_path: Path, files: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    predictor = ms.Predictor(tiny_model(), window=32, window_stride=24, short_side=None)
    predictor(write(tmp_path / "a.tif", **DEFLATE))
    with pytest.raises(InputError, match=r"broken\.tif: cannot be decoded \(.+\); copy or export the file again$"):
        predictor(break_data(write(tmp_path / "broken.tif", **DEFLATE)))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    predictor.progress = interrupt
    with pytest.raises(KeyboardInterrupt):
        predictor(tmp_path / "a.tif")
    assert len(files) == 6
    assert all(file.closed for file in files)
    assert capfd.readouterr() == ("", "")


def test_errors_are_one_line(tiny_model: Make, tmp_path: Path) -> None:
    predictor = ms.Predictor(tiny_model(), short_side=None, max_pixels=H * W - 1)
    path = write(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif: 123×301 is 37,023 pixels, above max_pixels 37,022; raise max_pixel"):
        predictor(path)
    with pytest.raises(InputError, match=r"b\.tif: no such file; check the path$"):
        predictor(tmp_path / "b.tif")
    predictor.max_pixels = H * W
    Image.open(path).save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"a\.tif: cannot be decoded \(.+\); copy or export the file again$"):
        predictor(path)


def test_a_png_whose_data_are_broken_is_refused(tiny_model: Make, tmp_path: Path) -> None:
    predictor = ms.Predictor(tiny_model(), window=32, window_stride=24, short_side=None)
    broken = break_data(write(tmp_path / "broken.png", **PNG))
    assert isinstance(predictor.load(broken), LargeFile)
    with pytest.raises(InputError, match=r"broken\.png: cannot be decoded \(.+\); copy or export the file again$"):
        predictor(broken)
