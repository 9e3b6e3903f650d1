from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from meanshifter.errors import InputError
from meanshifter.inference.preprocess import Preprocess
from meanshifter.inference.windows import axis_matrix, check_windows, window_starts

WEIGHTS: dict[str, Callable[[float], float]] = {
    "constant": lambda place: 1.0,
    "cosine": lambda place: math.sin(math.pi * place) ** 2,
}


def covered(length: int, window: int, stride: int) -> bool:
    """Whether windows inside the axis cover every pixel, in order and no further apart than the stride."""
    starts = np.array(window_starts(length, window, stride))
    width = min(window, length)
    inside = starts[0] == 0 and starts[-1] + width == length
    return bool(inside and (np.diff(starts) > 0).all() and (np.diff(starts) <= min(stride, width)).all())


@pytest.mark.parametrize(("window", "stride"), [(512, 480), (512, 512), (512, 341), (64, 1), (17, 5), (1, 1)])
def test_windows_cover_every_pixel_of_every_length(window: int, stride: int) -> None:
    # Rows and columns are cut independently: every size up to 1500×1100 is covered if every length is.
    assert all(covered(length, window, stride) for length in range(1, 1501))


@given(st.integers(1, 1500), st.integers(1, 1500), st.integers(1, 1100), st.data())
def test_windows_cover_any_size(height: int, window: int, width: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    for length in (height, width):
        assert covered(length, window, stride)


@given(st.integers(1, 1500), st.integers(1, 700), st.data())
def test_windows_start_where_those_of_mmsegmentation_do(length: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    expected = []
    for index in range(max(length - window + stride - 1, 0) // stride + 1):
        end = min(index * stride + window, length)
        expected.append(max(end - window, 0))
    assert list(window_starts(length, window, stride)) == expected


@pytest.mark.parametrize(
    ("window", "stride", "message"),
    [
        (512, 513, "window_stride: 513 is above the window of 512"),
        (512, 0, "window_stride: 0 pixels"),
        (0, 1, "window: 0 pixels"),
    ],
)
def test_windows_that_skip_pixels_are_refused(window: int, stride: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_windows(window, stride)


@given(
    length=st.integers(1, 90),
    size=st.integers(1, 120),
    window=st.one_of(st.none(), st.integers(1, 60)),
    patch=st.integers(1, 16),
    blend=st.sampled_from(["constant", "cosine"]),
    data=st.data(),
)
def test_matrix_is_the_weighted_average_of_upsampled_windows(
    length: int, size: int, window: int | None, patch: int, blend: Any, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window or 1))
    starts, width = window_starts(length, window, stride), min(window or length, length)
    h = -(-width // patch)
    z = torch.randn(len(starts), h, dtype=torch.float64, generator=torch.Generator().manual_seed(length))
    total, count = torch.zeros(length, dtype=torch.float64), torch.zeros(length, dtype=torch.float64)
    weight = torch.tensor([WEIGHTS[blend]((i + 0.5) / width) for i in range(width)], dtype=torch.float64)
    for start, values in zip(starts, z, strict=True):
        wide = F.interpolate(values[None, None], size=h * patch, mode="linear", align_corners=False)[0, 0]
        total[start : start + width] += weight * wide[:width]
        count[start : start + width] += weight
    expected = total / count
    if size != length:
        expected = F.interpolate(expected[None, None], size=size, mode="linear", align_corners=False)[0, 0]
    matrix = axis_matrix(length, size, window=window, stride=stride, patch_size=patch, blend=blend)
    assert matrix.dtype == torch.float32
    torch.testing.assert_close(matrix.double() @ z.reshape(-1), expected, atol=1e-5, rtol=0)


def test_blending_is_a_mean_over_the_windows_of_both_axes() -> None:
    """As other tools do it: weights of a window that are products over rows and columns, then one division."""
    height, width, window, stride, patch = 50, 70, 32, 20, 4
    rows, cols = (
        axis_matrix(n, n, window=window, stride=stride, patch_size=patch, blend="cosine") for n in (height, width)
    )
    tops, lefts, h = window_starts(height, window, stride), window_starts(width, window, stride), window // patch
    z = torch.randn(len(tops) * h, len(lefts) * h, dtype=torch.float64)
    one = torch.tensor([WEIGHTS["cosine"]((i + 0.5) / window) for i in range(window)], dtype=torch.float64)
    total, count = torch.zeros(2, height, width, dtype=torch.float64)
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            part = z[i * h : (i + 1) * h, j * h : (j + 1) * h]
            wide = F.interpolate(part[None, None], scale_factor=patch, mode="bilinear", align_corners=False)[0, 0]
            total[top : top + window, left : left + window] += torch.outer(one, one) * wide
            count[top : top + window, left : left + window] += torch.outer(one, one)
    torch.testing.assert_close(rows.double() @ z @ cols.double().T, total / count, atol=1e-5, rtol=0)


def test_an_unknown_blending_is_refused() -> None:
    with pytest.raises(InputError, match=r"window_blend: .hann.*cosine"):
        Preprocess(window_blend="hann")  # type: ignore[arg-type]
