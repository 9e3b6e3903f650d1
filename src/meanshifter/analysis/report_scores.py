"""What a report needs of the validation images, from one pass over them: scores, rankings and small label maps.

Of each image it keeps its score and its label map at the size of a picture, compressed to a few kilobytes; of all of
them, confusion matrices and, for each confusion, the image that shows it most. Glossary: K classes, H W pixels.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from meanshifter.analysis.figures import fitted
from meanshifter.analysis.image_scores import ImageScore
from meanshifter.analysis.run_record import RunRecord
from meanshifter.checkpoints.load import load_segmenter
from meanshifter.data.datasets import Dataset, Sample
from meanshifter.data.labels import Labels, LabelSpace
from meanshifter.data.reading import read_mask
from meanshifter.errors import InputError
from meanshifter.evaluation.calibration import BINS
from meanshifter.evaluation.details import Details, Prediction, count_details, details_size
from meanshifter.evaluation.evaluate import check_classes, count_images, image_segmentations, protocol_of
from meanshifter.evaluation.metrics import Confusion, confusion_matrix
from meanshifter.evaluation.result import Protocol, Result
from meanshifter.inference.predictor import Predictor
from meanshifter.inference.segmentation import read_ahead
from meanshifter.utils.progress import ProgressBar

SIDE = 480
"""Maximum of the longer side of a picture, in pixels."""


@dataclass(frozen=True)
class SmallMap:
    """A label map at the size of a picture, compressed."""

    content: bytes
    shape: tuple[int, ...]
    kind: str

    @classmethod
    def of(cls, labels: Labels) -> SmallMap:
        """The map of labels (H, W), downsampled to `SIDE` with the nearest neighbor if it is larger."""
        small = np.ascontiguousarray(labels if max(labels.shape) <= SIDE else fitted(labels, side=SIDE))
        return cls(zlib.compress(small.tobytes(), 1), small.shape, small.dtype.str)

    @property
    def labels(self) -> Labels:
        """(h, w) train ids at the size of a picture, as `fitted` resizes them."""
        return fitted(np.frombuffer(zlib.decompress(self.content), self.kind).reshape(self.shape), side=SIDE)


@dataclass(frozen=True, eq=False)
class ImageScores:
    """The scores of the model of a run on its images."""

    dataset: Dataset
    source: str
    """What was scored, such as checkpoints/best."""
    result: Result
    details: Details
    """Scores at boundaries, by region, and of calibration; the latter only if the pass ran the model."""
    temperature: float
    """What the model divides its logits by."""
    images: tuple[ImageScore, ...]
    maps: tuple[SmallMap, ...]
    shown_by: npt.NDArray[np.int64]
    """(K, K) index of the image with most pixels of each confusion."""
    seconds: float
    """Duration of the pass."""
    predicted: bool
    """Whether the pass ran the model; otherwise it read label maps."""


def score_run(
    record: RunRecord, dataset: Dataset, *, limit: int | None, device: str | None, progress: bool
) -> ImageScores:
    """Score the best checkpoint of a run (else the last one) on a dataset, or the label maps of a cross-validation.

    Raises:
        InputError: there is no checkpoint, or no pooled scores of a cross-validation yet; the model cannot be loaded;
            and as `evaluate`.
    """
    began = time.perf_counter()
    if record.is_cross_validation:
        return _score_maps(record, dataset, limit, progress, began)
    name = record.checkpoint
    if name is None:
        raise InputError(f"{record.path}: no checkpoint yet; the first one is written at an evaluation or a stop")
    config = record.config
    model = load_segmenter(record.path / "checkpoints" / name)
    check_classes(model.label_space, dataset.label_space, f"{dataset.name} {dataset.split}")
    if device is None:
        device = "cpu" if config.accelerator == "cpu" else model.fastest_device
    precision = "fp32" if config.precision == "fp16" and device == "cpu" else config.precision
    predictor = Predictor(model, device=device, precision=precision, **config.evaluation.reading)
    protocol = protocol_of(predictor, dataset, limit=limit)
    steps = [predictor.mean_shift_layers]
    found = image_segmentations(predictor, dataset, steps, confidence=("probability",), limit=limit, progress=progress)
    pairs = ((sample, (each.labels, each.confidence["probability"])) for sample, (each,) in found)
    scores = _sum_up(pairs, dataset, protocol, f"checkpoints/{name}", began, predicted=True)
    return replace(scores, temperature=model.config.temperature)


def _score_maps(record: RunRecord, dataset: Dataset, limit: int | None, progress: bool, began: float) -> ImageScores:
    """Score the label maps that a cross-validation wrote, each by the model that was not trained on its image."""
    pooled = record.pooled
    if pooled is None:
        raise InputError(f"{record.path}: no folds.json yet, which a cross-validation writes when all folds are scored")
    count = count_images(dataset, limit)
    protocol = replace(pooled.protocol, images=count, images_in_split=len(dataset))
    pairs = _stored_pairs(record, dataset, count, progress)
    return _sum_up(pairs, dataset, protocol, "the model of each image's fold", began, predicted=False)


def _stored_pairs(
    record: RunRecord, dataset: Dataset, count: int, progress: bool
) -> Iterator[tuple[Sample, Prediction]]:
    space = LabelSpace(dataset.label_space.names)  # label maps hold train ids

    def read(index: int) -> tuple[Sample, Prediction]:
        return dataset[index], (read_mask(record.map_path(dataset.names[index]), space), None)

    with ProgressBar("images", count, shown=progress) as bar:
        for _, future in read_ahead(read, range(count)):
            yield future.result()
            bar.advance()


def _sum_up(
    pairs: Iterable[tuple[Sample, Prediction]],
    dataset: Dataset,
    protocol: Protocol,
    source: str,
    began: float,
    *,
    predicted: bool,
) -> ImageScores:
    space = dataset.label_space
    K, ignore, bins = space.num_classes, space.ignore, BINS if predicted else 0
    total, details = np.zeros((K, K), np.int64), np.zeros(details_size(K, bins), np.int64)
    most, shown_by, ignored = np.zeros((K, K), np.int64), np.full((K, K), -1), 0
    images, maps = list[ImageScore](), list[SmallMap]()
    for index, (sample, (prediction, probability)) in enumerate(pairs):
        confusion = confusion_matrix(sample.labels, prediction, K, ignore=ignore)
        total += confusion
        details += count_details(sample.labels, [(prediction, probability)], K, ignore, bins)[0]
        ignored += int(np.count_nonzero(sample.labels == ignore))
        shown_by[confusion > most] = index
        np.maximum(most, confusion, out=most)
        images.append(ImageScore.of(confusion))
        maps.append(SmallMap.of(prediction))
    result = Result(total, space.names, protocol, ignored=ignored)
    seconds = time.perf_counter() - began
    return ImageScores(
        dataset=dataset,
        source=source,
        result=result,
        details=Details.unpack(details, K, bins),
        temperature=1.0,
        images=tuple(images),
        maps=tuple(maps),
        shown_by=shown_by,
        seconds=seconds,
        predicted=predicted,
    )


class Cost(NamedTuple):
    """A confusion: pixels of one class that were predicted as another."""

    label: int
    prediction: int
    pixels: int
    points: float
    """mIoU in points that would be gained if they were predicted right, and nothing else changed."""


def rank_confusions(confusion: Confusion, count: int) -> list[Cost]:
    """The `count` confusions of a matrix (K, K) that cost most mIoU, without those that cost nothing."""
    points = miou_costs(confusion)
    order = np.argsort(-points, axis=None, kind="stable")[:count]
    places = [np.unravel_index(at, points.shape) for at in order]
    found = [Cost(int(i), int(j), int(confusion[i, j]), float(points[i, j])) for i, j in places]
    return [cost for cost in found if cost.pixels > 0 and cost.points > 0]


def miou_costs(confusion: Confusion) -> npt.NDArray[np.float64]:
    """(K, K) points of mIoU that each confusion costs: the gain if its pixels were predicted right.

    With n pixels of class i predicted as j, the union of i stays and its intersection grows by n; the union of j
    shrinks by n. A class that would then be in neither labels nor predictions leaves the mean. 0 on the diagonal.
    """
    right = confusion.diagonal().astype(float)
    union = confusion.sum(0) + confusion.sum(1) - right
    present = union > 0
    if not present.any():
        return np.zeros(confusion.shape)
    iou = np.divide(right, union, out=np.zeros_like(right), where=present)
    wrong = confusion.astype(float)
    np.fill_diagonal(wrong, 0)
    smaller = union - wrong  # (K, K): the union of each predicted class without these pixels
    gain_label = np.divide(wrong, union[:, None], out=np.zeros_like(wrong), where=present[:, None])
    new = np.divide(np.broadcast_to(right, wrong.shape), smaller, out=np.zeros_like(wrong), where=smaller > 0)
    count = present.sum() - ((smaller <= 0) & present)
    total = iou.sum() + gain_label + new - iou
    points = 100 * (np.divide(total, count, out=np.full_like(total, 1.0), where=count > 0) - iou.sum() / present.sum())
    return np.where(wrong > 0, points, 0.0)


def confusion_order(confusion: Confusion) -> list[int]:
    """An order of the K classes in which those that are confused are neighbors.

    Hierarchical clustering (average linkage, optimal leaf order by Bar-Joseph et al., 2001) of the shares of their
    pixels that two classes exchange.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    K = len(confusion)
    if K < 3:
        return list(range(K))
    truth = confusion.sum(1, keepdims=True)
    shares = np.divide(confusion, truth, out=np.zeros(confusion.shape), where=truth > 0)
    distances = 2.0 - (shares + shares.T)
    np.fill_diagonal(distances, 0)
    order: list[int] = leaves_list(linkage(squareform(distances), "average", optimal_ordering=True)).tolist()
    return order


def centered_crop(wanted: npt.NDArray[np.bool_], share: float = 0.5) -> tuple[slice, slice]:
    """Rows and columns of the crop of a mask (H, W), with `share` of its sides, that holds most of it."""
    from scipy.ndimage import uniform_filter

    H, W = wanted.shape
    h, w = max(round(share * H), 1), max(round(share * W), 1)
    y, x = np.unravel_index(
        int(uniform_filter(wanted.astype(np.float64), (h, w), mode="constant").argmax()), wanted.shape
    )
    top, left = min(max(int(y) - h // 2, 0), H - h), min(max(int(x) - w // 2, 0), W - w)
    return slice(top, top + h), slice(left, left + w)
