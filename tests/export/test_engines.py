"""`Predictor(engine=…)`: labels are torch's, and `auto` takes what was measured to be fastest."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import meanshifter as ms
from meanshifter.cli.main import main
from meanshifter.data import Shapes
from meanshifter.export import engines
from meanshifter.export.engines import Choice, EngineModel, cache_folder
from meanshifter.export.runtime import RuntimeModel
from meanshifter.export.torch_format import EXPORTER
from meanshifter.inference.protocol import as_segmenter
from meanshifter.jobs.archive import Work
from tests import commands
from tests.conftest import ModelFactory

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.skipif(torch.__version__ < torch.torch_version.TorchVersion(EXPORTER), reason="needs a newer torch"),
    pytest.mark.skipif(find_spec("openvino") is None or find_spec("onnxscript") is None, reason="needs both runtimes"),
]
SETTINGS: dict[str, Any] = {"window": 32, "window_stride": 24, "short_side": None}


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def home(shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of these tests, since an export takes seconds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_home))
    return shared_home


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def runtime(home: Path, tiny_model: ModelFactory, user: None) -> RuntimeModel:
    """A Segmenter in OpenVINO."""
    model = ms.Predictor(tiny_model("segmenter-ti16"), engine="openvino", **SETTINGS).model
    assert isinstance(model, EngineModel)
    return model.runtime


@pytest.fixture
def shifter(tiny_model: ModelFactory) -> ms.Segmenter:
    """A model of generated scenes with the same weights in all tests, which share its exports."""
    config = tiny_model(layers=2).config
    torch.manual_seed(0)
    return ms.Segmenter(config, Shapes(split="val").label_space).eval()


@pytest.fixture(scope="module")
def image() -> Any:
    return Shapes(split="val", size=(50, 70), length=1)[0].image


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_labels_are_those_of_torch(engine: Any, shifter: ms.Segmenter, image: Any, user: None) -> None:
    plain, other = ms.Predictor(shifter, **SETTINGS), ms.Predictor(shifter, engine=engine, **SETTINGS)

    assert (other(image).labels == plain(image).labels).mean() >= 0.9999
    assert isinstance(other.model, EngineModel)
    assert other.engines == (Choice(engine),)
    assert (plain.protocol()["engine"], other.protocol()["engine"]) == (None, engine)


def test_what_an_export_cannot_do_is_done_by_torch(shifter: ms.Segmenter, image: Any, user: None) -> None:
    model, data = shifter, Shapes(split="val", length=1)
    plain, other = ms.Predictor(model, **SETTINGS), ms.Predictor(model, engine="openvino", **SETTINGS)

    for layers in (0, 3):  # an export has one number of steps
        assert np.array_equal(
            other(image, mean_shift_layers=layers).labels, plain(image, mean_shift_layers=layers).labels
        )
    assert as_segmenter(other.model) is model  # diagnostics need tokens
    assert [other.engine_for(steps) for steps in ([2], [2, 2], [0], [0, 2])] == ["openvino", "openvino", None, None]
    both = ms.evaluate(other, data, mean_shift_layers=[0, 2])
    assert [result.protocol.engine for result in both.values()] == [None, None]
    assert ms.evaluate(other, data).protocol.engine == "openvino"
    other.model.config = replace(model.config, temperature=2.0)
    assert model.config.temperature == 2


def test_a_damaged_export_is_written_again(
    tiny_model: ModelFactory, runtime: RuntimeModel, image: Any, monkeypatch: pytest.MonkeyPatch, user: None
) -> None:
    model, written = tiny_model("segmenter-ti16"), []
    kept = (runtime.folder / "model.xml").read_text()
    (runtime.folder / "model.xml").write_text("<net")

    def again(model: ms.Segmenter, folder: Path, **_: Any) -> None:
        written.append(folder)
        (folder / "model.xml").write_text(kept)

    monkeypatch.setattr(engines, "export", again)
    labels = ms.Predictor(model, engine="openvino", **SETTINGS)(image).labels
    assert written == [runtime.folder]
    assert (labels == ms.Predictor(model, **SETTINGS)(image).labels).mean() >= 0.9999


def test_a_reason_that_may_pass_is_not_remembered(
    tiny_model: ModelFactory, empty_home: Path, monkeypatch: pytest.MonkeyPatch, user: None
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise ms.InputError("model.bin: cannot be written (No space left on device)")

    monkeypatch.setattr(engines, "export", full)
    model = tiny_model("segmenter-ti16")
    (choice,) = ms.Predictor(model, engine="auto", **SETTINGS).engines
    assert choice.engine == "torch"
    assert "No space left" in str(choice)
    assert not list(empty_home.rglob("measured.json"))


def test_the_model_is_exported_once_per_weights(
    tiny_model: ModelFactory, runtime: RuntimeModel, monkeypatch: pytest.MonkeyPatch, user: None
) -> None:
    def exported(*_: Any, **__: Any) -> None:
        raise AssertionError("exported again")

    monkeypatch.setattr(engines, "export", exported)
    model = tiny_model("segmenter-ti16")
    ms.Predictor(model, engine="openvino", **SETTINGS)
    with torch.no_grad():
        model.get_parameter("decoder.head.weight").neg_()
    with pytest.raises(AssertionError, match="exported again"):
        ms.Predictor(model, engine="openvino", **SETTINGS)


@pytest.mark.parametrize(
    ("torchs", "openvinos", "chosen"), [(1.0, 0.5, "openvino"), (1.0, 0.99, "torch"), (1.0, 1.2, "torch")]
)
def test_auto_takes_the_fastest_and_remembers(
    torchs: float,
    openvinos: float,
    chosen: str,
    tiny_model: ModelFactory,
    runtime: RuntimeModel,
    empty_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    user: None,
) -> None:
    measured = []

    def measure(self: object, names: Iterable[str]) -> tuple[dict[str, Any], bool]:
        measured.append(list(names))
        return {"seconds": {"torch": torchs, "openvino": openvinos}, "refused": {"onnx": "is broken"}}, False

    monkeypatch.setattr(engines._Exports, "_measure", measure)
    monkeypatch.setattr(engines._Exports, "load", lambda self, engine: runtime)
    model = tiny_model("segmenter-ti16")
    predictors = [ms.Predictor(model, engine="auto", **SETTINGS) for _ in range(2)]

    assert measured == [["openvino", "onnx"]]
    for predictor in predictors:
        (choice,) = predictor.engines
        assert choice.engine == chosen
        assert f"{openvinos:.0%}" in str(choice)
        assert "onnx is broken" in str(choice)
        assert predictor.protocol()["engine"] == (None if chosen == "torch" else chosen)
    ms.Predictor(model, engine="auto", **{**SETTINGS, "window": 24})  # another size is another measurement
    assert len(measured) == 2
    (record,) = cache_folder().glob("*/measured.json")
    for damaged in ("{", "[]", '{"x": {"seconds": {}}}'):
        record.write_text(damaged)
        assert ms.Predictor(model, engine="auto", **SETTINGS).engines == predictors[0].engines
    assert len(measured) == 5


def test_auto_measures_torch_and_the_installed_runtimes(
    tiny_model: ModelFactory, runtime: RuntimeModel, monkeypatch: pytest.MonkeyPatch, user: None
) -> None:
    model = tiny_model("segmenter-ti16")
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    predictor = ms.Predictor(model, engine="auto", **SETTINGS)
    (entry,) = json.loads(next(cache_folder().glob("*/measured.json")).read_text()).values()

    assert set(entry["seconds"]) == {"torch", "openvino"}
    assert min(entry["seconds"].values()) > 0
    assert predictor.engines[0].shape[2:] == (32, 32)
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    (choice,) = ms.Predictor(model, engine="auto", **SETTINGS).engines
    assert choice.engine == "torch"
    assert "pip install" in str(choice)


def test_auto_is_torch_where_nothing_can_be_kept(
    tiny_model: ModelFactory, image: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: None
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    model = tiny_model("segmenter-ti16")
    predictor = ms.Predictor(model, engine="auto", **SETTINGS)

    assert predictor.engines[0].engine == "torch"
    assert str(tmp_path / "file") in str(predictor.engines[0])
    assert np.array_equal(predictor(image).labels, ms.Predictor(model, **SETTINGS)(image).labels)
    with pytest.raises(ms.InputError, match=str(tmp_path / "file")):
        ms.Predictor(model, engine="openvino", **SETTINGS)


def test_an_engine_with_other_labels_is_refused(
    tiny_model: ModelFactory, runtime: RuntimeModel, empty_home: Path, monkeypatch: pytest.MonkeyPatch, user: None
) -> None:
    model = tiny_model("segmenter-ti16")
    monkeypatch.setattr(engines, "export", lambda *_, check, **__: check(runtime))
    monkeypatch.setattr(engines, "upsampled_argmax", lambda logits, size: torch.rand(size))
    with pytest.raises(ms.InputError, match=r"engine: openvino, but 100.000 % .* engine torch"):
        ms.Predictor(model, engine="openvino", **SETTINGS)
    (choice,) = ms.Predictor(model, engine="auto", **SETTINGS).engines
    assert choice.engine == "torch"
    assert set(choice.refused) == {"openvino", "onnx"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "tensorrt"}, "engine: 'tensorrt'"),
        ({"engine": "onnx", "precision": "bf16"}, "engine: onnx does not compute in bf16"),
        ({"engine": "openvino", "precision": "fp16"}, "engine: openvino does not compute in fp16"),
    ],
)
def test_what_is_wrong_is_said(settings: dict[str, Any], message: str, tiny_model: ModelFactory) -> None:
    with pytest.raises(ms.InputError) as raised:
        ms.Predictor(tiny_model("segmenter-ti16"), **settings)
    assert str(raised.value).startswith(message)


def test_exports_half_weights_and_missing_packages_are_refused(
    tiny_model: ModelFactory, runtime: RuntimeModel, monkeypatch: pytest.MonkeyPatch, user: None
) -> None:
    model = tiny_model("segmenter-ti16")
    with pytest.raises(ms.InputError, match="engine: openvino, but the model is an export"):
        ms.Predictor(runtime, engine="openvino")
    with pytest.raises(ms.InputError, match="engine: onnx, but the weights are in bf16"):
        ms.Predictor(tiny_model("segmenter-ti16").bfloat16(), engine="onnx")
    monkeypatch.setattr("meanshifter.utils.environment.find_spec", lambda name: None)
    with pytest.raises(ms.InputError, match=r"engine: onnx needs the package onnxruntime.*pip install"):
        ms.Predictor(model, engine="onnx")


def test_members_of_an_ensemble_have_engines_of_their_own(tiny_model: ModelFactory, image: Any, user: None) -> None:
    several = [tiny_model("segmenter-ti16"), tiny_model("segmenter-ti16")]
    plain, other = ms.Predictor(several, **SETTINGS), ms.Predictor(several, engine="openvino", **SETTINGS)

    assert other.protocol()["engine"] == "openvino+openvino"
    assert (other(image).labels == plain(image).labels).mean() >= 0.9999


def test_archives_state_the_engine_that_was_asked_for(tiny_model: ModelFactory, empty_home: Path) -> None:
    model = tiny_model("segmenter-ti16")
    assert "engine" not in Work(model).described()  # manifests of earlier versions are continued
    assert Work(model, {"engine": "auto"}).described()["engine"] == "auto"
    assert not cache_folder().exists()


def test_commands_say_and_record_the_engine(
    shifter: ms.Segmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str], user: None
) -> None:
    shifter.save(tmp_path / "model")
    out = tmp_path / "result.json"
    done = commands.run(
        "evaluate", tmp_path / "model", "shapes", "--limit", 1, "--engine", "openvino", "--out", out
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "meanshifter: engine: openvino\n")
    assert "computed by openvino" in done.stdout
    words = ["evaluate", str(tmp_path / "model"), "shapes", "--engine", "openvino", "--mean-shift-layers", "0", "1"]
    assert main(words) == 2
    assert re.search("--engine: openvino.* 0 1;", capsys.readouterr().err)
    assert json.loads(out.read_text())["results"][0]["protocol"]["engine"] == "openvino"
