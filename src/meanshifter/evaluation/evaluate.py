"""Evaluation of a model, or of existing label maps, on a data set in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, overload
from unicodedata import normalize

import numpy as np
import torch

import meanshifter
from meanshifter.data.labels import Labels, LabelSpace
from meanshifter.data.reading import IMAGE_SUFFIXES, PassedOver, files_below, read_mask
from meanshifter.errors import InputError
from meanshifter.evaluation.result import Confusion, Protocol, Result, confusion_matrix
from meanshifter.inference.ensemble import model_hash
from meanshifter.inference.predictor import Predictor
from meanshifter.inference.segmentation import read_ahead
from meanshifter.model.saving import UNKNOWN
from meanshifter.utils.distributed import Processes
from meanshifter.utils.progress import ProgressBar

if TYPE_CHECKING:
    from meanshifter.data.datasets import Dataset, Sample
    from meanshifter.inference.protocol import PatchModel


@overload
def evaluate(
    predictor: Predictor | PatchModel,
    dataset: Dataset,
    *,
    mean_shift_layers: int | None = None,
    progress: bool = False,
    limit: int | None = None,
    processes: Processes | None = None,
) -> Result: ...


@overload
def evaluate(
    predictor: Predictor | PatchModel,
    dataset: Dataset,
    *,
    mean_shift_layers: Sequence[int | None],
    progress: bool = False,
    limit: int | None = None,
    processes: Processes | None = None,
) -> dict[int, Result]: ...


def evaluate(
    predictor: Predictor | PatchModel,
    dataset: Dataset,
    *,
    mean_shift_layers: int | Sequence[int | None] | None = None,
    progress: bool = False,
    limit: int | None = None,
    processes: Processes | None = None,
) -> Result | dict[int, Result]:
    """Evaluate a predictor, or a model as ``Predictor(model)``, on a data set.

    Images and masks are read ahead in threads. Each image is preprocessed and encoded once, however many entries
    `mean_shift_layers` has. Predictions are compared at the size of the mask.

    Args:
        predictor: a `Predictor` or a model.
        dataset: a data set with the classes of the model.
        mean_shift_layers: None: the predictor's own; a number: that many steps; a sequence: results by number of
            steps, from a single pass over the data.
        progress: show a progress bar on standard error, if it is a terminal.
        limit: evaluate only the first `limit` images; the protocol records it.
        processes: the processes that call this together; each reads its share of the images, and all of them get the
            result. None: this process reads all images.

    Raises:
        InputError: the classes of data set and model differ in number or, unless one of them is unnamed, in name
            (ignoring case); the data set is empty; a sample cannot be read.
    """
    if not isinstance(predictor, Predictor):
        predictor = Predictor(predictor)
    check_classes(predictor.model.label_space, dataset.label_space, f"{dataset.name} {dataset.split}")
    several = isinstance(mean_shift_layers, Sequence)
    asked = mean_shift_layers if isinstance(mean_shift_layers, Sequence) else [mean_shift_layers]
    own = predictor.mean_shift_layers
    steps = list(dict.fromkeys(own if entry is None else predictor.resolve_layers(entry) for entry in asked))
    if not steps:
        raise InputError("mean_shift_layers: 0 entries; give at least one number of steps")
    protocol = protocol_of(predictor, dataset, limit=limit)
    K, ignore = dataset.label_space.num_classes, dataset.label_space.ignore

    def count(sample: Sample, maps: list[Labels]) -> Confusion:
        return np.array([confusion_matrix(sample.labels, prediction, K, ignore=ignore) for prediction in maps])

    processes = Processes() if processes is None else processes
    shape, shown = (len(steps), K, K), progress and processes.is_main
    totals, ignored = sum_counts(
        predictor, dataset, steps, shape, count, limit=limit, processes=processes, progress=shown
    )
    results = {
        layers: Result(total, dataset.label_space.names, replace(protocol, mean_shift_layers=layers), ignored=ignored)
        for layers, total in zip(steps, totals, strict=True)
    }
    return results if several else results[steps[0]]


def sum_counts(
    predictor: Predictor,
    dataset: Dataset,
    steps: list[int],
    shape: tuple[int, ...],
    count: Callable[[Sample, list[Labels]], Confusion],
    *,
    limit: int | None,
    processes: Processes,
    progress: bool = False,
) -> tuple[Confusion, int]:
    """Sum `count(sample, label maps)`, of `shape`, over images and processes; also the number of ignored pixels."""

    def over_my_images() -> torch.Tensor:
        totals, ignored, share = np.zeros(shape, np.int64), 0, (processes.rank, processes.count)
        for sample, maps in image_maps(predictor, dataset, steps, limit=limit, progress=progress, share=share):
            totals += count(sample, maps)
            ignored += int(np.count_nonzero(sample.labels == dataset.label_space.ignore))
        return torch.from_numpy(np.append(totals, ignored))

    counts = processes.sum(processes.run_all(over_my_images)).numpy()
    return counts[:-1].reshape(shape), int(counts[-1])


def protocol_of(predictor: Predictor, dataset: Dataset, *, limit: int | None = None) -> Protocol:
    """The conditions under which `predictor` is evaluated on the first `limit` images of `dataset`.

    Raises:
        InputError: the data set is empty, or the limit is below 1.
    """
    return Protocol(
        dataset=dataset.name,
        split=dataset.split,
        images=count_images(dataset, limit),
        images_in_split=len(dataset),
        weights=model_hash(predictor.model),
        version=meanshifter.__version__,
        **predictor.protocol(),
    )


def check_classes(model: LabelSpace, dataset: LabelSpace, name: str) -> None:
    """Check that a data set has the classes of a model.

    Raises:
        InputError: the number of classes differs, or a name (ignoring case). The generic names "class 0", "class 1", …
            of a model that only knows the number match any name.
    """
    if model.num_classes != dataset.num_classes:
        raise InputError(
            f"model: {model.num_classes} classes, but {name} has {dataset.num_classes}; "
            "use a model trained on these classes, or the data set it was trained on"
        )
    if is_unnamed(model) or is_unnamed(dataset):
        return
    for k, (ours, theirs) in enumerate(zip(model.names, dataset.names, strict=True)):
        if ours.casefold() != theirs.casefold():
            raise InputError(
                f"model: class {k} is {ours!r}, but {name} calls it {theirs!r}; "
                "use a model trained on these classes, or the data set it was trained on"
            )


def is_unnamed(label_space: LabelSpace) -> bool:
    """Whether the classes only have the generic names "class 0", "class 1", …."""
    return label_space.names == LabelSpace.unnamed(label_space.num_classes).names


def count_images(dataset: Dataset, limit: int | None) -> int:
    """Number of images to evaluate: all, or the first `limit`.

    Raises:
        InputError: the limit is below 1, or the data set is empty.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit: {limit} images; expected at least 1, or None for all")
    if len(dataset) == 0:
        raise InputError(f"{dataset.name} {dataset.split}: 0 images; evaluation needs at least one")
    return len(dataset) if limit is None else min(limit, len(dataset))


def image_maps(
    predictor: Predictor,
    dataset: Dataset,
    steps: list[int],
    *,
    limit: int | None = None,
    progress: bool = False,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Sample, list[Labels]]]:
    """Iterate over images `share[0]`, `share[0] + share[1]`, …, with a label map for each number of mean shift steps.

    Raises:
        InputError: as `evaluate`.
    """
    numbers = range(share[0], count_images(dataset, limit), share[1])
    with ProgressBar("images", len(numbers), shown=progress) as bar:
        for _, future in read_ahead(dataset.__getitem__, numbers):
            sample: Sample = future.result()
            if sample.image.shape[:2] != sample.labels.shape:
                raise InputError(
                    f"{sample.name}: image of {sample.image.shape[:2]} and mask of {sample.labels.shape} "
                    "(height, width); their sizes must be equal"
                )
            yield sample, predictor.label_maps(sample.image, steps)
            bar.advance()


def evaluate_predictions(
    folder: str | Path,
    dataset: Dataset,
    *,
    label_offset: int = 0,
    allow_missing: bool = False,
    limit: int | None = None,
) -> Result:
    """Evaluate the label maps in `folder`, which are named like the images of `dataset`.

    Args:
        folder: 8- or 16-bit index images with train ids, or RGB images in the colors of the data set's palette. The
            ignored value of the labels (255), and 0 with a `label_offset` of 1, mean no class and count as wrong.
        dataset: the labels; predictions are compared at their size.
        label_offset: the value of class 0, such as 1 for tools that count from 1.
        allow_missing: evaluate only the images that have a label map; the protocol records how many.
        limit: evaluate only the first `limit` images.

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
        """Confusion matrix (K, K + 1), whose last column is no class, and the number of ignored pixels."""
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
        return confusion_matrix(truth, named, K + 1, ignore=ignore)[:K], int(np.count_nonzero(truth == ignore))

    total, ignored = np.zeros((K, K + 1), np.int64), 0
    for _, future in read_ahead(pair, list(found)):
        matrix, outside = future.result()
        total += matrix
        ignored += outside
    return Result(total[:, :K], dataset.label_space.names, _protocol(folder, dataset, len(found)), total[:, K], ignored)


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
        **dict.fromkeys(("short_side", "long_side", "window", "window_stride")),
        flip=False,
        scales=(),
        mean_shift_layers=0,
        precision="unknown",
        weights=UNKNOWN,
        version=meanshifter.__version__,
        predictions=str(folder),
    )
