"""The two score tables of a study beside what was published: with the trained number of steps, and over L'_ms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from meanshifter.study.findings import Findings
from meanshifter.study.published import Published, PublishedDepth
from meanshifter.study.scoring import METRICS

SOURCE: Final = "the thesis that introduced MeanShifter (University of Crete, 2022), Table {number}, ADE20K validation"


@dataclass(frozen=True)
class Score:
    """One metric over the seeds, in percent; None without a seed that did not diverge."""

    median: float | None = None
    low: float | None = None
    high: float | None = None
    published: float | None = None
    difference: float | None = None
    """The median less the published figure, where both are of ADE20K."""


@dataclass(frozen=True)
class Line:
    """One line of a table."""

    model: str
    train_layers: int | None
    """L_ms; None without a block."""
    channels: int | None
    """d_ms."""
    inference_layers: int | None
    """L'_ms, in the table over it."""
    split: str
    seeds: int
    """That the scores are of."""
    lost: str
    """How many more diverged or are missing."""
    parameters: int | None
    published_millions: float | None
    """Published parameters."""
    scores: Mapping[str, Score]
    """By metric."""


@dataclass(frozen=True)
class ScoreTable:
    """Lines with what has to be said above them."""

    number: int
    study: str
    title: str
    protocol: str
    is_comparable: bool
    """Whether differences from published figures are given."""
    lines: Sequence[Line]
    data: str

    @property
    def has_published(self) -> bool:
        """Whether any figure of it was published."""
        return any(score.published is not None for line in self.lines for score in line.scores.values())

    @property
    def caption(self) -> str:
        """Title, what the figures are, and where the published ones come from."""
        parts = [f"{self.title}. Percent; medians over seeds, with the lowest and the highest."]
        if self.has_published:
            parts.append(f"Published: {SOURCE.format(number=self.number)}, ViT-Ti/16, windows of 512 pixels.")
            parts.append(
                "Difference: ours less published."
                if self.is_comparable
                else f"No difference from it is given, since these scores are not ADE20K's ({self.data})."
            )
        return " ".join(parts)

    @property
    def by_split(self) -> dict[str, list[Line]]:
        """The lines of each split."""
        return {split: [line for line in self.lines if line.split == split] for split in dict.fromkeys(self._splits)}

    @property
    def _splits(self) -> Iterator[str]:
        return (line.split for line in self.lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        head = {"format_version": 1, "study": self.study, "table": self.number}
        told = {"caption": self.caption, "protocol": self.protocol}
        lines = [
            {**vars(line), "scores": {name: vars(score) for name, score in line.scores.items()}} for line in self.lines
        ]
        return {**head, **told, "lines": lines}


def trained_table(found: Findings, protocol: str) -> ScoreTable:
    """Table 1: each row with its trained number of steps."""
    lines = [_line(found, row, split, None, found.published(row)) for split in found.splits for row in found.rows]
    return _table(found, 1, "Scores with the trained number of mean shift steps", protocol, lines)


def depth_table(found: Findings, protocol: str, rows: Sequence[str]) -> ScoreTable:
    """Table 2: these rows over the number of steps at inference, as far as the plan asks for it."""
    rows = [row for row in rows if row in found.rows]
    read_out = {depth for row in rows for facts in found.whole(row) for depth in facts["depths"]}
    depths = found.plan.depth_table.get("depths", sorted(read_out))
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
    whole = found.whole(row)
    return Line(
        model=row,
        train_layers=layers,
        channels=channels,
        inference_layers=depth,
        split=split,
        seeds=len(whole) if depth is None else len(found.at(row, split, depth)),
        lost=found.lost(row),
        parameters=whole[0]["parameters"] if whole else None,
        published_millions=published.millions if isinstance(published, Published) else None,
        scores=scores,
    )


def _score(values: Sequence[float], published: float | None, comparable: bool) -> Score:
    if not values:
        return Score(published=published)
    middle = median(values)
    difference = middle - published if comparable and published is not None else None
    return Score(middle, min(values), max(values), published, difference)
