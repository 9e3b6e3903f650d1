"""Reading and writing videos frame by frame."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from meanshifter.data.video import Clip, Frame, _Times, is_clip, open_clip
from meanshifter.data.video_writer import VideoWriter
from meanshifter.errors import InputError
from tests.data.clips import picture, read_frames, set_matrix, write_clip

pytest.importorskip("av", reason="PyAV is missing: pip install av")


def read(source: Path | int, **options: Any) -> tuple[Clip, list[Frame]]:
    with open_clip(source, **options) as clip:
        return clip, list(clip.frames)


def seconds(clip: Clip, frames: list[Frame]) -> list[float]:
    return [float(frame.pts * clip.time_base) for frame in frames]


def test_frames_come_in_order_with_their_pixels(tmp_path: Path) -> None:
    clip, frames = read(write_clip(tmp_path / "a.mp4"))
    assert (clip.size, clip.count, clip.rate) == ((48, 64), 6, Fraction(10))
    assert not clip.losses
    assert [frame.name for frame in frames] == [f"00000{number}" for number in range(6)]
    for number, frame in enumerate(frames):
        # chroma has half the resolution, so colors mix at borders
        np.testing.assert_allclose(frame.pixels[-8:, 20:].astype(int), picture(number)[-8:, 20:], atol=6)
        np.testing.assert_allclose(frame.pixels[2:8, 2:12].astype(int), picture(number)[2:8, 2:12], atol=6)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_times_are_those_of_the_file(tmp_path: Path, suffix: str) -> None:
    times = [0, 130, 170, 990, 1000, 2500]
    clip, frames = read(write_clip(tmp_path / f"a{suffix}", times=times))
    assert seconds(clip, frames) == pytest.approx([time / 1000 for time in times])


def test_times_count_from_the_start_of_the_file(tmp_path: Path) -> None:
    clip, frames = read(write_clip(tmp_path / "a.mp4", times=[3000, 3130, 3170]))
    assert seconds(clip, frames) == pytest.approx([0, 0.13, 0.17])


TURNS = [(1, 0, 0, 1), (-1, 0, 0, -1), (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, -1, 0), (0, -1, 1, 0), (0, 1, 1, 0)]
TURNS += [(0, -1, -1, 0)]


@pytest.mark.parametrize("matrix", TURNS)
def test_frames_are_turned_by_the_display_matrix(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    path = write_clip(tmp_path / "a.mp4", count=1, aspect=Fraction(4, 3))
    stored = read_frames(path)[1][0]
    set_matrix(path, *matrix)
    clip, (frame,) = read(path)
    a, b, c, d = matrix
    y, x = np.mgrid[: stored.shape[0], : stored.shape[1]]
    shown_x, shown_y = a * x + c * y, b * x + d * y
    expected = np.empty_like(frame.pixels)
    expected[shown_y - shown_y.min(), shown_x - shown_x.min()] = stored
    np.testing.assert_array_equal(frame.pixels, expected)
    assert clip.size == frame.pixels.shape[:2]
    assert clip.pixel_aspect == (Fraction(3, 4) if b else Fraction(4, 3))


def test_a_rotation_by_other_angles_is_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", count=1)
    set_matrix(path, 1, 1, -1, 1)
    with pytest.raises(InputError, match=r"a\.mp4: rotated by -?45 degrees"):
        read(path)


def test_an_animated_gif_is_a_clip_and_another_is_not(tmp_path: Path) -> None:
    colors = ["red", "green", "blue"]
    pictures = [Image.new("RGB", (40, 30), color) for color in colors]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=[100, 300, 50])
    pictures[0].save(tmp_path / "b.gif")
    assert is_clip(tmp_path / "a.gif")
    assert not is_clip(tmp_path / "b.gif")
    clip, frames = read(tmp_path / "a.gif")
    assert seconds(clip, frames) == pytest.approx([0, 0.1, 0.4])
    assert [frame.duration for frame in frames] == [10, 30, 5]
    for frame, image in zip(frames, pictures, strict=True):
        np.testing.assert_array_equal(frame.pixels, np.asarray(image))


def frames_folder(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    for number, name in enumerate(names):
        Image.fromarray(picture(number)).save(folder / name)
    return folder


def test_a_folder_of_frames_is_read_in_the_order_of_numbers(tmp_path: Path) -> None:
    names = ["f2.png", "f10.png", "f9.png", "f1.png"]
    folder = frames_folder(tmp_path / "frames", names)
    (folder / "deeper").mkdir()
    Image.new("RGB", (64, 48)).save(folder / "deeper" / "f3.png")
    clip, frames = read(folder, fps=12.5)
    assert [frame.name for frame in frames] == ["f1", "f2", "f9", "f10"]
    assert seconds(clip, frames) == pytest.approx([0, 0.08, 0.16, 0.24])
    np.testing.assert_array_equal(frames[3].pixels, picture(1))


def test_frames_of_two_sizes_are_refused(tmp_path: Path) -> None:
    folder = frames_folder(tmp_path / "frames", ["1.png", "2.png"])
    Image.new("RGB", (60, 48)).save(folder / "2.png")
    with pytest.raises(InputError, match=r"2\.png: 60×48, but the first frame 1\.png is 64×48"):
        read(folder, fps=1)


@pytest.mark.parametrize(("fps", "message"), [(None, "fps: missing"), (0, "fps: 0"), (float("nan"), "fps: nan")])
def test_a_folder_needs_its_rate(tmp_path: Path, fps: float | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(frames_folder(tmp_path / "frames", ["1.png"]), fps=fps)


def test_a_rate_for_a_video_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"fps: 5 for .*a\.mp4"):
        read(write_clip(tmp_path / "a.mp4"), fps=5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no images"):
        read(tmp_path / "empty", fps=5)


def write_sound(path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=8000)
        frame: Any = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def test_what_is_no_video_is_refused_with_its_name(tmp_path: Path) -> None:
    write_sound(tmp_path / "sound.mkv")
    (tmp_path / "junk.mp4").write_bytes(b"junk" * 1000)
    (tmp_path / "empty.mp4").touch()
    whole = write_clip(tmp_path / "whole.avi", codec="mpeg4", times=range(6)).read_bytes()
    (tmp_path / "header.avi").write_bytes(whole[: whole.index(b"movi") + 4])
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{write_clip(tmp_path / 'other.ts')}\n#EXT-X-ENDLIST\n"
    (tmp_path / "playlist.mp4").write_text(playlist)
    Image.new("RGB", (64, 48)).save(tmp_path / "photo.png")
    (tmp_path / "photo.png").rename(tmp_path / "photo.mp4")
    reasons = {
        "playlist.mp4": "cannot be opened",
        "photo.mp4": "cannot be opened",
        "sound.mkv": "has no video .audio",
        "junk.mp4": "cannot be opened",
        "empty.mp4": "cannot be opened",
        "header.avi": "has no frames",
        "missing.mp4": "no such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(InputError, match=f"{name}: {reason}"):
            read(tmp_path / name)


def test_frames_larger_than_the_limit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.mp4: frames of 64×48 pixels are more than the limit of 3,071"):
        read(write_clip(tmp_path / "a.mp4"), max_pixels=64 * 48 - 1)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_file_that_breaks_off_says_so(tmp_path: Path, suffix: str) -> None:
    path = write_clip(tmp_path / f"a{suffix}", count=40)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    clip, frames = read(path)
    assert 0 < len(frames) < 40
    assert any("of the 4.0 s" in loss for loss in clip.losses)


def test_frames_that_cannot_be_decoded_are_counted(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", count=60)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 300] = b"\x55" * 300
    path.write_bytes(content)
    clip, frames = read(path)
    (loss,) = [loss for loss in clip.losses if "cannot be decoded" in loss]
    assert int(loss.split()[0]) == 60 - len(frames) > 0


def test_frames_of_another_size_are_resized_to_the_first(tmp_path: Path) -> None:
    parts = [write_clip(tmp_path / f"{n}.ts", count=15, size=size) for n, size in enumerate([(48, 64), (96, 128)])]
    (tmp_path / "a.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.warns(UserWarning, match="from frame 15 on, frames are 128×96"):
        clip, frames = read(tmp_path / "a.ts")
    assert [frame.pixels.shape for frame in frames] == [(48, 64, 3)] * 30
    assert seconds(clip, frames) == pytest.approx([number / 10 for number in range(30)]), "times that restart go on"


def test_frames_at_one_time_and_without_a_time_follow_each_other() -> None:
    times = _Times(None, 10, restart=100)
    assert [times.shown(pts) for pts in (7, 7, None, 30, 25, 40)] == [0, 1, 11, 23, 24, 33]


def test_the_writer_keeps_times_durations_and_the_shape_of_pixels(tmp_path: Path) -> None:
    times, base = [0, 130, 170, 990], Fraction(1, 1000)
    writer = VideoWriter(tmp_path / "a.mp4", (45, 61), time_base=base, rate=Fraction(25), pixel_aspect=Fraction(4, 3))
    colors = [(128, 64, 0), (0, 128, 192), (60, 40, 222), (255, 255, 255)]
    for time, color in zip(times, colors, strict=True):
        writer.write(np.full((45, 61, 3), color, np.uint8), time, 500 if time == 990 else 0)
    writer.close()
    clip, frames = read(tmp_path / "a.mp4")
    assert (clip.size, clip.pixel_aspect) == ((46, 62), Fraction(4, 3))  # odd sides are padded
    assert seconds(clip, frames) == pytest.approx([time / 1000 for time in times])
    assert frames[-1].duration * clip.time_base == Fraction(1, 2)
    for frame, color in zip(frames, colors, strict=True):
        np.testing.assert_allclose(frame.pixels.astype(int), np.broadcast_to(color, (46, 62, 3)), atol=2)


def test_the_writer_keeps_the_duration_of_every_frame(tmp_path: Path) -> None:
    gaps = [40 + 30 * (number % 5) for number in range(30)]
    times = [sum(gaps[:number]) for number in range(30)]
    writer = VideoWriter(tmp_path / "a.mp4", (48, 64), time_base=Fraction(1, 1000), rate=Fraction(10))
    for number, time in enumerate(times):
        writer.write(np.roll(picture(number), number, axis=1), time, gaps[number])
    writer.close()
    clip, frames = read(tmp_path / "a.mp4")
    assert [frame.duration * clip.time_base * 1000 for frame in frames] == gaps


def test_a_camera_starts_at_zero_and_is_live(monkeypatch: pytest.MonkeyPatch) -> None:
    av = pytest.importorskip("av")
    if "lavfi" not in av.formats_available:
        pytest.skip("this build of PyAV has no generated input in place of a camera")
    pattern = "testsrc=size=64x48:rate=5:duration=1,setpts=PTS+1000/TB"
    monkeypatch.setattr("meanshifter.data.video._camera", lambda index: (pattern, "lavfi", {}))
    clip, frames = read(0)
    assert (clip.live, clip.size, len(frames), clip.losses) == (True, (48, 64), 5, [])
    assert seconds(clip, frames) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


def test_a_missing_camera_is_named() -> None:
    with pytest.raises(InputError, match="camera 77"):
        read(77)


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.mp4", count=1)
    monkeypatch.setattr("meanshifter.utils.environment.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"package av, .*\[video\]"):
        read(path)
