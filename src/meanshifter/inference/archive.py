"""Label maps of an archive: images streamed from wherever they are, results in a folder or at an address, and a
manifest by which a second run skips what is done.

`label_archive` reads in this process, or hands the work to a Ray cluster (see `on_ray`); the files are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

import meanshifter
from meanshifter.data.reading import read_image
from meanshifter.data.remote import absolute, is_address, read_bytes
from meanshifter.data.rows import LargeFile
from meanshifter.data.walk import PassedOver
from meanshifter.errors import InputError
from meanshifter.inference.files import read_ahead
from meanshifter.inference.inputs import file_name, layers_folder
from meanshifter.inference.listing import Entry, Unit, entries, plan_units
from meanshifter.inference.manifest import Done, Known, Line, line_of, open_log
from meanshifter.inference.predictor import Predictor
from meanshifter.inference.segmentation import Segmentation
from meanshifter.inference.store import NoSpaceError, Store, open_store
from meanshifter.interop.contract import PatchModel
from meanshifter.interop.weights import weights_hash

REASONS: Final = 20
"""Failures that are kept word for word; all of them are in the manifest."""


@dataclass(frozen=True)
class Work:
    """What is made of every image. It is sent to other processes as it is."""

    model: PatchModel
    settings: dict[str, Any] = field(default_factory=dict)
    """Arguments of `Predictor` besides the model and the device."""
    overlay: bool = False
    """Whether overlays are written too."""
    alpha: float = 0.5
    """Opacity of their colours."""
    steps: tuple[int, ...] = ()
    """Numbers of mean shift steps of which each has a folder layers_N with all that is written; none: `settings` has
    the one number, and results lie at the top."""

    @property
    def folders(self) -> tuple[str, ...]:
        """What comes before the place of every result, for each number of steps."""
        return tuple(f"{layers_folder(count)}/" for count in dict.fromkeys(self.steps)) or ("",)

    def predictor(self, device: str | None) -> Predictor:
        """A predictor on `device`, to which the model is moved.

        Raises:
            InputError: settings that cannot be.
        """
        return Predictor(self.model, device=device, **self.settings)

    def described(self) -> dict[str, Any]:
        """What decides the files besides the images: where it differs, nothing is skipped."""
        predictor = Predictor(self.model, **self.settings)
        steps = [predictor.resolve_layers(count) for count in self.steps]
        protocol = {**predictor.protocol(), **({"mean_shift_layers": steps} if steps else {})}
        precision = self.settings.get("precision", predictor.precision)  # "auto" may be another on each machine
        return {
            "weights": weights_hash(self.model),
            "protocol": {**protocol, "scales": list(predictor.scales), "precision": precision},
            "overlay": self.alpha if self.overlay else None,
            "scores": list(predictor.scores),
            "probabilities": list(predictor.probabilities),
        }


@dataclass
class Summary:
    """What a run has done."""

    done: int = 0
    """Images whose label maps this run has written."""
    skipped: int = 0
    """Images that an earlier run has finished."""
    failed: int = 0
    """Images that could not be read, or listed."""
    reasons: list[str] = field(default_factory=list)
    """Why, of the first of them."""
    passed: PassedOver = field(default_factory=PassedOver)
    """What lay among the images and was passed over for its name, by kind."""
    restarted: bool = False
    """Whether there was a manifest of other weights or settings, which counts for nothing now."""


@dataclass(frozen=True)
class Finished:
    """What has been finished since the last word."""

    lines: list[Line]
    skipped: int = 0
    passed: PassedOver = field(default_factory=PassedOver)


Runner = Callable[[Work, list[Unit], str, Callable[[], Known]], Iterator[Finished]]


def label_archive(
    work: Work,
    inputs: Sequence[str],
    out: str,
    *,
    run: Runner | None = None,
    overwrite: bool = False,
    report: Callable[[Summary], object] = lambda _: None,
) -> Summary:
    """Write the label map of every image to `out`, and a line of its manifest; go on past what cannot be read.

    Args:
        work: the model and how it reads images.
        inputs: images, globs and tars of samples, or one folder: local, or fsspec addresses.
        out: a folder, or an fsspec address.
        run: `in_process`, or what `on_ray.on_cluster` returns; None: `in_process` on the model's device.
        overwrite: do again what the manifest names.
        report: told how far the run is, after every few images.

    Raises:
        InputError: inputs or settings that cannot be, a place that cannot be written, or another run there.
    """
    described = {**work.described(), "version": meanshifter.__version__}
    passed = PassedOver()
    units = plan_units(inputs, out, passed)
    out = out if is_address(out) else absolute(out)
    store = open_store(out)
    with closing(open_log(out, described, overwrite=overwrite)) as log:
        summary = Summary(passed=passed, restarted=log.restarted and not overwrite)
        failed: set[str] = set()

        def known() -> Known:
            log.flush()
            return Known(Done(log.lines()), store, frozenset(failed), work.folders)

        try:
            for finished in (run or in_process())(work, units, out, known):
                log.add(finished.lines)
                failed.update(line["input"] for line in finished.lines if "error" in line)
                _count(summary, finished)
                report(summary)
        finally:
            store.clean()
    return summary


def _count(summary: Summary, finished: Finished) -> None:
    errors = [line["error"] for line in finished.lines if "error" in line]
    summary.done += len(finished.lines) - len(errors)
    summary.skipped += finished.skipped
    summary.passed += finished.passed
    summary.failed += len(errors)
    summary.reasons += errors[: REASONS - len(summary.reasons)]


def in_process(device: str | None = None) -> Runner:
    """Runs in this process."""

    def run(work: Work, units: list[Unit], out: str, known: Callable[[], Known]) -> Iterator[Finished]:
        seen, skipped, passed = known(), 0, PassedOver()

        def wanted() -> Iterator[Entry]:
            nonlocal skipped
            for unit in units:
                for entry in entries(unit, out, seen, passed):
                    skipped += entry is None
                    if entry is not None:
                        yield entry

        told = 0
        for line in Labeller(work, device, seen.store).label(wanted()):
            yield Finished([line], skipped - told)
            told = skipped
        yield Finished([], skipped - told, passed)

    return run


class Labeller:
    """Reads images, predicts them and writes what was asked for."""

    def __init__(self, work: Work, device: str | None, store: Store) -> None:
        self._work, self._store = work, store
        self._predictor = work.predictor(device)

    def label(self, wanted: Iterable[Entry]) -> Iterator[Line]:
        """One line of the manifest for each image, in order; files are there before their line.

        Raises:
            NoSpaceError: results cannot be written any more.
        """
        for entry, future in read_ahead(self._load, wanted):
            try:
                self._predict(entry, future.result())
            except NoSpaceError:
                raise
            except InputError as error:
                yield line_of(entry, str(error))
            else:
                yield line_of(entry)

    def _load(self, entry: Entry) -> npt.NDArray[np.uint8] | LargeFile:
        if entry.error is not None:
            raise InputError(entry.error)
        if entry.data is None and not is_address(entry.address):
            return self._predictor.load(entry.address)
        data = read_bytes(entry.address) if entry.data is None else entry.data
        return read_image(entry.address, max_pixels=self._predictor.max_pixels, data=data)

    def _predict(self, entry: Entry, image: npt.NDArray[np.uint8] | LargeFile) -> None:
        self._refuse_meeting(entry)
        steps = self._work.steps or (self._predictor.mean_shift_layers,)
        found = self._predictor(image, mean_shift_layers=steps)
        for folder, segmentation in zip(self._work.folders, found.values(), strict=True):
            self._write(folder, entry.place, segmentation)

    def _write(self, folder: str, place: str, segmentation: Segmentation) -> None:
        """The label map last, so that its being there says that all is."""
        for name in (*self._predictor.scores, *self._predictor.probabilities):
            self._save(f"{folder}scores/{file_name(name)}/{place}", segmentation.map_image(name))
        if self._work.overlay:
            self._save(f"{folder}overlays/{place}", segmentation.overlay(self._work.alpha, legend=True))
        self._save(folder + place, segmentation.to_image())

    def _refuse_meeting(self, entry: Entry) -> None:
        """Overlays and scores have folders beside the label maps, in which no label map may lie."""
        folders = {"overlays": self._work.overlay, "scores": self._predictor.scores or self._predictor.probabilities}
        folder = entry.place.partition("/")[0]
        if folders.get(folder):
            raise InputError(f"{entry.address}: its label map would lie among the {folder}; rename its folder {folder}")

    def _save(self, place: str, picture: Image.Image) -> None:
        file = BytesIO()
        picture.save(file, format="PNG")
        self._store.write(place, file.getvalue())
