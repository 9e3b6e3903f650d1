"""What a study trains and scores, as its YAML file says it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from meanshifter.documents import LARGEST_YAML, parse_yaml, read_text
from meanshifter.errors import InputError
from meanshifter.model.presets import parse_preset
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
    row_seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Row → its own seeds, in place of `seeds`."""
    depths: tuple[int, ...] = ()
    """Numbers of mean shift steps to read each model out with, beside its own."""
    splits: tuple[str, ...] | None = None
    """What is scored: splits of the data set, or "held_out" for the training images that data.hold_out names; None: the
    recipe's validation split."""
    depth_table: Mapping[str, list[Any]] = field(default_factory=dict)
    """What the table over L'_ms has, where that is not all: `rows`, names or patterns, and `depths`."""
    baseline: str | None = None
    """The row that others are compared with; None: the first."""
    pairs: tuple[tuple[str, str], ...] = ()
    """More comparisons: the first row of each less the second."""

    def __post_init__(self) -> None:
        rules = [
            ("rows", self.rows, bool(self.all_rows), "at least one row, or a grid"),
            ("seeds", self.seeds, len(set(self.seeds)) == len(self.seeds) > 0, "one or more different seeds"),
            ("row_seeds", self.row_seeds, self._row_seeds_are_seeds(), "rows, each with one or more different seeds"),
            ("depths", self.depths, min(self.depths, default=0) >= 0, "whole numbers from 0 on"),
            ("splits", self.splits, self.splits is None or len(self.splits) > 0, "at least one split"),
            ("depth_table", self.depth_table, self._depth_table_is_one(), "rows, depths (whole numbers) or both"),
            ("pairs", self.pairs, self._pairs_are_rows(), "pairs of names of rows"),
            ("baseline", self.baseline, self.baseline in (None, *self.all_rows), "the name of a row"),
        ]
        wrong = [f"{name}: {value!r} is not {rule}" for name, value, right, rule in rules if not right]
        if wrong:
            raise InputError(f"{self.name}: {'; '.join(wrong)}")

    def _row_seeds_are_seeds(self) -> bool:
        right = all(len(set(seeds)) == len(seeds) > 0 for seeds in self.row_seeds.values())
        return right and set(self.row_seeds) <= set(self.all_rows)

    def _depth_table_is_one(self) -> bool:
        known, depths = set(self.depth_table) <= {"rows", "depths"}, self.depth_table.get("depths", [])
        return known and all(isinstance(depth, int) and depth >= 0 for depth in depths)

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

    def seeds_of(self, row: str) -> tuple[int, ...]:
        """The seeds that a row is trained with."""
        return self.row_seeds.get(row, self.seeds)

    def find_rows(self, wanted: Sequence[str]) -> list[str]:
        """The rows that these names and patterns, such as "Segmenter*", stand for, in the order of the plan.

        Raises:
            InputError: a name or pattern of no row, with the nearest one.
        """
        rows, found = list(self.all_rows), set()
        for name in wanted:
            matching = {name} & set(rows) or {row for row in rows if fnmatchcase(row, name)}
            if not matching:
                near = get_close_matches(name, rows, n=1, cutoff=0.4)
                hint = f"did you mean {near[0]!r}?" if near else f"rows are {', '.join(map(repr, rows))}"
                raise InputError(f"rows: {name!r} is no row of {self.name}; {hint}")
            found |= matching
        return [row for row in rows if row in found]

    @property
    def base(self) -> str:
        """The row that others are compared with."""
        return next(iter(self.all_rows)) if self.baseline is None else self.baseline

    def cells(self, folder: Path, fields: list[str]) -> list[Cell]:
        """All trainings, seed by seed, so that every row has a figure early; `fields` come from the command line.

        Raises:
            InputError: a row with an unknown field or value, a seed among `fields`, or two rows that are one training.
        """
        if any(word == "--seed" or word.startswith("--seed=") for word in fields):
            raise InputError("--seed: a study trains its rows once for each of several seeds; name them with --seeds")
        every = sorted({seed for row in self.all_rows for seed in self.seeds_of(row)}, key=self._turn)
        configs = {row: self._config(row, fields) for row in self.all_rows}
        cells = []
        for seed, (row, config) in itertools.product(every, configs.items()):
            if seed in self.seeds_of(row):
                place = folder / "runs" / slug(row) / f"seed{seed}"
                config = replace(config, seed=seed, out=str(place / "run"))
                config.check()
                cells.append(Cell(row, seed, place, config))
        places = [cell.folder for cell in cells]
        if len(set(places)) < len(places):
            raise InputError(f"{self.name}: rows need names that differ in more than case and signs")
        _refuse_twins(self.name, cells)
        return cells

    def _config(self, row: str, fields: list[str]) -> TrainConfig:
        words = [word for item in {**self.fields, **self.all_rows[row]}.items() for word in _words(*item)]
        try:
            return parse_recipe(self.recipe, [*words, *fields])
        except InputError as error:
            raise InputError(f"{self.name}, row {row!r}: {error}") from error

    def _turn(self, seed: int) -> tuple[int, int]:
        """Seeds in the order in which they are named first."""
        orders = [self.seeds_of(row) for row in self.all_rows]
        return min((order.index(seed), number) for number, order in enumerate(orders) if seed in order)


def has_block(config: TrainConfig) -> bool:
    """Whether the recipe's model has mean shift steps; one to start from is taken to have some."""
    model = config.model
    given = model.start is not None or model.mean_shift is not None or model.pixel_shift is not None
    return given or parse_preset(model.preset)[0] != "segmenter"


def _refuse_twins(name: str, cells: list[Cell]) -> None:
    """A row that sets nothing must not get what another row sets from the recipe."""
    seen: list[Cell] = []
    for cell in cells:
        twin = next(
            (o for o in seen if o.seed == cell.seed and replace(o.config, out=cell.config.out) == cell.config), None
        )
        if twin is not None:
            raise InputError(
                f"{name}: rows {twin.row!r} and {cell.row!r} are the same training; use a recipe that sets nothing of "
                "what the rows differ in"
            )
        seen.append(cell)


def slug(name: str) -> str:
    """A row's name as a folder's."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "row"


def _words(name: str, value: Any) -> list[str]:
    return [f"--{name}", yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()]


def study_names() -> list[str]:
    """The studies that come with the package."""
    folder = resources.files("meanshifter") / "studies"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_plan(study: str, recipe: str | None = None) -> Plan:
    """The plan of a study's name or YAML file, with the recipe that it names, or another one.

    Raises:
        InputError: no such study, no YAML, or an unknown field.
    """
    name, text = _find(study)
    values = parse_yaml(text, study)
    if not isinstance(values, Mapping):
        raise InputError(f"{study}: holds {type(values).__name__}; a study is a mapping of fields")
    values = {"rows": {}, **values} | ({} if recipe is None else {"recipe": recipe})
    if (version := values.pop("format_version", FORMAT_VERSION)) != FORMAT_VERSION:
        raise InputError(f"{study}: format_version {version}; this version of meanshifter reads {FORMAT_VERSION}")
    known = [entry for entry in Plan.__dataclass_fields__ if entry != "name"]
    for key in values:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            raise InputError(f"{study}: unknown field {key!r}; {f'did you mean {near[0]!r}?' if near else known}")
    if "recipe" not in values and recipe is None:
        raise InputError(f"{study}: no recipe; name one of `meanshifter train --list`, or a file")
    try:
        rows = {str(row): dict(own or {}) for row, own in values.pop("rows").items()}
        values["pairs"] = tuple(tuple(pair) for pair in values.get("pairs", ()))
        values |= {key: tuple(values[key]) for key in ("seeds", "depths", "splits") if values.get(key) is not None}
        values["row_seeds"] = {row: tuple(seeds) for row, seeds in values.get("row_seeds", {}).items()}
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
