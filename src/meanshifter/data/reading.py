"""Find image files in folders, and read images and masks.

Glossary: H W pixels.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from meanshifter.data.headers import image_suffixes
from meanshifter.data.images import SWAPS_SIDES, WITHOUT_PILLOWS_LIMIT, Factor, decode_image, decode_mask
from meanshifter.data.labels import Labels, LabelSpace
from meanshifter.data.masks import count_indices, indices, train_ids
from meanshifter.errors import InputError, summarize_error

IMAGE_SUFFIXES: Final = image_suffixes()
"""Extensions of images and masks; whether a file can be a mask depends on its content."""
MAX_PIXELS: Final = 1_000_000_000
"""Larger images are rejected before they are decoded: a few bytes of a file can claim any size."""
_BAND: Final = 256


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS, data: bytes | None = None) -> npt.NDArray[np.uint8]:
    """Read an image as (H, W, 3) uint8 RGB with its EXIF orientation applied.

    Gray, palette, CMYK and 1-bit images are converted. Of more than 8 bits per sample, the range of the bit depth, or
    the one that a TIFF's tags declare, is scaled to 0..255: samples of 16 bits keep their upper 8. Transparency is
    dropped and the stored colors are returned, as in OpenCV and torchvision, without an invented background. Of
    several frames, the first is read. If the bytes are given as `data`, `path` only names the image in messages.

    Raises:
        InputError: the file is missing, truncated, not an image or larger than `max_pixels`; values without a known
            range; or an image of more than 8 bits that would be almost black.
    """
    name = Path(path) if data is None else path
    return rgb(decode_image(name, max_pixels, data=data).upright, name)


def read_mask(path: str | Path, label_space: LabelSpace) -> Labels:
    """Read a mask as (H, W) train ids of `label_space.dtype`, pixel for pixel.

    Gray, palette and 1-bit masks hold indices, which `label_space.raw` maps to train ids; color masks are mapped by
    `label_space.colors`. If there is `colors` but no `raw`, gray and palette masks are read by their colors too.
    Transparency is dropped, and the mask's own EXIF orientation, which is rare, is applied.

    Raises:
        InputError: the file cannot be read; lossy compression; several pictures; colors without a color map; or a
            value outside the label map.
    """
    return train_ids(decode_mask(path).upright, Path(path), label_space)


def read_sample(
    image_path: str | Path, mask_path: str | Path, label_space: LabelSpace, *, factor: Factor | None = None
) -> tuple[npt.NDArray[np.uint8], Labels]:
    """Read an image (H, W, 3) and its mask (H, W), which must have the same size.

    Annotation tools that know EXIF show the image upright and store an upright mask; others store a mask of the image
    as it lies in the file. If the orientation swaps the sides, the sizes tell the two apart, and masks of the second
    kind are rejected. Otherwise (180 degrees, mirrored, or square) a UserWarning is issued.

    With `factor`, a JPEG may be decoded at a half, a quarter or an eighth of its size, which is faster, but at least at
    twice the size that it will be resized to.

    Raises:
        InputError: as `read_image` and `read_mask`, or the sizes differ.
    """
    image_path, mask_path = Path(image_path), Path(mask_path)
    image, mask = decode_image(image_path, factor=factor), decode_mask(mask_path)
    picture = mask.upright
    size = image.size[::-1] if image.turn in SWAPS_SIDES else image.size
    by_mask, by_image = (f"{width}×{height}" for width, height in (picture.size, size))
    if size != picture.size and image.turn != mask.turn and image.size == picture.size:
        raise InputError(
            f"{mask_path}: {by_mask} like {image_path} as stored, but the image's EXIF orientation turns it to "
            f"{by_image} and the mask has none; turn the mask too, or remove the tag from the image"
        )
    if size != picture.size:
        raise InputError(
            f"{mask_path}: {by_mask}, but its image {image_path} is {by_image} (width×height); a mask must have the "
            "size of its image"
        )
    if image.turn != mask.turn and (image.turn not in SWAPS_SIDES or image.size[0] == image.size[1]):
        warnings.warn(
            f"{image_path}: turned upright by its EXIF orientation {image.turn}, which {mask_path} lacks; if the mask "
            "was drawn on the image as stored, remove the tag from the image",
            stacklevel=2,
        )
    return rgb(image.upright, image_path), train_ids(picture, mask_path, label_space)


def mask_values(path: str | Path) -> npt.NDArray[np.int64]:
    """The distinct indices of a mask, ascending; see `mask_counts`."""
    return mask_counts(path)[0]


def mask_counts(path: str | Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The distinct indices of a mask, ascending, and their pixels; raises as `read_mask`, and for masks of colors."""
    return count_indices(indices(decode_mask(path).picture, Path(path)))


def rgb(picture: Image.Image, path: str | Path) -> npt.NDArray[np.uint8]:
    """Convert a decoded image to (H, W, 3) uint8, as `read_image` does.

    Raises:
        InputError: colors that Pillow does not convert.
    """
    out = np.empty((picture.height, picture.width, 3), dtype=np.uint8)
    for top in range(0, picture.height, _BAND):  # converting all at once would hold the image three times
        with WITHOUT_PILLOWS_LIMIT:  # Pillow before 12 applies the limit to crops
            band = picture.crop((0, top, picture.width, min(top + _BAND, picture.height)))
        # Pillow warns if a palette's transparency is dropped in one step
        band = band.convert("RGBA") if "transparency" in picture.info else band
        try:
            out[top : top + _BAND] = np.asarray(band if band.mode == "RGB" else band.convert("RGB"))
        except ValueError as error:
            raise InputError(f"{path}: colors of mode {picture.mode} ({error}); export the image as RGB") from error
    return out


PassedOver = Counter[str]
"""Kind of skipped file, as messages name it → number of files."""
HIDDEN_FILES: Final = "hidden files"
HIDDEN_FOLDERS: Final = "hidden or system folders"
LINKED_TWICE: Final = "links to folders already read"
BROKEN_LINKS: Final = "broken links"
NO_FILES: Final = "pipes, sockets or devices"
_SYSTEM: Final = ("@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information", "lost+found")
_KINDS: Final = 6


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or belongs to a system: .ipynb_checkpoints, ._a.png, __MACOSX, @eaDir."""
    return (name.startswith(".") and name not in (".", "..")) or name.casefold() in _SYSTEM


def ending(name: str) -> str:
    """The kind under which a file that is skipped for its extension is counted."""
    return Path(name).suffix.lower() or "files without extension"


def said(passed: PassedOver) -> str:
    """Skipped files in words: `7 skipped: .txt (4), hidden files (3)`, the most frequent kinds first."""
    ranked = sorted(passed.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{kind} ({count:,})" for kind, count in ranked[:_KINDS])
    more = "" if len(ranked) <= _KINDS else f" and {len(ranked) - _KINDS} more kinds"
    return f"{sum(passed.values()):,} skipped: {named}{more}"


def files_below(
    root: Path, suffixes: Collection[str], passed: PassedOver, *, avoid: Path | None = None
) -> Iterator[Path]:
    """Yield the files with these extensions, in any case, folder by folder in sorted order; links are followed.

    A linked folder is read after everything below `root` itself, once, and only if nothing else has led there; a link
    to a folder that contains `root` is not followed. So loops end and no image appears under two names.

    Args:
        root: the folder.
        suffixes: lower-case extensions with the dot.
        passed: counts of skipped files are added here.
        avoid: a folder that is left out and not counted, such as that of earlier results.

    Raises:
        InputError: a folder cannot be listed.
    """
    top, avoided = os.path.realpath(root), None if avoid is None else os.path.realpath(avoid)
    seen: set[str] = set()
    waiting, linked = [root], list[Path]()
    while waiting or linked:
        folder = waiting.pop() if waiting else linked.pop(0)
        real = os.path.realpath(folder)
        if real == avoided and folder != root:
            continue
        if real in seen or (folder != root and f"{top}/".startswith(f"{real.rstrip('/')}/")):
            passed[LINKED_TWICE] += 1
            continue
        seen.add(real)
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be listed ({summarize_error(error)}); check your access to it"
            ) from error
        inside = list[Path]()
        for path in entries:
            if path.is_dir():
                if is_hidden(path.name):
                    passed[HIDDEN_FOLDERS] += 1
                else:
                    (linked if path.is_symlink() else inside).append(path)
            elif (kind := _why_skipped(path, suffixes)) is not None:
                passed[kind] += 1
            else:
                yield path
        waiting += reversed(inside)


def _why_skipped(file: Path, suffixes: Collection[str]) -> str | None:
    """The kind under which a skipped file is counted; None for a wanted file."""
    if is_hidden(file.name):
        return HIDDEN_FILES
    if file.suffix.lower() not in suffixes:
        return ending(file.name)
    if file.is_file():
        return None
    return BROKEN_LINKS if file.is_symlink() and not file.exists() else NO_FILES
