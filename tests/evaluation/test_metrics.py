"""Scores against a reference written from the definitions, pixel by pixel, without a confusion matrix."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from meanshifter.errors import InputError
from meanshifter.evaluation import Protocol, Result, confusion_matrix, save_results

PROTOCOL = Protocol(
    dataset="camvid", split="val", images=2, images_in_split=101, short_side=512, long_side=2048,
    window=512, window_stride=480, flip=False, scales=(1.0,),
    mean_shift_layers=1, precision="fp32", weights="0123456789ab", version="0.1.0",
)  # fmt: skip
Maps = list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]


def reference(maps: Maps, classes: int, ignore: int) -> dict[str, Any]:
    pixels = [(int(t), int(p)) for truth, prediction in maps for t, p in zip(truth.flat, prediction.flat, strict=True)]
    pixels = [(t, p) for t, p in pixels if t != ignore]
    iou, acc = {}, {}
    for k in range(classes):
        both = sum(t == k and p == k for t, p in pixels)
        either = sum(t == k or p == k for t, p in pixels)
        true = sum(t == k for t, _ in pixels)
        if either:
            iou[k] = both / either
        if true:
            acc[k] = both / true
    return {
        "aAcc": 100 * sum(t == p for t, p in pixels) / len(pixels) if pixels else math.nan,
        "mIoU": 100 * sum(iou.values()) / len(iou) if iou else math.nan,
        "mAcc": 100 * sum(acc.values()) / len(acc) if acc else math.nan,
        "IoU": [100 * iou.get(k, math.nan) for k in range(classes)],
        "Acc": [100 * acc.get(k, math.nan) for k in range(classes)],
        "absent": [f"c{k}" for k in range(classes) if k not in iou],
    }


@st.composite
def label_maps(draw: st.DrawFn) -> tuple[Maps, int, int]:
    classes, ignore = draw(st.sampled_from([(1, 255), (3, 255), (8, 255), (5, 65535)]))
    dtype = np.uint8 if ignore == 255 else np.uint16
    # Truth and prediction each from a few values, so that classes are absent from one, the other or both.
    values = st.sets(st.integers(0, classes - 1), min_size=1, max_size=4)
    true = [*draw(values), ignore] if draw(st.booleans()) else [*draw(values)]
    predicted = [*draw(values)]
    maps = []
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=9))
        pair = (hnp.arrays(dtype, shape, elements=st.sampled_from(v)) for v in (true, predicted))
        maps.append((draw(next(pair)), draw(next(pair))))
    return maps, classes, ignore


@settings(max_examples=150)
@given(label_maps())
def test_scores_agree_with_the_definitions(drawn: tuple[Maps, int, int]) -> None:
    maps, classes, ignore = drawn
    confusion = sum(confusion_matrix(t, p, classes, ignore=ignore) for t, p in maps)
    assert isinstance(confusion, np.ndarray)
    result = Result(confusion, tuple(f"c{k}" for k in range(classes)), PROTOCOL)
    expected = reference(maps, classes, ignore)
    for name in ("aAcc", "mIoU", "mAcc"):
        assert getattr(result, name) == pytest.approx(expected[name], abs=1e-6, nan_ok=True)
    for name in ("IoU", "Acc"):
        ours = [getattr(score, name) for score in result.per_class.values()]
        assert ours == pytest.approx(expected[name], abs=1e-6, nan_ok=True)
    assert result.absent == expected["absent"]
    assert [score.pixels for score in result.per_class.values()] == confusion.sum(1).tolist()


def test_rows_are_truth_and_columns_prediction() -> None:
    truth, prediction = np.array([[0, 0, 1, 255]], np.uint8), np.array([[1, 0, 1, 0]], np.uint8)
    confusion = confusion_matrix(truth, prediction, 2, ignore=255)
    assert confusion.dtype == np.int64
    np.testing.assert_array_equal(confusion, [[1, 1], [0, 1]])


def test_counts_do_not_overflow_the_label_type() -> None:
    truth = np.full((300, 300), 149, np.uint8)
    assert confusion_matrix(truth, truth, 150, ignore=255)[149, 149] == 90_000


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        ([[0, 7, 7]], [[0, 0, 0]], "truth: value 7 in 2 pixels; .*255"),
        ([[0, 1, 1]], [[0, 0, 255]], "prediction: value 255 in 1 pixels; classes are 0 to 2"),
        ([[0, 1]], [[0, 0, 0]], "truth is 1×2 and prediction 1×3"),
    ],
)
def test_values_outside_the_classes_are_refused(truth: Any, prediction: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        confusion_matrix(np.array(truth, np.uint8), np.array(prediction, np.uint8), 3, ignore=255)


def test_saved_scores_carry_the_protocol_and_no_nan(tmp_path: Path) -> None:
    result = Result(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]]), ("sky", "road", "tree"), PROTOCOL)
    result.save(tmp_path / "one.json")
    save_results(tmp_path / "two.json", [result, result])
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert one["format_version"] == two["format_version"] == 1
    assert len(two["results"]) == 2
    (saved,) = one["results"]
    assert saved == two["results"][1]
    assert saved["protocol"]["weights"] == "0123456789ab"
    assert saved["absent"] == ["tree"]
    assert saved["per_class"]["road"] == {"IoU": 0.0, "Acc": None, "Precision": 0.0, "Dice": 0.0, "pixels": 0}
    assert saved["mIoU"] == pytest.approx(37.5)
    assert saved["mAcc"] == saved["aAcc"] == 75.0


def test_table_names_absent_classes_and_ends_with_the_protocol() -> None:
    table = Result(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]]), ("sky", "road", "tree"), PROTOCOL).table().splitlines()
    assert any("sky" in line and "75.00" in line for line in table)
    assert any("excluded from means" in line and line.endswith("tree") for line in table)
    assert table[-1] == str(PROTOCOL)
    assert table[-1].startswith("camvid val, first 2 of 101 images; resized to fit 2048×512; window 512, stride 480;")
