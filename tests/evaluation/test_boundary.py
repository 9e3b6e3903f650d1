"""Scores near the boundaries of the truth, against their definition pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from meanshifter.data.catalog.shapes import Shapes
from meanshifter.evaluation.details import RADII
from meanshifter.evaluation.diagnostics import diagnose_model, diagnose_sample
from meanshifter.evaluation.metrics import confusion_matrix, mean_iou, near_boundary, only
from meanshifter.inference.predictor import Predictor
from meanshifter.model.config import MeanShiftConfig, ModelConfig, PixelShiftConfig
from meanshifter.model.segmenter import Segmenter

IGNORE = 255
maps = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 2, IGNORE]))


def by_definition(labels: npt.NDArray[Any], radius: int) -> npt.NDArray[np.bool_]:
    near = np.zeros(labels.shape, np.bool_)
    padded = np.pad(labels, radius, constant_values=IGNORE)
    H, W = labels.shape
    for y, x in np.ndindex(2 * radius + 1, 2 * radius + 1):
        other = padded[y : y + H, x : x + W]
        near |= (other != labels) & (other != IGNORE) & (labels != IGNORE)
    return near


@given(maps, st.integers(1, 4))
def test_the_band_is_its_definition(labels: npt.NDArray[np.uint8], radius: int) -> None:
    np.testing.assert_array_equal(near_boundary(labels, radius, IGNORE), by_definition(labels, radius))


def test_what_lies_outside_the_band_is_ignored() -> None:
    labels = np.array([[0, 0, 1, 1, 1]], np.uint8)
    assert only(labels, near_boundary(labels, 1, IGNORE), IGNORE).tolist() == [[IGNORE, 0, 1, IGNORE, IGNORE]]


def test_means_leave_out_absent_classes_and_empty_matrices() -> None:
    counts = np.zeros((2, 3, 3), np.int64)
    counts[0, 0, 0], counts[0, 0, 1] = 3, 1
    scores = mean_iou(counts)
    assert scores[0] == pytest.approx(100 * (3 / 4 + 0) / 2)
    assert np.isnan(scores[1])


def model(**settings: object) -> Segmenter:
    torch.manual_seed(0)
    config = ModelConfig(
        "vit_tiny_patch16_224",
        image_size=(64, 64),
        encoder_args={"embed_dim": 16, "depth": 1, "num_heads": 2},
        **settings,  # type: ignore[arg-type]
    )
    return Segmenter(config, Shapes("val").label_space).eval()


@pytest.mark.parametrize(
    ("settings", "moved"),
    [({"mean_shift": MeanShiftConfig(2)}, 3), ({"pixel_shift": PixelShiftConfig(2)}, 1), ({}, 1)],
    ids=["block", "pixels", "plain"],
)
def test_each_step_has_its_scores_near_boundaries(settings: dict[str, object], moved: int) -> None:
    predictor = Predictor(model(**settings), window=None, short_side=None)
    steps = 2 if settings else 0
    data = Shapes("val")
    rows = diagnose_model(predictor, data, steps, images=2, limit=3)
    assert len(rows) == steps + 1
    assert sum("rank" in row for row in rows) == moved
    total: npt.NDArray[np.int64] = np.zeros(
        (len(RADII), data.label_space.num_classes, data.label_space.num_classes), np.int64
    )
    for place in (0, 2):
        sample = data[place]
        found = predictor.label_maps(sample.image, [steps])[0]
        for n, radius in enumerate(RADII):
            truth = np.where(by_definition(sample.labels, radius), sample.labels, IGNORE)
            total[n] += confusion_matrix(truth, found, data.label_space.num_classes, ignore=IGNORE)
    assert [rows[-1]["boundary_3"], rows[-1]["boundary_9"]] == pytest.approx(mean_iou(total).tolist())
    figures, counts = diagnose_sample(predictor, data[0], steps)
    assert counts.shape[:2] == (steps + 1, len(RADII))
    assert figures[0]["modes"] >= 1
