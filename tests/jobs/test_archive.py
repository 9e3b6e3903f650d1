"""Archives: streamed inputs, a manifest, and what a second run does."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import meanshifter as ms
from meanshifter.data.remote import is_address
from meanshifter.errors import InputError
from meanshifter.jobs.archive import Summary, Work, label_archive
from meanshifter.jobs.manifest import Done, open_log, open_store
from meanshifter.model.saving import weights_hash
from tests.conftest import ModelFactory


@pytest.fixture(scope="module")
def model(tiny_model: ModelFactory) -> ms.Segmenter:
    return tiny_model()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a.png", "trip/b.jpg", "trip/c.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/", recursive=True)


def label(model: ms.Segmenter, given: object, out: object, *, overwrite: bool = False, **reading: Any) -> Summary:
    work = Work(model, {"short_side": None, "window": None, **reading})
    return label_archive(work, [str(given)], str(out), overwrite=overwrite)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("manifest"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def counts(summary: Summary) -> tuple[int, int, int]:
    return summary.done, summary.skipped, summary.failed


def test_the_files_are_those_of_the_predictor(model: ms.Segmenter, photos: Path, tmp_path: Path) -> None:
    assert counts(label(model, photos, tmp_path / "out", confidence=("margin",))) == (3, 0, 0)
    predictor = ms.Predictor(model, short_side=None, window=None)
    for name in ("a.png", "trip/b.jpg", "trip/c.png"):
        predictor(photos / name).save(tmp_path / "expected" / Path(name).with_suffix(".png"))
    found = contents(tmp_path / "out")
    for name, data in contents(tmp_path / "expected").items():
        assert found.pop(name) == data
    assert sorted(found) == [f"confidence/margin/{name}" for name in ("a.png", "trip/b.png", "trip/c.png")]


def test_the_manifest_names_every_image_once_under_weights_and_protocol(
    model: ms.Segmenter, photos: Path, tmp_path: Path
) -> None:
    label(model, photos, tmp_path / "out")
    head, *images = lines(tmp_path / "out")
    assert head["weights"] == weights_hash(model.state_dict())
    assert head["protocol"]["window"] is None
    assert [(line["input"], line["output"]) for line in images] == [
        (str(photos / "a.png"), "a.png"),
        (str(photos / "trip" / "b.jpg"), "trip/b.png"),
        (str(photos / "trip" / "c.png"), "trip/c.png"),
    ]
    assert images[0]["size"] == (photos / "a.png").stat().st_size


def test_a_second_run_does_what_is_new_changed_or_gone(model: ms.Segmenter, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    label(model, photos, out)
    assert counts(label(model, photos, out)) == (0, 3, 0)
    (photos / "d.png").write_bytes((photos / "a.png").read_bytes())
    os.utime(photos / "a.png", (1, 1))
    (out / "trip" / "b.png").unlink()
    assert counts(label(model, photos, out)) == (3, 1, 0)
    assert counts(label(model, photos, out, overwrite=True)) == (4, 0, 0)
    assert len(lines(out)) == 5


def test_other_settings_and_other_weights_skip_nothing(
    model: ms.Segmenter, tiny_model: ModelFactory, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    label(model, photos, out)
    summary = label(model, photos, out, flip=True)
    assert (counts(summary), summary.restarted) == ((3, 0, 0), True)
    other = tiny_model(num_classes=3)
    assert counts(label(other, photos, out, flip=True)) == (3, 0, 0)
    summary = label(model, photos, out)  # whose manifest was put aside, as were its label maps
    assert (counts(summary), summary.restarted) == ((3, 0, 0), True)


def test_what_cannot_be_read_is_counted_named_and_tried_again(
    model: ms.Segmenter, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (photos / "broken.jpg").write_bytes(b"no image")
    summary = label(model, photos, out)
    assert counts(summary) == (3, 0, 1)
    assert "broken.jpg: not an image" in summary.reasons[0]
    assert [line["input"] for line in lines(out) if "error" in line] == [str(photos / "broken.jpg")]
    (photos / "broken.jpg").write_bytes((photos / "trip" / "b.jpg").read_bytes())
    assert counts(label(model, photos, out)) == (1, 3, 0)


def test_of_two_images_with_one_label_map_the_second_is_refused(
    model: ms.Segmenter, photos: Path, tmp_path: Path
) -> None:
    (photos / "a.jpg").write_bytes((photos / "trip" / "b.jpg").read_bytes())
    summary = label(model, photos, tmp_path / "out")
    assert counts(summary) == (3, 0, 1)
    assert re.search(r"a\.png: .* a\.png .*a\.jpg", summary.reasons[0])


def test_hidden_files_and_earlier_results_inside_the_input_are_passed_over(model: ms.Segmenter, photos: Path) -> None:
    (photos / ".hidden.png").write_bytes((photos / "a.png").read_bytes())
    (photos / "loop").symlink_to(photos)
    assert counts(label(model, photos, photos / "out")) == (3, 0, 0)
    assert counts(label(model, photos, photos / "out")) == (0, 3, 0)


def test_tars_and_addresses_give_the_same_bytes(model: ms.Segmenter, photos: Path, tmp_path: Path, memory: Any) -> None:
    expected = tmp_path / "expected"
    label(model, photos, expected)
    with tarfile.open(tmp_path / "shard.tar", "w") as file:
        for path in sorted(photos.rglob("*.*g")):
            file.add(path, path.relative_to(photos).as_posix())
    label(model, tmp_path / "shard.tar", tmp_path / "out")
    assert contents(tmp_path / "out" / "shard") == contents(expected)
    memory.put(f"{photos}/", "/photos/", recursive=True)
    for _ in range(2):
        summary = label(model, "memory://photos", "memory://labels")
    assert counts(summary) == (0, 3, 0)
    assert {name: memory.cat_file(f"/labels/{name}") for name in contents(expected)} == contents(expected)
    (part,) = memory.ls("/labels/manifest", detail=False)
    assert len(memory.cat_file(part).splitlines()) == 4
    assert counts(label(model, "memory://photos", "memory://labels", flip=True)) == (3, 0, 0)


def test_a_sample_that_is_broken_does_not_end_its_tar(model: ms.Segmenter, photos: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as file:
        info = tarfile.TarInfo("0.jpg")
        info.size = 5
        file.addfile(info, io.BytesIO(b"wrong"))
        file.add(photos / "a.png", "1.png")
    summary = label(model, tmp_path / "s.tar", tmp_path / "out")
    assert counts(summary) == (1, 0, 1)
    assert "s.tar::0.jpg: not an image" in summary.reasons[0]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["{0}/nowhere"], "nowhere: no such file or folder"),
        (["{0}/no-{{0..1}}.tar"], r"no-0\.tar: no such file"),
        (["{0}/*.tiff"], r"\*\.tiff: no images"),
        (["{0}/trip", "{0}/a.png"], "trip: "),
        (["{0}/a.png", "{0}/two/a.png"], r"two/a\.png: .*/a\.png"),
        (["{0}"], "--out: .*photos"),
    ],
)
def test_inputs_that_cannot_be_are_refused_before_any_work(
    model: ms.Segmenter, photos: Path, inputs: list[str], message: str
) -> None:
    (photos / "two").mkdir()
    (photos / "two" / "a.png").write_bytes((photos / "a.png").read_bytes())
    out = str(photos) if inputs == ["{0}"] else str(photos.parent / "out")
    with pytest.raises(InputError, match=message):
        label_archive(Work(model), [text.format(photos) for text in inputs], out)
    assert not (photos.parent / "out" / "manifest.jsonl").exists()


@pytest.mark.parametrize("name", ["...tar", ".tar", "..tar", ".unfinished.tar", "manifest.jsonl.tar"])
def test_tars_whose_names_are_no_folder_for_results_are_refused(
    model: ms.Segmenter, photos: Path, tmp_path: Path, name: str
) -> None:
    with tarfile.open(tmp_path / name, "w") as file:
        file.add(photos / "a.png", "a.png")
    with pytest.raises(InputError, match=f"{name}: its results would go to a folder called"):
        label(model, tmp_path / name, tmp_path / "in" / "out")
    assert not (tmp_path / "in").exists()


def test_keys_that_lead_out_of_the_output_folder_are_errors(
    model: ms.Segmenter, photos: Path, tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (photos / "a.png").read_bytes()
    keys = ["/photos/a.png", "/photos/../../evil.png", "/photos/sub/../../evil.png"]
    listed = [{"name": key, "size": len(data), "type": "file"} for key in keys]
    memory.pipe_file("/photos/a.png", data)
    monkeypatch.setattr(type(memory), "ls", lambda _self, _path, **_: listed)
    monkeypatch.setattr(type(memory), "cat_file", lambda _self, _path, **_: data)
    summary = label(model, "memory://photos", tmp_path / "in" / "deep" / "out")
    assert counts(summary) == (1, 0, 2)
    assert all("evil.png: " in reason for reason in summary.reasons)
    assert [path.name for path in tmp_path.rglob("*evil*")] == []


@pytest.mark.parametrize("place", ["../x.png", "a/../../x.png", "/x.png"])
def test_stores_write_nothing_outside(tmp_path: Path, memory: Any, place: str) -> None:
    for out in (tmp_path / "out", "memory://out"):
        with pytest.raises(InputError, match=re.escape(place)):
            open_store(str(out)).write(place, b"x")
    assert list(tmp_path.rglob("*.png")) == []
    assert memory.find("/") == []


def test_label_maps_do_not_lie_among_overlays(model: ms.Segmenter, photos: Path, tmp_path: Path) -> None:
    (photos / "overlays").mkdir()
    (photos / "overlays" / "a.png").write_bytes((photos / "trip" / "c.png").read_bytes())
    work = Work(model, {"short_side": None, "window": None}, overlay=True)
    summary = label_archive(work, [str(photos)], str(tmp_path / "out"))
    assert counts(summary) == (3, 0, 1)
    assert "overlays" in summary.reasons[0]


def test_class_names_that_differ_in_a_sign_have_a_folder_each(photos: Path, tmp_path: Path) -> None:
    model = ms.create_model(
        "segmenter-ti16", classes=["a/b", "a_b"], image_size=32, encoder_args={"depth": 1, "patch_size": 8}
    )
    label(model, photos / "a.png", tmp_path / "out", probabilities=("a/b", "a_b"))
    first, second = sorted((tmp_path / "out" / "confidence").rglob("*.png"))
    assert (first.parent.name, second.parent.name) == ("a%2Fb", "a_b")
    assert first.read_bytes() != second.read_bytes()
    with pytest.raises(InputError, match=r"'a_b': .* 2 times"):
        label(model, photos / "a.png", tmp_path / "out", probabilities=("a_b", "a_b"))


@pytest.mark.parametrize("given", ["zip://*.png", "zip://", "zip://a.png"])
def test_images_in_a_zip_are_read(model: ms.Segmenter, photos: Path, tmp_path: Path, given: str) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as file:
        file.write(photos / "a.png", "a.png")
        file.writestr("notes.txt", "x")
    summary = label(model, f"{given}::{tmp_path}/p.zip", tmp_path / "out")
    assert counts(summary) == (1, 0, 0)
    label(model, photos / "a.png", tmp_path / "expected")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    assert counts(label(model, f"{given}::{tmp_path}/p.zip", tmp_path / "out")) == (0, 1, 0)


@pytest.mark.parametrize(
    ("given", "out"), [("simplecache::memory://photos/*.png", "out"), ("memory://photos", "zip://::{0}/x.zip")]
)
def test_chained_addresses_that_cannot_be_are_refused(
    model: ms.Segmenter, tmp_path: Path, memory: Any, given: str, out: str
) -> None:
    memory.pipe_file("/photos/a.png", b"x")
    with pytest.raises(InputError, match="::"):
        label(model, given, out.format(tmp_path))


def test_what_lies_among_the_images_is_counted(model: ms.Segmenter, photos: Path, tmp_path: Path, memory: Any) -> None:
    for name in (".ipynb_checkpoints/a.png", "@eaDir/a.png", "._a.png", "photo.heic", "a.txt"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"x")
    kinds = {"hidden or system folders": 2, "hidden files": 1, ".heic": 1, ".txt": 1}
    memory.put(f"{photos}/", "/photos/", recursive=True)
    for place in (photos, "memory://photos"):
        summary = label(model, place, tmp_path / f"out{is_address(str(place))}")
        assert (counts(summary), summary.passed) == ((3, 0, 0), kinds)
    (photos / "elsewhere").symlink_to(tmp_path / "more")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "d.png").write_bytes((photos / "a.png").read_bytes())
    assert counts(label(model, photos, tmp_path / "out")) == (4, 0, 0)
    assert (tmp_path / "out" / "elsewhere" / "d.png").is_file()


def test_two_runs_in_one_folder_are_refused(model: ms.Segmenter, photos: Path, tmp_path: Path) -> None:
    log = open_log(str(tmp_path / "out"), {}, overwrite=False)
    with pytest.raises(InputError, match="another run is writing"):
        label(model, photos, tmp_path / "out")
    log.close()
    assert counts(label(model, photos, tmp_path / "out")) == (3, 0, 0)


def test_a_full_disk_ends_the_run_and_the_next_goes_on(
    model: ms.Segmenter, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = Path.write_bytes, []

    def full(self: Path, data: bytes) -> int:
        written.append(self)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        return real(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError, match=r"cannot be written .No space left on device"):
            label(model, photos, tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == ["a.png"]
    assert counts(label(model, photos, tmp_path / "out")) == (2, 1, 0)


@settings(max_examples=40)
@given(cut=st.integers(0, 400))
def test_a_manifest_cut_off_anywhere_keeps_its_whole_lines(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    out = tmp_path_factory.mktemp("cut")
    written = [{"input": f"naïve\n{i}.jpg", "output": f"{i}.png", "size": i, "stamp": None} for i in range(4)]
    log = open_log(str(out), {"weights": "x"}, overwrite=False)
    log.add(written)
    log.close()
    data = (out / "manifest.jsonl").read_bytes()
    (out / "manifest.jsonl").write_bytes(data[:cut])
    log = open_log(str(out), {"weights": "x"}, overwrite=False)
    kept = list(log.lines())
    assert kept == written[: max(data[:cut].count(b"\n") - 1, 0)]
    assert len(Done(kept)) == len(kept)
    log.add(written[len(kept) :])
    assert list(log.lines()) == written
    log.close()
