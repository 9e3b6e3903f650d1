"""A look at a few pairs of each data set before a training, so that it does not stop or go wrong hours later."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from meanshifter.data.datasets import Dataset
from meanshifter.data.doctor.examine import examine
from meanshifter.data.doctor.findings import Finding
from meanshifter.data.doctor.pairs import judge_pair
from meanshifter.errors import InputError

SAMPLE: Final = 12
"""Pairs of each data set that are looked at, evenly spaced: some hundredths of a second on CamVid."""
SOFT: Final = ("all-ignored", "blank-image")
"""What a training survives."""


def check_sample(datasets: Sequence[Dataset], command: str, *, count: int = SAMPLE) -> None:
    """Examine `count` pairs of each data set; generated ones have no files, and pass.

    Blank images and masks that are ignored everywhere are UserWarnings.

    Args:
        datasets: those of a training, the validation set among them.
        command: what checks all of the data, for the message.
        count: pairs of each.

    Raises:
        InputError: a fault that would stop or spoil the training, or no sampled mask that labels anything.
    """
    for dataset in datasets:
        places = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)).tolist()
        pairs = [pair for place in places if (pair := dataset.pair(place)) is not None]
        with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            warnings.simplefilter("ignore")
            facts = list(pool.map(lambda pair, split=dataset.split: examine(pair, split), pairs))
        _tell([finding for fact in facts for finding in judge_pair(fact, dataset.labels)], len(pairs), command)


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
