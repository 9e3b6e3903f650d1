"""The demonstration: a small Segmenter and a small MeanShifter, trained from scratch and shown on one page."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from meanshifter.data.catalog import open_dataset
from meanshifter.data.datasets import Dataset
from meanshifter.documents import parse_yaml, read_text
from meanshifter.errors import InputError, RunError
from meanshifter.evaluation.result import Result
from meanshifter.inference.predictor import Predictor
from meanshifter.model.checkpoint import load_model
from meanshifter.model.segmenter import Segmenter
from meanshifter.report.page import Page, Pixels, colorize
from meanshifter.study.patch_colors import patch_color_miou
from meanshifter.training.loop import train
from meanshifter.training.parsing import parse_recipe
from meanshifter.training.recipe import TrainConfig

RECIPE = "shapes"
PAGE = "demo.html"
PICTURES = 8
COLOR_SAMPLES = 200
MODELS = {
    "Segmenter": ("segmenter", ()),
    "MeanShifter": ("meanshifter", ("--model.mean_shift.layers", "1")),
}
"""Name → folder below the demo's, and the fields that differ from the recipe."""


@dataclass(frozen=True)
class Entry:
    """One trained model of the demo."""

    name: str
    """As people call it."""
    path: Path
    """Run folder; `load_model(path)` reads it."""
    model: Segmenter
    """The weights that were scored."""
    result: Result
    """Score on the held-out images."""
    parameters: int
    """Trained numbers in the model."""
    seconds: float | None
    """Wall time of training and scoring; None where a run that had been stopped went on, since only a part was seen."""


@dataclass(frozen=True)
class Demo:
    """What the demonstration leaves."""

    entries: tuple[Entry, ...]
    """The models, in the order they were trained."""
    colors: float
    """mIoU of a classifier of mean patch colours on the same images."""
    page: Path
    """The page, one HTML file."""
    seconds: float
    """Wall time of this process's part of it, which is all unless an earlier one was stopped."""


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
    """Train both models on generated images, score them on held-out ones, and write the page.

    A demo that was stopped or killed goes on where it was with the next call.

    Args:
        out: folder for the page and, in `segmenter` and `meanshifter`, the two runs.
        steps: training steps of each; None: as the recipe says.
        overwrite: replace an earlier demo in `out`; other files there stay.
        recipe: name or file of the recipe.
        fields: overrides of the recipe, as on the command line of `meanshifter train`.
        quiet: show no progress of the training.
        say: is given one line before each part.

    Raises:
        InputError: a folder that is taken, or a wrong recipe, before anything is trained; another number of steps
            than the demo in `out` began with.
    """
    began = time.perf_counter()
    folder = Path(out)
    if steps is not None:
        if steps < 1:
            raise InputError(f"steps: {steps}; train for at least 1 step")
        fields = [*fields, "--steps", str(steps)]
    configs = {
        name: parse_recipe(recipe, [*fields, *own, "--out", str(folder / place)])
        for name, (place, own) in MODELS.items()
    }
    _claim(folder, configs, overwrite)
    with _how_to_go_on("the same command" + (" without --overwrite" if overwrite else "")):
        entries = []
        for number, (name, config) in enumerate(configs.items(), start=1):
            resume = _holds_files(Path(str(config.out)))
            begun = ", resumed" if resume else ""
            say(f"{number}/{len(configs)}  {name}: {config.steps} steps from scratch on generated images{begun}")
            entries.append(_entry(name, config, resume=resume, quiet=quiet))
        data = config.data
        val_set = open_dataset(data.name, data.root, data.val_split)
        train_set = open_dataset(data.name, data.root, data.train_split)
        colors = patch_color_miou(train_set, val_set, limit=COLOR_SAMPLES)
        demo = Demo(tuple(entries), colors, folder / PAGE, time.perf_counter() - began)
        demo_page(demo, val_set).save(demo.page)
    return demo


def _entry(name: str, config: TrainConfig, *, resume: bool, quiet: bool) -> Entry:
    trained = train(config, resume=resume, quiet=quiet)
    model = load_model(trained.path)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Entry(name, trained.path, model, trained.result, parameters, None if resume else trained.seconds)


@contextmanager
def _how_to_go_on(again: str) -> Iterator[None]:
    """Within, what ends the demo says that the command `again` continues; a training would speak of `--resume`."""
    try:
        yield
    except (KeyboardInterrupt, RunError) as error:
        text = str(error).replace("the same command with --resume", again).replace("--resume", again)
        if isinstance(error, KeyboardInterrupt) and again not in text:
            text = f"{text or 'interrupted'}; {again} continues"
        error.args = (text,)
        raise


def _claim(folder: Path, configs: Mapping[str, TrainConfig], overwrite: bool) -> None:
    """Make sure that `folder` is free or holds a demo that can go on; with `overwrite`, free it of an earlier demo.

    Raises:
        InputError: something else is there.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; name a folder with --out DIR")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    begun = {Path(str(config.out)): config.steps for config in configs.values() if _holds_files(Path(str(config.out)))}
    if not overwrite and (not begun or (folder / PAGE).exists()):
        raise InputError(f"{folder}: already exists; --out DIR chooses another folder, --overwrite replaces it")
    for run, steps in begun.items():
        if not _is_demo_run(run):
            raise InputError(f"{run}: is no run of an earlier demo, so it is left alone; use another --out DIR")
        if not overwrite:
            _check_steps(folder, run, steps)
    if overwrite:
        for run in begun:
            shutil.rmtree(run)
        (folder / PAGE).unlink(missing_ok=True)


def _holds_files(run: Path) -> bool:
    """Whether more is there than the lock that a kill leaves behind."""
    return run.exists() and (not run.is_dir() or any(path.name != ".lock" for path in run.iterdir()))


def _check_steps(folder: Path, run: Path, steps: int) -> None:
    """Refuse to go on with another number of steps than the demo began with."""
    stored = parse_yaml(read_text(run / "config.yaml"), run / "config.yaml")
    before = stored.get("steps") if isinstance(stored, Mapping) else None
    if before != steps:
        raise InputError(
            f"steps: {steps}, but the demo in {folder} was stopped with {before}; --steps {before} goes on with it, "
            "--overwrite begins anew"
        )


def _is_demo_run(run: Path) -> bool:
    """Whether a run on generated images was trained there: only the demo puts them into these folders."""
    config = run / "config.yaml"
    return config.is_file() and "name: shapes" in config.read_text("utf-8", errors="replace")


def score_table(demo: Demo) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a line per model, and one for colour alone."""
    header = ["", "mIoU", "mAcc", "aAcc", "parameters", "seconds"]
    rows = [["Mean patch colours", f"{demo.colors:.1f}", "–", "–", "–", "–"]]
    for entry in demo.entries:
        result = entry.result
        scores = [f"{value:.1f}" for value in (result.mIoU, result.mAcc, result.aAcc)]
        seconds = "–" if entry.seconds is None else f"{entry.seconds:.0f}"
        rows.append([entry.name, *scores, f"{entry.parameters:,}", seconds])
    return header, rows


def demo_page(demo: Demo, val_set: Dataset) -> Page:
    """The page: scores, scores per class, pictures, and what to do next."""
    page = Page("MeanShifter: the first minutes")
    page.text(
        "Two small models, trained from scratch on this machine. Both are a plain vision transformer with a linear "
        "decoder; in MeanShifter, one step of mean shift moves the patch encodings towards the modes of their "
        "density before they are classified. All pictures and scores are of generated images that no model saw "
        "in training. The colours of the shapes are drawn without regard to their class: outline and surface tell."
    )
    page.heading("Scores on held-out images")
    header, rows = score_table(demo)
    page.table(header, rows, caption="In percent; seconds include scoring, – where a run was stopped")
    page.text(
        "Mean patch colours: the best guess from the mean colour of each 8×8 patch alone. "
        "Pixels along the outlines are ignored."
    )
    page.table(
        ["IoU per class", *(entry.name for entry in demo.entries)],
        [
            [name, *(f"{entry.result.per_class[name].IoU:.1f}" for entry in demo.entries)]
            for name in val_set.labels.names
        ],
    )
    page.code("\n".join(f"{entry.name}: {entry.result.protocol}" for entry in demo.entries))
    page.heading("Images, truth and predictions")
    page.legend(val_set.labels)
    page.pictures(_pictures(demo, val_set))
    page.heading("Next")
    page.code("\n".join(next_commands(demo)))
    return page


def next_commands(demo: Demo) -> list[str]:
    """Commands that go on from here."""
    return [
        f"meanshifter evaluate {shlex.quote(str(demo.entries[-1].path))} shapes --mean-shift-layers 0 1 2",
        "meanshifter train DIR        # a folder of your own with images/ and masks/",
    ]


def _pictures(demo: Demo, val_set: Dataset) -> list[dict[str, Pixels]]:
    """The first held-out samples: image, truth, and each model's label map."""
    predictors = {entry.name: Predictor(entry.model, window=None, short_side=None) for entry in demo.entries}
    rows = []
    for index in range(min(PICTURES, len(val_set))):
        sample = val_set[index]
        row = {"Image": sample.image, "Truth": colorize(sample.labels, val_set.labels)}
        for name, predictor in predictors.items():
            row[name] = colorize(predictor(sample.image).labels, val_set.labels)
        rows.append(row)
    return rows
