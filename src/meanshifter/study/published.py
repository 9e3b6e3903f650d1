"""The figures published for MeanShifter, as facts to compare with.

Source: the thesis that introduced MeanShifter (University of Crete, 2022), Table 1: ADE20K validation, ViT-Ti/16,
512-pixel windows. Where `runs` is 5, the scores are medians of five.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """One row; `layers` and `channels` are None for Segmenter-Ti/16."""

    layers: int | None
    channels: int | None
    runs: int
    aAcc: float  # noqa: N815
    mAcc: float  # noqa: N815
    mIoU: float  # noqa: N815
    millions: float


TABLE_1 = (
    Published(None, None, 5, 75.77, 41.13, 31.44, 5.71),
    Published(1, 64, 1, 75.19, 38.72, 29.49, 5.72),
    Published(1, 128, 5, 75.2, 38.91, 29.8, 5.74),
    Published(1, 192, 5, 75.89, 40.96, 31.05, 5.75),
    Published(1, 256, 1, 74.77, 37.15, 28.46, 5.76),
    Published(1, 768, 1, 74.5, 38.06, 28.65, 5.86),
    Published(2, 64, 1, 65.48, 18.2, 13.0, 5.72),
    Published(2, 128, 1, 70.09, 26.16, 19.31, 5.74),
    Published(2, 192, 1, 69.7, 26.39, 19.37, 5.75),
    Published(2, 256, 1, 72.49, 31.67, 23.83, 5.76),
    Published(2, 768, 1, 70.86, 29.23, 21.47, 5.86),
    Published(3, 64, 1, 45.27, 4.64, 2.86, 5.72),
    Published(3, 128, 1, 66.84, 21.53, 15.93, 5.74),
    Published(3, 192, 1, 37.98, 6.53, 4.07, 5.75),
    Published(3, 256, 1, 71.91, 32.4, 23.5, 5.76),
    Published(3, 768, 1, 59.72, 16.66, 11.32, 5.86),
)
