from __future__ import annotations

import csv
from pathlib import Path

import pytest

from meanshifter.analysis.findings import TABLE_1, Published
from meanshifter.analysis.study_scores import size_of_folder
from meanshifter.model.presets import create_model, size_of


def test_the_published_table_is_what_was_published(shared: Path) -> None:
    with (shared / "published_layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(TABLE_1)
    for row, ours in zip(rows, TABLE_1, strict=True):
        layers, channels = (int(row[key]) if row[key] else None for key in ("layers", "channels"))
        scores = (float(row[key]) for key in ("aAcc", "mAcc", "mIoU", "params_millions"))
        assert ours == Published(layers, channels, int(row["runs"]), *scores)


def test_multiply_adds_of_a_segmenter_are_those_of_its_matrices() -> None:
    size = size_of("segmenter-ti16", num_classes=150, image_size=512)
    N, D, K, P = 1024, 192, 150, 16
    layer = 12 * (N + 1) * D * D + 2 * (N + 1) ** 2 * D
    assert size.multiply_adds == 12 * layer + N * D * 3 * P * P + N * D * K


@pytest.mark.parametrize("layers", [1, 3])
def test_multiply_adds_of_a_block_are_those_of_its_steps_and_nothing_is_computed_twice(layers: int) -> None:
    plain = size_of("segmenter-ti16", num_classes=11, image_size=224).multiply_adds
    joint = {"layers": layers, "kernel": "gaussian", "spatial_sigma": 2.5, "blurring": False, "residual_readout": True}
    N, D = 196, 192
    padded = D + 8  # three channels more for position and lengths, in a multiple of eight
    keys, reading = N * D * D, N * D * D
    queries = (layers - 1) * N * D * D  # the first step's are the keys
    shifted = size_of("meanshifter-ti16", num_classes=11, image_size=224, mean_shift=joint).multiply_adds
    assert shifted - plain == layers * 2 * N * N * padded + keys + queries + reading


def test_a_saved_model_is_counted_at_its_own_size(tmp_path: Path) -> None:
    model = create_model("meanshifter-ti16", num_classes=11, image_size=(64, 96))
    model.save(tmp_path)
    size = size_of_folder(tmp_path)
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert size.multiply_adds < size_of("meanshifter-ti16", num_classes=11, image_size=96).multiply_adds
