"""Measurements as Markdown tables and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from meanshifter.errors import InputError
from meanshifter.utils.environment import install_hint
from meanshifter.utils.files import write_text
from speed.timing import Measured


def table(title: str, measured: Sequence[Measured]) -> str:
    """One row for each way, with ratios to the first."""
    base = measured[0]
    lines = [
        f"### {title}",
        "",
        "| | median ms | range ms | times faster | extra MB | times less |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in measured:
        memory, less = "–", "–"
        if row.peak_bytes is not None:
            memory = f"{row.peak_bytes / 1e6:.1f}"
        if row.peak_bytes and base.peak_bytes is not None:
            less = f"{base.peak_bytes / row.peak_bytes:.1f}"
        lines.append(
            f"| {row.name} | {row.seconds * 1e3:.1f} | {row.low * 1e3:.1f}–{row.high * 1e3:.1f} "
            f"| {base.seconds / row.seconds:.2f} | {memory} | {less} |"
        )
    return "\n".join(lines)


def area_table(points: Mapping[str, Sequence[tuple[int, Measured]]]) -> str:
    """Milliseconds and extra memory, one column for each side of the image."""
    sides = [side for side, _ in next(iter(points.values()))]
    head = " | ".join(f"{side}² ms | MB" for side in sides)
    lines = [
        "### Square photos to label maps, 150 classes",
        "",
        f"| | {head} |",
        "| --- |" + " ---: | ---: |" * len(sides),
    ]
    for name, row in points.items():
        cells = [
            f"{m.seconds * 1e3:.0f} | {'–' if m.peak_bytes is None else f'{m.peak_bytes / 1e6:.0f}'}" for _, m in row
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(parts: Sequence[str], path: Path) -> None:
    """Write the tables as one Markdown file."""
    write_text(path, "\n\n".join(["# Benchmarks", *parts]) + "\n")


def write_plot(points: Mapping[str, Sequence[tuple[int, Measured]]], path: Path) -> None:
    """Time over image side, both axes logarithmic, as SVG.

    Raises:
        InputError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError(f"{path}: plots need matplotlib; leave --area out, or {install_hint('plots')}") from None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, row in points.items():
        axes.loglog([side for side, _ in row], [measured.seconds for _, measured in row], marker="o", label=name)
    sides = [side for side, _ in next(iter(points.values()))]
    axes.set_xticks(sides, [f"{side}²" for side in sides])
    axes.minorticks_off()
    axes.set(xlabel="pixels of the photo", ylabel="seconds from file to label map")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
