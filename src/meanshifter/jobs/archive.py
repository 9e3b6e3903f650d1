"""Label images: an archive with a manifest, by which a second run skips what is finished, or local files without one.

`label_archive` reads local and remote images, in this process or on a Ray cluster (`jobs.ray.on_cluster`), with the
same results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

import meanshifter
from meanshifter.data.reading import PassedOver, read_image
from meanshifter.data.remote import absolute, is_address, read_bytes
from meanshifter.data.rows import LargeFile
from meanshifter.errors import InputError
from meanshifter.inference.ensemble import model_hash
from meanshifter.inference.predictor import Predictor
from meanshifter.inference.protocol import PatchModel
from meanshifter.inference.segmentation import Segmentation, read_ahead, save_png
from meanshifter.jobs.inputs import Job, file_name, layers_folder
from meanshifter.jobs.listing import Entry, Unit, entries, plan_units
from meanshifter.jobs.manifest import Done, Known, Line, NoSpaceError, Store, line_of, open_log, open_store
from meanshifter.ops.argmax import uncompiled
from meanshifter.utils.progress import ProgressBar

LARGE: Final = 2048
"""Rows from which an image has a progress bar of its own."""
ONE_PHOTO: Final = 2_000_000
"""Pixels up to which a single image is labeled without numba, whose start would take longer."""
REASONS: Final = 20
"""Errors that are kept in full; all of them are in the manifest."""


@dataclass(frozen=True)
class Work:
    """What is done with every image. It is pickled to workers."""

    model: PatchModel
    settings: dict[str, Any] = field(default_factory=dict)
    """Arguments of `Predictor` except for the model and the device."""
    overlay: bool = False
    """Whether overlays are written too."""
    alpha: float = 0.5
    """Opacity of their colors."""
    steps: tuple[int, ...] = ()
    """Numbers of mean shift steps, each with a folder layers_N of results; none: `settings` has the one number, and
    results have no such folder."""

    @property
    def folders(self) -> tuple[str, ...]:
        """The folder of the results for each number of steps, with a slash."""
        return tuple(f"{layers_folder(count)}/" for count in dict.fromkeys(self.steps)) or ("",)

    def described(self) -> dict[str, Any]:
        """Everything apart from the images that the results depend on: where it differs, nothing is skipped."""
        settings = dict(self.settings)
        engine = settings.pop("engine", "torch")
        predictor = Predictor(self.model, **settings)
        steps = [predictor.resolve_layers(count) for count in self.steps]
        protocol = {**predictor.protocol(), **({"mean_shift_layers": steps} if steps else {})}
        temperature, _ = protocol.pop("temperature"), protocol.pop("engine")
        # fields that earlier manifests lack appear only where they matter
        later = {
            **({"temperature": list(temperature)} if set(temperature) != {1.0} else {}),
            **({} if engine == "torch" else {"engine": engine}),  # what "auto" chooses may differ between machines
            **({"min_confidence": predictor.min_confidence} if predictor.min_confidence > 0 else {}),
        }
        precision = self.settings.get("precision", predictor.precision)  # "auto" may differ between machines
        return {
            "weights": model_hash(self.model),
            "protocol": {**protocol, "scales": list(predictor.scales), "precision": precision},
            "overlay": self.alpha if self.overlay else None,
            "confidence": list(predictor.confidence),
            "probabilities": list(predictor.probabilities),
            **later,
        }


@dataclass
class Summary:
    """Results of a run."""

    done: int = 0
    """Images that this run has labeled."""
    skipped: int = 0
    """Images that an earlier run has finished."""
    failed: int = 0
    """Images that could not be read or listed."""
    reasons: list[str] = field(default_factory=list)
    """Errors of the first of them."""
    passed: PassedOver = field(default_factory=PassedOver)
    """Files among the images that were skipped for their names, counted by kind."""
    restarted: bool = False
    """Whether there was a manifest of other weights or settings, which is no longer used."""


@dataclass(frozen=True)
class Finished:
    """Images that were finished since the last report."""

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
    """Write the label map of every image to `out`, with a manifest line for each; unreadable images are skipped.

    Args:
        work: the model and its settings.
        inputs: images, globs and tars of samples, or a single folder: local, or fsspec addresses.
        out: a folder, or an fsspec address.
        run: `in_process()`, or `on_cluster()` of `jobs.ray`; None: `in_process()` on the model's device.
        overwrite: redo what the manifest lists as finished.
        report: called with the progress after every few images.

    Raises:
        InputError: invalid inputs or settings, a place that cannot be written, or another run there.
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
    """A runner in this process."""

    def run(work: Work, units: list[Unit], out: str, known: Callable[[], Known]) -> Iterator[Finished]:
        seen, skipped, passed = known(), 0, PassedOver()

        def wanted() -> Iterator[Entry]:
            nonlocal skipped
            for unit in units:
                for entry in entries(unit, out, seen, passed):
                    skipped += entry is None
                    if entry is not None:
                        yield entry

        reported = 0
        for line in Labeler(work, device, seen.store).label(wanted()):
            yield Finished([line], skipped - reported)
            reported = skipped
        yield Finished([], skipped - reported, passed)

    return run


class Labeler:
    """Reads images, labels them and writes the results."""

    def __init__(self, work: Work, device: str | None, store: Store) -> None:
        """Move the model to `device`.

        Raises:
            InputError: invalid settings.
        """
        self._work, self._store = work, store
        self._predictor = Predictor(work.model, device=device, **work.settings)

    def label(self, wanted: Iterable[Entry]) -> Iterator[Line]:
        """Yield a manifest line for each image, in order, once its files are written.

        Raises:
            NoSpaceError: results can no longer be written.
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
        maps = (*self._predictor.confidence, *self._predictor.probabilities)
        folder = entry.place.partition("/")[0]
        if {"overlays": self._work.overlay, "confidence": maps}.get(folder):
            raise InputError(
                f"{entry.address}: its label map would be written among the {folder}; rename its folder {folder}"
            )
        steps = self._work.steps or (self._predictor.mean_shift_layers,)
        found = self._predictor(image, mean_shift_layers=steps)
        for base, segmentation in zip(self._work.folders, found.values(), strict=True):
            for name in maps:
                self._save(f"{base}confidence/{file_name(name)}/{entry.place}", segmentation.map_image(name))
            if self._work.overlay:
                self._save(f"{base}overlays/{entry.place}", segmentation.overlay(self._work.alpha, legend=True))
            self._save(base + entry.place, segmentation.to_image())  # last, as it marks the image as complete

    def _save(self, place: str, picture: Image.Image) -> None:
        file = BytesIO()
        picture.save(file, format="PNG")
        self._store.write(place, file.getvalue())


def label_images(
    predictor: Predictor,
    images: Sequence[Sequence[Job]],
    mean_shift_layers: Sequence[int],
    *,
    maps: Sequence[str] = (),
    alpha: float = 0.5,
    keep: Callable[[Path, list[Segmentation]], None] | None = None,
    progress: bool = False,
) -> list[str]:
    """Label all images that `jobs.inputs.plan` planned; returns an error for each that could not be read.

    Args:
        predictor: the model and its settings.
        images: for each image, one job per number of mean shift steps.
        mean_shift_layers: these numbers.
        maps: names of the confidence maps and probabilities that the jobs have files for.
        alpha: opacity of overlays.
        keep: called with each image and its segmentations, after they were written.
        progress: show a bar on a terminal.
    """
    failed: list[str] = []
    with ProgressBar("images", len(images), shown=progress) as bar:
        predictor.progress = bar.second("rows of a large image", least=LARGE)
        for jobs, future in read_ahead(lambda jobs: predictor.load(jobs[0].source), images):
            source = jobs[0].source
            try:
                loaded = future.result()
                is_small = len(images) == 1 and not maps and math.prod(loaded.shape[:2]) <= ONE_PHOTO
                with uncompiled() if is_small else nullcontext():
                    found = list(predictor(loaded, mean_shift_layers=mean_shift_layers).values())
            except InputError as error:
                failed.append(str(error) if str(source) in str(error) else f"{source}: {error}")
            else:
                for job, segmentation in zip(jobs, found, strict=True):
                    segmentation.save(job.mask)
                    if job.overlay is not None:
                        save_png(job.overlay, segmentation.overlay(alpha, legend=True))
                    for name, path in zip(maps, job.confidence, strict=True):
                        save_png(path, segmentation.map_image(name))
                if keep is not None:
                    keep(source, found)
            bar.advance()
    return failed
