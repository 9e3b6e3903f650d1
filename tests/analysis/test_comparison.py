from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

import meanshifter as ms
from meanshifter.analysis.compare import run_comparison, short_names, summary
from meanshifter.analysis.image_scores import Comparison, ImageScore, Scored, choose, find_images
from meanshifter.data.catalog.shapes import Shapes
from meanshifter.data.datasets import Folder
from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError
from meanshifter.evaluation.evaluate import evaluate
from meanshifter.inference.predictor import Predictor

SMALL = {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8}
COUNT = 9


def predictor(preset: str, seed: int, labels: LabelSpace | None = None) -> Predictor:
    torch.manual_seed(seed)
    space = Shapes().label_space if labels is None else labels
    model = ms.create_model(preset, classes=space, image_size=32, encoder_args=SMALL)
    for parameter in model.decoder.parameters():
        torch.nn.init.normal_(parameter)  # predictions of many classes
    return Predictor(model, window=None, short_side=None)


@pytest.fixture(scope="module")
def models() -> dict[str, Predictor]:
    return {"plain": predictor("segmenter-ti16", 0), "shifted": predictor("meanshifter-ti16", 1)}


@pytest.fixture(scope="module")
def compared(models: dict[str, Predictor], tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    out = tmp_path_factory.mktemp("compared") / "new" / "out"
    return run_comparison(models, Shapes(length=COUNT), out, num_images=2, depths=(0, 1, 3)), out


def document(out: Path) -> Any:
    return json.loads((out / "compare.json").read_text("utf-8"))


def image_scores(predictor: Predictor, dataset: Shapes, index: int) -> tuple[int, float]:
    """Wrong pixels and mIoU, computed from the two label maps alone, class by class."""
    sample = dataset[index]
    prediction = predictor(sample.image).labels
    counted = sample.labels != 255
    truth, found = sample.labels[counted], prediction[counted]
    scores = [
        ((truth == k) & (found == k)).sum() / ((truth == k) | (found == k)).sum()
        for k in set(truth.tolist())
        if (truth == k).mean() >= 0.001
    ]
    return int((truth != found).sum()), 100 * float(np.mean(scores))


def test_scores_are_those_of_evaluate_and_of_each_image_alone(
    models: dict[str, Predictor], compared: tuple[Comparison, Path]
) -> None:
    data, written = Shapes(length=COUNT), document(compared[1])
    for entry, (name, model) in zip(written["models"], models.items(), strict=True):
        assert entry.pop("name") == name
        assert entry == json.loads(json.dumps(evaluate(model, data).to_dict()))
        assert entry["protocol"]["images"] == COUNT
    assert [image["name"] for image in written["images"]] == list(data.names)
    for index, image in enumerate(written["images"]):
        for name, model in models.items():
            wrong, miou = image_scores(model, data, index)
            assert image["wrong"][name] == wrong
            assert image["mIoU"][name] == pytest.approx(miou)
        assert image["labeled"] == (data[index].labels != 255).sum()
        assert image["difference"] == image["wrong"]["plain"] - image["wrong"]["shifted"]


def test_the_images_shown_are_those_of_an_independent_ranking(
    models: dict[str, Predictor], compared: tuple[Comparison, Path]
) -> None:
    data = Shapes(length=COUNT)
    gain = {
        data.names[i]: image_scores(models["plain"], data, i)[0] - image_scores(models["shifted"], data, i)[0]
        for i in range(COUNT)
    }
    ranked = sorted(gain, key=lambda name: -gain[name])
    assert len(set(gain.values())) == COUNT
    expected = {"best": ranked[:2], "median": ranked[3:5], "worst": [ranked[-1], ranked[-2]]}
    chosen = document(compared[1])["chosen"]
    for group, names in expected.items():
        assert [entry["name"] for entry in chosen if entry["group"] == group] == names


def test_the_page_says_on_how_many_images_the_last_model_is_better_by_pixels_and_by_miou(
    compared: tuple[Comparison, Path],
) -> None:
    text = (compared[1] / "compare.html").read_text("utf-8")
    images = {image["name"]: image for image in document(compared[1])["images"]}
    gains = [(image["difference"], 0.001 * image["labeled"]) for image in images.values()]
    better, worse = sum(gain >= least for gain, least in gains), sum(-gain >= least for gain, least in gains)
    assert f"shifted has fewer wrong pixels on {better} and plain on {worse}; on {COUNT - better - worse} they" in text
    gains = [(image["mIoU"]["shifted"] - image["mIoU"]["plain"], 0) for image in images.values()]
    above, below = sum(gain > 0 for gain, _ in gains), sum(gain < 0 for gain, _ in gains)
    assert f"By mIoU, shifted is higher on {above} and plain on {below}" in text
    for entry in document(compared[1])["chosen"]:
        image = images[entry["name"]]
        assert entry["wrong"] == image["wrong"]
        assert (
            f"{entry['name']} (shapes val), {entry['group']} {entry['rank']}: {image['wrong']['shifted']:,} wrong"
            in text
        )


def test_a_few_pixels_of_a_class_that_is_not_there_decide_nothing() -> None:
    """100×100 pixels of two classes: the first model has 3 wrong pixels, of a third class; the second 300."""
    strays = ImageScore.of(np.array([[4997, 0, 3], [0, 5000, 0], [0, 0, 0]]))
    worse = ImageScore.of(np.array([[4700, 300, 0], [0, 5000, 0], [0, 0, 0]]))
    assert (strays.labeled, strays.wrong, strays.percent) == (10000, 3, 0.03)
    assert strays.mIoU == pytest.approx(100 * (0.9994 + 1) / 2)  # with the third class: 66.6, below the other's
    assert worse.mIoU == pytest.approx(100 * (0.94 + 5000 / 5300) / 2)
    stray_truth = ImageScore.of(np.array([[5000, 0, 0], [0, 4991, 0], [9, 0, 0]]))
    assert stray_truth.mIoU == pytest.approx(100 * (5000 / 5009 + 1) / 2)


def test_the_verdict_is_even_where_few_pixels_differ_and_passes_over_images_without_labels() -> None:
    def scored(name: str, wrong: list[int]) -> Scored:
        images = [ImageScore(10_000 if n >= 0 else 0, max(n, 0), 50.0 if n >= 0 else math.nan) for n in wrong]
        return Scored(name, cast(Any, None), cast(Any, None), tuple(images))

    first, last = scored("a", [100, 100, 100, 100, 100, -1]), scored("b", [91, 90, 109, 110, 100, -1])
    comparison = Comparison(cast(Any, None), (first, scored("between", [0] * 6), last))
    assert comparison.by_wrong_pixels == (1, 1, 3)
    assert comparison.by_miou == (0, 0, 5)
    assert summary(comparison).endswith(": 1.")
    np.testing.assert_array_equal(comparison.differences, [9, 10, -9, -10, 0, math.nan])


def test_depths_are_scored_for_the_model_with_a_block_only(
    models: dict[str, Predictor], compared: tuple[Comparison, Path]
) -> None:
    data = Shapes(length=COUNT)
    for entry in document(compared[1])["chosen"]:
        (name, scores), *rest = entry["by_mean_shift_layers"].items()
        assert (name, rest, list(scores["mIoU"])) == ("shifted", [], ["0", "1", "3"])
        assert scores["mIoU"]["1"] == entry["mIoU"]["shifted"]
        deeper = Predictor(models["shifted"].model, window=None, short_side=None, mean_shift_layers=3)
        index = list(data.names).index(entry["name"])
        wrong, miou = image_scores(deeper, data, index)
        assert scores["wrong"]["3"] == wrong
        assert scores["mIoU"]["3"] == pytest.approx(miou)


def test_the_folder_holds_a_page_the_scores_and_a_strip_of_the_expected_width_for_each(
    compared: tuple[Comparison, Path],
) -> None:
    comparison, out = compared
    pictures = [entry["picture"] for entry in document(out)["chosen"]]
    sheets = [name for sheet in document(out)["sheets"] for name in sheet["files"]]
    assert sorted(path.name for path in out.iterdir()) == sorted(["compare.html", "compare.json", *pictures, *sheets])
    assert pictures[0].startswith("best_1_val_000")
    for name in pictures:
        with Image.open(out / name) as picture:
            tile, text = 96 * (480 // 96), round(6 * 480 / 75)
            assert picture.size[0] == 6 * tile + 7 * (text // 3)
            assert picture.size[1] > 2 * tile + 6 * text
            assert str(comparison.models[1].result.protocol) in picture.info["Protocol"]


def test_the_page_needs_nothing_else_and_shows_every_picture(compared: tuple[Comparison, Path]) -> None:
    comparison, out = compared
    text = (out / "compare.html").read_text("utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link|<iframe", re.sub(r'"data:[^"]*"', "", text))
    assert text.count("<figure>") == text.count('src="data:image/png') == 6 * (6 + 3)
    for model in comparison.models:
        assert str(model.result.protocol) in text
        assert f"<td>{model.result.mIoU:.2f}</td>" in text


def test_named_images_are_shown_in_their_order_and_once(models: dict[str, Predictor], tmp_path: Path) -> None:
    wanted = ["val_00002", "val_00000", "val_00002"]
    run_comparison(models, Shapes(), tmp_path, images=wanted, limit=3)
    assert [entry["name"] for entry in document(tmp_path)["chosen"]] == wanted[:2]
    assert document(tmp_path)["chosen"][0]["picture"] == "image_1_val_00002.png"
    assert document(tmp_path)["models"][0]["protocol"]["images"] == len(document(tmp_path)["images"]) == 3
    with pytest.raises(InputError, match=r"images: 'val_0002' .* 3 .*'val_00002'"):
        find_images(["val_0002"], list(Shapes().names)[:3])


@pytest.mark.parametrize("count", range(1, 12))
def test_small_sets_and_ties_show_every_image_once_in_the_order_of_the_set(count: int) -> None:
    choices = choose(np.zeros(count), 3)
    shown = [choice.index for choice in choices]
    assert len(set(shown)) == len(shown) == min(count, 9)
    groups = {group: [c.index for c in choices if c.group == group] for group in ("best", "median", "worst")}
    assert groups["best"] == list(range(min(3, math.ceil(count / 3))))
    assert groups["worst"] == list(range(count - 1, -1, -1))[: min(3, (count + 1) // 3)]
    assert groups["median"] == sorted(groups["median"])


def test_images_without_a_scored_pixel_are_passed_over() -> None:
    differences = np.array([np.nan, 1.0, -2.0, np.nan, 5.0])
    found = [(choice.title, choice.index) for choice in choose(differences, 1)]
    assert found == [("best 1", 4), ("median 1", 1), ("worst 1", 2)]
    assert choose(np.array([np.nan]), 3) == []


def test_a_folder_whose_masks_are_all_ignored_is_written_without_a_number(tmp_path: Path) -> None:
    for kind, pixels in (("images", np.zeros((40, 30, 3), np.uint8)), ("masks", np.full((40, 30), 255, np.uint8))):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for name in "ab":
            Image.fromarray(pixels).save(tmp_path / "data" / kind / f"{name}.png")
    space = LabelSpace(("ground", "star"))
    models = {name: predictor("segmenter-ti16", seed, space) for seed, name in enumerate("xyz")}
    data = Folder(tmp_path / "data", "all", label_space=space)
    run_comparison(models, data, tmp_path / "out", images=["b"])
    assert document(tmp_path / "out")["images"][0]["mIoU"] == {"x": None, "y": None, "z": None}
    assert "None of the 2 images has a labeled pixel" in (tmp_path / "out" / "compare.html").read_text("utf-8")
    assert (tmp_path / "out" / "image_1_b.png").is_file()


def test_a_taken_folder_is_refused_and_only_a_comparison_is_replaced(
    models: dict[str, Predictor], tmp_path: Path
) -> None:
    data = Shapes(length=2)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"already exists.*--out DIR.*--overwrite"):
        run_comparison(models, data, tmp_path)
    with pytest.raises(InputError, match=r"compare\.json"):
        run_comparison(models, data, tmp_path, overwrite=True)
    with pytest.raises(InputError, match=r"notes\.txt: is a file"):
        run_comparison(models, data, tmp_path / "notes.txt")
    out = tmp_path / "out"
    run_comparison(models, data, out)
    (out / "thesis.tex").write_text("mine")
    run_comparison(models, data, out, images=["val_00001"], overwrite=True)
    files = sorted(path.name for path in out.iterdir() if not path.name.startswith("sheet_"))
    assert files == ["compare.html", "compare.json", "image_1_val_00001.png", "thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 0}, "num_images: 0"),
        ({"limit": 0}, "limit: 0"),
        ({"depths": (0, -1)}, "mean_shift_layers: -1"),
        ({"images": ["nothing"]}, "images: 'nothing' .* 200"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_made(
    models: dict[str, Predictor], tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_comparison(models, Shapes(), tmp_path / "out", **arguments)
    with pytest.raises(InputError, match="models: 1 "):
        run_comparison({"a": models["plain"]}, Shapes(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_are_named_by_the_parts_of_their_paths_that_tell_them_apart() -> None:
    assert short_names(["runs/seg", "runs/ms/"]) == ["seg", "ms"]
    assert short_names(["a/checkpoints/best", "b/checkpoints/best"]) == ["a/checkpoints/best", "b/checkpoints/best"]
    assert short_names(["a/x", "a/x"]) == ["x (1)", "x (2)"]
