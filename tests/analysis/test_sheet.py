from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from meanshifter.analysis import figures
from meanshifter.analysis.figures import SheetRow, plain_title, save_sheet, steps_title
from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError

pytest.importorskip("matplotlib")

NAMES = ("sky", "road", "car", "tench, Tinca tinca " * 9)
COLORS = ((10, 120, 200), (200, 20, 100), (30, 160, 40), (240, 200, 0))
SPACE = LabelSpace(NAMES, COLORS)


def row(H: int, W: int, *classes: int) -> SheetRow:
    """A gray image and label maps of one class each."""
    return SheetRow.of(np.full((H, W, 3), 99, np.uint8), [np.full((H, W), k, np.uint8) for k in classes])


def saved(folder: Path, titles: list[str], *rows: SheetRow) -> npt.NDArray[np.uint8]:
    png, _ = save_sheet(folder / "sheet", titles, rows, SPACE, ["a: 1"])
    return np.asarray(Image.open(png).convert("RGB"))


def extent(picture: npt.NDArray[np.uint8], color: tuple[int, int, int], above: int) -> tuple[int, int, int, int]:
    """Left, top, width and height of what has `color` in the rows above `above`."""
    ys, xs = np.nonzero((picture[:above] == color).all(2))
    left, top = int(xs.min()), int(ys.min())
    wide, high = int(xs.max()) + 1 - left, int(ys.max()) + 1 - top
    assert len(xs) == wide * high
    return left, top, wide, high


def test_pictures_of_every_shape_keep_their_ratio_and_stand_in_their_columns(tmp_path: Path) -> None:
    shapes = [(360, 480), (90, 400), (400, 90)]
    rows = [row(*shape, k, 255, 255) for k, shape in enumerate(shapes)]
    picture = saved(tmp_path, ["Image", "a", "b", "c"], *rows)
    legend = picture.shape[0] - 60
    width = 6.875 * 300
    assert width - 4 < picture.shape[1] <= width + 1
    places = [extent(picture, COLORS[k], legend) for k in range(3)]
    for (H, W), (left, _, wide, high) in zip(shapes, places, strict=True):
        assert wide / high == pytest.approx(W / H, abs=1.5 / high * max(W / H, 1))
        assert left + wide / 2 == pytest.approx(places[0][0] + places[0][2] / 2, abs=1)
    assert places[0][2] == places[1][2] > 480
    assert places[0][1] + places[0][3] < places[1][1] < places[1][1] + places[1][3] < places[2][1]
    assert places[2][3] < 1.4 * places[0][2]  # no row fills the page


def test_label_maps_keep_their_colors_and_photos_are_smooth(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (64, 48)).astype(np.uint8)
    photo = np.where(labels[..., None] > 1, 255, 0).repeat(3, 2).astype(np.uint8)
    picture = saved(tmp_path, ["Image", "Ground truth"], SheetRow.of(photo, [labels]))
    column = (picture.shape[1] - 2 * 6 - 12) // 2
    maps = picture[60:400, 6 + column + 12 : 6 + 2 * column + 12]
    assert {tuple(color) for color in maps.reshape(-1, 3).tolist()} == set(COLORS[:3])
    assert len(np.unique(picture[60:400, 6 : 6 + column])) > 50


def test_titles_and_classes_that_are_too_long_are_shortened_and_touch_nothing(tmp_path: Path) -> None:
    long = "segmenter_ti16_with_a_name_that_no_column_holds"
    titles = ["Image", plain_title(f"{long}_seed_1"), plain_title(f"{long}_seed_2"), plain_title("a$b$ 5\n\x07")]
    picture = saved(tmp_path, titles, row(100, 100, 0, 1, 3))
    column = (picture.shape[1] - 2 * 6 - 3 * 12) // 4
    first, second, third = (6 + number * (column + 12) for number in (1, 2, 3))
    assert (picture[:50, first - 12 : first] == 255).all()
    assert (picture[:50, second - 12 : second] == 255).all()
    assert (picture[:50, first : first + column] < 128).any()
    assert (picture[:50, first : first + column] != picture[:50, second : second + column]).any()  # seed 1, seed 2
    assert (picture[:50, third : third + column] < 128).any()
    assert (picture[-50:, -6:] == 255).all()


def test_the_legend_has_the_classes_that_occur_and_no_other(tmp_path: Path) -> None:
    picture = saved(tmp_path, ["Image", "a", "b"], row(50, 50, 0, 2), row(50, 50, 2, 255))
    legend = picture[-40:]
    found = [bool((legend == color).all(2).any()) for color in COLORS]
    assert found == [True, False, True, False]
    assert (legend == (128, 128, 128)).all(2).any()  # ignored pixels


def test_the_pdf_has_text_in_true_type_fonts_and_the_pixels_of_the_label_maps(tmp_path: Path) -> None:
    rows = [SheetRow.of(np.zeros((50, 100, 3), np.uint8), [np.arange(5000).reshape(50, 100).astype(np.uint8) % 3])]
    _, pdf = save_sheet(tmp_path / "sheet", ["Image", steps_title(2)], rows, SPACE, ["a: 1"])
    data = pdf.read_bytes()
    assert b"/FontFile2" in data
    assert b"/Type3" not in data
    assert re.search(rb"/Width 1000\b", data)  # a whole factor of 100, not what print needs
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", data, re.S)
    texts = b""
    for stream in streams:
        try:
            texts += zlib.decompress(stream)
        except zlib.error:
            continue
    letters = b"".join(re.findall(rb"\(([^()]*)\)", texts)).replace(b"\0", b"")  # words are divided for kerning
    assert b"Image" in letters
    assert b"road" in letters


def test_the_same_rows_make_the_same_files_which_say_what_they_were_made_with(tmp_path: Path) -> None:
    once, again = (
        save_sheet(tmp_path / name, ["Image", "a"], [row(9, 9, 0)], SPACE, ["first: 512", "last: ünï"])
        for name in ("a", "b")
    )
    assert [path.read_bytes() for path in once] == [path.read_bytes() for path in again]
    with Image.open(once[0]) as picture:
        assert picture.info["Protocol"] == "first: 512\nlast: ünï"
        assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_names_that_the_font_lacks_are_warned_of_once(tmp_path: Path) -> None:
    space = LabelSpace(("空", "道路"), COLORS[:2])
    with pytest.warns(UserWarning, match="sheet: .* 3 characters .*matplotlibrc") as caught:
        save_sheet(tmp_path / "sheet", ["Image", "a"], [row(9, 9, 0), row(9, 9, 1)], space, [])
    assert len(caught) == 1


def test_without_matplotlib_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"matplotlib.*meanshifter\[plots\]"):
        save_sheet(tmp_path / "sheet", ["Image"], [row(9, 9)], SPACE, [])
    assert list(tmp_path.iterdir()) == []
