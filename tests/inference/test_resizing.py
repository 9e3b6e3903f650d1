from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from meanshifter.inference.preprocess import resize

# cv2.resize of the image below with INTER_LINEAR in OpenCV 5.0
GOLDEN = [
    [255, 207, 130, 63, 18, 110, 168],
    [228, 207, 174, 134, 103, 142, 166],
    [187, 207, 239, 240, 231, 190, 164],
    [201, 209, 222, 224, 219, 166, 134],
    [210, 210, 210, 214, 210, 151, 114],
]


def test_resizing_is_bit_exact_with_opencv() -> None:
    image = np.random.default_rng(1).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize(image, (5, 7))[..., 0], GOLDEN)


@settings(max_examples=60)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 120), st.integers(1, 120), st.integers(0, 99))
def test_resizing_is_bilinear_interpolation_within_one_level(H: int, W: int, h: int, w: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8)
    exact = F.interpolate(torch.from_numpy(image).permute(2, 0, 1)[None].double(), (h, w), mode="bilinear")
    found = torch.from_numpy(resize(image, (h, w))).permute(2, 0, 1)[None]
    assert (found - exact).abs().max() <= 1.01


@settings(max_examples=60)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 120), st.integers(1, 120), st.integers(0, 99))
def test_resizing_equals_installed_opencv(H: int, W: int, h: int, w: int, seed: int) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    image = np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize(image, (h, w)), cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR))
