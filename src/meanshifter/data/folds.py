"""Division of the samples of a data set into folds, for cross-validation."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence

from meanshifter.errors import InputError


def fold_numbers(names: Sequence[str], folds: int, *, seed: int = 0, groups: str | None = None) -> list[int]:
    """Return the fold, from 0 on, of each sample. It depends on the seed and the set of names, not on their order.

    Groups are put, from the largest to the smallest and within a size in an order drawn from the seed, into the fold
    that is smallest so far. Without `groups`, the sizes of folds therefore differ by at most one.

    Args:
        names: names of the samples.
        folds: number of folds.
        seed: draws the order.
        groups: a regular expression with one group, which is searched in each name; names with the same text in the
            group stay in one fold. None: every sample is on its own.

    Raises:
        InputError: a name does not match, or there are fewer groups than folds.
    """
    members: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        members.setdefault(name if groups is None else _group(name, groups), []).append(place)
    if len(members) < folds:
        found = f"{len(names)} training images" + ("" if groups is None else f" in {len(members)} groups")
        raise InputError(f"data.folds: {folds}, but there are only {found}; use fewer folds")

    def drawn(group: str) -> bytes:
        return hashlib.sha256(f"{seed} ".encode() + os.fsencode(group)).digest()

    numbers, sizes = [0] * len(names), [0] * folds
    for group in sorted(members, key=lambda group: (-len(members[group]), drawn(group))):
        fold = sizes.index(min(sizes))
        sizes[fold] += len(members[group])
        for place in members[group]:
            numbers[place] = fold
    return numbers


def _group(name: str, pattern: str) -> str:
    found = re.search(pattern, name)
    if found is None or found[1] is None:
        raise InputError(
            f"data.fold_groups: {pattern!r} does not match the image {name!r}; it must match every training image"
        )
    return str(found[1])
