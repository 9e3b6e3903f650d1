"""A study from its plan to its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from meanshifter.errors import InputError
from meanshifter.files import write_text
from meanshifter.model.config import MeanShiftConfig, PixelShiftConfig
from meanshifter.study.findings import Findings
from meanshifter.study.plan import FORMAT_VERSION, Cell
from meanshifter.study.runner import run_cells
from meanshifter.study.scoring import is_finished
from meanshifter.study.setup import Table, set_up
from meanshifter.study.speed.machine import describe
from meanshifter.study.tables import write_tables
from meanshifter.training.recipe import TrainConfig

STUDY = "study.yaml"


def run_study(
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
    say: Callable[[str], None] = print,
) -> Path:
    """Train and score what a study lacks, and write its tables; returns its folder.

    Tables have all finished trainings of the plan, whether they are chosen now or were before.

    Args:
        study: name or YAML file.
        out: folder; None: runs/studies/NAME.
        fields: overrides of all trainings, as on the command line of `meanshifter train`.
        recipe: name or file, in place of the study's; None: the study's.
        seeds: of all rows; None: as the study says.
        depths: numbers of mean shift steps to read out with, beside the trained one; None: as the study says.
        splits: what is scored; None: as the study says, or the recipe's validation split.
        rows: names of rows or patterns such as "Segmenter*", to train only these; None: all.
        only_table: 1 reads models out with the trained number of steps only; 2 trains only the rows of the table over
            L'_ms; None: both tables.
        jobs: trainings at a time; the processor's cores are shared out among them.
        say: is given a line for each training that ends.

    Raises:
        InputError: a wrong plan or argument, data that are not there, or a folder of another study, before anything is
            trained.
        RunError: a training whose process ended without a result.
    """
    choices = {"recipe": recipe, "seeds": seeds, "depths": depths, "splits": splits, "rows": rows}
    job = set_up(study, out, fields=fields, only_table=only_table, jobs=jobs, **choices)  # type: ignore[arg-type]
    _claim(job.folder, job.cells)
    run_cells(job.chosen, depths=job.depths, splits=job.splits, jobs=jobs, say=say)
    finished = [cell for cell in job.cells if is_finished(cell, job.depths if cell in job.chosen else (), job.splits)]
    write_tables(Findings(job.plan, finished), job.folder, job.tables, {"command": job.command, "machine": describe()})
    return job.folder


def _claim(folder: Path, cells: Sequence[Cell]) -> None:
    """Refuse a folder in which a training of the same place was another one; note what this study trains."""
    trained = {f"{cell.row}, seed {cell.seed}": _facts(cell) for cell in cells}
    path = folder / STUDY
    if path.is_file():
        try:
            before = yaml.safe_load(path.read_text("utf-8"))["trainings"]
            changed = [key for key, facts in trained.items() if key in before and not _same(before[key], facts)]
        except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
            raise InputError(f"{path}: cannot be read as a study's; use another --out DIR") from error
        if changed:
            raise InputError(f"{folder}: {changed[0]!r} was another training there; use another --out DIR")
        trained = {**before, **trained}
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: already exists and holds no study; use another --out DIR")
    text = yaml.safe_dump({"format_version": FORMAT_VERSION, "trainings": trained}, sort_keys=False)
    write_text(path, text)


def _facts(cell: Cell) -> dict[str, object]:
    """What makes the training what it is."""
    facts = cell.config.to_dict()
    for name in ("out", "log_every", "save_every", "devices", "num_nodes"):
        del facts[name]
    return facts


def _same(before: Any, now: Any, defaults: Any = None) -> bool:
    """Whether two trainings are one; a field that the note lacks, since it is newer, counts as its default."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return bool(before == now)
    defaults = _defaults() if defaults is None else defaults
    return all(
        _same(before.get(key, defaults.get(key)), now.get(key), defaults.get(key) or {}) for key in {*before, *now}
    )


def _defaults() -> dict[str, Any]:
    defaults = TrainConfig().to_dict()
    defaults["model"] |= {"mean_shift": asdict(MeanShiftConfig()), "pixel_shift": asdict(PixelShiftConfig())}
    return defaults
