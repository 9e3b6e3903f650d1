"""The files of a data set as the doctor lists them: all splits, and what is wrong as findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path

from meanshifter.data.catalog import HOMES, require_usual, unknown_dataset
from meanshifter.data.catalog.public import PublicDataset
from meanshifter.data.datasets import divided_split, folder_listings, held_out, unlabeled
from meanshifter.data.doctor.findings import Finding
from meanshifter.data.label_files import BY_VALUES, labels_of_files
from meanshifter.data.labels import LabelSpace
from meanshifter.data.layout import USUAL, FolderLayout
from meanshifter.data.listing import Listing, NoSuchSplitError, Pair
from meanshifter.data.walk import said
from meanshifter.errors import InputError


@dataclass
class Source:
    """A data set before its files are opened."""

    name: str
    root: Path
    space: LabelSpace | None
    """None: to be told from the values of the masks."""
    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    named_by: str = ""
    """As that of `Dataset`."""


def open_source(
    name: str, root: str | Path | None, splits: Sequence[str] | None, layout: FolderLayout = USUAL
) -> Source:
    """List a named data set, or a folder whose path stands in place of the name; None: all splits.

    Raises:
        InputError: an unknown name or split, no such folder, or nothing in it.
    """
    if name not in HOMES and root is None and Path(name).is_dir():
        name, root = "folder", name
    if name not in HOMES:
        raise unknown_dataset(name)
    if name == "shapes":
        raise InputError("shapes: generated as it is read; there are no files to check")
    if name == "folder":
        return _open_folder(root, splits, layout)
    require_usual(name, layout)
    module, kind = HOMES[name]
    return _open_public(getattr(import_module(module), kind), root, splits)


def _open_folder(root: str | Path | None, splits: Sequence[str] | None, layout: FolderLayout) -> Source:
    if root is None:
        raise InputError("folder: no root; name the folder that holds images/ and masks/")
    folder = Path(root)
    source = Source("folder", folder, None, named_by=BY_VALUES)
    try:
        source.space, source.named_by = labels_of_files(folder) or (None, BY_VALUES)
    except InputError as error:
        source.findings.append(Finding("label-file", str(error)))
    listings = folder_listings(folder, layout)
    divided = divided_split(listings, folder, layout)
    for split, listing in listings.items():
        pairs = _tolerate(source, split, listing)
        if split == divided and len(pairs) > 1:
            source.pairs |= {part: held_out(pairs, folder, part, layout.val_share) for part in ("train", "val")}
        else:
            source.pairs[split] = pairs
    return _chosen(source, splits)


def _open_public(kind: type[PublicDataset], root: str | Path | None, splits: Sequence[str] | None) -> Source:
    if root is None:
        raise InputError(f"{kind.about.name}: no root; give its folder with --root ({kind.source()})")
    source = Source(kind.about.name, Path(root), kind.space)
    errors = {}
    known = [name for name in kind.splits if name not in kind.withheld] if splits is None else splits
    for split in sorted(known, key=lambda name: name in kind.repeats):
        try:
            if split in kind.withheld:
                raise unlabeled(kind.about.name, split)
            listing = _beyond(source, kind, split, kind.listing(root, split))
        except NoSuchSplitError as error:
            if split not in kind.repeats or splits is not None:
                errors[split] = str(error)
            continue
        except InputError as error:
            errors[split] = str(error)
            continue
        if listing.images or listing.lost:
            source.pairs[split] = _tolerate(source, split, listing)
    if not source.pairs:
        raise InputError(next(iter(errors.values())))
    source.findings += [Finding("unreadable-split", text, split) for split, text in errors.items()]
    return source


def _beyond(source: Source, kind: type[PublicDataset], split: str, listing: Listing) -> Listing:
    """The listing without the images of the splits that it repeats, as VOC's trainval does those of train and val."""
    seen = {pair.image for part in kind.repeats.get(split, ()) for pair in source.pairs.get(part, ())}
    images = {name: path for name, path in listing.images.items() if path not in seen}
    return replace(listing, images=images, masks={name: path for name, path in listing.masks.items() if name in images})


def _tolerate(source: Source, split: str, listing: Listing) -> list[Pair]:
    """The pairs of a listing; what does not pair up becomes findings."""
    twice = {name for name, _, _ in listing.doubles}
    for name, kept, other in listing.doubles:
        text = f"{other}: {kept.name} has the same name up to the extension"
        source.findings.append(Finding("same-name", text, split, name, (kept, other)))
    for name, path in listing.images.items():
        if name not in listing.masks:
            source.findings.append(Finding("image-without-mask", f"{path}: no mask", split, name, (path,)))
    for name, path in listing.masks.items():
        if name not in listing.images:
            source.findings.append(Finding("mask-without-image", f"{path}: no image", split, name, (path,)))
    source.findings += [
        Finding("mask-without-image", f"{listing.where}: {name} has no image", split, name) for name in listing.lost
    ]
    if listing.passed:
        source.findings.append(Finding("passed-over", f"{listing.where}: {said(listing.passed)}", split))
    return [
        Pair(name, path, listing.masks[name])
        for name, path in listing.images.items()
        if name in listing.masks and name not in twice
    ]


def _chosen(source: Source, splits: Sequence[str] | None) -> Source:
    """The source with only those splits."""
    if splits is None:
        return source
    for split in splits:
        if split not in source.pairs:
            raise InputError(f"{source.root}: no split {split!r}; it has {', '.join(source.pairs)}")
    source.pairs = {split: source.pairs[split] for split in splits}
    source.findings = [found for found in source.findings if found.split in ("", "all", *splits)]
    return source
