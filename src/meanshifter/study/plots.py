"""Plots of a study's scores, as SVG."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from meanshifter.study.tables import DIAGNOSTICS, Findings


def write_plots(found: Findings, folder: Path) -> None:
    """`depth_SPLIT.svg`: mIoU over the steps at inference; `diagnostics.svg`: the diagnostics over the steps."""
    for split in found.plan.splits:
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for row in found.rows:
            depths = sorted({depth for facts in found.whole(row) for depth in facts["depths"]})
            scores = [fmean(found.at(row, split, depth)) for depth in depths]
            axes.plot(depths, scores, marker="o", markersize=4, label=row)
        axes.set(xlabel="steps at inference, $L'_{ms}$", ylabel=f"mIoU on {split}")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
        figure.savefig(folder / f"depth_{split}.svg", metadata={"Date": None})
    figure = Figure(figsize=(10, 6), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(2, 3).flat, DIAGNOSTICS.items(), strict=True):
        for row in found.rows:
            points = [(step, entry[name]) for step, entry in enumerate(found.diagnostics(row)) if name in entry]
            axes.plot(*zip(*points, strict=True) if points else ([], []), marker="o", markersize=3, label=row)
        axes.set(title=title, xlabel="step", yscale="linear" if name == "shift" else "log")
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    figure.savefig(folder / "diagnostics.svg", metadata={"Date": None})
