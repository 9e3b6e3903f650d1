"""What the public data sets share: where they come from, how their folder is found, and their download."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from meanshifter.data.datasets import FileDataset
from meanshifter.data.download import Archive, fetch_and_unpack
from meanshifter.data.labels import LabelSpace
from meanshifter.data.listing import Listing, NoSuchSplitError
from meanshifter.errors import InputError


@dataclass(frozen=True)
class SubmissionFormat:
    """How an evaluation server takes label maps: one PNG an image, of the data set's own mask values, in an archive."""

    archive: str = ".zip"
    """.zip or .tgz."""
    folder: str = ""
    """Where the files lie in the archive, with a slash at the end; the top by default."""
    palette: bool = False
    """Indexed with the data set's palette, in place of plain gray."""


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
    archives: Mapping[str, Archive] = field(default_factory=dict)
    """Split → what is fetched for it, where that is another archive."""
    submission: SubmissionFormat | None = None
    """None: there is no evaluation server."""


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
    withheld: ClassVar[frozenset[str]] = frozenset()
    """Splits that are images alone: `labeled` is False, and their samples cannot be read."""
    repeats: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Split that need not be there → the splits whose images it holds again."""

    def __init__(self, root: str | Path | None, split: str = "val") -> None:
        listing = self.listing(root, split)
        files = listing.unlabeled() if split in self.withheld else listing.pairs()
        super().__init__(self.about.name, split, self.space, files)

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
        folder = cls.place(Path(root), marker)
        if folder is None:
            raise NoSuchSplitError(
                f"{Path(root) / marker}: no such folder; {name} is looked for there ({cls.source(split)})"
            )
        return cls.find(folder, cls.splits[split])

    @classmethod
    def place(cls, root: Path, marker: str) -> Path | None:
        """The data set's folder, which is `root` or in it and holds a folder `marker`."""
        places = [root, *(root / folder for folder in cls.inside)]
        return next((place for place in places if (place / marker).is_dir()), None)

    @classmethod
    @abstractmethod
    def marker(cls, split: str) -> str:
        """The folder, below the data set's, by which a split is recognised."""

    @classmethod
    @abstractmethod
    def find(cls, folder: Path, split: str) -> Listing:
        """The files of a split; `split` as the files call it."""

    @classmethod
    def source(cls, split: str | None = None) -> str:
        """Where to get it, or what one split needs beside it, in a few words."""
        if cls.about.archive is None:
            return f"to be had from {cls.about.home}"
        option = f" --split {split}" if split in cls.about.archives else ""
        return f"`meanshifter data download {cls.about.name} DIR{option}` fetches it"

    @classmethod
    def download(cls, root: str | Path, split: str | None = None) -> Path:
        """Fetch, check and unpack into `root`, the data set or what `split` needs beside it; returns the new folder.

        Raises:
            InputError: where the data may not be fetched freely, a split that has no archive of its own, and as
                `fetch_and_unpack`.
        """
        about = cls.about
        if about.archive is None:
            raise InputError(f"{about.name}: {about.terms}; get it from {about.home}")
        if split is None:
            return fetch_and_unpack(about.archive, root)
        if split in cls.withheld - about.archives.keys():
            raise InputError(f"--split: {split!r} of {about.name} may not be fetched freely; get it from {about.home}")
        if split not in about.archives:
            apart = ", ".join(about.archives) or "none"
            raise InputError(
                f"--split: {split!r} of {about.name} has no archive of its own (those that have: {apart}); leave it out"
            )
        return fetch_and_unpack(about.archives[split], root)


def hex_colors(text: str) -> tuple[tuple[int, int, int], ...]:
    """Colours written rrggbb, separated by white space."""
    return tuple((int(c[:2], 16), int(c[2:4], 16), int(c[4:], 16)) for c in text.split())
