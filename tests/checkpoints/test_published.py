from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import meanshifter as ms
from meanshifter.checkpoints import load
from meanshifter.checkpoints.load import PUBLISHED, Published, cache_folder
from tests.checkpoints.foreign import Toy, mmsegmentation_logits, mmsegmentation_state, segmenter_state
from tests.checkpoints.test_checkpoints import save_mmsegmentation, save_segmenter

TOY = Toy()


class Quiet(SimpleHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the URL under which it is served; the cache is a temporary folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    Quiet.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def publish(monkeypatch: pytest.MonkeyPatch, url: str, digest: str | None) -> str:
    entry = Published("segmenter-test", url, digest, 1, 40.0, "Apache-2.0")
    monkeypatch.setitem(PUBLISHED, entry.name, entry)
    return entry.name


def test_a_published_model_is_downloaded_verified_converted_and_cached(
    served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    state = mmsegmentation_state(TOY, "linear")
    path = save_mmsegmentation(folder / "model.pth", state, TOY)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    name = publish(monkeypatch, f"{address}/model.pth", digest)
    model, again = ms.load_model(name), ms.load_model(name)
    assert Quiet.asked == ["/model.pth"]
    assert sorted(file.name for file in cache_folder(name).iterdir()) == ["config.json", "model.safetensors"]
    images = torch.randn(1, 3, 48, 48)
    for each in (model, again):
        with torch.inference_mode():
            logits = each(images)
        torch.testing.assert_close(logits.double(), mmsegmentation_logits(state, images, TOY), atol=1e-5, rtol=1e-5)


def test_a_wrong_hash_is_refused_and_nothing_is_converted(
    served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    save_mmsegmentation(folder / "model.pth", mmsegmentation_state(TOY, "linear"), TOY)
    name = publish(monkeypatch, f"{address}/model.pth", "00000000")
    with pytest.raises(ms.InputError, match=r"model\.pth: sha256 is \w{8}, .* lists 00000000"):
        ms.load_model(name)
    assert not (cache_folder(name) / "config.json").exists()


def test_without_network_the_message_says_what_to_download_and_where_to_put_it(
    served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = publish(monkeypatch, "http://127.0.0.1:1/model.pth", "00000000")
    with pytest.raises(ms.InputError, match=r"http://127.0.0.1:1/model.pth: .* as .*model\.pth"):
        ms.load_model(name)


def test_a_file_without_a_published_hash_is_not_downloaded(
    served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = publish(monkeypatch, f"{served[1]}/checkpoint.pth", None)
    with pytest.raises(ms.InputError, match=r"no hash .*checkpoint\.pth and .*variant\.yml"):
        ms.load_model(name)
    assert Quiet.asked == []
    cache_folder(name).mkdir(parents=True)
    save_segmenter(cache_folder(name), segmenter_state(TOY, "linear"), TOY)
    assert ms.load_model(name).label_space.num_classes == TOY.K


def test_the_table_names_each_model_once_with_its_hash_as_in_the_file_name() -> None:
    assert len(list(load.table())) == len(PUBLISHED) + 1
    for entry in PUBLISHED.values():
        assert entry.digest is None or entry.url.endswith(f"-{entry.digest}.pth")
    assert sum(entry.digest is not None for entry in PUBLISHED.values()) == 5


def test_a_cached_model_is_read_without_a_lock(served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, address = served
    path = save_mmsegmentation(folder / "model.pth", mmsegmentation_state(TOY, "linear"), TOY)
    name = publish(monkeypatch, f"{address}/model.pth", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    ms.load_model(name)
    monkeypatch.setattr(load, "_lock", lambda _: pytest.fail("a shared cache may be for reading only"))
    assert ms.load_model(name).label_space.num_classes == TOY.K
