"""Scores from a confusion matrix, defined as in MMSegmentation.

Boundary regions follow Kohli, Ladický & Torr (IJCV 2009, section 7), with square neighborhoods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meanshifter.errors import InputError
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


@dataclass(frozen=True, eq=False)
class Result:
    """Scores of a model on a data set, from a single confusion matrix over all images.

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
        return _mean([score.Acc for score in self.per_class.values()])

    @property
    def mIoU(self) -> float:  # noqa: N802
        """Mean class IoU in percent."""
        return _mean([score.IoU for score in self.per_class.values()])

    @property
    def truth(self) -> Confusion:
        """(K,) pixels by labeled class, without ignored pixels."""
        pixels: Confusion = self.confusion.sum(1) + self.missed
        return pixels

    @cached_property
    def per_class(self) -> dict[str, ClassScore]:
        """Scores by class name, in the order of the train ids."""
        right = self.confusion.diagonal()
        truth, predicted = self.truth, self.confusion.sum(0)
        return {
            name: ClassScore(_percent(hit, label + guess - hit), _percent(hit, label), int(label))
            for name, hit, label, guess in zip(self.names, right, truth, predicted, strict=True)
        }

    @property
    def absent(self) -> list[str]:
        """Classes neither in the labels nor predicted, which the means exclude."""
        return [name for name, score in self.per_class.items() if math.isnan(score.IoU)]

    def table(self) -> str:
        """A Markdown table of all classes, followed by the means and the protocol."""
        width = max(len(name) for name in (*self.names, "class"))
        lines = [
            f"| {'class':<{width}} |    IoU |    Acc |       pixels |",
            f"| {'-' * width} | -----: | -----: | -----------: |",
        ]
        for name, score in self.per_class.items():
            lines.append(f"| {name:<{width}} | {_cell(score.IoU)} | {_cell(score.Acc)} | {score.pixels:>12,} |")
        lines += ["", f"aAcc {self.aAcc:.2f}   mAcc {self.mAcc:.2f}   mIoU {self.mIoU:.2f}"]
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
            **{name: null(getattr(self, name)) for name in ("aAcc", "mAcc", "mIoU")},
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

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Result:
        """The inverse of `to_dict`; raises KeyError, TypeError or ValueError if it is not one."""
        protocol = Protocol(**{**stored["protocol"], "scales": tuple(stored["protocol"]["scales"])})
        confusion, names = np.array(stored["confusion"], np.int64), tuple(stored["per_class"])
        if confusion.shape != (len(names), len(names)):
            raise ValueError(f"confusion of shape {confusion.shape} for {len(names)} classes")
        missed = np.array(stored.get("missed", [0]), np.int64)
        return cls(confusion, names, protocol, missed, stored["ignored_pixels"])

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


def _mean(values: list[float]) -> float:
    """Mean without NaN; NaN if nothing is left."""
    counted = [value for value in values if not math.isnan(value)]
    return math.fsum(counted) / len(counted) if counted else math.nan


def null(value: float) -> float | None:
    """`value` for JSON; None for NaN."""
    return None if math.isnan(value) else value


def _cell(value: float) -> str:
    return f"{'-':>6}" if math.isnan(value) else f"{value:6.2f}"


@dataclass(frozen=True)
class Protocol:
    """The conditions of an evaluation: everything but the method that influences the scores. `str` is a single line."""

    dataset: str
    """Name of the data set, such as camvid."""
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

    def __str__(self) -> str:
        all_of_them = self.images == self.images_in_split
        images = f"{self.images}" if all_of_them else f"first {self.images} of {self.images_in_split}"
        if self.predictions is not None:
            images = images.removeprefix("first ")
            made = f"label maps in {self.predictions}, made by any means"
            return f"{self.dataset} {self.split}, {images} images; {made}; meanshifter {self.version}"
        parts = [
            f"{self.dataset} {self.split}, {images} images",
            "not resized" if self.short_side is None else f"resized to fit {self.long_side}×{self.short_side}",
            "whole image" if self.window is None else f"window {self.window}, stride {self.window_stride}",
            "with flip" if self.flip else "no flip",
            f"scales {', '.join(f'{scale:g}' for scale in self.scales)}",
            f"{self.mean_shift_layers} mean-shift layer{'' if self.mean_shift_layers == 1 else 's'}",
            self.precision,
            f"weights {self.weights}",
            f"meanshifter {self.version}",
            *([] if self.compat is None else [f"preprocessed like {self.compat}"]),
        ]
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        return {**asdict(self), "scales": list(self.scales)}


Confusion = npt.NDArray[np.int64]


def confusion_matrix(
    truth: npt.NDArray[Any], prediction: npt.NDArray[Any], num_classes: int, *, ignore: int
) -> Confusion:
    """Confusion matrix (K, K) int64: pixels by true class (row) and predicted class (column).

    Pixels whose truth is `ignore` are skipped, whatever was predicted. Matrices of several images can be added.

    Raises:
        InputError: the label maps differ in size, or a value that is not skipped is outside 0..K-1.
    """
    if truth.shape != prediction.shape:
        sizes = ("×".join(map(str, labels.shape)) for labels in (truth, prediction))
        raise InputError("labels: truth is {} and prediction {}; their sizes must be equal".format(*sizes))
    counted = truth != ignore
    true = truth[counted].astype(np.int64)
    predicted = prediction[counted].astype(np.int64)
    for name, values in (("truth", true), ("prediction", predicted)):
        if values.size and (values.min() < 0 or values.max() >= num_classes):
            wrong = values[(values < 0) | (values >= num_classes)]
            raise InputError(
                f"{name}: value {wrong[0]} in {np.count_nonzero(wrong == wrong[0])} pixels; classes are 0 to "
                f"{num_classes - 1}" + (f", the ignored value is {ignore}" if name == "truth" else "")
            )
    pairs = np.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes).astype(np.int64, copy=False)


def mean_iou(confusion: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """mIoU in percent of each matrix (…, K, K), over the classes in truth or prediction; NaN if there are none."""
    right = np.einsum("...kk->...k", confusion)
    return mean_iou_by_class(confusion.sum(-1), confusion.sum(-2), right)


def mean_iou_by_class(
    truth: npt.NDArray[Any], predicted: npt.NDArray[Any], right: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """`mean_iou` from the pixels (…, K) per true class, per predicted class, and correct per class."""
    return _mean_share(right, truth + predicted - right)


def mean_accuracy(confusion: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """mAcc in percent of each matrix (…, K, K), over the classes in the truth; NaN if there are none."""
    return _mean_share(np.einsum("...kk->...k", confusion), confusion.sum(-1))


def pixel_accuracy(confusion: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """aAcc in percent of each matrix (…, K, K), the share of correct pixels; NaN if there are no pixels."""
    return _mean_share(np.einsum("...kk->...", confusion)[..., None], confusion.sum((-2, -1))[..., None])


def _mean_share(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """100 × the mean of part / whole over the last axis, skipping zeros of `whole`; NaN if it is all zeros."""
    counted = whole > 0
    shares = np.divide(part, whole, out=np.zeros(part.shape), where=counted)
    count, total = counted.sum(-1), shares.sum(-1)
    return np.asarray(100 * np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))


def near_boundary(labels: npt.NDArray[Any], radius: int, ignore: int) -> npt.NDArray[np.bool_]:
    """(H, W) whether a pixel of another class lies within `radius` rows and columns.

    Ignored pixels belong to no class and cause no boundary.
    """
    counted = labels != ignore
    # an ignored pixel loses against the center's class, which lies within the neighborhood too
    high = _extreme(np.where(counted, labels, np.iinfo(labels.dtype).min), radius, np.maximum)
    low = _extreme(np.where(counted, labels, np.iinfo(labels.dtype).max), radius, np.minimum)
    near: npt.NDArray[np.bool_] = counted & (high != low)
    return near


def _extreme(values: npt.NDArray[Any], radius: int, choose: np.ufunc) -> npt.NDArray[Any]:
    """The maximum or minimum within `radius` rows and columns; `choose` is np.maximum or np.minimum."""
    side = 2 * radius + 1
    for _ in range(2):  # rows, then columns
        values, span = np.pad(values, ((radius, radius), (0, 0)), mode="edge"), 1
        while span < side:  # each pass doubles the window; the last two may overlap
            further = min(span, side - span)
            values, span = choose(values[:-further], values[further:]), span + further
        values = np.ascontiguousarray(values.T)
    return values


def only(labels: npt.NDArray[Any], where: npt.NDArray[np.bool_], ignore: int) -> npt.NDArray[Any]:
    """The labels where `where` is true, else `ignore`."""
    kept: npt.NDArray[Any] = np.where(where, labels, labels.dtype.type(ignore))
    return kept
