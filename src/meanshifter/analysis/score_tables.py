"""The two score tables of a study with published scores: with the trained number of steps, and over L'_ms."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from statistics import median
from typing import Any, Final

from meanshifter.analysis.findings import Findings, Published, PublishedDepth
from meanshifter.analysis.study_scores import METRICS
from meanshifter.utils.files import dump_json

SOURCE: Final = "the thesis that introduced MeanShifter (University of Crete, 2022), Table {number}, ADE20K validation"


@dataclass(frozen=True)
class Score:
    """One metric over the seeds that did not diverge, in percent; None without any."""

    median: float | None = None
    low: float | None = None
    high: float | None = None
    published: float | None = None
    difference: float | None = None
    """The median minus the published score, where both are of ADE20K."""


@dataclass(frozen=True)
class Line:
    """One line of a table."""

    model: str
    train_layers: int | None
    """L_ms; None without a block."""
    channels: int | None
    """d_ms."""
    inference_layers: int | None
    """L'_ms, in table 2."""
    split: str
    seeds: int
    """Number of seeds with scores."""
    lost: str
    """How many others diverged or are missing."""
    parameters: int | None
    published_millions: float | None
    """Published number of parameters, in millions."""
    scores: Mapping[str, Score]
    """By metric."""


@dataclass(frozen=True)
class ScoreTable:
    """A score table with its caption and protocol."""

    number: int
    study: str
    title: str
    protocol: str
    is_comparable: bool
    """Whether differences from published scores are given."""
    lines: Sequence[Line]
    data: str

    @property
    def has_published(self) -> bool:
        """Whether any of its scores was published."""
        return any(score.published is not None for line in self.lines for score in line.scores.values())

    @property
    def caption(self) -> str:
        """Title, units, and the source of the published scores."""
        parts = [f"{self.title}. Percent; medians over seeds, with the lowest and the highest."]
        if self.has_published:
            parts.append(f"Published: {SOURCE.format(number=self.number)}, ViT-Ti/16, windows of 512 pixels.")
            parts.append(
                "Difference: ours minus published."
                if self.is_comparable
                else f"No differences are given, since these scores are not on ADE20K ({self.data})."
            )
        return " ".join(parts)

    @property
    def by_split(self) -> dict[str, list[Line]]:
        """The lines of each split."""
        splits = dict.fromkeys(line.split for line in self.lines)
        return {split: [line for line in self.lines if line.split == split] for split in splits}

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        return {
            "format_version": 1,
            "study": self.study,
            "table": self.number,
            "caption": self.caption,
            "protocol": self.protocol,
            "lines": [asdict(line) for line in self.lines],
        }


def trained_table(found: Findings, protocol: str) -> ScoreTable:
    """Table 1: each row with its trained number of steps."""
    lines = [_line(found, row, split, None, found.published(row)) for split in found.splits for row in found.rows]
    return _table(found, 1, "Scores with the trained number of mean shift steps", protocol, lines)


def depth_table(found: Findings, protocol: str, rows: Sequence[str]) -> ScoreTable:
    """Table 2: these rows over the number of steps at inference, or the numbers that the plan lists."""
    rows = [row for row in rows if row in found.rows]
    scored = {depth for row in rows for facts in found.finished(row) for depth in facts["depths"]}
    depths = found.plan.depth_table.get("depths", sorted(scored))
    lines = [
        _line(found, row, split, depth, found.published_depth(row, depth))
        for split in found.splits
        for row in rows
        for depth in depths
    ]
    return _table(found, 2, "Scores over the number of mean shift steps at inference, L'_ms", protocol, lines)


def _table(found: Findings, number: int, title: str, protocol: str, lines: Sequence[Line]) -> ScoreTable:
    comparable = all(found.is_comparable(split) for split in found.splits)
    data = "" if found.data_name is None else found.data_name
    return ScoreTable(number, found.plan.name, title, protocol, comparable, lines, data)


def _line(
    found: Findings, row: str, split: str, depth: int | None, published: Published | PublishedDepth | None
) -> Line:
    layers, channels = found.block(row)
    scores = {}
    for metric in METRICS:
        values = found.own(row, split, metric) if depth is None else found.at(row, split, depth, metric)
        figure = None if published is None else float(getattr(published, metric))
        scores[metric] = _score(values, figure, found.is_comparable(split))
    finished = found.finished(row)
    return Line(
        model=row,
        train_layers=layers,
        channels=channels,
        inference_layers=depth,
        split=split,
        seeds=len(finished) if depth is None else len(found.at(row, split, depth)),
        lost=found.lost(row),
        parameters=finished[0]["parameters"] if finished else None,
        published_millions=published.millions if isinstance(published, Published) else None,
        scores=scores,
    )


def _score(values: Sequence[float], published: float | None, comparable: bool) -> Score:
    if not values:
        return Score(published=published)
    middle = median(values)
    difference = middle - published if comparable and published is not None else None
    return Score(middle, min(values), max(values), published, difference)


NONE: Final = "–"
SPECIAL: Final = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "×": r"$\times$",
    "−": "$-$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def number(value: float | None, form: str = "{:.2f}") -> str:
    """Format a number, or a dash for None and NaN."""
    return NONE if value is None or math.isnan(value) else form.format(value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(scores: ScoreTable) -> str:
    """Caption, protocol, and a table for each split."""
    head = ["model", *_setting_heads(scores, "L_ms", "d_ms", "L'_ms"), "M parameters"]
    head += ["published"] if _has_millions(scores) else []
    head += ["seeds"]
    for metric in METRICS:
        head += [metric, "lowest to highest"]
        head += ["published, ADE20K"] if scores.has_published else []
        head += ["difference"] if _has_differences(scores) else []
    parts = [f"# {scores.study}: table {scores.number}", scores.caption, scores.protocol]
    for split, lines in scores.by_split.items():
        parts.append(f"## {split}\n\n{table(head, [_cells(scores, line) for line in lines])}")
    return "\n\n".join(parts) + "\n"


def as_csv(scores: ScoreTable) -> str:
    """A line for each model, number of steps and split, with four decimals."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["model", "train_layers", "channels", *(["inference_layers"] if scores.number == 2 else []), "split"]
    head += ["seeds", "lost", "parameters", "published_millions"]
    fields = list(Score.__dataclass_fields__)
    writer.writerow([*head, *(f"{metric}_{field}" for metric in METRICS for field in fields)])
    for line in scores.lines:
        figures = [getattr(line.scores[metric], field) for metric in METRICS for field in fields]
        writer.writerow([*(_plain(getattr(line, name)) for name in head), *map(_plain, figures)])
    return text.getvalue()


def as_json(scores: ScoreTable) -> str:
    """The complete table."""
    return dump_json(scores.to_dict(), indent=1, ensure_ascii=False) + "\n"


def latex(scores: ScoreTable) -> str:
    """A table environment for each split; needs booktabs and graphicx."""
    parts = ["% needs \\usepackage{booktabs,graphicx}"]
    parts += [_latex_split(scores, split, lines) for split, lines in scores.by_split.items()]
    return "\n\n".join(parts) + "\n"


FORMATS: Final[dict[str, Callable[[ScoreTable], str]]] = {
    "md": markdown,
    "csv": as_csv,
    "json": as_json,
    "tex": latex,
}


def _latex_split(scores: ScoreTable, split: str, lines: Sequence[Line]) -> str:
    settings = ["Model", *_setting_heads(scores, "$L_{ms}$", "$d_{ms}$", "$L'_{ms}$"), "M par."]
    settings += ["publ."] if _has_millions(scores) else []
    settings += ["seeds"]
    single = ["median", "spread", *(["publ."] if scores.has_published else [])]
    single += ["diff."] if _has_differences(scores) else []
    over = [f"\\multicolumn{{{len(single)}}}{{c}}{{{metric}}}" for metric in METRICS]
    firsts = [len(settings) + 1 + n * len(single) for n in range(len(METRICS))]
    rules = "".join(f"\\cmidrule(lr){{{first}-{first + len(single) - 1}}}" for first in firsts)
    blocks = [
        "\n".join(_latex_row(map(escape, _cells(scores, line))) for line in group)
        for _, group in groupby(lines, lambda line: (line.train_layers, line.channels if scores.number == 2 else None))
    ]
    caption = escape(f"{scores.caption} Split: {split}. {scores.protocol}")
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{caption}}}",
            f"\\label{{tab:{_label(scores.study)}-{scores.number}-{_label(split)}}}",
            r"\resizebox{\linewidth}{!}{%",
            f"\\begin{{tabular}}{{l{'r' * (len(settings) - 1 + len(single) * len(METRICS))}}}",
            r"\toprule",
            _latex_row([*[""] * len(settings), *over]),
            rules,
            _latex_row([*settings, *single * len(METRICS)]),
            r"\midrule",
            "\n\\midrule\n".join(blocks),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
        ]
    )


def escape(text: str) -> str:
    """Escape text for LaTeX."""
    minus = re.sub(r"^-(?=\d)", "−", text)
    return "".join(SPECIAL.get(sign, sign) for sign in minus)


def _latex_row(cells: Sequence[str] | Iterator[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _label(text: str) -> str:
    return "".join(sign if sign.isalnum() else "-" for sign in text)


def _setting_heads(scores: ScoreTable, *names: str) -> list[str]:
    return list(names[: 2 + (scores.number == 2)])


def _cells(scores: ScoreTable, line: Line) -> list[str]:
    settings = [line.train_layers, line.channels, line.inference_layers][: 2 + (scores.number == 2)]
    cells = [line.model, *(NONE if value is None else str(value) for value in settings)]
    cells.append(number(None if line.parameters is None else line.parameters / 1e6))
    cells += [number(line.published_millions)] if _has_millions(scores) else []
    cells.append(f"{line.seeds}" + (f" ({line.lost})" if line.lost else ""))
    for metric in METRICS:
        score = line.scores[metric]
        spread = f"{number(score.low)} to {number(score.high)}" if line.seeds > 1 else NONE
        cells += [number(score.median), spread]
        cells += [number(score.published)] if scores.has_published else []
        cells += [number(score.difference, "{:+.2f}")] if _has_differences(scores) else []
    return cells


def _has_millions(scores: ScoreTable) -> bool:
    return any(line.published_millions is not None for line in scores.lines)


def _has_differences(scores: ScoreTable) -> bool:
    return scores.has_published and scores.is_comparable


def _plain(value: object) -> object:
    """Round numbers to four decimals; None and NaN become empty."""
    if isinstance(value, float):
        return "" if math.isnan(value) else round(value, 4)
    return "" if value is None else value
