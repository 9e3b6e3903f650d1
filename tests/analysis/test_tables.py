from __future__ import annotations

from pathlib import Path

import pytest

from meanshifter.analysis.findings import Findings
from meanshifter.analysis.study_plan import Cell
from meanshifter.training.parsing import parse_recipe


@pytest.mark.parametrize(
    ("fields", "mIoU"),
    [
        ([], 31.44),
        (["--model.mean_shift", "{layers: 2, channels: 192}"], 19.37),
        (["--model.preset", "meanshifter-ti16"], 31.05),
        (["--model.mean_shift", "{layers: 2, channels: 192, kernel: gaussian}"], None),
        (["--model.preset", "segmenter-mask-ti16"], None),
        (["--model.preset", "meanshifter-joint-ti16"], None),
        (["--model.pixel_shift", "{layers: 1}"], None),
    ],
)
def test_published_figures_stand_beside_the_published_models_only(
    fields: list[str], mIoU: float | None, tmp_path: Path
) -> None:
    cell = Cell("row", 0, tmp_path, parse_recipe("camvid_half", fields))
    found = object.__new__(Findings)
    found.cells = {("row", 0): cell}
    published = found.published("row")
    assert (None if published is None else published.mIoU) == mIoU
