"""The stream of samples: what (seed, position) decides, and how processes share it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from meanshifter.data import Shapes
from meanshifter.data.augment import augment
from meanshifter.data.augment_config import AugmentConfig
from meanshifter.training.data import batches, class_weights, positions
from meanshifter.training.sections import LossConfig
from meanshifter.training.stream import SampleStream

LENGTH, MEAN, STD = 12, (0.1, 0.4, 0.7), (0.2, 0.3, 0.5)
CONFIG = AugmentConfig(crop=(48, 64), resize_base=None)


def stream(seed: int = 0) -> SampleStream:
    return SampleStream(Shapes(split="train", length=LENGTH), CONFIG, seed, mean=MEAN, std=STD)


def test_every_epoch_is_a_shuffle_of_its_own() -> None:
    epochs = [[stream(seed).place(epoch * LENGTH + k) for k in range(LENGTH)] for seed in (0, 1) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(LENGTH)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_draws_belong_to_the_position_and_the_seed() -> None:
    draws = [stream(seed).generator(position).random() for seed in (0, 1) for position in range(20)]
    assert len(set(draws)) == len(draws)
    assert stream().generator(7).random() == draws[7]


def test_a_sample_is_the_augmented_image_of_its_place() -> None:
    ours, data = stream(), Shapes(split="train", length=LENGTH)
    for position in (0, LENGTH + 3):
        sample = data[ours.place(position)]
        image, labels = augment(
            sample.image, sample.labels, CONFIG, ours.generator(position), mean=MEAN, std=STD, ignore=255
        )
        found = ours.sample(position)
        np.testing.assert_array_equal(found[0].numpy(), image)
        np.testing.assert_array_equal(found[1].numpy(), labels)
        assert found[2] == sample.name


@pytest.mark.parametrize(("count", "batch_size"), [(1, 6), (2, 3), (3, 2)])
def test_processes_share_a_step_without_overlap(count: int, batch_size: int) -> None:
    for number in range(3):
        shares = [list(positions(number, batch_size, (rank, count))) for rank in range(count)]
        assert [place for share in shares for place in share] == list(range(6 * number, 6 * number + 6))


def test_batches_start_and_stop_where_they_are_asked_to() -> None:
    def names(**place: Any) -> list[list[str]]:
        return [batch[2] for batch in batches(stream(), batch_size=2, workers=0, **place)]

    whole = names(start=0, stop=9)
    assert [name for batch in whole for name in batch] == [stream().sample(k)[2] for k in range(18)]
    assert names(start=4, stop=9) == whole[4:]
    assert names(start=0, stop=3) == whole[:3]


def test_a_batch_stacks_its_samples() -> None:
    images, labels, _ = next(iter(batches(stream(), batch_size=3, start=0, stop=1, workers=0)))
    for k in range(3):
        image, target, _ = stream().sample(k)
        assert torch.equal(images[k], image)
        assert torch.equal(labels[k].long(), target.long())


def test_class_weights_lift_rare_classes_and_keep_the_mean_over_pixels() -> None:
    shapes = Shapes(split="train", length=4)
    labels = np.stack([shapes[i].labels for i in range(4)])
    counts = torch.from_numpy(np.bincount(labels[labels != 255], minlength=7))
    share = counts.double() / counts.sum()
    weights = class_weights(shapes, LossConfig(class_weight_power=0.5))
    assert weights is not None
    assert (weights.double() * share).sum().item() == pytest.approx(1, rel=1e-4)
    present = share > 0
    expected = share[present].rsqrt()
    torch.testing.assert_close(
        (weights.double()[present] / weights.double()[present][0]), expected / expected[0], rtol=1e-4, atol=1e-6
    )
    assert class_weights(shapes, LossConfig()) is None
