"""Public datasets, one file each, and `open_dataset`, which opens one by name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Final

from meanshifter.data.datasets import Dataset, Folder, unlabeled
from meanshifter.data.layout import USUAL, FolderLayout
from meanshifter.errors import InputError, did_you_mean

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
    """Open a split of a dataset by name; the path of a folder in place of the name opens it as a `Folder`.

    With `labeled=False`, splits whose labels are withheld, such as ADE20K's "test", can be opened too.

    Raises:
        InputError: the name is unknown, a layout is given for a dataset that has its own, the split has no labels,
            and as the dataset itself.
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
    """Raise an InputError if a layout is given for a dataset other than a folder."""
    if layout != USUAL:
        raise InputError(
            f"{layout.options().strip()}: accepted for a folder of images and masks only; {name} has its own layout"
        )


def unknown_dataset(name: str) -> InputError:
    """The error about an unknown dataset."""
    hint = did_you_mean(name.lower(), HOMES, f"expected one of {', '.join(HOMES)}, or an existing folder")
    return InputError(f"dataset {name!r} is unknown; {hint}")
