"""`meanshifter data`: list the data sets, download one, or check one."""

from __future__ import annotations

import argparse
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from meanshifter.cli import data_check
from meanshifter.cli.printing import echo
from meanshifter.errors import InputError

if TYPE_CHECKING:
    from meanshifter.data.catalog.public import About


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    commands.add_parser("list", help="names, classes, images, terms and sources")
    download = commands.add_parser("download", help="fetch a data set, check it and unpack it")
    download.add_argument("name", metavar="NAME", help="a name that `meanshifter data list` prints")
    download.add_argument("dir", metavar="DIR", type=Path, help="folder to unpack into; made if need be")
    download.add_argument(
        "--split",
        metavar="SPLIT",
        help="fetch what this split needs beside the data set: ade20k test, pascal_voc trainaug",
    )
    data_check.configure(commands.add_parser("check", help="tell all that is wrong with images and masks"))


def run(args: argparse.Namespace) -> int:
    """List, download or check."""
    if args.action == "check":
        return data_check.run(args)
    if args.action == "list":
        _print_table()
    else:
        _download(args.name, args.dir, args.split)
    return 0


def _print_table() -> None:
    rows = [("name", "classes", "download", "images")]
    for about in _abouts():
        images = ", ".join(f"{split} {count:,}" for split, count in about.images.items())
        fetch = "by hand" if about.archive is None else "yes"
        rows.append((about.name, str(about.classes), "not needed" if about.name == "shapes" else fetch, images))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    echo("")
    for about in _abouts():
        echo(f"{about.name}: {about.title}; {about.terms}; {about.home}")
    echo("folder: your own images/ and masks/ in one folder; `meanshifter train DIR` learns from them")


def _abouts() -> list[About]:
    from meanshifter.data.catalog.ade20k import ADE20K
    from meanshifter.data.catalog.camvid import CamVid
    from meanshifter.data.catalog.cityscapes import Cityscapes
    from meanshifter.data.catalog.pascal_voc import PascalVOC
    from meanshifter.data.catalog.public import About
    from meanshifter.data.catalog.shapes import LENGTHS, NAMES

    shapes = About(
        name="shapes",
        title="overlapping shapes on textured ground",
        classes=len(NAMES),
        images=LENGTHS,
        terms="generated",
        home="drawn as it is read",
    )
    return [shapes, *(kind.about for kind in (CamVid, ADE20K, PascalVOC, Cityscapes))]


def _download(name: str, folder: Path, split: str | None) -> None:
    from meanshifter.data.catalog.public import PublicDataset

    names = [about.name for about in _abouts()]
    kinds = {kind.about.name: kind for kind in PublicDataset.__subclasses__()}
    if name == "shapes":
        raise InputError("shapes: generated as it is read; there is nothing to download")
    if name not in kinds:
        near = get_close_matches(name.lower(), names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"names are {', '.join(names)}"
        raise InputError(f"data set {name!r} is unknown; {hint}")
    echo(f"{name}: {kinds[name].about.terms}")
    made = kinds[name].download(folder, split)
    echo(f"{name}{'' if split is None else f' {split}'} is in {made}")
