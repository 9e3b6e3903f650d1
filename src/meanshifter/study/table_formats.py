"""A score table as Markdown, CSV, JSON and LaTeX (booktabs)."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Final

from meanshifter.documents import dump_json
from meanshifter.study.score_tables import Line, Score, ScoreTable
from meanshifter.study.scoring import METRICS

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
    """A figure in a table, or a dash where there is none."""
    return NONE if value is None or math.isnan(value) else form.format(value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(scores: ScoreTable) -> str:
    """Caption, protocol, and a table for each split."""
    parts = [f"# {scores.study}: table {scores.number}", scores.caption, scores.protocol]
    for split, lines in scores.by_split.items():
        parts.append(f"## {split}\n\n{split_table(scores, lines)}")
    return "\n\n".join(parts) + "\n"


def split_table(scores: ScoreTable, lines: Sequence[Line]) -> str:
    """The lines of one split as a Markdown table."""
    head = ["model", *_setting_heads(scores, "L_ms", "d_ms", "L'_ms"), "M parameters"]
    head += ["published"] if _has_millions(scores) else []
    head += ["seeds"]
    for metric in METRICS:
        head += [metric, "lowest to highest"]
        head += ["published, ADE20K"] if scores.has_published else []
        head += ["difference"] if _has_differences(scores) else []
    return table(head, [_cells(scores, line) for line in lines])


def as_csv(scores: ScoreTable) -> str:
    """One line per model, number of steps and split, with all digits."""
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
    """All of it."""
    return dump_json(scores.to_dict(), indent=1, ensure_ascii=False) + "\n"


def latex(scores: ScoreTable) -> str:
    """A table environment for each split, for a paper that uses booktabs and graphicx."""
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
    """Text for LaTeX, none of it a command."""
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
    """Figures to four digits, and nothing for what is not there."""
    if isinstance(value, float):
        return "" if math.isnan(value) else round(value, 4)
    return "" if value is None else value
