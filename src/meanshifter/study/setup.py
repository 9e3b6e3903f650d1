"""A study before it runs: its plan with what the command line chooses, its trainings, and a look at its data."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from meanshifter.errors import InputError
from meanshifter.files import require_file
from meanshifter.study.plan import Cell, Plan, has_block, load_plan
from meanshifter.study.scoring import open_split

Table = Literal[1, 2]


@dataclass(frozen=True)
class Setup:
    """What a study does, all choices made."""

    plan: Plan
    """With `splits` filled in."""
    folder: Path
    cells: list[Cell]
    """All trainings of the plan."""
    chosen: list[Cell]
    """Those that are wanted now."""
    depths: tuple[int, ...]
    """Numbers of mean shift steps to read each model out with, beside its own."""
    jobs: int
    tables: tuple[Table, ...]
    """Which of the two score tables are written."""
    command: str
    """The command line that asks for this."""

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
    """Arguments and errors as `run_study`; data sets are opened, and nothing is written."""
    if jobs < 1:
        raise InputError(f"jobs: {jobs}; at least 1")
    if only_table not in (None, 1, 2):
        raise InputError(f"only_table: {only_table}; 1 (scores), 2 (over L'_ms), or leave it out for both")
    plan = load_plan(study, recipe)
    changes: dict[str, Any] = {} if seeds is None else {"seeds": tuple(seeds), "row_seeds": {}}
    changes |= {} if depths is None else {"depths": tuple(dict.fromkeys(depths))}
    changes |= {} if splits is None else {"splits": tuple(dict.fromkeys(splits))}
    plan = replace(plan, **changes)
    folder = Path(f"runs/studies/{plan.name}" if out is None else out)
    wanted = plan.find_rows(["*"] if rows is None else rows)
    cells = plan.cells(folder, list(fields))
    if plan.splits is None:
        plan = replace(plan, splits=(cells[0].config.data.val_split,))
    chosen = [cell for cell in cells if cell.row in wanted]
    named = depth_rows(plan, cells)  # for either table, so that a wrong pattern does not wait for the last training
    if only_table == 2:
        chosen = [cell for cell in chosen if cell.row in named]
        if not chosen:
            raise InputError(f"only_table: 2, but none of the rows of {plan.name} that are chosen has mean shift steps")
    options: dict[str, Any] = {"recipe": recipe, "seeds": seeds, "depths": depths, "splits": splits, "rows": rows}
    options |= {"only-table": only_table, "jobs": jobs}
    job = Setup(
        plan=plan,
        folder=folder,
        cells=cells,
        chosen=chosen,
        depths=() if only_table == 1 else plan.depths,
        jobs=jobs,
        tables=(1, 2) if only_table is None else (only_table,),
        command=shlex.join(["meanshifter", "study", study, *_words(options), *fields]),
    )
    _check_files(job)
    return job


def _words(options: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line; those that are None are left out."""
    several = {name: value if isinstance(value, list | tuple) else [value] for name, value in options.items()}
    return [word for name, values in several.items() if values != [None] for word in (f"--{name}", *map(str, values))]


def depth_rows(plan: Plan, cells: Sequence[Cell]) -> list[str]:
    """The rows of the table over L'_ms: those that the plan names for it, else all that have mean shift steps."""
    named = plan.find_rows(plan.depth_table.get("rows", ["*"]))
    stepping = {cell.row for cell in cells if has_block(cell.config)}
    return [row for row in named if row in stepping]


def _check_files(job: Setup) -> None:
    """Open every data set that the trainings and their scores read, and see that files of weights are there.

    Raises:
        InputError: what a training would only say once it has started.
    """
    seen: list[dict[str, Any]] = []
    for cell in job.chosen:
        if (facts := asdict(cell.config.data)) not in seen:
            seen.append(facts)
            for split in dict.fromkeys([cell.config.data.train_split, cell.config.data.val_split, *job.splits]):
                try:
                    open_split(cell, split)
                except InputError as error:
                    hint = "; give it with --data.root DIR" if cell.config.data.root is None else ""
                    raise InputError(f"{job.plan.name}: {error}{hint}") from error
        weights = cell.config.model.backbone_weights
        if weights not in (None, "timm"):
            require_file(str(weights))
