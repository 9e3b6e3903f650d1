"""What loggers record of a run: TensorBoard, and W&B and MLflow in their local modes where they are installed."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from meanshifter.data.catalog.shapes import Shapes
from meanshifter.data.datasets import Sample
from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError
from meanshifter.inference.predictor import Predictor
from meanshifter.training import loggers
from meanshifter.training.config import TrainConfig
from meanshifter.training.loggers import SIDE, Loggers, side_by_side
from meanshifter.training.loop import train
from meanshifter.training.parsing import config_of
from meanshifter.utils import environment


def events(run: Path) -> EventAccumulator:
    found = EventAccumulator(str(run), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def short(tiny: TrainConfig, **fields: Any) -> TrainConfig:
    return replace(tiny, steps=2, log_every=1, evaluation=replace(tiny.evaluation, interval=1), **fields)


def test_tensorboard_shows_images_labels_and_predictions(tiny: TrainConfig) -> None:
    run = train(short(tiny, log_images=1), quiet=True).path
    found, dataset = events(run), Shapes(split="val")
    assert found.Tags()["images"] == [f"val/{dataset.names[0]}"], "one of the two images that are scored"
    shown = found.Images(f"val/{dataset.names[0]}")
    assert [image.step for image in shown] == [1, 2]
    predictor = Predictor(run / "checkpoints" / "last", window=None, short_side=None)
    expected = side_by_side(dataset[0], predictor(dataset[0].image).labels, dataset.label_space)
    pixels = np.asarray(Image.open(io.BytesIO(shown[-1].encoded_image_string)))
    assert np.array_equal(pixels, expected)
    scored = [line for line in lines(run) if "mIoU" in line]
    expected_scalars = {
        "loss": [line["loss"] for line in lines(run) if "loss" in line],
        "mIoU": [line["mIoU"] for line in scored],
        "IoU/background": [line["IoU"]["background"] for line in scored],
    }
    for name, values in expected_scalars.items():
        assert [event.value for event in found.Scalars(name)] == pytest.approx(values)
    none = train(short(tiny, log_images=0, out=str(run.parent / "none")), quiet=True).path
    assert events(none).Tags()["images"] == []


def test_the_picture_of_a_large_image_is_small_and_shows_both_label_maps() -> None:
    space = LabelSpace(("a", "b"), ((255, 0, 0), (0, 0, 255)))
    labels = np.zeros((900, 1200), np.uint8)
    sample = Sample(np.full((900, 1200, 3), 100, np.uint8), labels, "x")
    picture = side_by_side(sample, labels + 1, space)
    assert picture.shape == (SIDE * 3 // 4, 3 * SIDE, 3)
    image, truth, prediction = (picture[100, SIDE // 2 + k * SIDE].tolist() for k in range(3))
    assert image == [100, 100, 100]
    assert truth == [round(0.7 * 255 + 30), 30, 30]
    assert prediction == [30, 30, round(0.7 * 255 + 30)]


def test_a_logger_that_fails_is_dropped_with_a_warning(tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    class Unreachable:
        id = "7"

        def __init__(self, path: Path, settings: Mapping[str, Any], own_id: str | None) -> None:
            assert settings["steps"] == 2

        def scalars(self, values: Mapping[str, float], step: int) -> None:
            asked.append("scalars")
            raise ConnectionError("no route to host")

        def image(self, name: str, pixels: npt.NDArray[np.uint8], step: int) -> None:
            asked.append("image")

    monkeypatch.setattr(loggers, "KINDS", {"wandb": Unreachable})
    monkeypatch.setattr(loggers, "require_installed", lambda *_: None)
    with pytest.warns(UserWarning, match=r"loggers: wandb failed .*no route to host"):
        run = train(short(tiny, loggers=["wandb"]), quiet=True).path
    assert asked == ["scalars"]
    assert max(line["step"] for line in lines(run)) == 2


def test_a_logger_that_is_not_there_is_refused_before_anything_is_written(
    tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"loggers mlflow .*mlflow"):
        train(short(tiny, loggers=["mlflow"]), quiet=True)
    assert not Path(str(tiny.out)).exists()
    with pytest.raises(InputError, match="loggers"):
        config_of(None, "shapes", {"loggers": ["comet"]})


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed (extra mlflow)")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_what_the_run_has(tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tiny")
    from mlflow.tracking import MlflowClient

    path = train(short(tiny, loggers=["mlflow"]), quiet=True).path
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.lr"] == "0.001"
    history = client.get_metric_history(run.info.run_id, "mIoU")
    assert [(metric.step, metric.value) for metric in history] == [
        (line["step"], line["mIoU"]) for line in lines(path) if "mIoU" in line
    ]
    assert len(list((tmp_path / "store").rglob("*.png"))) == 4, "two images at two evaluations"
    again = Loggers(path, 2, ["mlflow"])
    again.scalars({"mIoU": 3.0}, 4)
    again.close(complete=False)
    (run,) = client.search_runs([run.info.experiment_id])
    assert (run.data.metrics["mIoU"], run.info.status) == (3.0, "KILLED")


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed (extra wandb)")
@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_an_offline_run(tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = train(short(tiny, loggers=["wandb"]), quiet=True).path
    (stored,) = (path / "wandb").glob("offline-run-*/*.wandb")
    own = json.loads((path / "loggers.json").read_text())["wandb"]
    assert stored.stem == f"run-{own}"
    content = stored.read_bytes()
    assert all(name in content for name in (b"mIoU", b"boundary_3", b"optimizer"))
    assert len(list((path / "wandb").rglob("media/images/val/*.png"))) == 4
    assert yaml.safe_load((path / "config.yaml").read_text())["loggers"] == ["wandb"]
