"""An explorer of two tiny models and a folder of images and masks, served on a free port."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import meanshifter as ms
from meanshifter.app.explorer import Explorer
from meanshifter.app.server import bind, server
from tests.conftest import ModelFactory

CLASSES = 7


class Client:
    """Requests to a server, without a browser."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(
        self, path: str, *, method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def json(self, path: str, **options: Any) -> Any:
        """The body of an answer that must succeed."""
        status, body = self.ask(path, **options)
        assert status == 200, body
        return json.loads(body)


@contextmanager
def served(explorer: Explorer) -> Iterator[Client]:
    """The server in a thread."""
    bound = bind("127.0.0.1", 0)
    running = server(explorer)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        while not running.started:
            time.sleep(0.01)
        yield Client(bound.getsockname()[1])
    finally:
        running.should_exit = True
        thread.join(30)
        explorer.close()
        bound.close()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of 64×96 with masks, one of which has ignored pixels."""
    root, rng = tmp_path_factory.mktemp("explored"), np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    for k in range(3):
        mask = np.repeat(np.repeat(rng.integers(0, CLASSES, (4, 6)), 16, 0), 16, 1).astype(np.uint8)
        mask[:5] = 255 if k == 0 else mask[:5]
        pixels = (mask[..., None] * 30 + rng.integers(0, 60, (64, 96, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"scene{k}.png")
        Image.fromarray(mask).save(root / "masks" / f"scene{k}.png")
    return root


@pytest.fixture(scope="session")
def models(tiny_model: ModelFactory) -> dict[str, ms.Segmenter]:
    """A MeanShifter and a Segmenter of the same classes."""
    return {"shifter": tiny_model(layers=2), "plain": tiny_model("segmenter-ti16")}


@pytest.fixture(scope="module")
def explorer(folder: Path, models: dict[str, ms.Segmenter]) -> Explorer:
    """Both models on the folder."""
    space = models["shifter"].label_space
    predictors = {name: ms.Predictor(model, short_side=None, window=None) for name, model in models.items()}
    return Explorer(predictors, ms.datasets.Folder(folder, "all", label_space=space), steps=3)


@pytest.fixture(scope="module")
def client(explorer: Explorer) -> Iterator[Client]:
    """Requests to the server of the explorer."""
    with served(explorer) as found:
        yield found
