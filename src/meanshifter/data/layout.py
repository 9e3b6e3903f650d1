"""Pair image files with mask files, and the folder layouts in which they are found.

Files are listed first. A dataset then rejects a listing at the first problem; the doctor reports all of them.
"""

from __future__ import annotations

import os
import shlex
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Final
from unicodedata import normalize

from meanshifter.data.reading import IMAGE_SUFFIXES, PassedOver, files_below, is_hidden, said
from meanshifter.errors import InputError, counted


@dataclass(frozen=True)
class Pair:
    """An image and its mask."""

    name: str
    image: Path
    mask: Path


class NoSuchSplitError(InputError):
    """The files of a split are missing; not an error for optional splits."""


@dataclass(frozen=True)
class Listing:
    """The images and the masks of one split, by name."""

    where: Path
    """The folder or list, for messages."""
    images: Mapping[str, Path]
    masks: Mapping[str, Path]
    doubles: tuple[tuple[str, Path, Path], ...] = ()
    """Name, the file that is listed, and another file of the same name."""
    lost: tuple[str, ...] = ()
    """Names in the dataset's own list that have no image."""
    passed: PassedOver = field(default_factory=PassedOver)
    """Skipped files."""
    remedy: str = "an image and its mask have the same name up to the extension"
    """What a message about images without masks recommends."""

    def pairs(self) -> list[Pair]:
        """The pairs in the order of the images; skipped files are a UserWarning.

        Raises:
            InputError: two files of one name, a listed name without an image, an image without a mask, or a mask
                without an image.
        """
        self._check_names()
        lacks = [
            f"{counted(len(names), kind)} without {other} ({', '.join(names[:3])}{more})"
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
        """The images of a split without labels, in their order; warns and raises as `pairs`."""
        self._check_names()
        self._warn()
        return self.images

    def _check_names(self) -> None:
        for _, kept, other in self.doubles:
            raise InputError(f"{other}: {kept.name} has the same name up to the extension; keep one of them")
        if self.lost:
            names = ", ".join(self.lost[:3])
            count = counted(len(self.lost), "name")
            raise InputError(f"{self.where}: {count} without an image ({names}); add the images or remove the names")

    def _warn(self) -> None:
        if self.passed:
            warnings.warn(f"{self.where}: {said(self.passed)}", stacklevel=3)


Files = tuple[dict[str, Path], list[tuple[str, Path, Path]], PassedOver]
"""Name → file, the doubles of `Listing`, and the skipped files."""


def find_files(folder: Path, suffixes: Sequence[str], what: str, *, avoid: Path | None = None) -> Files:
    """List the files below a folder by name (path in the folder, without extension), sorted; see `files_below`.

    Names are in Unicode's composed form (NFC): macOS and some archives write "ü" as two characters. Raises InputError
    if there are no such files.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a folder with {what}")
    files: dict[str, Path] = {}
    doubles, passed = [], PassedOver()
    for path in sorted(files_below(folder, suffixes, passed, avoid=avoid)):
        name = normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())
        if files.setdefault(name, path) is not path:
            doubles.append((name, files[name], path))
    if not files:
        kinds = " ".join(suffix.lstrip(".") for suffix in suffixes)
        there = f" ({said(passed)})" if passed else ""
        raise InputError(f"{folder}: no {what}{there}; expected files of type {kinds}")
    return dict(sorted(files.items())), doubles, passed


def list_folders(images: Path, masks: Path, mask_suffix: str = "") -> Listing:
    """List images and masks of the same names, apart from `mask_suffix` at the end of a mask's name.

    With a suffix, both may be in one folder; one folder may also be inside the other.

    Raises:
        InputError: as `find_files`; or one folder for both without a suffix, or no mask with the suffix.
    """
    mask_suffix = normalize("NFC", mask_suffix)
    found, doubles, passed = find_files(images, IMAGE_SUFFIXES, "images", avoid=masks)
    drawn, twice, more = find_files(masks, IMAGE_SUFFIXES, "masks", avoid=images)
    where = images.parent if images.parent == masks.parent else images
    one = images.resolve() == masks.resolve()
    if one:
        if not mask_suffix:
            raise InputError(
                f"{images}: holds both images and masks; give the suffix of the masks, such as --data.mask_suffix _mask"
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


SPLIT_FOLDERS: Final = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}
"""Split → possible names of its folder."""


@dataclass(frozen=True)
class FolderLayout:
    """Where a folder keeps its images and masks, and what it holds out; a recipe's `data` has fields of these names."""

    images: str | None = None
    """Folder of the images; None: images."""
    masks: str | None = None
    """Folder of the masks; None: masks. It may be that of the images if the masks have a suffix."""
    mask_suffix: str | None = None
    """What a mask's name adds to that of its image before the extension, such as _mask; None: nothing."""
    val_share: float | None = None
    """Share of the images held out as val if there is no folder of the split val; None: about 0.15."""

    def __post_init__(self) -> None:
        if self.val_share is not None and not 0 < self.val_share < 1:
            raise InputError(f"data.val_share: {self.val_share}; expected a share between 0 and 1, such as 0.2")

    def options(self) -> str:
        """The fields as command-line options, each after a space; empty for the default layout."""
        given = ((field.name, getattr(self, field.name)) for field in fields(self))
        return "".join(f" --data.{name} {shlex.quote(str(value))}" for name, value in given if value is not None)

    def folders(self, root: Path) -> dict[str, tuple[Path, Path]]:
        """Split → (images, masks); "all" if there are no split folders.

        Raises:
            InputError: folders are missing, a split has two folders, or two splits have the same.
        """
        if not root.is_dir():
            raise InputError(f"{root}: no such folder; check the path")
        found = self._splits(root) or {"all": (root / self._images, root / self._masks)}
        for name, folder in zip((self._images, self._masks), next(iter(found.values())), strict=True):
            if not folder.is_dir():
                raise _unlike(root, name)
        owners: dict[str, str] = {}
        for split, (images, _) in found.items():
            if (other := owners.setdefault(os.path.realpath(images), split)) != split:
                raise InputError(f"{images}: is also the folder of split {other!r}; give each split its own images")
        return found

    @property
    def is_usual(self) -> bool:
        """Whether images and masks are in the usual folders."""
        return replace(self, val_share=None) == USUAL

    def fits(self, root: Path) -> bool:
        """Whether a folder has the folders of this layout, with or without split folders."""
        found = self._splits(root).values() or [(root / self._images, root / self._masks)]
        return all(folder.is_dir() for pair in found for folder in pair)

    @property
    def _images(self) -> str:
        return "images" if self.images is None else self.images

    @property
    def _masks(self) -> str:
        return "masks" if self.masks is None else self.masks

    def _splits(self, root: Path) -> dict[str, tuple[Path, Path]]:
        """The existing split folders, inside those of images and masks or above them."""
        layouts: dict[str, tuple[Path, Path]] = {}
        for split, spellings in SPLIT_FOLDERS.items():
            for word in spellings:
                inside = (root / self._images / word, root / self._masks / word)
                outside = (root / word / self._images, root / word / self._masks)
                for images, masks in (inside, outside):
                    first = layouts.setdefault(split, (images, masks))[0] if images.is_dir() else images
                    if os.path.realpath(first) != os.path.realpath(images):
                        raise InputError(f"{images}: split {split!r} already has the folder {first}; keep one of them")
        return layouts


USUAL: Final = FolderLayout()
_PUBLIC: Final = {
    "ImageSets/Segmentation": "pascal_voc",
    "leftImg8bit/train": "cityscapes",
    "trainannot": "camvid",
    "annotations/training": "ade20k",
}
"""Folder → the dataset to which it belongs."""
_MASK_WORDS: Final = ("mask", "label", "annot", "segm", "truth", "gt", "target")
_MOST_FILES: Final = 100_000
_DEPTH: Final = 3
_Stems = Mapping[str, Counter[str]]  # file name without extension → extensions


def _unlike(root: Path, lacking: str) -> InputError:
    """The error about a missing folder: what is there instead, and the options that would read it."""
    for folder, name in _PUBLIC.items():
        if (root / folder).is_dir():
            return InputError(
                f"{root}: no folder {lacking}/, but {folder}/, as in {name}; add --data.name {name} for training, or "
                f"pass {name} --root {root} to other commands"
            )
    tree = dict(_tree(root))
    there = "; ".join(
        f"{name}/: " + ", ".join(f"{count:,} {kind or 'without extension'}" for kind, count in kinds.most_common(3))
        for name, stems in sorted(tree.items())[:8]
        for kinds in [sum(stems.values(), Counter[str]())]
    )
    more = "" if len(tree) <= 8 else f" and {len(tree) - 8} more folders"
    layouts = (layout for _, layout in sorted(_candidates(tree), key=lambda found: -found[0]))
    guess = next((layout for layout in layouts if layout.fits(root)), None)
    remedy = (
        "put images into images/ and masks of the same names into masks/, or name their folders with --data.images and "
        "--data.masks; masks are images of class numbers or colors"
        if guess is None
        else f"to read it, add{guess.options()}"
    )
    return InputError(f"{root}: no folder {lacking}/; found {there or 'no files'}{more}; {remedy}")


def _tree(root: Path) -> Iterator[tuple[str, _Stems]]:
    """The folders below `root` that hold files, and their files, within limits on depth and number."""
    left = _MOST_FILES
    for folder, inside, files in os.walk(root):
        here = Path(folder).relative_to(root)
        inside[:] = [] if len(here.parts) >= _DEPTH else sorted(name for name in inside if not is_hidden(name))
        stems: dict[str, Counter[str]] = {}
        for name in files[:left]:
            if not is_hidden(name):
                stems.setdefault(Path(name).stem, Counter())[Path(name).suffix.lower()] += 1
        left -= len(files[:left])
        if stems:
            yield here.as_posix(), stems


def _candidates(tree: Mapping[str, _Stems]) -> Iterator[tuple[float, FolderLayout]]:
    """Layouts under which files of two folders, or of one, pair up, each with a score.

    Folders are taken with the names of splits removed from their paths, and as they are.
    """
    words = {word for spellings in SPLIT_FOLDERS.values() for word in spellings}
    merged: dict[str, dict[str, Counter[str]]] = {}
    for name, stems in tree.items():
        plain = "/".join(part for part in name.split("/") if part not in words) or "."
        merged.setdefault(plain, {}).update(_images_of(stems))
    for folders in (merged, {name: _images_of(stems) for name, stems in tree.items()}):
        for images, of_images in folders.items():
            for masks, of_masks in folders.items():
                suffix, share = _suffix(of_images, of_masks, same=images == masks)
                if share > 0.4 and _may_be_masks(masks if images != masks else suffix, of_images, of_masks):
                    named = any(word in masks.lower() for word in _MASK_WORDS)
                    yield share + named, FolderLayout(images, masks, suffix or None)


def _images_of(stems: _Stems) -> dict[str, Counter[str]]:
    return {stem: kinds for stem, kinds in stems.items() if any(kind in IMAGE_SUFFIXES for kind in kinds)}


def _suffix(images: _Stems, masks: _Stems, *, same: bool) -> tuple[str, float]:
    """What most masks' names add to those of their images, and the share of the masks that have it."""
    found: Counter[str] = Counter()
    sample = sorted(masks)[:200]
    for stem in sample:
        found.update(stem[cut:] for cut in range(len(stem) - same, 0, -1) if stem[:cut] in images)
    suffix, count = max(found.items(), key=lambda item: (item[1], item[0] == ""), default=("", 0))
    return suffix, count / max(len(sample), 1)


def _may_be_masks(name: str, images: _Stems, masks: _Stems) -> bool:
    """Whether the name says so, or the images are JPEGs and the masks are not."""
    if any(word in name.lower() for word in _MASK_WORDS):
        return True
    lossy = [any(kinds.keys() & {".jpg", ".jpeg"} for kinds in stems.values()) for stems in (images, masks)]
    return lossy[0] and not lossy[1]


def with_given(layout: FolderLayout, given: FolderLayout) -> FolderLayout:
    """`layout`, with the fields that are not None in `given` replaced."""
    own = {field.name: getattr(given, field.name) for field in fields(given)}
    return replace(layout, **{name: value for name, value in own.items() if value is not None})
