"""Files → arrays: images as uint8 RGB, masks as train ids. What cannot be read is refused in one line.

Glossary: H W pixels.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from meanshifter.data.claims import image_suffixes
from meanshifter.data.decoding import SWAPS_SIDES, WITHOUT_PILLOWS_LIMIT, Factor, decode_image, decode_mask
from meanshifter.data.labels import Labels, LabelSpace
from meanshifter.data.mask_values import count_indices, indices, train_ids
from meanshifter.errors import InputError

IMAGE_SUFFIXES: Final = image_suffixes()
"""Of images and masks alike; whether a mask will do is told by its content."""

MAX_PIXELS: Final = 1_000_000_000
"""An image that claims more is refused before it is decoded: a few bytes of a file can claim anything."""

_BAND: Final = 256


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS, data: bytes | None = None) -> npt.NDArray[np.uint8]:
    """The image as (H, W, 3) uint8 RGB, turned upright as its EXIF orientation says.

    Grey, palette, CMYK and 1-bit images are converted. Of more than 8 bits the range of the bits, or the one that a
    TIFF's tags declare, becomes 0 to 255: of 16 bits the upper 8 are kept. Transparency is dropped:
    the stored colours are returned, as OpenCV and torchvision do, without an invented background. Of several
    frames the first is read. Where the file's bytes are already here, as `data`, `path` is what messages call it.

    Raises:
        InputError: a file that is missing, truncated, no image, of more than `max_pixels`, of values without a known
            range, or of 16 bits of which hardly any is used, so that it would come out black.
    """
    name = Path(path) if data is None else path
    return rgb(decode_image(name, max_pixels, data=data).upright, name)


def read_mask(path: str | Path, labels: LabelSpace) -> Labels:
    """The mask as (H, W) train ids of `labels.dtype`, pixel for pixel.

    Grey, palette and 1-bit masks hold indices, which `labels.raw` maps to train ids; colour masks are mapped by
    `labels.colors`. A label space with `colors` and no `raw` reads grey and palette masks by their colours too.
    Transparency is dropped, and the mask's own EXIF orientation, a rarity, is applied.

    Raises:
        InputError: a file that cannot be read, lossy compression, several pictures, colours without a colour map, or a
            value outside the map.
    """
    return train_ids(decode_mask(path).upright, Path(path), labels)


def read_sample(
    image_path: str | Path, mask_path: str | Path, labels: LabelSpace, *, factor: Factor | None = None
) -> tuple[npt.NDArray[np.uint8], Labels]:
    """An image (H, W, 3) and its mask (H, W), which must be of one size.

    Annotation tools that know EXIF show the image upright and store an upright mask; others store a mask of the
    image as it lies in the file. Sizes tell the two apart where the orientation swaps the sides: the second kind
    is refused. Where they cannot tell (turned by 180 degrees, mirrored, or square) there is a UserWarning.

    With `factor`, which says for a height and width by what the image will be resized, a JPEG may come at a half, a
    quarter or an eighth of its size, at least twice as large as it will be: its decoder does that for less.

    Raises:
        InputError: as `read_image` and `read_mask`, and for two sizes.
    """
    image_path, mask_path = Path(image_path), Path(mask_path)
    image, mask = decode_image(image_path, factor=factor), decode_mask(mask_path)
    turn, lying, mask_turn = image.turn, image.size, mask.turn
    size = lying[::-1] if turn in SWAPS_SIDES else lying
    mask_picture = mask.upright
    _check_sizes(image_path, mask_path, size, mask_picture.size, lying if turn != mask_turn else None)
    if turn != mask_turn and (turn not in SWAPS_SIDES or lying[0] == lying[1]):
        warnings.warn(
            f"{image_path}: turned upright by its EXIF orientation {turn}, which {mask_path} lacks; if the mask "
            "was drawn on the image as stored, remove the tag from the image",
            stacklevel=2,
        )
    return rgb(image.upright, image_path), train_ids(mask_picture, mask_path, labels)


def _check_sizes(
    image: Path, mask: Path, size: tuple[int, int], mask_size: tuple[int, int], lying: tuple[int, int] | None
) -> None:
    """Sizes are (W, H); `lying` is the image's before its EXIF turn, where the mask has not been turned too."""
    if size == mask_size:
        return
    if lying is not None and lying == mask_size:
        raise InputError(
            f"{mask}: {_by(mask_size)} like {image} as stored, but the image's EXIF orientation turns it to "
            f"{_by(size)} and the mask has none; turn the mask likewise, or remove the tag from the image"
        )
    raise InputError(
        f"{mask}: {_by(mask_size)}, but its image {image} is {_by(size)} (width×height); a mask is as large as its "
        "image"
    )


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


def mask_values(path: str | Path) -> npt.NDArray[np.int64]:
    """The distinct indices of a mask, ascending.

    Raises:
        InputError: as `read_mask`, or a mask of colours.
    """
    return mask_counts(path)[0]


def mask_counts(path: str | Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The distinct indices of a mask, ascending, and the pixels of each.

    Raises:
        InputError: as `mask_values`.
    """
    return count_indices(indices(decode_mask(path).picture, Path(path)))


def rgb(picture: Image.Image, path: str | Path) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 of a decoded image, as `read_image` converts it.

    Raises:
        InputError: colours that Pillow does not convert.
    """
    out = np.empty((picture.height, picture.width, 3), dtype=np.uint8)
    for top in range(0, picture.height, _BAND):  # a conversion of the whole would hold it three times over
        with WITHOUT_PILLOWS_LIMIT:  # which cropping minds before Pillow 12
            band = picture.crop((0, top, picture.width, min(top + _BAND, picture.height)))
        # Pillow warns when a palette's transparency has to vanish in one step
        band = band.convert("RGBA") if "transparency" in picture.info else band
        try:
            out[top : top + _BAND] = np.asarray(band if band.mode == "RGB" else band.convert("RGB"))
        except ValueError as error:
            raise InputError(f"{path}: colours of mode {picture.mode} ({error}); export the image as RGB") from error
    return out
