"""`report`: a self-contained page about a run, at any time, from its files and one pass over its validation images."""

from __future__ import annotations

import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from meanshifter.analysis.report_page import Report, report_page
from meanshifter.analysis.report_scores import ImageScores, score_run
from meanshifter.analysis.run_record import RunRecord
from meanshifter.data.catalog import open_dataset
from meanshifter.data.datasets import Dataset
from meanshifter.errors import InputError
from meanshifter.training.display import spell

PAGE: Final = "report.html"


def report(
    run: str | Path,
    dataset: Dataset | None = None,
    *,
    root: str | Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    device: str | None = None,
    progress: bool = False,
) -> Path:
    """Write a report of a finished, stopped or running run as one HTML file, over an earlier one.

    It shows what the folder holds: without a checkpoint, or without its images, parts are missing and the page says
    why. The images are read once; of each, a score and a small label map are kept, never K × H × W. Of the folder of a
    cross-validation it scores the out-of-fold label maps, without running a model.

    Args:
        run: the folder of a run, or of a cross-validation.
        dataset: the images to score; None: those that the run validates on.
        root: the folder of the run's dataset, if it has moved.
        split: another split of the run's dataset, such as "test".
        limit: score only the first images; None: `evaluation.limit` of the run, or all of a cross-validation.
        out: the HTML file; None: report.html in the run folder.
        device: where to run the model; None: a GPU if there is one, unless the run was on the CPU.
        progress: show a progress bar on standard error, if it is a terminal.

    Returns:
        The path of the page.

    Raises:
        InputError: `run` is not a run or one of its files is damaged; `dataset`, `root`, `split` or `limit` is invalid;
            or the page cannot be written.
    """
    began = time.perf_counter()
    record = RunRecord.read(run)
    if limit is not None and limit < 1:
        raise InputError(f"limit: {limit} images; expected at least 1, or leave it out for those of the run")
    if dataset is not None and (root is not None or split is not None):
        raise InputError("dataset: conflicts with root and split, which are of the run's own dataset; leave them out")
    if root is not None:
        record = replace(record, config=replace(record.config, data=replace(record.config.data, root=str(root))))
    given = dataset is not None or root is not None or split is not None or limit is not None
    if limit is None and not record.is_cross_validation:  # which scores all label maps
        limit = record.config.evaluation.limit
    scores, reason = None, ""
    try:
        chosen = _open(record, split) if dataset is None else dataset
        scores = score_run(record, chosen, limit=limit, device=device, progress=progress)
    except InputError as error:
        if given and record.has_model:
            raise
        reason = f"{error}."
    options = _options(root, split)
    page = report_page(Report(record, scores, reason, options))
    page.text(_duration(time.perf_counter() - began, scores))
    path = record.path / PAGE if out is None else Path(out)
    page.save(path)
    return path


def _open(record: RunRecord, split: str | None) -> Dataset:
    """The images of the run, or of another split."""
    if split is None:
        return record.open_scored()
    if record.is_cross_validation:
        raise InputError(
            f"split: {split}, but a cross-validation has label maps of its training images only; leave it out"
        )
    data = record.config.data
    return open_dataset(data.name, data.root, split, data.layout)


def _options(root: str | Path | None, split: str | None) -> str:
    given = {"root": root, "split": split}
    return "".join(f" --{name} {shlex.quote(str(value))}" for name, value in given.items() if value is not None)


def _duration(seconds: float, scores: ImageScores | None) -> str:
    if scores is None:
        return f"This page took {spell(seconds)} to write."
    what = "one pass over the images" if scores.predicted else "reading the images and label maps once"
    return f"This page took {spell(seconds)} to write, of which {spell(scores.seconds)} for {what}."
