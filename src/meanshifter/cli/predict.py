"""`meanshifter predict`: label maps of images, folders and globs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meanshifter.cli.arguments import MODEL
from meanshifter.errors import InputError

if TYPE_CHECKING:
    from meanshifter.inference.inputs import Job
    from meanshifter.inference.predictor import Predictor


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.description = (
        "Writes DIR/NAME.png for every image: a PNG of class numbers with the model's palette, as large as "
        "the image. Folders are searched recursively and keep their structure below DIR. Label maps already "
        "there are replaced."
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help="image, folder of images, or glob in quotes")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the label maps")
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
    add_reading_options(parser)
    parser.add_argument("--mean-shift-layers", type=int, metavar="N", help="mean shift steps (default: as trained)")


def run(args: argparse.Namespace) -> int:
    """Predict every image; past an unreadable one it goes on, and leaves with status 2 at the end."""
    from meanshifter.inference.inputs import plan

    if not 0 <= args.alpha <= 1:
        raise InputError(f"--alpha: {args.alpha}; it must lie between 0 (image alone) and 1 (colours alone)")
    maps = [*args.scores, *args.probabilities]
    jobs = plan(args.inputs, args.out, overlay=args.overlay, scores=maps)
    asked = {"scores": args.scores, "probabilities": args.probabilities}
    if args.max_pixels is not None:
        asked["max_pixels"] = args.max_pixels
    failed = _predict(jobs, load_predictor(args.model, args, args.mean_shift_layers, **asked), args.alpha, maps)
    done = len(jobs) - len(failed)
    print(f"{done} of {len(jobs)} label maps written to {args.out}")
    for reason in failed:
        print(f"meanshifter: {reason}", file=sys.stderr)
    return 2 if failed else 0


def _predict(jobs: list[Job], predictor: Predictor, alpha: float, maps: list[str]) -> list[str]:
    """Write the results of all jobs; the reasons of those that could not be read, one line each."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from meanshifter.inference.files import read_ahead, save_png

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    failed = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        rows = bar.add_task("rows of a large image", visible=False)
        predictor.progress = lambda done, total: bar.update(rows, completed=done, total=total, visible=total >= LARGE)
        images = read_ahead(lambda job: predictor.load(job.source), jobs)
        for job, future in bar.track(images, total=len(jobs), description="images"):
            try:
                segmentation = predictor(future.result())
            except InputError as error:
                failed.append(str(error))
                continue
            segmentation.save(job.mask)
            if job.overlay is not None:
                save_png(job.overlay, segmentation.overlay(alpha, legend=True))
            for name, path in zip(maps, job.scores, strict=True):
                save_png(path, segmentation.map_image(name))
    return failed


def add_reading_options(parser: argparse.ArgumentParser, *, precision: bool = True) -> None:
    """The options of `Predictor` that predicting and evaluating share; those not given are left out."""
    group = parser.add_argument_group(
        "how images are read",
        "What is not given is read as the run's recipe says, or as the model's configuration does: in windows of 512 "
        "pixels with stride 480 of images fitted into 512 × 2048 pixels, unless another tool's checkpoint says "
        "otherwise.",
    )
    left_out = argparse.SUPPRESS
    group.add_argument(
        "--window", type=_or_none, metavar="PIXELS", default=left_out, help="side of the windows; none: whole images"
    )
    group.add_argument("--stride", type=int, metavar="PIXELS", default=left_out, help="distance between windows")
    add_resizing_options(group)
    group.add_argument(
        "--protocol", choices=("mmsegmentation", "segmenter"), default=left_out, help="read images as that tool does"
    )
    group.add_argument("--scales", type=float, nargs="+", metavar="FACTOR", default=left_out, help="average over these")
    group.add_argument("--flip", action="store_true", default=left_out, help="average with the mirrored image")
    if precision:
        group.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default=left_out)
    group.add_argument("--batch-size", type=int, metavar="WINDOWS", default=left_out, help="windows per pass")
    group.add_argument("--device", help="cpu, cuda, cuda:1, … (default: cuda where there is one, else cpu)")


def add_resizing_options(group: argparse._ArgumentGroup) -> None:
    """The sides into which images are fitted; those not given are left out."""
    left_out = argparse.SUPPRESS
    group.add_argument(
        "--short-side", type=_or_none, metavar="PIXELS", default=left_out, help="resize to fit; none: no resizing"
    )
    group.add_argument("--long-side", type=int, metavar="PIXELS", default=left_out, help="the longer of the two")


LARGE = 2048
"""Rows from which on an image has a bar of its own."""
READING = ("window", "stride", "short_side", "long_side", "scales", "flip", "precision", "batch_size", "protocol")


def load_predictor(
    name: str, args: argparse.Namespace, mean_shift_layers: int | None = None, **asked: Any
) -> Predictor:
    """The predictor that the command line and, for a run folder, its recipe describe, with model `name` loaded."""
    import meanshifter

    model = meanshifter.load_model(name)
    device = model.fastest_device if args.device is None else args.device
    settings = {**reading_settings(name, args), **asked}
    return meanshifter.Predictor(model, mean_shift_layers=mean_shift_layers, device=device, **settings)


def reading_settings(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """How images are read: as the command line says, else as the recipe of run or export `name` does."""
    from meanshifter.interop.runtime import reading_of
    from meanshifter.training.state import recipe_reading

    given = {name: value for name, value in vars(args).items() if name in READING}
    return {**reading_of(name), **recipe_reading(name), **given}


def _or_none(text: str) -> int | None:
    if text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; give a number of pixels or none") from None
