"""The plot of the areas of classes over the time of a video."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from meanshifter.analysis.figures import NO_MATPLOTLIB, has_matplotlib, plain_title
from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError, summarize_error
from meanshifter.utils.files import write_atomically

BINS: Final = 600
"""Intervals of time into which the frames of a long video are averaged."""
NAMED: Final = 14
"""Classes with a color and an entry in the legend; the others are summed up."""
_OTHERS: Final = "#d0d0d0"


def plot_areas(areas: str | Path, out: str | Path, label_space: LabelSpace) -> None:
    """Draw the areas that `jobs.video.label_video` wrote over time, stacked to 100 %, as a PNG.

    Frames of long videos are averaged over 600 intervals, so that memory does not depend on their number. The 14
    largest classes are named in the legend, with their mean areas; the others are one gray area.

    Args:
        areas: the CSV file.
        out: the PNG file; an existing one is replaced.
        label_space: names and colors of the classes.

    Raises:
        InputError: matplotlib is missing, or a file cannot be read or written.
    """
    if not has_matplotlib():
        raise InputError(f"areas: {NO_MATPLOTLIB}")
    seconds, shares = _binned(Path(areas), label_space)
    write_atomically(out, lambda file: _draw(seconds, shares, label_space, file))


def _binned(areas: Path, label_space: LabelSpace) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Times (T,) and mean shares (T, K) of at most `BINS` intervals that have frames."""
    last = max((row[0] for row in _rows(areas, label_space)), default=0.0)
    sums, count = np.zeros((BINS, label_space.num_classes + 1)), np.zeros(BINS)
    for row in _rows(areas, label_space):
        place = min(int(row[0] / last * BINS), BINS - 1) if last else 0
        sums[place] += row
        count[place] += 1
    means = sums[count > 0] / count[count > 0, None]
    return means[:, 0], means[:, 1:]


def _rows(areas: Path, label_space: LabelSpace) -> Iterator[npt.NDArray[np.float64]]:
    """Seconds and shares of each frame."""
    try:
        with areas.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            if next(reader, []) != ["frame", "seconds", *label_space.names]:
                raise InputError(f"{areas}: not a file of areas with the classes of the model; label the video again")
            for row in reader:
                yield np.array(row[1:], dtype=np.float64)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{areas}: cannot be read ({summarize_error(error)}); label the video again") from error


def _draw(
    seconds: npt.NDArray[np.float64], shares: npt.NDArray[np.float64], label_space: LabelSpace, file: IO[bytes]
) -> None:
    from matplotlib.figure import Figure

    means = shares.mean(0)
    order = [int(k) for k in np.argsort(-means, kind="stable") if means[k] > 0]
    named, rest = order[:NAMED], order[NAMED:]
    layers: list[Any] = [shares[:, k] for k in named]
    colors: list[Any] = [tuple(channel / 255 for channel in label_space.palette[k]) for k in named]
    labels = [f"{plain_title(label_space.names[k])}  {means[k]:.1%}" for k in named]
    if rest:
        layers.append(shares[:, rest].sum(1))
        colors.append(_OTHERS)
        labels.append(f"{len(rest)} other classes  {means[rest].sum():.1%}")
    if len(seconds) == 1:  # one point has no area
        seconds, layers = np.array([seconds[0], seconds[0] + 1]), [np.repeat(layer, 2) for layer in layers]
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.stackplot(seconds, layers, colors=colors, labels=labels, edgecolor="white", linewidth=0.3)
    axes.set(xlim=(seconds[0], seconds[-1]), ylim=(0, 1), xlabel="time in seconds", ylabel="share of the pixels")
    axes.yaxis.set_major_formatter("{x:.0%}")
    handles, titles = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], titles[::-1], loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(file, format="png", dpi=150)
