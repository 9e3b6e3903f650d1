"""Label maps as an evaluation server takes them: PNGs of the data set's own values, in one archive."""

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
from meanshifter.data.decoding import orientation
from meanshifter.data.labels import LabelSpace
from meanshifter.data.reading import read_mask
from meanshifter.errors import InputError
from meanshifter.files import write_beside
from meanshifter.inference.files import read_ahead

Add = Callable[[str, bytes], None]
"""Adds a file of this name and content to an archive."""


def open_images(name: str, root: str | Path | None, split: str) -> PublicDataset:
    """A split of a data set known by name, of which the images are to be predicted, with labels or without.

    Raises:
        InputError: an unknown name, a data set without files of its own, and as the data set itself.
    """
    dataset = None if name in ("folder", "shapes") else open_dataset(name, root, split, labeled=False)
    if not isinstance(dataset, PublicDataset):
        known = ", ".join(home for home in HOMES if home not in ("folder", "shapes"))
        raise InputError(f"--root: {name} is no data set of files known by name ({known}); name images or their folder")
    return dataset


def check_submission(dataset: PublicDataset, file: str | Path) -> SubmissionFormat:
    """The form that the data set's server takes, if `file` is a name for it and can be written.

    Raises:
        InputError: no server, another ending than its archives have, a folder, or a place that cannot be written.
    """
    file, form = Path(file), dataset.about.submission
    if form is None:
        raise InputError(f"--submission: {dataset.name} has no evaluation server; leave it out")
    if not file.name.endswith(form.archive) or file.name == form.archive:
        raise InputError(f"--submission: {file}; {dataset.name} is submitted as NAME{form.archive}")
    if file.is_dir():
        raise InputError(f"--submission: {file} is a folder; name a file, such as {file / f'labels{form.archive}'}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--submission: {file.parent} cannot be made ({error.strerror}); choose another place"
        ) from error
    return form


def write_submission(dataset: PublicDataset, folder: str | Path, file: str | Path) -> int:
    """Pack the label maps of a split for its evaluation server; returns how many.

    The PNGs hold the values that the data set's own masks have for the classes (ADE20K: 1 to 150), 8 bits of gray, or
    indices of its palette where it asks for that. Equal label maps make an equal archive, byte by byte.

    Args:
        dataset: the split; each of its images NAME.jpg must have its label map.
        folder: the label maps, NAME.png of train ids, as `predict` writes them.
        file: the archive, written beside and renamed into place.

    Raises:
        InputError: as `check_submission`; label maps that are missing, of another size than their image, or with
            values that are no class. Nothing is written then.
    """
    form, folder = check_submission(dataset, file), Path(folder)
    maps = {path: folder / f"{path.stem}.png" for path in dataset.image_paths}
    if missing := [path.name for path in maps.values() if not path.is_file()]:
        few = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise InputError(
            f"{file}: not written, since {folder} lacks {len(missing):,} of {len(maps):,} label maps ({few}); run the "
            "same command again, which labels the images that are left"
        )

    def write(target: IO[bytes]) -> None:
        with _archive(target, form.archive) as add:
            for image, content in read_ahead(lambda image: _png(image, maps[image], dataset.space, form), sorted(maps)):
                add(f"{form.folder}{image.stem}.png", content.result())

    write_beside(file, write)
    return len(maps)


def published_count(dataset: FileDataset) -> int | None:
    """How many images the published split has; None where that is not known."""
    return dataset.about.images.get(dataset.split) if isinstance(dataset, PublicDataset) else None


def _png(image: Path, path: Path, space: LabelSpace, form: SubmissionFormat) -> bytes:
    labels = read_mask(path, LabelSpace(space.names, ignore=space.ignore))
    with Image.open(image) as picture:
        size = picture.size[::-1] if orientation(picture) >= 5 else picture.size
    if labels.shape[::-1] != size:
        raise InputError(
            f"{path}: {labels.shape[1]}×{labels.shape[0]}, but its image {image} is {size[0]}×{size[1]} "
            "(width×height); remove it and predict again"
        )
    if np.any(labels == space.ignore):
        raise InputError(f"{path}: value {space.ignore} is no class; every pixel needs one, so predict again")
    packed = Image.fromarray(np.array(space.raw_values(), np.uint8)[labels])
    if form.palette:
        colors = dict(zip(space.raw_values(), space.palette, strict=True))
        packed.putpalette([channel for value in range(256) for channel in colors.get(value, (0, 0, 0))])
    file = io.BytesIO()
    packed.save(file, format="PNG")
    return file.getvalue()


@contextmanager
def _archive(target: IO[bytes], kind: str) -> Iterator[Add]:
    """What adds files to a .zip or .tgz without times, owners or the names of this machine."""
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
