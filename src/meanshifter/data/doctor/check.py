"""The check of a whole data set: list, examine every pair in threads, judge."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from meanshifter.data.ambiguity import blended_masks, blended_message
from meanshifter.data.doctor.copies import copies
from meanshifter.data.doctor.examine import Facts, examine
from meanshifter.data.doctor.figures import class_rows, mode_rows, raw_rows
from meanshifter.data.doctor.findings import KINDS, Finding
from meanshifter.data.doctor.ignored import question_finding, question_ignored
from meanshifter.data.doctor.pairs import judge_pair
from meanshifter.data.doctor.palettes import judge_palettes
from meanshifter.data.doctor.report import Report
from meanshifter.data.doctor.sources import Source, open_source
from meanshifter.data.doctor.values import map_values, unpack
from meanshifter.data.doctor.whole import judge_whole
from meanshifter.data.label_files import assumes_ignored, look_at_palettes, space_of, with_mask_palette
from meanshifter.data.labels import Color, LabelSpace
from meanshifter.data.layout import USUAL, FolderLayout
from meanshifter.errors import InputError


def check(
    name: str | Path,
    root: str | Path | None = None,
    splits: Sequence[str] | None = None,
    *,
    layout: FolderLayout = USUAL,
    threads: int | None = None,
    advance: Callable[[int, int], None] = lambda done, count: None,
) -> Report:
    """Examine every file of a data set.

    Args:
        name: of a data set, or a folder's path.
        root: where a named data set lies.
        splits: which; None: all that there are.
        layout: where the images and masks of a folder lie.
        threads: None: as many as there are cores.
        advance: told the number of pairs done and of all.

    Raises:
        InputError: a data set that is unknown or cannot be listed at all.
    """
    source = open_source(str(name), root, splits, layout)
    facts = _examine_all(source, threads, advance)
    if source.space is None:
        source.space = _told_by_values(source, facts)
    if source.space is not None and source.named_by:
        source.space = with_mask_palette(source.space, look_at_palettes(lambda: _masks(source)))
    space, splits = source.space, list(source.pairs)
    judged = [
        (fact, None if space is None or fact.mask is None else map_values(fact.mask.values, space)) for fact in facts
    ]
    modes, classes = mode_rows(judged, space), class_rows(judged, space, splits)
    counted = [mapped for _, mapped in judged if mapped is not None]
    question = None
    if space is not None:
        question = question_ignored(counted, space, assumed=assumes_ignored(space, source.named_by))
    palettes = judge_palettes(facts, space)
    findings = [
        *source.findings,
        *(finding for fact in facts for finding in judge_pair(fact, space)),
        *copies(facts),
        *palettes,
        *([] if question is None else [question_finding(question, source.root)]),
        *judge_whole(facts, space, splits, modes, classes, source.root),
    ]
    order = {kind: place for place, kind in enumerate(KINDS)}
    return Report(
        source=source.name,
        root=source.root,
        space=space,
        pairs=source.pairs,
        findings=sorted(findings, key=lambda finding: order[finding.kind]),
        raw=raw_rows(judged, space),
        classes=classes,
        modes=modes,
        ignored=sum(mapped.ignored for mapped in counted),
        named_by=source.named_by,
        question=question,
        paints=_paints(facts) if any(finding.kind == "renumbered" for finding in palettes) else {},
    )


def _paints(facts: Sequence[Facts]) -> Counter[Color]:
    """The colours of all masks as they are shown, with their pixels."""
    pixels: Counter[Color] = Counter()
    for fact in facts:
        if fact.mask is not None and fact.mask.values is not None:
            values = fact.mask.values
            colors = [unpack(key) for key in values.keys.tolist()] if values.colored else values.paints
            for color, count in zip(colors, values.counts.tolist(), strict=True):
                pixels[color] += count
    return pixels


def _masks(source: Source) -> list[Path]:
    return [pair.mask for pairs in source.pairs.values() for pair in pairs]


def _examine_all(source: Source, threads: int | None, advance: Callable[[int, int], None]) -> list[Facts]:
    """In threads: the decoders run outside the interpreter's lock, and processes would have to be started first."""
    work = [(pair, split) for split, pairs in source.pairs.items() for pair in pairs]
    pool = ThreadPoolExecutor(threads if threads is not None else os.cpu_count() or 1)
    facts: list[Facts] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders mumble about metadata; what matters is a finding
        try:
            for done, fact in enumerate(pool.map(lambda item: examine(*item), work), 1):
                facts.append(fact)
                advance(done, len(work))
        finally:
            pool.shutdown(cancel_futures=True)
    return facts


def _told_by_values(source: Source, facts: Iterable[Facts]) -> LabelSpace | None:
    """The classes that `Folder` would make of the masks."""
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
