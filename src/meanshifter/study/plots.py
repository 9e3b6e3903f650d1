"""Plots of a study's scores, as SVG."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from meanshifter.study.findings import Findings
from meanshifter.study.tables import DIAGNOSTICS

LINEAR = ("shift", "boundary_3", "boundary_9")


def write_plots(found: Findings, folder: Path) -> None:
    """`layers_SPLIT.svg` and `depth_SPLIT.svg`: mIoU over the steps in training and at inference; `diagnostics.svg`."""
    for split in found.splits:
        _save(_over_layers(found, split), folder / f"layers_{split}.svg")
        _save(_over_depth(found, split), folder / f"depth_{split}.svg")
    _save(_diagnostics(found), folder / "diagnostics.svg")


def _over_layers(found: Findings, split: str) -> Figure:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for row in found.rows:
        scores = found.own(row, split)
        if scores:
            middle = median(scores)
            reach = [[middle - min(scores)], [max(scores) - middle]]
            axes.errorbar([found.whole(row)[0]["trained_depth"]], [middle], reach, fmt="o", capsize=3, label=row)
    axes.set(xlabel="steps in training, $L_{ms}$", ylabel=f"mIoU on {split}, median, lowest and highest")
    _finish(axes)
    return figure


def _over_depth(found: Findings, split: str) -> Figure:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for row in found.rows:
        depths = sorted({depth for facts in found.whole(row) for depth in facts["depths"]})
        scores = [fmean(found.at(row, split, depth)) for depth in depths]
        axes.plot(depths, scores, marker="o", markersize=4, label=row)
    axes.set(xlabel="steps at inference, $L'_{ms}$", ylabel=f"mIoU on {split}")
    _finish(axes)
    return figure


def _diagnostics(found: Findings) -> Figure:
    figure = Figure(figsize=(10, 9), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(3, 3).flat, DIAGNOSTICS.items(), strict=True):
        for row in found.rows:
            points = [(step, entry[name]) for step, entry in enumerate(found.diagnostics(row)) if name in entry]
            axes.plot(*zip(*points, strict=True) if points else ([], []), marker="o", markersize=3, label=row)
        axes.set(title=title, xlabel="step", yscale="linear" if name in LINEAR else "log")
        _count_steps(axes)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return figure


def _count_steps(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def _finish(axes: Axes) -> None:
    _count_steps(axes)
    axes.legend(frameon=False, fontsize="small")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
