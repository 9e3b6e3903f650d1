"""Files → arrays: images as uint8 RGB, masks as train ids. What cannot be read is refused in one line.

Glossary: H W pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from meanshifter.data.claims import MAX_SAMPLE_PIXELS, check_claim, formats
from meanshifter.data.labels import Labels, LabelSpace
from meanshifter.data.mask_values import indices, refuse_lossy, train_ids
from meanshifter.errors import InputError
from meanshifter.files import require_file

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_SUFFIXES: Final = (".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")

Factor = Callable[[int, int], float]
"""What an image of this height and width will be resized by."""

MAX_PIXELS: Final = 1_000_000_000
"""An image that claims more is refused before it is decoded: a few bytes of a file can claim anything."""

ORIENTATION: Final = 0x0112
_BAND: Final = 256
TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPS_SIDES: Final = (5, 6, 7, 8)


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS, data: bytes | None = None) -> npt.NDArray[np.uint8]:
    """The image as (H, W, 3) uint8 RGB, turned upright as its EXIF orientation says.

    Grey, palette, CMYK and 1-bit images are converted. Of 16 bits the upper 8 are kept. Transparency is dropped:
    the stored colours are returned, as OpenCV and torchvision do, without an invented background. Of several
    frames the first is read. Where the file's bytes are already here, as `data`, `path` is what messages call it.

    Raises:
        InputError: a file that is missing, truncated, no image, of 32-bit values, or of more than `max_pixels`.
    """
    name = Path(path) if data is None else path
    picture, turn, _ = decode(name, max_pixels, data=data)
    return rgb(upright(picture, turn), name)


def read_mask(path: str | Path, labels: LabelSpace) -> Labels:
    """The mask as (H, W) train ids of `labels.dtype`, pixel for pixel.

    Grey, palette and 1-bit masks hold indices, which `labels.raw` maps to train ids; colour masks are mapped by
    `labels.colors`. A label space with `colors` and no `raw` reads grey and palette masks by their colours too.
    Transparency is dropped, and the mask's own EXIF orientation, a rarity, is applied.

    Raises:
        InputError: a file that cannot be read, a JPEG, colours without a colour map, or a value outside the map.
    """
    picture, turn, _ = decode(Path(path))
    return train_ids(upright(picture, turn), Path(path), labels)


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
    picture, turn, lying = decode(image_path, factor=factor)
    mask_picture, mask_turn, _ = decode(mask_path)
    size = lying[::-1] if turn in SWAPS_SIDES else lying
    picture, mask_picture = upright(picture, turn), upright(mask_picture, mask_turn)
    _check_sizes(image_path, mask_path, size, mask_picture.size, lying if turn != mask_turn else None)
    if turn != mask_turn and (turn not in SWAPS_SIDES or lying[0] == lying[1]):
        warnings.warn(
            f"{image_path}: turned upright by its EXIF orientation {turn}, which {mask_path} lacks; if the mask "
            "was drawn on the image as stored, remove the tag from the image",
            stacklevel=2,
        )
    return rgb(picture, image_path), train_ids(mask_picture, mask_path, labels)


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
        InputError: a file that cannot be read, a JPEG, or a mask of colours.
    """
    picture, _, _ = decode(Path(path))
    refuse_lossy(picture, Path(path))
    values = indices(picture, Path(path))
    if values.itemsize <= 2:
        return np.flatnonzero(np.bincount(values.ravel())).astype(np.int64)
    return np.unique(values).astype(np.int64)


def decode(
    path: str | Path, max_pixels: int = MAX_SAMPLE_PIXELS, factor: Factor | None = None, data: bytes | None = None
) -> tuple[Image.Image, int, tuple[int, int]]:
    """The decoded picture as stored, its EXIF orientation (1: upright), and its size (W, H) before any reduction.

    Raises:
        InputError: a file that is missing, truncated, no image, or of more than `max_pixels`.
    """
    if data is None:
        require_file(Path(path))
    try:
        with WITHOUT_PILLOWS_LIMIT, Image.open(path if data is None else BytesIO(data), formats=formats()) as picture:
            size = picture.size
            check_claim(path, picture, max_pixels, Path(path).stat().st_size if data is None else len(data))
            if factor is not None and picture.format == "JPEG":
                _reduce(picture, factor(size[1], size[0]))
            picture.load()
            turn = picture.getexif().get(ORIENTATION, 1)
            return _whole_blocks(picture, size), turn if turn in TURNS else 1, size
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(
            f"{path}: not an image of a format that is read ({', '.join(formats())}); copy it again, or save it as PNG"
        ) from None
    except MemoryError:
        raise InputError(f"{path}: {_by(size)} pixels need more memory than there is; cut it into tiles") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be decoded ({reason}); copy or export the file again") from error


def _reduce(picture: Image.Image, factor: float) -> None:
    """Have the decoder make the picture smaller, but no smaller than twice what `factor` will make of it."""
    for divisor in (8, 4, 2):
        if 2 * factor * divisor <= 1:
            picture.draft(None, (max(picture.width // divisor, 1), max(picture.height // divisor, 1)))
            return


def _whole_blocks(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Without the last row or column that stands for less than half a block of the stored image."""
    divisor = round(size[0] / picture.width)
    if divisor == 1:
        return picture
    width, height = (max((side + divisor // 2) // divisor, 1) for side in size)
    return picture.crop((0, 0, width, height))


class _WithoutLimit:
    """Within, Pillow's own limit on pixels is off: one number for the whole process, put back when the last leaves."""

    def __init__(self) -> None:
        self._lock, self._inside = Lock(), 0
        self._limit: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                Image.MAX_IMAGE_PIXELS = self._limit


WITHOUT_PILLOWS_LIMIT: Final = _WithoutLimit()


def upright(picture: Image.Image, turn: int) -> Image.Image:
    """`picture` turned as the EXIF orientation says."""
    if turn not in TURNS:
        return picture
    turned = picture.transpose(TURNS[turn])
    turned.format = picture.format
    return turned


def rgb(picture: Image.Image, path: str | Path) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 of a decoded picture, as `read_image` converts it.

    Raises:
        InputError: 32-bit values.
    """
    if picture.mode.startswith("I"):
        grey = np.asarray(picture)
        if grey.min() < 0 or grey.max() > 65535:
            raise InputError(
                f"{path}: 32-bit values {grey.min()} to {grey.max()}; export the image with 8 or 16 bits per channel"
            )
        return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode == "F":
        raise InputError(f"{path}: floating-point values; export the image with 8 or 16 bits per channel")
    out = np.empty((picture.height, picture.width, 3), dtype=np.uint8)
    for top in range(0, picture.height, _BAND):  # a conversion of the whole would hold it three times over
        with WITHOUT_PILLOWS_LIMIT:  # which cropping minds before Pillow 12
            band = picture.crop((0, top, picture.width, min(top + _BAND, picture.height)))
        # Pillow warns when a palette's transparency has to vanish in one step
        band = band.convert("RGBA") if "transparency" in picture.info else band
        out[top : top + _BAND] = np.asarray(band if band.mode == "RGB" else band.convert("RGB"))
    return out
