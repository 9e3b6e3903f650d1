"""A box of a resized image and of its labels, straight or rotated, without resizing the rest.

Glossary: H W pixels of the source, h w of the box.
"""

from __future__ import annotations

import math
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from meanshifter.data.labels import Labels

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in the resized image."""
BILINEAR: Final = Image.Resampling.BILINEAR
NEAREST: Final = Image.Resampling.NEAREST


def nearest(labels: Labels, size: tuple[int, int], box: Box) -> Labels:
    """A box of `labels` resized to `size` by nearest neighbor (half-pixel centers), without resizing the rest."""
    top, left, bottom, right = box
    rows = nearest_indices(labels.shape[0], size[0], top, bottom)
    cols = nearest_indices(labels.shape[1], size[1], left, right)
    return labels.take(rows, axis=0).take(cols, axis=1)


def nearest_indices(whole: int, target: int, start: int, stop: int) -> npt.NDArray[np.int64]:
    """The exact floor((i + 1/2) · whole / target) for i in start … stop-1."""
    indices: npt.NDArray[np.int64] = (2 * np.arange(start, stop) + 1) * whole // (2 * target)
    return indices


def resample(image: Pixels, size: tuple[int, int], box: Box) -> Pixels:
    """A box of `image` resized bilinearly to `size`, without resizing the rest.

    Pillow widens its triangle filter when it downsamples (antialiasing); OpenCV, which MMSegmentation uses, does not.
    """
    if size == image.shape[:2]:
        return image[box[0] : box[2], box[1] : box[3]]
    y0, y1, above, top, bottom = _span(image.shape[0], size[0], box[0], box[2])
    x0, x1, before, left, right = _span(image.shape[1], size[1], box[1], box[3])
    source = Image.fromarray(np.ascontiguousarray(image[y0:y1, x0:x1]))
    h, w = box[2] - box[0], box[3] - box[1]
    padded = source.resize((w + before[0] + before[1], h + above[0] + above[1]), BILINEAR, (left, top, right, bottom))
    return np.asarray(padded)[above[0] : above[0] + h, before[0] : before[0] + w]


def _span(whole: int, target: int, start: int, stop: int) -> tuple[int, int, tuple[int, int], float, float]:
    """The source of one axis of a crop: full source pixels, extra target pixels, and the exact source range.

    With two more target pixels on each side, and the source pixels that the filter reaches from there, the crop equals
    one that is cut from the completely resized image.
    """
    extra = min(2, start), min(2, target - stop)
    step = whole / target
    first, last = (start - extra[0]) * step, (stop + extra[1]) * step
    low, high = max(0, math.floor(first) - 1), min(whole, math.ceil(last) + 1)
    return low, high, extra, max(0.0, first - low), min(float(high - low), last - low)


def rotate(
    image: Pixels,
    labels: Labels,
    size: tuple[int, int],
    box: Box,
    angle: float,
    shape: tuple[int, int],
    *,
    fill: tuple[int, int, int],
    ignore: int,
) -> tuple[Pixels, Labels, Mask]:
    """A region of `shape` (h, w) of the resized image, rotated about the center of `box`: one affine resampling.

    Pillow rounds the pixels of affine maps down, so that they are half a level of 255 darker on average.

    Args:
        image: (H, W, 3); it may be smaller than its labels if both show the same scene.
        labels: (H, W), resampled to the nearest neighbor.
        size: (height, width) of the resized image.
        box: the region before the rotation, which may be smaller than `shape` if the image is.
        angle: in degrees; the picture turns counterclockwise.
        shape: (h, w) of the result.
        fill: color outside of the image.
        ignore: label outside of the image.

    Returns:
        Pixels (h, w, 3), labels (h, w), and a mask (h, w) of what is outside of the image.
    """
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    y, x = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    h, w = shape
    # (x, y) of the resized image that the pixel centers of the result show
    rows = np.array(
        [
            [cosine, -sine, x - cosine * w / 2 + sine * h / 2],
            [sine, cosine, y - sine * w / 2 - cosine * h / 2],
        ]
    )
    pixels = _warp(image, rows, size, shape, BILINEAR, fill)
    target = cast(Labels, _warp(labels, rows, size, shape, NEAREST, ignore).astype(labels.dtype, copy=False))
    outside: Mask = _warp(np.ones(labels.shape, np.uint8), rows, size, shape, NEAREST, 0) == 0
    return pixels, target, outside


def _warp(
    source: npt.NDArray[Any],
    rows: npt.NDArray[np.float64],
    size: tuple[int, int],
    shape: tuple[int, int],
    how: Image.Resampling,
    fill: int | tuple[int, int, int],
) -> npt.NDArray[Any]:
    """Resample (H, W, …) by an affine map `rows` (2, 3) of the result's (x, y) to those of the resized source.

    A bilinear filter reaches no further than two pixels. If it shrinks the source more than that, blocks of pixels are
    averaged first.
    """
    H, W = source.shape[:2]
    scale = np.array([W / size[1], H / size[0]])
    rows = rows * scale[:, None]
    h, w = shape
    corners = rows @ np.array([[0, w, 0, w], [0, 0, h, h], [1, 1, 1, 1]], float)
    block = (1, 1) if how == NEAREST else (max(int(scale[0]), 1), max(int(scale[1]), 1))
    margin = 2 * np.array(block)
    left, top = (max(int(v), 0) for v in np.floor(corners.min(1)) - margin)
    right, bottom = (int(v) for v in np.minimum(np.ceil(corners.max(1)) + margin, (W, H)))
    left, top = left // block[0] * block[0], top // block[1] * block[1]
    part = Image.fromarray(np.ascontiguousarray(source[top:bottom, left:right]))
    part = part if block == (1, 1) else part.reduce(block)
    rows[:, 2] -= (left, top)
    rows /= np.array(block)[:, None]
    warped = part.transform((w, h), Image.Transform.AFFINE, tuple(rows.ravel().tolist()), how, fillcolor=fill)
    return np.asarray(warped)
