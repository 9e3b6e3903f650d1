"""What a study trains and scores, as its YAML file says it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from meanshifter.documents import LARGEST_YAML, parse_yaml, read_text
from meanshifter.errors import InputError
from meanshifter.training.parsing import parse_recipe
from meanshifter.training.recipe import TrainConfig

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Cell:
    """One training of a study."""

    row: str
    """The row of the table that it belongs to."""
    seed: int
    """Seed of the training."""
    folder: Path
    """Where it is trained, and its scores are kept."""
    config: TrainConfig
    """The recipe, filled in."""


@dataclass(frozen=True)
class Plan:
    """A study: each row is trained once for each seed, and read out at several depths."""

    name: str
    """After which its folder is called."""
    recipe: str
    """The recipe that all trainings start from: a name or a file."""
    rows: Mapping[str, Mapping[str, Any]]
    """Name of a row → the fields that it sets, over those of `fields`."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields that all trainings set."""
    grid: Mapping[str, list[Any]] = field(default_factory=dict)
    """Field → values; one more row for each combination."""
    seeds: tuple[int, ...] = (0,)
    """One training for each."""
    depths: tuple[int, ...] = ()
    """Numbers of mean shift steps to read each model out with, beside its own."""
    splits: tuple[str, ...] = ("val",)
    """What is scored: splits of the data set, or "held_out" for the training images that data.hold_out names."""
    baseline: str | None = None
    """The row that others are compared with; None: the first."""
    pairs: tuple[tuple[str, str], ...] = ()
    """More comparisons: the first row of each less the second."""

    def __post_init__(self) -> None:
        rules = [
            ("rows", self.rows, bool(self.all_rows), "at least one row, or a grid"),
            ("seeds", self.seeds, len(set(self.seeds)) == len(self.seeds) > 0, "one or more different seeds"),
            ("depths", self.depths, min(self.depths, default=0) >= 0, "whole numbers from 0 on"),
            ("splits", self.splits, len(self.splits) > 0, "at least one split"),
            ("pairs", self.pairs, self._pairs_are_rows(), "pairs of names of rows"),
            ("baseline", self.baseline, self.baseline in (None, *self.all_rows), "the name of a row"),
        ]
        wrong = [f"{name}: {value!r} is not {rule}" for name, value, right, rule in rules if not right]
        if wrong:
            raise InputError(f"{self.name}: {'; '.join(wrong)}")

    def _pairs_are_rows(self) -> bool:
        return all(len(pair) == 2 and set(pair) <= set(self.all_rows) for pair in self.pairs)

    @property
    def all_rows(self) -> dict[str, Mapping[str, Any]]:
        """`rows`, and one for each point of `grid`, called after its values."""
        rows = dict(self.rows)
        for values in itertools.product(*self.grid.values()) if self.grid else ():
            point = dict(zip(self.grid, values, strict=True))
            rows[", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in point.items())] = point
        return rows

    @property
    def base(self) -> str:
        """The row that others are compared with."""
        return next(iter(self.all_rows)) if self.baseline is None else self.baseline

    def cells(self, folder: Path, fields: list[str]) -> list[Cell]:
        """All trainings, seed by seed, so that every row has a figure early; `fields` come from the command line.

        Raises:
            InputError: a row with an unknown field or value.
        """
        cells = []
        for seed, (row, own) in itertools.product(self.seeds, self.all_rows.items()):
            place = folder / "runs" / slug(row) / f"seed{seed}"
            words = [word for item in {**self.fields, **own}.items() for word in _words(*item)]
            given = [*words, *fields, "--seed", str(seed), "--out", str(place / "run")]
            try:
                cells.append(Cell(row, seed, place, parse_recipe(self.recipe, given)))
            except InputError as error:
                raise InputError(f"{self.name}, row {row!r}: {error}") from error
        places = [cell.folder for cell in cells]
        if len(set(places)) < len(places):
            raise InputError(f"{self.name}: rows need names that differ in more than case and signs")
        return cells


def slug(name: str) -> str:
    """A row's name as a folder's."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "row"


def _words(name: str, value: Any) -> list[str]:
    return [f"--{name}", yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()]


def study_names() -> list[str]:
    """The studies that come with the package."""
    folder = resources.files("meanshifter") / "studies"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_plan(study: str) -> Plan:
    """The plan of a study's name or YAML file.

    Raises:
        InputError: no such study, no YAML, or an unknown field.
    """
    name, text = _find(study)
    values = parse_yaml(text, study)
    if not isinstance(values, Mapping):
        raise InputError(f"{study}: holds {type(values).__name__}; a study is a mapping of fields")
    values = {"rows": {}, **values}
    if (version := values.pop("format_version", FORMAT_VERSION)) != FORMAT_VERSION:
        raise InputError(f"{study}: format_version {version}; this version of meanshifter reads {FORMAT_VERSION}")
    known = [entry for entry in Plan.__dataclass_fields__ if entry != "name"]
    for key in values:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            raise InputError(f"{study}: unknown field {key!r}; {f'did you mean {near[0]!r}?' if near else known}")
    if "recipe" not in values:
        raise InputError(f"{study}: no recipe; name one of `meanshifter train --list`, or a file")
    try:
        rows = {str(row): dict(own or {}) for row, own in values.pop("rows").items()}
        values["pairs"] = tuple(tuple(pair) for pair in values.get("pairs", ()))
        values |= {key: tuple(values[key]) for key in ("seeds", "depths", "splits") if key in values}
        return Plan(name=name, rows=rows, **values)
    except InputError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{study}: a field is of another type ({error}); `meanshifter study --list` has examples"
        ) from error


def _find(study: str) -> tuple[str, str]:
    path = Path(study)
    if study in study_names():
        return study, (resources.files("meanshifter") / "studies" / f"{study}.yaml").read_text("utf-8")
    if path.is_file():
        return path.stem, read_text(path, LARGEST_YAML)
    near = get_close_matches(study, study_names(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"studies are {', '.join(study_names())}"
    raise InputError(f"{study}: no study or YAML file of that name; {hint}")
