"""Diagnostics against their definitions, and on tokens with known values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from meanshifter.evaluation import diagnostics
from meanshifter.evaluation.diagnostics import diagnose
from meanshifter.model.config import MeanShiftConfig
from meanshifter.model.mean_shift import MeanShift


def block(**settings: object) -> MeanShift:
    torch.manual_seed(0)
    made = MeanShift(6, MeanShiftConfig(**settings))  # type: ignore[arg-type]
    torch.nn.init.normal_(made.project.weight)
    return made


def test_diagnostics_of_the_steps_follow_their_definitions() -> None:
    shift = block(layers=2, kernel="gaussian")
    tokens = torch.randn(1, 12, 6)
    labels = torch.tensor([0] * 5 + [3] * 5 + [255] * 2)
    rows = diagnose(shift, tokens, 2, labels=labels)
    exact = shift.double()
    with torch.no_grad():
        states = exact.trajectory(tokens.double(), 2)[:, 0].numpy()
        weights = [exact.weights(torch.from_numpy(z)[None])[0].numpy() for z in states]
    spreads = [np.sqrt(((z - z.mean(0)) ** 2).sum(1).mean()) for z in states]
    for n, row in enumerate(rows):
        z = states[n]
        assert row["spread"] == pytest.approx(spreads[n])
        assert row["relative_spread"] == pytest.approx(spreads[n] / np.sqrt((z**2).sum(1).mean()))
        assert row["variance"] == pytest.approx((spreads[n] / spreads[0]) ** 2)
        energy = np.linalg.eigvalsh((z - z.mean(0)).T @ (z - z.mean(0))).clip(1e-300)
        share = energy / energy.sum()
        assert row["rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()))
        means, whole = [z[:5].mean(0), z[5:10].mean(0)], z[:10].mean(0)
        between = sum(5 * ((mean - whole) ** 2).sum() for mean in means)
        within = ((z[:5] - means[0]) ** 2).sum() + ((z[5:10] - means[1]) ** 2).sum()
        assert row["separation"] == pytest.approx(between / within)
        if n == 0:
            assert "shift" not in row
            continue
        before = weights[n - 1]
        assert row["neighbors"] == pytest.approx(np.exp(-(before * np.log(before)).sum(1)).mean())
        way = np.sqrt(((z - states[n - 1]) ** 2).sum(1).mean())
        assert row["shift"] == pytest.approx(way / spreads[n - 1])


def test_a_collapse_below_float32_is_detected() -> None:
    shift = MeanShift(6, MeanShiftConfig(layers=3))  # weights of 0.02: nearly a global average
    rows = diagnose(shift, torch.randn(1, 50, 6) + 5, 3)
    assert rows[1]["neighbors"] > 49
    assert rows[3]["relative_spread"] < 1e-7


def test_a_model_without_the_block_has_one_row() -> None:
    (row,) = diagnose(None, torch.randn(1, 9, 4), 0)
    assert set(row) == {"spread", "relative_spread", "rank", "modes"}
    (flat,) = diagnose(None, torch.ones(1, 9, 4), 0, labels=torch.zeros(9, dtype=torch.long))
    assert flat["spread"] == 0
    assert math.isnan(flat["separation"])


def test_modes_of_very_many_tokens_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "MOST_TOKENS", 8)
    for count, counted in ((8, True), (9, False)):
        (row,) = diagnose(None, torch.randn(1, count, 4), 0)
        assert math.isfinite(row["modes"]) == counted
        assert math.isfinite(row["rank"])
