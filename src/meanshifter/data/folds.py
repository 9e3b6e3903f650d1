"""Divisions of a dataset by seed and name: into folds for cross-validation, or into a share and the rest."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence

from meanshifter.data.datasets import Dataset, Selection
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
    numbers, sizes = [0] * len(names), [0] * folds
    for group in sorted(members, key=lambda group: (-len(members[group]), _key(group, seed))):
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


def _key(name: str, seed: int) -> bytes:
    """What sorts names in an order that depends on the seed."""
    return hashlib.sha256(f"{seed} ".encode() + os.fsencode(name)).digest()


class Drawn(Selection):
    """A share of the samples of `dataset`, or with `drawn=False` the others; which, depends on the seed and the names.

    Raises:
        InputError: all samples or none would be drawn.
    """

    def __init__(self, dataset: Dataset, share: float, seed: int, *, drawn: bool = True) -> None:
        names = dataset.names
        order = sorted(range(len(names)), key=lambda place: _key(names[place], seed))
        count = round(share * len(names))
        if not 0 < count < len(names):
            raise InputError(
                f"data.train_share: {share:g} of {len(names)} training images is {count}; choose a share that is at "
                "least one of them and not all"
            )
        super().__init__(dataset, sorted(order[:count] if drawn else order[count:]))
        self.split = f"{dataset.split}, {'' if drawn else 'all but '}{share:g} of it"


class Fold(Selection):
    """The samples of one fold, or with `held_out=False` those of all other folds.

    Args:
        dataset: the divided dataset.
        numbers: the fold of each sample, as of `folds.fold_numbers`.
        fold: the fold.
        folds: their number, for the name of the split.
        held_out: whether the samples are those of the fold.
    """

    def __init__(self, dataset: Dataset, numbers: Sequence[int], fold: int, folds: int, *, held_out: bool) -> None:
        super().__init__(dataset, [place for place, number in enumerate(numbers) if (number == fold) == held_out])
        self.split = f"{dataset.split}, {'' if held_out else 'without '}fold {fold} of {folds}"
