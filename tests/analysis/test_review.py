"""Reviews: regions whose mask is probably wrong, images to label next, and what the command writes."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import meanshifter as ms
from meanshifter.analysis.review import Part, _varied, find_suspects, parts_of, rank_unlabeled, suspects_in
from meanshifter.analysis.review_page import review
from meanshifter.cli.main import main
from meanshifter.data import Shapes
from meanshifter.errors import InputError
from meanshifter.inference.predictor import Predictor
from meanshifter.model.decoder import LinearDecoder

SMALL = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def model() -> ms.Segmenter:
    torch.manual_seed(0)
    made = ms.create_model("segmenter-ti16", classes=Shapes().label_space, image_size=64, encoder_args=SMALL).eval()
    with torch.no_grad():
        assert isinstance(made.decoder, LinearDecoder)
        made.decoder.head.weight.normal_(std=0.5)
    return made


def test_probabilities_of_labels_are_those_of_their_classes(model: ms.Segmenter) -> None:
    image = np.random.default_rng(0).integers(0, 256, (300, 70, 3), dtype=np.uint8)  # more than one band of rows
    labels = np.random.default_rng(1).integers(0, model.num_classes + 1, (300, 70)).astype(np.uint8)
    labels[labels == model.num_classes] = 255
    reading: dict[str, Any] = {"window": 64, "window_stride": 48, "short_side": None, "flip": True}
    names = model.label_space.names
    expected = Predictor(model, confidence=["probability"], probabilities=names, **reading)(image)
    found, likely, own = Predictor(model, **reading).probabilities_of(image, labels)
    np.testing.assert_array_equal(found, expected.labels)
    np.testing.assert_array_equal(likely, expected.confidence["probability"])
    for k, name in enumerate(names):
        np.testing.assert_array_equal(own[labels == k], expected.probabilities[name][labels == k])
    assert np.isnan(own[labels == 255]).all()
    with pytest.raises(InputError, match=r"labels: \(3, 3\)"):
        Predictor(model, **reading).probabilities_of(image, labels[:3, :3])


def test_a_region_is_found_with_its_classes_size_and_certainty() -> None:
    prediction = np.ones((60, 80), np.uint8)
    labels = prediction.copy()
    labels[10:20, 30:50] = 2  # planted
    labels[:, 79] = 3  # a line, as along boundaries
    labels[40:50, 5:15] = 255
    likely, own = np.full(labels.shape, 0.8, np.float32), np.full(labels.shape, 0.1, np.float32)
    (found,) = suspects_in(labels, prediction, likely, own, ignore=255)
    assert (found.labeled, found.predicted, found.box) == (2, 1, (10, 20, 30, 50))
    assert (found.pixels, found.inside) == (200, 8 * 18)  # without a border of one pixel
    assert found.certainty == pytest.approx(math.log(8), rel=1e-6)
    assert found.score == pytest.approx(144 * (math.log(8) / math.log(1000)) ** 4, rel=1e-6)
    own[:] = 0
    (surer,) = suspects_in(labels, prediction, likely, own, ignore=255)
    assert surer.certainty == pytest.approx(math.log(800), rel=1e-6)


def test_planted_errors_come_first(model: ms.Segmenter) -> None:
    class Agreeing(Shapes):
        """Images whose masks are the model's own label maps, except in one region."""

        def __getitem__(self, index: int) -> Any:
            sample = super().__getitem__(index)
            labels = Predictor(model).label_maps(sample.image, [None])[0].copy()
            if index == 2:
                labels[8:24, 8:24] = (labels[8:24, 8:24] + 1) % model.num_classes
            return type(sample)(sample.image, labels, sample.name)

    dataset = Agreeing(split="val", length=4, size=64)
    suspects = find_suspects([Part(Predictor(model), dataset), Part(Predictor(model), dataset)])
    assert suspects
    assert {suspect.index for suspect in suspects} == {2, 6}  # through both parts
    assert all(8 <= suspect.box[0] < suspect.box[1] <= 24 for suspect in suspects)
    assert [s.score for s in suspects] == sorted((s.score for s in suspects), reverse=True)


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 8), classes=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_images_to_label_are_ordered_by_entropy_and_novelty(count: int, classes: int, seed: int) -> None:
    spread = np.random.default_rng(seed).random((count, classes)) ** 4
    order = list(_varied(spread))
    assert sorted(place for place, _ in order) == list(range(count))
    assert order[0] == (int(spread.sum(1).argmax()), 1.0)
    unit = spread / np.linalg.norm(spread, axis=1, keepdims=True)
    for number, (place, novelty) in enumerate(order[1:], 1):
        before = [earlier for earlier, _ in order[:number]]
        assert novelty == pytest.approx(1 - max(unit[before] @ unit[place]), abs=1e-9)


def test_a_copy_of_an_image_is_labeled_last(model: ms.Segmenter, tmp_path: Path) -> None:
    rng, paths = np.random.default_rng(0), []
    for number in range(4):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(paths[-1])
    first = rank_unlabeled(Predictor(model), paths)[0].path
    copied = tmp_path / "copy.png"
    copied.write_bytes(first.read_bytes())
    ranked = rank_unlabeled(Predictor(model), [*paths, copied])
    assert {ranked[0].path, ranked[-1].path} == {first, copied}
    assert ranked[-1].novelty == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="images: 0"):
        rank_unlabeled(Predictor(model), [])


def test_the_command_writes_page_and_tables(
    model: ms.Segmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save(tmp_path / "model")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(pictures / "black.png")
    words = ["data", "review", str(tmp_path / "model"), "shapes", "--limit", "3", "--out", str(tmp_path / "out")]
    assert main([*words, "--unlabeled", str(pictures), "--show", "2"]) == 0
    printed = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out" / "suspects.csv").read_text("utf-8").splitlines()))
    assert f"{len(rows):,} suspicious" in printed
    assert "in 3 images" in printed
    assert rows
    for row in rows:
        assert {row["labeled"], row["predicted"]} <= set(model.label_space.names)
        assert row["labeled"] != row["predicted"]
    page = (tmp_path / "out" / "review.html").read_text("utf-8")
    assert page.count("data:image/png") == 2 * 3 + 1
    assert 'src="http' not in page
    assert "black.png" in (tmp_path / "out" / "to_label.csv").read_text("utf-8")
    assert main(words) == 2
    assert "out/review.html: already exists" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert not (tmp_path / "out" / "to_label.csv").exists()  # of the earlier review


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--limit", "0"], "--limit: 0"),
        (["--show", "0"], "shown: 0"),
        (["--unlabeled", "nowhere"], "nowhere"),
    ],
)
def test_wrong_arguments_are_named(
    model: ms.Segmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    model.save(tmp_path / "model")
    assert main(["data", "review", str(tmp_path / "model"), "shapes", "--out", str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_is_reviewed_on_what_it_was_not_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields: dict[str, Any] = {"model": {"encoder_args": SMALL}, "steps": 1, "batch_size": 1, "evaluation.interval": 0}
    run = ms.train(None, recipe="shapes", out=str(tmp_path / "run"), quiet=True, **fields)
    (part,) = parts_of(tmp_path / "run")
    assert part.dataset.split == "val"
    assert len(part.dataset) == len(Shapes(split="val"))
    done = review([part], tmp_path / "out", limit=1, shown=1)
    assert done.page == tmp_path / "out" / "review.html"
    assert run is not None
    with pytest.raises(InputError, match=r"config\.yaml"):
        parts_of(tmp_path / "nowhere")
    words = ["data", "review", str(tmp_path / "run"), "--out", str(tmp_path / "x"), "--window", "32"]
    assert main(words) == 2
    assert "--window: only applies with a DATASET" in capsys.readouterr().err
    for option, value in (("--split", "test"), ("--root", "."), ("--data.images", "photos")):
        assert main([*words[:-2], option, value]) == 2
        assert f"{option}: given without DATASET" in capsys.readouterr().err
