"""What a study found, as Markdown, CSV, JSON and plots."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from meanshifter.documents import dump_json
from meanshifter.files import write_text
from meanshifter.model.config import MeanShiftConfig
from meanshifter.model.cost import size_of
from meanshifter.model.presets import parse_preset
from meanshifter.study.plan import Cell, Plan
from meanshifter.study.published import TABLE_1, Published
from meanshifter.study.runner import confusions_of, scores_of
from meanshifter.study.sizes import size_of_folder
from meanshifter.study.statistics import Interval, over_images, over_seeds

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


class Findings:
    """The finished trainings of a study."""

    def __init__(self, plan: Plan, cells: Sequence[Cell]) -> None:
        self.plan, self.facts = plan, {(cell.row, cell.seed): scores_of(cell) for cell in cells}
        self.cells = {(cell.row, cell.seed): cell for cell in cells}
        self.rows = [row for row in plan.all_rows if any(key[0] == row for key in self.cells)]

    def whole(self, row: str) -> list[dict[str, Any]]:
        """The facts of the row's trainings that did not diverge, by seed."""
        return [self.facts[row, seed] for seed in self.seeds(row)]

    def seeds(self, row: str) -> list[int]:
        """The seeds whose training did not diverge."""
        return [s for s in self.plan.seeds if (row, s) in self.facts and "failure" not in self.facts[row, s]]

    def own(self, row: str, split: str) -> list[float]:
        """mIoU of each seed with the trained number of steps."""
        return [facts["mIoU"][split][facts["depths"].index(facts["trained_depth"])] for facts in self.whole(row)]

    def at(self, row: str, split: str, depth: int) -> list[float]:
        """mIoU of each seed with `depth` steps, where it was read out so."""
        return [f["mIoU"][split][f["depths"].index(depth)] for f in self.whole(row) if depth in f["depths"]]

    def multiply_adds(self, row: str) -> int | None:
        """Of one image of the size that the row's models were made for; None where no checkpoint is left."""
        for seed in self.seeds(row):
            folder = Path(str(self.cells[row, seed].config.out)) / "checkpoints" / "last"
            if (folder / "config.json").is_file():
                return size_of_folder(folder).multiply_adds
        return None

    def boundary(self, row: str, split: str, name: str) -> float | None:
        """mIoU near boundaries with the trained number of steps, mean over seeds."""
        found = [facts["boundary"][split][name] for facts in self.whole(row) if "boundary" in facts]
        return fmean(found) if found else None

    def difference(self, row: str, split: str, base: str | None = None) -> tuple[Interval, Interval] | None:
        """The row less `base` (None: the baseline): over seeds, and over images; None without common seeds."""
        base = self.plan.base if base is None else base
        seeds = [seed for seed in self.seeds(row) if seed in self.seeds(base)]
        if row == base or not seeds:
            return None
        ours, theirs = (np.stack([self._counts(name, seed, split) for seed in seeds]) for name in (row, base))
        scores = {name: dict(zip(self.seeds(name), self.own(name, split), strict=True)) for name in (row, base)}
        paired = over_seeds([scores[row][seed] - scores[base][seed] for seed in seeds])
        return paired, over_images(ours, theirs)

    def _counts(self, row: str, seed: int, split: str) -> Any:
        facts = self.facts[row, seed]
        return confusions_of(self.cells[row, seed], split)[facts["depths"].index(facts["trained_depth"])]

    def diagnostics(self, row: str) -> list[dict[str, float]]:
        """The mean over seeds, one entry for each step."""
        several = [facts["diagnostics"] for facts in self.whole(row)]
        return [
            {name: fmean(steps[n][name] for steps in several) for name in several[0][n]}
            for n in range(min(map(len, several), default=0))
        ]

    def published(self, row: str) -> Published | None:
        """The published figures of the row's block on ADE20K; None for a block that was not published."""
        model = next(cell.config.model for key, cell in self.cells.items() if key[0] == row)
        family, decoder, _ = parse_preset(model.preset)
        if model.pixel_shift is not None or decoder == "mask" or family not in ("segmenter", "meanshifter"):
            return None
        shift = MeanShiftConfig() if family == "meanshifter" and model.mean_shift is None else model.mean_shift
        layers, channels = None, None
        if shift is not None:
            layers, channels = shift.layers, 192 if shift.channels is None else shift.channels
            if shift != MeanShiftConfig(shift.layers, shift.channels):
                return None
        found = [entry for entry in TABLE_1 if (entry.layers, entry.channels) == (layers, channels)]
        return found[0] if found else None

    def as_published(self, row: str) -> tuple[str, str, str]:
        """The published mIoU and millions of parameters, and ours of that model: 150 classes at 512 × 512."""
        entry = self.published(row)
        if entry is None:
            return "–", "–", "–"
        shift = None if entry.layers is None else {"layers": entry.layers, "channels": entry.channels}
        preset = "segmenter-ti16" if shift is None else "meanshifter-ti16"
        size = size_of(preset, num_classes=150, image_size=512, mean_shift=shift)
        return f"{entry.mIoU:.2f}", f"{entry.millions:.2f}", f"{size.parameters / 1e6:.2f}"


def write_tables(found: Findings, folder: Path) -> None:
    """`table.md`, `table.csv` (one line per score), `study.json`, and plots where matplotlib is there."""
    write_text(folder / "table.md", markdown(found))
    write_text(folder / "table.csv", _csv(found))
    write_text(folder / "study.json", dump_json(_document(found), indent=1) + "\n")
    try:
        from meanshifter.study.plots import write_plots
    except ImportError:
        return
    write_plots(found, folder)


def markdown(found: Findings) -> str:
    """All tables, with the protocol above them."""
    plan = found.plan
    parts = [f"# Study: {plan.name}", _protocol(found)]
    for split in plan.splits:
        parts.append(f"## mIoU on {split}\n\n{_score_table(found, split)}")
        if len({depth for facts in found.facts.values() for depth in facts.get("depths", ())}) > 1:
            parts.append(
                f"mIoU over the number of steps at inference, L'_ms, mean over seeds:\n\n{_depths(found, split)}"
            )
        if plan.pairs:
            parts.append(f"Paired differences at the trained number of steps:\n\n{_pairs(found, split)}")
    parts.append(f"## Diagnostics of the steps, {plan.splits[0]}\n\n{_diagnostics(found)}")
    return "\n\n".join(parts) + "\n"


def _protocol(found: Findings) -> str:
    facts = next((facts for facts in found.facts.values() if "protocol" in facts), None)
    if facts is None:
        return "No training is finished."
    config = next(iter(found.cells.values())).config
    images = ", ".join(f"{count} images of {split}" for split, count in facts["images"].items())
    kept = {key: value for key, value in facts["protocol"].items() if key != "weights"}
    return (
        f"{config.data.name}; recipe {found.plan.recipe}, {config.steps} steps of {config.batch_size} crops of "
        f"{config.augment.crop[0]}×{config.augment.crop[1]}; {images}; last weights; {kept}."
    )


def _score_table(found: Findings, split: str) -> str:
    published = {row: found.as_published(row) for row in found.rows}
    costs = {row: found.multiply_adds(row) for row in {*found.rows, found.plan.base}}
    head = ["", "M parameters", "× multiply-adds", "seeds", "median", "lowest to highest"]
    head += [f"less {found.plan.base} [95 %, seeds]", "[95 %, images]", "≤ 3 px", "≤ 9 px"]
    head += ["published, ADE20K", "its M parameters", "ours at that setting"]
    rows = []
    for row in found.rows:
        scores, failed = found.own(row, split), len(found.plan.seeds) - len(found.seeds(row))
        count = f"{len(scores)}" + (f" ({failed} diverged or missing)" if failed else "")
        if not scores:
            rows.append([row, "–", "–", count, *["–"] * 6, *published[row]])
            continue
        millions = f"{found.whole(row)[0]['parameters'] / 1e6:.2f}"
        spread = f"{min(scores):.2f} to {max(scores):.2f}"
        pair = found.difference(row, split)
        seeds, images = ("–", "–") if pair is None else (str(pair[0]), f"[{pair[1].low:+.2f}, {pair[1].high:+.2f}]")
        near = [_number(found.boundary(row, split, name)) for name in ("boundary_3", "boundary_9")]
        score = [f"{median(scores):.2f}", spread, seeds, images, *near]
        cost = _ratio(costs[row], costs[found.plan.base])
        rows.append([row, millions, cost, count, *score, *published[row]])
    return _table(head, rows)


def _pairs(found: Findings, split: str) -> str:
    rows = []
    for row, base in found.plan.pairs:
        pair = found.difference(row, split, base) if {row, base} <= set(found.rows) else None
        cells = ("–", "–") if pair is None else (str(pair[0]), f"[{pair[1].low:+.2f}, {pair[1].high:+.2f}]")
        rows.append([f"{row}, less {base}", *cells])
    return _table(["", "mean [95 %, seeds]", "[95 %, images]"], rows)


def _depths(found: Findings, split: str) -> str:
    depths = sorted({depth for facts in found.facts.values() for depth in facts.get("depths", ())})
    rows = []
    for row in found.rows:
        means = [fmean(scores) if (scores := found.at(row, split, depth)) else math.nan for depth in depths]
        rows.append([row, *(_number(mean) for mean in means)])
    return _table(["", *map(str, depths)], rows)


def _diagnostics(found: Findings) -> str:
    rows = []
    for row in found.rows:
        for step, figures in enumerate(found.diagnostics(row)):
            rows.append([row, str(step), *(_number(figures.get(name), "{:.3g}") for name in DIAGNOSTICS)])
    return _table(["", "step", *DIAGNOSTICS.values()], rows)


def _number(value: float | None, form: str = "{:.2f}") -> str:
    return "–" if value is None or math.isnan(value) else form.format(value)


def _ratio(value: int | None, base: int | None) -> str:
    return "–" if value is None or base is None else f"{value / base:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _scores(found: Findings) -> Iterator[list[Any]]:
    for (row, seed), facts in found.facts.items():
        for split, scores in facts.get("mIoU", {}).items():
            for depth, score in zip(facts["depths"], scores, strict=True):
                yield [row, seed, split, depth, int(depth == facts["trained_depth"]), round(score, 4)]


def _csv(found: Findings) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "seed", "split", "depth", "is_trained_depth", "mIoU"])
    writer.writerows(_scores(found))
    return text.getvalue()


def _document(found: Findings) -> dict[str, Any]:
    trainings = [{k: v for k, v in facts.items() if k != "seconds"} for facts in found.facts.values()]
    differences = {
        row: {
            split: {"seeds": pair[0]._asdict(), "images": pair[1]._asdict()}
            for split in found.plan.splits
            if (pair := found.difference(row, split)) is not None
        }
        for row in found.rows
    }
    differences = {row: by_split for row, by_split in differences.items() if by_split}
    head = {"format_version": 1, "name": found.plan.name, "baseline": found.plan.base}
    document: dict[str, Any] = _plain({**head, "trainings": trainings, "differences": differences})
    return document


def _plain(value: Any) -> Any:
    """NaN and infinity as null, which JSON knows."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
