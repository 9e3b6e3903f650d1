"""Temperature scaling: fit the one number by which logits are divided before the softmax of every probability.

Source: Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks" (ICML 2017, section 4.2): T minimizes
the negative log-likelihood (NLL) of held-out labels. Here it is that of every labeled pixel under the probabilities of
a `Predictor`: the logits of overlapping windows are averaged and divided by T, those of scales and flips are
divided by T before the mean of their softmax. Glossary: T temperature, H W pixels of an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from meanshifter.data.labels import Labels
from meanshifter.errors import InputError, RunError, counted
from meanshifter.evaluation.calibration import BINS, Reliability, check_bins, reliability_counts
from meanshifter.evaluation.evaluate import check_classes, checked_samples, protocol_of, require_dataset
from meanshifter.inference.ensemble import Ensemble
from meanshifter.inference.predictor import Predictor
from meanshifter.ops import PixelConfidence, View, pixel_confidence

if TYPE_CHECKING:
    from meanshifter.data.datasets import Dataset
    from meanshifter.evaluation.result import Protocol
    from meanshifter.inference.protocol import PatchModel

LOWEST, HIGHEST = 0.05, 20.0
"""Temperatures that are tried."""
TOLERANCE: Final = 1e-3
"""Of the natural logarithm of T."""
KEPT: Final = 2**30
"""Bytes of patch logits that are kept in memory; if there are more, every temperature encodes the images again."""
SMALLEST: Final = float(np.finfo(np.float32).tiny)
"""Probabilities below it, which float32 cannot hold, count as this much."""
Band = tuple[list[View], Labels]
"""The views of a band of rows of an image, and its labels."""


@dataclass(frozen=True, eq=False)
class CalibrationScores:
    """How well probabilities match the labels of all labeled pixels."""

    NLL: float
    """Mean negative log-likelihood of the labels in nats; proper, so calibration alone does not make it small."""
    reliability: Reliability
    """Confidence and accuracy by bins, with the expected calibration error `ECE`."""


@dataclass(frozen=True, eq=False)
class TemperatureFit:
    """A fitted temperature, and the calibration before and after."""

    temperature: float
    """The fitted T, now that of the model."""
    previous: float
    """The model's T before."""
    fitted_on: Protocol
    """Where T was fitted."""
    measured_on: Protocol
    """Where `before` and `after` were measured."""
    before: CalibrationScores
    """With the previous temperature."""
    after: CalibrationScores
    """With the fitted temperature."""
    changed: int
    """Pixels whose label the new temperature changes: 0 unless probabilities of scales or flips are averaged."""

    @property
    def is_held_out(self) -> bool:
        """Whether other images than those of the fit were measured."""
        return self.fitted_on is not self.measured_on

    def table(self) -> str:
        """The temperature and a Markdown table of both calibrations, with what they were measured on."""
        lines = [
            f"temperature {self.previous:.4g} → {self.temperature:.4g}, fitted on {_images(self.fitted_on)}",
            "",
            "|        |    ECE |    NLL | confidence | accuracy |",
            "| ------ | -----: | -----: | ---------: | -------: |",
        ]
        for name, scores in (("before", self.before), ("after", self.after)):
            found = scores.reliability
            lines.append(
                f"| {name:<6} | {found.ECE:6.2f} | {scores.NLL:6.4f} | {found.mean_confidence:10.2f} | "
                f"{found.mean_accuracy:8.2f} |"
            )
        where = f"measured on {_images(self.measured_on)}, not used by the fit"
        if not self.is_held_out:
            where = "measured on the images of the fit, which favors it; measure on others with a test split"
        return "\n".join([*lines, "", where, self._labels(), str(self.measured_on)])

    def _labels(self) -> str:
        protocol = self.measured_on
        if not protocol.flip and len(protocol.scales) == 1:
            return "label maps do not change, unless probabilities of scales, flips or models are averaged"
        total = int(self.after.reliability.pixels.sum())
        return (
            f"probabilities of scales and flips are averaged, so label maps change: {self.changed:,} of {total:,} "
            "labeled pixels"
        )


def _images(protocol: Protocol) -> str:
    return f"{protocol.dataset} {protocol.split}, {counted(protocol.images, 'image')}"


def calibrate(
    predictor: Predictor | PatchModel,
    dataset: Dataset,
    *,
    test: Dataset | None = None,
    limit: int | None = None,
    calibration_bins: int = BINS,
    progress: bool = False,
) -> TemperatureFit:
    """Fit the temperature of a model on a dataset, set it in `model.config`, and measure the calibration.

    The labels of a model at a single scale without flip do not change; where probabilities of scales, flips or models
    are averaged, they may. `model.save` stores the temperature.

    Args:
        predictor: a `Predictor`, whose preprocessing, scales and flip are used, or a model.
        dataset: the images of the fit, which the model was not trained on, such as the validation set.
        test: other images, on which the calibration before and after is measured; None: those of the fit, which favors
            the fitted temperature.
        limit: use only the first `limit` images of each.
        calibration_bins: bins of confidence of the calibration error.
        progress: show progress bars on standard error, if it is a terminal.

    Raises:
        InputError: an ensemble, whose members have a temperature each; a dataset that `evaluate` refuses, or that
            has no labeled pixels.
        RunError: no temperature from 0.05 to 20 minimizes the NLL, which is left as it was.
    """
    if not isinstance(predictor, Predictor):
        predictor = Predictor(predictor)
    model = predictor.model
    if isinstance(model, Ensemble):
        raise InputError("model: an ensemble, whose members have a temperature each; calibrate the members")
    check_bins(calibration_bins)
    for each in (dataset, *([] if test is None else [test])):
        require_dataset(each)
        check_classes(model.label_space, each.label_space, f"{each.name} {each.split}")
    fitted_on = protocol_of(predictor, dataset, limit=limit)
    measured_on = fitted_on if test is None else protocol_of(predictor, test, limit=limit)
    previous, bands = model.config.temperature, _Bands(predictor, dataset, limit, progress=progress)
    temperature = fit_temperature(bands)
    shown = bands if test is None else _read_bands(predictor, test, limit, progress=progress)
    before, after, changed = _measure(shown, (previous, temperature), calibration_bins)
    model.config = replace(model.config, temperature=temperature)
    return TemperatureFit(temperature, previous, fitted_on, measured_on, before, after, changed)


def fit_temperature(bands: Iterable[Band]) -> float:
    """The temperature that minimizes the NLL of the labels of all bands, which are iterated over several times.

    Raises:
        InputError: no labeled pixels.
        RunError: the minimum is not between `LOWEST` and `HIGHEST`.
    """
    from scipy.optimize import minimize_scalar  # here, as it takes long to import

    ends = math.log(LOWEST), math.log(HIGHEST)
    found = minimize_scalar(
        lambda t: mean_nll(bands, math.exp(t)), bounds=ends, method="bounded", options={"xatol": TOLERANCE}
    )
    temperature = math.exp(found.x)
    if min(found.x - ends[0], ends[1] - found.x) < 10 * TOLERANCE:
        raise RunError(
            f"temperature: the likelihood of the labels still grows at {temperature:.3g}; expected a maximum between "
            f"{LOWEST:g} and {HIGHEST:g}: calibrate a trained model, on images that it was not trained on"
        )
    return temperature


def mean_nll(bands: Iterable[Band], temperature: float) -> float:
    """Mean negative log-likelihood of the labels in nats.

    Raises:
        InputError: no labeled pixels.
    """
    total, pixels = 0.0, 0
    for views, labels in bands:
        nll, count = _nll(_probabilities(views, labels, temperature))
        total, pixels = total + nll, pixels + count
    if pixels == 0:
        raise InputError("labels: all pixels are ignored; calibration needs labeled ones")
    return total / pixels


def _probabilities(views: list[View], labels: Labels, temperature: float) -> PixelConfidence:
    scaled = [view._replace(temperature=temperature) for view in views]
    return pixel_confidence(scaled, confidence=("probability",), labels=labels)


def _nll(found: PixelConfidence) -> tuple[float, int]:
    """The sum of the NLL, and the number of labeled pixels."""
    assert found.label_probability is not None
    p = found.label_probability
    known = p[~p.isnan()].clamp(min=SMALLEST).cpu().double()  # not every device has float64
    return -float(known.log().sum()), known.numel()


def _measure(
    bands: Iterable[Band], temperatures: tuple[float, float], bins: int
) -> tuple[CalibrationScores, CalibrationScores, int]:
    """Calibration with each temperature, and the number of labeled pixels whose label differs between the two."""
    counts, sums, pixels, changed = np.zeros((2, 3, bins), np.int64), [0.0, 0.0], 0, 0
    for views, labels in bands:
        maps = []
        for place, temperature in enumerate(temperatures):
            found = _probabilities(views, labels, temperature)
            nll, count = _nll(found)
            sums[place] += nll
            maps.append(found.labels.cpu().numpy())
            probability = found.confidence["probability"].cpu().numpy()
            ignored = labels >= len(views[0].z)
            truth = np.where(ignored, -1, labels.astype(np.int64))
            counts[place] += reliability_counts(probability, maps[-1], truth, -1, bins)
        pixels += count
        changed += int(np.count_nonzero((maps[0] != maps[1]) & ~ignored))
    before, after = (
        CalibrationScores(total / pixels if pixels else math.nan, Reliability(each))
        for total, each in zip(sums, counts, strict=True)
    )
    return before, after, changed


@torch.inference_mode()
def _read_bands(predictor: Predictor, dataset: Dataset, limit: int | None, *, progress: bool) -> Iterator[Band]:
    """Encode every image, and yield its bands."""
    for sample in checked_samples(dataset, limit=limit, progress=progress):
        for rows, (views,) in predictor.bands(sample.image, [predictor.mean_shift_layers]):
            yield views, sample.labels[rows]


class _Bands:
    """The bands of all images, kept in memory after the first pass if their logits fit into `KEPT` bytes."""

    def __init__(self, predictor: Predictor, dataset: Dataset, limit: int | None, *, progress: bool) -> None:
        self._source, self._limit, self._progress = (predictor, dataset), limit, progress
        self._kept: list[Band] | None = None
        self._fits = True

    def __iter__(self) -> Iterator[Band]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Band] = []
        size = 0
        for views, labels in _read_bands(*self._source, self._limit, progress=self._progress):
            size += sum(view.z.numel() * view.z.element_size() for view in views) + labels.nbytes
            self._fits = self._fits and size <= KEPT
            if self._fits:
                kept.append((views, labels))
            else:
                kept.clear()
            yield views, labels
        if self._fits:
            self._kept = kept
