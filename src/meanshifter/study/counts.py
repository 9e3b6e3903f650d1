"""Confusion matrices of single images, of which only what is not 0 is kept: an image holds few classes.

Glossary: I images, K classes.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from meanshifter.errors import InputError
from meanshifter.evaluation.confusion import Confusion

FORMAT_VERSION = 2
"""Version 1 held a dense (depths, images, K, K) array for each split."""


class ImageCounts:
    """The confusion matrix of each image of a split, after one number of mean shift steps.

    Entry by entry: the pair of classes, true × K + predicted, and its pixels; `ends` says where each image's end.
    Filled by `append`; 12 bytes an entry, and no image takes more entries than pixels.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._pairs, self._pixels, self._ends = array("I"), array("q"), array("q")

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, confusion: Confusion) -> None:
        """Add the confusion matrix (K, K) of the next image."""
        flat = confusion.reshape(-1)
        places = np.flatnonzero(flat)
        self._pairs.frombytes(places.astype(np.uint32).tobytes())
        self._pixels.frombytes(flat[places].astype(np.int64).tobytes())
        self._ends.append(len(self._pairs))

    def total(self) -> Confusion:
        """(K, K) pixels of all images."""
        total = np.zeros(self.num_classes**2, np.int64)
        np.add.at(total, np.asarray(self._pairs), np.asarray(self._pixels))
        return total.reshape(self.num_classes, self.num_classes)

    def by_class(self) -> npt.NDArray[np.float64]:
        """(3, I, K) pixels of each image: of each true class, of each predicted class, and those that are right."""
        pairs, pixels = np.asarray(self._pairs), np.asarray(self._pixels)
        true, predicted = np.divmod(pairs.astype(np.int64), self.num_classes)
        shape = (len(self), self.num_classes)
        first = np.repeat(np.arange(shape[0]) * self.num_classes, np.diff(np.asarray(self._ends), prepend=0))
        parts = ((true, pixels), (predicted, pixels), (true, np.where(true == predicted, pixels, 0)))
        return np.stack(
            [np.bincount(first + k, weight, minlength=shape[0] * shape[1]).reshape(shape) for k, weight in parts]
        )

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What a file holds of it."""
        named = {"pairs": self._pairs, "pixels": self._pixels, "ends": self._ends}
        return {name: np.asarray(values) for name, values in named.items()}

    @classmethod
    def of(cls, num_classes: int, arrays: Mapping[str, npt.NDArray[Any]]) -> ImageCounts:
        """The inverse of `arrays`."""
        counts = cls(num_classes)
        for into, name in ((counts._pairs, "pairs"), (counts._pixels, "pixels"), (counts._ends, "ends")):
            into.frombytes(np.ascontiguousarray(arrays[name]).tobytes())
        return counts


def save_counts(file: IO[bytes], counts: Mapping[str, Mapping[int, ImageCounts]]) -> None:
    """Write the counts of splits and, in each, of numbers of steps, as an .npz file."""
    parts: dict[str, Any] = {"format_version": FORMAT_VERSION}
    for split, by_depth in counts.items():
        for depth, entry in by_depth.items():
            parts |= {f"{split}/{depth}/{name}": values for name, values in entry.arrays().items()}
            parts[f"{split}/num_classes"] = entry.num_classes
    np.savez_compressed(file, **parts)


def load_counts(path: Path, split: str, depth: int) -> ImageCounts:
    """The counts of one split after one number of steps.

    Raises:
        InputError: a file that is missing, damaged or of another version, or does not hold them.
    """
    try:
        with np.load(path) as stored:
            if (version := int(stored["format_version"])) != FORMAT_VERSION:
                raise InputError(
                    f"{path}: format_version {version}; this version of meanshifter reads {FORMAT_VERSION}"
                )
            arrays = {name: stored[f"{split}/{depth}/{name}"] for name in ("pairs", "pixels", "ends")}
            return ImageCounts.of(int(stored[f"{split}/num_classes"]), arrays)
    except InputError:
        raise
    except (OSError, KeyError, ValueError, EOFError) as error:
        text = " ".join(str(error).split())
        raise InputError(
            f"{path}: cannot be read ({text}); delete scores.json beside it, and the same command scores again"
        ) from error
