"""Evaluation of existing label maps, made by any tool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize

import numpy as np

import meanshifter
from meanshifter.data.labels import LabelSpace
from meanshifter.data.reading import IMAGE_SUFFIXES, PassedOver, files_below, read_mask
from meanshifter.errors import InputError
from meanshifter.evaluation.details import Details, count_details, details_size
from meanshifter.evaluation.metrics import Confusion, confusion_matrix
from meanshifter.evaluation.result import Protocol, Result
from meanshifter.inference.segmentation import read_ahead
from meanshifter.model.saving import UNKNOWN

if TYPE_CHECKING:
    from meanshifter.data.datasets import Dataset


def evaluate_predictions(
    folder: str | Path,
    dataset: Dataset,
    *,
    label_offset: int = 0,
    allow_missing: bool = False,
    limit: int | None = None,
    detailed: bool = False,
) -> Result:
    """Evaluate the label maps in `folder`, which are named like the images of `dataset`.

    Args:
        folder: 8- or 16-bit index images with train ids, or RGB images in the colors of the dataset's palette. The
            ignored value of the labels (255), and 0 with a `label_offset` of 1, mean no class and count as wrong.
        dataset: the labels; predictions are compared at their size.
        label_offset: the value of class 0, such as 1 for tools that count from 1.
        allow_missing: evaluate only the images that have a label map; the protocol records how many.
        limit: evaluate only the first `limit` images.
        detailed: also compute `Result.details`, without calibration, as label maps have no probabilities.

    Raises:
        InputError: the folder does not exist, an image has no label map or two of them, or a label map has another
            size or values that are not a class; the message names the file, the value and the remedy.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"--predictions: {folder} is not a folder; give the folder of the label maps")
    count = len(dataset) if limit is None else min(limit, len(dataset))
    found = _label_maps(folder, dataset.names[:count])
    missing = [dataset.names[index] for index in range(count) if index not in found]
    if not found or (missing and not allow_missing):
        few = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        remedy = "there is none to evaluate" if allow_missing else "evaluate the others with --allow-missing"
        raise InputError(
            f"--predictions: {folder} lacks {len(missing)} of {count} label maps ({few}); name them like the "
            f"images, as NAME.png, or {remedy}"
        )
    if not 0 <= label_offset <= dataset.label_space.ignore - dataset.label_space.num_classes:
        raise InputError(
            f"--label-offset: {label_offset}; the values of the {dataset.label_space.num_classes} classes must be at "
            f"least 0 and below {dataset.label_space.ignore}, which means no class"
        )
    space, K = _space(dataset.label_space, label_offset), dataset.label_space.num_classes

    def pair(index: int) -> tuple[Confusion, int]:
        """Confusion matrix (K, K + 1), whose last column is no class, with the details; number of ignored pixels."""
        truth = dataset.read_labels(index)
        try:
            labels = read_mask(found[index], space)
        except InputError as error:
            reason, outside, _ = str(error).partition("; correct the mask")
            if not outside:
                raise
            raise InputError(
                f"{reason}; write train ids or the colors of the palette, or set --label-offset, now {label_offset}, "
                "to the value of class 0"
            ) from error
        if truth.shape != labels.shape:
            raise InputError(
                f"{found[index]}: {labels.shape} pixels (height, width), but the labels have {truth.shape}; write "
                "label maps at the size of the images"
            )
        ignore = dataset.label_space.ignore
        named = np.where(labels == ignore, K, labels.astype(np.int64))
        counts = [confusion_matrix(truth, named, K + 1, ignore=ignore)[:K].ravel()]
        counts += count_details(truth, [(named, None)], K, ignore, bins=0) if detailed else []
        return np.concatenate(counts), int(np.count_nonzero(truth == ignore))

    total, ignored = np.zeros(K * (K + 1) + (details_size(K, bins=0) if detailed else 0), np.int64), 0
    for _, future in read_ahead(pair, list(found)):
        counts, outside = future.result()
        total += counts
        ignored += outside
    matrix, rest = total[: K * (K + 1)].reshape(K, K + 1), total[K * (K + 1) :]
    details = Details.unpack(rest, K, bins=0) if detailed else None
    protocol = _protocol(folder, dataset, len(found))
    return Result(matrix[:, :K], dataset.label_space.names, protocol, matrix[:, K], ignored, details)


def _label_maps(folder: Path, names: Sequence[str]) -> dict[int, Path]:
    """The label map of each image that has one; Unicode names are compared in NFC normalization."""
    files: dict[str, list[Path]] = {}
    for path in sorted(files_below(folder, IMAGE_SUFFIXES, PassedOver())):
        name = path.relative_to(folder).with_suffix("").as_posix()
        files.setdefault(normalize("NFC", name), []).append(path)
    found = {index: files.get(normalize("NFC", name), []) for index, name in enumerate(names)}
    for paths in found.values():
        if len(paths) > 1:
            raise InputError(f"--predictions: {paths[0]} and {paths[1]} are label maps of the same image; remove one")
    return {index: paths[0] for index, paths in found.items() if paths}


def _space(label_space: LabelSpace, label_offset: int) -> LabelSpace:
    """The label space of prediction files."""
    nothing = {label_space.ignore: label_space.ignore, **({0: label_space.ignore} if label_offset == 1 else {})}
    raw = nothing | {k + label_offset: k for k in range(label_space.num_classes)}
    own = [color for color in label_space.palette if label_space.palette.count(color) == 1]
    colors = {color: label_space.palette.index(color) for color in own}
    return LabelSpace(label_space.names, label_space.palette, raw, colors, label_space.ignore)


def _protocol(folder: Path, dataset: Dataset, images: int) -> Protocol:
    return Protocol(
        dataset=dataset.name,
        split=dataset.split,
        images=images,
        images_in_split=len(dataset),
        short_side=None,
        long_side=None,
        window=None,
        window_stride=None,
        flip=False,
        scales=(),
        mean_shift_layers=0,
        precision="unknown",
        weights=UNKNOWN,
        version=meanshifter.__version__,
        predictions=str(folder),
    )
