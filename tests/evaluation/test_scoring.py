from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import meanshifter as ms
from meanshifter.data.datasets import Dataset, Sample
from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError
from meanshifter.evaluation import Result, confusion_matrix, evaluate, weights_hash

CLASSES = ("sky", "road", "tree")


class InMemory(Dataset):
    """Random images and masks."""

    name = "random"
    split = "val"

    def __init__(self, length: int = 3, names: tuple[str, ...] = CLASSES, damaged: int | None = None) -> None:
        self.label_space = LabelSpace(names)
        self.length, self.damaged = length, damaged
        self.threads: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{k}" for k in range(self.length))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        self.threads.add(threading.current_thread().name)
        if index == self.damaged:
            raise InputError(f"{index}.jpg: truncated; copy it again")
        rng = np.random.default_rng(index)
        height, width = 30 + index, 41
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        labels = rng.choice(np.array([0, 1, 255], np.uint8), (height, width))
        return Sample(image, labels, f"{index}")


def model(preset: str = "meanshifter-ti16", classes: tuple[str, ...] = CLASSES) -> ms.Segmenter:
    torch.manual_seed(0)
    small = {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8}
    made = ms.create_model(preset, classes=classes, image_size=32, encoder_args=small)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def test_scores_are_those_of_the_predictions_added_up() -> None:
    dataset = InMemory()
    predictor = ms.Predictor(model(), window=32, window_stride=24, short_side=None)
    result = evaluate(predictor, dataset)
    assert isinstance(result, Result)
    samples = [dataset[k] for k in range(3)]
    expected = sum(confusion_matrix(s.labels, predictor(s.image).labels, 3, ignore=255) for s in samples)
    np.testing.assert_array_equal(result.confusion, expected)
    assert result.confusion.sum() == sum((s.labels != 255).sum() for s in samples)
    assert set(result.per_class) == set(CLASSES)


def test_the_pixels_that_are_ignored_are_counted_once() -> None:
    dataset = InMemory()
    results = evaluate(
        ms.Predictor(model(), window=32, window_stride=24, short_side=None), dataset, mean_shift_layers=[0, 2]
    )
    ignored = sum(int(np.sum(sample.labels == 255)) for sample in dataset)
    assert [result.ignored for result in results.values()] == [ignored, ignored]
    assert f"{ignored:,} pixels" in results[0].table()
    assert results[0].to_dict()["ignored_pixels"] == ignored


def test_several_depths_agree_with_one_at_a_time() -> None:
    dataset, network = InMemory(), model()
    predictor = ms.Predictor(network, window=None, short_side=None)
    results = evaluate(predictor, dataset, mean_shift_layers=[0, None, 4])
    assert list(results) == [0, 1, 4]
    for layers, result in results.items():
        alone = evaluate(predictor, dataset, mean_shift_layers=layers)
        np.testing.assert_array_equal(result.confusion, alone.confusion)
        assert result.protocol == alone.protocol
        assert result.protocol.mean_shift_layers == layers
    assert not np.array_equal(results[0].confusion, results[4].confusion)


def test_a_sequence_of_one_gives_a_dictionary() -> None:
    assert list(evaluate(model(), InMemory(1), mean_shift_layers=[2])) == [2]


def test_the_predictors_own_depth_is_the_default() -> None:
    predictor = ms.Predictor(model(), short_side=None, mean_shift_layers=3)
    assert evaluate(predictor, InMemory(1)).protocol.mean_shift_layers == 3


def test_protocol_says_what_was_measured() -> None:
    network = model()
    result = evaluate(ms.Predictor(network, scales=(0.5, 1.0), flip=True, window=None), InMemory(), limit=2)
    protocol = result.protocol
    assert (protocol.dataset, protocol.split, protocol.images, protocol.images_in_split) == (
        "random",
        "val",
        2,
        3,
    )
    assert (protocol.window, protocol.window_stride, protocol.short_side, protocol.long_side) == (
        None,
        None,
        512,
        2048,
    )
    assert protocol.weights == weights_hash(network.state_dict())
    line = str(protocol)
    assert "\n" not in line
    for part in ("first 2 of 3", "whole image", "with flip", "scales 0.5, 1", "1 mean-shift layer;", "fp32"):
        assert part in line


def test_weights_hash_changes_with_any_weight_and_nothing_else() -> None:
    first, second = model(), model()
    assert weights_hash(first.state_dict()) == weights_hash(second.state_dict())
    with torch.no_grad():
        next(second.parameters()).view(-1)[0] += 1e-6
    assert weights_hash(first.state_dict()) != weights_hash(second.state_dict())
    assert weights_hash(first.half().state_dict()) != weights_hash(model().state_dict())


def test_a_checkpoint_of_another_class_count_is_refused() -> None:
    with pytest.raises(InputError, match="the model has 2 classes, but random val has 3"):
        evaluate(model(classes=("sky", "road")), InMemory())


def test_a_name_in_place_of_the_data_is_refused() -> None:
    with pytest.raises(InputError, match="dataset: 'scenes' is a name"):
        evaluate(model(), "scenes")  # type: ignore[call-overload]


def test_other_names_are_refused_and_unnamed_classes_agree() -> None:
    with pytest.raises(InputError, match="the model calls class 2 'car', but random val calls it 'tree'"):
        evaluate(model(classes=("sky", "road", "car")), InMemory(1))
    evaluate(model(classes=("Sky", "Road", "Tree")), InMemory(1))
    evaluate(model(classes=LabelSpace.unnamed(3).names), InMemory(1))


def test_reading_runs_in_other_threads_and_its_errors_arrive() -> None:
    dataset = InMemory(8)
    evaluate(model(), dataset)
    assert threading.current_thread().name not in dataset.threads
    with pytest.raises(InputError, match=r"5.jpg: truncated"):
        evaluate(model(), InMemory(8, damaged=5))


@pytest.mark.parametrize(("limit", "length", "message"), [(0, 3, "limit: 0 images"), (None, 0, "random val: 0 images")])
def test_nothing_to_score_is_refused(limit: int | None, length: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(model(), InMemory(length), limit=limit)
