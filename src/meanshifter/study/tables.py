"""What a study found, as Markdown, CSV, JSON and plots."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from meanshifter.documents import dump_json
from meanshifter.files import write_text
from meanshifter.study.findings import Findings
from meanshifter.study.score_tables import depth_table, trained_table
from meanshifter.study.scoring import METRICS
from meanshifter.study.setup import Table, depth_rows
from meanshifter.study.table_formats import FORMATS, number, table

DIAGNOSTICS = {
    "neighbors": "effective neighbours",
    "shift": "shift / spread before it",
    "variance": "variance / that at the start",
    "relative_spread": "spread / norm",
    "rank": "effective rank",
    "modes": "modes",
    "separation": "between / within classes",
    "boundary_3": "mIoU ≤ 3 px from a boundary",
    "boundary_9": "mIoU ≤ 9 px",
}


def write_tables(
    found: Findings, folder: Path, tables: Sequence[Table] = (1, 2), made: Mapping[str, str] | None = None
) -> None:
    """Write everything that a study found, and plots where matplotlib is there.

    `table.md`; `table.csv`, one line per score; `study.json`; and of `tables` `table_1` (with the trained number of
    steps) and `table_2` (over L'_ms, where a model has steps), each as .md, .csv, .json and .tex.

    Args:
        found: the finished trainings.
        folder: of the study.
        tables: which of the two.
        made: how the study was made, for `study.json`.
    """
    write_text(folder / "table.md", markdown(found))
    write_text(folder / "table.csv", _csv(found))
    write_text(folder / "study.json", dump_json(_document(found, made), indent=1) + "\n")
    named = depth_rows(found.plan, list(found.cells.values()))
    every = {1: trained_table(found, protocol(found)), 2: depth_table(found, protocol(found), named)}
    for which, scores in every.items():
        for ending, text_of in FORMATS.items() if which in tables and scores.lines else ():
            write_text(folder / f"table_{which}.{ending}", text_of(scores))
    try:
        from meanshifter.study.plots import write_plots
    except ImportError:
        return
    write_plots(found, folder)


def markdown(found: Findings) -> str:
    """All tables, with the protocol above them."""
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
    """What all trainings were trained and are scored with, in a sentence."""
    facts = next((facts for facts in found.facts.values() if "protocol" in facts), None)
    if facts is None:
        return "No training is finished."
    config = next(iter(found.cells.values())).config
    images = ", ".join(f"{count} images of {split}" for split, count in facts["images"].items())
    kept = {
        key: value for key, value in facts["protocol"].items() if key != "weights" and (key, value) != ("tool", None)
    }
    read = ", ".join(f"{key} {'none' if value is None else value}" for key, value in kept.items())
    return (
        f"{config.data.name}; recipe {found.plan.recipe}, {config.steps} steps of {config.batch_size} crops of "
        f"{config.augment.crop[0]}×{config.augment.crop[1]}; {images}; last weights; {read}."
    )


def _score_table(found: Findings, split: str) -> str:
    published = {row: found.as_published(row) for row in found.rows}
    costs = {row: found.multiply_adds(row) for row in {*found.rows, found.plan.base}}
    head = [
        "",
        "M parameters",
        "× multiply-adds",
        "seeds",
        "aAcc, median",
        "mAcc, median",
        "mIoU, median",
        "lowest to highest",
    ]
    head += [f"less {found.plan.base} [95 %, seeds]", "[95 %, images]", "≤ 3 px", "≤ 9 px"]
    head += ["published, ADE20K", "its M parameters", "ours at that setting"]
    rows = []
    for row in found.rows:
        scores, lost = found.own(row, split), found.lost(row)
        count = f"{len(scores)}" + (f" ({lost})" if lost else "")
        if not scores:
            rows.append([row, "–", "–", count, *["–"] * 8, *published[row]])
            continue
        millions = f"{found.whole(row)[0]['parameters'] / 1e6:.2f}"
        spread = f"{min(scores):.2f} to {max(scores):.2f}"
        pair = found.difference(row, split)
        seeds, images = ("–", "–") if pair is None else (str(pair[0]), f"[{pair[1].low:+.2f}, {pair[1].high:+.2f}]")
        others = [f"{median(found.own(row, split, metric)):.2f}" for metric in ("aAcc", "mAcc")]
        near = [number(found.boundary(row, split, name)) for name in ("boundary_3", "boundary_9")]
        score = [*others, f"{median(scores):.2f}", spread, seeds, images, *near]
        cost = _ratio(costs[row], costs[found.plan.base])
        rows.append([row, millions, cost, count, *score, *published[row]])
    return table(head, rows)


def _pairs(found: Findings, split: str) -> str:
    rows = []
    for row, base in found.plan.pairs:
        pair = found.difference(row, split, base) if {row, base} <= set(found.rows) else None
        cells = ("–", "–") if pair is None else (str(pair[0]), f"[{pair[1].low:+.2f}, {pair[1].high:+.2f}]")
        rows.append([f"{row}, less {base}", *cells])
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


def _ratio(value: int | None, base: int | None) -> str:
    return "–" if value is None or base is None else f"{value / base:.3f}"


def _scores(found: Findings) -> Iterator[list[Any]]:
    for (row, seed), facts in found.facts.items():
        for split in facts.get("images", ()):
            for place, depth in enumerate(facts["depths"]):
                scores = [round(facts[metric][split][place], 4) for metric in METRICS]
                yield [row, seed, split, depth, int(depth == facts["trained_depth"]), *scores]


def _csv(found: Findings) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "seed", "split", "depth", "is_trained_depth", *METRICS])
    writer.writerows(_scores(found))
    return text.getvalue()


def _document(found: Findings, made: Mapping[str, str] | None) -> dict[str, Any]:
    trainings = [{k: v for k, v in facts.items() if k != "seconds"} for facts in found.facts.values()]
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
    """NaN and infinity as null, which JSON knows."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
