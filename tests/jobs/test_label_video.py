"""Videos are labeled as their frames are, and results are complete or not there."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import meanshifter as ms
from meanshifter.analysis.areas import BINS, plot_areas
from meanshifter.data.video import open_clip
from meanshifter.inference.predictor import Predictor
from meanshifter.jobs.clips import plan_clips
from meanshifter.jobs.video import label_video
from tests.conftest import ModelFactory
from tests.data.clips import read_frames, set_matrix, write_clip

pytest.importorskip("av", reason="PyAV is missing: pip install av")
TIMES = [0, 130, 170, 990, 1500]


@pytest.fixture
def predictor(tiny_model: ModelFactory) -> ms.Predictor:
    # two windows to a frame, and two frames to a pass
    return ms.Predictor(tiny_model(), window=48, window_stride=16, short_side=None, batch_size=4)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", times=TIMES, size=(48, 64))


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_all_results_are_those_of_the_frames(predictor: ms.Predictor, clip: Path, tmp_path: Path) -> None:
    set_matrix(clip, 0, 1, -1, 0)  # shown with its sides swapped
    done = label_video(predictor, clip, tmp_path / "out", frames=True, alpha=0.4)
    assert (done.frames, done.losses) == (5, ())
    assert sorted(path.name for path in done.folder.iterdir()) == sorted(done.files)
    with open_clip(clip) as opened:
        frames = [frame.pixels for frame in opened.frames]
    header, *areas = rows(done.folder / "areas.csv")
    assert header == ["frame", "seconds", *predictor.model.label_space.names]
    labels_times, labels_video = read_frames(done.folder / "labels.mp4")
    overlay_times, overlay_video = read_frames(done.folder / "overlay.mp4")
    assert labels_times == overlay_times == pytest.approx([time / 1000 for time in TIMES])
    assert len(areas) == len(labels_video) == len(overlay_video) == 5
    for number, pixels in enumerate(frames):
        with Image.open(done.folder / "frames" / f"{number:06d}.png") as picture:
            labels = np.array(picture)
        assert labels.shape == (64, 48)
        alone = predictor(pixels)
        assert np.mean(labels != alone.labels) < 0.002
        counts = np.bincount(labels.ravel(), minlength=7) / labels.size
        np.testing.assert_allclose([float(share) for share in areas[number][2:]], counts, atol=1e-6)
        assert float(areas[number][1]) == pytest.approx(TIMES[number] / 1000)
        colors = np.asarray(predictor.model.label_space.palette)[labels]
        # chroma has half the resolution: exact but for the pixels at borders of regions
        assert np.median(abs(labels_video[number].astype(int) - colors)) <= 2
        overlay = np.asarray(alone.overlay(0.4)).astype(int)
        assert np.median(abs(overlay_video[number].astype(int) - overlay)) <= 6


def test_a_folder_of_frames_names_its_label_maps(predictor: ms.Predictor, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in (9, 10):
        Image.new("RGB", (31, 20), (number, 0, 0)).save(tmp_path / "in" / f"f{number}.png")
    done = label_video(predictor, tmp_path / "in", tmp_path / "out", fps=4, frames=True, overlay=False)
    assert sorted(path.name for path in (done.folder / "frames").iterdir()) == ["f10.png", "f9.png"]
    assert not (done.folder / "overlay.mp4").exists()
    times, pixels = read_frames(done.folder / "labels.mp4")
    assert times == [0, 0.25]
    assert pixels[0].shape == (20, 32, 3)


def stopped_after(predictor: Predictor, batches: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    segment, calls = predictor.segment_batch, []

    def stop(images: Any) -> Any:
        calls.append(len(images))
        if len(calls) > batches:
            raise error
        return segment(images)

    monkeypatch.setattr(predictor, "segment_batch", stop)


def test_an_interrupt_leaves_the_frames_that_are_done(
    predictor: ms.Predictor, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    stopped_after(predictor, 2, KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt, match="after 4 frames"):
        label_video(predictor, clip, out, frames=True)
    for name in ("labels.mp4", "overlay.mp4"):
        assert read_frames(out / name)[0] == pytest.approx([time / 1000 for time in TIMES[:4]])
    assert len(rows(out / "areas.csv")) == 5
    assert len(list((out / "frames").iterdir())) == 4


def test_an_interrupt_replaces_no_earlier_results(
    predictor: ms.Predictor, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    label_video(predictor, clip, out)
    before = (out / "labels.mp4").read_bytes()
    stopped_after(predictor, 1, KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt, match=r"after 2 frames; .*interrupted"):
        label_video(predictor, clip, out)
    assert (out / "labels.mp4").read_bytes() == before
    assert len(read_frames(out / "interrupted" / "labels.mp4")[0]) == 2
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


def test_an_error_leaves_earlier_results_and_no_others(
    predictor: ms.Predictor, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    label_video(predictor, clip, out, frames=True)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    stopped_after(predictor, 1, ms.InputError("image: too large"), monkeypatch)
    with pytest.raises(ms.InputError, match="too large"):
        label_video(predictor, clip, out, frames=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    with pytest.raises(ms.InputError, match="too large"):
        label_video(predictor, clip, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_earlier_results_are_replaced(predictor: ms.Predictor, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    label_video(predictor, write_clip(tmp_path / "long.mp4", count=7), out, frames=True)
    label_video(predictor, clip, out, frames=True)
    assert len(read_frames(out / "labels.mp4")[0]) == len(list((out / "frames").iterdir())) == 5
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_places_that_cannot_hold_results_are_refused(predictor: ms.Predictor, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ms.InputError, match="file: is a file"):
        label_video(predictor, clip, tmp_path / "file")
    with pytest.raises(ms.InputError, match="below: cannot be written"):
        label_video(predictor, clip, tmp_path / "file" / "below")
    (tmp_path / "out" / "labels.mp4").mkdir(parents=True)
    with pytest.raises(ms.InputError, match=r"labels\.mp4: is a folder"):
        label_video(predictor, clip, tmp_path / "out")
    own = clip.rename(clip.with_name("labels.mp4"))
    with pytest.raises(ms.InputError, match=r"labels\.mp4: the results would be written over it"):
        label_video(predictor, own, tmp_path)
    with pytest.raises(ms.InputError, match="written over it"):
        label_video(predictor, tmp_path / "out", tmp_path / "out", fps=1)


def test_a_camera_that_is_too_fast_says_what_was_left_out(
    predictor: ms.Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    av = pytest.importorskip("av")
    if "lavfi" not in av.formats_available:
        pytest.skip("this build of PyAV has no generated input in place of a camera")
    monkeypatch.setattr("meanshifter.data.video._camera", lambda index: ("testsrc=s=64x48:r=9:d=30", "lavfi", {}))
    done = label_video(predictor, 0, tmp_path / "out", overlay=False)
    (loss,) = done.losses
    assert int(loss.split()[0]) + done.frames == 270
    times = read_frames(done.folder / "labels.mp4")[0]
    assert len(times) == done.frames
    assert all(round(time * 9, 3).is_integer() for time in times), "frames keep their times"


def test_each_clip_has_a_folder_of_its_own(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.MOV", "c.jpg"):
        (tmp_path / name).touch()
    names = [str(tmp_path / "a.mp4"), str(tmp_path / "*.MOV")]
    jobs = plan_clips(names, tmp_path / "out")
    assert [(job.source, job.out) for job in jobs] == [
        (tmp_path / "a.mp4", tmp_path / "out" / "a"),
        (tmp_path / "b.MOV", tmp_path / "out" / "b"),
    ]
    assert [(job.source, job.out.name) for job in plan_clips(["3"], tmp_path)] == [(3, "camera_3")]
    assert plan_clips([str(tmp_path / "c.jpg"), "*.png"], tmp_path) == []


def test_the_plot_has_the_areas_of_long_videos(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    space = ms.LabelSpace(tuple(f"class $ {k}" for k in range(20)))
    lines = ["frame,seconds," + ",".join(space.names)]
    lines += [f"{n},{n / 25:.6f}," + ",".join(["0.05"] * 20) for n in range(2 * BINS)]
    (tmp_path / "areas.csv").write_text("\n".join(lines), "utf-8")
    plot_areas(tmp_path / "areas.csv", tmp_path / "areas.png", space)
    with Image.open(tmp_path / "areas.png") as picture:
        assert picture.width > picture.height > 300
    with pytest.raises(ms.InputError, match=r"areas\.csv: not a file of areas"):
        plot_areas(tmp_path / "areas.csv", tmp_path / "areas.png", ms.LabelSpace(("a", "b")))
