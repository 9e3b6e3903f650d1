"""`meanshifter data`: list the datasets, download one, check one for faults, or review its labels with a model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from meanshifter.cli.options import (
    add_layout_options,
    add_reading_options,
    echo,
    layout_of,
    load_predictor,
    reading_given,
    refuse_without_dataset,
    say,
)
from meanshifter.errors import InputError, counted, did_you_mean
from meanshifter.utils.files import dump_json
from meanshifter.utils.progress import ProgressBar

if TYPE_CHECKING:
    from meanshifter.data.catalog.public import About
    from meanshifter.data.doctor import Report


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    commands.add_parser("list", help="list names, classes, images, terms and sources")
    download = commands.add_parser("download", help="download, verify and unpack a dataset")
    download.add_argument("name", metavar="NAME", help="name listed by `meanshifter data list`")
    download.add_argument("dir", metavar="DIR", type=Path, help="folder to unpack into, created if necessary")
    download.add_argument("--split", metavar="SPLIT", help="download extra files: ade20k test, pascal_voc trainaug")
    _configure_check(commands.add_parser("check", help="report everything that is wrong with images and masks"))
    _configure_review(commands.add_parser("review", help="find likely annotation errors, rank images for annotation"))


def _configure_check(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Read every image and mask of a dataset and report everything that is wrong. Exit status 0: no faults, "
        "possibly notices; 2: there are faults."
    )
    add = parser.add_argument
    add("dataset", metavar="NAME", help="folder of images and masks, or name of a dataset with --root")
    add("--root", metavar="DIR", type=Path, help="folder of the named dataset")
    add("--split", metavar="SPLIT", nargs="+", help="splits to check (default: all)")
    add_layout_options(parser, runs=False)
    add("--out", metavar="FILE.html", type=Path, help="write a page with pictures of the findings")
    add("--json", metavar="FILE", type=Path, help="write all findings and statistics as JSON")
    add(
        "--write-labels",
        metavar="FILE",
        nargs="?",
        type=Path,
        const=Path(),
        help="write a labels.json of the values or colors that occur, to fill in names (default: into the folder)",
    )
    add("--fix", metavar="DIR", type=Path, help="write a repaired copy into a new folder")
    add(
        "--fix-unknown",
        choices=("leave-out", "ignore"),
        help="in the copy, leave out pairs with unknown mask values, or ignore these pixels (default: leave-out)",
    )
    add("--threads", metavar="N", type=int, help="files read concurrently (default: one per core)")


def _configure_review(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Find likely annotation errors: regions where a model that was not trained on an image is sure of "
        "another class. Also rank unlabeled images for annotation by the uncertainty of the model."
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="run, whose validation images or folds are reviewed, or any model and a DATASET")
    add("dataset", metavar="DATASET", nargs="?", help="name of a dataset, or folder (default: the run's own)")
    add("--root", metavar="DIR", type=Path, help="folder of the named dataset")
    add("--split", help="split of DATASET, which the model must not have seen (default: val)")
    add("--unlabeled", metavar="IMAGES", nargs="+", default=[], help="images, folders or globs to rank for labeling")
    add("--out", metavar="DIR", type=Path, required=True, help="folder for review.html, suspects.csv, to_label.csv")
    add("--show", metavar="N", type=int, default=60, help="regions and images with pictures (default: %(default)s)")
    add("--limit", type=int, metavar="N", help="review only the first N images")
    add("--overwrite", action="store_true", help="replace an earlier review in the folder")
    add_layout_options(parser, runs=True)
    add_reading_options(parser)


def run(args: argparse.Namespace) -> int:
    """List, download, check or review."""
    if args.action == "check":
        return _check(args)
    if args.action == "review":
        return _review(args)
    if args.action == "list":
        _print_list()
    else:
        _download(args.name, args.dir, args.split)
    return 0


def _print_list() -> None:
    abouts, rows = _abouts(), [("name", "classes", "download", "images")]
    for about in abouts:
        images = ", ".join(f"{split} {count:,}" for split, count in about.images.items())
        fetch = "not needed" if about.name == "shapes" else "manual" if about.archive is None else "yes"
        rows.append((about.name, str(about.classes), fetch, images))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    echo(*("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows), "")
    echo(*(f"{about.name}: {about.title}; {about.terms}; {about.home}" for about in abouts))
    echo("folder: your own images/ and masks/ in one folder; train on it with `meanshifter train DIR`")


def _abouts() -> list[About]:
    from meanshifter.data.catalog.ade20k import ADE20K
    from meanshifter.data.catalog.camvid import CamVid
    from meanshifter.data.catalog.cityscapes import Cityscapes
    from meanshifter.data.catalog.pascal_voc import PascalVOC
    from meanshifter.data.catalog.public import About
    from meanshifter.data.catalog.shapes import LENGTHS, NAMES

    title, home = "overlapping shapes on a textured background", "drawn when read"
    shapes = About("shapes", title, len(NAMES), LENGTHS, terms="generated", home=home)
    return [shapes, *(kind.about for kind in (CamVid, ADE20K, PascalVOC, Cityscapes))]


def _download(name: str, folder: Path, split: str | None) -> None:
    from meanshifter.data.catalog.public import PublicDataset

    names = [about.name for about in _abouts()]
    kinds = {kind.about.name: kind for kind in PublicDataset.__subclasses__()}
    if name == "shapes":
        raise InputError("shapes: generated when read; there is nothing to download")
    if name not in kinds:
        hint = did_you_mean(name.lower(), names, f"expected one of {', '.join(names)}")
        raise InputError(f"dataset {name!r} is unknown; {hint}")
    echo(f"{name}: {kinds[name].about.terms}")
    made = kinds[name].download(folder, split)
    echo(f"{name}{'' if split is None else f' {split}'} is in {made}")


def _check(args: argparse.Namespace) -> int:
    from meanshifter.data.doctor import check, repair
    from meanshifter.data.doctor.text import report_lines
    from meanshifter.utils.files import write_text

    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads: {args.threads}; expected at least 1")
    if args.fix_unknown is not None and args.fix is None:
        raise InputError(f"--fix-unknown: {args.fix_unknown}, which is about the copy of --fix; add --fix DIR")
    with ProgressBar("checking") as bar:
        layout = layout_of(args, None)
        report = check(args.dataset, args.root, args.split, layout=layout, threads=args.threads, advance=bar.update)
    echo(*report_lines(report))
    if args.json is not None:
        write_text(args.json, dump_json(report.to_dict(), indent=1) + "\n")
        echo("", f"JSON: {args.json.resolve()}")
    if args.write_labels is not None:
        from meanshifter.data.doctor.repair import write_skeleton

        target = report.root / "labels.json" if args.write_labels == Path() else args.write_labels
        space = write_skeleton(report, target)
        echo("", f"labels: {target.resolve()}: {len(space.names):,} classes; edit their names, then check again")
        if report.question is not None and report.question.strong:
            echo("the value that was ignored is a class in this file; set it to 255 there to ignore it")
    if args.out is not None:
        from meanshifter.analysis.doctor_page import save_page

        save_page(report, args.out)
        echo("", f"page: {args.out.resolve()}")
    if args.fix is not None:
        with ProgressBar("repairing") as bar:
            done = repair(report, args.fix, ignore_unknown=args.fix_unknown == "ignore", advance=bar.update)
        pairs, changed = counted(done.kept, "pair"), counted(len(done.changed), "file")
        counts = f"{pairs}, {changed} changed, {len(done.left_out):,} left out"
        echo("", f"repaired copy: {done.out.resolve()}: {counts}; listed in repair.json")
    return _conclude(report, fixed=args.fix is not None)


def _conclude(report: Report, *, fixed: bool) -> int:
    faults, notices = len(report.faults), len(report.findings) - len(report.faults)
    if not faults:
        echo("", f"no faults, {counted(notices, 'notice')}")
        return 0
    kinds = len({finding.kind for finding in report.faults})
    remedy = "see above" if fixed else "see above, or write a repaired copy with --fix DIR"
    count = f"{counted(faults, 'fault')} of {counted(kinds, 'kind')}"
    say(f"{report.root}: {count}; {remedy}")
    return 2


def _review(args: argparse.Namespace) -> int:
    from meanshifter.analysis.review import Part, parts_of
    from meanshifter.analysis.review_page import count_reviewed, review
    from meanshifter.cli.evaluate import open_scored
    from meanshifter.jobs.inputs import find_images

    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit: {args.limit}; expected at least 1")
    images = find_images(args.unlabeled) if args.unlabeled else []
    if args.dataset is None:
        if given := reading_given(args):
            option = next(iter(given)).replace("_", "-")
            raise InputError(f"--{option}: only applies with a DATASET; a run is read as it was evaluated")
        refuse_without_dataset(args)
        parts = parts_of(args.model, device=args.device)
    else:
        args.split = "val" if args.split is None else args.split
        predictor = load_predictor(args.model, args)
        parts = [Part(predictor, open_scored(args, predictor.model.label_space, [args.model]))]
    done = review(
        parts,
        args.out,
        unlabeled=images,
        shown=args.show,
        limit=args.limit,
        overwrite=args.overwrite,
        progress=True,
    )
    reviewed = counted(count_reviewed(parts, args.limit), "image")
    echo(f"{counted(len(done.suspects), 'suspicious region')} in {reviewed}")
    for rank, suspect in enumerate(done.suspects[:10], 1):
        space = parts[0].dataset.label_space
        classes = f"labeled {space.names[suspect.labeled]}, predicted {space.names[suspect.predicted]}"
        echo(f"{rank:>3}  {suspect.image}: {classes}, {suspect.pixels:,} pixels")
    if done.candidates:
        echo("", f"{counted(len(done.candidates), 'image')} to label, the first: {done.candidates[0].path}")
    echo("", f"page: {done.page.resolve()}")
    return 0
