"""Evaluation of a model on a dataset in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import torch

import meanshifter
from meanshifter.data.labels import Labels, LabelSpace
from meanshifter.errors import InputError
from meanshifter.evaluation.calibration import BINS, check_bins
from meanshifter.evaluation.details import Details, count_details, details_size
from meanshifter.evaluation.metrics import Confusion, confusion_matrix
from meanshifter.evaluation.result import Protocol, Result
from meanshifter.inference.ensemble import model_hash
from meanshifter.inference.predictor import Predictor
from meanshifter.inference.segmentation import Segmentation, read_ahead
from meanshifter.ops import Confidence
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
    detailed: bool = False,
    calibration_bins: int = BINS,
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
    detailed: bool = False,
    calibration_bins: int = BINS,
) -> dict[int, Result]: ...


def evaluate(
    predictor: Predictor | PatchModel,
    dataset: Dataset,
    *,
    mean_shift_layers: int | Sequence[int | None] | None = None,
    progress: bool = False,
    limit: int | None = None,
    processes: Processes | None = None,
    detailed: bool = False,
    calibration_bins: int = BINS,
) -> Result | dict[int, Result]:
    """Evaluate a predictor, or a model as ``Predictor(model)``, on a dataset.

    Images and masks are read ahead in threads. Each image is preprocessed and encoded once, however many entries
    `mean_shift_layers` has. Predictions are compared at the size of the mask.

    Args:
        predictor: a `Predictor` or a model.
        dataset: a dataset with the classes of the model.
        mean_shift_layers: None: the predictor's own; a number: that many steps; a sequence: results by number of
            steps, from a single pass over the data.
        progress: show a progress bar on standard error, if it is a terminal.
        limit: evaluate only the first `limit` images; the protocol records it.
        processes: the processes that call this together; each reads its share of the images, and all of them get the
            result. None: this process reads all images.
        detailed: also compute `Result.details`: scores at boundaries, by size and thickness of regions, and the
            calibration error.
        calibration_bins: bins of confidence of the calibration error.

    Raises:
        InputError: the classes of dataset and model differ in number or, unless one of them is unnamed, in name
            (ignoring case); the dataset is empty; a sample cannot be read; the predictor leaves pixels without a class
            (`min_confidence`).
    """
    if not isinstance(predictor, Predictor):
        predictor = Predictor(predictor)
    require_dataset(dataset)
    check_classes(predictor.model.label_space, dataset.label_space, f"{dataset.name} {dataset.split}")
    several = isinstance(mean_shift_layers, Sequence)
    asked = mean_shift_layers if isinstance(mean_shift_layers, Sequence) else [mean_shift_layers]
    own = predictor.mean_shift_layers
    steps = list(dict.fromkeys(own if entry is None else predictor.resolve_layers(entry) for entry in asked))
    if not steps:
        raise InputError("mean_shift_layers: 0 entries; give at least one number of steps")
    if predictor.min_confidence > 0:
        raise InputError(
            f"min_confidence: {predictor.min_confidence}, which leaves pixels without a class; evaluate with 0"
        )
    check_bins(calibration_bins)
    protocol = protocol_of(predictor, dataset, limit=limit)
    space, bins = dataset.label_space, calibration_bins if detailed else 0
    K, ignore = space.num_classes, space.ignore

    def count(sample: Sample, found: list[Segmentation]) -> Confusion:
        matrices = [confusion_matrix(sample.labels, each.labels, K, ignore=ignore).ravel() for each in found]
        if not detailed:
            return np.array(matrices)
        predictions = [(each.labels, each.confidence["probability"]) for each in found]
        return np.hstack([matrices, count_details(sample.labels, predictions, K, ignore, bins)])

    processes = Processes() if processes is None else processes
    totals, ignored = sum_segmentations(
        predictor,
        dataset,
        steps,
        (len(steps), K * K + (details_size(K, bins) if detailed else 0)),
        count,
        confidence=("probability",) if detailed else (),
        limit=limit,
        processes=processes,
        progress=progress and processes.is_main,
    )
    results, engine = {}, predictor.engine_for(steps)
    for layers, total in zip(steps, totals, strict=True):
        matrix = total[: K * K].reshape(K, K)
        details = Details.unpack(total[K * K :], K, bins) if detailed else None
        conditions = replace(protocol, mean_shift_layers=layers, engine=engine)
        results[layers] = Result(matrix, space.names, conditions, ignored=ignored, details=details)
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

    def of_maps(sample: Sample, found: list[Segmentation]) -> Confusion:
        return count(sample, [each.labels for each in found])

    return sum_segmentations(
        predictor, dataset, steps, shape, of_maps, limit=limit, processes=processes, progress=progress
    )


def sum_segmentations(
    predictor: Predictor,
    dataset: Dataset,
    steps: list[int],
    shape: tuple[int, ...],
    count: Callable[[Sample, list[Segmentation]], Confusion],
    *,
    confidence: Sequence[Confidence] = (),
    limit: int | None,
    processes: Processes,
    progress: bool = False,
) -> tuple[Confusion, int]:
    """`sum_counts` of segmentations, with these confidence maps, instead of label maps."""

    def over_my_images() -> torch.Tensor:
        totals, ignored, share = np.zeros(shape, np.int64), 0, (processes.rank, processes.count)
        for sample, found in image_segmentations(
            predictor, dataset, steps, confidence=confidence, limit=limit, progress=progress, share=share
        ):
            totals += count(sample, found)
            ignored += int(np.count_nonzero(sample.labels == dataset.label_space.ignore))
        return torch.from_numpy(np.append(totals, ignored))

    counts = processes.sum(processes.run_all(over_my_images)).numpy()
    return counts[:-1].reshape(shape), int(counts[-1])


def protocol_of(predictor: Predictor, dataset: Dataset, *, limit: int | None = None) -> Protocol:
    """The conditions under which `predictor` is evaluated on the first `limit` images of `dataset`.

    Raises:
        InputError: the dataset is empty, or the limit is below 1.
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


def require_dataset(dataset: Dataset) -> None:
    """Raise an InputError for a path or a name in place of a dataset."""
    if isinstance(dataset, str | Path):
        raise InputError(
            f"dataset: {str(dataset)!r} is a name; give a dataset, such as ms.datasets.Folder({str(dataset)!r}, "
            'split="val")'
        )


def check_classes(model: LabelSpace, dataset: LabelSpace, name: str, *, title: str = "the model") -> None:
    """Check that a dataset, `name`, has the classes of a model, `title`.

    Raises:
        InputError: the number of classes differs, or a name (ignoring case). The generic names "class 0", "class 1", …
            of a model that only knows the number match any name.
    """
    if model.num_classes != dataset.num_classes:
        raise InputError(
            f"{title} has {model.num_classes} classes, but {name} has {dataset.num_classes}; "
            "use a model trained on these classes, or the dataset it was trained on"
        )
    if is_unnamed(model) or is_unnamed(dataset):
        return
    for k, (ours, theirs) in enumerate(zip(model.names, dataset.names, strict=True)):
        if ours.casefold() != theirs.casefold():
            raise InputError(
                f"{title} calls class {k} {ours!r}, but {name} calls it {theirs!r}; "
                "use a model trained on these classes, or the dataset it was trained on"
            )


def is_unnamed(label_space: LabelSpace) -> bool:
    """Whether the classes only have the generic names "class 0", "class 1", …."""
    return label_space.names == LabelSpace.unnamed(label_space.num_classes).names


def count_images(dataset: Dataset, limit: int | None) -> int:
    """Number of images to evaluate: all, or the first `limit`.

    Raises:
        InputError: the limit is below 1, or the dataset is empty.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit: {limit} images; expected at least 1, or leave it out for all")
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
    for sample, found in image_segmentations(predictor, dataset, steps, limit=limit, progress=progress, share=share):
        yield sample, [each.labels for each in found]


def image_segmentations(
    predictor: Predictor,
    dataset: Dataset,
    steps: list[int],
    *,
    confidence: Sequence[Confidence] = (),
    limit: int | None = None,
    progress: bool = False,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Sample, list[Segmentation]]]:
    """`image_maps` with segmentations, which have these confidence maps, instead of label maps."""
    for sample in checked_samples(dataset, limit=limit, progress=progress, share=share):
        yield sample, predictor.segmentations(sample.image, steps, confidence=confidence)


def checked_samples(
    dataset: Dataset, *, limit: int | None = None, progress: bool = False, share: tuple[int, int] = (0, 1)
) -> Iterator[Sample]:
    """Read images `share[0]`, `share[0] + share[1]`, … and their masks ahead.

    Raises:
        InputError: a sample cannot be read, or image and mask differ in size.
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
            yield sample
            bar.advance()
