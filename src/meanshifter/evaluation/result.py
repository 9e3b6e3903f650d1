"""Scores from a confusion matrix, as the tables of MMSegmentation define them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from meanshifter.documents import dump_json
from meanshifter.evaluation.confusion import Confusion
from meanshifter.evaluation.protocol import Protocol
from meanshifter.files import write_text


@dataclass(frozen=True)
class ClassScore:
    """One row of the table."""

    IoU: float
    """TP / (TP + FP + FN) in percent; NaN where the class is neither in the truth nor predicted."""
    Acc: float
    """TP / truth in percent (recall); NaN where the class is not in the truth."""
    pixels: int
    """Pixels of the class in the truth."""


@dataclass(frozen=True, eq=False)
class Result:
    """The scores of one model on one data set, all from one confusion matrix over the whole set.

    aAcc is the share of counted pixels that are right; mIoU the mean IoU over classes in the truth or the
    prediction (`absent` names the others); mAcc the mean accuracy over classes in the truth. A class that is
    predicted but not in the truth has IoU 0 and no accuracy. This is the `IoUMetric` of MMSegmentation, whose
    means leave out NaN.
    """

    confusion: Confusion
    """(K, K) pixels: row truth, column prediction; ignored pixels are in neither."""
    names: tuple[str, ...]
    """The K class names."""
    protocol: Protocol
    """What the scores were measured under."""
    missed: Confusion = field(default_factory=lambda: np.zeros(1, np.int64))
    """(K,) counted pixels by true class for which label maps say no class: wrong, and of no prediction; or one 0."""

    ignored: int | None = None
    """Pixels whose truth is ignored, in neither truth nor scores; None: not counted."""

    @property
    def ignored_share(self) -> float:
        """Share of all pixels that are ignored; NaN where they were not counted."""
        total = int(self.truth.sum()) + (self.ignored or 0)
        return math.nan if self.ignored is None or not total else self.ignored / total

    @property
    def aAcc(self) -> float:  # noqa: N802
        """Percent of counted pixels that are right; NaN without any."""
        total = int(self.truth.sum())
        return 100 * int(self.confusion.trace()) / total if total else math.nan

    @property
    def mAcc(self) -> float:  # noqa: N802
        """Mean class accuracy in percent."""
        return _mean([score.Acc for score in self.per_class.values()])

    @property
    def mIoU(self) -> float:  # noqa: N802
        """Mean class IoU in percent."""
        return _mean([score.IoU for score in self.per_class.values()])

    @property
    def truth(self) -> Confusion:
        """(K,) counted pixels by true class."""
        pixels: Confusion = self.confusion.sum(1) + self.missed
        return pixels

    @cached_property
    def per_class(self) -> dict[str, ClassScore]:
        """Scores by class name, in the order of the train ids."""
        right = self.confusion.diagonal()
        truth, predicted = self.truth, self.confusion.sum(0)
        return {
            name: ClassScore(
                _percent(right[k], truth[k] + predicted[k] - right[k]),
                _percent(right[k], truth[k]),
                int(truth[k]),
            )
            for k, name in enumerate(self.names)
        }

    @property
    def absent(self) -> list[str]:
        """Classes neither in the truth nor predicted, left out of every mean."""
        return [name for name, score in self.per_class.items() if math.isnan(score.IoU)]

    def table(self) -> str:
        """A Markdown table of all classes, the means below it, and the protocol in one line."""
        width = max(len(name) for name in (*self.names, "class"))
        lines = [
            f"| {'class':<{width}} |    IoU |    Acc |       pixels |",
            f"| {'-' * width} | -----: | -----: | -----------: |",
        ]
        for name, score in self.per_class.items():
            lines.append(f"| {name:<{width}} | {_cell(score.IoU)} | {_cell(score.Acc)} | {score.pixels:>12,} |")
        lines += ["", f"aAcc {self.aAcc:.2f}   mAcc {self.mAcc:.2f}   mIoU {self.mIoU:.2f}"]
        if self.ignored is not None:
            lines.append(
                f"ignored in the truth, and not scored: {self.ignored:,} pixels, {self.ignored_share:.1%} of all"
            )
        if self.absent:
            lines.append(f"left out of the means, in neither truth nor prediction: {', '.join(self.absent)}")
        if missed := int(self.missed.sum()):
            lines.append(f"without a class, and so wrong: {missed:,} pixels, {100 * missed / self.truth.sum():.2f} %")
        return "\n".join([*lines, str(self.protocol)])

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON; NaN becomes None."""
        return {
            "protocol": self.protocol.to_dict(),
            "aAcc": null(self.aAcc),
            "mAcc": null(self.mAcc),
            "mIoU": null(self.mIoU),
            "absent": self.absent,
            "per_class": {
                name: {"IoU": null(score.IoU), "Acc": null(score.Acc), "pixels": score.pixels}
                for name, score in self.per_class.items()
            },
            "ignored_pixels": self.ignored,
            "ignored_share": null(self.ignored_share),
            "confusion": self.confusion.tolist(),
            **({"missed": self.missed.tolist()} if self.missed.any() else {}),
        }

    def save(self, path: str | Path) -> None:
        """Write the scores as JSON, beside and renamed into place; the format is that of `save_results`."""
        save_results(path, [self])


def save_results(path: str | Path, results: Sequence[Result]) -> None:
    """Write one or several results as JSON: ``{"format_version": 1, "results": [...]}``.

    Raises:
        InputError: a place that cannot be written.
    """
    document = {"format_version": 1, "results": [result.to_dict() for result in results]}
    text = dump_json(document, indent=1, ensure_ascii=False)
    write_text(path, text)


def _percent(part: np.int64, whole: np.int64) -> float:
    return 100 * int(part) / int(whole) if whole else math.nan


def _mean(values: list[float]) -> float:
    """The mean without NaN; NaN if nothing is left."""
    counted = [value for value in values if not math.isnan(value)]
    return math.fsum(counted) / len(counted) if counted else math.nan


def null(value: float) -> float | None:
    """`value` for JSON, which has no NaN."""
    return None if math.isnan(value) else value


def _cell(value: float) -> str:
    return f"{'-':>6}" if math.isnan(value) else f"{value:6.2f}"
