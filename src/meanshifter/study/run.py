"""A study from its plan to its tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from meanshifter.errors import InputError
from meanshifter.files import write_text
from meanshifter.study.plan import FORMAT_VERSION, Cell, load_plan
from meanshifter.study.runner import is_finished, run_cells
from meanshifter.study.tables import Findings, write_tables

STUDY = "study.yaml"


def run_study(
    study: str,
    out: str | Path | None = None,
    *,
    fields: Sequence[str] = (),
    jobs: int = 1,
    say: Callable[[str], None] = print,
) -> Path:
    """Train and score what a study lacks, and write its tables; returns its folder.

    Args:
        study: name or YAML file.
        out: folder; None: runs/studies/NAME.
        fields: overrides of all trainings, as on the command line of `meanshifter train`.
        jobs: trainings at a time; the processor's cores are shared out among them.
        say: is given a line for each training that ends.

    Raises:
        InputError: a wrong plan, or a folder of another study, before anything is trained; a number of jobs below 1.
        RunError: a training whose process ended without a result.
    """
    if jobs < 1:
        raise InputError(f"jobs: {jobs}; at least 1")
    plan = load_plan(study)
    folder = Path(f"runs/studies/{plan.name}" if out is None else out)
    cells = plan.cells(folder, list(fields))
    _claim(folder, cells)
    run_cells(cells, depths=plan.depths, splits=plan.splits, jobs=jobs, say=say)
    write_tables(Findings(plan, [cell for cell in cells if is_finished(cell)]), folder)
    return folder


def _claim(folder: Path, cells: Sequence[Cell]) -> None:
    """Refuse a folder in which a training of the same place was another one; note what this study trains."""
    trained = {f"{cell.row}, seed {cell.seed}": _facts(cell) for cell in cells}
    path = folder / STUDY
    if path.is_file():
        try:
            before = yaml.safe_load(path.read_text("utf-8"))["trainings"]
            changed = [key for key, facts in trained.items() if before.get(key, facts) != facts]
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
