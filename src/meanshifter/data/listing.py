"""Which image file belongs to which mask file: listed first, and paired or refused then.

The doctor reports all that is wrong with a listing; a data set refuses it at the first.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize

from meanshifter.data.reading import IMAGE_SUFFIXES
from meanshifter.data.walk import PassedOver, files_below, said
from meanshifter.errors import InputError


@dataclass(frozen=True)
class Pair:
    """An image and its mask."""

    name: str
    image: Path
    mask: Path


class NoSuchSplitError(InputError):
    """The files of a split are not there, which is no fault of a split that a data set may do without."""


@dataclass(frozen=True)
class Listing:
    """The images and the masks of one split, by name."""

    where: Path
    """What messages call it."""
    images: Mapping[str, Path]
    masks: Mapping[str, Path]
    doubles: tuple[tuple[str, Path, Path], ...] = ()
    """Name, the file that is listed, and another of the same name."""
    lost: tuple[str, ...] = ()
    """Names that the data set's own list has and no image."""
    passed: PassedOver = field(default_factory=PassedOver)
    """What lies among the files and is neither image nor mask."""
    remedy: str = "an image and its mask share their name up to the extension"
    """What is said of images without masks."""

    def pairs(self) -> list[Pair]:
        """The pairs, in the order of the images; what was passed over is a UserWarning.

        Raises:
            InputError: two files of one name, a listed name without an image, an image without a mask, or a mask
                without an image: how many, and the first names.
        """
        self._refuse_names()
        lacks = [
            f"{len(names)} {kind}{'s'[: len(names) != 1]} without {other} ({', '.join(names[:3])}{more})"
            for names, kind, other in (
                (sorted(self.images.keys() - self.masks.keys()), "image", "mask"),
                (sorted(self.masks.keys() - self.images.keys()), "mask", "image"),
            )
            for more in [", …" if len(names) > 3 else ""]
            if names
        ]
        if lacks:
            raise InputError(f"{self.where}: {' and '.join(lacks)}; {self.remedy}")
        self._warn()
        return [Pair(name, image, self.masks[name]) for name, image in self.images.items()]

    def unlabeled(self) -> Mapping[str, Path]:
        """The images of a split without labels, in their order; what was passed over is a UserWarning.

        Raises:
            InputError: two files of one name, or a listed name without an image.
        """
        self._refuse_names()
        self._warn()
        return self.images

    def _refuse_names(self) -> None:
        for _, kept, other in self.doubles:
            raise InputError(f"{other}: {kept.name} has the same name up to the extension; keep one of them")
        if self.lost:
            names = ", ".join(self.lost[:3])
            count = f"{len(self.lost)} name{'s'[: len(self.lost) != 1]}"
            raise InputError(f"{self.where}: {count} without an image ({names}); add the images, or take them off")

    def _warn(self) -> None:
        if self.passed:
            warnings.warn(f"{self.where}: {said(self.passed)}", stacklevel=3)


Files = tuple[dict[str, Path], list[tuple[str, Path, Path]], PassedOver]
"""Name → file, the doubles of `Listing`, and what was passed over."""


def find_files(folder: Path, suffixes: Sequence[str], what: str, *, avoid: Path | None = None) -> Files:
    """The files below a folder by name (path below it, without extension), sorted; see `files_below`.

    Names are in Unicode's composed form (NFC): macOS and some archives spell "ü" in two characters.

    Raises:
        InputError: no such folder, or no such files.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {what} are looked for there")
    files: dict[str, Path] = {}
    doubles, passed = [], PassedOver()
    for path in sorted(files_below(folder, suffixes, passed, avoid=avoid)):
        name = normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())
        if files.setdefault(name, path) is not path:
            doubles.append((name, files[name], path))
    if not files:
        kinds = " ".join(suffix.lstrip(".") for suffix in suffixes)
        there = f" ({said(passed)})" if passed else ""
        raise InputError(f"{folder}: no {what}{there}; files of type {kinds} are looked for")
    return dict(sorted(files.items())), doubles, passed


def list_folders(images: Path, masks: Path, mask_suffix: str = "") -> Listing:
    """Images and masks that share their names, up to `mask_suffix` at the end of a mask's.

    The two may be one folder where there is a suffix, or one inside the other.

    Raises:
        InputError: as `find_files`; one folder for both and no suffix, or no mask with it.
    """
    mask_suffix = normalize("NFC", mask_suffix)
    found, doubles, passed = find_files(images, IMAGE_SUFFIXES, "images", avoid=masks)
    drawn, twice, more = find_files(masks, IMAGE_SUFFIXES, "masks", avoid=images)
    where = images.parent if images.parent == masks.parent else images
    one = images.resolve() == masks.resolve()
    if one:
        if not mask_suffix:
            raise InputError(
                f"{images}: the folder of images and masks; tell masks by a suffix, --data.mask_suffix _mask"
            )
        where, more = images, PassedOver()
        found = {name: path for name, path in found.items() if not name.endswith(mask_suffix)}
        doubles = [double for double in doubles if not double[0].endswith(mask_suffix)]
    if mask_suffix:
        others = sum(not name.endswith(mask_suffix) for name in drawn)
        if others == len(drawn):
            raise InputError(f"{masks}: none of {others} masks, such as {next(iter(drawn))}, ends in {mask_suffix!r}")
        if others and not one:
            more[f"masks that do not end in {mask_suffix}"] += others
        drawn = {name.removesuffix(mask_suffix): path for name, path in drawn.items() if name.endswith(mask_suffix)}
        twice = [
            (name.removesuffix(mask_suffix), kept, other) for name, kept, other in twice if name.endswith(mask_suffix)
        ]
    return Listing(where, found, drawn, (*doubles, *twice), passed=passed + more)
