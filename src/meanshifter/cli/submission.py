"""The options of `predict` that read the images of a data set by name and pack their label maps for its server."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meanshifter.cli.printing import echo, say
from meanshifter.errors import InputError

if TYPE_CHECKING:
    from meanshifter.data.catalog.public import PublicDataset
    from meanshifter.inference.archive import Summary
    from meanshifter.interop.contract import PatchModel


def add_submission_options(parser: argparse.ArgumentParser) -> None:
    """The options that `open_submission` reads."""
    group = parser.add_argument_group(
        "data sets by name",
        "With --root, INPUT is a name that `meanshifter data list` prints, and the images of a split are labeled, "
        "which may be without labels of its own: predict MODEL ade20k --root DIR --submission labels.zip",
    )
    group.add_argument("--root", metavar="DIR", type=Path, help="folder of the data set")
    group.add_argument("--split", metavar="SPLIT", help="which part of it (default: test)")
    group.add_argument(
        "--submission",
        metavar="FILE",
        type=Path,
        help="pack the label maps as the data set's evaluation server takes them, when all are there; keeps a manifest "
        "and reads images as `evaluate` does",
    )


@dataclass(frozen=True)
class Submission:
    """What is packed, and where."""

    dataset: PublicDataset
    file: Path

    def check(self, model: PatchModel) -> None:
        """Refuse a model of other classes; raises InputError."""
        from meanshifter.evaluation.evaluate import check_classes

        check_classes(model.labels, self.dataset.space, self.dataset.name)

    def finish(self, summary: Summary, out: str) -> None:
        """Pack the label maps in `out` if none has failed, and say what came of it.

        Raises:
            InputError: as `write_submission`.
        """
        from meanshifter.inference.submission import published_count, write_submission

        total = len(self.dataset)
        if summary.failed:
            say(
                f"{self.file}: not written, since {summary.failed:,} of {total:,} label maps are missing; mend their "
                "images, and the same command labels these alone"
            )
            return
        count = write_submission(self.dataset, out, self.file)
        values = self.dataset.space.raw_values()
        echo(f"{count:,} label maps of the values {min(values)} to {max(values)} packed into {self.file}")
        published = published_count(self.dataset)
        if published is not None and count != published:
            say(
                f"{self.file}: {count:,} label maps, but split {self.dataset.split!r} of {self.dataset.name} has "
                f"{published:,} images; the server expects all of them"
            )


def open_submission(args: argparse.Namespace) -> Submission | None:
    """Put the images of a data set by name in the place of the inputs; what is to be packed, if anything is.

    Raises:
        InputError: options that need others, and what is said of the data set or the file.
    """
    from meanshifter.data.catalog import HOMES
    from meanshifter.data.remote import is_address
    from meanshifter.inference.submission import check_submission, open_images

    named = args.inputs[0] if len(args.inputs) == 1 else None
    if args.root is None:
        for option in ("split", "submission"):
            if getattr(args, option) is not None:
                raise InputError(f"--{option}: is for a data set by name; add --root DIR, its folder")
        if named in HOMES and named not in ("folder", "shapes") and not Path(named).exists():
            raise InputError(f"--root: missing; {named} is read from a folder")
        return None
    if named is None:
        raise InputError(f"--root: given beside {len(args.inputs)} inputs; name one data set, such as ade20k")
    dataset = open_images(named, args.root, "test" if args.split is None else args.split)
    args.inputs = [str(path) for path in dataset.image_paths]
    if args.submission is None:
        return None
    check_submission(dataset, args.submission)
    if args.mean_shift_layers is not None and len(args.mean_shift_layers) > 1:
        steps = " ".join(map(str, args.mean_shift_layers))
        raise InputError(
            f"--mean-shift-layers: {steps}; a submission holds one label map of each image: give one number"
        )
    if is_address(args.out):
        raise InputError(f"--out: {args.out} is an address; with --submission label maps are kept in a folder")
    args.resume = True
    return Submission(dataset, args.submission)
