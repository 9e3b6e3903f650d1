"""Cityscapes (Cordts et al., 2016): fine annotations; 19 of 34 classes are trained and scored."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from meanshifter.data.catalog.public import About, PublicDataset, SubmissionFormat
from meanshifter.data.labels import LabelSpace, hex_colors
from meanshifter.data.layout import Listing, find_files

NAMES = (
    "road; sidewalk; building; wall; fence; pole; traffic light; traffic sign; vegetation; terrain; sky; person; "
    "rider; car; truck; bus; train; motorcycle; bicycle"
)
PALETTE = hex_colors(
    "804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000 00008e 000046 "
    "003c64 005064 0000e6 770b20"
)
RAW_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Raw id of each train id, as in `labels.py` of cityscapesScripts."""
# the license plate, -1, is not drawn in the PNGs; tools that did draw it left 255
LABELS = LabelSpace(
    tuple(NAMES.split("; ")),
    PALETTE,
    raw={**dict.fromkeys((-1, *range(34), 255), 255), **{raw: k for k, raw in enumerate(RAW_IDS)}},
)
IMAGE, MASK = "_leftImg8bit", "_gtFine_labelIds"


class Cityscapes(PublicDataset):
    """`leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` and `gtFine/SPLIT/CITY/*_gtFine_labelIds.png`.

    The test split has no labels: the files in place of its annotations ignore every pixel. Arguments and errors are
    those of PublicDataset.
    """

    space = LABELS
    splits: ClassVar = {split: f"leftImg8bit/{split}" for split in ("train", "val", "test")}
    withheld = frozenset({"test"})
    inside = ("cityscapes",)
    about = About(
        name="cityscapes",
        title="Cityscapes, fine annotations",
        classes=LABELS.num_classes,
        images={"train": 2975, "val": 500, "test": 1525},
        terms="non-commercial use, after registration",
        home="https://www.cityscapes-dataset.com/downloads/ (leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip)",
        submission=SubmissionFormat(),  # the server finds files by the start of their names, CITY_SEQUENCE_FRAME
    )

    @classmethod
    def find(cls, folder: Path, split: str) -> Listing:
        """The frames, named CITY/CITY_SEQUENCE_FRAME."""
        images, twice, _ = find_files(folder / "leftImg8bit" / split, (".png",), "images")
        frames = {name.removesuffix(IMAGE): path for name, path in images.items() if name.endswith(IMAGE)}
        if split in cls.withheld:
            return Listing(folder, frames, {}, tuple(twice))
        masks, again, _ = find_files(folder / "gtFine" / split, (".png",), "masks")
        drawn = {name.removesuffix(MASK): path for name, path in masks.items() if name.endswith(MASK)}
        return Listing(folder, frames, drawn, (*twice, *again))
