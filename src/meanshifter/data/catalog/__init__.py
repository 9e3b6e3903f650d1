"""Public data sets, one small file each, and how to open one by name."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Final

from meanshifter.data.datasets import Dataset, Folder, unlabeled
from meanshifter.data.layout import USUAL, FolderLayout
from meanshifter.errors import InputError

HOMES: Final = {
    "folder": ("meanshifter.data.datasets", "Folder"),
    "camvid": ("meanshifter.data.catalog.camvid", "CamVid"),
    "ade20k": ("meanshifter.data.catalog.ade20k", "ADE20K"),
    "pascal_voc": ("meanshifter.data.catalog.pascal_voc", "PascalVOC"),
    "cityscapes": ("meanshifter.data.catalog.cityscapes", "Cityscapes"),
    "shapes": ("meanshifter.data.catalog.shapes", "Shapes"),
}


def open_dataset(
    name: str, root: str | Path | None, split: str, layout: FolderLayout = USUAL, *, labeled: bool = True
) -> Dataset:
    """A split of the data set of that name; a folder's path in place of the name opens it as a `Folder`.

    With `labeled=False` a split whose labels are withheld, such as ADE20K's "test", is opened too.

    Raises:
        InputError: an unknown name, a layout for a data set that has its own, a split without labels, and as the data
            set itself.
    """
    if name not in HOMES and root is None and Path(name).is_dir():
        name, root = "folder", name
    if name not in HOMES:
        raise unknown_dataset(name)
    if name == "folder":
        return Folder(root, split, layout=layout)
    require_usual(name, layout)
    module, kind = HOMES[name]
    dataset: Dataset = getattr(import_module(module), kind)(root, split)
    if labeled and not dataset.labeled:
        raise unlabeled(name, split)
    return dataset


def require_usual(name: str, layout: FolderLayout) -> None:
    """Refuse a layout for a data set that is no folder of one's own; raises InputError."""
    if layout != USUAL:
        raise InputError(f"{layout.options().strip()}: for a folder of images and masks; {name} has its own layout")


def unknown_dataset(name: str) -> InputError:
    """What is said of a name that is none."""
    near = get_close_matches(name.lower(), HOMES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"take one of {', '.join(HOMES)}, or a folder that exists"
    return InputError(f"data set {name!r} is unknown; {hint}")
