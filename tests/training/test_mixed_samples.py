"""Samples of several images, and of rare classes: functions of (seed, position), whoever makes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from meanshifter.data.augment_config import AugmentConfig
from meanshifter.data.catalog.shapes import Shapes
from meanshifter.data.class_pixels import RareClasses, class_pixels
from meanshifter.data.datasets import Cached, Dataset, Sample
from meanshifter.data.labels import Labels, LabelSpace
from meanshifter.errors import InputError
from meanshifter.training.data import batches, class_weights, gpu_cached_batches
from meanshifter.training.parsing import config_of
from meanshifter.training.sections import LossConfig
from meanshifter.training.stream import SampleStream

HALF: Any = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
MIXING: dict[str, Any] = {"copy_paste": 0.7, "cutmix": 0.4, "classmix": 0.4, "rare_crops": 0.5}
ALL = AugmentConfig(
    crop=(32, 40), resize_base=None, rotation=20.0, aspect=(0.8, 1.25), vertical_flip=0.5, quarter_turns=0.5, blur=0.5,
    noise=0.5, jpeg=0.5, erasing=0.5, transforms=[{"name": "RandomPerspective"}], **MIXING,
)  # fmt: skip
SHAPES = Shapes(split="train", length=8, size=64)


class Painted(Dataset):
    """Images whose color says their number and class: red 20 × the class, green 12 × the image."""

    name, split = "painted", "train"

    def __init__(self, count: int = 6) -> None:
        self.label_space = LabelSpace(tuple("abcde"))
        self.read: list[int] = []
        self._count = count

    @property
    def names(self) -> list[str]:
        return [f"image {k}" for k in range(self._count)]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        self.read.append(index)
        labels = self.read_labels(index)
        planes = [labels * 20, np.full_like(labels, 12 * index), np.zeros_like(labels)]
        image: npt.NDArray[np.uint8] = np.stack(planes, 2).astype(np.uint8)
        return Sample(image, labels, self.names[index])

    def read_labels(self, index: int) -> Labels:
        labels = np.zeros((80, 90), np.uint8)
        labels[40:] = 1
        labels[:, 60:] = 2
        if index == 3:  # the rarest class is in one image only
            labels[5:9, 5:9] = 4
        return labels


def stream(config: AugmentConfig = ALL, seed: int = 0, dataset: Dataset = SHAPES) -> SampleStream:
    return SampleStream(dataset, config, seed, **HALF)


def test_samples_depend_on_seed_and_position_alone() -> None:
    first = [stream().sample(position) for position in range(8)]
    ours = stream()
    for position in reversed(range(8)):
        again = ours.sample(position)
        assert torch.equal(again[0], first[position][0])
        assert torch.equal(again[1], first[position][1])
    assert not torch.equal(stream(seed=1).sample(0)[0], first[0][0])
    made = [(batch[0], batch[1]) for batch in batches(stream(), batch_size=4, start=0, stop=2, workers=2)]
    assert torch.equal(torch.cat([images for images, _ in made]), torch.stack([sample[0] for sample in first]))
    assert torch.equal(torch.cat([labels for _, labels in made]), torch.stack([sample[1] for sample in first]))


@pytest.mark.parametrize("field", MIXING)
def test_labels_follow_the_pixels_of_both_images(field: str) -> None:
    """Every labeled pixel shows the color of its class, from whatever image it comes."""
    data = Painted()
    config = AugmentConfig((64, 64), None, (1, 1), 1, 0.5, False)
    setattr(config, field, 1.0)
    images = set()
    for position in range(12):
        image, labels, _ = stream(config, dataset=data).sample(position)
        red, green, _ = np.rint((image.numpy() * 0.5 + 0.5) * 255)
        valid = labels.numpy() != 255
        np.testing.assert_array_equal(red[valid], labels.numpy()[valid].astype(int) * 20)
        images.add(len(np.unique(green[valid])))
    assert max(images) == (1 if field == "rare_crops" else 2)


def test_rare_classes_are_drawn_more_often() -> None:
    data = Painted(20)
    base = AugmentConfig((32, 32), None, (1, 1), 1, 0.5, False)

    def share(config: AugmentConfig) -> float:
        ours = stream(config, dataset=data)
        return float(np.mean([(ours.sample(position)[1] == 4).any() for position in range(200)]))

    plain, half, always = share(base), share(replace(base, rare_crops=0.5)), share(replace(base, rare_crops=1.0))
    assert plain < 0.05
    assert plain < half - 0.1
    assert half < always - 0.1
    pixels = class_pixels(data)
    rare = RareClasses(pixels)
    total = pixels.sum(0)
    assert rare.probabilities[3] == 0, "absent"
    assert rare.probabilities[4] / rare.probabilities[0] == pytest.approx((total[0] / total[4]) ** 0.5)
    rng = np.random.default_rng(0)
    drawn = [rare.draw(rng) for _ in range(200)]
    assert all(pixels[image, k] for image, k in drawn)


def test_masks_are_counted_once_and_for_the_class_weights_too() -> None:
    class Counted(Painted):
        counted = 0

        def read_labels(self, index: int) -> Labels:
            Counted.counted += 1
            return super().read_labels(index)

    data = Counted()
    class_weights(data, LossConfig(class_weight_power=0.5))
    stream(dataset=data)
    assert Counted.counted == len(data)
    given = SampleStream(Painted(), ALL, 0, pixels=class_pixels(data), **HALF)
    assert torch.equal(given.sample(3)[0], stream(dataset=Painted()).sample(3)[0])


def test_partners_come_from_the_cache() -> None:
    data = Painted()
    ours = stream(dataset=Cached(data, 10**7))
    for position in range(30):
        ours.sample(position)
    assert sorted(data.read) == sorted(set(data.read))


def test_messages_name_both_images() -> None:
    ours = stream(replace(ALL, cutmix=1.0, classmix=0.0, copy_paste=0.0), dataset=Painted())
    assert all(" mixed with image " in ours.files(position) for position in range(5))
    assert "mixed" not in stream(AugmentConfig((32, 32), None), dataset=Painted()).files(0)


def test_rare_classes_of_masks_without_labels() -> None:
    with pytest.raises(InputError, match=r"augment\.rare_crops.*no training image has a labeled pixel"):
        RareClasses(np.zeros((3, 5), np.int64))


def test_batches_made_on_the_device_are_those_of_the_workers() -> None:
    config = AugmentConfig(
        crop=(32, 40), resize_base=None, photometric_distortion=False, aspect=(0.6, 1.6), vertical_flip=0.5,
        quarter_turns=0.7, erasing=0.5, rare_crops=0.5,
    )  # fmt: skip
    assert not config.host_only
    span: dict[str, Any] = {"batch_size": 8, "start": 0, "stop": 2}
    ours = list(batches(stream(config), workers=0, **span))
    device = list(gpu_cached_batches(stream(config), torch.device("cpu"), **span))
    for one, other in zip(ours, device, strict=True):
        assert torch.equal(one[1].long(), other[1])
        assert one[2] == other[2]
        assert (one[0] - other[0]).abs().max() <= 1.6 / 255 / 0.5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, 0.5) for name in ("copy_paste", "cutmix", "classmix", "blur", "noise", "jpeg")),
        *(("rotation", 10), ("transforms", [{"name": "RandomInvert"}])),
    ],
)
def test_what_the_device_cannot_do_is_refused(field: str, value: Any) -> None:
    fields = {"data.gpu_cache": True, "augment": {field: value, "crop": [32, 32]}}
    with pytest.raises(InputError, match=rf"data\.gpu_cache: true.*augment\.{field}"):
        config_of(None, "shapes", fields)
    config_of(None, "shapes", {**fields, "data.gpu_cache": False})
