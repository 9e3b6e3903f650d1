"""Charts as inline SVG for HTML pages: lines over steps, sparklines, matrices and reliability diagrams.

They need no plotting package and no script, take the colors of the page's light or dark mode, and stay sharp at any
width. Lengths are in units of the drawing, which the page scales.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from meanshifter.errors import printable

COLORS: Final = ("#3b7dd8", "#e0782f", "#2f9e6e", "#b0529e", "#8a7a1f", "#c8413c", "#3aa5b5", "#7a68d6")
"""Of the lines, in turn; each is legible on a light and on a dark page."""
WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 34
LETTER: Final = 7.0
"""Width of a letter of the legend."""
MOST_POINTS: Final = 300
"""Points of a line; longer ones are averaged over equal numbers of points."""
MARKED: Final = 40
"""Points up to which each is marked, with its value as a tooltip."""
LOG_FROM: Final = 20.0
"""Ratio of the largest to the smallest value from which a logarithmic axis is used where it is allowed."""

Points = Sequence[tuple[float, float]]


def line_chart(series: Mapping[str, Points], *, unit: str, log: bool = False, from_zero: bool = False) -> Markup:
    """Lines through (step, value) points, with a legend if there are several.

    Args:
        series: name → points in the order of their steps; values that are not finite are left out.
        unit: what the values are, for the vertical axis.
        log: use a logarithmic axis for positive values whose ratio is at least `LOG_FROM`.
        from_zero: start the vertical axis at 0.

    Raises:
        ValueError: there is no finite value.
    """
    lines = {name: _finite(points) for name, points in series.items()}
    values = np.array([value for points in lines.values() for _, value in points])
    steps = [step for points in lines.values() for step, _ in points]
    if not len(values):
        raise ValueError("a chart needs at least one finite value")
    log = log and values.min() > 0 and values.max() / values.min() >= LOG_FROM
    down = 0.0 if from_zero else float(values.min())
    legend, top = _legend(list(lines)) if len(lines) > 1 else ("", TOP)
    frame = _Frame.of((min(steps), max(steps)), (down, float(values.max())), top=top + 14, log=log)
    parts = [legend, f'<text x="2" y="{top + 2}">{escape(unit)}{", logarithmic" if log else ""}</text>', frame.axes()]
    for number, (name, points) in enumerate(lines.items()):
        parts.append(_line(name, points, COLORS[number % len(COLORS)], frame))
    return _svg("".join(parts), (WIDTH, HEIGHT + top - TOP), f"{', '.join(lines)} over steps")


def sparkline(values: Sequence[float], *, low: float = 0.0, high: float = 100.0) -> Markup:
    """A small line through equally spaced values on a fixed scale; NaN interrupts it. One value is a dot."""
    W, H = 96, 22
    x = np.linspace(3, W - 3, len(values)) if len(values) > 1 else np.array([W / 2])
    shown = (np.clip(np.asarray(values, float), low, high) - low) / (high - low)
    y = H - 3 - shown * (H - 6)
    known = np.isfinite(y)
    pieces = [part[known[part]] for part in np.split(np.arange(len(values)), np.flatnonzero(~known))]
    lines = [_points(x[piece], y[piece]) for piece in pieces if len(piece) > 1]
    drawn = "".join(f'<polyline points="{line}" stroke="{COLORS[0]}"/>' for line in lines)
    if known.any():
        last = int(np.flatnonzero(known)[-1])
        drawn += f'<circle cx="{x[last]:.1f}" cy="{y[last]:.1f}" r="2" fill="{COLORS[0]}"/>'
    return Markup(f'<svg class="spark" viewBox="0 0 {W} {H}" width="{W}" height="{H}" aria-hidden="true">{drawn}</svg>')


def matrix_chart(shares: npt.NDArray[np.float64], names: Sequence[str], *, rows: str, columns: str) -> Markup:
    """A square matrix of shares from 0 to 1, each cell in a shade of its share; NaN cells are empty.

    Cells of at least half a percent state their percentage.

    Args:
        shares: (K, K), for example a row-normalized confusion matrix.
        names: of the K rows and columns.
        rows: what rows are, for the axis.
        columns: what columns are.
    """
    K, cell = len(names), 30 if len(names) <= 24 else 22
    widest = min(max(map(len, names)), 18)
    margin = round(LETTER * widest) + 30
    side = margin + K * cell + 6
    parts = [f'<text x="{margin}" y="12">{escape(columns)} →</text>']
    parts.append(f'<text transform="translate(12 {margin}) rotate(90)">{escape(rows)} →</text>')
    for k, name in enumerate(names):
        at = margin + (k + 0.5) * cell
        short = _text(name if len(name) <= widest else f"{name[: widest - 1]}…")
        full = f"<title>{_text(name)}</title>"
        parts.append(f'<text x="{margin - 6}" y="{at + 4:.0f}" text-anchor="end">{short}{full}</text>')
        parts.append(f'<text transform="translate({at + 4:.0f} {margin - 6}) rotate(-90)">{short}{full}</text>')
    parts.append(f'<rect x="{margin}" y="{margin}" width="{K * cell}" height="{K * cell}" class="empty"/>')
    for i, j in np.argwhere(shares >= 0.0005).tolist():
        parts.append(_cell((i, j), float(shares[i, j]), (names[i], names[j]), cell, margin))
    return _svg("".join(parts), (side, side), f"{rows} by {columns}", wide=True)


class Bin(NamedTuple):
    """Pixels whose confidence is within one interval."""

    confidence: float
    """Their mean confidence, 0 to 1."""
    accuracy: float
    """Share of them that are correct."""
    pixels: int
    """Their number."""


def reliability_diagram(series: Mapping[str, Sequence[Bin]]) -> Markup:
    """Accuracy over confidence (Guo et al., ICML 2017, figure 1), and below it the share of pixels per bin.

    Args:
        series: name → bins in order of their confidence, such as before and after temperature scaling; empty bins are
            left out.

    Raises:
        ValueError: there is no bin with pixels.
    """
    lines = {name: [item for item in bins if item.pixels > 0] for name, bins in series.items()}
    if not any(lines.values()):
        raise ValueError("a reliability diagram needs at least one bin with pixels")
    legend, top = _legend(list(lines)) if len(lines) > 1 else ("", TOP)
    side, foot = WIDTH - LEFT - RIGHT, 60
    frame = _Frame((0.0, 1.0), (0.0, 1.0), LEFT, WIDTH - RIGHT, top + 14, top + 14 + side, False)
    parts = [legend, f'<text x="2" y="{top + 2}">accuracy</text>', frame.axes(unit="confidence", ticks=(0.2, 0.2))]
    parts.append(f'<polyline class="ideal" points="{_points(frame.x([0, 1]), frame.y([0, 1]))}"/>')
    base = frame.bottom + 32 + foot
    for number, (name, bins) in enumerate(lines.items()):
        color, total = COLORS[number % len(COLORS)], sum(item.pixels for item in bins)
        parts.append(_line(name, [(item.confidence, item.accuracy) for item in bins], color, frame, step=""))
        for item in bins:
            height, x = foot * item.pixels / total, float(frame.x([item.confidence])[0]) - 4 + 3 * number
            title = f"<title>{_text(name)}: {item.pixels / total:.1%} of the pixels</title>"
            bar = f'<rect x="{x:.1f}" y="{base - height:.1f}" width="8" height="{max(height, 0.5):.1f}"'
            parts.append(f'{bar} fill="{color}" fill-opacity="0.6">{title}</rect>')
    parts.append(f'<text x="{LEFT}" y="{base + 16}">share of the pixels at each confidence</text>')
    return _svg("".join(parts), (WIDTH, base + 24), "accuracy over confidence", wide=True)


@dataclass(frozen=True)
class _Frame:
    """The plane of a chart: ranges of steps and values, and where their ends are drawn."""

    steps: tuple[float, float]
    values: tuple[float, float]
    left: float
    right: float
    top: float
    bottom: float
    log: bool

    @classmethod
    def of(cls, steps: tuple[float, float], values: tuple[float, float], *, top: float, log: bool) -> _Frame:
        first, last = steps if steps[1] > steps[0] else (steps[0] - 1, steps[0] + 1)
        low, high = values
        if not log:
            margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
            low, high = (low if low == 0 else low - margin), high + margin
        return cls((first, last), (low, high), LEFT, WIDTH - RIGHT, top, top + HEIGHT - TOP - BOTTOM, log)

    def x(self, steps: npt.ArrayLike) -> npt.NDArray[np.float64]:
        first, last = self.steps
        return self.left + (np.asarray(steps, float) - first) / (last - first) * (self.right - self.left)

    def y(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        ends, at = np.asarray(self.values, float), np.asarray(values, float)
        if self.log:
            ends, at = np.log10(ends), np.log10(at)
        return np.asarray(self.bottom - (at - ends[0]) / (ends[1] - ends[0]) * (self.bottom - self.top))

    def axes(self, *, unit: str = "step", ticks: tuple[float, float] | None = None) -> str:
        """Grid lines with their numbers; `ticks`: distances between them, None: as the ranges suggest."""
        own = (None, None) if ticks is None else ticks
        parts = []
        for value in _decades(*self.values) if self.log else _ticks(*self.values, own[1]):
            y = float(self.y(value))
            parts.append(f'<line x1="{self.left}" x2="{self.right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
            parts.append(f'<text x="{self.left - 5}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
        whole = None if self.steps[1] - self.steps[0] > 5 else 1.0  # there are no half steps
        for step in _ticks(*self.steps, whole if ticks is None else own[0]):
            x = float(self.x(step))
            parts.append(f'<text x="{x:.1f}" y="{self.bottom + 16}" text-anchor="middle">{_short(step)}</text>')
        parts.append(f'<text x="{self.right}" y="{self.bottom + 30}" text-anchor="end">{unit}</text>')
        return "".join(parts)


def _finite(points: Points) -> list[tuple[float, float]]:
    """The finite points, averaged over equal numbers of them if there are more than `MOST_POINTS`."""
    known = np.array([point for point in points if math.isfinite(point[1])], float).reshape(-1, 2)
    if len(known) > MOST_POINTS:
        known = np.array([part.mean(0) for part in np.array_split(known, MOST_POINTS)])
    return [(float(step), float(value)) for step, value in known]


def _line(name: str, points: Points, color: str, frame: _Frame, *, step: str = "step ") -> str:
    if not points:
        return ""
    steps, values = zip(*points, strict=True)
    x, y = frame.x(steps), frame.y(values)
    drawn = f'<polyline points="{_points(x, y)}" stroke="{color}"/>' if len(points) > 1 else ""
    if len(points) > MARKED:
        return drawn
    for a, b, (at, value) in zip(x, y, points, strict=True):
        title = f"<title>{_text(name)}, {step}{at:g}: {value:.4g}</title>"
        drawn += f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{color}">{title}</circle>'
    return drawn


def _points(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _legend(names: Sequence[str]) -> tuple[str, int]:
    """Swatches with names, in as many lines as needed, and where the chart below starts."""
    parts, x, y = [], 4.0, TOP
    for number, name in enumerate(names):
        wide = 22 + LETTER * len(name)
        if x > 4 and x + wide > WIDTH:
            x, y = 4.0, y + 18
        color = COLORS[number % len(COLORS)]
        parts.append(f'<line x1="{x:.0f}" x2="{x + 12:.0f}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 17:.0f}" y="{y + 4}">{_text(name)}</text>')
        x += wide + 12
    return "".join(parts), y + 20


def _cell(place: tuple[int, int], share: float, names: tuple[str, str], side: int, margin: int) -> str:
    """One cell: blue on the diagonal, orange beside it, with its percentage if there is one to state."""
    i, j = place
    x, y, color = margin + j * side, margin + i * side, COLORS[0] if i == j else COLORS[1]
    title = f"<title>{_text(names[0])} → {_text(names[1])}: {share:.1%}</title>"
    opacity = 0.06 + 0.94 * share**0.6
    drawn = f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="{color}" fill-opacity="{opacity:.2f}">'
    drawn += f"{title}</rect>"
    if share >= 0.005:
        ink = ' class="on"' if opacity > 0.55 else ""
        drawn += f'<text x="{x + side / 2:g}" y="{y + side / 2 + 4:g}" text-anchor="middle"{ink}>{share:.0%}</text>'
        drawn = drawn.replace("%</text>", "</text>")
    return drawn


def _ticks(low: float, high: float, distance: float | None = None) -> Iterator[float]:
    """Round numbers from `low` to `high`, about five."""
    if distance is None:
        rough = (high - low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        distance = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    for number in range(math.ceil(low / distance - 1e-9), math.floor(high / distance + 1e-9) + 1):
        yield number * distance


def _decades(low: float, high: float) -> Iterator[float]:
    """1, 2 and 5 times powers of ten from `low` to `high`."""
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        yield from (factor * 10.0**power for factor in (1, 2, 5) if low <= factor * 10.0**power <= high)


def _text(name: str) -> Markup:
    return escape(printable(name))


def _short(value: float) -> str:
    """A number for an axis: 12k for 12,000."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    if 1e-12 < abs(value) < 0.001:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return f"{round(value, 10):g}"


def _svg(drawn: str, size: tuple[float, float], label: str, *, wide: bool = False) -> Markup:
    W, H = size
    style = f' style="width:{W:g}px"' if wide else ""
    tag = f'<svg class="chart" role="img" aria-label="{_text(label)}" viewBox="0 0 {W:g} {H:g}"{style}>'
    return Markup(f"{tag}{drawn}</svg>")
