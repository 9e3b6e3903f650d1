"""The size an image is read at, and bringing it there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.signedinteger[Any]]


def fitted_size(height: int, width: int, *, short_side: int | None, long_side: int, scale: float) -> tuple[int, int]:
    """The size (H, W) whose sides fit into (long_side, short_side) times `scale`, keeping their ratio.

    As mmcv's `rescale_size`: the factor is the largest that keeps both sides inside, above 1 for smaller
    images, and the sides are rounded half up. Without `short_side` the factor is `scale` itself.
    """
    factor = scale
    if short_side is not None:
        factor = min(
            int(long_side * scale) / max(height, width),
            int(short_side * scale) / min(height, width),
        )
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def enlarged_size(height: int, width: int, window: int) -> tuple[int, int]:
    """The size (H, W) to which the authors' Segmenter enlarges images of which one side is below the window.

    Source: `resize` in `segm/model/utils.py` of github.com/rstrudel/segmenter.
    """
    if min(height, width) >= window:
        return height, width
    return (window, int(width / height * window)) if height < width else (int(height / width * window), window)


def resize(image: Image, size: tuple[int, int]) -> Image:
    """`image` (H, W, 3) at `size`, bilinear with half-pixel centres and without antialiasing.

    The arithmetic is that of OpenCV's `INTER_LINEAR` for 8 bits, to the last bit, because the field's models were
    trained and scored through it: weights in steps of 1/2048, and four bits dropped between the two passes.
    """
    if image.shape[:2] == size:
        return image
    (H, W), out = image.shape[:2], np.empty((*size, 3), dtype=np.uint8)
    top, bottom, upper, lower = (entry[..., None] for entry in _taps(H, size[0]))
    left, right, near, far = _taps(W, size[1], clamped=True)
    for channel in range(3):  # one at a time, as the integers are four times the image
        plane = image[..., channel].astype(np.int32)
        wide = (plane[:, left] * near + plane[:, right] * far) >> 4
        parts = (upper * wide[top[:, 0]] >> 16) + (lower * wide[bottom[:, 0]] >> 16)
        out[..., channel] = (parts + 2) >> 2
    return out


def _taps(n: int, m: int, *, clamped: bool = False) -> tuple[Integers, Integers, Integers, Integers]:
    """For each of m places over n pixels: the pixel before and after, and their weights in 2048ths.

    `clamped`: outside the outermost centres the nearest pixel alone counts, as OpenCV has it along rows; along
    columns it weighs that pixel twice, which rounds differently.
    """
    place = ((np.arange(m) + 0.5) * (n / m) - 0.5).astype(np.float32)
    before = np.floor(place).astype(np.int64)
    after_weight = (place - before).astype(np.float32)
    if clamped:
        after_weight[(before < 0) | (before >= n - 1)] = 0
        before = before.clip(0, n - 1)
    weights = (np.rint(share * np.float32(2048)).astype(np.int32) for share in (1 - after_weight, after_weight))
    return before.clip(0, n - 1), (before + 1).clip(0, n - 1), *weights
