"""Scoring a model on a data set in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, overload

import numpy as np
import torch

import meanshifter
from meanshifter.data.labels import Labels, LabelSpace
from meanshifter.errors import InputError
from meanshifter.evaluation.confusion import Confusion, confusion_matrix
from meanshifter.evaluation.protocol import Protocol
from meanshifter.evaluation.result import Result
from meanshifter.inference.files import read_ahead
from meanshifter.inference.predictor import Predictor
from meanshifter.interop.weights import weights_hash
from meanshifter.processes import Processes

if TYPE_CHECKING:
    from meanshifter.data.datasets import Dataset, Sample
    from meanshifter.interop.contract import PatchModel


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
    """The scores of a predictor (or of a model, read out as ``Predictor(model)`` does) on a data set.

    Images and masks are read ahead in threads. Each image is resized, cut and encoded once, however many
    entries `mean_shift_layers` has; truth is compared at the mask's own size.

    Args:
        predictor: a `Predictor`, or a model.
        dataset: a data set whose classes are those of the model.
        mean_shift_layers: None: the predictor's own; a number: that many steps; a sequence: a result for
            each, by number of steps, from one pass over the data.
        progress: show a bar on standard error, where that is a terminal.
        limit: score only the first so many images; the protocol says so.
        processes: those that call this together, each of which reads its share of the images and gets the result of
            all; None: this one reads all of them.

    Raises:
        InputError: classes that differ between data set and model in number or, unless one of them is
            unnamed, in name (letter case aside); an empty data set; a sample that cannot be read.
    """
    if not isinstance(predictor, Predictor):
        predictor = Predictor(predictor)
    check_classes(predictor.model.labels, dataset.labels, f"{dataset.name} {dataset.split}")
    several = isinstance(mean_shift_layers, Sequence)
    asked = mean_shift_layers if isinstance(mean_shift_layers, Sequence) else [mean_shift_layers]
    own = predictor.mean_shift_layers
    steps = list(dict.fromkeys(own if entry is None else predictor.resolve_layers(entry) for entry in asked))
    if not steps:
        raise InputError("mean_shift_layers: 0 entries; name at least one number of steps")
    protocol = protocol_of(predictor, dataset, limit=limit)
    totals, ignored = _totals(
        predictor, dataset, steps, limit, progress, Processes() if processes is None else processes
    )
    results = {
        layers: Result(total, dataset.labels.names, replace(protocol, mean_shift_layers=layers), ignored=ignored)
        for layers, total in zip(steps, totals, strict=True)
    }
    return results if several else results[steps[0]]


def _totals(
    predictor: Predictor, dataset: Dataset, steps: list[int], limit: int | None, progress: bool, processes: Processes
) -> tuple[list[Confusion], int]:
    """The confusion matrices of all images, for each number of mean shift steps, and the pixels that are ignored."""
    K, ignore = dataset.labels.num_classes, dataset.labels.ignore
    share, shown = (processes.rank, processes.count), progress and processes.first

    def of_my_images() -> torch.Tensor:
        totals, ignored = np.zeros((len(steps), K, K), np.int64), 0
        for sample, maps in image_maps(predictor, dataset, steps, limit=limit, progress=shown, share=share):
            totals += [confusion_matrix(sample.labels, prediction, K, ignore=ignore) for prediction in maps]
            ignored += int(np.count_nonzero(sample.labels == ignore))
        return torch.from_numpy(np.append(totals, ignored))

    counts = processes.sum(processes.together(of_my_images)).numpy()
    return list(counts[:-1].reshape(len(steps), K, K)), int(counts[-1])


def protocol_of(predictor: Predictor, dataset: Dataset, *, limit: int | None = None) -> Protocol:
    """What the scores of `predictor` on the first `limit` images of `dataset` are measured under.

    Raises:
        InputError: an empty data set, or a limit below 1.
    """
    return Protocol(
        dataset=dataset.name,
        split=dataset.split,
        images=count_images(dataset, limit),
        images_in_split=len(dataset),
        weights=weights_hash(predictor.model),
        version=meanshifter.__version__,
        **predictor.protocol(),
    )


def check_classes(model: LabelSpace, dataset: LabelSpace, name: str) -> None:
    """Refuse a data set whose classes are not the model's: a score over unlike classes means nothing.

    Raises:
        InputError: another number of classes, or other names (letter case aside); the names "class 0",
            "class 1", … of a model that was told only a number agree with any.
    """
    if model.num_classes != dataset.num_classes:
        raise InputError(
            f"model: a checkpoint of {model.num_classes} classes, but {name} has {dataset.num_classes}; "
            "give a model trained on these classes, or the data set it was trained on"
        )
    if _unnamed(model) or _unnamed(dataset):
        return
    for k, (ours, theirs) in enumerate(zip(model.names, dataset.names, strict=True)):
        if ours.casefold() != theirs.casefold():
            raise InputError(
                f"model: class {k} is {ours!r}, but {name} calls it {theirs!r}; "
                "give a model trained on these classes, or the data set it was trained on"
            )


def _unnamed(space: LabelSpace) -> bool:
    return space.names == LabelSpace.unnamed(space.num_classes).names


def count_images(dataset: Dataset, limit: int | None) -> int:
    """How many images are scored: all, or the first `limit`.

    Raises:
        InputError: a limit below 1, or an empty data set.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit: {limit} images; it must be at least 1, or None for all")
    if len(dataset) == 0:
        raise InputError(f"{dataset.name} {dataset.split}: 0 images; a score needs at least one")
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
    """One image after the other, with the label map after each number of mean shift steps.

    Of images `share[0]`, `share[0] + share[1]`, ….

    Errors as `evaluate`.
    """
    numbers = range(share[0], count_images(dataset, limit), share[1])
    with _bar(len(numbers), progress) as advance:
        for _, future in read_ahead(dataset.__getitem__, numbers):
            sample: Sample = future.result()
            if sample.image.shape[:2] != sample.labels.shape:
                raise InputError(
                    f"{sample.name}: image of {sample.image.shape[:2]} and mask of {sample.labels.shape} "
                    "(height, width); they must have one size"
                )
            yield sample, predictor.label_maps(sample.image, steps)
            advance()


@contextmanager
def _bar(count: int, shown: bool) -> Iterator[Callable[[], object]]:
    """A bar on standard error over `count` images and the function that moves it on by one."""
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("images", total=count)
        yield lambda: bar.advance(task)
