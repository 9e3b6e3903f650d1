"""The explorer's addresses, without a browser: what they answer, and whom they refuse."""

from __future__ import annotations

import http.client
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import meanshifter as ms
from meanshifter.app import gallery
from meanshifter.app.explorer import Explorer
from meanshifter.app.gallery import Gallery
from meanshifter.app.same_origin import allowed_names
from meanshifter.app.server import FILES, create_app, labels_png
from tests.app.conftest import CLASSES, Client, served
from tests.conftest import ModelFactory

PAIR = "model=shifter&image=0"


def image_of(client: Client, path: str) -> np.ndarray:
    status, body = client.ask(path)
    assert status == 200, body
    return np.asarray(Image.open(io.BytesIO(body)))


def png(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def lines(client: Client, pair: str) -> list[dict[str, object]]:
    status, body = client.ask(f"/api/read?{pair}", method="POST")
    assert status == 200, body
    return [json.loads(line) for line in body.splitlines()]


def test_the_page_and_all_of_its_files_are_served(client: Client) -> None:
    status, body = client.ask("/")
    assert (status, b"MeanShifter explorer" in body) == (200, True)
    folder = Path(gallery.__file__).parent / "page"
    assert {path.name for path in folder.iterdir()} == set(FILES)
    for name in FILES:
        assert client.ask(f"/page/{name}") == (200, (folder / name).read_bytes())
    for name in ("../server.py", "..%2Fserver.py", "/etc/passwd", "%2Fetc%2Fpasswd", "explorer.pyc"):
        assert client.ask(f"/page/{name}")[0] == 404


def test_the_state_describes_models_and_images(client: Client) -> None:
    state = client.json("/api/state")
    shifter, plain = state["models"]
    assert (shifter["name"], shifter["trained"], shifter["steps"], shifter["no_steps"]) == (
        "shifter",
        2,
        [0, 1, 2, 3],
        "",
    )
    assert (plain["steps"], plain["no_tokens"]) == ([0], "")
    assert "no mean shift block" in plain["no_steps"]
    assert state["images"] == [{"id": str(k), "name": f"scene{k}", "truth": True} for k in range(3)]


def test_label_maps_are_those_of_the_predictor(client: Client, explorer: Explorer, folder: Path) -> None:
    facts = lines(client, PAIR)[-1]
    assert facts == {"size": [64, 96], "shown": [64, 96], "stride": 1, "steps": [0, 1, 2, 3], "limited": False}
    for step in (0, 2):
        expected = explorer.predictors["shifter"](folder / "images/scene0.png", mean_shift_layers=step)
        assert (image_of(client, f"/api/labels?{PAIR}&step={step}") == expected.labels).all()
    assert image_of(client, f"/api/confidence?{PAIR}&step=2").shape == (64, 96)
    assert image_of(client, "/api/picture?image=0").shape == (64, 96, 3)


def test_ground_truth_is_the_mask(client: Client, folder: Path) -> None:
    assert (image_of(client, "/api/truth?image=0") == np.asarray(Image.open(folder / "masks/scene0.png"))).all()


def test_above_255_classes_a_pixel_has_two_bytes() -> None:
    labels = np.array([[0, 255, 256], [299, 65535, 7]], np.uint16)
    found = np.asarray(Image.open(io.BytesIO(bytes(labels_png(labels).body)))).astype(int)
    assert (found[..., 0] + 256 * found[..., 1] == labels).all()


def test_a_patch_has_a_similarity_for_each_patch_and_a_row_of_weights(client: Client) -> None:
    about = client.json(f"/api/tokens?{PAIR}")
    (h, w), layers = about["grid"], about["layers"]
    assert (about["region"], layers) == ([0, 0, 96, 64], 3)
    status, body = client.ask(f"/api/patch?{PAIR}&token=4&step=1")
    values = np.frombuffer(body, "<f4")
    assert (status, len(values)) == (200, 2 * h * w)
    assert values[4] == pytest.approx(1)
    assert values[h * w :].sum() == pytest.approx(1, abs=1e-5)
    assert len(client.ask("/api/patch?model=plain&image=0&token=4&step=0")[1]) == 4 * h * w  # it has no next step
    assert len(client.ask(f"/api/plane?{PAIR}")[1]) == 4 * (layers + 1) * h * w * 2
    assert len(client.ask(f"/api/modes?{PAIR}&step=3")[1]) == 2 * h * w


def test_a_dropped_image_is_kept_outside_of_the_folder_and_deleted(client: Client, explorer: Explorer) -> None:
    found = client.json("/api/images?name=..%2F..%2Fphoto.png", method="POST", body=png(40, 48))
    assert found == {"id": "u1", "name": "photo.png", "truth": False}
    entry = explorer.gallery.find("u1")
    assert entry is not None
    assert Path(str(entry.place)).parent == Path(explorer.gallery._folder.name)
    assert lines(client, "model=shifter&image=u1")[-1]["size"] == [40, 48]
    assert client.ask("/api/truth?image=u1")[0] == 400
    other = Gallery()
    _, kept = other.add("a.png", png(8, 8))
    other.close()
    assert not Path(str(kept.place)).exists()


def test_only_the_last_dropped_images_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "KEPT_UPLOADS", 2)
    kept = Gallery()
    paths = [Path(str(kept.add("a.png", png(8, 8))[1].place)) for _ in range(3)]
    assert [path.exists() for path in paths] == [False, True, True]
    assert list(kept.entries()) == ["u3", "u2"]
    kept.close()


def test_what_is_no_image_or_too_large_is_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, body in (("a.png", b"no image"), ("a.exe", png(8, 8)), ("a.svg", b"<svg/>")):
        status, said = client.ask(f"/api/images?name={name}", method="POST", body=body)
        assert status == 400
        assert name in json.loads(said)["error"]
    monkeypatch.setattr(gallery, "MAX_UPLOAD_PIXELS", 100)
    assert client.ask("/api/images?name=a.png", method="POST", body=png(20, 20))[0] == 400
    monkeypatch.setattr("meanshifter.app.server.MAX_UPLOAD", 1000)
    assert client.ask("/api/images?name=a.png", method="POST", body=bytes(1001))[0] == 413


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/picture?image=99", 404),
        ("/api/picture?image=../secret.png", 404),
        ("/api/picture", 404),
        ("/api/labels?model=other&image=0&step=0", 404),
        (f"/api/labels?{PAIR}&step=99", 404),
        (f"/api/labels?{PAIR}&step=x", 400),
        (f"/api/modes?{PAIR}&step=4", 400),
        (f"/api/patch?{PAIR}&step=0&token=96", 400),
        (f"/api/patch?{PAIR}&step=0&token=-1", 400),
        (f"/api/tokens?{PAIR}&y=a&x=1", 400),
    ],
)
def test_what_does_not_exist_is_refused_in_words(path: str, status: int, client: Client) -> None:
    found, body = client.ask(path)
    assert found == status
    assert json.loads(body)["error"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "[broken"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_requests_of_other_sites_are_refused(headers: dict[str, str], client: Client) -> None:
    for path, method in (("/api/state", "GET"), ("/api/picture?image=0", "GET"), ("/api/images?name=a.png", "POST")):
        assert client.ask(path, method=method, headers=headers, body=b"")[0] == 403


def test_requests_of_the_page_itself_are_answered(client: Client) -> None:
    for host in (f"127.0.0.1:{client.port}", f"localhost:{client.port}"):
        headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        assert client.ask("/api/state", headers=headers)[0] == 200
    assert client.ask("/", headers={"Sec-Fetch-Site": "cross-site"})[0] == 200  # a link to the page


def test_a_server_for_other_machines_answers_to_addresses_but_not_to_foreign_names(explorer: Explorer) -> None:
    assert allowed_names("127.0.0.1") == frozenset(("localhost", "127.0.0.1", "::1"))
    assert allowed_names("0.0.0.0") is None
    middleware = create_app(explorer, None).user_middleware[0]
    checks = middleware.cls(lambda *_: None, **middleware.kwargs)  # type: ignore[call-arg, arg-type]
    assert checks._is_own("192.168.0.7")  # type: ignore[attr-defined]
    assert not checks._is_own("evil.example")  # type: ignore[attr-defined]


def test_an_answer_may_not_be_framed_or_read_by_others(client: Client) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
    connection.request("GET", "/")
    answer = connection.getresponse()
    answer.read()
    connection.close()
    assert "frame-ancestors 'none'" in str(answer.getheader("Content-Security-Policy"))
    assert answer.getheader("Cross-Origin-Resource-Policy") == "same-origin"
    assert answer.getheader("Access-Control-Allow-Origin") is None


def test_an_image_that_cannot_be_read_is_named(models: dict[str, ms.Segmenter], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(png(20, 20)[:200])
    with served(Explorer(models, tmp_path)) as client:
        assert "broken.png" in str(lines(client, PAIR)[-1]["error"])
        status, body = client.ask("/api/picture?image=0")
        assert status == 400
        assert "broken.png" in json.loads(body)["error"]


@pytest.mark.skipif(os.name != "posix", reason="names are characters, not bytes")
def test_a_name_that_is_no_text_is_shown_escaped(models: dict[str, ms.Segmenter], tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"a\xff\n.png")).write_bytes(png(8, 8))
    with served(Explorer(models, tmp_path)) as client:
        (image,) = client.json("/api/state")["images"]
        assert "\n" not in image["name"]
        assert image["name"].isascii()
        assert image_of(client, "/api/picture?image=0").shape == (8, 8, 3)


def test_a_model_of_other_classes_has_no_ground_truth(tiny_model: ModelFactory, folder: Path) -> None:
    data = ms.datasets.Folder(folder, "all", label_space=ms.LabelSpace.unnamed(CLASSES))
    explorer = Explorer({"a": tiny_model(), "b": tiny_model(num_classes=3)}, data)
    first, second = explorer.describe()["models"]
    explorer.close()
    assert first["no_truth"] == ""
    assert "3 classes" in second["no_truth"]


def test_what_nobody_waits_for_is_stopped(models: dict[str, ms.Segmenter], tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4000, 64, 3), np.uint8)).save(tmp_path / "tall.png")
    predictor = ms.Predictor(models["shifter"], window=32, window_stride=16, short_side=None, batch_size=1)
    explorer = Explorer({"shifter": predictor}, tmp_path)
    job = explorer.start("shifter", "0")
    with job:
        assert not job.future.done()
    error = job.future.exception(60)
    assert isinstance(error, ms.InputError)
    assert "tall.png" in str(error)
    explorer.close()


def test_arguments_that_name_nothing_are_refused(tiny_model: ModelFactory, tmp_path: Path) -> None:
    for images, word in ((tmp_path / "none", "none"), (tmp_path, "no images"), (tmp_path / "a.png", "a.png")):
        with pytest.raises(ms.InputError, match=word):
            Explorer(tiny_model(), images)
    with pytest.raises(ms.InputError, match="none given"):
        Explorer([])
    with pytest.raises(ms.InputError, match="steps: -1"):
        Explorer(tiny_model(), steps=-1)
