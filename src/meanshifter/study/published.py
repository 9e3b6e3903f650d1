"""The figures published for MeanShifter, as facts to compare with; the files that hold them name their source."""

from __future__ import annotations

import csv
from importlib import resources
from typing import NamedTuple


class Published(NamedTuple):
    """One row of Table 1; `layers` and `channels` are None for Segmenter-Ti/16. Where `runs` is 5, medians of five."""

    layers: int | None
    channels: int | None
    runs: int
    aAcc: float  # noqa: N815
    mAcc: float  # noqa: N815
    mIoU: float  # noqa: N815
    millions: float


class PublishedDepth(NamedTuple):
    """One row of Table 2: a model trained with `layers` steps and read out with `depth`."""

    layers: int
    channels: int
    depth: int
    aAcc: float  # noqa: N815
    mAcc: float  # noqa: N815
    mIoU: float  # noqa: N815


def _lines(name: str) -> list[list[str]]:
    """The lines of a table in the package, without its comments and its head."""
    text = (resources.files("meanshifter") / "studies" / name).read_text("utf-8")
    return list(csv.reader(line for line in text.splitlines() if not line.startswith("#")))[1:]


def _table_1() -> tuple[Published, ...]:
    return tuple(
        Published(int(layers) if layers else None, int(channels) if channels else None, int(runs), *map(float, scores))
        for _, layers, channels, runs, *scores in _lines("published_layers.csv")
    )


def _table_2() -> tuple[PublishedDepth, ...]:
    lines = _lines("published_depth.csv")
    return tuple(PublishedDepth(*map(int, line[:3]), *map(float, line[3:])) for line in lines)


TABLE_1 = _table_1()
TABLE_2 = _table_2()
