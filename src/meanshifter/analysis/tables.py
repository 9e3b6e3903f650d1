"""The results of a study as Markdown, CSV, JSON and plots."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from meanshifter.analysis.findings import Findings, Interval
from meanshifter.analysis.score_tables import FORMATS, depth_table, number, table, trained_table
from meanshifter.analysis.study_plan import Table, depth_rows
from meanshifter.analysis.study_scores import METRICS
from meanshifter.analysis.study_training import checkpoint, number_of_trainings
from meanshifter.errors import counted
from meanshifter.evaluation.diagnostics import DIAGNOSTICS
from meanshifter.utils.files import dump_json, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_tables(
    found: Findings, folder: Path, tables: Sequence[Table] = (1, 2), made: Mapping[str, str] | None = None
) -> None:
    """Write all results of a study, with plots if matplotlib is installed.

    These are `table.md`; `table.csv`, one line per score; `cost.md`, the training of each row; `study.json`; and of
    `tables` `table_1` (with the trained number of steps) and `table_2` (over L'_ms, for models with steps), each as
    .md, .csv, .json and .tex.

    Args:
        found: the finished trainings.
        folder: the study's folder.
        tables: which of the two to write.
        made: how the study was made, for `study.json`.
    """
    write_text(folder / "table.md", markdown(found))
    write_text(folder / "table.csv", _csv(found))
    write_text(folder / "cost.md", f"# Cost of training\n\n{_cost(found)}\n")
    write_text(folder / "study.json", dump_json(_document(found, made), indent=1) + "\n")
    named = depth_rows(found.plan, list(found.cells.values()))
    every = {1: trained_table(found, protocol(found)), 2: depth_table(found, protocol(found), named)}
    for which, scores in every.items():
        for extension, text_of in FORMATS.items() if which in tables and scores.lines else ():
            write_text(folder / f"table_{which}.{extension}", text_of(scores))
    write_plots(found, folder)


def markdown(found: Findings) -> str:
    """All tables, below the protocol."""
    plan = found.plan
    parts = [f"# Study: {plan.name}", protocol(found)]
    for split in found.splits:
        parts.append(f"## Scores on {split}\n\n{_score_table(found, split)}")
        if len(found.depths) > 1:
            parts.append("Over the number of steps at inference, L'_ms, mean over seeds:")
            parts += [f"**{metric}**\n\n{_depths(found, split, metric)}" for metric in METRICS]
        if plan.pairs:
            parts.append(f"Paired differences at the trained number of steps:\n\n{_pairs(found, split)}")
    diagnosed = dict.fromkeys(facts["diagnosed_split"] for facts in found.facts.values() if "diagnostics" in facts)
    parts.append(f"## Diagnostics of the steps, {' and '.join(diagnosed)}\n\n{_diagnostics(found)}")
    return "\n\n".join(parts) + "\n"


def protocol(found: Findings) -> str:
    """The common settings of all trainings and scores, as one sentence."""
    facts = next((facts for facts in found.facts.values() if "protocol" in facts), None)
    if facts is None:
        return "No training is finished."
    config = next(iter(found.cells.values())).config
    images = ", ".join(f"{counted(count, 'image')} of {split}" for split, count in facts["images"].items())
    kept = {
        key: value
        for key, value in facts["protocol"].items()
        if key != "weights"
        and (key, value) not in (("compat", None), ("merge_tokens", None), ("engine", None))
        and (key, value) not in (("window_blend", None), ("window_blend", "constant"))
    }
    settings = ", ".join(f"{key} {'none' if value is None else value}" for key, value in kept.items())
    return (
        f"{config.data.name}; recipe {found.plan.recipe}, {_steps(found)} of {config.batch_size} crops of "
        f"{config.augment.crop[0]}×{config.augment.crop[1]}; {images}; {_weights(found)}; {settings}."
    )


def _steps(found: Findings) -> str:
    steps = [cell.config.steps for cell in found.cells.values()]
    return f"{steps[0]} steps" if min(steps) == max(steps) else f"{min(steps)} to {max(steps)} steps (cost.md)"


def _weights(found: Findings) -> str:
    kinds = {cell.row: checkpoint(cell.config) for cell in found.cells.values()}
    best = [row for row, kind in kinds.items() if kind == "best"]
    if not best:
        return "last weights"
    return "best weights" if len(best) == len(kinds) else f"last weights, best ones of {' and '.join(best)}"


def _score_table(found: Findings, split: str) -> str:
    published = {row: found.as_published(row) for row in found.rows}
    costs = {row: found.multiply_adds(row) for row in {*found.rows, found.plan.base}}
    head = ["", "M parameters", "× multiply-adds", "seeds", "aAcc, median", "mAcc, median", "mIoU, median"]
    head += ["lowest to highest", f"Δ vs. {found.plan.base} [95 %, seeds]", "[95 %, images]", "≤ 3 px", "≤ 9 px"]
    head += ["published, ADE20K", "its M parameters", "ours at that setting"]
    rows = []
    for row in found.rows:
        scores, lost = found.own(row, split), found.lost(row)
        count = f"{len(scores)}" + (f" ({lost})" if lost else "")
        if not scores:
            rows.append([row, "–", "–", count, *["–"] * 8, *published[row]])
            continue
        millions = f"{found.finished(row)[0]['parameters'] / 1e6:.2f}"
        spread = f"{min(scores):.2f} to {max(scores):.2f}"
        others = [f"{median(found.own(row, split, metric)):.2f}" for metric in ("aAcc", "mAcc")]
        near = [number(found.boundary(row, split, name)) for name in ("boundary_3", "boundary_9")]
        pair = _pair_cells(found.difference(row, split))
        score = [*others, f"{median(scores):.2f}", spread, *pair, *near]
        cost, base = costs[row], costs[found.plan.base]
        ratio = "–" if cost is None or base is None else f"{cost / base:.3f}"
        rows.append([row, millions, ratio, count, *score, *published[row]])
    return table(head, rows)


def _pair_cells(pair: tuple[Interval, Interval] | None) -> tuple[str, str]:
    return ("–", "–") if pair is None else (str(pair[0]), f"[{pair[1].low:+.2f}, {pair[1].high:+.2f}]")


def _cost(found: Findings) -> str:
    """Steps and CPU time of each row; the trainings of a row with folds or a teacher count together."""
    rows = []
    for row in found.rows:
        cells = [cell for (name, _), cell in found.cells.items() if name == row]
        known = [seconds for facts in found.finished(row) if (seconds := facts.get("cpu_seconds")) is not None]
        minutes = f"{fmean(known) / 60:.2f}" if known else "–"
        rows.append([row, str(number_of_trainings(cells[0])), f"{cells[0].config.steps:,}", minutes])
    return table(["", "trainings", "steps of each, at most", "CPU minutes, mean"], rows)


def _pairs(found: Findings, split: str) -> str:
    rows = []
    for row, base in found.plan.pairs:
        pair = found.difference(row, split, base) if {row, base} <= set(found.rows) else None
        rows.append([f"{row} vs. {base}", *_pair_cells(pair)])
    return table(["", "mean [95 %, seeds]", "[95 %, images]"], rows)


def _depths(found: Findings, split: str, metric: str) -> str:
    rows = []
    for row in found.rows:
        several = [found.at(row, split, depth, metric) for depth in found.depths]
        rows.append([row, *(number(fmean(scores) if scores else None) for scores in several)])
    return table(["", *map(str, found.depths)], rows)


def _diagnostics(found: Findings) -> str:
    rows = []
    for row in found.rows:
        for step, figures in enumerate(found.diagnostics(row)):
            rows.append([row, str(step), *(number(figures.get(name), "{:.3g}") for name in DIAGNOSTICS)])
    return table(["", "step", *DIAGNOSTICS.values()], rows)


def _csv(found: Findings) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "seed", "split", "depth", "is_trained_depth", *METRICS])
    for (row, seed), facts in found.facts.items():
        for split in facts.get("images", ()):
            for place, depth in enumerate(facts["depths"]):
                scores = [round(facts[metric][split][place], 4) for metric in METRICS]
                writer.writerow([row, seed, split, depth, int(depth == facts["trained_depth"]), *scores])
    return text.getvalue()


def _document(found: Findings, made: Mapping[str, str] | None) -> dict[str, Any]:
    trainings = [
        {k: v for k, v in facts.items() if k not in ("seconds", "cpu_seconds")} for facts in found.facts.values()
    ]
    differences = {
        row: {
            split: {"seeds": pair[0]._asdict(), "images": pair[1]._asdict()}
            for split in found.splits
            if (pair := found.difference(row, split)) is not None
        }
        for row in found.rows
    }
    differences = {row: by_split for row, by_split in differences.items() if by_split}
    head = {"format_version": 1, "name": found.plan.name, "baseline": found.plan.base, "made": made}
    document: dict[str, Any] = _plain({**head, "trainings": trainings, "differences": differences})
    return document


def _plain(value: Any) -> Any:
    """NaN and infinity as None, since JSON has neither."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


LINEAR = ("shift", "boundary_3", "boundary_9")
"""Diagnostics with a linear axis; the others have a logarithmic one."""


def write_plots(found: Findings, folder: Path) -> None:
    """Write mIoU over L_ms and over L'_ms for each split, and the diagnostics, as SVG; nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    for split in found.splits:
        layers, depth = (Figure(figsize=(7, 4.5), layout="constrained") for _ in range(2))
        _over_layers(found, split, layers.subplots())
        _over_depth(found, split, depth.subplots())
        layers.savefig(folder / f"layers_{split}.svg", metadata={"Date": None})
        depth.savefig(folder / f"depth_{split}.svg", metadata={"Date": None})
    figure = Figure(figsize=(10, 9), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(3, 3).flat, DIAGNOSTICS.items(), strict=True):
        for row in found.rows:
            points = [(step, entry[name]) for step, entry in enumerate(found.diagnostics(row)) if name in entry]
            axes.plot(*zip(*points, strict=True) if points else ([], []), marker="o", markersize=3, label=row)
        axes.set(title=title, xlabel="step", yscale="linear" if name in LINEAR else "log")
        _count_steps(axes)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    figure.savefig(folder / "diagnostics.svg", metadata={"Date": None})


def _over_layers(found: Findings, split: str, axes: Axes) -> None:
    for row in found.rows:
        scores = found.own(row, split)
        if scores:
            middle = median(scores)
            reach = [[middle - min(scores)], [max(scores) - middle]]
            axes.errorbar([found.finished(row)[0]["trained_depth"]], [middle], reach, fmt="o", capsize=3, label=row)
    axes.set(xlabel="steps in training, $L_{ms}$", ylabel=f"mIoU on {split}, median, lowest and highest")
    _count_steps(axes)
    axes.legend(frameon=False, fontsize="small")


def _over_depth(found: Findings, split: str, axes: Axes) -> None:
    for row in found.rows:
        depths = sorted({depth for facts in found.finished(row) for depth in facts["depths"]})
        scores = [fmean(found.at(row, split, depth)) for depth in depths]
        axes.plot(depths, scores, marker="o", markersize=4, label=row)
    axes.set(xlabel="steps at inference, $L'_{ms}$", ylabel=f"mIoU on {split}")
    _count_steps(axes)
    axes.legend(frameon=False, fontsize="small")


def _count_steps(axes: Axes) -> None:
    """Put ticks at integers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
