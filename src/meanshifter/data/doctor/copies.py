"""Images that occur twice: equal files, and images that look alike across splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Final

import numpy as np

from meanshifter.data.doctor.examine import HASH, Facts
from meanshifter.data.doctor.findings import Finding

ALIKE: Final = 0.15
"""Share of differing hash bits below which two images are told as alike.

On CamVid, copies that were shrunk, cropped by 3 % or darkened and compressed anew differ by 0.14 at most, frames of
different splits by 0.28 at least.
"""
_ROWS: Final = 1024


def copies(facts: Sequence[Facts]) -> list[Finding]:
    """Equal image files within a split and across splits, and images of different splits that look alike."""
    return [*_equal(facts), *_alike(facts)]


def _equal(facts: Sequence[Facts]) -> list[Finding]:
    """Across splits every copy but those of the last split is told, so that without them none is left."""
    groups: defaultdict[bytes, list[Facts]] = defaultdict(list)
    for fact in facts:
        if fact.image is not None:
            groups[fact.image.digest].append(fact)
    findings = []
    for group in groups.values():
        last = group[-1]
        for fact, following in pairwise(group):
            across = fact.split != last.split
            other = last if across else following
            text = f"{fact.pair.image} and {other.pair.image} are the same file"
            files = fact.pair.image, other.pair.image
            findings.append(
                Finding("copy-across" if across else "copy-within", text, fact.split, fact.pair.name, files)
            )
    return findings


def _alike(facts: Sequence[Facts]) -> list[Finding]:
    splits: defaultdict[str, list[Facts]] = defaultdict(list)
    for fact in facts:
        if fact.image is not None and not fact.image.blank:
            splits[fact.split].append(fact)
    return [finding for one, other in combinations(splits.values(), 2) for finding in _between(one, other)]


def _between(one: Sequence[Facts], other: Sequence[Facts]) -> list[Finding]:
    """Distances of all hashes as one matrix product of signs, in blocks of rows."""
    bits = 2 * HASH * HASH
    left, right = (
        np.array([fact.image.hash for fact in side if fact.image is not None], np.float32) * 2 - 1
        for side in (one, other)
    )
    findings = []
    for start in range(0, len(left), _ROWS):
        distance = (bits - left[start : start + _ROWS] @ right.T) / (2 * bits)
        for row, column in np.argwhere(distance < ALIKE).tolist():
            a, b = one[start + row], other[column]
            if a.image is not None and b.image is not None and a.image.digest != b.image.digest:
                findings.append(
                    Finding(
                        "near-copy",
                        f"{a.pair.image} and {b.pair.image} look alike ({distance[row, column]:.0%} of their "
                        f"{bits} hash bits differ)",
                        split=b.split,
                        name=b.pair.name,
                        files=(a.pair.image, b.pair.image),
                    )
                )
    return findings
