"""Pictures of an evaluation: its confusion matrix, and its reliability diagram."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from meanshifter.analysis.figures import NO_MATPLOTLIB, has_matplotlib
from meanshifter.errors import InputError, counted
from meanshifter.utils.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from meanshifter.evaluation.calibration import Reliability
    from meanshifter.evaluation.result import Result

SUFFIXES: Final = ("png", "pdf", "svg")
MOST_NUMBERS: Final = 32
"""Classes up to which the cells of the confusion matrix have numbers."""
MOST_NAMES: Final = 160
"""Classes up to which rows and columns have names."""
BLUE, RED, GRAY = "#2f6db3", "#c8503c", "#8a8f98"


def check_plot(path: Path) -> None:
    """Check that a plot can be written to `path`.

    Raises:
        InputError: matplotlib is missing, or the file has another suffix than .png, .pdf or .svg.
    """
    if path.suffix.lower().removeprefix(".") not in SUFFIXES:
        raise InputError(f"plot: {path}; expected a file that ends in .{', .'.join(SUFFIXES)}")
    if path.is_dir():
        raise InputError(f"plot: {path} is a folder; expected a file, such as {path / 'scores.png'}")
    if not has_matplotlib():
        raise InputError(f"plot: {NO_MATPLOTLIB}")


def save_plot(result: Result, path: str | Path) -> None:
    """Write the confusion matrix, each row in percent of its class, and the reliability diagram, if known.

    Raises:
        InputError: as `check_plot`, or the file cannot be written.
    """
    path = Path(path)
    check_plot(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    reliability = None if result.details is None else result.details.reliability
    K = len(result.names)
    side = min(max(3.2, 0.34 * K), 24.0)
    names = 0.075 * min(max(map(len, result.names)), 24)
    right = 0.0 if reliability is None else 4.4
    with rc_context({"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "meanshifter"}):
        figure = Figure(figsize=(side + names + right + 0.6, max(side + names + 0.8, 4.2)), layout="constrained")
        ratios = [side + names] if reliability is None else [side + names, right]
        axes = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
        _draw_confusion(axes[0], result)
        if reliability is not None:
            _draw_reliability(axes[1], reliability)
        protocol = result.protocol
        figure.suptitle(
            f"{protocol.dataset} {protocol.split}, {counted(protocol.images, 'image')}: mIoU {result.mIoU:.2f}"
        )
        kind = path.suffix.lower().removeprefix(".")
        stamp = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)  # equal scores, equal files
        write_atomically(
            path, lambda file: figure.savefig(file, format=kind, dpi=150, metadata=stamp, bbox_inches="tight")
        )


def _draw_confusion(axes: Axes, result: Result) -> None:
    """Percent of each labeled class (row) by predicted class (column); gray rows have no labels."""
    truth = result.truth[:, None]
    shares = 100 * np.divide(result.confusion, truth, out=np.full(result.confusion.shape, np.nan), where=truth > 0)
    axes.set_facecolor("#d9dce1")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="equal", interpolation="nearest")
    K = len(result.names)
    size = 8.0 if K <= 40 else max(8.0 * 40 / K, 3.0)
    if K <= MOST_NAMES:
        short = [name if len(name) <= 24 else name[:23] + "…" for name in result.names]
        axes.set_xticks(range(K), short, rotation=90, fontsize=size)
        axes.set_yticks(range(K), short, fontsize=size)
    axes.tick_params(length=0)
    axes.set(xlabel="predicted", ylabel="labeled", title="Confusion, % of the labeled class")
    if K <= MOST_NUMBERS:
        for row, column in zip(*np.nonzero(shares >= 0.5), strict=True):
            share = shares[row, column]
            color = "white" if share > 55 else "black"
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=color, fontsize=7)


def _draw_reliability(axes: Axes, found: Reliability) -> None:
    """Accuracy by bin of confidence against the diagonal, and the share of pixels in each bin."""
    edges = np.linspace(0, 100, found.bins + 1)
    width = 100 / found.bins
    known = found.pixels > 0
    share = found.pixels / max(int(found.pixels.sum()), 1)
    axes.bar(edges[:-1], 100 * share, width, align="edge", color=GRAY, alpha=0.35, label="% of the pixels")
    axes.plot([0, 100], [0, 100], color=GRAY, linewidth=1, linestyle="--")
    axes.plot(
        found.confidence[known], found.accuracy[known], "o-", color=BLUE, markersize=4, clip_on=False, label="accuracy"
    )
    for x, y in zip(found.confidence[known], found.accuracy[known], strict=True):
        axes.plot([x, x], [x, y], color=RED, linewidth=2, alpha=0.6)
    axes.plot([], [], color=RED, linewidth=2, alpha=0.6, label="gap to the confidence")
    axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal", xlabel="confidence, %", ylabel="%")
    ece = "-" if math.isnan(found.ECE) else f"{found.ECE:.2f} %"
    axes.set_title(f"Reliability, calibration error {ece}")
    axes.legend(loc="upper left", frameon=False, fontsize=8)
