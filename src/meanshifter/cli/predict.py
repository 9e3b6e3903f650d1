"""`meanshifter predict`: label maps of images, folders, globs, addresses and tars."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meanshifter.cli import MODEL_HELP
from meanshifter.cli.printing import echo, say
from meanshifter.cli.processes import add_process_options, start_processes
from meanshifter.cli.reading import (
    add_reading_options,
    check_precision,
    labelling_settings,
    load_predictor,
    reading_settings,
)
from meanshifter.cli.submission import Submission, add_submission_options, open_submission
from meanshifter.errors import InputError

if TYPE_CHECKING:
    from meanshifter.data.walk import PassedOver
    from meanshifter.inference.archive import Runner, Summary
    from meanshifter.inference.inputs import Job
    from meanshifter.inference.predictor import Predictor
    from meanshifter.inference.segmentation import Segmentation
    from meanshifter.report.sheet import SheetRow


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.description = (
        "Writes DIR/NAME.png for every image: a PNG of class numbers with the model's palette, as large as "
        "the image. Folders are searched recursively and keep their structure below DIR. Label maps already "
        "there are replaced, unless a manifest is kept. Several --mean-shift-layers have a folder DIR/layers_N each."
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="image, folder of images, glob in quotes, tar of samples (also shard-{000..009}.tar), an address of "
        "these: s3://, gs://, https://, …, or with --root a data set by name",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="meanshifter-labels",  # "labels" may well be the truth of a data set
        help="folder for the label maps, or its address, as s3://bucket/labels (default: %(default)s)",
    )
    parser.add_argument(
        "--overlay",
        action="store_true",
        help="also write the images under class colours, with a legend, to DIR/overlays",
    )
    parser.add_argument(
        "--alpha", type=float, default=0.5, help="opacity of the colours, 0 to 1 (default: %(default)s)"
    )
    parser.add_argument(
        "--scores",
        nargs="+",
        metavar="SCORE",
        default=[],
        help="also write how sure each pixel is, as 16-bit PNG in DIR/scores: probability, margin, entropy",
    )
    parser.add_argument(
        "--probabilities",
        nargs="+",
        metavar="CLASS",
        default=[],
        help="also write the probability of these classes, as 16-bit PNG in DIR/scores",
    )
    parser.add_argument(
        "--max-pixels", type=int, metavar="N", help="refuse larger images before decoding them (default: 1e9)"
    )
    _add_archive_options(parser)
    add_submission_options(parser)
    add_process_options(parser)
    add_reading_options(parser)
    parser.add_argument(
        "--mean-shift-layers",
        type=int,
        nargs="+",
        metavar="N",
        help="mean shift steps (default: as trained); several, read in one pass, go to DIR/layers_N each",
    )
    parser.add_argument(
        "--sheet",
        action="store_true",
        help=f"also write DIR/sheet.png and DIR/sheet.pdf, a figure for papers of up to {MOST_ROWS} images: each "
        "beside its label map, or its label maps after each number of mean shift steps",
    )


def _add_archive_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "archives",
        "With any of these, and for addresses and tars, DIR/manifest.jsonl says which images are finished, and "
        "a second run with the same model and settings goes on with the others.",
    )
    group.add_argument("--resume", action="store_true", help="keep a manifest, and skip what it names")
    group.add_argument("--overwrite", action="store_true", help="keep a manifest, and do again what it names")
    group.add_argument("--on", choices=("ray",), help="label on a Ray cluster, by default one of this machine")
    group.add_argument("--ray-address", metavar="ADDR", help="of a running cluster, as auto or HOST:6379")
    group.add_argument("--workers", type=int, metavar="N", help="copies of the model on the cluster (default: as fit)")
    group.add_argument("--cpus-per-worker", type=int, metavar="N", help="cores of each of them (default: 1)")


def run(args: argparse.Namespace) -> int:
    """Predict every image; past an unreadable one it goes on, and leaves with status 2 at the end."""
    from meanshifter.data.remote import is_address, is_tar

    if not 0 <= args.alpha <= 1:
        raise InputError(f"--alpha: {args.alpha}; it must lie between 0 (image alone) and 1 (colours alone)")
    asked = {"scores": args.scores, "probabilities": args.probabilities}
    if args.max_pixels is not None:
        asked["max_pixels"] = args.max_pixels
    submission = open_submission(args)
    elsewhere = any(is_address(given) or is_tar(given) for given in args.inputs) or is_address(args.out)
    if elsewhere or args.on or args.resume or args.overwrite:
        if args.devices is not None or args.num_nodes is not None:
            raise InputError("--devices, --num-nodes: for an archive use --on ray with --workers; leave them out")
        if args.sheet:
            raise InputError(
                "--sheet: is for a few images of this machine, without a manifest; name them in a call of their own"
            )
        return _run_archive(args, asked, submission)
    return _run_here(args, asked)


def _steps(args: argparse.Namespace) -> list[int]:
    """The numbers of mean shift steps that were asked for, each once; none: as trained."""
    return list(dict.fromkeys(args.mean_shift_layers or ()))


def _run_here(args: argparse.Namespace, asked: dict[str, Any]) -> int:
    from meanshifter.data.walk import PassedOver
    from meanshifter.inference.inputs import layers_folder, plan

    out, maps, passed, steps = Path(args.out), [*args.scores, *args.probabilities], PassedOver(), _steps(args)
    folders = [layers_folder(count) for count in steps] if len(steps) > 1 else [""]
    processes = start_processes(args)

    def planned() -> list[list[Job]]:
        besides = _sheet_files(out) if args.sheet else []
        jobs = plan(
            args.inputs, out, overlay=args.overlay, scores=maps, folders=folders, besides=besides, passed=passed
        )
        images = [jobs[start : start + len(folders)] for start in range(0, len(jobs), len(folders))]
        if args.sheet and len(images) > MOST_ROWS:
            raise InputError(
                f"--sheet: {len(images):,} images; a sheet has {MOST_ROWS} rows at most: name these images"
            )
        return images

    def loaded() -> Predictor:
        predictor = load_predictor(args.model, args, steps[0] if steps else None, labelling=True, **asked)
        for count in steps:
            predictor.resolve_layers(count)
        return predictor

    images = processes.together(planned)
    predictor = processes.together(loaded)
    steps = steps or [predictor.mean_shift_layers]
    mine = images[processes.rank :: processes.count]
    work = _Work(predictor, steps, args.alpha, maps, args.sheet)
    shares = processes.gather(processes.together(lambda: _predict(mine, work, processes.first)))
    failed = [reason for share in shares for reason in share.failed]
    if not processes.first:
        return 2 if failed else 0
    count = f"{(len(images) - len(failed)) * len(folders)} of {len(images) * len(folders)}"
    echo(f"{count} label maps written to {args.out}")
    if args.sheet:
        rows = {source: row for share in shares for source, row in share.rows.items()}
        _write_sheet(out, [rows[image[0].source] for image in images if image[0].source in rows], predictor, steps)
    _say_passed(passed)
    for reason in failed:
        say(reason)
    return 2 if failed else 0


def _sheet_files(out: Path) -> list[Path]:
    from meanshifter.report.sheet import require_matplotlib, sheet_files

    require_matplotlib()
    return sheet_files(out / "sheet")


def _write_sheet(out: Path, rows: list[SheetRow], predictor: Predictor, steps: list[int]) -> None:
    from meanshifter.report.sheet import save_sheet, steps_title

    if not rows:
        return
    titles = [steps_title(count) for count in steps] if predictor.model.has_steps else ["Prediction"]
    facts = [f"{name}: {value}" for name, value in {**predictor.protocol(), "mean_shift_layers": steps}.items()]
    files = save_sheet(out / "sheet", ["Image", *titles], rows, predictor.model.labels, facts)
    echo(f"sheet: {', '.join(map(str, files))}")


def _run_archive(args: argparse.Namespace, asked: dict[str, Any], submission: Submission | None) -> int:
    import meanshifter
    from meanshifter.inference.archive import Work, in_process, label_archive

    runner = _runner(args)
    model = meanshifter.load_model(args.model)
    check_precision(model, args)
    if submission is not None:
        submission.check(model)
    reading = labelling_settings(model, args) if submission is None else reading_settings(args.model, args)
    steps = _steps(args)
    settings = {"mean_shift_layers": steps[0] if len(steps) == 1 else None, **reading, **asked}
    if runner is None:
        runner = in_process(model.fastest_device if args.device is None else args.device)
    work = Work(model, settings, args.overlay, args.alpha, tuple(steps) if len(steps) > 1 else ())
    with _Progress() as progress:
        try:
            summary = label_archive(work, args.inputs, args.out, run=runner, overwrite=args.overwrite, report=progress)
        except KeyboardInterrupt as stop:
            again = "the same command" + (" without --overwrite" if args.overwrite else "")
            stop.args = (f"interrupted; what is finished is in {args.out}, and {again} goes on",)
            raise
    total, each = summary.done + summary.failed, len(work.folders)
    there = f", {summary.skipped * each} were there" if summary.skipped else ""
    echo(f"{summary.done * each} of {total * each} label maps written to {args.out}{there}")
    _say_passed(summary.passed)
    if summary.restarted:
        say("the manifest was of other weights or settings, and all has been done again")
    for reason in summary.reasons:
        say(reason)
    if summary.failed > len(summary.reasons):
        say(f"{summary.failed - len(summary.reasons)} more are in the manifest")
    if submission is not None:
        submission.finish(summary, args.out)
    return 2 if summary.failed else 0


def _say_passed(passed: PassedOver) -> None:
    from meanshifter.data.walk import said

    if passed:
        say(said(passed))


def _runner(args: argparse.Namespace) -> Runner | None:
    """Ray, if it is asked for."""
    given = {name: getattr(args, name) for name in ("ray_address", "workers", "cpus_per_worker")}
    for name, value in given.items():
        option = "--" + name.replace("_", "-")
        if value is not None and args.on is None:
            raise InputError(f"{option}: is for --on ray; add that, or leave it out")
        if isinstance(value, int) and value < 1:
            raise InputError(f"{option}: {value}; it must be at least 1")
    if args.on is None:
        return None
    from meanshifter.inference.on_ray import on_cluster
    from meanshifter.inference.ray_session import Cluster

    cpus = 1 if args.cpus_per_worker is None else args.cpus_per_worker
    return on_cluster(Cluster(args.ray_address, args.workers, cpus, args.device))


class _Progress:
    """How far an archive is: a moving line on a terminal, a line every minute elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("starting")
        self._start = self._said = time.monotonic()
        self._alone = not console.is_terminal

    def __enter__(self) -> Callable[[Summary], None]:
        self._bar.start()
        return self._report

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _report(self, summary: Summary) -> None:
        now = time.monotonic()
        rate = (summary.done + summary.failed) / (now - self._start)
        parts = [f"{summary.done} label maps", f"{summary.skipped} were there" if summary.skipped else ""]
        parts += [f"{summary.failed} failed" if summary.failed else "", f"{rate:.1f} a second"]
        text = ", ".join(filter(None, parts))
        self._bar.update(self._task, description=text)
        if self._alone and now - self._said > EVERY:
            self._said = now
            say(text)


EVERY = 60
"""Seconds between lines of progress that go to no terminal."""
LARGE = 2048
"""Rows from which on an image has a bar of its own."""


MOST_ROWS = 20
"""Images on a sheet, at most: more fill several pages."""


@dataclass(frozen=True)
class _Work:
    """What is made of every image."""

    predictor: Predictor
    steps: list[int]
    """Numbers of mean shift steps, as many as an image has jobs."""
    alpha: float
    maps: list[str]
    """Scores and probabilities."""
    sheet: bool


@dataclass
class _Share:
    """What has become of the images of one process."""

    failed: list[str] = field(default_factory=list)
    """The reasons of those that could not be read, one line each."""
    rows: dict[Path, SheetRow] = field(default_factory=dict)
    """Rows of the sheet, by image."""


def _predict(images: list[list[Job]], work: _Work, shown: bool) -> _Share:
    """Write the results of all images, each of which has a job for every number of steps."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from meanshifter.inference.files import read_ahead
    from meanshifter.report.sheet import SheetRow

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    share, predictor = _Share(), work.predictor
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        rows = bar.add_task("rows of a large image", visible=False)
        predictor.progress = lambda done, total: bar.update(rows, completed=done, total=total, visible=total >= LARGE)
        read = read_ahead(lambda jobs: predictor.load(jobs[0].source), images)
        for jobs, future in bar.track(read, total=len(images), description="images"):
            source = jobs[0].source
            try:
                found = list(predictor(future.result(), mean_shift_layers=work.steps).values())
            except InputError as error:
                share.failed.append(str(error) if str(source) in str(error) else f"{source}: {error}")
                continue
            for job, segmentation in zip(jobs, found, strict=True):
                _save(job, segmentation, work)
            if work.sheet:
                share.rows[source] = SheetRow.of(found[0].image, [segmentation.labels for segmentation in found])
    return share


def _save(job: Job, segmentation: Segmentation, work: _Work) -> None:
    from meanshifter.inference.files import save_png

    segmentation.save(job.mask)
    if job.overlay is not None:
        save_png(job.overlay, segmentation.overlay(work.alpha, legend=True))
    for name, path in zip(work.maps, job.scores, strict=True):
        save_png(path, segmentation.map_image(name))
