"""What the public data sets share: where they come from, how their folder is found, and their download."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from meanshifter.data.datasets import FileDataset
from meanshifter.data.download import Archive, fetch_and_unpack
from meanshifter.data.labels import LabelSpace
from meanshifter.data.listing import Listing
from meanshifter.errors import InputError


@dataclass(frozen=True)
class About:
    """A data set in one row of `meanshifter data list`."""

    name: str
    title: str
    classes: int
    images: Mapping[str, int]
    """Split → number of images."""
    terms: str
    home: str
    """Where it is described, or had from."""
    archive: Archive | None = None
    """None: it may not be fetched without its owner's leave, or there is nothing to fetch."""


class PublicDataset(FileDataset):
    """A data set in its official folder layout: images (H,W,3) uint8, labels (H,W) of the label space's dtype.

    Args:
        root: the folder; one that holds the data set's own folder will do as well.
        split: one of `splits`.

    Raises:
        InputError: a missing folder or split, or images without masks or the other way round.
    """

    about: ClassVar[About]
    space: ClassVar[LabelSpace]
    splits: ClassVar[Mapping[str, str]]
    """Split → what its files call it."""
    inside: ClassVar[Sequence[str]]
    """Folders below `root` in which the data set may lie."""

    def __init__(self, root: str | Path | None, split: str = "val") -> None:
        super().__init__(self.about.name, split, self.space, self.listing(root, split).pairs())

    @classmethod
    def listing(cls, root: str | Path | None, split: str) -> Listing:
        """The files of a split, whether they pair up or not.

        Raises:
            InputError: a missing folder or split.
        """
        name = cls.about.name
        if root is None:
            raise InputError(f"{name}: no root; name its folder ({cls.source()})")
        if split not in cls.splits:
            raise InputError(f"{name}: split {split!r} is unknown; take one of {', '.join(cls.splits)}")
        marker = cls.marker(cls.splits[split])
        places = [Path(root), *(Path(root) / folder for folder in cls.inside)]
        folder = next((place for place in places if (place / marker).is_dir()), None)
        if folder is None:
            raise InputError(f"{Path(root) / marker}: no such folder; {name} is looked for there ({cls.source()})")
        return cls.find(folder, cls.splits[split])

    @classmethod
    @abstractmethod
    def marker(cls, split: str) -> str:
        """The folder, below the data set's, by which a split is recognised."""

    @classmethod
    @abstractmethod
    def find(cls, folder: Path, split: str) -> Listing:
        """The files of a split; `split` as the files call it."""

    @classmethod
    def source(cls) -> str:
        """Where to get it, in a few words."""
        if cls.about.archive is None:
            return f"to be had from {cls.about.home}"
        return f"`meanshifter data download {cls.about.name} DIR` fetches it"

    @classmethod
    def download(cls, root: str | Path) -> Path:
        """Fetch, check and unpack into `root`; returns the data set's folder.

        Raises:
            InputError: where the data may not be fetched freely, and as `fetch_and_unpack`.
        """
        if cls.about.archive is None:
            raise InputError(f"{cls.about.name}: {cls.about.terms}; get it from {cls.about.home}")
        return fetch_and_unpack(cls.about.archive, root)


def hex_colors(text: str) -> tuple[tuple[int, int, int], ...]:
    """Colours written rrggbb, separated by white space."""
    return tuple((int(c[:2], 16), int(c[2:4], 16), int(c[4:], 16)) for c in text.split())
