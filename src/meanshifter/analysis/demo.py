"""The demo: a small Segmenter and two small MeanShifters, trained from scratch and shown on one page."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from meanshifter.analysis.html import Page, Pixels, colorize
from meanshifter.data.catalog import open_dataset
from meanshifter.data.datasets import Dataset
from meanshifter.errors import InputError, RunError
from meanshifter.evaluation.metrics import mean_iou
from meanshifter.evaluation.result import Result
from meanshifter.inference.predictor import Predictor
from meanshifter.model.saving import read_model
from meanshifter.model.segmenter import Segmenter
from meanshifter.training.config import TrainConfig
from meanshifter.training.loop import RESUME_HINT, train
from meanshifter.training.parsing import parse_recipe, read_run_config

RECIPE = "shapes"
PAGE = "demo.html"
PICTURES = 8
COLOR_SAMPLES = 200
MODELS = {
    "Segmenter": ("segmenter", ()),
    "MeanShifter": ("meanshifter", ("--model.mean_shift.layers", "1")),
    "MeanShifter, from pixels": (
        "meanshifter-pixel",
        ("--model.pixel_shift.layers", "1", "--loss.deep_supervision", "2"),
    ),
}
"""Name → folder below the demo's, and fields that differ from the recipe."""


@dataclass(frozen=True)
class Entry:
    """One trained model of the demo."""

    name: str
    path: Path
    """Run folder, for `load_model`."""
    model: Segmenter
    """The model that was scored."""
    result: Result
    """Score on the held-out images."""
    parameters: int
    """Number of trained parameters."""
    seconds: float | None
    """Wall time of training and scoring; None for a resumed run, of which only a part was timed."""


@dataclass(frozen=True)
class Demo:
    """The results of a demo."""

    entries: tuple[Entry, ...]
    """The models, in the order of their training."""
    colors: float
    """mIoU of a classifier of mean patch colors on the same images."""
    page: Path
    seconds: float
    """Wall time of this process, which excludes that of an earlier one that was stopped."""


def run_demo(
    out: str | Path,
    *,
    steps: int | None = None,
    overwrite: bool = False,
    recipe: str | Path = RECIPE,
    fields: Sequence[str] = (),
    quiet: bool = False,
    say: Callable[[str], None] = print,
) -> Demo:
    """Train the models on generated images, score them on held-out ones, and write the page.

    A demo that was stopped or killed is resumed by the next call.

    Args:
        out: folder for the page and the runs, `segmenter`, `meanshifter` and `meanshifter-pixel`.
        steps: training steps of each model; None: those of the recipe.
        overwrite: replace an earlier demo in `out`; other files there are kept.
        recipe: name or file of the recipe.
        fields: overrides of the recipe, as on the command line of `meanshifter train`.
        quiet: show no training progress.
        say: called with a line before each part.

    Raises:
        InputError: a folder that is not empty, or an invalid recipe, before anything is trained; another number of
            steps than that of the stopped demo in `out`.
    """
    began = time.perf_counter()
    folder = Path(out)
    if steps is not None:
        if steps < 1:
            raise InputError(f"steps: {steps}; it must be at least 1")
        fields = [*fields, "--steps", str(steps)]
    configs = {
        name: parse_recipe(recipe, [*fields, *own, "--out", str(folder / place)])
        for name, (place, own) in MODELS.items()
    }
    _claim(folder, configs, overwrite)
    with _demo_hint("the same command" + (" without --overwrite" if overwrite else "")):
        entries = []
        for number, (name, config) in enumerate(configs.items(), start=1):
            resume = _holds_files(Path(str(config.out)))
            begun = ", resumed" if resume else ""
            say(f"{number}/{len(configs)}  {name}: {config.steps} steps from scratch on generated images{begun}")
            trained = train(config, resume=resume, quiet=quiet)
            model = read_model(trained.path)
            parameters = sum(parameter.numel() for parameter in model.parameters())
            seconds = None if resume else trained.seconds
            entries.append(Entry(name, trained.path, model, trained.result, parameters, seconds))
        data = config.data
        val_set = open_dataset(data.name, data.root, str(data.val_split))
        train_set = open_dataset(data.name, data.root, data.train_split)
        colors = patch_color_miou(train_set, val_set, limit=COLOR_SAMPLES)
        demo = Demo(tuple(entries), colors, folder / PAGE, time.perf_counter() - began)
        demo_page(demo, val_set).save(demo.page)
    return demo


@contextmanager
def _demo_hint(again: str) -> Iterator[None]:
    """Make errors within the block suggest the command `again`, where those of a training suggest `--resume`."""
    try:
        yield
    except (KeyboardInterrupt, RunError) as error:
        text = str(error).replace(RESUME_HINT, f"resume with {again}").replace("--resume", again)
        if isinstance(error, KeyboardInterrupt) and again not in text:
            text = f"{text or 'interrupted'}; resume with {again}"
        error.args = (text,)
        raise


def _claim(folder: Path, configs: Mapping[str, TrainConfig], overwrite: bool) -> None:
    """Make sure that `folder` is free or has a demo to resume; with `overwrite`, remove an earlier demo.

    Raises:
        InputError: other files are there, or a demo with another number of steps.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; choose a folder with --out DIR")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    begun = {Path(str(config.out)): config.steps for config in configs.values() if _holds_files(Path(str(config.out)))}
    if not overwrite and (not begun or (folder / PAGE).exists()):
        raise InputError(
            f"{folder}: already exists; choose another folder with --out DIR, or use --overwrite to replace the demo"
        )
    for run, steps in begun.items():
        config = run / "config.yaml"
        if not config.is_file() or "name: shapes" not in config.read_text("utf-8", errors="replace"):
            raise InputError(f"{run}: is not a run of an earlier demo; choose another folder with --out DIR")
        if overwrite:
            continue
        stored = read_run_config(run)
        before = stored.get("steps") if isinstance(stored, Mapping) else None
        if before != steps:
            raise InputError(
                f"steps: {steps}, but the demo in {folder} was stopped with {before}; use --steps {before} to resume "
                "it, or --overwrite to start over"
            )
    if overwrite:
        for run in begun:
            shutil.rmtree(run)
        (folder / PAGE).unlink(missing_ok=True)


def _holds_files(run: Path) -> bool:
    """Whether there is more than the lock that a kill leaves behind."""
    return run.exists() and (not run.is_dir() or any(path.name != ".lock" for path in run.iterdir()))


def score_table(demo: Demo) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a line for patch colors, then one per model."""
    header = ["", "mIoU", "mAcc", "aAcc", "parameters", "seconds"]
    rows = [["Mean patch colors", f"{demo.colors:.1f}", "–", "–", "–", "–"]]
    for entry in demo.entries:
        result = entry.result
        scores = [f"{value:.1f}" for value in (result.mIoU, result.mAcc, result.aAcc)]
        seconds = "–" if entry.seconds is None else f"{entry.seconds:.0f}"
        rows.append([entry.name, *scores, f"{entry.parameters:,}", seconds])
    return header, rows


def demo_page(demo: Demo, val_set: Dataset) -> Page:
    """The page: scores, scores per class, pictures, and what to do next."""
    page = Page("MeanShifter demo")
    page.text(
        "Three small models, trained from scratch on this machine. All are a plain vision transformer with a linear "
        "decoder. In MeanShifter, as published, one mean shift step moves the patch encodings towards the modes of "
        "their density before they are classified. In MeanShifter from pixels, cells of a quarter of a patch move "
        "among the patches around them, and take the patches' classes to the edges in the image. "
        "All pictures and scores are from generated images that no model saw in training. "
        "The colors of the shapes are independent of their class: only outline and texture tell classes apart."
    )
    page.heading("Scores on held-out images")
    header, rows = score_table(demo)
    page.table(header, rows, caption="In percent; seconds include scoring, – where a run was resumed")
    page.text(
        "Mean patch colors: the best guess from the mean color of each 8×8 patch alone. "
        "Pixels along the outlines are ignored."
    )
    page.table(
        ["IoU per class", *(entry.name for entry in demo.entries)],
        [
            [name, *(f"{entry.result.per_class[name].IoU:.1f}" for entry in demo.entries)]
            for name in val_set.label_space.names
        ],
    )
    page.code("\n".join(f"{entry.name}: {entry.result.protocol}" for entry in demo.entries))
    page.heading("Images, ground truth and predictions")
    page.legend(val_set.label_space)
    page.pictures(_pictures(demo, val_set))
    page.heading("Next steps")
    page.code("\n".join(next_commands(demo)))
    return page


def next_commands(demo: Demo) -> list[str]:
    """Commands to try next."""
    return [
        f"meanshifter evaluate {shlex.quote(str(demo.entries[-1].path))} shapes --mean-shift-layers 0 1 2",
        "meanshifter train DIR        # your own folder with images/ and masks/",
    ]


def _pictures(demo: Demo, val_set: Dataset) -> list[dict[str, Pixels]]:
    """Image, ground truth and each model's prediction for the first held-out samples."""
    predictors = {entry.name: Predictor(entry.model, window=None, short_side=None) for entry in demo.entries}
    rows = []
    for index in range(min(PICTURES, len(val_set))):
        sample = val_set[index]
        row = {"Image": sample.image, "Ground truth": colorize(sample.labels, val_set.label_space)}
        for name, predictor in predictors.items():
            row[name] = colorize(predictor(sample.image).labels, val_set.label_space)
        rows.append(row)
    return rows


BINS = 12
"""Bins per color channel."""


def patch_color_miou(train: Dataset, val: Dataset, *, patch: int = 8, limit: int = 200) -> float:
    """mIoU in percent of a lookup table from mean patch color to class, fitted on `train` and scored on `val`.

    The table counts the pixels of each class in patches of each of 12³ mean colors, and predicts the most frequent
    class, or the one that is most frequent relative to its share of all pixels: whichever scores higher. This bounds
    any classifier of the same input, up to the resolution of the table.

    Args:
        train: samples to count, at most `limit`.
        val: samples to score, at most `limit`.
        patch: patch size in pixels; incomplete patches at the right and bottom are not used.
        limit: samples per split.
    """
    K = train.label_space.num_classes
    table = np.full((BINS**3, K), 1e-6)
    for index in range(min(limit, len(train))):
        colors, counts = _patches(train, index, patch)
        np.add.at(table, colors, counts)
    plain, balanced = table.argmax(1), (table / table.sum(0)).argmax(1)
    confusions = np.zeros((2, K, K))
    for index in range(min(limit, len(val))):
        colors, counts = _patches(val, index, patch)
        for confusion, chosen in zip(confusions, (plain, balanced), strict=True):
            np.add.at(confusion, chosen[colors], counts)
    return float(mean_iou(confusions).max())


def _patches(dataset: Dataset, index: int, patch: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """For each patch: the bin of its mean color, (n,), and its pixels of each class, (n, K)."""
    sample = dataset[index]
    h, w = (side // patch for side in sample.labels.shape)
    tiles = sample.image[: h * patch, : w * patch].reshape(h, patch, w, patch, 3).mean((1, 3)).reshape(-1, 3)
    red, green, blue = (tiles * (BINS / 256)).astype(np.intp).T
    classes = np.arange(dataset.label_space.num_classes)
    labels = sample.labels[: h * patch, : w * patch].reshape(h, patch, w, patch, 1)
    counts = (labels == classes).sum((1, 3), dtype=np.float64).reshape(-1, len(classes))
    return (red * BINS + green) * BINS + blue, counts
