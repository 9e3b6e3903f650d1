"""A look at a few pairs of each data set before a training, so that it does not stop or go wrong hours later."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Final

import numpy as np

from meanshifter.data.datasets import Dataset
from meanshifter.data.doctor.examine import Facts, examine, examine_mask
from meanshifter.data.doctor.findings import Finding
from meanshifter.data.doctor.ignored import Question, question_ignored
from meanshifter.data.doctor.pairs import judge_pair
from meanshifter.data.doctor.palettes import judge_palettes
from meanshifter.data.doctor.values import Mapped, map_values
from meanshifter.data.label_files import assumes_ignored
from meanshifter.data.labels import LabelSpace
from meanshifter.data.listing import Pair
from meanshifter.errors import InputError

SAMPLE: Final = 12
"""Pairs of each data set that are looked at, spread over all: some hundredths of a second on CamVid."""
SOFT: Final = ("all-ignored", "blank-image", "palettes")
"""What a training survives."""
_AT_ONCE: Final = 64


@dataclass(frozen=True)
class Look:
    """What a training is about to learn."""

    classes: int
    named_by: str
    """As `Dataset.named_by`, or the data set's name."""
    ignored: float
    """Share of the pixels that are ignored, of the masks that were looked at; NaN where there are none."""
    masks: int

    @property
    def origin(self) -> str:
        """Where the names of the classes are from, and what is ignored."""
        if not self.masks:
            return f"named by {self.named_by}"
        return f"named by {self.named_by}; {self.ignored:.1%} of the pixels of {self.masks} masks looked at are ignored"


def check_sample(datasets: Sequence[Dataset], command: str, *, count: int = SAMPLE) -> Look:
    """Examine `count` pairs of each data set; generated ones have no files, and pass.

    Blank images, masks that are ignored everywhere and palettes that only look different are UserWarnings. Where the
    sample leaves open whether the ignored value is a class, more masks are read until that is settled.

    Args:
        datasets: those of a training, the validation set among them, all of the first one's classes.
        command: what checks all of the data, for the message.
        count: pairs of each.

    Raises:
        InputError: a fault that would stop or spoil the training, or no sampled mask that labels anything.
    """
    space, named_by = datasets[0].labels, datasets[0].named_by
    seen: list[Facts] = []
    for dataset in datasets:
        pairs = [pair for place in _places(len(dataset), count) if (pair := dataset.pair(place)) is not None]
        with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            warnings.simplefilter("ignore")
            facts = list(pool.map(lambda pair, split=dataset.split: examine(pair, split), pairs))
        _tell([finding for fact in facts for finding in judge_pair(fact, dataset.labels)], len(pairs), command)
        seen += [fact for fact in facts if dataset.labels == space]
    _tell(judge_palettes(seen, space), len(seen), command)
    masks = [mapped for fact in seen if fact.mask and (mapped := map_values(fact.mask.values, space)) is not None]
    question = _settled(datasets, masks, {fact.pair for fact in seen}, assumed=assumes_ignored(space, named_by))
    if question is not None and question.strong:
        raise InputError(f"{_where(seen)}: {question.message}; `{command}` shows the values")
    if question is not None:
        warnings.warn(f"{_where(seen)}: {question.message}", stacklevel=2)
    ignored, pixels = sum(mask.ignored for mask in masks), sum(sum(mask.pixels.values()) for mask in masks)
    share = ignored / pixels if pixels else float("nan")
    return Look(space.num_classes, named_by or f"the data set {datasets[0].name}", share, len(masks))


def _places(length: int, count: int) -> list[int]:
    """Of `count` equal parts of the data set one place each, by chance: files in turn may be of two sources."""
    rng = np.random.default_rng(0)
    edges = np.linspace(0, length, min(count, length) + 1).astype(int).tolist()
    return [int(rng.integers(low, high)) for low, high in pairwise(edges)]


def _settled(
    datasets: Sequence[Dataset], seen: Sequence[Mapped], known: set[Pair], *, assumed: bool
) -> Question | None:
    """The question about the ignored value, after as many more masks as it takes to answer it, or all."""
    space, masks = datasets[0].labels, list(seen)
    question = question_ignored(masks, space, assumed=assumed)
    others = (dataset.pair(place) for dataset in datasets if dataset.labels == space for place in range(len(dataset)))
    unseen = (pair for pair in others if pair is not None and pair not in known)
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")
        while question is not None and (pairs := list(islice(unseen, _AT_ONCE))):
            masks += [mapped for found in pool.map(lambda pair: _mapped(pair, space), pairs) for mapped in found]
            question = question_ignored(masks, space, assumed=assumed)
    return question


def _mapped(pair: Pair, space: LabelSpace) -> list[Mapped]:
    """The counts of one mask; none where it cannot be read, which is told when it is needed."""
    try:
        mapped = map_values(examine_mask(pair.mask).values, space)
    except InputError:
        return []
    return [] if mapped is None else [mapped]


def _where(facts: Sequence[Facts]) -> str:
    """The folder of the masks."""
    return os.path.commonpath([str(fact.pair.mask.parent) for fact in facts])


def _tell(findings: Sequence[Finding], count: int, command: str) -> None:
    hard = [finding for finding in findings if finding.fault and finding.kind not in SOFT]
    soft = [finding for finding in findings if finding.kind in SOFT]
    ignored = [finding for finding in soft if finding.kind == "all-ignored"]
    if hard:
        names = len({finding.name for finding in hard})
        raise InputError(f"{hard[0].message}; {_of(names, count)} wrong; `{command}` lists all that is")
    if ignored and len(ignored) == count:
        raise InputError(f"{ignored[0].message}, and so it is with {_of(count, count)}; `{command}` shows the values")
    for finding in soft[:1]:
        more = "" if len(soft) == 1 else f", and {len(soft) - 1} more of {count} pairs looked at"
        warnings.warn(f"{finding.message}{more}; `{command}` lists all", stacklevel=3)


def _of(part: int, count: int) -> str:
    return f"{part} of {count} pairs looked at {'is' if part == 1 else 'are'}"
