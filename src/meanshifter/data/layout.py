"""Where the images and masks of a folder lie, split by split, and what to say of a folder that lies otherwise."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final

from meanshifter.data.reading import IMAGE_SUFFIXES
from meanshifter.data.walk import is_hidden
from meanshifter.errors import InputError

SPLIT_FOLDERS: Final = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}
"""Split → what its folder may be called."""


@dataclass(frozen=True)
class FolderLayout:
    """How a folder differs from `images/`, `masks/` and equal names; the fields of a recipe's `data` of these names."""

    images: str | None = None
    """Folder of the images; None: images."""
    masks: str | None = None
    """Folder of the masks; None: masks. It may be that of the images where the masks have a suffix."""
    mask_suffix: str | None = None
    """What a mask's name has after its image's, before the extension, such as _mask; None: nothing."""
    val_share: float | None = None
    """Where there is no folder of the split val, the share of the images that is held out; None: about 0.15."""

    def __post_init__(self) -> None:
        if self.val_share is not None and not 0 < self.val_share < 1:
            raise InputError(f"data.val_share: {self.val_share}; a share lies between 0 and 1, such as 0.2")

    def options(self) -> str:
        """As they are typed on a command line, each after a space; empty for the usual layout."""
        given = ((field.name, getattr(self, field.name)) for field in fields(self))
        return "".join(f" --data.{name} {shlex.quote(str(value))}" for name, value in given if value is not None)

    def folders(self, root: Path) -> dict[str, tuple[Path, Path]]:
        """Split → (images, masks); of a folder without split folders, "all".

        Raises:
            InputError: no such folders, two for one split, or one for two splits.
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
                raise InputError(f"{images}: the folder of split {other!r} too; give each split images of its own")
        return found

    @property
    def _images(self) -> str:
        return "images" if self.images is None else self.images

    @property
    def _masks(self) -> str:
        return "masks" if self.masks is None else self.masks

    def _splits(self, root: Path) -> dict[str, tuple[Path, Path]]:
        """The split folders that there are, inside those of images and masks or above them."""
        layouts: dict[str, tuple[Path, Path]] = {}
        for split, spellings in SPLIT_FOLDERS.items():
            for word in spellings:
                inside = (root / self._images / word, root / self._masks / word)
                outside = (root / word / self._images, root / word / self._masks)
                for images, masks in (inside, outside):
                    first = layouts.setdefault(split, (images, masks))[0] if images.is_dir() else images
                    if os.path.realpath(first) != os.path.realpath(images):
                        raise InputError(f"{images}: split {split!r} has the folder {first} already; keep one of them")
        return layouts


USUAL: Final = FolderLayout()
_PUBLIC: Final = {
    "ImageSets/Segmentation": "pascal_voc",
    "leftImg8bit/train": "cityscapes",
    "trainannot": "camvid",
    "annotations/training": "ade20k",
}
"""Folder → the data set that has it."""
_MASK_WORDS: Final = ("mask", "label", "annot", "segm", "truth", "gt", "target")
_MOST_FILES: Final = 100_000
_DEPTH: Final = 3
Stems = Mapping[str, Counter[str]]
"""Name of a file up to its extension → extensions."""


def _unlike(root: Path, lacking: str) -> InputError:
    """What there is in place of a folder that is lacking, and the options that would read it."""
    for folder, name in _PUBLIC.items():
        if (root / folder).is_dir():
            return InputError(
                f"{root}: no folder {lacking}/, but {folder}/, as in {name}; add --data.name {name} in training, or "
                f"give {name} --root {root} elsewhere"
            )
    tree = dict(_tree(root))
    there = "; ".join(f"{name}/: {_endings(stems)}" for name, stems in sorted(tree.items())[:8])
    more = "" if len(tree) <= 8 else f" and {len(tree) - 8} more folders"
    guess = _guess(root, tree)
    remedy = (
        "put images into images/ and masks of the same names into masks/, or name their folders with --data.images and "
        "--data.masks; masks are images of class numbers or colors"
        if guess is None
        else f"it is read with{guess.options()}"
    )
    return InputError(f"{root}: no folder {lacking}/; there is {there or 'nothing'}{more}; {remedy}")


def _tree(root: Path) -> Iterator[tuple[str, Stems]]:
    """The folders below `root` that hold files, and these, as far as a look may take."""
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


def _endings(stems: Stems) -> str:
    total = sum(stems.values(), Counter[str]())
    return ", ".join(f"{count:,} {ending or 'without ending'}" for ending, count in total.most_common(3))


def _guess(root: Path, tree: Mapping[str, Stems]) -> FolderLayout | None:
    """The layout under which most files of two folders, or of one, pair up."""
    for layout in sorted(_candidates(tree), key=lambda found: -found[0]):
        if _fits(root, layout[1]):
            return layout[1]
    return None


def _fits(root: Path, layout: FolderLayout) -> bool:
    found = layout._splits(root).values() or [(root / layout._images, root / layout._masks)]
    return all(folder.is_dir() for pair in found for folder in pair)


def _candidates(tree: Mapping[str, Stems]) -> Iterator[tuple[float, FolderLayout]]:
    """How much speaks for a layout, and the layout; with split folders taken out of the names, and with them."""
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


def _images_of(stems: Stems) -> dict[str, Counter[str]]:
    return {stem: endings for stem, endings in stems.items() if any(ending in IMAGE_SUFFIXES for ending in endings)}


def _suffix(images: Stems, masks: Stems, *, same: bool) -> tuple[str, float]:
    """What most masks' names have after their images', and the share of the masks that have it."""
    found: Counter[str] = Counter()
    looked = sorted(masks)[:200]
    for stem in looked:
        cuts = range(len(stem) - same, 0, -1)
        found.update(stem[cut:] for cut in list(cuts) if stem[:cut] in images and not (same and cut == len(stem)))
    suffix, count = max(found.items(), key=lambda item: (item[1], item[0] == ""), default=("", 0))
    return suffix, count / max(len(looked), 1)


def _may_be_masks(name: str, images: Stems, masks: Stems) -> bool:
    """Whether the name says so, or the images are JPEGs and these are not."""
    if any(word in name.lower() for word in _MASK_WORDS):
        return True
    lossy = [sum(bool(endings.keys() & {".jpg", ".jpeg"}) for endings in stems.values()) for stems in (images, masks)]
    return lossy[0] > 0 and lossy[1] == 0


def with_given(layout: FolderLayout, given: FolderLayout) -> FolderLayout:
    """`layout` with the fields that `given` has in place of its own."""
    own = {field.name: getattr(given, field.name) for field in fields(given)}
    return replace(layout, **{name: value for name, value in own.items() if value is not None})
