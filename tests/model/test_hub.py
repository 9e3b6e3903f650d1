from __future__ import annotations

import ast
import html
import json
import re
from pathlib import Path

import pytest
import torch
import yaml

import meanshifter as ms
from meanshifter.cli.main import main
from meanshifter.data import Shapes
from meanshifter.evaluation import save_results, weights_hash
from meanshifter.model.hub import read_results, save_pretrained
from meanshifter.model.saving import FileState

SMALL = {"depth": 1, "embed_dim": 32, "num_heads": 2}


@pytest.fixture
def model() -> ms.Segmenter:
    """A MeanShifter for the classes of Shapes."""
    labels = Shapes(None, "val").label_space
    return ms.create_model("meanshifter-ti16", classes=labels, image_size=64, encoder_args=SMALL).eval()


def test_a_round_trip_keeps_label_space_protocol_and_scores(model: ms.Segmenter, tmp_path: Path) -> None:
    dataset = Shapes(None, "val")
    model = ms.create_model(
        "meanshifter-ti16",
        classes=dataset.label_space,
        image_size=64,
        encoder_args={"depth": 1, "embed_dim": 32, "num_heads": 2},
    ).eval()
    result = ms.evaluate(ms.Predictor(model, window=64, window_stride=48), dataset, limit=2)
    save_results(tmp_path / "scores.json", [result])
    model.save_pretrained(tmp_path / "hub", results=tmp_path / "scores.json")
    again = ms.Segmenter.from_pretrained(tmp_path / "hub")
    assert again.label_space == model.label_space
    assert again.config == model.config
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(again(images), model(images))
    kept = read_results(tmp_path / "hub")
    assert kept == json.loads((tmp_path / "scores.json").read_text())["results"]
    assert kept[0]["protocol"] == result.protocol.to_dict()
    card = (tmp_path / "hub" / "README.md").read_text()
    assert f"{result.mIoU:.2f}" in card
    assert "| shapes | val | 2 |" in card
    assert "window 64" in card
    again.save_pretrained(tmp_path / "twice", results=read_results(tmp_path / "hub"))
    assert read_results(tmp_path / "twice") == kept


SCORE = {"protocol": {"dataset": "shapes"}, "mIoU": "high"}


@pytest.mark.parametrize("text", ["[]", '{"results": [{"mIoU": 3}]}', json.dumps({"results": [SCORE]})])
def test_results_without_scores_are_refused(model: ms.Segmenter, text: str, tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(ms.InputError, match=r"scores\.json: has no scores"):
        model.save_pretrained(tmp_path / "hub", results=tmp_path / "scores.json")
    with pytest.raises(ms.InputError, match="results: has no scores"):
        model.save_pretrained(tmp_path / "hub", results=[{"a": 1}])
    assert not (tmp_path / "hub").exists()


def test_scores_of_other_weights_are_refused(model: ms.Segmenter, tmp_path: Path) -> None:
    score = {"protocol": {"dataset": "shapes", "weights": "0123456789ab"}, "mIoU": 3.0}
    (tmp_path / "scores.json").write_text(json.dumps({"results": [score]}))
    with pytest.raises(ms.InputError, match=r"scores\.json: scores of weights '0123456789ab', but the model's are"):
        model.save_pretrained(tmp_path / "hub", results=tmp_path / "scores.json")
    for unknown in ({"weights": "unknown", "predictions": "maps"}, {}):
        with pytest.raises(ms.InputError, match="scores of weights 'unknown', but the model's are"):
            model.save_pretrained(tmp_path / "hub", results=[{**score, "protocol": {"dataset": "shapes", **unknown}}])
    assert not (tmp_path / "hub").exists()
    score["protocol"] = {"dataset": "shapes", "weights": weights_hash(model.state_dict())}
    model.save_pretrained(tmp_path / "hub", results=[score])
    assert main(["convert", str(tmp_path / "hub"), str(tmp_path / "again"), "--to", "hub"]) == 0
    assert read_results(tmp_path / "again") == [score]


def test_nothing_remains_of_an_earlier_model(model: ms.Segmenter, tmp_path: Path) -> None:
    scores = [{"protocol": {"dataset": "shapes", "weights": weights_hash(model.state_dict())}, "mIoU": 3.0}]
    held = FileState({"encoder.head.bias": torch.zeros(3)})
    save_pretrained(model, tmp_path, results=scores, license="mit", held=held)
    assert (tmp_path / "extra.safetensors").is_file()
    assert "license: mit" in (tmp_path / "README.md").read_text()
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert "license" not in (tmp_path / "README.md").read_text()


def test_a_model_without_scores_says_so(model: ms.Segmenter, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert "No scores were given" in (tmp_path / "README.md").read_text()
    with pytest.raises(ms.InputError, match=r"results\.json: no such file"):
        read_results(tmp_path)


def test_a_license_is_an_identifier_and_is_kept(model: ms.Segmenter, tmp_path: Path) -> None:
    for wrong in ("", "a\nb: c", "mit or so"):
        with pytest.raises(ms.InputError, match=r"^license: .* is not"):
            model.save_pretrained(tmp_path / "hub", license=wrong)
    assert not (tmp_path / "hub").exists()
    model.save_pretrained(tmp_path / "hub", license="cc-by-4.0")
    for again, option, named in (("kept", [], "cc-by-4.0"), ("other", ["--license", "mit"], "mit")):
        assert main(["convert", str(tmp_path / "hub"), str(tmp_path / again), "--to", "hub", *option]) == 0
        assert f"\nlicense: {named}\n" in (tmp_path / again / "README.md").read_text()


def test_a_card_escapes_names(tmp_path: Path) -> None:
    names = ("a | b", "<img src=x>", "`code` **bold** [link](https://x.y)", "1. #5 x", "---", "$x$ @you")
    model = ms.create_model("segmenter-ti16", classes=names, image_size=32, encoder_args=SMALL)
    protocol = {
        "dataset": "x | y\n---\nlicense: mit",
        "split": "<b>",
        "weights": weights_hash(model.state_dict()),
        "compat": "`|`",
    }
    score = {"protocol": protocol, "mIoU": float("nan"), "aAcc": None, "mAcc": float("inf")}
    save_pretrained(model, tmp_path, results=[score], name='o/"); evil("```')
    card = (tmp_path / "README.md").read_text("utf-8")
    head, text = card.split("---\n", 2)[1:]
    assert yaml.safe_load(head)["library_name"] == "meanshifter"
    assert "\n---\n" not in text.replace("| --- | --- |", "")
    shown = html.unescape(text)
    assert all(name in shown for name in names)
    (row,) = (line for line in text.splitlines() if "x &#124; y" in line)
    assert row.count("|") == 8
    assert "| – | – | – |" in row
    assert not re.search(r"<(?!/?code)", text)
    call = text.split("```python\n")[1].split("\n```")[0]
    texts = {node.value for node in ast.walk(ast.parse(call)) if isinstance(node, ast.Constant)}
    assert texts == {'o/"); evil("```', "photo.jpg", "mask.png"}
    found = json.loads((tmp_path / "results.json").read_text("utf-8"), parse_constant=pytest.fail)["results"][0]
    assert [found[key] for key in ("mIoU", "aAcc", "mAcc")] == [None, None, None]
    assert read_results(tmp_path) == [found]
