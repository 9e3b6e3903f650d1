"""`meanshifter predict` of videos."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import meanshifter as ms
from meanshifter.cli.main import main
from tests import commands
from tests.data.clips import picture, read_frames, write_clip

pytest.importorskip("av", reason="PyAV is missing: pip install av")
SMALL = {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8}
RESULTS = ["areas.csv", "areas.png", "labels.mp4", "overlay.mp4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    ms.create_model("meanshifter-ti16", classes=["sky", "road"], image_size=32, encoder_args=SMALL).save(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def predict(model: str, *words: str) -> int:
    return main(["predict", model, *words, "--window", "none", "--short-side", "none", "--out", "out"])


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_each_video_gets_a_folder_of_results(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    write_clip(Path("a.mp4"), count=5)
    frames = [Image.fromarray(picture(number)) for number in (1, 9)]
    frames[0].save("b.gif", save_all=True, append_images=frames[1:], duration=200)
    assert predict(model, "a.mp4", "b.gif") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert ["a.mp4: 5 frames" in line or "b.gif: 2 frames" in line for line in out.splitlines()] == [True, True]
    assert (names("out"), names("out/a"), names("out/b")) == (["a", "b"], RESULTS, RESULTS)
    assert read_frames(Path("out/b/overlay.mp4"))[0] == pytest.approx([0, 0.2])


def test_a_folder_of_frames_is_a_video_if_asked(model: str) -> None:
    Path("frames").mkdir()
    for number in (1, 2, 10):
        Image.fromarray(picture(number)).save(f"frames/{number}.png")
    assert predict(model, "frames", "--as-video", "5", "--frames") == 0
    assert read_frames(Path("out/frames/labels.mp4"))[0] == pytest.approx([0, 0.2, 0.4])
    assert names("out/frames/frames") == ["1.png", "10.png", "2.png"]


def test_a_video_that_cannot_be_read_is_named_and_the_others_are_written(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.mp4").write_bytes(b"junk" * 100)
    write_clip(Path("a.mp4"), count=2)
    assert predict(model, "broken.mp4", "a.mp4") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "broken.mp4: cannot be opened as a video" in line
    assert names("out") == ["a"]


def test_a_video_that_breaks_off_is_labeled_with_status_2(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = write_clip(Path("a.mp4"), count=40).read_bytes()
    Path("a.mp4").write_bytes(content[: len(content) * 3 // 4])
    assert predict(model, "a.mp4") == 2
    lines = capsys.readouterr().err.splitlines()
    assert any("a.mp4: ends after" in line for line in lines)
    assert 0 < len(read_frames(Path("out/a/labels.mp4"))[0]) < 40


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.mp4", "--resume"], "--resume: does not apply to videos"),
        (["a.mp4", "--overwrite"], "--overwrite: does not apply to videos"),
        (["a.mp4", "--confidence", "margin"], "--confidence: "),
        (["a.mp4", "--probabilities", "sky"], "--probabilities: "),
        (["a.mp4", "--sheet"], "--sheet: "),
        (["a.mp4", "--devices", "2"], "--devices: "),
        (["a.mp4", "--backend", "ray"], "--backend: "),
        (["a.mp4", "--mean-shift-layers", "0", "1"], "--mean-shift-layers: 0 1"),
        (["a.mp4", "photo.png"], "photo.png: given together with a video, a.mp4"),
        (["a.mp4", "0"], "a camera"),
        (["a.mp4", "deeper/a.mov"], "a: for the results of both a.mp4 and deeper/a.mov"),
        (["photo.png", "--frames"], "--frames: only applies to videos"),
        (["a.mp4", "--as-video", "5"], "--as-video: a.mp4 is not a folder"),
        (["empty", "--as-video", "5"], "empty: no images"),
        (["deeper", "--as-video", "0"], "fps: 0"),
        (["https://example.org/a.mp4"], "a.mp4: videos at addresses are not read"),
        (["none/*.mp4"], "none/*.mp4: no such file"),
        (["none.mp4"], "none.mp4: no such file"),
        (["a.mp4", "--max-pixels", "10"], "a.mp4: frames of 64×48 pixels"),
    ],
)
def test_what_conflicts_is_refused_before_the_model_is_loaded(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(Path("a.mp4"), count=1)
    Path("empty").mkdir()
    Path("deeper").mkdir()
    Path("deeper/a.mov").touch()
    Image.fromarray(picture(0)).save("photo.png")
    Image.fromarray(picture(0)).save("deeper/1.png")
    assert predict("no-model", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path("out").exists()


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_clip(Path("a.mp4"), count=1)
    monkeypatch.setattr("meanshifter.utils.environment.find_spec", lambda name: None)
    assert predict("no-model", "a.mp4") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "[video]" in line


def test_without_matplotlib_the_plot_is_left_out_and_said(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(Path("a.mp4"), count=1)
    monkeypatch.setattr("meanshifter.analysis.figures.find_spec", lambda name: None)
    assert predict(model, "a.mp4") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "matplotlib" in line
    assert names("out/a") == [name for name in RESULTS if name != "areas.png"]


@pytest.mark.skipif(os.name == "nt", reason="signals of processes are those of POSIX")
def test_ctrl_c_leaves_playable_files(model: str, tmp_path: Path) -> None:
    write_clip(Path("long.mp4"), count=800)
    words = ["predict", model, "long.mp4", "--frames", "--window", "none", "--short-side", "none", "--out", "out"]
    running = commands.start(*words, cwd=tmp_path)
    waited = time.monotonic() + 60
    while len(list(tmp_path.glob("out/long/.frames*/*.png"))) < 3 and time.monotonic() < waited:
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGINT)
    done = running.wait()
    assert done.returncode == 130, done.stderr
    (line,) = done.stderr.splitlines()
    count = int(line.partition("interrupted after ")[2].split()[0])
    assert 0 < count < 800
    assert names("out/long") == ["areas.csv", "frames", "labels.mp4", "overlay.mp4"]
    assert len(names("out/long/frames")) == count
    for name in ("labels.mp4", "overlay.mp4"):
        assert len(read_frames(Path("out/long") / name)[0]) == count
    assert len(Path("out/long/areas.csv").read_text("utf-8").splitlines()) == count + 1
