"""Label maps in the format of an evaluation server: PNGs with the dataset's own values, in one archive."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from gzip import GzipFile
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from meanshifter.data.catalog import HOMES, open_dataset
from meanshifter.data.catalog.public import PublicDataset, SubmissionFormat
from meanshifter.data.datasets import FileDataset
from meanshifter.data.images import orientation
from meanshifter.data.labels import LabelSpace
from meanshifter.data.reading import read_mask
from meanshifter.errors import InputError, summarize_error
from meanshifter.inference.segmentation import read_ahead
from meanshifter.utils.files import write_atomically

Add = Callable[[str, bytes], None]
"""Adds a file of this name and content to an archive."""


def open_images(name: str, root: str | Path | None, split: str) -> PublicDataset:
    """Open the images of a split of a public dataset, with or without labels.

    Raises:
        InputError: an unknown name, a dataset that is not read from files, or any error of the dataset itself.
    """
    dataset = None if name in ("folder", "shapes") else open_dataset(name, root, split, labeled=False)
    if not isinstance(dataset, PublicDataset):
        known = ", ".join(home for home in HOMES if home not in ("folder", "shapes"))
        raise InputError(f"--root: {name} is not a known dataset ({known}); pass images or their folder")
    return dataset


def check_submission(dataset: PublicDataset, file: str | Path) -> SubmissionFormat:
    """The format of the dataset's server, after checking that `file` is a valid place for a submission.

    Raises:
        InputError: no server, a wrong file name extension, a folder, or a place that cannot be written.
    """
    file, form = Path(file), dataset.about.submission
    if form is None:
        raise InputError(f"--submission: {dataset.name} has no evaluation server; remove the option")
    if not file.name.endswith(form.archive) or file.name == form.archive:
        raise InputError(f"--submission: {file}; submissions to {dataset.name} are called NAME{form.archive}")
    if file.is_dir():
        raise InputError(f"--submission: {file} is a folder; name a file, such as {file / f'labels{form.archive}'}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--submission: {file.parent} cannot be created ({summarize_error(error)}); choose another place"
        ) from error
    return form


def write_submission(dataset: PublicDataset, folder: str | Path, file: str | Path) -> int:
    """Pack the label maps of a split for its evaluation server; returns their number.

    The PNGs hold the values of the dataset's own masks (ADE20K: 1 to 150), as 8-bit grayscale or, where the server
    asks for it, as indices of the dataset's palette. Equal label maps make archives of equal bytes.

    Args:
        dataset: the split; each of its images NAME.jpg must have a label map.
        folder: the label maps, NAME.png of train ids, as `predict` writes them.
        file: the archive, which is written atomically.

    Raises:
        InputError: as `check_submission`; label maps that are missing, differ in size from their image, or hold values
            of no class. Nothing is written then.
    """
    form, folder = check_submission(dataset, file), Path(folder)
    maps = {path: folder / f"{path.stem}.png" for path in dataset.image_paths}
    if missing := [path.name for path in maps.values() if not path.is_file()]:
        few = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise InputError(
            f"{file}: not written, since {folder} lacks {len(missing):,} of {len(maps):,} label maps ({few}); run the "
            "same command again, which labels the remaining images"
        )

    def write(target: IO[bytes]) -> None:
        with _archive(target, form.archive) as add:
            for image, content in read_ahead(lambda image: _png(image, maps[image], dataset.space, form), sorted(maps)):
                add(f"{form.folder}{image.stem}.png", content.result())

    write_atomically(file, write)
    return len(maps)


def published_count(dataset: FileDataset) -> int | None:
    """The number of images of the published split; None where it is not known."""
    return dataset.about.images.get(dataset.split) if isinstance(dataset, PublicDataset) else None


def _png(image: Path, path: Path, label_space: LabelSpace, form: SubmissionFormat) -> bytes:
    labels = read_mask(path, LabelSpace(label_space.names, ignore=label_space.ignore))
    with Image.open(image) as picture:
        size = picture.size[::-1] if orientation(picture) >= 5 else picture.size
    if labels.shape[::-1] != size:
        raise InputError(
            f"{path}: {labels.shape[1]}×{labels.shape[0]}, but its image {image} is {size[0]}×{size[1]} "
            "(width×height); delete it and predict again"
        )
    if np.any(labels == label_space.ignore):
        raise InputError(f"{path}: value {label_space.ignore} is not a class; every pixel needs one, so predict again")
    packed = Image.fromarray(np.array(label_space.raw_values(), np.uint8)[labels])
    if form.palette:
        colors = dict(zip(label_space.raw_values(), label_space.palette, strict=True))
        packed.putpalette([channel for value in range(256) for channel in colors.get(value, (0, 0, 0))])
    file = io.BytesIO()
    packed.save(file, format="PNG")
    return file.getvalue()


@contextmanager
def _archive(target: IO[bytes], kind: str) -> Iterator[Add]:
    """Open a .zip or .tgz without times, owners or local paths; yields the function that adds a file."""
    if kind == ".zip":
        with zipfile.ZipFile(target, "w") as packed:  # stored: PNGs are compressed

            def add_to_zip(name: str, content: bytes) -> None:
                info = zipfile.ZipInfo(name)
                info.create_system, info.external_attr = 3, 0o100644 << 16
                packed.writestr(info, content)

            yield add_to_zip
        return
    with (
        GzipFile("", "wb", 1, target, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):

        def add_to_tar(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

        yield add_to_tar
