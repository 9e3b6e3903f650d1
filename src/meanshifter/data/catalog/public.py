"""The base class of the public datasets: their origin, folder layout and download."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from meanshifter.data.datasets import FileDataset
from meanshifter.data.download import Archive, fetch_and_unpack
from meanshifter.data.labels import LabelSpace
from meanshifter.data.layout import Listing, NoSuchSplitError
from meanshifter.errors import InputError


@dataclass(frozen=True)
class SubmissionFormat:
    """The format of an evaluation server: an archive with one PNG per image, in the dataset's own mask values."""

    archive: str = ".zip"
    """.zip or .tgz."""
    folder: str = ""
    """Folder of the files in the archive, with a slash at the end; empty: the top level."""
    palette: bool = False
    """Whether the PNGs have the dataset's palette instead of plain gray."""


@dataclass(frozen=True)
class About:
    """Facts about a dataset, as listed by `meanshifter data list`."""

    name: str
    title: str
    classes: int
    images: Mapping[str, int]
    """Split → number of images."""
    terms: str
    home: str
    """Address of its page."""
    archive: Archive | None = None
    """None if it cannot be downloaded without permission, or there is nothing to download."""
    archives: Mapping[str, Archive] = field(default_factory=dict)
    """Split → its separate archive."""
    submission: SubmissionFormat | None = None
    """None if there is no evaluation server."""


class PublicDataset(FileDataset):
    """A dataset in its official folder layout: images (H,W,3) uint8, labels (H,W) of the label space's dtype.

    Args:
        root: the dataset's folder, or one that contains it.
        split: one of `splits`.

    Raises:
        InputError: a folder or split is missing, an image has no mask, or a mask has no image.
    """

    about: ClassVar[About]
    space: ClassVar[LabelSpace]
    splits: ClassVar[Mapping[str, str]]
    """Split → the folder, relative to the dataset's, whose existence shows that the split is there."""
    inside: ClassVar[Sequence[str]]
    """Folders below `root` that may hold the dataset."""
    withheld: ClassVar[frozenset[str]] = frozenset()
    """Splits without labels: `labeled` is False, and their samples cannot be read."""
    repeats: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Optional split → the splits whose images it repeats."""

    def __init__(self, root: str | Path | None, split: str = "val") -> None:
        listing = self.listing(root, split)
        files = listing.unlabeled() if split in self.withheld else listing.pairs()
        super().__init__(self.about.name, split, self.space, files)

    @classmethod
    def listing(cls, root: str | Path | None, split: str) -> Listing:
        """The files of a split, including those without a partner; raises InputError if the split is missing."""
        name = cls.about.name
        if root is None:
            raise InputError(f"{name}: no root given; expected its folder ({cls.source()})")
        if split not in cls.splits:
            raise InputError(f"{name}: split {split!r} is unknown; expected one of {', '.join(cls.splits)}")
        folder = cls.place(Path(root), split)
        if folder is None:
            missing = Path(root) / cls.splits[split]
            raise NoSuchSplitError(f"{missing}: no such folder; expected that of {name} ({cls.source(split)})")
        return cls.find(folder, split)

    @classmethod
    def place(cls, root: Path, split: str) -> Path | None:
        """The dataset's folder, which is `root` or in it and contains the split; None if there is none."""
        places = [root, *(root / folder for folder in cls.inside)]
        return next((place for place in places if (place / cls.splits[split]).is_dir()), None)

    @classmethod
    @abstractmethod
    def find(cls, folder: Path, split: str) -> Listing:
        """List the files of a split in the dataset's folder."""

    @classmethod
    def source(cls, split: str | None = None) -> str:
        """How to get the dataset or, with a separate archive, one split, in a few words."""
        if cls.about.archive is None:
            return f"available from {cls.about.home}"
        option = f" --split {split}" if split in cls.about.archives else ""
        return f"`meanshifter data download {cls.about.name} DIR{option}` downloads it"

    @classmethod
    def download(cls, root: str | Path, split: str | None = None) -> Path:
        """Download, check and unpack the dataset, or the separate archive of `split`, into `root`; returns the folder.

        Raises:
            InputError: the data cannot be downloaded freely, the split has no separate archive, and as
                `fetch_and_unpack`.
        """
        about = cls.about
        if about.archive is None:
            raise InputError(f"{about.name}: {about.terms}; get it from {about.home}")
        if split is None:
            return fetch_and_unpack(about.archive, root)
        if split in cls.withheld - about.archives.keys():
            raise InputError(f"--split: {split!r} of {about.name} is not freely available; get it from {about.home}")
        if split not in about.archives:
            separate = ", ".join(about.archives) or "none"
            raise InputError(
                f"--split: {split!r} of {about.name} has no separate archive (splits that have one: {separate}); omit "
                "the option"
            )
        return fetch_and_unpack(about.archives[split], root)
