"""Ensembles: the mean of the probabilities of several models, and what they refuse."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import meanshifter as ms
from meanshifter.checkpoints.ensemble import Member, write_members
from meanshifter.cli.main import main
from meanshifter.data import Shapes
from meanshifter.errors import InputError
from meanshifter.evaluation import weights_hash
from meanshifter.inference.ensemble import Ensemble
from meanshifter.inference.protocol import as_segmenter
from meanshifter.jobs.archive import Work
from tests import commands
from tests.conftest import Largest
from tests.inference.test_predictor import random_image, usual_logits

Make = Callable[..., ms.Segmenter]
WHOLE: dict[str, Any] = {"window": None, "short_side": None}


@pytest.fixture
def three(tiny_model: Make) -> list[ms.Segmenter]:
    """Models of two patch sizes and families, with other weights and the same classes."""
    models = [tiny_model(), tiny_model("segmenter-mask-ti16", patch=16), tiny_model(patch=16)]
    with torch.no_grad():
        for number, model in enumerate(models):
            torch.manual_seed(number)
            for parameter in model.decoder.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return [model.eval() for model in models]


def mean_probabilities(models: list[ms.Segmenter], image: Any, *size: int, window: int | None, stride: int) -> Tensor:
    """(K, H, W) float64, from the logits of each model at full resolution."""
    with torch.no_grad():
        logits = [usual_logits(model, image, (size[0], size[1]), window, stride, 0) for model in models]
    return torch.stack([z.softmax(0) for z in logits]).mean(0)


@pytest.mark.parametrize(("window", "stride"), [(None, 1), (32, 20)])
def test_probabilities_are_the_mean_over_models(window: int | None, stride: int, three: list[ms.Segmenter]) -> None:
    image = random_image(53, 70)
    p = mean_probabilities(three, image, 53, 70, window=window, stride=stride)
    names = three[0].label_space.names
    reading: dict[str, Any] = {"window": window, "window_stride": stride, "short_side": None, "mean_shift_layers": 0}
    found = ms.Predictor(three, **reading, confidence=["probability", "margin", "entropy"], probabilities=[names[2]])(
        image
    )
    best = p.topk(2, dim=0).values
    sure = (best[0] - best[1]).numpy() > 1e-5
    assert sure.mean() > 0.99
    assert (found.labels == p.argmax(0).numpy())[sure].all()
    expected = {"probability": best[0], "margin": best[0] - best[1], "entropy": -torch.xlogy(p, p).sum(0)}
    for name, value in expected.items():
        np.testing.assert_allclose(found.confidence[name], value.numpy(), atol=2e-5)
    np.testing.assert_allclose(found.probabilities[names[2]], p[2].numpy(), atol=2e-5)
    plain = ms.Predictor(three, **reading)(image)
    assert np.array_equal(plain.labels, found.labels)


def test_one_model_given_twice_or_alone_is_that_model(tiny_model: Make) -> None:
    image, model = random_image(40, 50), tiny_model().eval()
    alone = ms.Predictor(model, **WHOLE, confidence=["entropy"])(image)
    for models in ([model], [model, model], (Ensemble([model, model]), model)):
        found = ms.Predictor(models, **WHOLE, confidence=["entropy"])(image)
        np.testing.assert_allclose(found.confidence["entropy"], alone.confidence["entropy"], atol=1e-6)
        assert (found.labels == alone.labels).mean() > 0.999


def test_scales_flips_and_bands_combine_with_models(three: list[ms.Segmenter]) -> None:
    """The mean over models of the means over views is the mean over all views."""
    image = random_image(300, 40)
    settings: dict[str, Any] = {**WHOLE, "flip": True, "scales": (1.0, 1.5), "mean_shift_layers": 0}
    name = three[0].label_space.names[1]
    maps = [ms.Predictor(model, **settings, probabilities=[name])(image).probabilities[name] for model in three]
    found = ms.Predictor(three, **settings, probabilities=[name])(image)
    np.testing.assert_allclose(found.probabilities[name], np.mean(maps, axis=0), atol=1e-6)


def test_no_tensor_holds_all_classes_at_full_size(largest: Largest, tiny_model: Make) -> None:
    models = [tiny_model("segmenter-ti16", 150), tiny_model("segmenter-ti16", 150, patch=16)]
    image = random_image(512, 512)
    with largest:
        ms.Predictor(models, short_side=None, window=128, window_stride=128)(image)
    assert largest.elements < 150 * 512 * 512 / 8


def test_scores_name_the_weights_of_all_models(three: list[ms.Segmenter]) -> None:
    models = [three[0], three[2]]
    result = ms.evaluate(ms.Predictor(models, **WHOLE), Shapes(split="val", length=2))
    hashes = [weights_hash(model.state_dict()) for model in models]
    assert result.protocol.weights == "+".join(hashes)
    assert Work(Ensemble(models), WHOLE).described()["weights"] == "+".join(hashes)


def test_it_survives_pickling_and_shares_its_models(three: list[ms.Segmenter]) -> None:
    models, image = [three[0], three[2]], random_image(40, 50)
    ensemble = Ensemble(models)
    assert ms.Predictor(ensemble, **WHOLE).model is ensemble
    assert ensemble.members == tuple(models)
    again = pickle.loads(pickle.dumps(ensemble))
    labels, loaded = (ms.Predictor(one, **WHOLE)(image).labels for one in (ensemble, again))
    assert np.array_equal(labels, loaded)


def test_models_that_do_not_fit_together_are_refused(tiny_model: Make) -> None:
    model = tiny_model()
    renamed = ms.create_model("segmenter-ti16", classes=["a", *"bcdefg"], encoder_args={"depth": 1, "embed_dim": 24})
    for other, named in (
        (tiny_model(num_classes=3), "number 2 of the ensemble has 3 classes, and the first 7"),
        (renamed, "calls class 0 'a', and the first 'class 0'"),
        (tiny_model("segmenter-ti16"), r"mean_shift_layers: .* trained with 1, 0"),
    ):
        with pytest.raises(InputError, match=named):
            ms.Predictor([model, other])
    with pytest.raises(InputError, match="0 models"):
        ms.Predictor([])
    assert ms.Predictor([model, tiny_model("segmenter-ti16")], mean_shift_layers=0).mean_shift_layers == 0


def test_other_windows_are_refused_unless_they_are_given(tiny_model: Make) -> None:
    models = [tiny_model(), tiny_model()]
    models[1].config = type(models[1].config)(**{**vars(models[1].config), "window": 256, "window_stride": 240})
    with pytest.raises(InputError, match=r"window is 512, 256; window_stride is 480, 240"):
        ms.Predictor(models)
    assert ms.Predictor(models, window=64, window_stride=32).preprocess.window == 64


def test_it_predicts_and_evaluates_like_a_model(three: list[ms.Segmenter]) -> None:
    both, image = Ensemble(three), np.zeros((40, 40, 3), np.uint8)
    labels = both.predict(image, mean_shift_layers=0).labels
    np.testing.assert_array_equal(labels, ms.Predictor(three, mean_shift_layers=0)(image).labels)
    data = Shapes(split="val", length=1)
    scored = Ensemble([ms.Segmenter(three[0].config, data.label_space) for _ in range(2)])
    assert scored.evaluate(data).protocol == ms.evaluate(scored, data).protocol


def test_it_has_no_patch_logits(tiny_model: Make) -> None:
    ensemble = Ensemble([tiny_model(), tiny_model()])
    for call in (lambda: ensemble(torch.zeros(1, 3, 32, 32)), lambda: as_segmenter(ensemble)):
        with pytest.raises(InputError, match="ensemble"):
            call()


@pytest.fixture
def stored(tmp_path: Path, tiny_model: Make) -> Path:
    """A folder of two models as an ensemble."""
    folder, members = tmp_path / "both", []
    for number, patch in enumerate((8, 16)):
        model = tiny_model(patch=patch)
        model.save(folder / f"fold{number}")
        members.append(Member(f"fold{number}", weights_hash(model.state_dict())))
    write_members(folder, members)
    return folder


def test_a_folder_of_models_is_a_model(stored: Path) -> None:
    image = random_image(40, 50)
    expected = ms.Predictor([stored / "fold0", stored / "fold1"], **WHOLE)(image).labels
    loaded = ms.load_model(stored)
    assert isinstance(loaded, Ensemble)
    assert np.array_equal(ms.Predictor(loaded, **WHOLE)(image).labels, expected)
    assert np.array_equal(ms.Predictor(str(stored), **WHOLE)(image).labels, expected)
    with pytest.raises(InputError, match=r"num_classes: given for .*both, an ensemble"):
        ms.load_model(stored, 3)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("../elsewhere", r"'\.\./elsewhere' is not a folder inside"),
        ("/fold0", "'/fold0' is not a folder inside"),
        ("owner/name", "owner/name: missing"),  # never a name of the Hub
        (".", r"'\.' is not a folder inside"),
    ],
)
def test_members_outside_the_folder_are_refused(path: str, named: str, stored: Path) -> None:
    write_members(stored, [Member(path, "0")])
    with pytest.raises(InputError, match=named):
        ms.load_model(stored)


@pytest.mark.parametrize("text", ["{}", "[]", '{"format_version": 1}', '{"format_version": 1, "members": []}'])
def test_a_damaged_list_is_refused(text: str, stored: Path) -> None:
    (stored / "ensemble.json").write_text(text)
    with pytest.raises(InputError, match=r"ensemble\.json: ") as caught:
        ms.load_model(stored)
    assert "\n" not in str(caught.value)


def test_other_weights_than_listed_are_refused(stored: Path) -> None:
    shutil.rmtree(stored / "fold1")
    shutil.copytree(stored / "fold0", stored / "fold1")
    listed = json.loads((stored / "ensemble.json").read_text())["members"][1]["weights"]
    with pytest.raises(InputError, match=rf"fold1: its weights are \w+, but .* lists {listed}"):
        ms.load_model(stored)


def test_commands_take_several_models_and_folders_of_them(stored: Path, tmp_path: Path) -> None:
    ms.Predictor([stored], **WHOLE)  # both models are there
    from PIL import Image

    Image.fromarray(random_image(40, 50)).save(tmp_path / "photo.png")
    models = [stored / "fold0", "photo.png", "--ensemble", stored / "fold1"]
    for out, words in (("one", [stored, "photo.png"]), ("two", models), ("three", [*models, "--resume"])):
        done = commands.run("predict", *words, "--out", out, "--device", "cpu", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    maps = [(tmp_path / out / "photo.png").read_bytes() for out in ("one", "two", "three")]
    assert maps[0] == maps[1] == maps[2]
    done = commands.run(
        "evaluate", stored / "fold0", "shapes", "--ensemble", stored / "fold1", "--limit", "1", cwd=tmp_path
    )
    hashes = [entry["weights"] for entry in json.loads((stored / "ensemble.json").read_text())["members"]]
    assert done.returncode == 0, done.stderr
    assert f"weights {'+'.join(hashes)};" in done.stdout


def test_commands_refuse_what_an_ensemble_has_not(stored: Path, tmp_path: Path, tiny_model: Make) -> None:
    model = tiny_model()
    model.config = type(model.config)(**{**vars(model.config), "window": 256, "window_stride": 240})
    model.save(tmp_path / "other")
    (tmp_path / "photo.png").write_bytes(b"")
    for words, named in (
        (["export", stored, "exported", "--format", "onnx"], "both: an ensemble cannot be exported"),
        (["convert", stored, "x.pth", "--to", "mmsegmentation"], "both: an ensemble, which supports prediction"),
        (["train", "shapes", "--model.init_from", stored], "both: an ensemble, which supports prediction"),
        (["evaluate", "--predictions", "labels", "shapes", "--ensemble", stored], "--ensemble: only applies to models"),
        (
            ["predict", stored / "fold0", "photo.png", "--ensemble", "other"],
            f"window is 512 in {stored / 'fold0'} and 256 in other",
        ),
    ):
        done = commands.run(*words, cwd=tmp_path)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert named in done.stderr


def test_an_ensemble_names_a_member_to_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not its run folder, of which another checkpoint might be exported."""
    (tmp_path / "fold0" / "checkpoints" / "last").mkdir(parents=True)
    write_members(tmp_path, [Member("fold0/checkpoints/last", "0")])
    assert main(["export", str(tmp_path), str(tmp_path / "exported"), "--format", "onnx"]) == 2
    assert f"such as {tmp_path}/fold0/checkpoints/last" in capsys.readouterr().err
