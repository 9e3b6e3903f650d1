"""Scores of label maps that lie in a folder, whatever tool wrote them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize

import numpy as np

import meanshifter
from meanshifter.data.labels import LabelSpace
from meanshifter.data.reading import IMAGE_SUFFIXES, read_mask
from meanshifter.data.walk import PassedOver, files_below
from meanshifter.errors import InputError
from meanshifter.evaluation.confusion import Confusion, confusion_matrix
from meanshifter.evaluation.protocol import Protocol
from meanshifter.evaluation.result import Result
from meanshifter.inference.files import read_ahead
from meanshifter.interop.weights import UNKNOWN

if TYPE_CHECKING:
    from meanshifter.data.datasets import Dataset


def evaluate_predictions(
    folder: str | Path, dataset: Dataset, *, first: int = 0, partial: bool = False, limit: int | None = None
) -> Result:
    """The scores of the label maps in `folder`, named as the images of `dataset` are.

    Args:
        folder: index images of train ids, 8 or 16 bits, or RGB images in the colours of the data set's palette. The
            value that the truth ignores (255), and 0 below a `first` of 1, are no class: wrong where they are counted.
        dataset: the truth; compared at its own size.
        first: the value that stands for class 0, 1 where the tool counts from 1.
        partial: score the images that are there; the protocol says how many.
        limit: score only the first so many images.

    Raises:
        InputError: no such folder, images without a label map or with two, label maps of another size, or values that
            are no class; the file, the value and the remedy are named.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"--predictions: {folder} is no folder; name the one that holds the label maps")
    count = len(dataset) if limit is None else min(limit, len(dataset))
    files = _files(folder)
    paths = {index: _only(files.get(normalize("NFC", dataset.names[index]), [])) for index in range(count)}
    found = {index: path for index, path in paths.items() if path is not None}
    missing = [dataset.names[index] for index in range(count) if index not in found]
    if not found or (missing and not partial):
        few = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise InputError(
            f"--predictions: {folder} lacks {len(missing)} of {count} label maps ({few}); they are named as the images "
            f"are, such as NAME.png; {'none is there to score' if partial else '--partial scores those that are there'}"
        )
    if not 0 <= first <= dataset.labels.ignore - dataset.labels.num_classes:
        raise InputError(
            f"--first-id: {first}; class 0 is 0, 1 or a value from which {dataset.labels.num_classes} classes stay "
            f"below {dataset.labels.ignore}, which is no class"
        )
    space, K = _space(dataset.labels, first), dataset.labels.num_classes

    def pair(index: int) -> tuple[Confusion, int]:
        """(K, K + 1), the last column is no class; and the pixels whose truth is ignored."""
        truth = dataset.read_labels(index)
        try:
            labels = read_mask(found[index], space)
        except InputError as error:
            reason, outside, _ = str(error).partition("; correct the mask")
            if not outside:
                raise
            raise InputError(
                f"{reason}; write train ids or the colours of the palette, or say with --first-id which value class 0 "
                f"has, now {first}"
            ) from error
        if truth.shape != labels.shape:
            raise InputError(
                f"{found[index]}: {labels.shape} pixels (height, width), but the truth has {truth.shape}; write label "
                "maps at the size of the images"
            )
        ignore = dataset.labels.ignore
        named = np.where(labels == ignore, K, labels.astype(np.int64))
        return confusion_matrix(truth, named, K + 1, ignore=ignore)[:K], int(np.count_nonzero(truth == ignore))

    total, ignored = np.zeros((K, K + 1), np.int64), 0
    for _, future in read_ahead(pair, list(found)):
        matrix, outside = future.result()
        total += matrix
        ignored += outside
    return Result(total[:, :K], dataset.labels.names, _protocol(folder, dataset, len(found)), total[:, K], ignored)


def _files(folder: Path) -> dict[str, list[Path]]:
    """Label maps by name: the path below the folder, without extension, in Unicode's composed form (NFC)."""
    files: dict[str, list[Path]] = {}
    for path in sorted(files_below(folder, IMAGE_SUFFIXES, PassedOver())):
        name = path.relative_to(folder).with_suffix("").as_posix()
        files.setdefault(normalize("NFC", name), []).append(path)
    return files


def _only(paths: Sequence[Path]) -> Path | None:
    if len(paths) > 1:
        raise InputError(f"--predictions: {paths[0]} and {paths[1]} are label maps of one name; keep one of them")
    return paths[0] if paths else None


def _space(labels: LabelSpace, first: int) -> LabelSpace:
    """How such files spell the classes."""
    nothing = {labels.ignore: labels.ignore, **({0: labels.ignore} if first == 1 else {})}
    raw = nothing | {k + first: k for k in range(labels.num_classes)}
    own = [color for color in labels.palette if labels.palette.count(color) == 1]
    colors = {color: labels.palette.index(color) for color in own}
    return LabelSpace(labels.names, labels.palette, raw, colors, labels.ignore)


def _protocol(folder: Path, dataset: Dataset, images: int) -> Protocol:
    return Protocol(
        dataset=dataset.name,
        split=dataset.split,
        images=images,
        images_in_split=len(dataset),
        short_side=None,
        long_side=None,
        window=None,
        stride=None,
        flip=False,
        scales=(),
        mean_shift_layers=0,
        precision="unknown",
        weights=UNKNOWN,
        version=meanshifter.__version__,
        predictions=str(folder),
    )
