"""Temperature scaling: labels drawn from a model's own probabilities at a temperature give back that temperature."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import meanshifter as ms
from meanshifter.data.datasets import Dataset, Sample
from meanshifter.errors import InputError, RunError
from meanshifter.evaluation import temperature as fitting
from meanshifter.evaluation.calibration import Reliability
from meanshifter.inference.ensemble import Ensemble
from meanshifter.ops import View, pixel_confidence
from tests.conftest import Largest, ModelFactory

READING: dict[str, Any] = {"window": 32, "window_stride": 24, "short_side": None}
IGNORE = 255


class Drawn(Dataset):
    """Noise, with labels drawn from the probabilities of a predictor; a tenth of the pixels is ignored."""

    name = "drawn"

    def __init__(self, predictor: ms.Predictor, split: str = "val", length: int = 3) -> None:
        self.label_space, self.split, self.reads = predictor.model.label_space, split, 0
        rng = np.random.default_rng([len(split), length])
        self._samples = [self._draw(predictor, rng, f"{number}") for number in range(length)]

    def _draw(self, predictor: ms.Predictor, rng: np.random.Generator, name: str) -> Sample:
        image = rng.integers(0, 256, (62, 70, 3), dtype=np.uint8)
        p = np.stack(list(predictor(image).probabilities.values()))
        labels = (p.cumsum(0) < rng.random(p.shape[1:])).sum(0).clip(max=len(p) - 1).astype(np.uint8)
        labels[rng.random(labels.shape) < 0.1] = IGNORE
        return Sample(image, labels, name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sample.name for sample in self._samples)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        self.reads += 1
        return self._samples[index]


def drawn(model: ms.Segmenter, temperature: float, split: str = "val", **reading: Any) -> Drawn:
    """Labels on which `model` is calibrated with this temperature."""
    model.config = replace(model.config, temperature=temperature)
    every = model.label_space.names
    data = Drawn(ms.Predictor(model, probabilities=every, **READING, **reading), split)
    model.config = replace(model.config, temperature=1.0)
    return data


@pytest.mark.parametrize(("temperature", "reading"), [(2.0, {}), (0.5, {}), (2.0, {"flip": True, "scales": (0.5, 1)})])
def test_the_temperature_of_the_labels_is_found(
    tiny_model: ModelFactory, temperature: float, reading: dict[str, Any]
) -> None:
    model = tiny_model()
    data, test = (drawn(model, temperature, split, **reading) for split in ("val", "other"))
    predictor = ms.Predictor(model, **READING, **reading)
    maps = [predictor(sample.image).labels for sample in test]
    fit = ms.calibrate(predictor, data, test=test)
    assert fit.temperature == pytest.approx(temperature, rel=0.05)
    assert fit.previous == 1
    assert model.config.temperature == fit.temperature
    assert fit.after.NLL < fit.before.NLL
    assert fit.after.reliability.ECE < fit.before.reliability.ECE / 2
    assert fit.is_held_out
    assert "drawn other, 3 images, not used by the fit" in fit.table()
    after = [predictor(sample.image).labels for sample in test]
    changed = sum(int(np.sum((a != b) & (s.labels != IGNORE))) for a, b, s in zip(maps, after, test, strict=True))
    assert fit.changed == changed
    assert (changed > 0) == bool(reading)
    assert ("label maps change" in fit.table()) == bool(reading)
    # what is measured is what `evaluate` measures, and the NLL is that of the probabilities that are predicted
    details = ms.evaluate(predictor, test, detailed=True).details
    assert details is not None
    assert isinstance(details.reliability, Reliability)
    np.testing.assert_array_equal(details.reliability.counts, fit.after.reliability.counts)
    assert pytest.approx(nll(ms.Predictor(model, **READING, **reading), test), rel=1e-5) == fit.after.NLL


def nll(predictor: ms.Predictor, data: Dataset) -> float:
    every = predictor.model.label_space.names
    predictor.probabilities = every
    found = []
    for sample in data:
        p = np.stack(list(predictor(sample.image).probabilities.values())).astype(np.float64)
        known = sample.labels != IGNORE
        found.append(-np.log(p[:, known][sample.labels[known], np.arange(known.sum())]))
    return float(np.concatenate(found).mean())


def test_without_another_split_the_table_says_so(tiny_model: ModelFactory) -> None:
    model = tiny_model()
    data = drawn(model, 2.0)
    fit = ms.calibrate(ms.Predictor(model, **READING), data, limit=2)
    assert not fit.is_held_out
    assert "measured on the images of the fit" in fit.table()
    assert data.reads == 2  # the logits are kept
    assert fit.fitted_on.images == 2


def test_images_that_do_not_fit_into_memory_are_read_again(
    tiny_model: ModelFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    data = drawn(model, 2.0)
    kept = ms.calibrate(ms.Predictor(model, **READING), data).temperature
    reads = data.reads
    monkeypatch.setattr(fitting, "KEPT", 1000)
    assert ms.calibrate(ms.Predictor(model, **READING), data).temperature == kept
    assert data.reads > 5 * reads


def test_labels_that_fit_no_temperature_leave_the_model_as_it_is(tiny_model: ModelFactory) -> None:
    model = tiny_model()
    data = drawn(model, 1e-4)  # the most probable class everywhere
    with pytest.raises(RunError, match=r"temperature: .* still grows at 0\.05"):
        ms.calibrate(ms.Predictor(model, **READING), data)
    assert model.config.temperature == 1
    for sample in data:
        sample.labels[:] = IGNORE
    with pytest.raises(InputError, match="all pixels are ignored"):
        ms.calibrate(ms.Predictor(model, **READING), data)
    with pytest.raises(InputError, match="ensemble"):
        ms.calibrate(ms.Predictor(Ensemble([model, model]), **READING), data)


@settings(max_examples=30)
@given(st.integers(1, 9), st.floats(0.3, 4), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_probabilities_of_labels_agree_with_float64(K: int, T: float, views: int, numba: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    several = []
    for n in range(views):
        z = 3 * torch.randn(K, 2 + n, 3, generator=generator, dtype=torch.float32 if numba else torch.float64)
        down, across = (ms.ops.bilinear_matrix(size, out, out, z.dtype) for size, out in ((2 + n, 9), (3, 11)))
        several.append(View(z, down, across, temperature=T))
    labels: npt.NDArray[Any] = torch.randint(0, K + 1, (9, 11), generator=generator).numpy()
    found = pixel_confidence(several, confidence=("probability",), labels=labels)
    dense = [view.rows.double() @ view.z.double() @ view.cols.double().T for view in several]
    p = torch.stack([(z / T).softmax(0) for z in dense]).mean(0).numpy()
    expected = np.take_along_axis(np.concatenate([p, np.full((1, 9, 11), np.nan)]), labels[None], 0)[0]
    assert found.label_probability is not None
    np.testing.assert_allclose(found.label_probability, expected, rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(found.confidence["probability"], p.max(0), rtol=2e-5, atol=1e-7)
    plain = pixel_confidence([view._replace(temperature=1.0) for view in several])
    if views == 1:
        np.testing.assert_array_equal(found.labels, plain.labels)


def test_a_temperature_is_stored_and_refused_where_it_cannot_be(tiny_model: ModelFactory, tmp_path: Path) -> None:
    model = tiny_model()
    model.config = replace(model.config, temperature=1.5)
    model.save(tmp_path / "model")
    loaded = ms.load_model(tmp_path / "model")
    assert loaded.config.temperature == 1.5
    result = ms.evaluate(ms.Predictor(loaded, **READING), drawn(model, 1.0))
    assert result.protocol.temperature == (1.5,)
    assert "temperature 1.5" in str(result.protocol)
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match=r"temperature: .* is not a number above 0"):
            replace(model.config, temperature=wrong)


def test_nothing_of_full_size_has_classes(tiny_model: ModelFactory, largest: Largest) -> None:
    model = tiny_model(num_classes=40, patch=16)
    predictor = ms.Predictor(model, window=None, short_side=None)
    image = np.zeros((160, 160, 3), np.uint8)
    labels = np.zeros((160, 160), np.uint8)
    with torch.inference_mode():
        bands = [(views, labels[rows]) for rows, (views,) in predictor.bands(image, [1])]
    with largest:
        fitting.mean_nll(bands, 2.0)
    assert largest.elements < 40 * 160 * 160 / 2
