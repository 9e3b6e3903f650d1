"""`meanshifter calibrate`, `predict --min-confidence`, `evaluate --detailed` and `--plot`."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import meanshifter as ms
from meanshifter.cli.main import main
from meanshifter.inference.ensemble import Ensemble
from meanshifter.model.saving import save_temperature
from tests import commands

SMALL = {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8}
WHOLE = ("--window", "none", "--short-side", "none")
CLASSES = ("sky", "road", "tree")
PLOTS = pytest.mark.skipif(find_spec("matplotlib") is None, reason="not installed: matplotlib")


def write_masks(model: ms.Segmenter, root: Path, temperature: float) -> None:
    """Masks drawn from the probabilities that the model has with this temperature."""
    model.config = replace(model.config, temperature=temperature)
    predictor = ms.Predictor(model, window=None, short_side=None, probabilities=CLASSES)
    rng = np.random.default_rng(1)
    for path in sorted((root / "images").rglob("*.png")):
        p = np.stack(list(predictor(path).probabilities.values())).cumsum(0)
        mask = root / "masks" / path.relative_to(root / "images")
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((p < rng.random(p.shape[1:])).sum(0).clip(max=2).astype(np.uint8)).save(mask)
    model.config = replace(model.config, temperature=1.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images with three splits, and a model whose probabilities fit their masks at a temperature of 2."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        (folder / "data" / "images" / split).mkdir(parents=True)
        for k in range(3):
            pixels = rng.integers(0, 256, (62, 70, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "data" / "images" / split / f"{k}.png")
    (folder / "data" / "classes.txt").write_text("\n".join(CLASSES))
    torch.manual_seed(0)
    model = ms.create_model("segmenter-ti16", classes=CLASSES, image_size=32, encoder_args=SMALL).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    write_masks(model, folder / "data", 2.0)
    model.save(folder / "model")
    return folder


@pytest.fixture
def model(world: Path, tmp_path: Path) -> Path:
    """A copy of the model, which may change."""
    ms.load_model(world / "model").save(tmp_path / "model")  # type: ignore[attr-defined]
    return tmp_path / "model"


def stored(folder: Path) -> float:
    return float(json.loads((folder / "config.json").read_text())["model"]["temperature"])


def ece(model: Path, world: Path, tmp_path: Path) -> float:
    out = tmp_path / "scores.json"
    words = ("evaluate", model, world / "data", "--split", "test", "--detailed", "--out", out, *WHOLE)
    assert main([str(word) for word in words]) == 0
    return float(json.loads(out.read_text())["results"][0]["details"]["calibration"]["ECE"])


def test_the_temperature_is_stored_in_the_model(world: Path, model: Path, tmp_path: Path) -> None:
    weights, before = (model / "model.safetensors").read_bytes(), ece(model, world, tmp_path)
    done = commands.run("calibrate", model, world / "data", "--test-split", "test", *WHOLE)
    assert (done.returncode, done.stderr) == (0, "")
    assert stored(model) == pytest.approx(2, rel=0.1)
    assert (model / "model.safetensors").read_bytes() == weights
    for text in ("fitted on folder val, 3 images", "measured on folder test, 3 images, not used", "config.json"):
        assert text in done.stdout
    after = ece(model, world, tmp_path)
    assert after < before / 2
    first, second = (float(value) for value in re.findall(r"\| (?:before|after) *\| *([\d.]+)", done.stdout))
    assert (first, second) == pytest.approx((before, after), abs=0.005)


def test_a_copy_leaves_the_model_as_it_is(
    world: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["calibrate", str(model), str(world / "data"), "--out", str(tmp_path / "copy"), "--limit", "2", *WHOLE]
    assert main(words) == 0
    assert "measured on the images of the fit" in capsys.readouterr().out
    assert stored(model) == 1
    assert stored(tmp_path / "copy") == pytest.approx(2, rel=0.2)


def test_a_calibrated_copy_is_the_model_in_all_but_the_temperature(world: Path, model: Path, tmp_path: Path) -> None:
    save_file({"note": torch.ones(1)}, model / "extra.safetensors")
    words = [str(model), str(world / "data"), "--out", str(tmp_path / "copy"), "--merge-tokens", "0.5", *WHOLE]
    assert main(["calibrate", *words]) == 0
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (model, tmp_path / "copy"))
    assert second["model"].pop("temperature") != first["model"].pop("temperature") == 1
    assert first == second
    for name in ("extra.safetensors", "model.safetensors"):
        ours, theirs = (load_file(folder / name) for folder in (tmp_path / "copy", model))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model", "data", "--test-split", "val"], "--test-split: val, which is also the split of the fit"),
        (["model"], "DATASET: missing; model is not a run folder"),
        (["nowhere", "data"], "nowhere: not a model folder.* add --out DIR"),
        (["model", "data", "--out", "model"], "--out: model already exists"),
        (["model", "data", "--limit", "0"], "limit: 0 images"),
        (["model", "data", "--split", "nothing"], "nothing"),
    ],
)
def test_wrong_command_lines(
    words: list[str], message: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    assert main(["calibrate", *words]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert stored(world / "model") == 1


def test_a_run_is_calibrated_on_its_own_validation_images(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    for path in sorted((world / "data").rglob("*")):
        if path.is_file():
            (data / path.relative_to(world / "data")).parent.mkdir(parents=True, exist_ok=True)
            (data / path.relative_to(world / "data")).write_bytes(path.read_bytes())
    ms.train(data, out=run, steps=1, batch_size=1, size=32, model={"init_from": str(world / "model")})
    best = ms.load_model(run)
    assert isinstance(best, ms.Segmenter)
    write_masks(best, data, 0.5)
    capsys.readouterr()
    assert main(["calibrate", str(run), "--test-split", "test", *WHOLE]) == 0
    assert "fitted on folder val, 3 images" in capsys.readouterr().out
    assert stored(run / "checkpoints" / "best") == pytest.approx(0.5, rel=0.1)
    assert main(["calibrate", str(run), "--test-split", "val"]) == 2
    assert main(["calibrate", str(run), "--split", "test"]) == 2
    assert "--split: given without DATASET" in capsys.readouterr().err
    ms.train(data, out=tmp_path / "next", steps=1, batch_size=1, size=32, model={"init_from": str(run)})
    assert stored(tmp_path / "next" / "checkpoints" / "last") == 1  # it was that of other weights


def test_sure_pixels_keep_their_class(world: Path, model: Path, tmp_path: Path) -> None:
    save_temperature(model, 1.7)
    photo = world / "data" / "images" / "val" / "0.png"
    options = ["--confidence", "probability", "--overlay", "--alpha", "1", *WHOLE]
    for name, words in (("all", []), ("sure", ["--min-confidence", "0.6"])):
        assert main(["predict", str(model), str(photo), "--out", str(tmp_path / name), *options, *words]) == 0
    whole, sure = (np.asarray(Image.open(tmp_path / name / "0.png")) for name in ("all", "sure"))
    maps = [tmp_path / name / "confidence" / "probability" / "0.png" for name in ("all", "sure")]
    assert maps[0].read_bytes() == maps[1].read_bytes()
    probability = np.asarray(Image.open(maps[0])) / 65535
    clear = abs(probability - 0.6) > 1e-4
    np.testing.assert_array_equal(sure[clear], np.where(probability < 0.6, 255, whole)[clear])
    assert 0.1 < np.mean(sure == 255) < 0.9
    found = ms.Predictor(ms.load_model(model), window=None, short_side=None, min_confidence=0.6)(photo)
    np.testing.assert_array_equal(found.labels, sure)
    assert found.confidence == {}
    assert sum(found.class_areas().values()) == pytest.approx(np.mean(sure != 255))
    overlay = np.asarray(Image.open(tmp_path / "sure" / "overlays" / "0.png"))[: sure.shape[0], : sure.shape[1]]
    np.testing.assert_array_equal(overlay[sure == 255], np.asarray(Image.open(photo))[sure == 255])


def test_archives_are_predicted_again_with_another_confidence(world: Path, model: Path, tmp_path: Path) -> None:
    words = ["predict", str(model), str(world / "data" / "images" / "val"), "--out", str(tmp_path / "out"), "--resume"]

    def ignored() -> float:
        return float(np.mean(np.asarray(Image.open(tmp_path / "out" / "0.png")) == 255))

    assert main([*words, *WHOLE]) == 0
    assert ignored() == 0
    assert main([*words, *WHOLE, "--min-confidence", "0.6"]) == 0
    assert (first := ignored()) > 0
    save_temperature(model, 3.0)
    assert main([*words, *WHOLE, "--min-confidence", "0.6"]) == 0
    assert ignored() > first


def test_a_pixel_without_a_class_is_not_evaluated(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictor = ms.Predictor(ms.load_model(world / "model"), min_confidence=0.5)
    with pytest.raises(ms.InputError, match=r"min_confidence: 0\.5"):
        ms.evaluate(predictor, ms.datasets.Folder(world / "data"))
    with pytest.raises(ms.InputError, match=r"min_confidence: 1\.5"):
        ms.Predictor(ms.load_model(world / "model"), min_confidence=1.5)
    words = ["predict", str(world / "model"), "ade20k", "--root", "x", "--submission", "a.zip", "--min-confidence"]
    for value, message in (("0.5", "a submission needs a class"), ("2", "--min-confidence: 2")):
        assert main([*words, value]) == 2
        assert message in capsys.readouterr().err


def test_ensembles_and_exports_use_the_temperature(world: Path, model: Path, tmp_path: Path) -> None:
    photo = world / "data" / "images" / "val" / "0.png"
    warm = ms.load_model(model)
    assert isinstance(warm, ms.Segmenter)
    warm.config = replace(warm.config, temperature=3.0)
    cold = ms.load_model(model)

    def probability(one: object) -> np.ndarray:
        predictor = ms.Predictor(one, window=None, short_side=None, probabilities=["road"])  # type: ignore[arg-type]
        return predictor(photo).probabilities["road"]

    mean = (probability(warm) + probability(cold)) / 2
    np.testing.assert_allclose(probability(Ensemble([warm, cold])), mean, atol=1e-6)
    assert abs(probability(warm) - probability(cold)).max() > 0.1
    protocol = ms.evaluate(
        ms.Predictor([warm, cold], window=None, short_side=None), ms.datasets.Folder(world / "data")
    ).protocol
    assert protocol.temperature == (3.0, 1.0)


@pytest.mark.skipif(find_spec("onnxruntime") is None or find_spec("onnxscript") is None, reason="not installed: onnx")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("user")
def test_an_export_has_the_temperature_and_is_calibrated_itself(world: Path, model: Path, tmp_path: Path) -> None:
    save_temperature(model, 3.0)
    warm = ms.load_model(model)
    assert isinstance(warm, ms.Segmenter)
    ms.export(warm, tmp_path / "onnx")
    exported = ms.load_model(tmp_path / "onnx")
    image = np.zeros((40, 48, 3), np.uint8)
    both = [
        ms.Predictor(one, window=None, short_side=None, confidence=["probability"])(image) for one in (warm, exported)
    ]
    np.testing.assert_allclose(both[0].confidence["probability"], both[1].confidence["probability"], atol=1e-4)
    assert main(["calibrate", str(tmp_path / "onnx"), str(world / "data"), *WHOLE]) == 0
    assert stored(tmp_path / "onnx") == pytest.approx(2, rel=0.1)
    assert main(["calibrate", str(tmp_path / "onnx"), str(world / "data"), "--out", str(tmp_path / "copy")]) == 2


@pytest.mark.parametrize("tool", ["mmsegmentation", "segmenter"])
def test_other_tools_have_no_temperature_which_is_said(tool: str, world: Path, tmp_path: Path) -> None:
    from meanshifter.checkpoints.writing import WRITERS

    warm = ms.create_model("segmenter-ti16", classes=CLASSES, image_size=32, encoder_args={"depth": 1})
    warm.config = replace(warm.config, temperature=1.5)
    with pytest.warns(UserWarning, match=r"without dividing logits by the temperature 1\.5"):
        WRITERS[tool](warm, tmp_path / ("x.pth" if tool == "mmsegmentation" else "x"))


def test_label_maps_have_details_without_calibration(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--predictions", str(world / "data" / "masks" / "val"), str(world / "data"), "--detailed"]
    assert main([*words, "--out", str(tmp_path / "scores.json")]) == 0
    table = capsys.readouterr().out
    assert "boundary IoU 100.00" in table
    assert "calibration" not in table
    (result,) = json.loads((tmp_path / "scores.json").read_text())["results"]
    assert "calibration" not in result["details"]


@PLOTS
@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_scores_are_drawn(suffix: str, world: Path, tmp_path: Path) -> None:
    plot = tmp_path / f"scores.{suffix}"
    assert main(["evaluate", str(world / "model"), str(world / "data"), "--plot", str(plot), *WHOLE]) == 0
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix]
    content = plot.read_bytes()
    assert content.startswith(start)
    if suffix == "svg":
        assert all(text in content.decode() for text in (*CLASSES, "Reliability", "Confusion"))


@PLOTS
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plot", "scores.gif"], "plot: scores.gif; expected a file that ends in .png"),
        (["--plot", "scores.png", "--mean-shift-layers", "0", "1"], "--plot: a plot of one result"),
    ],
)
def test_plots_that_cannot_be_drawn(
    words: list[str], message: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(world / "model"), str(world / "data"), *words]) == 2
    assert message in capsys.readouterr().err
