"""Boundary IoU, regions and calibration against their definitions, pixel by pixel in float64."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from meanshifter.data.catalog.camvid import CamVid
from meanshifter.evaluation import Result, confusion_matrix
from meanshifter.evaluation.calibration import Reliability, reliability_counts
from meanshifter.evaluation.details import RADII, Details, count_details, details_size
from meanshifter.evaluation.metrics import boundary_counts, boundary_width, iou_by_class, mean_iou, near_boundary, only
from meanshifter.evaluation.regions import AREAS, SIDES, find_regions, region_counts
from tests.evaluation.test_metrics import PROTOCOL

K, IGNORE = 3, 255
Map = npt.NDArray[np.uint8]


@st.composite
def blocks(draw: st.DrawFn, values: list[int], side: int = 60) -> Map:
    """A label map of rectangles, of which some are much larger than the boundary is wide."""
    H, W = draw(st.tuples(st.integers(1, side), st.integers(1, side)))
    found = np.full((H, W), draw(st.sampled_from(values)), np.uint8)
    for _ in range(draw(st.integers(0, 6))):
        y, x = draw(st.tuples(st.integers(0, H - 1), st.integers(0, W - 1)))
        h, w = draw(st.tuples(st.integers(1, H), st.integers(1, W)))
        found[y : y + h, x : x + w] = draw(st.sampled_from(values))
    return found


@st.composite
def pairs(draw: st.DrawFn, ignored: bool = True) -> tuple[Map, Map]:
    """Labels, and a prediction of the same size that shares most of them; K is no class."""
    truth = draw(blocks([0, 1, 2, *([IGNORE] if ignored else [])]))
    other = draw(blocks([0, 1, 2, K]))
    prediction = np.where(truth == IGNORE, np.uint8(0), truth)
    h, w = min(truth.shape[0], other.shape[0]), min(truth.shape[1], other.shape[1])
    y, x = draw(st.tuples(st.integers(0, truth.shape[0] - h), st.integers(0, truth.shape[1] - w)))
    prediction[y : y + h, x : x + w] = other[:h, :w]
    return truth, prediction


def mask_to_boundary(mask: Map, dilation_ratio: float = 0.02) -> Map:
    """The published code (github.com/bowenc0221/boundary-iou-api), with SciPy's erosion in place of OpenCV's."""
    h, w = mask.shape
    dilation = round(dilation_ratio * np.sqrt(h**2 + w**2))
    if dilation < 1:
        dilation = 1
    padded = np.pad(mask, 1)
    eroded = ndimage.binary_erosion(padded, np.ones((3, 3)), iterations=dilation, border_value=1)
    boundary: Map = mask - eroded[1:-1, 1:-1].astype(np.uint8)
    return boundary


def published(truth: Map, prediction: Map, k: int) -> tuple[int, int]:
    """Intersection and union of the boundaries of class k."""
    first, second = (mask_to_boundary((each == k).astype(np.uint8)) for each in (truth, prediction))
    return int(((first * second) > 0).sum()), int(((first + second) > 0).sum())


@settings(max_examples=60)
@given(st.lists(pairs(ignored=False), min_size=1, max_size=2))
@example([(np.zeros((60, 80), np.uint8), np.zeros((60, 80), np.uint8))])
def test_boundary_iou_is_that_of_the_published_code(images: list[tuple[Map, Map]]) -> None:
    counts = np.sum([boundary_counts(*pair, K, IGNORE) for pair in images], 0)
    sums = np.sum([[published(*pair, k) for k in range(K)] for pair in images], 0)
    expected = [100 * both / either if either else math.nan for both, either in sums]
    np.testing.assert_allclose(iou_by_class(counts), expected, rtol=1e-12)


def test_boundary_iou_of_real_masks_is_that_of_the_published_code(shared: Path) -> None:
    data = CamVid(shared / "data" / "camvid", "val")
    labels, classes = data.read_labels(0), data.label_space.num_classes
    truth = np.where(labels == IGNORE, 0, labels).astype(np.uint8)
    prediction = np.roll(truth, (3, 5), (0, 1))
    sums = [published(truth, prediction, k) for k in range(classes)]
    expected = [100 * both / either if either else math.nan for both, either in sums]
    found = iou_by_class(boundary_counts(truth, prediction, classes, IGNORE))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert 30 < np.nanmean(found) < 95


def test_the_boundary_is_two_percent_of_the_diagonal_wide() -> None:
    assert [boundary_width(size) for size in ((10, 10), (360, 480), (1024, 2048))] == [1, 12, 46]
    labels = np.zeros((360, 480), np.uint8)
    assert boundary_counts(labels, labels, K, IGNORE)[0, 0] == 360 * 480 - (360 - 24) * (480 - 24)


@settings(max_examples=40)
@given(pairs())
def test_ignored_pixels_are_in_no_mask_and_erode_none(pair: tuple[Map, Map]) -> None:
    truth, prediction = pair
    width, counted = boundary_width(truth.shape), truth != IGNORE
    sums = []
    for k in range(K):
        boundaries = []
        for each in (truth, prediction):
            mask = (each == k) & counted
            inside = np.pad(mask | ~counted, width)  # an ignored pixel stops no erosion
            eroded = ndimage.binary_erosion(inside, np.ones((3, 3)), iterations=width)[width:-width, width:-width]
            boundaries.append(mask & ~eroded)
        first, second = boundaries
        sums.append([first.sum(), second.sum(), (first & second).sum()])
    np.testing.assert_array_equal(boundary_counts(truth, prediction, K, IGNORE), np.transpose(sums))


def fits(mask: npt.NDArray[np.bool_], side: int) -> bool:
    return any(
        bool(mask[y : y + side, x : x + side].all())
        for y in range(mask.shape[0] - side + 1)
        for x in range(mask.shape[1] - side + 1)
    )


@settings(max_examples=40)
@given(pairs())
@example((np.eye(9, dtype=np.uint8), np.zeros((9, 9), np.uint8)))
def test_each_pixel_counts_in_the_bins_of_its_region(pair: tuple[Map, Map]) -> None:
    truth, prediction = pair
    regions = find_regions(truth)
    expected = np.zeros((len(AREAS) + len(SIDES) + 2, 3, K), np.int64)
    number = np.zeros(len(expected), np.int64)
    for k in range(K):
        components, count = ndimage.label(truth == k)
        for region in range(1, count + 1):
            mask = components == region
            area = sum(mask.sum() >= least for least in AREAS)
            thickness = len(AREAS) + 1 + sum(fits(mask, side) for side in SIDES)
            for place in (area, thickness):
                number[place] += 1
                expected[place, 0, k] += mask.sum()
                expected[place, 2, k] += (mask & (prediction == k)).sum()
                for guess in range(K):
                    expected[place, 1, guess] += (mask & (prediction == guess)).sum()
    np.testing.assert_array_equal(region_counts(regions, truth, prediction, K, IGNORE), expected)
    np.testing.assert_array_equal(regions.counts(IGNORE), number)


def test_a_pole_is_thin_and_a_wall_is_thick() -> None:
    labels = np.zeros((120, 200), np.uint8)
    labels[:, 60:64], labels[:, 100:140] = 1, 2
    prediction = labels.copy()
    prediction[:, 60:62] = 0  # half of the pole is lost
    details = Details.unpack(count_details(labels, [(prediction, None)], K, IGNORE, 0)[0], K, 0)
    assert details.by_thickness["1–4"].mIoU == pytest.approx(50)
    assert details.by_thickness["from 33"].mIoU == 100
    assert {name: score.regions for name, score in details.by_thickness.items() if score.regions} == {
        "1–4": 1,
        "from 33": 4,
    }
    assert details.by_area["below 32²"].mIoU == pytest.approx(50)
    assert sum(score.pixels for score in details.by_area.values()) == labels.size


confidences = hnp.arrays(
    np.float32, (6, 7), elements=st.floats(0, 1, width=32) | st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(confidences, *[hnp.arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, IGNORE]))] * 2)),
    st.sampled_from([1, 4, 15]),
)
def test_the_calibration_error_is_its_definition(images: list[tuple[Any, Map, Map]], bins: int) -> None:
    counts = sum((reliability_counts(*image, IGNORE, bins) for image in images), np.zeros((3, bins), np.int64))
    found = Reliability(counts)
    pixels = [
        (float(p), guess == label)
        for image in images
        for p, guess, label in zip(*(each.flat for each in image), strict=True)
        if label != IGNORE
    ]
    error = 0.0
    for b in range(bins):
        inside = [(p, right) for p, right in pixels if b < p * bins <= b + 1 or (b == 0 and p == 0)]
        if inside:
            accuracy, confidence = np.mean([right for _, right in inside]), np.mean([p for p, _ in inside])
            error += len(inside) / len(pixels) * abs(accuracy - confidence)
            assert found.confidence[b] == pytest.approx(100 * confidence, abs=1e-5)
        assert found.pixels[b] == len(inside)
    assert pytest.approx(100 * error if pixels else math.nan, abs=1e-5, nan_ok=True) == found.ECE


@settings(max_examples=40)
@given(pairs())
def test_dice_and_precision_are_their_definitions(pair: tuple[Map, Map]) -> None:
    truth, prediction = pair
    matrix = confusion_matrix(truth, prediction, K + 1, ignore=IGNORE)[:K]
    scores = Result(matrix[:, :K], ("a", "b", "c"), PROTOCOL, matrix[:, K]).per_class
    for k, score in enumerate(scores.values()):
        first, second = truth == k, (prediction == k) & (truth != IGNORE)
        both = (first & second).sum()
        parts = {"Dice": (2 * both, first.sum() + second.sum()), "Precision": (both, second.sum())}
        parts["Recall"] = both, first.sum()
        for name, (part, whole) in parts.items():
            expected = 100 * part / whole if whole else math.nan
            assert getattr(score, name) == pytest.approx(expected, nan_ok=True)


def detailed(bins: int = 15) -> Result:
    rng = np.random.default_rng(0)
    labels = rng.choice(np.array([0, 1, 2, IGNORE], np.uint8), (8, 8)).repeat(8, 0).repeat(8, 1)
    prediction = np.where(rng.random(labels.shape) < 0.8, labels % K, 0).astype(np.uint8)
    (counts,) = count_details(labels, [(prediction, rng.random(labels.shape))], K, IGNORE, bins)
    assert len(counts) == details_size(K, bins)
    matrix = confusion_matrix(labels, prediction, K, ignore=IGNORE)
    result = Result(matrix, ("sky", "road", "tree"), PROTOCOL, details=Details.unpack(counts, K, bins))
    bands = [only(labels, near_boundary(labels, radius, IGNORE), IGNORE) for radius in RADII]
    near = [float(mean_iou(confusion_matrix(band, prediction, K, ignore=IGNORE))) for band in bands]
    assert result.details is not None
    assert list(result.details.near_mIoU.values()) == pytest.approx(near)
    return result


@pytest.mark.parametrize("bins", [0, 15])
def test_details_are_stored_and_read_and_printed(bins: int, tmp_path: Path) -> None:
    result = detailed(bins)
    result.save(tmp_path / "scores.json")
    (stored,) = json.loads((tmp_path / "scores.json").read_text())["results"]
    again = Result.from_dict(stored)
    assert again.table() == result.table()
    assert again.to_dict() == result.to_dict() == stored
    assert ("calibration" in stored["details"]) == (bins > 0) == (not math.isnan(again.ECE))
    for text in (f"{result.boundary_IoU:.2f}", "≤ 9 px", "from 96²", "from 33", "boundary_IoU"):
        assert text in result.table()
    assert len({len(line) for line in result.table().splitlines() if line.startswith("|")}) == 1


def test_results_from_before_are_read() -> None:
    stored = detailed().to_dict()
    for name in ("details", "mDice", "mPrecision"):
        del stored[name]
    del stored["protocol"]["temperature"]
    for score in stored["per_class"].values():
        for name in ("Precision", "Dice", "boundary_IoU"):
            del score[name]
    read = Result.from_dict(stored)
    assert read.details is None
    assert read.protocol == PROTOCOL
    assert math.isnan(read.boundary_IoU)
    assert read.mDice == detailed().mDice
