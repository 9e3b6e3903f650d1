"""The pictures of a report: confusions, the best, median and worst images, and training samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from meanshifter.analysis.figures import FAINT, classes_in, error_map, fitted
from meanshifter.analysis.html import Page, Photo, Pixels, colorize
from meanshifter.analysis.image_scores import choose, number
from meanshifter.analysis.preview import labels_over, training_samples
from meanshifter.analysis.report_scores import SIDE, Cost, ImageScores, centered_crop
from meanshifter.analysis.run_record import RunRecord
from meanshifter.data.labels import Color, Labels, LabelSpace
from meanshifter.errors import InputError

SAMPLES: Final = 8
"""Training samples that are shown."""
SAMPLE_SIDE: Final = 320
"""Maximum of the longer side of their pictures, in pixels."""
PER_GROUP: Final = 3
"""Best, median and worst images that are shown of each."""
CONFUSIONS_SHOWN: Final = 4
"""Confusions that are shown as pictures."""


def add_confusion_pictures(page: Page, scores: ImageScores, costs: Sequence[Cost]) -> None:
    """Add, for the first of these confusions, the image that shows it most, cut to where it is."""
    shown = costs[:CONFUSIONS_SHOWN]
    rows, legend = zip(*(_confusion_pictures(scores, cost) for cost in shown), strict=True) if shown else ((), ())
    page.text("The image with most pixels of each, cut to where they are:")
    page.legend(_merged(legend))
    page.pictures(rows)


def confusion_name(cost: Cost, space: LabelSpace) -> str:
    """Class of the labels → predicted class."""
    return f"{space.names[cost.label]} → {space.names[cost.prediction]}"


def _confusion_pictures(scores: ImageScores, cost: Cost) -> tuple[dict[str, Pixels | Photo], dict[str, Color]]:
    """A crop around most pixels of a confusion: image, confused pixels, labels and prediction; and their legend."""
    space = scores.dataset.label_space
    index = int(scores.shown_by[cost.label, cost.prediction])
    sample, prediction = scores.dataset[index], scores.maps[index].labels
    truth = fitted(sample.labels, side=SIDE)
    confused = (truth == cost.label) & (prediction == cost.prediction)
    if not confused.any():  # too few pixels to be left in a small picture
        confused = truth == cost.label
    rows, columns = centered_crop(confused)
    image = fitted(sample.image, side=SIDE, photo=True)[rows, columns]
    faint = (255 - FAINT * (255 - image.astype(np.float32))).astype(np.uint8)
    marked = np.where(confused[rows, columns, None], image, faint)
    pictures: dict[str, Pixels | Photo] = {
        f"{confusion_name(cost, space)}: {sample.name}": Photo(image),
        "these pixels": Photo(marked),
        "labels": colorize(truth[rows, columns], space),
        "prediction": colorize(prediction[rows, columns], space),
    }
    return pictures, classes_in((truth[rows, columns], prediction[rows, columns]), space)


def _merged(legends: Iterable[Mapping[str, Color]]) -> dict[str, Color]:
    """Legends without repetition; the ignored value comes last."""
    found = {name: color for legend in legends for name, color in legend.items()}
    ignored = found.pop("ignored", None)
    return found if ignored is None else {**found, "ignored": ignored}


def add_images(page: Page, scores: ImageScores) -> None:
    """Add the section of images by their share of wrong pixels."""
    page.heading("Best, median and worst images")
    percents = np.array([image.percent for image in scores.images])
    choices = choose(-percents, PER_GROUP)
    if not choices:
        page.text("Not shown: no image has a labeled pixel.")
        return
    known = percents[~np.isnan(percents)]
    page.text(
        f"By their share of wrong pixels, whose median over the {len(known):,} images is {np.median(known):.2f} %. In "
        "error maps, wrong pixels have the color of their predicted class, correct ones are faint."
    )
    space, rows, maps = scores.dataset.label_space, [], list[Labels]()
    for choice in choices:
        sample, prediction, score = (
            scores.dataset[choice.index],
            scores.maps[choice.index].labels,
            scores.images[choice.index],
        )
        truth = fitted(sample.labels, side=SIDE)
        maps += [truth, prediction]
        row: dict[str, Pixels | Photo] = {
            f"{choice.title}: {sample.name}": Photo(fitted(sample.image, side=SIDE, photo=True)),
            "labels": colorize(truth, space),
            f"prediction, mIoU {number(score.mIoU)}": colorize(prediction, space),
            f"errors, {number(score.percent)} % of the pixels": error_map(truth, prediction, space),
        }
        rows.append(row)
    page.legend(classes_in(maps, space))
    page.pictures(rows)


def add_samples(page: Page, record: RunRecord) -> None:
    """Add the section of the first samples of the run, or why they cannot be read."""
    page.heading("Training samples")
    config, note = record.config, ""
    if record.is_cross_validation:
        config, note = replace(config, data=replace(config.data, fold=0)), " Of fold 0."
    if config.augment.needs_class_pixels:
        config = replace(config, augment=replace(config.augment, rare_crops=0.0, copy_paste=0.0))
        note += " Drawn without augment.rare_crops and augment.copy_paste, which would read the masks of all images."
    try:
        space, samples = training_samples(config, SAMPLES)
    except InputError as error:
        page.text(f"Not shown: {error}.")
        return
    page.text(
        f"The first samples of the run, as the model sees them, with their labels; ignored pixels are striped.{note}"
    )
    page.legend(classes_in((labels for _, _, labels in samples), space))
    pictures = list[dict[str, Pixels | Photo]]()
    for position, (name, pixels, labels) in enumerate(samples):
        over = labels_over(pixels, labels, space)
        shown = {f"sample {position}: {name}": pixels, f"labels of sample {position}": over}
        pictures.append({title: Photo(fitted(each, side=SAMPLE_SIDE, photo=True)) for title, each in shown.items()})
    page.pictures([{**left, **right} for left, right in zip(pictures[::2], pictures[1::2], strict=True)])
