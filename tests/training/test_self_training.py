"""Extra training data in the stream of samples, and self-training as two commands."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from meanshifter.analysis import preview
from meanshifter.data import Folder, Shapes
from meanshifter.data.augment_config import AugmentConfig
from meanshifter.data.class_pixels import class_pixels
from meanshifter.data.extra import Concatenated
from meanshifter.data.predictions import RECORD
from meanshifter.errors import InputError
from meanshifter.training import loop
from meanshifter.training.config import TrainConfig
from meanshifter.training.data import batches, class_weights, gpu_cached_batches, positions
from meanshifter.training.folds import cross_validate
from meanshifter.training.loop import train
from meanshifter.training.parsing import parse_recipe
from meanshifter.training.sections import DataConfig, LossConfig
from meanshifter.training.setup import prepare
from meanshifter.training.stream import Mix, SampleStream
from tests import commands

CONFIG = AugmentConfig(crop=(32, 48), resize_base=None)
HALF = (0.5, 0.5, 0.5)


def stream(mix: Mix | None, seed: int = 0) -> SampleStream:
    data = Concatenated([Shapes(split="train", length=5), Shapes(split="val", length=3)])
    return SampleStream(data, CONFIG, seed, mean=HALF, std=HALF, mix=mix)


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.001, 0.999), st.integers(0, 5), st.integers(0, 10**9))
def test_extra_samples_get_their_share_and_every_epoch_is_a_shuffle(
    first: int, extra: int, share: float, seed: int, start: int
) -> None:
    mix = Mix(first, extra, share)
    for count in (1, 8, 60):
        drawn = sum(mix.place(position, seed) >= first for position in range(start, start + count))
        assert abs(drawn - share * count) < 1 + 1e-9
    places = [mix.place(position, seed) for position in range(120)]
    for length, own in ((first, [p for p in places if p < first]), (extra, [p - first for p in places if p >= first])):
        epochs = [own[k : k + length] for k in range(0, len(own) - length + 1, length)]
        assert all(sorted(epoch) == list(range(length)) for epoch in epochs)


def test_a_decimal_share_is_exact_over_a_long_stream() -> None:
    drawn = sum(Mix(7, 3, 0.1).place(position, 0) >= 7 for position in range(10_000))
    assert drawn == 1_000


def test_the_order_depends_on_the_seed_and_extra_samples_have_one_of_their_own() -> None:
    mix = Mix(20, 20, 0.5)
    orders = [[mix.place(position, seed) for position in range(40)] for seed in (0, 1)]
    assert orders[0] != orders[1]
    assert [p for p in orders[0] if p < 20] != [p - 20 for p in orders[0] if p >= 20]


def test_without_extra_data_the_stream_is_the_one_of_the_data_alone() -> None:
    # the places of an earlier version, for seed 0 and 12 samples
    plain = SampleStream(Shapes(split="train", length=12), CONFIG, 0, mean=HALF, std=HALF)
    expected = [np.random.default_rng((0, epoch, 0)).permutation(12).tolist() for epoch in range(2)]
    assert [plain.place(position) for position in range(24)] == [place for epoch in expected for place in epoch]


@pytest.mark.parametrize("count", [2, 4])
def test_processes_and_the_cache_of_a_device_get_the_same_samples(count: int) -> None:
    mixed = stream(Mix(5, 3, 0.3))
    alone = [batch[2] for batch in batches(mixed, batch_size=4, start=0, stop=5, workers=0)]
    shares = [
        [batch[2] for batch in batches(mixed, batch_size=4 // count, start=0, stop=5, workers=0, share=(rank, count))]
        for rank in range(count)
    ]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == alone
    assert [mixed.sample(position)[2] for position in positions(2, 4, (0, 1))] == alone[2]
    device = torch.device("cpu")
    cached = gpu_cached_batches(mixed, device, batch_size=4, start=0, stop=5)
    for (_, labels, names), (_, expected, same) in zip(
        cached, batches(mixed, batch_size=4, start=0, stop=5, workers=0), strict=True
    ):
        assert names == same
        assert torch.equal(labels.int(), expected.int())


def test_rare_crops_keep_the_share_and_mixing_takes_from_the_training_data() -> None:
    mix, plain = Mix(5, 3, 0.4), stream(Mix(5, 3, 0.4))
    config = replace(CONFIG, rare_crops=1.0, copy_paste=1.0, cutmix=0.5, classmix=0.5)
    rare = SampleStream(plain.dataset, config, 0, mean=HALF, std=HALF, mix=mix)
    moved = 0
    for position in range(60):
        place, k = rare.chosen(position)
        if plain.place(position) >= 5:
            assert (place, k) == (plain.place(position), None)
        else:
            assert place < 5
            assert k is not None
            moved += place != plain.place(position)
        partners = rare._partners(rare.generator(position))
        assert len(partners) == 2
        assert all(partner.place < 5 for partner in partners)
    assert moved > 0
    counts = class_pixels(Shapes(split="train", length=5))
    given = SampleStream(plain.dataset, config, 0, mean=HALF, std=HALF, mix=mix, pixels=counts)
    assert [given.chosen(k) for k in range(20)] == [rare.chosen(k) for k in range(20)]


# Self-training of a folder: left half sky, right half road, so that a model of few steps is right about most of it.

NAMES = ("sky", "road")
RECIPE = """
data: {name: folder, workers: 0, cache: 10}
model:
  preset: segmenter-ti16
  encoder: vit_tiny_patch16_224
  encoder_args: {patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2}
augment: {crop: [32, 32], resize_base: null, photometric_distortion: false, max_class_share: 1.0}
optimizer: {name: adamw, lr: 1.0e-2, min_lr: 1.0e-4}
loss: {reduction: mean_valid, class_weight_power: 0.5}
steps: 4
batch_size: 4
log_every: 1
evaluation: {interval: 0, window: null, short_side: null}
"""


def draw(path: Path, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    labels = np.zeros((40, 48), np.uint8)
    labels[:, int(rng.integers(12, 36)) :] = 1
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = rng.integers(0, 60, (40, 48, 3))
    Image.fromarray((noise + 150 * labels[..., None]).astype(np.uint8)).save(path)
    return labels


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DIR with 4 training and 2 validation images, unlabeled/ with 6 images, and the recipe."""
    root = tmp_path_factory.mktemp("data")
    for split, count in (("train", 4), ("val", 2)):
        for k in range(count):
            labels = draw(root / "DIR" / "images" / split / f"{split}{k}.png", 10 * count + k)
            (root / "DIR" / "masks" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(root / "DIR" / "masks" / split / f"{split}{k}.png")
    (root / "DIR" / "classes.txt").write_text("\n".join(NAMES))
    for k in range(6):
        draw(root / "unlabeled" / f"u{k}.png", 100 + k)
    (root / "tiny.yaml").write_text(RECIPE)
    return root


@pytest.fixture(scope="module")
def pseudo(data: Path) -> Path:
    """The label maps of a teacher that was trained on DIR, with margins."""
    done = commands.run("train", "tiny.yaml", "--data.root", "DIR", "--out", "teacher", cwd=data)
    assert done.returncode == 0, done.stderr
    done = commands.run("predict", "teacher", "unlabeled", "--out", "pseudo", "--confidence", "margin", cwd=data)
    assert (done.returncode, done.stderr) == (0, "")
    return data / "pseudo"


def configured(data: Path, out: Path, **fields: Any) -> TrainConfig:
    config = parse_recipe(data / "tiny.yaml", ["--data.root", str(data / "DIR"), "--out", str(out)])
    return replace(config, data=replace(config.data, extra_train=[str(data / "pseudo")], **fields))


def test_self_training_is_two_more_commands(data: Path, pseudo: Path) -> None:
    assert commands.run("data", "check", "pseudo", cwd=data).returncode == 0
    margins = np.stack([np.asarray(Image.open(pseudo / "confidence" / "margin" / f"u{k}.png")) for k in range(6)])
    least = float(f"{np.median(margins) / 65535:.4f}")
    words = ("--data.extra_train", "[pseudo]", "--data.extra_share", "0.75", "--data.extra_min_confidence", least)
    done = commands.run("train", "tiny.yaml", "--data.root", "DIR", "--out", "student", *words, cwd=data)
    assert done.returncode == 0, done.stderr
    assert "4 training images and 6 extra (75% of the samples), 2 validation images" in done.stderr
    stored = yaml.safe_load((data / "student" / "config.yaml").read_text())["data"]
    assert (stored["extra_train"], stored["extra_min_confidence"]) == (["pseudo"], least)

    # what the student was trained on: three of four samples are pseudo labels, without their pixels below the margin
    config = configured(data, data / "unused", extra_share=0.75, extra_min_confidence=least)
    setup = prepare(config, resume=False)
    setup.run.release()
    mixed = setup.feed.stream
    names = Counter(mixed.sample(position)[2][0] for position in range(40))
    assert names == {"t": 10, "u": 30}
    for index in range(4, 10):
        sample = mixed.dataset[index]
        stored_map = np.asarray(Image.open(pseudo / f"{sample.name}.png"))
        low = np.asarray(Image.open(pseudo / "confidence" / "margin" / f"{sample.name}.png")) / 65535 < least
        np.testing.assert_array_equal(sample.labels, np.where(low, 255, stored_map))
    ignored = np.concatenate([mixed.dataset[index].labels.ravel() == 255 for index in range(4, 10)])
    assert ignored.mean() == pytest.approx(0.5, abs=0.01)
    weight = setup.learner.class_weight
    assert weight is not None
    expected = class_weights(Folder(data / "DIR", "train"), LossConfig(class_weight_power=0.5))
    assert expected is not None
    torch.testing.assert_close(weight.cpu(), expected)  # of the labels of the training data alone


def test_the_preview_shows_the_samples_of_the_mixed_stream(
    data: Path, pseudo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, shown = configured(data, tmp_path / "run", extra_share=0.75), list[str]()
    draw_pair = preview._pair

    def pair(position: int, name: str, *rest: Any) -> Any:
        shown.append(name)
        return draw_pair(position, name, *rest)

    monkeypatch.setattr(preview, "_pair", pair)
    assert preview.preview(config, tmp_path / "sheet.png", 8).is_file()
    setup = prepare(config, resume=False)
    setup.run.release()
    assert shown == [setup.feed.stream.sample(position)[2] for position in range(8)]
    assert sum(name.startswith("u") for name in shown) == 6


def test_a_killed_student_resumes_to_the_same_weights_and_only_with_the_same_pseudo_labels(
    data: Path, pseudo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = replace(configured(data, tmp_path / "whole", extra_min_confidence=0.1), save_every=1)
    train(whole, quiet=True)
    killed, take_step = replace(whole, out=str(tmp_path / "killed")), loop.take_step

    def dying(*args: Any, **options: Any) -> Any:
        if args[4] == 2:
            raise RuntimeError("killed")
        return take_step(*args, **options)

    monkeypatch.setattr(loop, "take_step", dying)
    with pytest.raises(RuntimeError, match="killed"):
        train(killed, quiet=True)
    monkeypatch.undo()
    changes: list[dict[str, Any]] = [
        {"extra_train": [], "extra_min_confidence": 0.0},
        {"extra_min_confidence": 0.2},
        {"extra_share": 0.4},
    ]
    for change in changes:
        with pytest.raises(InputError, match=f"data.{next(iter(change))}"):
            train(replace(killed, data=replace(killed.data, **change)), resume=True, quiet=True)
    listed = json.loads((pseudo / RECORD).read_text())
    fewer = {**listed, "images": dict(list(listed["images"].items())[1:])}
    (pseudo / RECORD).write_text(json.dumps(fewer))
    with pytest.raises(InputError, match="1 train image gone, such as 'u0'"):
        train(killed, resume=True, quiet=True)
    (pseudo / RECORD).write_text(json.dumps(listed))
    train(killed, resume=True, quiet=True)
    files = [tmp_path / run / "checkpoints" / "last" / "training.safetensors" for run in ("whole", "killed")]
    ours, theirs = map(load_file, files)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_of_a_version_without_extra_data_resumes(data: Path, tmp_path: Path) -> None:
    config = parse_recipe(data / "tiny.yaml", ["--data.root", str(data / "DIR"), "--out", str(tmp_path / "run")])
    train(config, quiet=True)
    path = tmp_path / "run" / "config.yaml"
    stored = yaml.safe_load(path.read_text())
    for field in ("extra_train", "extra_share", "extra_confidence", "extra_min_confidence"):
        del stored["data"][field]
    path.write_text(yaml.safe_dump(stored))
    assert train(config, resume=True, quiet=True).path == tmp_path / "run"


def test_pseudo_labels_of_validation_images_are_a_warning(data: Path, pseudo: Path, tmp_path: Path) -> None:
    images = data / "DIR" / "images" / "val"
    done = commands.run("predict", "teacher", images, "--out", tmp_path / "val", "--confidence", "margin", cwd=data)
    assert done.returncode == 0, done.stderr
    config = configured(data, tmp_path / "run")
    config.data.extra_train = [str(pseudo), str(tmp_path / "val")]
    with pytest.warns(UserWarning, match=r"2 of 2 images of .*val, such as .*val0\.png, are validation images"):
        prepare(config, resume=False).run.release()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"extra_share": 0.3}, "data.extra_share: 0.3, but data.extra_train is empty"),
        ({"extra_min_confidence": 0.3}, "data.extra_min_confidence: 0.3, but data.extra_train is empty"),
        ({"extra_train": ["x"], "extra_share": 1.0}, "data.extra_share: 1.0 must be between 0 and 1"),
        ({"extra_train": ["x"], "extra_min_confidence": 1.5}, "data.extra_min_confidence: 1.5 must be"),
    ],
)
def test_contradictory_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(TrainConfig(), data=DataConfig(**fields)).check()


def test_missing_confidence_stops_before_the_run_folder_is_written(data: Path, pseudo: Path, tmp_path: Path) -> None:
    config = configured(data, tmp_path / "run", extra_confidence="probability", extra_min_confidence=0.9)
    with pytest.raises(InputError, match=r"confidence/probability/u0\.png: missing"):
        train(config, quiet=True)
    assert not (tmp_path / "run").exists()


def test_folds_train_on_pseudo_labels_and_resume(data: Path, pseudo: Path, tmp_path: Path) -> None:
    config = configured(data, tmp_path / "cv")
    config = replace(config, data=replace(config.data, folds=2), steps=2)
    first = cross_validate(config, quiet=True)
    (tmp_path / "cv" / "fold1" / "out_of_fold.json").unlink()
    assert cross_validate(config, resume=True, quiet=True).to_dict() == first.to_dict()
    leaking = parse_recipe(
        data / "tiny.yaml",
        [
            *("--data.root", str(data / "DIR"), "--out", str(tmp_path / "leak"), "--data.folds", "2"),
            *("--data.fold", "0", "--data.extra_train", f"[{data / 'DIR'}]"),
        ],
    )
    with pytest.warns(UserWarning, match="2 of 4 images .* held-out fold"):
        prepare(leaking, resume=False).run.release()


def test_tokens_of_pseudo_labeled_images_are_cached(data: Path, pseudo: Path, tmp_path: Path) -> None:
    config = configured(data, tmp_path / "run", extra_min_confidence=0.1, cache=0)
    config = replace(
        config,
        optimizer=replace(config.optimizer, freeze="encoder"),
        augment=replace(config.augment, crop=(40, 48), scale=(1.0, 1.0)),
    )
    weights = []
    for kind in (None, "memory"):
        chosen = replace(config, out=str(tmp_path / str(kind)), data=replace(config.data, token_cache=kind))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # random weights
            train(chosen, quiet=True)
        weights.append(load_file(tmp_path / str(kind) / "checkpoints" / "last" / "model.safetensors"))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-5)
