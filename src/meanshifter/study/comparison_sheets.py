"""The sheets of a comparison: where the last model is better than the first, where it is worse, and what steps do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from meanshifter.data.datasets import Sample
from meanshifter.inference.inputs import file_name
from meanshifter.report.sheet import (
    NO_MATPLOTLIB,
    SheetRow,
    has_matplotlib,
    plain_title,
    save_sheet,
    sheet_files,
    steps_title,
)
from meanshifter.study.comparison_page import LEAST, Reading, protocols
from meanshifter.study.image_scores import Comparison


@dataclass(frozen=True)
class Sheet:
    """One figure of a paper: some images, a row each."""

    kind: Literal["better", "worse", "layers"]
    indices: tuple[int, ...]
    """Of the images in the data set; none where there is nothing to show."""
    columns: tuple[tuple[str, int], ...]
    """The name in the comparison and the mean shift steps of each label map, after image and ground truth."""
    model: str = ""
    """The one whose steps are the columns of a sheet "layers"."""
    suffix: str = ""
    """Of the name, where several models have a sheet "layers"."""

    @property
    def name(self) -> str:
        """Of its files, without ending."""
        return f"sheet_{self.kind}{self.suffix}"

    @property
    def files(self) -> list[str]:
        """Names of its files; none without an image."""
        return [path.name for path in sheet_files(Path(self.name))] if self.indices else []

    @property
    def titles(self) -> list[str]:
        """Of its columns."""
        steps = self.kind == "layers"
        return [
            "Image",
            "Ground truth",
            *(steps_title(count) if steps else plain_title(name) for name, count in self.columns),
        ]

    def describe(self) -> str:
        """Its files and what they show, or why there are none, in half a sentence."""
        first, last = self.columns[0][0], self.columns[-1][0]
        if self.kind == "layers":
            what, why = f"{self.model} after each number of mean shift steps", "no image has a labelled pixel"
        else:
            what = f"images on which {last} is {self.kind} than {first}"
            why = f"on no image is {last} {self.kind} than {first} by {LEAST} of the labelled pixels or more"
        return f"{', '.join(self.files)}: {what}" if self.indices else f"no {self.name}: {why}"

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain containers for JSON; `names` are those of all images."""
        images = [names[index] for index in self.indices]
        return {"kind": self.kind, "model": self.model or None, "files": self.files, "images": images}


def describe_sheets(comparison: Comparison) -> list[str]:
    """Half a sentence on each sheet that a comparison has, or on why it has not."""
    if not has_matplotlib():
        return [f"no sheets: {NO_MATPLOTLIB}"]
    return [sheet.describe() for sheet in plan_sheets(comparison)]


def plan_sheets(comparison: Comparison) -> list[Sheet]:
    """The sheets, of `pick` images each; where images were named, of all of them that belong there.

    The steps are shown on the images chosen as best, or on those named.
    """
    shown = tuple(choice.index for choice in comparison.choices if choice.group in ("best", "image"))
    own = tuple((model.name, model.predictor.mean_shift_layers) for model in comparison.models)
    if comparison.steps_of:
        return [Sheet("layers", shown, own, comparison.steps_of)]
    named = [choice.index for choice in comparison.choices if choice.group == "image"]
    kinds: tuple[Literal["better", "worse"], ...] = ("better", "worse")
    sheets = []
    for kind in kinds:
        ranked = comparison.ranked(better=kind == "better")
        rows = [index for index in named if index in ranked] if named else ranked[: comparison.pick]
        sheets.append(Sheet(kind, tuple(rows), own))
    shifted = [model.name for model in comparison.models if model.predictor.model.has_steps and comparison.depths]
    for name in shifted:
        columns = tuple((name, count) for count in comparison.depths)
        suffix = "" if len(shifted) == 1 else f"_{file_name(name)}"
        sheets.append(Sheet("layers", shown, columns, name, suffix))
    return sheets


def row_of(sheet: Sheet, sample: Sample, readings: Sequence[Reading]) -> SheetRow:
    """The row of one image."""
    by_name = {reading.model.name: reading.maps for reading in readings}
    return SheetRow.of(sample.image, [sample.labels, *(by_name[name][steps] for name, steps in sheet.columns)])


def write_sheet(comparison: Comparison, sheet: Sheet, rows: Mapping[int, SheetRow], folder: Path) -> None:
    """Write the files of a sheet, if it has any; `rows` are by image.

    Raises:
        InputError: they cannot be written.
    """
    if sheet.indices:
        ordered = [rows[index] for index in sheet.indices]
        save_sheet(folder / sheet.name, sheet.titles, ordered, comparison.dataset.labels, protocols(comparison))
