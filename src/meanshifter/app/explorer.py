"""`Explorer`: the models and images of the page, and what has been computed of them; it knows no HTTP."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Generic, Self, TypeVar

import numpy as np
from PIL import Image

from meanshifter.analysis.compare import short_names
from meanshifter.app.gallery import Entry, Gallery, Images
from meanshifter.app.label_maps import LabelMaps, every, shown_size, shown_stride
from meanshifter.app.tokens import Tokens, region_of, why_no_steps, why_no_tokens
from meanshifter.data.labels import Labels
from meanshifter.data.rows import LargeFile, large_file
from meanshifter.errors import InputError, printable
from meanshifter.evaluation.evaluate import check_classes
from meanshifter.inference.predictor import Predictor
from meanshifter.inference.preprocess import as_pixels
from meanshifter.inference.resolve import Model
from meanshifter.model.mean_shift import check_layers

STEPS: Final = 8
"""Mean shift steps that the slider offers by default, or as many as the model was trained with, if these are more."""
KEPT: Final = 6
"""Pairs of a model and an image whose label maps, and whose tokens, are kept."""

Value = TypeVar("Value")


class Explorer:
    """Models and images, with what is shown of them.

    Args:
        models: a model, a name that `load_model` accepts, a `Predictor`, a list of these, or a mapping from names.
        images: a `Dataset`, with its labels as ground truth, an image file, a list of files, or a folder of images.
        steps: mean shift steps that the slider offers; None: 8, or the trained number if that is larger.

    Raises:
        InputError: a model or an image that cannot be found, or an invalid number of steps.
    """

    def __init__(
        self,
        models: Model | Predictor | Sequence[Model | Predictor] | Mapping[str, Model | Predictor],
        images: Images | None = None,
        *,
        steps: int | None = None,
    ) -> None:
        self.predictors = {
            printable(name): model if isinstance(model, Predictor) else Predictor(model)
            for name, model in _named(models).items()
        }
        self.steps = None if steps is None else check_layers(steps, "steps")
        self.gallery = Gallery(images)
        self._maps: Kept[LabelMaps] = Kept(KEPT)
        self._tokens: Kept[Tokens] = Kept(KEPT)
        self._jobs: dict[tuple[str, str], Job] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="meanshifter-explore")
        self.closing = threading.Event()

    def close(self) -> None:
        """Stop computing, and delete what was uploaded."""
        self.closing.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.gallery.close()

    def describe(self) -> dict[str, Any]:
        """The models and images, for the page."""
        return {
            "models": [self._describe_model(name) for name in self.predictors],
            "images": [self.describe_image(key, entry) for key, entry in self.gallery.entries().items()],
        }

    def describe_image(self, key: str, entry: Entry) -> dict[str, Any]:
        """An image, for the page."""
        return {"id": key, "name": printable(entry.name), "truth": self.gallery.has_labels(entry)}

    def _describe_model(self, name: str) -> dict[str, Any]:
        model = self.predictors[name].model
        space, dataset = model.label_space, self.gallery.dataset
        no_truth = ""
        if dataset is not None and dataset.labeled:
            try:
                check_classes(space, dataset.label_space, f"{dataset.name} {dataset.split}")
            except InputError as error:
                no_truth = str(error)
        return {
            "name": name,
            "classes": list(space.names),
            "palette": [list(color) for color in space.palette],
            "ignore": space.ignore,
            "trained": self.predictors[name].mean_shift_layers,
            "steps": self.offered_steps(name),
            "no_tokens": why_no_tokens(model),
            "no_steps": why_no_steps(model),
            "no_truth": no_truth,
        }

    def offered_steps(self, name: str) -> list[int]:
        """Numbers of mean shift steps that the slider offers for a model."""
        predictor = self.predictors[name]
        trained = predictor.mean_shift_layers
        if not predictor.model.has_steps:
            return [trained]
        return list(range((max(STEPS, trained) if self.steps is None else max(self.steps, trained)) + 1))

    def picture(self, key: str) -> Image.Image:
        """An image at the size at which it is shown."""
        source = self.gallery.source(self._entry(key))
        file = large_file(source, self._max_pixels) if isinstance(source, Path) else None
        if file is not None:
            return _thinned(file)
        pixels = as_pixels(source, self._max_pixels)
        H, W = pixels.shape[:2]
        picture = Image.fromarray(pixels)
        return picture if shown_stride(H, W) == 1 else picture.resize(shown_size(H, W)[::-1], Image.Resampling.BOX)

    def truth(self, key: str) -> Labels:
        """The ground truth of the pixels that are shown.

        Raises:
            InputError: the image has none, or its mask cannot be read.
        """
        entry = self._entry(key)
        if not self.gallery.has_labels(entry):
            raise InputError(f"image: {entry.name} has no mask")
        labels = self.gallery.labels(entry)
        s = shown_stride(*labels.shape)
        return labels[every(labels.shape[0], s), every(labels.shape[1], s)]

    @property
    def _max_pixels(self) -> int:
        return next(iter(self.predictors.values())).max_pixels

    def _entry(self, key: str) -> Entry:
        entry = self.gallery.find(key)
        if entry is None:
            raise KeyError(key)
        return entry

    def start(self, model: str, key: str) -> Job:
        """Begin to compute the label maps of an image, one image at a time, unless they are there or on their way."""
        predictor, entry = self.predictors[model], self._entry(key)
        with self._lock:
            job = self._jobs.get((model, key))
            if job is not None and not job.future.done() and not job.stopped.is_set():
                return job
            job = Job()
            if (found := self._maps.find((model, key))) is not None:
                job.future.set_result(found)
                return job
            job.future = self._pool.submit(self._compute, job, predictor, model, key, entry)
            self._jobs = {pair: other for pair, other in self._jobs.items() if not other.future.done()}
            self._jobs[model, key] = job
            return job

    def _compute(self, job: Job, predictor: Predictor, model: str, key: str, entry: Entry) -> LabelMaps:
        def report(share: float) -> None:
            job.share = share
            if job.stopped.is_set() or self.closing.is_set():
                raise InputError(f"image: {entry.name} is no longer labeled, since nobody waits for it")

        report(0.0)

        def make() -> LabelMaps:
            return LabelMaps(predictor, self.gallery.source(entry), self.offered_steps(model), report)

        return self._maps.get((model, key), make)

    def maps(self, model: str, key: str) -> LabelMaps:
        """The label maps of an image.

        Raises:
            InputError: the image cannot be read.
            KeyError: no such model or image.
        """
        found = self._maps.find((model, key))
        return self.start(model, key).future.result() if found is None else found

    def tokens(self, model: str, key: str, point: tuple[float, float] | None = None) -> Tokens:
        """The tokens of an image, or of its window around a point (y, x) in pixels of the image.

        Raises:
            InputError: the model has none, or the image cannot be read.
            KeyError: no such model or image.
        """
        predictor, entry = self.predictors[model], self._entry(key)
        if reason := why_no_tokens(predictor.model):
            raise InputError(f"model: {reason}")
        region = region_of(predictor, self.maps(model, key).size, point)
        at = region.rows.start, region.cols.start

        def make() -> Tokens:
            return Tokens(predictor, self.gallery.source(entry), region, self.offered_steps(model)[-1])

        return self._tokens.get((model, key, at), make)


class Job:
    """Label maps that are being computed, for those who follow."""

    def __init__(self) -> None:
        self.share = 0.0
        """Of the image that is done."""
        self.future: Future[LabelMaps] = Future()
        self.stopped = threading.Event()
        """Set when the last follower has left."""
        self._followers = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Follow it."""
        with self._lock:
            self._followers += 1
        return self

    def __exit__(self, *_: object) -> None:
        """Leave; the last one to leave stops it."""
        with self._lock:
            self._followers -= 1
            if self._followers == 0:
                self.stopped.set()


class Kept(Generic[Value]):
    """The values that were used last; one is made at a time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._making, self._lock = threading.Lock(), threading.Lock()

    def find(self, key: Hashable) -> Value | None:
        """The value, if it is there."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value, made if it is not there."""
        if (found := self.find(key)) is not None:
            return found
        with self._making:
            if (found := self.find(key)) is not None:
                return found
            made = make()
            with self._lock:
                self._values[key] = made
                while len(self._values) > self._most:
                    self._values.popitem(last=False)
            return made


def _named(models: Any) -> dict[str, Any]:
    """Names and models of what `Explorer` takes."""
    several = list(models) if isinstance(models, list | tuple) else models if isinstance(models, Mapping) else [models]
    if not several:
        raise InputError("models: none given; give at least one")
    if isinstance(several, Mapping):
        return dict(several)
    paths = [model if isinstance(model, str | Path) else f"model {place + 1}" for place, model in enumerate(several)]
    return dict(zip(short_names(paths), several, strict=True))


def _thinned(file: LargeFile) -> Image.Image:
    """Every s-th pixel of a file that is read row by row."""
    H, W = file.shape[:2]
    s = shown_stride(H, W)
    with file.rows() as rows:
        kept = [rows[y : y + 1, 0:W][:, every(W, s)].copy() for y in range(*every(H, s).indices(H))]
    return Image.fromarray(np.concatenate(kept))
