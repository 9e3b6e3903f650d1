from __future__ import annotations

import numpy as np

from meanshifter.analysis.figures import STRIP_SIDE, Tile, draw_strip, error_map, fitted
from meanshifter.analysis.html import ignored_color
from meanshifter.data.labels import LabelSpace

SPACE = LabelSpace(("sky", "road"), ((128, 128, 128), (100, 0, 200)))


def test_wrong_pixels_have_the_predicted_color_right_ones_are_faint_and_ignored_ones_gray() -> None:
    truth = np.array([[0, 1, 0, 255]], np.uint8)
    prediction = np.array([[1, 1, 0, 1]], np.uint8)
    faint_road, faint_sky = [224, 204, 244], [230, 230, 230]  # 255 − 0.2 × (255 − color)
    wrong, right, also_right, ignored = error_map(truth, prediction, SPACE)[0].tolist()
    assert wrong == [100, 0, 200]
    assert (right, also_right) == (faint_road, faint_sky)
    assert ignored == [80, 80, 80]  # the usual gray is that of sky


def test_ignored_pixels_take_the_usual_gray_where_no_class_has_it() -> None:
    assert ignored_color(LabelSpace(("a",), ((255, 0, 0),))) == (128, 128, 128)
    every_gray = tuple((level, level, level) for level in range(0, 256, 32))
    assert ignored_color(LabelSpace(tuple("abcdefgh"), every_gray)) not in every_gray


def test_small_pictures_are_enlarged_by_a_whole_factor_and_large_label_maps_keep_their_colors() -> None:
    small = np.random.default_rng(0).integers(0, 256, (50, 100, 3), dtype=np.uint8)
    assert np.array_equal(fitted(small)[::4, ::4], small)
    assert fitted(small).shape == (200, 400, 3)
    colors = np.array([[10, 20, 30], [200, 100, 0]], np.uint8)
    large = colors[np.random.default_rng(0).integers(0, 2, (1000, 700))]
    shrunk = fitted(large)
    assert shrunk.shape == (STRIP_SIDE, 336, 3)
    assert {tuple(pixel) for pixel in shrunk.reshape(-1, 3).tolist()} == {tuple(color) for color in colors.tolist()}


def test_a_strip_holds_all_tiles_untouched_and_what_is_written_is_wrapped_into_the_width() -> None:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 200, (120, 160, 3), dtype=np.uint8) for _ in range(5)]
    titles = ["short", "a title that is too long for one line", "x" * 99, "", "last"]
    tiles = [Tile(picture, title, "note") for picture, title in zip(pixels, titles, strict=True)]
    strip = np.asarray(draw_strip("heading", [tiles[:3], tiles[3:]], {"sky": (1, 2, 3), "a" * 30: (4, 5, 6)}))
    text, gap = 16, 5
    assert strip.shape[1] == 3 * 160 + 4 * gap
    assert strip.shape[0] > 2 * 120 + 6 * text
    for place, picture in enumerate(pixels):
        row, column = divmod(place, 3)
        x = gap + column * (160 + gap)
        found = [y for y in range(strip.shape[0] - 119) if np.array_equal(strip[y : y + 120, x : x + 160], picture)]
        assert len(found) == 1, (row, column)
    assert (strip[:, :gap] == 255).all()
    assert (strip[:, -gap:] == 255).all()
    assert (strip == (1, 2, 3)).all(2).any()
