"""The size an image is read at, and bringing it there."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

Image = npt.NDArray[np.uint8]


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


def resize(image: Image, size: tuple[int, int]) -> Image:
    """`image` (H, W, 3) at `size`, bilinear with half-pixel centres, rounded to uint8.

    There is no antialiasing, as in OpenCV's `INTER_LINEAR`, through which the field's scores were measured;
    values differ from OpenCV's fixed-point arithmetic by 1 at most.
    """
    if image.shape[:2] == size:
        return image
    out = np.empty((*size, 3), dtype=np.uint8)
    for channel in range(3):  # one at a time, as the float copy is four times the image
        plane = torch.from_numpy(image[..., channel].astype(np.float32))
        scaled = F.interpolate(plane[None, None], size=size, mode="bilinear", align_corners=False)
        out[..., channel] = scaled[0, 0].round().byte().numpy()
    return out
