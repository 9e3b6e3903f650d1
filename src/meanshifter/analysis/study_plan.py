"""A study's plan, as its YAML file states it, and its setup with the choices of the command line."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from meanshifter.errors import InputError, did_you_mean
from meanshifter.model.presets import parse_preset
from meanshifter.training.config import TrainConfig
from meanshifter.training.parsing import parse_recipe
from meanshifter.utils.files import LARGEST_YAML, parse_yaml, read_text, require_file

FORMAT_VERSION = 1
PSEUDO = "pseudo"
"""Folder of the label maps of a teacher, in the folder of a training."""
Table = Literal[1, 2]


@dataclass(frozen=True)
class Cell:
    """One training of a study."""

    row: str
    """Its row of the table."""
    seed: int
    folder: Path
    """For the run and its scores."""
    config: TrainConfig
    """The recipe with all fields of the row."""
    teacher: TrainConfig | None = None
    """A training before it, whose label maps it is trained on."""
    encoder: Callable[[], Any] | None = None
    """Builds the encoder if it is a module of one's own, which a plan cannot name."""


@dataclass(frozen=True)
class Plan:
    """A study: each row is trained once per seed, and evaluated with several numbers of mean shift steps."""

    name: str
    """Also the name of its folder."""
    recipe: str
    """The recipe that all trainings are based on: a name or a file."""
    rows: Mapping[str, Mapping[str, Any]]
    """Name of a row → the fields that it sets, which override those of `fields`."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields that all trainings set."""
    grid: Mapping[str, list[Any]] = field(default_factory=dict)
    """Field → values; one more row for each combination."""
    seeds: tuple[int, ...] = (0,)
    row_seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Row → seeds, in place of `seeds`."""
    depths: tuple[int, ...] = ()
    """Numbers of mean shift steps to evaluate each model with, in addition to the trained number."""
    splits: tuple[str, ...] | None = None
    """What is scored: splits of the dataset, or "held_out" for the training images that data.val_pattern names; None:
    the recipe's validation split."""
    depth_table: Mapping[str, list[Any]] = field(default_factory=dict)
    """Limits of the table over L'_ms: `rows`, names or patterns, and `depths`."""
    baseline: str | None = None
    """The row that others are compared with; None: the first."""
    pairs: tuple[tuple[str, str], ...] = ()
    """More comparisons: the first row minus the second."""
    self_training: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Row → fields such as data.extra_min_confidence. The row is trained twice: a teacher on its data.train_share
    labels the other images, and with these fields a student has them as data.extra_train."""

    def __post_init__(self) -> None:
        rows = set(self.all_rows)

        def distinct(seeds: Sequence[int]) -> bool:
            return len(set(seeds)) == len(seeds) > 0

        row_seeds = all(map(distinct, self.row_seeds.values())) and set(self.row_seeds) <= rows
        depths = self.depth_table.get("depths", [])
        depth_table = set(self.depth_table) <= {"rows", "depths"} and all(isinstance(d, int) and d >= 0 for d in depths)
        pairs = all(len(pair) == 2 and set(pair) <= rows for pair in self.pairs)
        taught = set(self.self_training) <= rows
        rules = [
            ("rows", self.rows, bool(rows), "at least one row, or a grid"),
            ("seeds", self.seeds, distinct(self.seeds), "one or more distinct seeds"),
            ("row_seeds", self.row_seeds, row_seeds, "rows, each with one or more distinct seeds"),
            ("depths", self.depths, min(self.depths, default=0) >= 0, "integers of at least 0"),
            ("splits", self.splits, self.splits is None or len(self.splits) > 0, "at least one split"),
            ("depth_table", self.depth_table, depth_table, "rows, depths (integers of at least 0), or both"),
            ("pairs", self.pairs, pairs, "pairs of row names"),
            ("self_training", self.self_training, taught, "rows, each with the fields of its student"),
            ("baseline", self.baseline, self.baseline in (None, *rows), "the name of a row"),
        ]
        wrong = [f"{name}: {value!r}; expected {rule}" for name, value, right, rule in rules if not right]
        if wrong:
            raise InputError(f"{self.name}: {'; '.join(wrong)}")

    @property
    def all_rows(self) -> dict[str, Mapping[str, Any]]:
        """`rows`, and one for each point of `grid`, named after its values."""
        rows = dict(self.rows)
        for values in itertools.product(*self.grid.values()) if self.grid else ():
            point = dict(zip(self.grid, values, strict=True))
            rows[", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in point.items())] = point
        return rows

    def seeds_of(self, row: str) -> tuple[int, ...]:
        """The seeds that a row is trained with."""
        return self.row_seeds.get(row, self.seeds)

    def find_rows(self, wanted: Sequence[str]) -> list[str]:
        """The rows that match names and patterns such as "Segmenter*", in the order of the plan.

        Raises:
            InputError: a name or pattern that matches no row, with the closest name.
        """
        rows, found = list(self.all_rows), set()
        for name in wanted:
            matching = {name} & set(rows) or {row for row in rows if fnmatchcase(row, name)}
            if not matching:
                hint = did_you_mean(name, rows, f"rows are {', '.join(map(repr, rows))}", cutoff=0.4)
                raise InputError(f"rows: {name!r} is not a row of {self.name}; {hint}")
            found |= matching
        return [row for row in rows if row in found]

    @property
    def base(self) -> str:
        """The row that others are compared with."""
        return next(iter(self.all_rows)) if self.baseline is None else self.baseline

    def cells(self, folder: Path, fields: list[str]) -> list[Cell]:
        """All trainings, seed by seed, so that every row has a score early; `fields` come from the command line.

        Raises:
            InputError: a row with an unknown field or value, a seed among `fields`, or two rows with the same training.
        """
        if any(word == "--seed" or word.startswith("--seed=") for word in fields):
            raise InputError("--seed: a study trains its rows once for each of several seeds; choose them with --seeds")
        every = sorted({seed for row in self.all_rows for seed in self.seeds_of(row)}, key=self._turn)
        configs = {row: self._config(row, fields) for row in self.all_rows}
        cells = []
        for seed, (row, config) in itertools.product(every, configs.items()):
            if seed in self.seeds_of(row):
                place = folder / "runs" / slug(row) / f"seed{seed}"
                cells.append(self._cell(row, seed, place, config, fields))
        places = [cell.folder for cell in cells]
        if len(set(places)) < len(places):
            raise InputError(f"{self.name}: row names must differ in more than case and punctuation")
        _check_distinct(self.name, cells)
        return cells

    def _cell(self, row: str, seed: int, place: Path, config: TrainConfig, fields: list[str]) -> Cell:
        config, teacher = replace(config, seed=seed, out=str(place / "run")), None
        if row in self.self_training:
            if config.data.train_share is None:
                raise InputError(f"{self.name}, row {row!r}: data.train_share: null; self-training needs a share")
            if config.data.folds is not None:
                raise InputError(f"{self.name}, row {row!r}: data.folds: not for self-training; leave it out")
            teacher = replace(config, out=str(place / "teacher"))
            teacher.check()
            own = {"data.extra_train": [str(place / PSEUDO)], **self.self_training[row]}
            config = replace(self._config(row, fields, own), seed=seed, out=config.out)
        config.check()
        return Cell(row, seed, place, config, teacher)

    def _config(self, row: str, fields: list[str], more: Mapping[str, Any] | None = None) -> TrainConfig:
        settings = {**self.fields, **self.all_rows[row], **(more or {})}
        words = [word for item in settings.items() for word in _words(*item)]
        try:
            return parse_recipe(self.recipe, [*words, *fields])
        except InputError as error:
            raise InputError(f"{self.name}, row {row!r}: {error}") from error

    def _turn(self, seed: int) -> tuple[int, int]:
        """Sort key for seeds in the order in which they are first named."""
        orders = [self.seeds_of(row) for row in self.all_rows]
        return min((order.index(seed), number) for number, order in enumerate(orders) if seed in order)


def has_block(config: TrainConfig) -> bool:
    """Whether the recipe's model has mean shift steps; an initial checkpoint is assumed to have some."""
    model = config.model
    given = model.init_from is not None or model.mean_shift is not None or model.pixel_shift is not None
    return given or parse_preset(model.preset).family != "segmenter"


def _check_distinct(name: str, cells: list[Cell]) -> None:
    """Refuse rows with equal trainings, as when the recipe sets for all rows what one of them sets."""
    seen: list[Cell] = []
    for cell in cells:
        twin = next(
            (o for o in seen if o.seed == cell.seed and replace(o.config, out=cell.config.out) == cell.config), None
        )
        if twin is not None:
            raise InputError(
                f"{name}: rows {twin.row!r} and {cell.row!r} are the same training; use a recipe that does not set the "
                "fields that the rows differ in"
            )
        seen.append(cell)


def slug(name: str) -> str:
    """Turn a row's name into a folder name."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "row"


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, str):  # as it is: YAML would quote patterns such as *_left, and fields of text keep quotes
        return [f"--{name}", value]
    return [f"--{name}", yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()]


def study_names() -> list[str]:
    """The studies in the package."""
    folder = resources.files("meanshifter") / "studies"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def study_summary(name: str) -> str:
    """What a study in the package is about: the first sentence of its comment, below the command."""
    text = (resources.files("meanshifter") / "studies" / f"{name}.yaml").read_text("utf-8")
    _, *comment = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return re.split(r"(?<=\.) |; |: ", " ".join(line.removeprefix("# ") for line in comment))[0].rstrip(".")


def load_plan(study: str, recipe: str | None = None) -> Plan:
    """Load the plan of a study by name or YAML file, with its own recipe or another one.

    Raises:
        InputError: an unknown study, invalid YAML, or an unknown field.
    """
    name, text = _find(study)
    values = parse_yaml(text, study)
    if not isinstance(values, Mapping):
        raise InputError(f"{study}: holds {type(values).__name__}; expected a mapping of fields")
    values = {"rows": {}, **values} | ({} if recipe is None else {"recipe": recipe})
    if (version := values.pop("format_version", FORMAT_VERSION)) != FORMAT_VERSION:
        raise InputError(f"{study}: format_version {version}; this version of meanshifter reads {FORMAT_VERSION}")
    known = [entry for entry in Plan.__dataclass_fields__ if entry != "name"]
    for key in values:
        if key not in known:
            hint = did_you_mean(str(key), known, f"fields are {', '.join(known)}")
            raise InputError(f"{study}: unknown field {key!r}; {hint}")
    if "recipe" not in values and recipe is None:
        raise InputError(f"{study}: no recipe; set `recipe` to a file or one of `meanshifter train --list`")
    try:
        rows = {str(row): dict(own or {}) for row, own in values.pop("rows").items()}
        values["pairs"] = tuple(tuple(pair) for pair in values.get("pairs", ()))
        values |= {key: tuple(values[key]) for key in ("seeds", "depths", "splits") if values.get(key) is not None}
        values["self_training"] = {row: dict(own or {}) for row, own in values.get("self_training", {}).items()}
        values["row_seeds"] = {row: tuple(seeds) for row, seeds in values.get("row_seeds", {}).items()}
        return Plan(name=name, rows=rows, **values)
    except InputError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{study}: a field has a wrong type ({error}); `meanshifter study --list` names examples"
        ) from error


def _find(study: str) -> tuple[str, str]:
    path = Path(study)
    if study in study_names():
        return study, (resources.files("meanshifter") / "studies" / f"{study}.yaml").read_text("utf-8")
    if path.is_file():
        return path.stem, read_text(path, LARGEST_YAML)
    hint = did_you_mean(study, study_names(), f"studies are {', '.join(study_names())}")
    raise InputError(f"{study}: no study or YAML file of that name; {hint}")


@dataclass(frozen=True)
class Setup:
    """What a study does, after all choices."""

    plan: Plan
    """With `splits` filled in."""
    folder: Path
    cells: list[Cell]
    """All trainings of the plan."""
    chosen: list[Cell]
    """The trainings of this call."""
    depths: tuple[int, ...]
    """Numbers of mean shift steps to evaluate each model with, in addition to the trained number."""
    jobs: int
    tables: tuple[Table, ...]
    """Which of the two score tables are written."""
    command: str
    """The equivalent command line."""

    @property
    def splits(self) -> tuple[str, ...]:
        """What is scored."""
        return () if self.plan.splits is None else self.plan.splits


def set_up(
    study: str,
    out: str | Path | None = None,
    *,
    fields: Sequence[str] = (),
    recipe: str | None = None,
    seeds: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    splits: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    only_table: Table | None = None,
    jobs: int = 1,
) -> Setup:
    """Set up a study, with the arguments and errors of `run_study`; datasets are opened, and nothing is written."""
    if jobs < 1:
        raise InputError(f"jobs: {jobs}; it must be at least 1")
    if only_table not in (None, 1, 2):
        raise InputError(f"only_table: {only_table}; expected 1 (scores), 2 (over L'_ms), or None for both")
    plan = load_plan(study, recipe)
    changes: dict[str, Any] = {} if seeds is None else {"seeds": tuple(seeds), "row_seeds": {}}
    changes |= {} if depths is None else {"depths": tuple(dict.fromkeys(depths))}
    changes |= {} if splits is None else {"splits": tuple(dict.fromkeys(splits))}
    plan = replace(plan, **changes)
    folder = Path(f"runs/studies/{plan.name}" if out is None else out)
    wanted = plan.find_rows(["*"] if rows is None else rows)
    cells = plan.cells(folder, list(fields))
    if plan.splits is None:
        if (scored := cells[0].config.data.val_split) is None:
            raise InputError("data.val_split: null; name the splits that the study scores with --splits")
        plan = replace(plan, splits=(scored,))
    chosen = [cell for cell in cells if cell.row in wanted]
    named = depth_rows(plan, cells)  # also for table 1, so that a wrong pattern is reported before the trainings
    if only_table == 2:
        chosen = [cell for cell in chosen if cell.row in named]
        if not chosen:
            raise InputError(f"only_table: 2, but none of the chosen rows of {plan.name} has mean shift steps")
    options: dict[str, Any] = {"recipe": recipe, "seeds": seeds, "depths": depths, "splits": splits, "rows": rows}
    options |= {"only-table": only_table, "jobs": jobs}
    words = ["meanshifter", "study", study]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list | tuple) else [value])]
    job = Setup(
        plan=plan,
        folder=folder,
        cells=cells,
        chosen=chosen,
        depths=() if only_table == 1 else plan.depths,
        jobs=jobs,
        tables=(1, 2) if only_table is None else (only_table,),
        command=shlex.join([*words, *fields]),
    )
    _check_files(job)
    return job


def depth_rows(plan: Plan, cells: Sequence[Cell]) -> list[str]:
    """The rows of the table over L'_ms: those that the plan names for it, or else all with mean shift steps."""
    named = plan.find_rows(plan.depth_table.get("rows", ["*"]))
    stepping = {cell.row for cell in cells if has_block(cell.config)}
    return [row for row in named if row in stepping]


def _check_files(job: Setup) -> None:
    """Open all datasets and look for weight files, so that what is missing is reported before the trainings."""
    from meanshifter.training.setup import open_split

    seen: list[dict[str, Any]] = []
    for cell in job.chosen:
        if (facts := asdict(cell.config.data)) not in seen:
            seen.append(facts)
            data = cell.config.data
            own = [split for split in (data.train_split, data.val_split) if split is not None]
            for split in dict.fromkeys([*own, *job.splits]):
                try:
                    open_split(data, split)
                except InputError as error:
                    hint = "; set it with --data.root DIR" if cell.config.data.root is None else ""
                    raise InputError(f"{job.plan.name}: {error}{hint}") from error
        weights = cell.config.model.encoder_weights
        if weights not in (None, "timm"):
            require_file(str(weights))
