"""Label maps that `meanshifter predict --confidence` wrote, as a dataset: the image of each, and the classes.

The record `predictions.json` lies beside the label maps. With it, their folder is read like one of images and masks,
although the images lie elsewhere. The label maps hold train ids.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from meanshifter.data.labels import LabelSpace
from meanshifter.data.layout import USUAL, Listing
from meanshifter.errors import InputError
from meanshifter.utils.files import dump_json, parse_json, read_text, write_text

RECORD: Final = "predictions.json"
VERSION: Final = 1
LARGEST: Final = 2**30
"""Bytes; some million images."""


@dataclass(frozen=True)
class Predictions:
    """The record of a folder of label maps."""

    label_space: LabelSpace
    """The classes of the model: names and colors."""
    images: Mapping[str, str]
    """Path of a label map below the folder, with slashes → path of its image, relative to the folder."""

    def listing(self, folder: Path) -> Listing:
        """The images and their label maps, by the path of the label map without extension."""
        base = Path(os.path.realpath(folder))  # relative paths lead out of the folder itself, not of a link to it
        names = {place: PurePosixPath(place).with_suffix("").as_posix() for place in sorted(self.images)}
        images = {names[place]: Path(os.path.normpath(base / self.images[place])) for place in names}
        gone = [path for path in images.values() if not path.is_file()]
        if gone:
            raise InputError(
                f"{folder / RECORD}: {len(gone):,} of {len(images):,} images are missing, such as {gone[0]}; restore "
                "them, or predict again"
            )
        masks = {name: folder / place for place, name in names.items() if (folder / place).is_file()}
        return Listing(folder, images, masks, remedy="label maps are missing: predict again")


def predictions_in(folder: Path) -> Predictions | None:
    """The record of a folder; None without one, or if the folder has images and masks of its own.

    Raises:
        InputError: the record is damaged, or of another version.
    """
    path = folder / RECORD
    if not path.is_file() or USUAL.fits(folder):
        return None
    stored = parse_json(read_text(path, LARGEST), path)
    remedy = "remove it, and predict again with --confidence"
    try:
        if stored["format_version"] != VERSION:
            raise InputError(f"format_version {stored['format_version']!r:.20}; expected {VERSION}")
        space = LabelSpace.from_dict({"raw": None, "colors": None, "ignore": -1, **stored["labels"]})
        images = {str(place): str(image) for place, image in stored["images"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
        raise InputError(f"{path}: not a record of label maps ({error}); {remedy}") from error
    return Predictions(space, images)


def record_predictions(folder: Path, label_space: LabelSpace, images: Mapping[Path, Path]) -> None:
    """Write the record of the label maps in `folder`: label map → image. Label maps that do not exist are left out.

    Label maps of the same classes that an earlier record lists stay listed.

    Raises:
        InputError: the file cannot be written.
    """
    base = os.path.realpath(folder)
    listed = {
        mask.relative_to(folder).as_posix(): _relative(image, base) for mask, image in images.items() if mask.is_file()
    }
    try:
        former = predictions_in(folder)
    except InputError:  # damaged: replaced
        former = None
    if former is not None and former.label_space.names == label_space.names:
        kept = {place: image for place, image in former.images.items() if (folder / place).is_file()}
        listed = {**kept, **listed}
    labels = {"names": list(label_space.names), "palette": [list(color) for color in label_space.palette]}
    record = {"format_version": VERSION, "labels": labels, "images": dict(sorted(listed.items()))}
    write_text(folder / RECORD, dump_json(record, indent=1) + "\n")


def _relative(image: Path, base: str) -> str:
    """The path of an image from `base`: folders that are moved together keep their record."""
    full = os.path.realpath(image)
    try:
        return Path(os.path.relpath(full, base)).as_posix()
    except ValueError:  # another drive of Windows
        return Path(full).as_posix()
