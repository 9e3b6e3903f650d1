"""torchvision's transforms by name and arguments: what is accepted, and what it does to image and labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from meanshifter.data.augment import augment
from meanshifter.data.augment_config import AugmentConfig
from meanshifter.data.transforms import apply_transforms
from meanshifter.errors import InputError
from meanshifter.training.parsing import config_of, parse_recipe

CROP = (32, 40)
FILL = (10, 20, 30)


def said(*specs: Any) -> list[str]:
    return AugmentConfig(crop=CROP, transforms=list(specs)).violations()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "RandomSolarise"}, ("[0].name", "'RandomSolarise'", "did you mean 'RandomSolarize'?")),
        ({"name": "RandomSolarize", "treshold": 3}, ("[0].treshold", "did you mean 'threshold'?")),
        ({"name": "RandomSolarize"}, ("[0].name", "RandomSolarize rejects its arguments", "threshold")),
        ({"threshold": 3}, ("[0]:", "not a name with arguments")),
        ("RandomSolarize", ("[0]:", "not a name with arguments")),
        ({"name": "RandomRotation", "degrees": 3, "interpolation": "cubic"}, ("[0].interpolation", "bilinear")),
        ({"name": "Resize", "size": [16, 16]}, ("[0].name", "Resize does not turn a crop of 32×40")),
        ({"name": "RandomResize", "min_size": 16, "max_size": 20}, ("[0].name", "32×40")),
        ({"name": "ToDtype", "dtype": "float32"}, ("[0].name", "ToDtype")),
        ({"name": "Normalize", "mean": [0.5], "std": [0.5]}, ("[0].name", "Normalize does not work on a uint8")),
        ({"name": "FiveCrop", "size": 8}, ("[0].name", "FiveCrop")),
        ({"name": "MixUp", "num_classes": 3}, ("[0].name", "MixUp")),
        ({"name": "AutoAugment"}, ("[0].name", "AutoAugment does not work", "Mask")),
        ({"name": "RandomApply", "transforms": [{"name": "RandomSolarise"}]}, (".name", "did you mean",)),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(spec: Any, words: tuple[str, ...]) -> None:
    (message,) = said(spec)
    assert message.startswith("augment.transforms[0]")
    assert all(word in message for word in words), message


def test_every_wrong_transform_is_listed() -> None:
    messages = said({"name": "A"}, {"name": "RandomInvert"}, {"name": "B"})
    assert [message.partition("]")[0] for message in messages] == ["augment.transforms[0", "augment.transforms[2"]


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "RandomSolarize", "threshold": 128},
        {"name": "RandomAffine", "degrees": 30, "shear": 20, "interpolation": "bilinear"},
        {"name": "RandomPerspective", "p": 1.0, "fill": 7},
        {"name": "ElasticTransform", "alpha": 20.0},
        {"name": "ColorJitter", "brightness": 0.5},
        {"name": "RandomApply", "p": 0.5, "transforms": [{"name": "RandomRotation", "degrees": 90}]},
    ],
    ids=lambda spec: spec["name"],
)
def test_labels_follow_and_the_outside_is_ignored(spec: dict[str, Any]) -> None:
    assert not said(spec)
    labels = np.zeros(CROP, np.uint8)
    labels[8:24, 10:30] = 1
    pixels = np.where(labels[..., None] == 1, 255, 64).repeat(3, 2).astype(np.uint8)
    moved = False
    for seed in range(4):
        found, target, outside = apply_transforms(
            [spec], pixels, labels, np.zeros(CROP, np.bool_), seed=seed, fill=FILL, ignore=255
        )
        again = apply_transforms(
            [spec], pixels, labels, np.zeros(CROP, np.bool_), seed=seed, fill=FILL, ignore=255
        )  # fmt: skip
        assert found.dtype == np.uint8
        assert all(np.array_equal(one, two) for one, two in zip((found, target, outside), again, strict=True))
        np.testing.assert_array_equal(target == 255, outside)
        assert set(np.unique(target)) <= {0, 1, 255}
        if spec["name"] in ("RandomAffine", "RandomPerspective", "ElasticTransform", "RandomApply"):
            inside = ~outside
            assert ((found[..., 0] > 160) == (target == 1))[inside].mean() > 0.9
        moved = moved or not np.array_equal(found, pixels)
    assert moved


def test_the_generators_of_torch_and_numpy_are_left_as_they_were() -> None:
    image, labels = np.zeros((40, 50, 3), np.uint8), np.zeros((40, 50), np.uint8)
    transforms: list[dict[str, Any]] = [{"name": "RandomPerspective"}, {"name": "ColorJitter", "hue": 0.2}]
    config = AugmentConfig(CROP, transforms=transforms, blur=1.0, noise=1.0)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    expected = torch.rand(2), np.random.random(2)  # noqa: NPY002
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    half = (0.5, 0.5, 0.5)
    assert not config.violations()
    augment(image, labels, config, np.random.default_rng(0), mean=half, std=half, ignore=255)
    assert torch.equal(torch.rand(2), expected[0])
    np.testing.assert_array_equal(np.random.random(2), expected[1])  # noqa: NPY002


def test_a_change_of_size_that_no_trial_showed_is_an_error() -> None:
    with pytest.raises(InputError, match="crop of 32×40"):
        apply_transforms(
            [{"name": "CenterCrop", "size": 8}],
            *(np.zeros((*CROP, 3), np.uint8), np.zeros(CROP, np.uint8), np.zeros(CROP, np.bool_)),
            seed=0,
            fill=FILL,
            ignore=255,
        )


def test_from_the_command_line_and_from_python() -> None:
    words = ["--augment.transforms", "[{name: RandomSolarize, threshold: 128}]", "--augment.rotation", "15"]
    config = parse_recipe("shapes", words)
    assert config.augment.transforms == [{"name": "RandomSolarize", "threshold": 128}]
    assert config.augment.rotation == 15
    again = config_of(None, "shapes", {"augment": {"transforms": config.augment.transforms, "rotation": 15}})
    assert again.to_dict()["augment"] == config.to_dict()["augment"]
    with pytest.raises(InputError, match=r"augment\.transforms\[0\]\.name: 'RandomFoo'"):
        parse_recipe("shapes", ["--augment.transforms", "[{name: RandomFoo}]"])
