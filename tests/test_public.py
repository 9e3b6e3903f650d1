"""The names of `import meanshifter as ms`, as README and docs use them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import meanshifter as ms
from meanshifter.data import Shapes
from meanshifter.training.parsing import config_of
from tests.conftest import ModelFactory

ENCODER = {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8}
TINY: dict[str, Any] = {"image_size": 32, "encoder_args": ENCODER}


def test_dir_lists_what_is_public_and_each_of_it_is_there() -> None:
    assert dir(ms) == sorted(ms.__all__)
    assert all(getattr(ms, name) is not None for name in ms.__all__)


def test_importing_it_imports_no_torch() -> None:
    code = "import sys, meanshifter; dir(meanshifter); print(bool({'torch', 'timm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_models_are_listed_by_pattern() -> None:
    assert ms.list_models("*pixel-s*") == [f"meanshifter-pixel-s{patch}" for patch in (16, 12, 8)]
    assert len(ms.list_models()) == 48


def test_classes_are_given_by_number_by_name_or_as_a_label_space() -> None:
    assert ms.create_model("segmenter-ti16", 3, **TINY).num_classes == 3
    named = ms.create_model("segmenter-ti16", classes=["sky", "road"], **TINY)
    assert named.label_space.names == ("sky", "road")
    assert ms.create_model("segmenter-ti16", 2, classes=named.label_space, **TINY).label_space == named.label_space
    for wrong in ({}, {"num_classes": 3, "classes": ["a", "b"]}, {"num_classes": named.label_space}):
        with pytest.raises(ms.InputError, match="num_classes: "):
            ms.create_model("segmenter-ti16", **wrong, **TINY)


@pytest.mark.parametrize("preset", ["segmenter-ti16", "meanshifter-pixel-ti16"])
@pytest.mark.parametrize("size", [(32, 32), (29, 43)])
def test_the_loss_of_a_model_knows_the_padding(preset: str, size: tuple[int, int]) -> None:
    model = ms.create_model(preset, 3, **TINY).eval()
    images, labels = torch.rand(2, 3, *size), torch.randint(0, 3, (2, *size))
    labels[0, :4] = 255
    logits, loss = model(images, labels=labels)
    stride = model.output_stride
    padded = (logits.shape[-2] * stride, logits.shape[-1] * stride)
    full = torch.nn.functional.interpolate(logits.double(), padded, mode="bilinear")[..., : size[0], : size[1]]
    expected = torch.nn.functional.cross_entropy(full, labels, ignore_index=255)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(model.loss(images, labels), loss)
    assert torch.equal(model(images), logits)


def test_a_model_predicts_evaluates_and_exports_itself(tiny_model: ModelFactory, tmp_path: Path) -> None:
    model = tiny_model(num_classes=Shapes().label_space.num_classes).eval()
    image = Shapes()[0].image
    found = model.predict(image, window=32, window_stride=32, short_side=None)
    settings: dict[str, Any] = {"window": 32, "window_stride": 32, "short_side": None}
    predictor = ms.Predictor(model, **settings)
    assert np.array_equal(found.labels, predictor(image).labels)
    result = model.evaluate(Shapes(length=1), **settings)
    assert result.mIoU == ms.evaluate(predictor, Shapes(length=1)).mIoU
    assert str(result) == result.table()
    assert callable(ms.export)
    with pytest.raises(ms.InputError, match=r"format: .*'tensorrt'"):
        model.export(tmp_path / "out", format="tensorrt")
    with pytest.raises(ms.InputError, match=r"format: .*'tensorrt'"):
        ms.export(model, tmp_path / "out", format="tensorrt")


class Wrapper(torch.nn.Module):
    """What DDP and Fabric do to a model."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module


def test_predictors_take_names_wrapped_and_compiled_models(tiny_model: ModelFactory, tmp_path: Path) -> None:
    model = tiny_model()
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    expected = ms.Predictor(model)(image).labels
    model.save(tmp_path / "model")
    compiled: Any = torch.compile(model)
    for given in (tmp_path / "model", str(tmp_path / "model"), Wrapper(model), compiled, Wrapper(compiled)):
        assert np.array_equal(ms.Predictor(given)(image).labels, expected)
    with pytest.raises(ms.InputError, match="model: Linear; expected a Segmenter"):
        ms.Predictor(torch.nn.Linear(2, 2))


def test_half_precision_models_are_read_in_their_own_arithmetic(tiny_model: ModelFactory) -> None:
    model = tiny_model()
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    expected = ms.Predictor(model)(image).labels
    predictor = ms.Predictor(model.bfloat16())
    assert predictor.precision == "bf16"
    assert (predictor(image).labels == expected).mean() > 0.9
    with pytest.raises(ms.InputError, match=r"precision: fp16.* bf16"):
        ms.Predictor(model, precision="fp16")


def test_several_images_and_tensors_are_segmented(tiny_model: ModelFactory) -> None:
    predictor = ms.Predictor(tiny_model())
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    one, two = predictor([image, torch.from_numpy(image[:20])])
    assert np.array_equal(one.labels, predictor(image).labels)
    assert two.labels.shape == (20, 50)
    several = predictor([image], mean_shift_layers=[0, 1])
    assert list(several[0]) == [0, 1]


def test_a_segmentation_is_an_array_and_has_a_picture(tiny_model: ModelFactory) -> None:
    found = ms.Predictor(tiny_model())(np.zeros((20, 30, 3), np.uint8))
    assert np.array_equal(np.asarray(found), found.labels)
    assert np.asarray(found, dtype=np.int64).dtype == np.int64
    assert found._repr_png_()[:4] == b"\x89PNG"


def test_samples_unpack_and_load_in_batches() -> None:
    data = ms.datasets.Shapes(length=4)
    image, labels = data[1]
    assert np.array_equal(image, data[1].image)
    assert np.array_equal(labels, data[1].labels)
    assert data[1].name == data.names[1]
    images, targets = next(iter(DataLoader(data, batch_size=2)))  # type: ignore[arg-type]
    assert images.shape == (2, *image.shape)
    assert torch.equal(targets[1], torch.from_numpy(labels))


def test_fine_tuning_begins_with_other_classes(tiny_model: ModelFactory, tmp_path: Path) -> None:
    model = tiny_model(num_classes=7)
    model.save(tmp_path)
    tuned = ms.load_model(tmp_path, num_classes=5)
    assert isinstance(tuned, ms.Segmenter)
    assert tuned.num_classes == 5
    assert tuned(torch.zeros(1, 3, 32, 32)).shape[1] == 5
    weights = model.state_dict()
    kept = [name for name, value in tuned.state_dict().items() if value.shape == weights[name].shape]
    assert kept
    assert all(torch.equal(tuned.state_dict()[name], weights[name]) for name in kept)
    assert ms.load_model(tmp_path, classes=["a", "b"]).label_space.names == ("a", "b")


def test_training_takes_fields_as_keywords(tmp_path: Path) -> None:
    trained = ms.train(
        recipe="shapes",
        out=tmp_path / "run",
        steps=1,
        batch_size=2,
        quiet=True,
        model={"encoder_args": ENCODER},
        augment={"crop": [32, 32]},
        evaluation={"limit": 1},
    )
    assert isinstance(ms.load_model(trained.path), ms.Segmenter)
    with pytest.raises(ms.InputError, match="optimiser"):
        ms.train(recipe="shapes", optimiser={"lr": 1})


def test_fields_of_the_data_are_keywords_too() -> None:
    config = config_of({"root": "photos", "workers": 0}, "folder", {"steps": 3})
    assert (config.data.root, config.data.workers, config.steps) == ("photos", 0, 3)
    assert config_of("photos", "folder", {}).data.root == "photos"
    with pytest.raises(ms.InputError, match=r"data\.worker\b.*data\.workers"):
        ms.train(data={"worker": 0}, recipe="shapes")
