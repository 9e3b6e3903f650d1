"""`meanshifter predict`: write label maps of images, on one machine or for large archives."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meanshifter.cli import MODEL_HELP, predict_video
from meanshifter.cli.options import (
    add_ensemble_option,
    add_process_options,
    add_reading_options,
    echo,
    load_models,
    load_predictor,
    one_engine,
    say,
    start_processes,
)
from meanshifter.cli.predict_video import add_video_options, clips_of
from meanshifter.errors import InputError, counted
from meanshifter.utils.progress import ProgressBar

if TYPE_CHECKING:
    from meanshifter.analysis.figures import SheetRow
    from meanshifter.data.catalog.public import PublicDataset
    from meanshifter.data.reading import PassedOver
    from meanshifter.inference.predictor import Predictor
    from meanshifter.inference.protocol import PatchModel
    from meanshifter.inference.segmentation import Segmentation
    from meanshifter.jobs.archive import Runner, Summary
    from meanshifter.jobs.inputs import Job


def add_submission_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `open_submission` reads."""
    group = parser.add_argument_group(
        "datasets by name",
        "With --root, INPUT is a name listed by `meanshifter data list`, and all images of a split are predicted, "
        "with or without labels: predict MODEL ade20k --root DIR --submission labels.zip",
    )
    add = group.add_argument
    add("--root", metavar="DIR", type=Path, help="folder of the dataset")
    add("--split", metavar="SPLIT", help="split of the dataset (default: test)")
    add(
        "--submission",
        metavar="FILE",
        type=Path,
        help="pack the label maps for the dataset's evaluation server once all exist; keeps a manifest, and "
        "preprocesses like `evaluate`",
    )


@dataclass(frozen=True)
class Submission:
    """A dataset whose label maps are packed into a file."""

    dataset: PublicDataset
    file: Path

    def check(self, model: PatchModel) -> None:
        """Raise an InputError if the model has other classes."""
        from meanshifter.evaluation.evaluate import check_classes

        check_classes(model.label_space, self.dataset.space, self.dataset.name)

    def finish(self, summary: Summary, out: str) -> None:
        """Pack the label maps in `out` if none failed, and print the result; raises as `write_submission`."""
        from meanshifter.jobs.submission import published_count, write_submission

        total = len(self.dataset)
        if summary.failed:
            say(
                f"{self.file}: not written, since {summary.failed:,} of {total:,} label maps are missing; repair their "
                "images and run the same command, which predicts only these"
            )
            return
        count = write_submission(self.dataset, out, self.file)
        values = self.dataset.space.raw_values()
        echo(f"{counted(count, 'label map')} with values {min(values)} to {max(values)} packed into {self.file}")
        published = published_count(self.dataset)
        if published is not None and count != published:
            say(
                f"{self.file}: {counted(count, 'label map')}, but split {self.dataset.split!r} of {self.dataset.name} "
                f"has {published:,} images; the server expects all of them"
            )


def open_submission(args: argparse.Namespace) -> Submission | None:
    """Replace the name of a dataset in the inputs by its images; returns the submission to pack, if any.

    Raises:
        InputError: options are missing or conflict, or the dataset or the file is invalid.
    """
    from meanshifter.data.catalog import HOMES
    from meanshifter.data.remote import is_address
    from meanshifter.jobs.submission import check_submission, open_images

    named = args.inputs[0] if len(args.inputs) == 1 else None
    if args.root is None:
        for option in ("split", "submission"):
            if getattr(args, option) is not None:
                raise InputError(
                    f"--{option}: only applies to datasets by name; add --root DIR, the folder of the dataset"
                )
        if named in HOMES and named not in ("folder", "shapes") and not Path(named).exists():
            raise InputError(f"--root: missing; {named} is read from a folder")
        return None
    if named is None:
        raise InputError(f"--root: given with {len(args.inputs)} inputs; give one dataset, such as ade20k")
    dataset = open_images(named, args.root, "test" if args.split is None else args.split)
    args.inputs = [str(path) for path in dataset.image_paths]
    if args.submission is None:
        return None
    check_submission(dataset, args.submission)
    if args.mean_shift_layers is not None and len(args.mean_shift_layers) > 1:
        steps = " ".join(map(str, args.mean_shift_layers))
        raise InputError(f"--mean-shift-layers: {steps}; a submission has one label map per image: give one number")
    if is_address(args.out):
        raise InputError(f"--out: {args.out} is an address; --submission needs a folder for the label maps")
    args.resume = True
    return Submission(dataset, args.submission)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = (
        "Write DIR/NAME.png for every image: a PNG of class numbers with the model's palette, as large as the image. "
        "Folders are searched recursively and keep their structure below DIR. Existing label maps are replaced, unless "
        "a manifest is kept. Each of several --mean-shift-layers has its own folder DIR/layers_N. Maps of confidence "
        "and probabilities are 16-bit PNGs in DIR/confidence. With --confidence, DIR/predictions.json lists the images "
        "for `meanshifter train … --data.extra_train [DIR]`, which can train on the label maps; with a manifest, it is "
        "not written. Videos are written as videos (see below)."
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL_HELP)
    add(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="image, folder of images, quoted glob, tar of samples (also shard-{000..009}.tar), address of these "
        "(s3://, gs://, https://, …), or with --root a dataset by name; or videos, animated GIFs, or the number of a "
        "camera",
    )
    add(
        "--out",
        metavar="DIR",
        default="meanshifter-labels",  # "labels" could be the labels of a dataset
        help="folder for the label maps, or its address, such as s3://bucket/labels (default: %(default)s)",
    )
    add(
        "--overlay",
        action="store_true",
        help="also write images with class colors and a legend to DIR/overlays; videos always have an overlay",
    )
    add("--alpha", type=float, default=0.5, help="opacity of the colors, 0 to 1 (default: %(default)s)")
    add(
        "--confidence", nargs="+", metavar="MEASURE", default=[], help="also write maps of probability, margin, entropy"
    )
    add("--probabilities", nargs="+", metavar="CLASS", default=[], help="also write probabilities of these classes")
    add(
        "--min-confidence",
        type=float,
        default=0.0,
        metavar="P",
        help="write the ignored value (255, or 65535 above 255 classes) where the most probable class has a "
        "probability below P (default: 0, a class at every pixel)",
    )
    add("--max-pixels", type=int, metavar="N", help="reject larger images before decoding them (default: 1e9)")
    add_video_options(parser)
    _add_archive_options(parser)
    add_submission_options(parser)
    add_process_options(parser)
    add_ensemble_option(parser)
    add_reading_options(parser)
    add("--mean-shift-layers", type=int, nargs="+", metavar="N", help="mean shift steps (default: as trained)")
    add(
        "--sheet",
        action="store_true",
        help=f"also write DIR/sheet.png and DIR/sheet.pdf, a figure for papers: up to {MOST_ROWS} images, each next to "
        "its label map, or its label maps after each number of mean shift steps",
    )


def _add_archive_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "archives",
        "With any of these, and for addresses and tars, DIR/manifest.jsonl lists the finished images, and a second run "
        "with the same model and settings continues with the others.",
    )
    add = group.add_argument
    add("--resume", action="store_true", help="keep a manifest, and skip the images that it lists")
    add("--overwrite", action="store_true", help="keep a manifest, and predict all images again")
    add("--backend", choices=("ray",), help="predict on a Ray cluster, by default a local one")
    add("--address", metavar="ADDR", help="address of a running Ray cluster: auto or HOST:6379")
    add("--workers", type=int, metavar="N", help="Ray workers, each with a copy of the model (default: as many as fit)")
    add("--cpus-per-worker", type=int, metavar="N", help="cores per Ray worker (default: 1)")


def run(args: argparse.Namespace) -> int:
    """Predict every image; status 2 if an image could not be read."""
    from meanshifter.data.remote import is_address, is_tar

    asked = _asked(args)
    if clips := clips_of(args):
        return predict_video.run(args, clips, asked)
    one_engine(args, _steps(args))
    runner, submission = _runner(args), open_submission(args)
    elsewhere = any(is_address(given) or is_tar(given) for given in args.inputs) or is_address(args.out)
    if elsewhere or args.backend or args.resume or args.overwrite:
        if args.devices is not None or args.num_nodes is not None:
            raise InputError("--devices, --num-nodes: do not apply to archives; use --backend ray with --workers")
        if args.sheet:
            raise InputError("--sheet: only applies to local images without a manifest; run a separate command for it")
        return _run_archive(args, asked, submission, runner)
    return _run_here(args, asked)


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """The maps that are asked for, as arguments of `Predictor`."""
    if not 0 <= args.alpha <= 1:
        raise InputError(f"--alpha: {args.alpha}; expected 0 (only the image) to 1 (only the colors)")
    if not 0 <= args.min_confidence <= 1:
        raise InputError(f"--min-confidence: {args.min_confidence}; expected a probability from 0 to 1")
    if args.min_confidence > 0 and args.submission is not None:
        raise InputError(
            f"--min-confidence: {args.min_confidence}, but a submission needs a class at every pixel; leave it out"
        )
    asked = {
        "confidence": args.confidence,
        "probabilities": args.probabilities,
        "min_confidence": args.min_confidence,
    }
    if args.max_pixels is not None:
        asked["max_pixels"] = args.max_pixels
    for name, times in Counter((*args.confidence, *args.probabilities)).items():
        if times > 1:
            raise InputError(f"{name!r}: given {times} times in --confidence and --probabilities; give it once")
    return asked


def _steps(args: argparse.Namespace) -> list[int]:
    """The requested numbers of mean shift steps without repetitions; empty: as trained."""
    return list(dict.fromkeys(args.mean_shift_layers or ()))


def _run_here(args: argparse.Namespace, asked: dict[str, Any]) -> int:
    from meanshifter.data.reading import PassedOver
    from meanshifter.jobs.archive import label_images
    from meanshifter.jobs.inputs import layers_folder, plan

    out, maps, passed, steps = Path(args.out), [*args.confidence, *args.probabilities], PassedOver(), _steps(args)
    folders = [layers_folder(count) for count in steps] if len(steps) > 1 else [""]
    processes = start_processes(args)

    def planned() -> list[list[Job]]:
        extra = _sheet_files(out) if args.sheet else []
        jobs = plan(
            args.inputs, out, overlay=args.overlay, confidence=maps, folders=folders, extra_outputs=extra, passed=passed
        )
        images = [jobs[start : start + len(folders)] for start in range(0, len(jobs), len(folders))]
        if args.sheet and len(images) > MOST_ROWS:
            raise InputError(f"--sheet: {len(images):,} images; expected at most {MOST_ROWS}")
        return images

    def loaded() -> Predictor:
        predictor = load_predictor(
            args.model, args, steps[0] if steps else None, others=args.ensemble, labeling=True, **asked
        )
        for count in steps:
            predictor.resolve_layers(count)
        return predictor

    images = processes.run_all(planned)
    predictor = processes.run_all(loaded)
    steps = steps or [predictor.mean_shift_layers]
    rows: dict[Path, SheetRow] = {}
    mine = images[processes.rank :: processes.count]
    keep = _keeper(rows) if args.sheet else None

    def label() -> tuple[list[str], dict[Path, SheetRow]]:
        failed = label_images(
            predictor, mine, steps, maps=maps, alpha=args.alpha, keep=keep, progress=processes.is_main
        )
        return failed, rows

    shares = processes.gather(processes.run_all(label))
    failed = [reason for share, _ in shares for reason in share]
    if not processes.is_main:
        return 2 if failed else 0
    written = (len(images) - len(failed)) * len(folders)
    echo(f"{written} of {counted(len(images) * len(folders), 'label map')} written to {args.out}")
    _record(args, out, folders, images, predictor)
    if args.sheet:
        rows = {source: row for _, share in shares for source, row in share.items()}
        _write_sheet(out, [rows[image[0].source] for image in images if image[0].source in rows], predictor, steps)
    _say_passed(passed)
    for reason in failed:
        say(reason)
    return 2 if failed else 0


def _record(
    args: argparse.Namespace, out: Path, folders: list[str], images: list[list[Job]], predictor: Predictor
) -> None:
    """With confidence maps, write which label map belongs to which image, for training on them."""
    from meanshifter.data.predictions import record_predictions

    if not args.confidence:
        return
    for number, folder in enumerate(folders):
        written = {jobs[number].mask: jobs[number].source for jobs in images}
        record_predictions(out / folder, predictor.model.label_space, written)


def _keeper(rows: dict[Path, SheetRow]) -> Callable[[Path, list[Segmentation]], None]:
    """A function that puts the row of each image into `rows`."""
    from meanshifter.analysis.figures import SheetRow

    def keep(source: Path, found: list[Segmentation]) -> None:
        rows[source] = SheetRow.of(found[0].image, [segmentation.labels for segmentation in found])

    return keep


def _sheet_files(out: Path) -> list[Path]:
    from meanshifter.analysis.figures import require_matplotlib, sheet_files

    require_matplotlib()
    return sheet_files(out / "sheet")


def _write_sheet(out: Path, rows: list[SheetRow], predictor: Predictor, steps: list[int]) -> None:
    from meanshifter.analysis.figures import save_sheet, steps_title

    if not rows:
        return
    titles = [steps_title(count) for count in steps] if predictor.model.has_steps else ["Prediction"]
    facts = [f"{name}: {value}" for name, value in {**predictor.protocol(), "mean_shift_layers": steps}.items()]
    files = save_sheet(out / "sheet", ["Image", *titles], rows, predictor.model.label_space, facts)
    echo(f"sheet: {', '.join(map(str, files))}")


def _run_archive(
    args: argparse.Namespace, asked: dict[str, Any], submission: Submission | None, runner: Runner | None
) -> int:
    import meanshifter
    from meanshifter.jobs.archive import Work, in_process, label_archive

    model, reading = load_models([args.model, *args.ensemble], args, labeling=submission is None)
    if submission is not None:
        submission.check(model)
    steps = _steps(args)
    settings = {"mean_shift_layers": steps[0] if len(steps) == 1 else None, **reading, **asked}
    if runner is None:
        device = model.fastest_device if args.device is None else args.device
        runner = in_process(device)
        if "engine" in settings:  # workers of a cluster each choose their own
            for choice in meanshifter.Predictor(model, device=device, **settings).engines:
                say(str(choice))
    work = Work(model, settings, args.overlay, args.alpha, tuple(steps) if len(steps) > 1 else ())
    with ProgressBar("label maps", time_left=False) as bar:
        try:
            summary = label_archive(
                work, args.inputs, args.out, run=runner, overwrite=args.overwrite, report=_reporter(bar)
            )
        except KeyboardInterrupt as stop:
            again = "the same command" + (" without --overwrite" if args.overwrite else "")
            stop.args = (f"interrupted; finished label maps are in {args.out}; resume with {again}",)
            raise
    total, each = summary.done + summary.failed, len(work.folders)
    existing = f", {summary.skipped * each} already existed" if summary.skipped else ""
    echo(f"{summary.done * each} of {counted(total * each, 'label map')} written to {args.out}{existing}")
    _say_passed(summary.passed)
    if summary.restarted:
        say("the manifest was of other weights or settings, so all images were predicted again")
    for reason in summary.reasons:
        say(reason)
    if summary.failed > len(summary.reasons):
        say(f"{summary.failed - len(summary.reasons)} more failures are listed in the manifest")
    if submission is not None:
        submission.finish(summary, args.out)
    return 2 if summary.failed else 0


def _say_passed(passed: PassedOver) -> None:
    from meanshifter.data.reading import said

    if passed:
        say(said(passed))


def _runner(args: argparse.Namespace) -> Runner | None:
    """Ray, if requested."""
    given = {name: getattr(args, name) for name in ("address", "workers", "cpus_per_worker")}
    for name, value in given.items():
        option = "--" + name.replace("_", "-")
        if value is not None and args.backend is None:
            raise InputError(f"{option}: only applies to --backend ray; add it, or leave {option} out")
        if isinstance(value, int) and value < 1:
            raise InputError(f"{option}: {value}; expected at least 1")
    if args.backend is None:
        return None
    from meanshifter.jobs.ray import Cluster, on_cluster

    cpus = 1 if args.cpus_per_worker is None else args.cpus_per_worker
    return on_cluster(Cluster(args.address, args.workers, cpus, args.device))


def _reporter(bar: ProgressBar) -> Callable[[Summary], None]:
    """Shows progress next to the bar on a terminal, otherwise as a line every minute."""
    start = said = time.monotonic()

    def report(summary: Summary) -> None:
        nonlocal said
        now = time.monotonic()
        rate = (summary.done + summary.failed) / max(now - start, 1e-9)
        counts = {"already existed": summary.skipped, "failed": summary.failed}
        text = ", ".join([*(f"{count} {what}" for what, count in counts.items() if count), f"{rate:.1f} per second"])
        bar.update(summary.done, status=text)
        if not bar.is_terminal and now - said > EVERY:
            said = now
            say(f"{counted(summary.done, 'label map')}, {text}")

    return report


EVERY = 60
"""Seconds between progress lines without a terminal."""
MOST_ROWS = 20
"""Maximum images on a sheet; more would fill several pages."""
