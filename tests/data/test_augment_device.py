"""Batches made on the device are those that the workers make."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meanshifter.data.augment import augment, normalization
from meanshifter.data.augment_config import AugmentConfig
from meanshifter.data.augment_device import augment_batch, distort_batch
from meanshifter.data.crop_plan import draw
from meanshifter.data.distortion import Distortion, distort, draw_distortion

side = st.integers(1, 90)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def both(shapes: list[tuple[int, int]], config: AugmentConfig, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(crops, labels) of the batch made at once and of the samples made one by one."""
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    labels = [rng.integers(0, 5, shape, dtype=np.uint8) for shape in shapes]
    single = [
        augment(image, mask, config, np.random.default_rng((seed, k)), mean=MEAN, std=STD, ignore=255)
        for k, (image, mask) in enumerate(zip(images, labels, strict=True))
    ]
    plans = [draw(mask, config, np.random.default_rng((seed, k)), ignore=255) for k, mask in enumerate(labels)]
    factor, offset = map(torch.from_numpy, normalization(MEAN, STD))
    made = augment_batch(
        [torch.from_numpy(image).permute(2, 0, 1) for image in images],
        [torch.from_numpy(mask) for mask in labels],
        plans,
        config.crop,
        factor=factor,
        offset=offset,
        ignore=255,
    )
    return [(made[0].numpy(), made[1].numpy()), (np.stack([s[0] for s in single]), np.stack([s[1] for s in single]))]


@given(st.lists(st.tuples(side, side), min_size=1, max_size=3), side, side, st.integers(0, 10**6))
@settings(max_examples=60)
def test_crops_and_labels_are_those_of_the_workers(
    shapes: list[tuple[int, int]], height: int, width: int, seed: int
) -> None:
    config = AugmentConfig(crop=(height, width), resize_base=(120, 60), scale=(0.5, 2.0), photometric_distortion=False)
    (pixels, labels), (expected, expected_labels) = both(shapes, config, seed)
    np.testing.assert_array_equal(labels, expected_labels)
    assert pixels.dtype == np.float32
    assert np.abs(pixels - expected).max() <= 1.6 / 255 / min(STD), "Pillow rounds twice, by half a level each"


def test_images_of_their_own_size_are_cut_exactly() -> None:
    config = AugmentConfig(crop=(20, 30), resize_base=None, scale=(1, 1), photometric_distortion=False)
    (pixels, _), (expected, _) = both([(40, 50), (20, 30), (10, 60)], config, 3)
    np.testing.assert_allclose(pixels, expected, atol=1e-5)


@given(st.integers(0, 10**6))
@settings(max_examples=40)
def test_distortion_is_that_of_the_workers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch = rng.integers(0, 256, (4, 3, 7, 9)).astype(np.float32)
    batch[0, :, 0] = 128  # gray has no hue
    changes = [*(draw_distortion(rng) for _ in range(3)), Distortion()]
    made = torch.from_numpy(batch.copy())
    distort_batch(made, changes)
    for planes, change in zip(batch, changes, strict=True):
        distort(planes, change)
    np.testing.assert_allclose(made.numpy(), batch, atol=2e-3)
