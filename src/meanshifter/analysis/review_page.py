"""The page and the tables of a review: masks that are probably wrong, and images to label next."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from meanshifter.analysis.figures import fitted
from meanshifter.analysis.html import Page, Pixels, colorize
from meanshifter.analysis.review import Candidate, Part, Suspect, find_suspects, rank_unlabeled
from meanshifter.data.datasets import Sample
from meanshifter.data.labels import LabelSpace
from meanshifter.data.reading import read_image
from meanshifter.errors import InputError, counted
from meanshifter.evaluation.evaluate import count_images
from meanshifter.utils.files import write_text

PAGE, SUSPECTS, CANDIDATES = "review.html", "suspects.csv", "to_label.csv"
SHOWN = 60
"""Suspects with pictures."""
SIDE = 280
"""Longer side of a picture in pixels."""
AROUND = 0.6
"""What is shown around a region, in its longer side; at least `LEAST` pixels."""
LEAST = 24
OUTLINE = (255, 0, 255)


@dataclass(frozen=True)
class Review:
    """The result of a review."""

    suspects: list[Suspect]
    """Regions whose mask is probably wrong, the most probable first."""
    candidates: list[Candidate]
    """Unlabeled images in the order in which to label them."""
    page: Path


def review(
    parts: Sequence[Part],
    out: str | Path,
    *,
    unlabeled: Sequence[Path] = (),
    shown: int = SHOWN,
    limit: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Review:
    """Look for wrong masks and for images worth labeling, and write a page and tables.

    Args:
        parts: models and the images with masks that they were not trained on, see `parts_of`.
        out: folder for review.html, suspects.csv and to_label.csv; other files there are kept.
        unlabeled: images without masks; they are ranked by the first model.
        shown: suspects, and images to label, with pictures on the page.
        limit: only the first images of each dataset.
        overwrite: replace the files of an earlier review.
        progress: show progress bars on standard error, if that is a terminal.

    Raises:
        InputError: `out` has such files, or is a file; `shown` is below 1; or as `find_suspects` and `rank_unlabeled`.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; choose a folder with --out DIR")
    if shown < 1:
        raise InputError(f"shown: {shown}; it must be at least 1")
    taken = [name for name in (PAGE, SUSPECTS, CANDIDATES) if (folder / name).exists()]
    if taken and not overwrite:
        raise InputError(f"{folder / taken[0]}: already exists; replace it with --overwrite, or choose another --out")
    suspects = find_suspects(parts, limit=limit, progress=progress)
    candidates = rank_unlabeled(parts[0].predictor, unlabeled, progress=progress) if unlabeled else []
    for name in taken:
        (folder / name).unlink()
    space = parts[0].dataset.label_space
    write_text(folder / SUSPECTS, suspects_csv(suspects, space))
    if candidates:
        write_text(folder / CANDIDATES, candidates_csv(candidates))
    _page(parts, suspects, candidates, shown, limit).save(folder / PAGE)
    return Review(suspects, candidates, folder / PAGE)


def count_reviewed(parts: Sequence[Part], limit: int | None) -> int:
    """Number of images that are reviewed."""
    return sum(count_images(part.dataset, limit) for part in parts)


def suspects_csv(suspects: Sequence[Suspect], space: LabelSpace) -> str:
    """A line for each suspect: its image, classes, box in pixels, size, certainty and score."""
    head = ["rank", "image", "labeled", "predicted", "top", "bottom", "left", "right", "pixels", "certainty", "score"]
    rows: list[list[object]] = []
    for rank, s in enumerate(suspects, 1):
        classes = space.names[s.labeled], space.names[s.predicted]
        rows.append([rank, s.image, *classes, *s.box, s.pixels, f"{s.certainty:.3f}", f"{s.score:.1f}"])
    return _csv([head, *rows])


def candidates_csv(candidates: Sequence[Candidate]) -> str:
    """A line for each image to label: its path, mean entropy and novelty."""
    head = ["rank", "image", "entropy", "novelty"]
    rows = [[rank, c.path, f"{c.entropy:.4f}", f"{c.novelty:.4f}"] for rank, c in enumerate(candidates, 1)]
    return _csv([head, *rows])


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _page(
    parts: Sequence[Part], suspects: Sequence[Suspect], candidates: Sequence[Candidate], shown: int, limit: int | None
) -> Page:
    space, images = parts[0].dataset.label_space, count_reviewed(parts, limit)
    page = Page("Review of labels")
    names = ", ".join(dict.fromkeys(f"{part.dataset.name} {part.dataset.split}" for part in parts))
    page.text(
        f"{names}: {counted(images, 'image')}, none of which the models were trained on. {_found(suspects, shown)}"
    )
    page.text(
        "A region is suspicious where the model predicts another class than the mask and gives the mask's class hardly "
        "any probability. Not every one is an error: look before you correct. All regions are in suspects.csv."
    )
    page.legend(space)
    page.heading("Masks that are probably wrong")
    for rank, suspect in enumerate(suspects[:shown], 1):
        part, index = _located(parts, suspect.index)
        times = f"{np.exp(suspect.certainty):,.0f} times as probable"
        page.text(
            f"{rank}. {suspect.image}: labeled {space.names[suspect.labeled]}, predicted "
            f"{space.names[suspect.predicted]}, {times}; {suspect.pixels:,} pixels, rows {suspect.box[0]} to "
            f"{suspect.box[1]}, columns {suspect.box[2]} to {suspect.box[3]}"
        )
        page.pictures([_pictures(part, part.dataset[index], suspect)], columns=3)
    if candidates:
        page.heading("Images to label next")
        page.text(
            "In this order: each is the one whose predictions are the least sure and unlike those before it. All are "
            "in to_label.csv."
        )
        for start in range(0, min(len(candidates), shown), 4):
            row = {
                f"{start + k + 1}. {c.path.name} (entropy {c.entropy:.2f})": fitted(
                    read_image(c.path), side=SIDE, photo=True
                )
                for k, c in enumerate(candidates[start : min(start + 4, shown)])
            }
            page.pictures([row], columns=4)
    return page


def _found(suspects: Sequence[Suspect], shown: int) -> str:
    if not suspects:
        return "No suspicious region was found."
    images = len({suspect.index for suspect in suspects})
    rest = f"; the first {shown} are shown" if len(suspects) > shown else ""
    return f"{counted(len(suspects), 'suspicious region')} in {counted(images, 'image')}{rest}."


def _located(parts: Sequence[Part], index: int) -> tuple[Part, int]:
    for part in parts:
        if index < len(part.dataset):
            return part, index
        index -= len(part.dataset)
    raise IndexError(index)


def _pictures(part: Part, sample: Sample, suspect: Suspect) -> dict[str, Pixels]:
    """Image, mask and prediction around the region, which is outlined in the image."""
    prediction = part.predictor.label_maps(sample.image, [None])[0]
    top, bottom, left, right = suspect.box
    more = max(round(AROUND * max(bottom - top, right - left)), LEAST)
    H, W = sample.labels.shape
    crop = slice(max(top - more, 0), min(bottom + more, H)), slice(max(left - more, 0), min(right + more, W))
    region = (sample.labels == suspect.labeled) & (prediction == suspect.predicted)
    region[:top], region[bottom:], region[:, :left], region[:, right:] = False, False, False, False
    image = sample.image[crop].copy()
    image[_outline(region[crop])] = OUTLINE
    space = part.dataset.label_space
    return {
        "image": fitted(image, side=SIDE, photo=True),
        "mask": fitted(colorize(sample.labels[crop], space), side=SIDE),
        "prediction": fitted(colorize(prediction[crop], space), side=SIDE),
    }


def _outline(region: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    from scipy import ndimage

    line: npt.NDArray[np.bool_] = region & ~ndimage.binary_erosion(region)
    return line
