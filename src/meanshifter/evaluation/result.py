"""The result of an evaluation: scores from a confusion matrix, with the conditions they were measured under."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from meanshifter.errors import counted
from meanshifter.evaluation.details import Details
from meanshifter.evaluation.metrics import Confusion, mean_known, null
from meanshifter.utils.files import dump_json, write_text


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class."""

    IoU: float
    """TP / (TP + FP + FN) in percent; NaN if the class is neither in the labels nor predicted."""
    Acc: float
    """TP / labels in percent (recall); NaN if the class is not in the labels."""
    pixels: int
    """Pixels of the class in the labels."""
    Precision: float = math.nan
    """TP / predicted in percent; NaN if the class is not predicted."""
    Dice: float = math.nan
    """2 TP / (labels + predicted) in percent (F1); NaN if the class is neither in the labels nor predicted."""
    boundary_IoU: float = math.nan  # noqa: N815
    """Boundary IoU in percent (`metrics.boundary_counts`); NaN without `Result.details`, or if the class is absent."""

    @property
    def Recall(self) -> float:  # noqa: N802
        """`Acc`."""
        return self.Acc


@dataclass(frozen=True, eq=False)
class Result:
    """Scores of a model on a dataset, from a single confusion matrix over all images.

    aAcc is the share of correct pixels; mIoU the mean IoU over classes in labels or predictions (`absent` lists the
    others); mAcc the mean accuracy over classes in the labels. A class that is predicted but not in the labels has IoU
    0 and no accuracy. This is the `IoUMetric` of MMSegmentation, whose means skip NaN.
    """

    confusion: Confusion
    """(K, K) pixels, rows: labels, columns: predictions; without ignored pixels."""
    names: tuple[str, ...]
    """The K class names."""
    protocol: Protocol
    """The evaluation conditions."""
    missed: Confusion = field(default_factory=lambda: np.zeros(1, np.int64))
    """(K,) pixels by labeled class that were predicted as no class, which is wrong; or a single 0."""
    ignored: int | None = None
    """Pixels whose label is the ignored value, which are not evaluated; None if not counted."""
    details: Details | None = None
    """Scores at boundaries, by size and thickness of regions, and of calibration; None unless asked for."""

    def __repr__(self) -> str:
        return f"Result(mIoU {self.mIoU:.2f}, mAcc {self.mAcc:.2f}, aAcc {self.aAcc:.2f}; {self.protocol})"

    @property
    def ignored_share(self) -> float:
        """Share of all pixels that are ignored; NaN if not counted."""
        total = int(self.truth.sum()) + (self.ignored or 0)
        return math.nan if self.ignored is None or not total else self.ignored / total

    @property
    def aAcc(self) -> float:  # noqa: N802
        """Percent of correct pixels; NaN if there are no pixels."""
        total = int(self.truth.sum())
        return 100 * int(self.confusion.trace()) / total if total else math.nan

    @property
    def mAcc(self) -> float:  # noqa: N802
        """Mean class accuracy in percent."""
        return mean_known([score.Acc for score in self.per_class.values()])

    @property
    def mIoU(self) -> float:  # noqa: N802
        """Mean class IoU in percent."""
        return mean_known([score.IoU for score in self.per_class.values()])

    @property
    def mPrecision(self) -> float:  # noqa: N802
        """Mean class precision in percent."""
        return mean_known([score.Precision for score in self.per_class.values()])

    @property
    def mDice(self) -> float:  # noqa: N802
        """Mean class Dice score (F1) in percent."""
        return mean_known([score.Dice for score in self.per_class.values()])

    @property
    def boundary_IoU(self) -> float:  # noqa: N802
        """Mean boundary IoU in percent; NaN without `details`."""
        return math.nan if self.details is None else mean_known(self.details.boundary_IoU)

    @property
    def ECE(self) -> float:  # noqa: N802
        """Expected calibration error in percent; NaN if the probabilities are unknown."""
        known = None if self.details is None else self.details.reliability
        return math.nan if known is None else known.ECE

    @property
    def truth(self) -> Confusion:
        """(K,) pixels by labeled class, without ignored pixels."""
        pixels: Confusion = self.confusion.sum(1) + self.missed
        return pixels

    @cached_property
    def per_class(self) -> dict[str, ClassScore]:
        """Scores by class name, in the order of the train ids."""
        right, truth, predicted = self.confusion.diagonal(), self.truth, self.confusion.sum(0)
        bounds = [math.nan] * len(self.names) if self.details is None else self.details.boundary_IoU.tolist()
        return {
            name: ClassScore(
                IoU=_percent(hit, label + guess - hit),
                Acc=_percent(hit, label),
                pixels=int(label),
                Precision=_percent(hit, guess),
                Dice=_percent(2 * hit, label + guess),
                boundary_IoU=bound,
            )
            for name, hit, label, guess, bound in zip(self.names, right, truth, predicted, bounds, strict=True)
        }

    @property
    def _columns(self) -> list[str]:
        """The fields of `ClassScore` that are known, without the pixels."""
        return ["IoU", "Acc", "Precision", "Dice", *([] if self.details is None else ["boundary_IoU"])]

    @property
    def absent(self) -> list[str]:
        """Classes neither in the labels nor predicted, which the means exclude."""
        return [name for name, score in self.per_class.items() if math.isnan(score.IoU)]

    def table(self) -> str:
        """A Markdown table of all classes, followed by the means and the protocol."""
        width = max(len(name) for name in (*self.names, "class"))
        columns = [(name, max(len(name), 6)) for name in self._columns]
        lines = [
            f"| {'class':<{width}} | {' | '.join(f'{name:>{wide}}' for name, wide in columns)} |       pixels |",
            f"| {'-' * width} | {' | '.join('-' * (wide - 1) + ':' for _, wide in columns)} | -----------: |",
        ]
        for name, score in self.per_class.items():
            cells = " | ".join(_cell(getattr(score, column), wide) for column, wide in columns)
            lines.append(f"| {name:<{width}} | {cells} | {score.pixels:>12,} |")
        lines += ["", f"aAcc {self.aAcc:.2f}   mAcc {self.mAcc:.2f}   mIoU {self.mIoU:.2f}   mDice {self.mDice:.2f}"]
        lines += [] if self.details is None else self.details.lines()
        if self.ignored is not None:
            share = f"{self.ignored_share:.1%} of all"
            lines.append(f"ignored in the labels, not evaluated: {self.ignored:,} pixels, {share}")
        if self.absent:
            lines.append(f"absent from labels and predictions, excluded from means: {', '.join(self.absent)}")
        if missed := int(self.missed.sum()):
            share = f"{100 * missed / self.truth.sum():.2f} %"
            lines.append(f"predicted as no class, counted as wrong: {missed:,} pixels, {share}")
        return "\n".join([*lines, str(self.protocol)])

    def __str__(self) -> str:
        """`table`."""
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON; NaN becomes None."""
        return {
            "protocol": self.protocol.to_dict(),
            **{name: null(getattr(self, name)) for name in ("aAcc", "mAcc", "mIoU", "mPrecision", "mDice")},
            "absent": self.absent,
            "per_class": {
                name: {column: null(getattr(score, column)) for column in self._columns} | {"pixels": score.pixels}
                for name, score in self.per_class.items()
            },
            "ignored_pixels": self.ignored,
            "ignored_share": null(self.ignored_share),
            "confusion": self.confusion.tolist(),
            **({"missed": self.missed.tolist()} if self.missed.any() else {}),
            **({} if self.details is None else {"details": self.details.to_dict()}),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Result:
        """The inverse of `to_dict`; raises KeyError, TypeError or ValueError if it is not one."""
        conditions = {"temperature": [1.0], **stored["protocol"]}
        protocol = Protocol(**conditions | {name: tuple(conditions[name]) for name in ("scales", "temperature")})
        confusion, names = np.array(stored["confusion"], np.int64), tuple(stored["per_class"])
        if confusion.shape != (len(names), len(names)):
            raise ValueError(f"confusion of shape {confusion.shape} for {len(names)} classes")
        missed = np.array(stored.get("missed", [0]), np.int64)
        details = None if stored.get("details") is None else Details.from_dict(stored["details"])
        return cls(confusion, names, protocol, missed, stored["ignored_pixels"], details)

    def save(self, path: str | Path) -> None:
        """Write the scores as JSON, in the format of `save_results`."""
        save_results(path, [self])


def save_results(path: str | Path, results: Sequence[Result]) -> None:
    """Write results as JSON: ``{"format_version": 1, "results": [...]}``.

    Raises:
        InputError: the file cannot be written.
    """
    document = {"format_version": 1, "results": [result.to_dict() for result in results]}
    write_text(path, dump_json(document, indent=1, ensure_ascii=False))


def _percent(part: np.int64, whole: np.int64) -> float:
    return 100 * int(part) / int(whole) if whole else math.nan


def _cell(value: float, width: int) -> str:
    return f"{'-':>{width}}" if math.isnan(value) else f"{value:{width}.2f}"


@dataclass(frozen=True)
class Protocol:
    """The conditions of an evaluation: everything but the method that influences the scores. `str` is a single line."""

    dataset: str
    """Name of the dataset, such as camvid."""
    split: str
    """Name of the split, such as val."""
    images: int
    """Number of evaluated images."""
    images_in_split: int
    """Number of images in the split; greater than `images` if only the first ones were evaluated."""
    short_side: int | None
    """Maximum shorter side of resized images, which keep their aspect ratio; None: not resized."""
    long_side: int | None
    """Maximum longer side of resized images; None: not resized."""
    window: int | None
    """Side of the sliding window in pixels; None: whole images."""
    window_stride: int | None
    """Stride of the sliding window in pixels; None: whole images."""
    flip: bool
    """Whether probabilities were averaged with those of the mirrored image."""
    scales: tuple[float, ...]
    """Image scales over which probabilities were averaged."""
    mean_shift_layers: int
    """Mean shift steps at inference."""
    precision: str
    """Precision of the model: fp32, bf16 or fp16."""
    weights: str
    """`weights_hash` of the model; those of an ensemble's members are joined by "+"."""
    version: str
    """meanshifter version."""
    compat: str | None = None
    """Tool whose preprocessing was reproduced; None: MeanShifter's own."""
    predictions: str | None = None
    """Folder of the evaluated label maps, made in an unknown way by any tool; None: a model was evaluated."""
    window_blend: str | None = None
    """Weights of overlapping windows, such as cosine; None: whole images, or a score of an earlier version, whose
    windows had equal weights."""
    merge_tokens: float | None = None
    """Share of uniform windows of tokens that the encoder merged; None: as trained."""
    engine: str | None = None
    """Runtime that computed the patch logits, those of an ensemble's members joined by "+"; None: torch, or that of an
    export."""
    temperature: tuple[float, ...] = (1.0,)
    """Temperature of each model, which determines probabilities, and labels only where probabilities are averaged."""

    def __str__(self) -> str:
        all_of_them = self.images == self.images_in_split
        split = counted(self.images_in_split, "image")
        images = split if all_of_them else f"first {self.images} of {split}"
        if self.predictions is not None:
            images = images.removeprefix("first ")
            made = f"label maps in {self.predictions}, made by any means"
            return f"{self.dataset} {self.split}, {images}; {made}; meanshifter {self.version}"
        temperature = ", ".join(f"{value:g}" for value in self.temperature)
        parts = [
            f"{self.dataset} {self.split}, {images}",
            "not resized" if self.short_side is None else f"resized to fit {self.long_side}×{self.short_side}",
            "whole image" if self.window is None else f"window {self.window}, stride {self.window_stride}",
            "with flip" if self.flip else "no flip",
            f"scales {', '.join(f'{scale:g}' for scale in self.scales)}",
            f"{self.mean_shift_layers} mean-shift layer{'' if self.mean_shift_layers == 1 else 's'}",
            self.precision,
            f"weights {self.weights}",
            f"meanshifter {self.version}",
            *([] if self.window_blend in (None, "constant") else [f"{self.window_blend} blending of windows"]),
            *([] if self.merge_tokens is None else [f"{self.merge_tokens:.0%} of windows of tokens merged"]),
            *([] if self.engine is None else [f"computed by {self.engine}"]),
            *([] if self.compat is None else [f"preprocessed like {self.compat}"]),
            *([] if set(self.temperature) <= {1.0} else [f"temperature {temperature}"]),
        ]
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        return {**asdict(self), "scales": list(self.scales), "temperature": list(self.temperature)}
