"""What the augmentation adds to MMSegmentation's: labels follow the image, and each draw is a function of the seed."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meanshifter.data.augment import Crop, augment, blurred, compressed, cut, noisy
from meanshifter.data.augment_config import AugmentConfig
from meanshifter.data.crop_plan import DRAWS, draw, own_generator
from meanshifter.data.mixing import Partner, half_of_classes, mixed, rectangle
from meanshifter.data.resampling import rotate

HALF: Any = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "ignore": 255}
PLAIN = AugmentConfig((48, 64), None, (1, 1), 1, 0, False)
GEOMETRY: dict[str, Any] = {
    "aspect": (0.5, 2.0), "rotation": 60.0, "vertical_flip": 0.5, "quarter_turns": 0.75, "scale": (0.7, 1.6),
}  # fmt: skip
ON: dict[str, Any] = {
    "aspect": (0.5, 2.0), "rotation": 60.0, "vertical_flip": 1.0, "quarter_turns": 1.0, "blur": 1.0, "noise": 1.0,
    "jpeg": 1.0, "erasing": 1.0, "transforms": [{"name": "RandomInvert", "p": 0.5}],
}  # fmt: skip


def scene(H: int, W: int, seed: int = 0, block: int = 16) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """An image that shows its labels, blocks of 9 classes: red is 20 × the class + 40."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 9, (H // block + 1, W // block + 1), dtype=np.uint8)
    labels = np.repeat(np.repeat(coarse, block, 0), block, 1)[:H, :W]
    return np.stack([labels * 20 + 40, 255 - labels, np.full_like(labels, 77)], 2), labels


def levels(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return (image * 0.5 + 0.5) * 255


def digest(*arrays: npt.NDArray[Any]) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def test_samples_of_earlier_recipes_have_not_changed() -> None:
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (90, 130, 3), dtype=np.uint8)
    labels = rng.integers(0, 9, (90, 130), dtype=np.uint8)
    config = AugmentConfig(crop=(48, 64), resize_base=None)
    plans = [draw(labels, config, np.random.default_rng((k, 3, 1)), ignore=255) for k in range(40)]
    text = "".join(repr((plan.size, plan.box, plan.mirrored, plan.distortion)) for plan in plans)
    assert hashlib.sha256(text.encode()).hexdigest()[:32] == "7fc8542c42fa66f7da49ede5983de3d1"
    parts = []
    for k in range(10):
        plain = replace(config, photometric_distortion=False)
        crop, target = augment(image, labels, plain, np.random.default_rng((k, 3, 1)), **HALF)
        parts += [np.rint(levels(crop)).astype(np.uint8), target]
    assert digest(*parts)[:32] == "6f18ccc9275b8e01dcef664e73b4367e"


@settings(max_examples=60)
@given(H=st.integers(20, 150), W=st.integers(20, 150), seed=st.integers(0, 9999), data=st.data())
def test_labels_follow_the_image(H: int, W: int, seed: int, data: st.DataObject) -> None:
    fields = {name: value for name, value in GEOMETRY.items() if data.draw(st.booleans(), label=name)}
    image, labels = scene(H, W, seed)
    out, target = augment(image, labels, replace(PLAIN, flip=0.5, **fields), np.random.default_rng(seed), **HALF)
    assert out.shape == (3, 48, 64)
    filled = target != 255
    assert (out[:, ~filled] == 0).all(), "what is outside of the image is 0 after normalization"
    off = levels(out[0])[filled] - (target[filled].astype(float) * 20 + 40)
    # colors are mixed along edges only, which are 16 pixels apart before the scene is squeezed, and on both sides
    assert (np.abs(off) < 1.5).mean() > 0.5
    assert np.abs(off).mean() < 20


@pytest.mark.parametrize("angle", [0.01, 17.0, 45.0, 90.0, -133.0])
@pytest.mark.parametrize("stretch", [0.3, 0.8, 1.0, 2.1])
def test_a_rotation_leaves_no_shift_between_image_and_labels(angle: float, stretch: float) -> None:
    """A shift by half a pixel would make the errors along opposite edges differ."""
    disc = np.hypot(*(np.indices((200, 240)) - [[[99.5]], [[119.5]]])) < 60
    labels = disc.astype(np.uint8)
    size = round(200 * stretch), round(240 * stretch)
    shape, fill = (round(160 * stretch), round(160 * stretch)), (0, 0, 0)
    box = (size[0] // 2 - shape[0] // 2, size[1] // 2 - shape[1] // 2)
    pixels, target, outside = rotate(
        labels[:, :, None].repeat(3, 2) * np.uint8(200),
        *(labels, size, (*box, box[0] + shape[0], box[1] + shape[1]), angle, shape),
        fill=fill,
        ignore=255,
    )
    off = pixels[..., 0].astype(float) / 200 - (target == 1)
    y, x = np.indices(shape)
    inner = ~outside
    assert (off != 0).sum() < 0.2 * inner.sum()
    radius = 60 * stretch
    for coordinates in (y - (shape[0] - 1) / 2, x - (shape[1] - 1) / 2):
        # a shift of the picture by d pixels moves its first moment by its area times d
        moment = (off * coordinates)[inner].sum() / (np.pi * radius**2)
        assert abs(moment) < 0.15


def test_a_rotation_by_a_right_angle_is_a_quarter_turn() -> None:
    image, labels = scene(60, 60)
    pixels, target, outside = rotate(
        image, labels, (60, 60), (0, 0, 60, 60), 90.0, (60, 60), fill=(0, 0, 0), ignore=255
    )
    np.testing.assert_array_equal(target[1:-1, 1:-1], np.rot90(labels)[1:-1, 1:-1])
    off = pixels[1:-1, 1:-1].astype(int) - np.rot90(image)[1:-1, 1:-1]
    assert set(np.unique(off)) <= {-1, 0}, "Pillow cuts what lies between two levels"
    assert not outside[1:-1, 1:-1].any()


def test_flips_and_turns_are_those_of_the_plain_crop() -> None:
    image, labels = scene(48, 48)
    square = replace(PLAIN, crop=(48, 48))
    plain = augment(image, labels, square, np.random.default_rng(0), **HALF)
    flipped = augment(image, labels, replace(square, vertical_flip=1.0), np.random.default_rng(0), **HALF)
    np.testing.assert_array_equal(flipped[1], plain[1][::-1])
    np.testing.assert_allclose(flipped[0], plain[0][:, ::-1], atol=1e-6)
    seen = set()
    for seed in range(12):
        turned = augment(image, labels, replace(square, quarter_turns=1.0), np.random.default_rng(seed), **HALF)
        (turns,) = (k for k in (1, 2, 3) if np.array_equal(turned[1], np.rot90(plain[1], k)))
        np.testing.assert_allclose(turned[0], np.rot90(plain[0], turns, (1, 2)), atol=1e-6)
        seen.add(turns)
    assert seen == {1, 2, 3}


def test_16_bit_labels_go_through_everything() -> None:
    image, labels = scene(80, 90)
    config = replace(PLAIN, **{**ON, "transforms": [{"name": "RandomRotation", "degrees": 30}]})
    out = augment(image, labels.astype(np.uint16) + 300, config, np.random.default_rng(0), **{**HALF, "ignore": 65535})
    assert out[1].dtype == np.uint16
    assert set(np.unique(out[1])) <= {*range(300, 309), 65535}


@pytest.mark.parametrize("name", ON)
def test_one_more_augmentation_changes_no_other_draw(name: str) -> None:
    _, labels = scene(120, 130)
    base = AugmentConfig(crop=(40, 50), resize_base=None, max_class_share=1)
    for seed in range(5):
        before, after = (
            draw(labels, config, np.random.default_rng(seed), ignore=255)
            for config in (base, replace(base, **{name: ON[name]}))
        )
        assert before.mirrored == after.mirrored
        assert before.distortion == after.distortion
    with_all = replace(base, **ON)
    without = replace(with_all, **{name: getattr(AugmentConfig(), name)})
    for seed in range(5):
        one, other = (draw(labels, config, np.random.default_rng(seed), ignore=255) for config in (with_all, without))
        fields = {"rotation": "angle", "vertical_flip": "upside_down", "quarter_turns": "turns", "erasing": "erased"}
        for setting, field in fields.items():
            assert setting == name or getattr(one, field) == getattr(other, field)


def test_every_draw_has_a_generator_of_its_own_that_leaves_the_shared_one_alone() -> None:
    rng, untouched = np.random.default_rng((1, 2, 1)), np.random.default_rng((1, 2, 1))
    firsts = {own_generator(rng, name).random() for name in DRAWS}
    assert len(firsts) == len(DRAWS)
    rng.random()
    assert own_generator(rng, "noise").random() in firsts
    assert rng.random() == (untouched.random(), untouched.random())[1]


def test_erased_pixels_are_ignored_and_0() -> None:
    image, labels = scene(48, 64)
    areas = []
    for seed in range(60):
        config = replace(PLAIN, erasing=0.5, erasing_area=(0.1, 0.3))
        out, target = augment(image, labels, config, np.random.default_rng(seed), **HALF)
        erased = target == 255
        assert (out[:, erased] == 0).all()
        np.testing.assert_array_equal(target[~erased], labels[~erased])
        rows, cols = erased.any(1).sum(), erased.any(0).sum()
        assert erased.sum() == rows * cols, "a rectangle"
        areas.append(erased.mean())
    hit = [area for area in areas if area]
    assert 15 < len(hit) < 45
    assert min(hit) > 0.08
    assert max(hit) < 0.32


def test_blur_noise_and_jpeg_change_the_image_alone() -> None:
    image, labels = scene(48, 64)
    plain = augment(image, labels, PLAIN, np.random.default_rng(0), **HALF)
    for name in ("blur", "noise", "jpeg"):
        fields: dict[str, Any] = {name: 1.0}
        out, target = augment(image, labels, replace(PLAIN, **fields), np.random.default_rng(0), **HALF)
        np.testing.assert_array_equal(target, plain[1])
        off = levels(out) - levels(plain[0])
        assert np.abs(off).max() > 2, name
        assert abs(off.mean()) < 1.5, "no shift of color"


def test_blur_noise_and_jpeg_have_the_strength_that_is_asked_for() -> None:
    column = np.zeros((81, 81, 3), np.uint8)
    column[:, 41:] = 255
    step = np.diff(blurred(column, 3.0)[40, :, 0].astype(float)) / 255
    at = np.arange(80)
    mean = (step * at).sum()
    assert np.sqrt((step * (at - mean) ** 2).sum()) == pytest.approx(3.0, rel=0.1)
    gray = np.full((64, 64, 3), 128, np.uint8)
    grain = noisy(gray, 9.0, np.random.default_rng(0)).astype(float)
    assert grain.std() == pytest.approx(9, rel=0.05)
    assert abs(grain.mean() - 128) < 0.5
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    worse, better = (np.abs(compressed(photo, quality).astype(int) - photo).mean() for quality in (10, 95))
    assert worse > better


def crop_of(labels: npt.NDArray[np.uint8], color: int) -> Crop:
    return Crop(np.full((*labels.shape, 3), color, np.uint8), labels, labels == 255)


def partner(how: Any, seed: int = 0, rare_class: int | None = None) -> Partner:
    return Partner(how, 0, rare_class, np.random.default_rng(seed), np.random.default_rng(seed))


def test_copy_paste_pastes_the_pixels_of_its_class_alone() -> None:
    ours, theirs = scene(48, 64, 1)[1].copy(), scene(48, 64, 2)[1].copy()
    ours[:, 50:] = 255
    crop, other = crop_of(ours, 10), crop_of(theirs, 200)
    k = int(theirs[20, 20])
    out = mixed(crop, other, partner("copy_paste", rare_class=k), 255)
    pasted = (theirs == k) & (ours != 255)
    assert pasted.any()
    np.testing.assert_array_equal(out.pixels[..., 0] == 200, pasted)
    np.testing.assert_array_equal(out.labels, np.where(pasted, k, ours))
    np.testing.assert_array_equal(out.outside, ours == 255)


def test_classmix_pastes_half_of_the_classes() -> None:
    ours, theirs = scene(48, 64, 1)[1], scene(48, 64, 2)[1].copy()
    theirs[:5] = 255
    for seed in range(10):
        out = mixed(crop_of(ours, 10), crop_of(theirs, 200), partner("classmix", seed), 255)
        pasted = out.pixels[..., 0] == 200
        present = set(np.unique(theirs)) - {255}
        chosen = set(np.unique(theirs[pasted]))
        assert len(chosen) == (len(present) + 1) // 2
        np.testing.assert_array_equal(pasted, np.isin(theirs, list(chosen)))
        np.testing.assert_array_equal(out.labels, np.where(pasted, theirs, ours))
    assert not half_of_classes(crop_of(np.full((4, 4), 255, np.uint8), 0), np.random.default_rng(0), 255).any()


def test_cutmix_pastes_a_rectangle() -> None:
    ours, theirs = scene(48, 64, 1)[1], scene(48, 64, 2)[1].copy()
    theirs[:, 60:] = 255
    shares = []
    for seed in range(200):
        out = mixed(crop_of(ours, 10), crop_of(theirs, 200), partner("cutmix", seed), 255)
        pasted = out.pixels[..., 0] == 200
        np.testing.assert_array_equal(out.labels, np.where(pasted, theirs, ours))
        assert not pasted[:, 60:].any(), "nothing is replaced by padding"
        assert pasted.sum() == pasted.any(0).sum() * pasted.any(1).sum()
        shares.append(rectangle((48, 64), np.random.default_rng(seed)).mean())
    assert 0.2 < np.mean(shares) < 0.5


def test_a_rare_crop_shows_its_class() -> None:
    labels = np.zeros((300, 400), np.uint8)
    labels[250:253, 17:20] = 3
    image = np.repeat(labels[..., None], 3, 2)
    for seed in range(30):
        config = replace(PLAIN, scale=(0.8, 2.0), rotation=30.0, aspect=(0.8, 1.25), quarter_turns=0.5)
        rng = np.random.default_rng(seed)
        plan = draw(labels, config, rng, ignore=255, rare_class=3)
        crop = cut(image, labels, plan, config.crop, mean=HALF["mean"], ignore=255)
        assert (crop.labels == 3).any()
    absent = draw(labels, PLAIN, np.random.default_rng(0), ignore=255, rare_class=7)
    assert absent == draw(labels, PLAIN, np.random.default_rng(0), ignore=255)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *(({name: 1.5}, f"augment.{name}: 1.5 is not a probability") for name in ("vertical_flip", "quarter_turns")),
        *(({name: -0.1}, f"augment.{name}: -0.1 is not") for name in ("rare_crops", "copy_paste", "blur", "noise")),
        *(({name: 2.0}, f"augment.{name}: 2.0 is not") for name in ("cutmix", "classmix", "jpeg", "erasing")),
        ({"cutmix": 0.6, "classmix": 0.6}, "augment.cutmix: 0.6 and augment.classmix 0.6"),
        ({"rotation": 181.0}, "augment.rotation: 181.0 is not an angle"),
        ({"aspect": (0.0, 1.0)}, "augment.aspect: (0.0, 1.0) is not"),
        ({"aspect": (2.0, 1.0)}, "augment.aspect: (2.0, 1.0) is not"),
        ({"blur_sigma": (0.0, 1.0)}, "augment.blur_sigma: "),
        ({"noise_std": (3.0, 1.0)}, "augment.noise_std: "),
        ({"jpeg_quality": (0, 50)}, "augment.jpeg_quality: "),
        ({"jpeg_quality": (50, 101)}, "augment.jpeg_quality: "),
        ({"erasing_area": (0.1, 1.1)}, "augment.erasing_area: "),
        ({"rotation": float("nan")}, "augment.rotation: nan"),
        ({"blur_sigma": (0.5, 1.0)}, "augment.blur_sigma: (0.5, 1.0) has no effect; set blur above 0"),
        ({"jpeg_quality": (10, 20)}, "augment.jpeg_quality: (10, 20) has no effect; set jpeg above 0"),
    ],
)
def test_values_outside_their_range_are_refused(fields: dict[str, Any], message: str) -> None:
    (said,) = AugmentConfig(**fields).violations()
    assert said.startswith(message)
