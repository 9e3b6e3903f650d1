"""Check a dataset: list its files, examine them, and report everything that is wrong."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import islice, pairwise
from pathlib import Path
from typing import Final

import numpy as np

from meanshifter.data.catalog import HOMES, require_usual, unknown_dataset
from meanshifter.data.catalog.public import PublicDataset
from meanshifter.data.datasets import Dataset, divided_split, folder_listings, held_out, unlabeled
from meanshifter.data.doctor.examine import Facts, Mapped, examine, examine_mask, map_values
from meanshifter.data.doctor.findings import KINDS, Finding, Question, Report, question_ignored
from meanshifter.data.doctor.rules import judge_pair, judge_palettes, judge_whole, near_duplicates
from meanshifter.data.doctor.text import class_rows, mode_rows, raw_rows
from meanshifter.data.label_files import (
    BY_VALUES,
    assumes_ignored,
    labels_of_files,
    look_at_palettes,
    space_of,
    with_mask_palette,
)
from meanshifter.data.labels import Color, LabelSpace
from meanshifter.data.layout import USUAL, FolderLayout, Listing, NoSuchSplitError, Pair
from meanshifter.data.masks import blended_masks, blended_message, unpack
from meanshifter.data.reading import said
from meanshifter.errors import InputError

SAMPLE: Final = 12
"""Pairs per dataset that `check_sample` examines, spread over all of it: a few hundredths of a second on CamVid."""
_SOFT: Final = ("all-ignored", "blank-image", "palettes")  # faults that do not stop a training
_BATCH: Final = 64


@dataclass
class _Source:
    """A dataset before its files are opened."""

    name: str
    root: Path
    label_space: LabelSpace | None
    """None if the classes are to be derived from the values of the masks."""
    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    named_by: str = ""
    """As `Dataset.named_by`."""


def _open_source(name: str, root: str | Path | None, splits: Sequence[str] | None, layout: FolderLayout) -> _Source:
    """List the splits (None: all) of a named dataset, or of a folder whose path stands in place of the name."""
    if name not in HOMES and root is None and Path(name).is_dir():
        name, root = "folder", name
    if name not in HOMES:
        raise unknown_dataset(name)
    if name == "shapes":
        raise InputError("shapes: generated on the fly; there are no files to check")
    if name == "folder":
        return _open_folder(root, splits, layout)
    require_usual(name, layout)
    module, kind = HOMES[name]
    return _open_public(getattr(import_module(module), kind), root, splits)


def _open_folder(root: str | Path | None, splits: Sequence[str] | None, layout: FolderLayout) -> _Source:
    if root is None:
        raise InputError("folder: no root given; expected the folder that holds images/ and masks/")
    folder = Path(root)
    source = _Source("folder", folder, None, named_by=BY_VALUES)
    try:
        source.label_space, source.named_by = labels_of_files(folder) or (None, BY_VALUES)
    except InputError as error:
        source.findings.append(Finding("label-file", str(error)))
    listings = folder_listings(folder, layout)
    divided = divided_split(listings, folder, layout)
    for split, listing in listings.items():
        pairs = _pairs(source, split, listing)
        if split == divided and len(pairs) > 1:
            source.pairs |= {part: held_out(pairs, folder, part, layout.val_share) for part in ("train", "val")}
        else:
            source.pairs[split] = pairs
    if splits is not None:
        for split in splits:
            if split not in source.pairs:
                raise InputError(f"{source.root}: no split {split!r}; it has {', '.join(source.pairs)}")
        source.pairs = {split: source.pairs[split] for split in splits}
        source.findings = [found for found in source.findings if found.split in ("", "all", *splits)]
    return source


def _open_public(kind: type[PublicDataset], root: str | Path | None, splits: Sequence[str] | None) -> _Source:
    if root is None:
        raise InputError(f"{kind.about.name}: no root given; pass its folder with --root ({kind.source()})")
    source = _Source(kind.about.name, Path(root), kind.space)
    errors = {}
    known = [name for name in kind.splits if name not in kind.withheld] if splits is None else splits
    for split in sorted(known, key=lambda name: name in kind.repeats):
        try:
            if split in kind.withheld:
                raise unlabeled(kind.about.name, split)
            listing = kind.listing(root, split)
        except InputError as error:
            if not isinstance(error, NoSuchSplitError) or split not in kind.repeats or splits is not None:
                errors[split] = str(error)
            continue
        # without the images of splits that this one repeats, as VOC's trainval does those of train and val
        seen = {pair.image for part in kind.repeats.get(split, ()) for pair in source.pairs.get(part, ())}
        images = {name: path for name, path in listing.images.items() if path not in seen}
        masks = {name: path for name, path in listing.masks.items() if name in images}
        if images or listing.lost:
            source.pairs[split] = _pairs(source, split, replace(listing, images=images, masks=masks))
    if not source.pairs:
        raise InputError(next(iter(errors.values())))
    source.findings += [Finding("unreadable-split", text, split) for split, text in errors.items()]
    return source


def _pairs(source: _Source, split: str, listing: Listing) -> list[Pair]:
    """The pairs of a listing; files without a partner become findings."""
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
        source.findings.append(Finding("skipped", f"{listing.where}: {said(listing.passed)}", split))
    return [
        Pair(name, path, listing.masks[name])
        for name, path in listing.images.items()
        if name in listing.masks and name not in twice
    ]


def check(
    name: str | Path,
    root: str | Path | None = None,
    splits: Sequence[str] | None = None,
    *,
    layout: FolderLayout = USUAL,
    threads: int | None = None,
    advance: Callable[[int, int], None] = lambda done, count: None,
) -> Report:
    """Examine every file of a dataset.

    Args:
        name: of a dataset, or the path of a folder.
        root: folder of a named dataset.
        splits: splits to check; None: all.
        layout: where a folder keeps its images and masks.
        threads: None: as many as there are cores.
        advance: called with the number of examined pairs and the number of all pairs.

    Raises:
        InputError: the dataset is unknown or cannot be listed.
    """
    source = _open_source(str(name), root, splits, layout)
    work = [(pair, split) for split, pairs in source.pairs.items() for pair in pairs]
    facts: list[Facts] = []
    with _quiet_pool(threads if threads is not None else os.cpu_count() or 1) as pool:
        for done, fact in enumerate(pool.map(lambda item: examine(*item), work), 1):
            facts.append(fact)
            advance(done, len(work))
    if source.label_space is None:
        source.label_space = _labels_from_values(source, facts)
    if source.label_space is not None and source.named_by:
        palettes = look_at_palettes(lambda: [pair.mask for pair, _ in work])
        source.label_space = with_mask_palette(source.label_space, palettes)
    space, splits = source.label_space, list(source.pairs)
    judged = [
        (fact, None if space is None or fact.mask is None else map_values(fact.mask.values, space)) for fact in facts
    ]
    modes, classes = mode_rows(judged, space), class_rows(judged, space, splits)
    counted = [mapped for _, mapped in judged if mapped is not None]
    question = None
    if space is not None:
        question = question_ignored(counted, space, assumed=assumes_ignored(space, source.named_by))
    clashes = judge_palettes(facts, space)
    findings = [
        *source.findings,
        *(finding for fact in facts for finding in judge_pair(fact, space)),
        *near_duplicates(facts),
        *clashes,
        *([] if question is None else [question.finding(source.root)]),
        *judge_whole(facts, space, splits, modes, classes, source.root),
    ]
    order = list(KINDS)
    return Report(
        source=source.name,
        root=source.root,
        label_space=space,
        pairs=source.pairs,
        findings=sorted(findings, key=lambda finding: order.index(finding.kind)),
        raw=raw_rows(judged, space),
        classes=classes,
        modes=modes,
        ignored=sum(mapped.ignored for mapped in counted),
        named_by=source.named_by,
        question=question,
        paints=_paints(facts) if any(finding.kind == "renumbered" for finding in clashes) else {},
    )


def _paints(facts: Sequence[Facts]) -> Counter[Color]:
    """The colors of all masks as they are displayed → pixels."""
    pixels: Counter[Color] = Counter()
    for fact in facts:
        if fact.mask is not None and fact.mask.values is not None:
            values = fact.mask.values
            colors = [unpack(key) for key in values.keys.tolist()] if values.colored else values.paints
            for color, count in zip(colors, values.counts.tolist(), strict=True):
                pixels[color] += count
    return pixels


@contextmanager
def _quiet_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that issue no warnings: decoders complain about metadata, and what matters becomes a finding.

    Decoders release the interpreter's lock, and processes would have to be started first.
    """
    pool = ThreadPoolExecutor(threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def _labels_from_values(source: _Source, facts: Sequence[Facts]) -> LabelSpace | None:
    """The classes that `Folder` would derive from the masks."""
    masks = [
        (fact.pair.mask, fact.mask.values.keys, fact.mask.values.counts)
        for fact in facts
        if fact.mask is not None and fact.mask.values is not None and not fact.mask.values.colored
    ]
    if any(finding.kind == "label-file" for finding in source.findings):
        return None
    blended, _ = blended_masks(masks)
    if blended:
        source.findings += [Finding("blended", blended_message(*mask)) for mask in masks if mask[0] in blended]
        return None
    try:
        if not masks:
            raise InputError(f"{source.root}: no mask holds class numbers")
        return space_of({key for _, keys, _ in masks for key in keys.tolist()}, source.root)
    except InputError as error:
        source.findings.append(Finding("no-classes", str(error)))
        return None


@dataclass(frozen=True)
class SampleReport:
    """What `check_sample` found out about the classes."""

    classes: int
    named_by: str
    """As `Dataset.named_by`, or the dataset's name."""
    ignored: float
    """Share of ignored pixels in the sampled masks; NaN if there are none."""
    masks: int

    @property
    def origin(self) -> str:
        """Where the names of the classes come from, and how much is ignored."""
        if not self.masks:
            return f"names from {self.named_by}"
        return f"names from {self.named_by}; {self.ignored:.1%} of the pixels of {self.masks} sampled masks are ignored"


def check_sample(datasets: Sequence[Dataset], command: str, *, count: int = SAMPLE) -> SampleReport:
    """Examine `count` pairs of each dataset; generated datasets have no files and pass.

    Blank images, masks that are ignored everywhere and palettes that only differ in their colors are UserWarnings. If
    the sample leaves open whether the ignored value is a class, more masks are read until that is settled.

    Args:
        datasets: those of a training, including the validation set; all have the classes of the first.
        command: the command that checks all of the data, for messages.
        count: pairs of each dataset.

    Raises:
        InputError: a fault that would stop or spoil the training, or no sampled mask labels anything.
    """
    space, named_by = datasets[0].label_space, datasets[0].named_by
    seen: list[Facts] = []
    for dataset in datasets:
        pairs = [pair for place in _places(len(dataset), count) if (pair := dataset.pair(place)) is not None]
        with _quiet_pool(min(8, os.cpu_count() or 1)) as pool:
            facts = list(pool.map(lambda pair, split=dataset.split: examine(pair, split), pairs))
        _raise_or_warn(
            [found for fact in facts for found in judge_pair(fact, dataset.label_space)], len(pairs), command
        )
        seen += [fact for fact in facts if dataset.label_space == space]
    _raise_or_warn(judge_palettes(seen, space), len(seen), command)
    masks = [mapped for fact in seen if fact.mask and (mapped := map_values(fact.mask.values, space)) is not None]
    question = _settled(datasets, masks, {fact.pair for fact in seen}, assumed=assumes_ignored(space, named_by))
    if question is not None:
        folder = os.path.commonpath([str(fact.pair.mask.parent) for fact in seen])
        if question.strong:
            raise InputError(f"{folder}: {question.message}; `{command}` shows the values")
        warnings.warn(f"{folder}: {question.message}", stacklevel=2)
    ignored, pixels = sum(mask.ignored for mask in masks), sum(sum(mask.pixels.values()) for mask in masks)
    share = ignored / pixels if pixels else float("nan")
    return SampleReport(space.num_classes, named_by or f"the dataset {datasets[0].name}", share, len(masks))


def _places(length: int, count: int) -> list[int]:
    """A random index in each of `count` equal parts of the dataset: files may alternate between two sources."""
    rng = np.random.default_rng(0)
    edges = np.linspace(0, length, min(count, length) + 1).astype(int).tolist()
    return [int(rng.integers(low, high)) for low, high in pairwise(edges)]


def _settled(
    datasets: Sequence[Dataset], seen: Sequence[Mapped], known: set[Pair], *, assumed: bool
) -> Question | None:
    """The question about the ignored value, after reading as many more masks as it takes to answer it."""
    space, masks = datasets[0].label_space, list(seen)
    question = question_ignored(masks, space, assumed=assumed)
    others = (
        dataset.pair(place) for dataset in datasets if dataset.label_space == space for place in range(len(dataset))
    )
    unseen = (pair for pair in others if pair is not None and pair not in known)
    with _quiet_pool(min(8, os.cpu_count() or 1)) as pool:
        while question is not None and (pairs := list(islice(unseen, _BATCH))):
            counted = pool.map(lambda pair: _counted(pair, space), pairs)
            masks += [mapped for mapped in counted if mapped is not None]
            question = question_ignored(masks, space, assumed=assumed)
    return question


def _counted(pair: Pair, label_space: LabelSpace) -> Mapped | None:
    """The counts of one mask; None if it cannot be read, which is reported when it is needed."""
    try:
        return map_values(examine_mask(pair.mask).values, label_space)
    except InputError:
        return None


def _raise_or_warn(findings: Sequence[Finding], count: int, command: str) -> None:
    hard = [finding for finding in findings if finding.fault and finding.kind not in _SOFT]
    soft = [finding for finding in findings if finding.kind in _SOFT]
    ignored = [finding for finding in soft if finding.kind == "all-ignored"]
    if hard:
        wrong = len({finding.name for finding in hard})
        raise InputError(
            f"{hard[0].message}; {wrong} of {count} sampled pairs {'has' if wrong == 1 else 'have'} faults; "
            f"`{command}` lists all of them"
        )
    if ignored and len(ignored) == count:
        raise InputError(f"{ignored[0].message}, as in all {count} sampled pairs; `{command}` shows the values")
    if soft:
        more = "" if len(soft) == 1 else f" (and {len(soft) - 1} more in {count} sampled pairs)"
        warnings.warn(f"{soft[0].message}{more}; `{command}` lists all", stacklevel=3)
