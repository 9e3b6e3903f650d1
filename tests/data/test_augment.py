"""Training augmentation: shapes, padding, image and labels in step, and the same draws for the same seed."""

from __future__ import annotations

import colorsys
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from meanshifter.data import augment as augment_module
from meanshifter.data.augment import augment
from meanshifter.data.augment_config import AugmentConfig
from meanshifter.data.crop_plan import draw_scale, resized
from meanshifter.data.distortion import distort, draw_distortion, shift_colors
from meanshifter.data.resampling import nearest, resample

HALF: Any = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "ignore": 255}
PLAIN = AugmentConfig(resize_base=None, scale=(1, 1), max_class_share=1, flip=0, photometric_distortion=False)
side = st.integers(1, 70)


def labels_of(shape: tuple[int, int], seed: int, classes: int = 9) -> npt.NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, classes, (shape[0] // 8 + 1, shape[1] // 8 + 1), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, 8, 0), 8, 1)[: shape[0], : shape[1]]


def painted(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """An image that shows its labels: red is 10 × the class."""
    return np.stack([labels * 10, 255 - labels, np.full_like(labels, 77)], axis=2)


@settings(max_examples=80)
@given(
    H=side, W=side, h=side, w=side, seed=st.integers(0, 999), flip=st.sampled_from([0.0, 0.5, 1.0]),
    low=st.floats(0.3, 1.0), high=st.floats(1.0, 2.5), base=st.sampled_from([None, (90, 40), (40, 90)]),
    share=st.sampled_from([0.5, 0.75, 1.0]),
)  # fmt: skip
def test_shapes_padding_and_repeatability(
    H: int, W: int, h: int, w: int, seed: int, flip: float, low: float, high: float,
    base: tuple[int, int] | None, share: float,
) -> None:  # fmt: skip
    config = AugmentConfig(crop=(h, w), resize_base=base, scale=(low, high), max_class_share=share, flip=flip)
    labels = labels_of((H, W), seed)
    image = painted(labels)
    before = image.copy()
    first, second = (augment(image, labels, config, np.random.default_rng(seed), **HALF) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(image, before)
    out, target = first
    assert out.shape == (3, h, w)
    assert target.shape == (h, w)
    assert out.dtype == np.float32
    assert target.dtype == np.uint8
    assert np.abs(out).max() <= 1 + 1e-6
    # no source pixel is ignored here, so what is ignored is padding: a rectangle at the top left is filled
    filled = target != 255
    rows, cols = filled.any(axis=1).sum(), filled.any(axis=0).sum()
    assert filled[:rows, :cols].all()
    assert filled.sum() == rows * cols
    assert (out[:, ~filled] == 0).all()
    assert set(np.unique(target[filled])) <= set(np.unique(labels))


@settings(max_examples=60)
@given(H=st.integers(8, 60), W=st.integers(8, 60), seed=st.integers(0, 999), flip=st.sampled_from([0.0, 1.0]))
def test_image_and_labels_stay_in_step(H: int, W: int, seed: int, flip: float) -> None:
    config = AugmentConfig(
        crop=(24, 24), resize_base=None, scale=(1, 1), max_class_share=1, flip=flip, photometric_distortion=False
    )
    labels = labels_of((H, W), seed)
    out, target = augment(painted(labels), labels, config, np.random.default_rng(seed), **HALF)
    filled = target != 255
    red = np.rint((out[0] * 0.5 + 0.5) * 255)
    np.testing.assert_array_equal(red[filled], target[filled].astype(int) * 10)


@pytest.mark.parametrize("scale", [0.5, 1.7])
def test_image_and_labels_stay_in_step_when_resized(scale: float) -> None:
    labels = np.repeat(np.repeat(np.arange(12, dtype=np.uint8).reshape(3, 4), 20, 0), 20, 1)
    config = AugmentConfig(
        crop=(48, 48), resize_base=None, scale=(scale, scale), flip=0.5, photometric_distortion=False
    )
    for seed in range(20):
        out, target = augment(painted(labels), labels, config, np.random.default_rng(seed), **HALF)
        filled = target != 255
        off = np.abs((out[0] * 0.5 + 0.5) * 255 - target.astype(int) * 10)[filled]
        # only along the edges are colors mixed, evenly on both sides
        assert (off < 1).mean() > 0.75
        assert abs((((out[0] * 0.5 + 0.5) * 255) - target.astype(int) * 10)[filled].mean()) < 1.5


def test_flip_mirrors_both() -> None:
    labels = labels_of((30, 40), 3)
    kept, flipped = (
        augment(
            painted(labels),
            labels,
            AugmentConfig((30, 40), None, (1, 1), 1, flip, False),
            np.random.default_rng(0),
            **HALF,
        )
        for flip in (0, 1)
    )
    np.testing.assert_array_equal(flipped[0], kept[0][:, :, ::-1])
    np.testing.assert_array_equal(flipped[1], kept[1][:, ::-1])


def test_mean_and_std_per_channel() -> None:
    labels = labels_of((16, 16), 0)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    mean, std = (0.1, 0.4, 0.7), (0.2, 0.3, 0.5)
    config = AugmentConfig((20, 18), None, (1, 1), 1, 0, False)
    out, _ = augment(image, labels, config, np.random.default_rng(0), mean=mean, std=std, ignore=255)
    expected = ((image / 255 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(out[:, :16, :16], expected, atol=1e-5)
    assert (out[:, 16:] == 0).all()
    assert (out[:, :, 16:] == 0).all()


def test_16_bit_labels_keep_their_type() -> None:
    labels = np.full((8, 8), 300, np.uint16)
    labels[:, :4] = 400
    out = augment(
        np.zeros((8, 8, 3), np.uint8),
        labels,
        AugmentConfig((9, 8), None),
        np.random.default_rng(0),
        **{**HALF, "ignore": 65535},
    )[1]
    assert out.dtype == np.uint16
    assert set(np.unique(out)) <= {300, 400, 65535}


@settings(max_examples=60)
@given(H=side, W=side, h=side, w=side, data=st.data())
def test_nearest_of_a_crop_is_the_crop_of_the_nearest(H: int, W: int, h: int, w: int, data: st.DataObject) -> None:
    labels = np.random.default_rng(0).integers(0, 250, (H, W), dtype=np.uint8)
    top, left = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    box = (top, left, data.draw(st.integers(top + 1, h)), data.draw(st.integers(left + 1, w)))
    rows = [(2 * i + 1) * H // (2 * h) for i in range(h)]
    cols = [(2 * j + 1) * W // (2 * w) for j in range(w)]
    whole = labels[rows][:, cols]
    np.testing.assert_array_equal(nearest(labels, (h, w), box), whole[box[0] : box[2], box[1] : box[3]])


def test_nearest_is_pillow_s() -> None:
    labels = np.random.default_rng(0).integers(0, 250, (37, 53), dtype=np.uint8)
    for size in [(74, 106), (90, 31), (20, 131), (11, 11)]:
        pillow = np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))
        np.testing.assert_array_equal(nearest(labels, size, (0, 0, *size)), pillow)


@settings(max_examples=60)
@given(H=side, W=side, h=side, w=side, data=st.data())
def test_a_resampled_crop_is_cut_from_the_resampled_image(H: int, W: int, h: int, w: int, data: st.DataObject) -> None:
    image = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    top, left = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    box = (top, left, data.draw(st.integers(top + 1, h)), data.draw(st.integers(left + 1, w)))
    whole = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR)).astype(int)
    crop = resample(image, (h, w), box).astype(int)
    assert np.abs(crop - whole[box[0] : box[2], box[1] : box[3]]).max() <= 1


def test_size_follows_mmcv() -> None:
    rng = np.random.default_rng(0)
    # worked by hand: 512x683 in (2048, 512) is limited by the short side, 300x1500 by the long one
    assert resized((512, 683), AugmentConfig(), 1.0) == (512, 683)
    assert resized((300, 1500), AugmentConfig(), 1.0) == (410, 2048)
    assert resized((360, 480), AugmentConfig(), 1.0) == (512, 683)
    assert resized((360, 480), AugmentConfig(resize_base=None), 0.5) == (180, 240)
    factors = [draw_scale(AugmentConfig(), rng) for _ in range(300)]
    assert min(factors) < 0.6
    assert max(factors) > 1.9
    assert min(factors) >= 0.5
    assert max(factors) <= 2


def test_crops_of_one_class_are_avoided() -> None:
    labels = np.zeros((64, 400), np.uint8)
    labels[:, 190:210:2] = 1
    image = painted(labels)

    def share(limit: float) -> float:
        config = AugmentConfig((64, 24), None, (1, 1), limit, 0, False)
        targets = [augment(image, labels, config, np.random.default_rng(k), **HALF)[1] for k in range(60)]
        return float(np.mean([(target == 0).mean() >= 0.75 for target in targets]))

    assert share(1) > 0.8
    assert share(0.75) < share(1) - 0.2


def test_ignored_pixels_are_no_class_of_the_share() -> None:
    # left half: ignored but for a few pixels of two classes, evenly; right half: one class
    labels = np.full((32, 64), 255, np.uint8)
    labels[:, :32][::4, ::4] = np.resize([1, 2], (8, 8))
    labels[:, 32:] = 0
    config = AugmentConfig((32, 32), None, (1, 1), 0.75, 0, False)
    picks = [augment(painted(labels), labels, config, np.random.default_rng(k), **HALF)[1] for k in range(40)]
    assert not any((pick == 0).all() for pick in picks[:5])
    assert sum((pick == 0).mean() < 0.5 for pick in picks) > 30


@settings(max_examples=60)
@given(
    pixel=st.tuples(*[st.integers(0, 255)] * 3), hue=st.integers(-18, 18), saturation=st.sampled_from([0.5, 1.0, 1.5])
)
def test_hue_and_saturation_are_hsv_s(pixel: tuple[int, ...], hue: int, saturation: float) -> None:
    planes = np.broadcast_to(np.array(pixel, np.float32)[:, None, None], (3, 70, 2)).copy()
    shift_colors(planes, hue=hue / 180, saturation=saturation)
    h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in pixel))
    expected = colorsys.hsv_to_rgb((h + hue / 180) % 1, min(s * saturation, 1), v)
    np.testing.assert_allclose(planes[:, 0, 0], np.array(expected) * 255, atol=2e-2)
    np.testing.assert_array_equal(planes, planes[:, :1, :1] + np.zeros_like(planes))


def test_distortion_is_drawn_by_half_and_bounded() -> None:
    rng = np.random.default_rng(0)
    image = np.random.default_rng(1).uniform(40, 200, (3, 8, 8)).astype(np.float32)
    untouched = 0
    for _ in range(400):
        planes = image.copy()
        distort(planes, draw_distortion(rng))
        assert planes.dtype == np.float32
        assert planes.min() >= -1e-3
        assert planes.max() <= 255
        untouched += np.array_equal(planes, image)
    # all four stay away once in 16 times
    assert 10 <= untouched <= 45


def test_brightness_and_contrast_ranges() -> None:
    gray = np.full((3, 1, 1), 100, np.float32)
    values = []
    for seed in range(2000):
        planes = gray.copy()
        distort(planes, draw_distortion(np.random.default_rng(seed)))
        values.append(float(planes[0, 0, 0]))
    # (100 ± 32) × (0.5 … 1.5); gray has neither hue nor saturation
    assert 34 <= min(values) < 45
    assert 180 < max(values) <= 198


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop": (0, 5)}, "augment.crop: "),
        ({"scale": (2.0, 0.5)}, "augment.scale: "),
        ({"max_class_share": 0.0}, "augment.max_class_share: 0.0 is not above 0"),
        ({"flip": 1.5}, "augment.flip: 1.5 is not a probability"),
        ({"resize_base": (0, 9)}, "augment.resize_base: "),
    ],
)
def test_check(fields: dict[str, Any], message: str) -> None:
    assert not AugmentConfig().violations()
    (said,) = AugmentConfig(**fields).violations()
    assert said.startswith(message)


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), height=side, width=side, flip=st.sampled_from([0.0, 1.0]))
def test_the_kernel_and_its_stand_in_give_one_sample(seed: int, height: int, width: int, flip: float) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[0, 0] = (255, 0, 0)
    labels = labels_of((height, width), seed)
    config = AugmentConfig(crop=(40, 50), resize_base=None, scale=(0.7, 1.5), flip=flip)
    samples = []
    for fast in (True, False):
        with mock.patch.object(augment_module, "has_numba", return_value=fast):
            samples.append(augment(image, labels, config, np.random.default_rng(seed), **HALF))
    np.testing.assert_allclose(samples[0][0], samples[1][0], atol=2e-4)
    np.testing.assert_array_equal(samples[0][1], samples[1][1])
