"""The results of a study's finished trainings, row by row, with the published ones.

Glossary: S seeds, I images, K classes.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from meanshifter.analysis.study_plan import Cell, Plan
from meanshifter.analysis.study_scores import COUNTS, load_counts, scores_of, size_of_folder
from meanshifter.evaluation.metrics import mean_iou_by_class
from meanshifter.model.config import MeanShiftConfig
from meanshifter.model.presets import parse_preset, size_of
from meanshifter.training.sections import ModelRecipe


class Findings:
    """The results of a study's finished trainings."""

    def __init__(self, plan: Plan, cells: Sequence[Cell]) -> None:
        self.plan, self.facts = plan, {(cell.row, cell.seed): scores_of(cell) for cell in cells}
        self.cells = {(cell.row, cell.seed): cell for cell in cells}
        self.rows = [row for row in plan.all_rows if any(key[0] == row for key in self.cells)]
        self.splits = () if plan.splits is None else plan.splits
        self._bootstrapped: dict[tuple[str, int, str], npt.NDArray[np.float64]] = {}

    def finished(self, row: str) -> list[dict[str, Any]]:
        """The scores of the row's trainings that did not diverge, by seed."""
        return [self.facts[row, seed] for seed in self.seeds(row)]

    def seeds(self, row: str) -> list[int]:
        """The seeds whose training is finished and did not diverge."""
        return [s for s in self.plan.seeds_of(row) if (row, s) in self.facts and "failure" not in self.facts[row, s]]

    def lost(self, row: str) -> str:
        """How many of the row's seeds have no scores, and why; empty if all have."""
        seeds = self.plan.seeds_of(row)
        missing = sum((row, seed) not in self.facts for seed in seeds)
        diverged = len(seeds) - missing - len(self.seeds(row))
        counts = {"diverged": diverged, "missing": missing}
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)

    def own(self, row: str, split: str, metric: str = "mIoU") -> list[float]:
        """The score of each seed with the trained number of steps."""
        return [f[metric][split][f["depths"].index(f["trained_depth"])] for f in self.finished(row)]

    def at(self, row: str, split: str, depth: int, metric: str = "mIoU") -> list[float]:
        """The score of each seed with `depth` steps, where it exists."""
        return [f[metric][split][f["depths"].index(depth)] for f in self.finished(row) if depth in f["depths"]]

    @property
    def depths(self) -> list[int]:
        """All numbers of steps that any model was scored with."""
        return sorted({depth for facts in self.facts.values() for depth in facts.get("depths", ())})

    def multiply_adds(self, row: str) -> int | None:
        """Multiply-adds at the image size of the row's models; None for ensembles."""
        for facts in self.finished(row):
            if "multiply_adds" in facts:
                stated: int | None = facts["multiply_adds"]
                return stated
        for seed in self.seeds(row):  # scored by a version that did not state them
            folder = Path(str(self.cells[row, seed].config.out)) / "checkpoints" / "last"
            if (folder / "config.json").is_file():
                return size_of_folder(folder).multiply_adds
        return None

    def boundary(self, row: str, split: str, name: str) -> float | None:
        """mIoU near boundaries with the trained number of steps, averaged over seeds."""
        found = [facts["boundary"][split][name] for facts in self.finished(row) if "boundary" in facts]
        return fmean(found) if found else None

    def difference(self, row: str, split: str, base: str | None = None) -> tuple[Interval, Interval] | None:
        """The row minus `base` (None: the baseline): over seeds, and over images; None without common seeds."""
        base = self.plan.base if base is None else base
        seeds = [seed for seed in self.seeds(row) if seed in self.seeds(base)]
        if row == base or not seeds:
            return None
        scores = {name: dict(zip(self.seeds(name), self.own(name, split), strict=True)) for name in (row, base)}
        paired = over_seeds([scores[row][seed] - scores[base][seed] for seed in seeds])
        ours, theirs = ([self._bootstrap_scores(name, seed, split) for seed in seeds] for name in (row, base))
        return paired, over_images(ours, theirs)

    def _bootstrap_scores(self, row: str, seed: int, split: str) -> npt.NDArray[np.float64]:
        """`bootstrap_scores` of one training, cached since several rows are compared with it."""
        key = (row, seed, split)
        if key not in self._bootstrapped:
            path = self.cells[row, seed].folder / COUNTS
            counts = load_counts(path, split, self.facts[row, seed]["trained_depth"])
            self._bootstrapped[key] = bootstrap_scores(counts.by_class())
        return self._bootstrapped[key]

    def diagnostics(self, row: str) -> list[dict[str, float]]:
        """The diagnostics after each step, averaged over seeds."""
        several = [facts["diagnostics"] for facts in self.finished(row)]
        return [
            {name: fmean(steps[n][name] for steps in several) for name in several[0][n]}
            for n in range(min(map(len, several), default=0))
        ]

    def _model(self, row: str) -> ModelRecipe:
        return next(cell.config.model for key, cell in self.cells.items() if key[0] == row)

    def published(self, row: str) -> Published | None:
        """The published scores of the row's model on ADE20K; None if it was not published."""
        model = self._model(row)
        preset = parse_preset(model.preset)
        family, finer = preset.family, model.patch_size not in (None, 16) or model.token_merging is not None
        if model.init_from is not None or model.pixel_shift is not None or finer:
            return None
        if preset.decoder == "mask" or preset.size != "ti" or preset.patch_size != 16:
            return None
        if family not in ("segmenter", "meanshifter") or not (model.encoder or "vit_tiny").startswith("vit_tiny"):
            return None
        shift = MeanShiftConfig() if family == "meanshifter" and model.mean_shift is None else model.mean_shift
        layers, channels = None, None
        if shift is not None:
            layers, channels = shift.layers, 192 if shift.channels is None else shift.channels
            if shift != MeanShiftConfig(shift.layers, shift.channels):
                return None
        return next((entry for entry in TABLE_1 if (entry.layers, entry.channels) == (layers, channels)), None)

    def published_depth(self, row: str, depth: int) -> PublishedDepth | None:
        """The published scores of the row's model with `depth` steps at inference; None if there are none."""
        entry = self.published(row)
        key = None if entry is None else (entry.layers, entry.channels, depth)
        return next((found for found in TABLE_2 if found[:3] == key), None)

    def block(self, row: str) -> tuple[int | None, int | None]:
        """L_ms and d_ms of the row's mean_shift block; None where it has no such block, or d_ms is the default."""
        model = self._model(row)
        shift = model.mean_shift or (MeanShiftConfig() if parse_preset(model.preset).family == "meanshifter" else None)
        return (None, None) if shift is None else (shift.layers, shift.channels)

    @property
    def data_name(self) -> str | None:
        """The dataset of all trainings; None before the first one is finished."""
        return next((cell.config.data.name for cell in self.cells.values()), None)

    def is_comparable(self, split: str) -> bool:
        """Whether the split is that of the published scores: all images of ADE20K validation."""
        return split == "val" and all(
            cell.config.data.name == "ade20k" and cell.config.evaluation.limit is None for cell in self.cells.values()
        )

    def as_published(self, row: str) -> tuple[str, str, str]:
        """The published mIoU and millions of parameters, and ours with the same setup: 150 classes at 512 × 512."""
        entry = self.published(row)
        if entry is None:
            return "–", "–", "–"
        shift = None if entry.layers is None else {"layers": entry.layers, "channels": entry.channels}
        preset = "segmenter-ti16" if shift is None else "meanshifter-ti16"
        size = size_of(preset, num_classes=150, image_size=512, mean_shift=shift)
        return f"{entry.mIoU:.2f}", f"{entry.millions:.2f}", f"{size.parameters / 1e6:.2f}"


BOOTSTRAP_COUNTS = 4_000_000
"""Maximum number of image counts in one product of the bootstrap, at 8 bytes each."""


class Interval(NamedTuple):
    """A mean with its 95 % interval, which is NaN if it is undefined."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def over_seeds(differences: Sequence[float]) -> Interval:
    """Mean of paired differences with Student's t interval over seeds."""
    from scipy.stats import t  # here, as it takes half a second

    values = np.asarray(differences, dtype=float)
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return Interval(mean, math.nan, math.nan)
    half = float(t.ppf(0.975, n - 1)) * float(values.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def bootstrap_scores(counts: npt.NDArray[np.float64], *, draws: int = 1000, seed: int = 0) -> npt.NDArray[np.float64]:
    """mIoU in percent of all images, then of each of `draws` bootstrap samples of the images.

    Args:
        counts: (3, I, K) pixels of each image, from `ImageCounts.by_class`.
        draws: number of samples.
        seed: seed of the samples, which are the same for all counts with the same number of images.

    Returns:
        (1 + draws,)
    """
    images, K = counts.shape[1:]
    flat = counts.transpose(1, 0, 2).reshape(images, 3 * K)
    samples, batch = _samples(images, draws, seed), max(1, BOOTSTRAP_COUNTS // images)
    parts = (samples[first : first + batch].astype(float) for first in range(0, draws, batch))
    return np.concatenate([_miou(part, flat) for part in (np.ones((1, images)), *parts)])


@lru_cache(maxsize=4)
def _samples(images: int, draws: int, seed: int) -> npt.NDArray[np.int32]:
    """(draws, I) how often each image is in each sample."""
    rng, batch, shares = np.random.default_rng(seed), max(1, BOOTSTRAP_COUNTS // images), np.full(images, 1 / images)
    sizes = [min(batch, draws - first) for first in range(0, draws, batch)]
    return np.concatenate([rng.multinomial(images, shares, size=size).astype(np.int32) for size in sizes])


def over_images(ours: Sequence[npt.NDArray[np.float64]], theirs: Sequence[npt.NDArray[np.float64]]) -> Interval:
    """Difference in mIoU averaged over seeds, with the bootstrap interval over images.

    Args:
        ours, theirs: `bootstrap_scores` of each seed, with the same seeds, images and samples in both.
    """
    differences = np.stack(ours, axis=1) - np.stack(theirs, axis=1)
    low, high = np.nanpercentile(differences[1:].mean(1), (2.5, 97.5))
    return Interval(float(differences[0].mean()), float(low), float(high))


def _miou(times: npt.NDArray[Any], flat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(draws,) mIoU in percent with images repeated `times` (draws, I); `flat` is (I, 3 K)."""
    truth, predicted, right = np.split(times @ flat, 3, axis=1)
    return mean_iou_by_class(truth, predicted, right)


class Published(NamedTuple):
    """A row of Table 1; `layers` and `channels` are None for Segmenter-Ti/16. If `runs` is 5, scores are medians."""

    layers: int | None
    channels: int | None
    runs: int
    aAcc: float  # noqa: N815
    mAcc: float  # noqa: N815
    mIoU: float  # noqa: N815
    millions: float


class PublishedDepth(NamedTuple):
    """A row of Table 2: a model trained with `layers` steps and evaluated with `depth`."""

    layers: int
    channels: int
    depth: int
    aAcc: float  # noqa: N815
    mAcc: float  # noqa: N815
    mIoU: float  # noqa: N815


def _lines(name: str) -> list[list[str]]:
    """The lines of a CSV file in the package, without comments and header."""
    text = (resources.files("meanshifter") / "studies" / name).read_text("utf-8")
    return list(csv.reader(line for line in text.splitlines() if not line.startswith("#")))[1:]


TABLE_1 = tuple(
    Published(int(layers) if layers else None, int(channels) if channels else None, int(runs), *map(float, scores))
    for _, layers, channels, runs, *scores in _lines("published_layers.csv")
)
TABLE_2 = tuple(PublishedDepth(*map(int, line[:3]), *map(float, line[3:])) for line in _lines("published_depth.csv"))
