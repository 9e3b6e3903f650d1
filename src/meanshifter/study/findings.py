"""What the finished trainings of a study say, row by row.

Glossary: S seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from meanshifter.model.config import MeanShiftConfig
from meanshifter.model.cost import size_of
from meanshifter.model.presets import parse_preset
from meanshifter.study.plan import Cell, Plan
from meanshifter.study.published import TABLE_1, TABLE_2, Published, PublishedDepth
from meanshifter.study.scoring import counts_of, scores_of
from meanshifter.study.sizes import size_of_folder
from meanshifter.study.statistics import Interval, drawn_scores, over_images, over_seeds


class Findings:
    """The finished trainings of a study."""

    def __init__(self, plan: Plan, cells: Sequence[Cell]) -> None:
        self.plan, self.facts = plan, {(cell.row, cell.seed): scores_of(cell) for cell in cells}
        self.cells = {(cell.row, cell.seed): cell for cell in cells}
        self.rows = [row for row in plan.all_rows if any(key[0] == row for key in self.cells)]
        self.splits = () if plan.splits is None else plan.splits
        self._drawn: dict[tuple[str, int, str], npt.NDArray[np.float64]] = {}

    def whole(self, row: str) -> list[dict[str, Any]]:
        """The facts of the row's trainings that did not diverge, by seed."""
        return [self.facts[row, seed] for seed in self.seeds(row)]

    def seeds(self, row: str) -> list[int]:
        """The seeds whose training did not diverge."""
        return [s for s in self.plan.seeds_of(row) if (row, s) in self.facts and "failure" not in self.facts[row, s]]

    def lost(self, row: str) -> str:
        """How many of the row's seeds have no scores, and why, in a few words; empty where all have."""
        seeds = self.plan.seeds_of(row)
        missing = sum((row, seed) not in self.facts for seed in seeds)
        diverged = len(seeds) - missing - len(self.seeds(row))
        counts = {"diverged": diverged, "missing": missing}
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)

    def own(self, row: str, split: str, metric: str = "mIoU") -> list[float]:
        """The score of each seed with the trained number of steps."""
        return [f[metric][split][f["depths"].index(f["trained_depth"])] for f in self.whole(row)]

    def at(self, row: str, split: str, depth: int, metric: str = "mIoU") -> list[float]:
        """The score of each seed with `depth` steps, where it was read out so."""
        return [f[metric][split][f["depths"].index(depth)] for f in self.whole(row) if depth in f["depths"]]

    @property
    def depths(self) -> list[int]:
        """All numbers of steps that any model was read out with."""
        return sorted({depth for facts in self.facts.values() for depth in facts.get("depths", ())})

    def multiply_adds(self, row: str) -> int | None:
        """Of one image of the size that the row's models were made for; None where no checkpoint is left."""
        for seed in self.seeds(row):
            folder = Path(str(self.cells[row, seed].config.out)) / "checkpoints" / "last"
            if (folder / "config.json").is_file():
                return size_of_folder(folder).multiply_adds
        return None

    def boundary(self, row: str, split: str, name: str) -> float | None:
        """mIoU near boundaries with the trained number of steps, mean over seeds."""
        found = [facts["boundary"][split][name] for facts in self.whole(row) if "boundary" in facts]
        return fmean(found) if found else None

    def difference(self, row: str, split: str, base: str | None = None) -> tuple[Interval, Interval] | None:
        """The row less `base` (None: the baseline): over seeds, and over images; None without common seeds."""
        base = self.plan.base if base is None else base
        seeds = [seed for seed in self.seeds(row) if seed in self.seeds(base)]
        if row == base or not seeds:
            return None
        scores = {name: dict(zip(self.seeds(name), self.own(name, split), strict=True)) for name in (row, base)}
        paired = over_seeds([scores[row][seed] - scores[base][seed] for seed in seeds])
        ours, theirs = ([self._drawn_scores(name, seed, split) for seed in seeds] for name in (row, base))
        return paired, over_images(ours, theirs)

    def _drawn_scores(self, row: str, seed: int, split: str) -> npt.NDArray[np.float64]:
        """`drawn_scores` of one training, kept since several rows are compared with one."""
        key = (row, seed, split)
        if key not in self._drawn:
            counts = counts_of(self.cells[row, seed], split, self.facts[row, seed]["trained_depth"])
            self._drawn[key] = drawn_scores(counts.by_class())
        return self._drawn[key]

    def diagnostics(self, row: str) -> list[dict[str, float]]:
        """The mean over seeds, one entry for each step."""
        several = [facts["diagnostics"] for facts in self.whole(row)]
        return [
            {name: fmean(steps[n][name] for steps in several) for name in several[0][n]}
            for n in range(min(map(len, several), default=0))
        ]

    def published(self, row: str) -> Published | None:
        """The published figures of the row's model on ADE20K; None for one that was not published."""
        model = next(cell.config.model for key, cell in self.cells.items() if key[0] == row)
        family, decoder, size = parse_preset(model.preset)
        if model.start is not None or model.pixel_shift is not None or decoder == "mask" or size != "ti16":
            return None
        if family not in ("segmenter", "meanshifter") or not (model.backbone or "vit_tiny").startswith("vit_tiny"):
            return None
        shift = MeanShiftConfig() if family == "meanshifter" and model.mean_shift is None else model.mean_shift
        layers, channels = None, None
        if shift is not None:
            layers, channels = shift.layers, 192 if shift.channels is None else shift.channels
            if shift != MeanShiftConfig(shift.layers, shift.channels):
                return None
        found = [entry for entry in TABLE_1 if (entry.layers, entry.channels) == (layers, channels)]
        return found[0] if found else None

    def published_depth(self, row: str, depth: int) -> PublishedDepth | None:
        """The published figures of the row's model read out with `depth` steps; None where there are none."""
        entry = self.published(row)
        key = None if entry is None else (entry.layers, entry.channels, depth)
        return next((found for found in TABLE_2 if found[:3] == key), None)

    def block(self, row: str) -> tuple[int | None, int | None]:
        """L_ms and d_ms of a block with encodings as keys; None where there is none, or it has no channels."""
        model = next(cell.config.model for key, cell in self.cells.items() if key[0] == row)
        shift = model.mean_shift or (MeanShiftConfig() if parse_preset(model.preset)[0] == "meanshifter" else None)
        return (None, None) if shift is None else (shift.layers, shift.channels)

    @property
    def data_name(self) -> str | None:
        """The data set that all are trained on; None before the first training is finished."""
        return next((cell.config.data.name for cell in self.cells.values()), None)

    def is_comparable(self, split: str) -> bool:
        """Whether the split is what the published figures score: all images of ADE20K's validation."""
        return split == "val" and all(
            cell.config.data.name == "ade20k" and cell.config.evaluation.limit is None for cell in self.cells.values()
        )

    def as_published(self, row: str) -> tuple[str, str, str]:
        """The published mIoU and millions of parameters, and ours of that model: 150 classes at 512 × 512."""
        entry = self.published(row)
        if entry is None:
            return "–", "–", "–"
        shift = None if entry.layers is None else {"layers": entry.layers, "channels": entry.channels}
        preset = "segmenter-ti16" if shift is None else "meanshifter-ti16"
        size = size_of(preset, num_classes=150, image_size=512, mean_shift=shift)
        return f"{entry.mIoU:.2f}", f"{entry.millions:.2f}", f"{size.parameters / 1e6:.2f}"
