"""What --resume compares before it goes on: fields, data, and the files of the run itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import meanshifter as ms
from meanshifter.data.labels import LabelSpace
from meanshifter.model.config import PixelShiftConfig
from meanshifter.training.config import TrainConfig
from meanshifter.training.data_record import DataRecord, SplitRecord
from meanshifter.training.loop import train
from meanshifter.training.parsing import parse_recipe
from tests.training.test_loop import curve

SHAPES = 'name: shapes, val_pattern: "*[2-9]*"'
LABELS = {"names": ["sky", "road", "tree"], "raw": {"0": 0, "10": 1, "20": 2, "99": 255}, "ignore": 255}


def write_pair(root: Path, split: str, name: str, values: Sequence[int] = (0, 10, 20, 99)) -> None:
    rng = np.random.default_rng(len(name))
    for kind, shape in (("images", (64, 72, 3)), ("masks", (64, 72))):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, shape) if kind == "images" else rng.choice(values, shape)
        Image.fromarray(pixels.astype(np.uint8)).save(root / kind / split / f"{name}.png")


@dataclass
class Begun:
    """A finished run of eight steps and its data."""

    config: TrainConfig
    data: Path
    run: Path

    def resume(self, **fields: Any) -> Path:
        return train(replace(self.config, **fields), resume=True, quiet=True).path

    def files(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.run.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, tiny_text: str) -> Path:
    root = tmp_path_factory.mktemp("original")
    for split, names in (("train", ("a", "bb", "ccc", "dddd")), ("val", ("v", "ww"))):
        for name in names:
            write_pair(root / "data", split, name)
    (root / "data" / "labels.json").write_text(json.dumps(LABELS))
    (root / "recipe.yaml").write_text(tiny_text.replace(SHAPES, "name: folder"))
    train(configured(root), quiet=True)
    return root


def configured(root: Path) -> TrainConfig:
    return parse_recipe(root / "recipe.yaml", ["--data.root", str(root / "data"), "--out", str(root / "run")])


@pytest.fixture
def begun(original: Path, tmp_path: Path) -> Begun:
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return Begun(configured(tmp_path), tmp_path / "data", tmp_path / "run")


def relabel(data: Path, **changes: Any) -> None:
    (data / "labels.json").write_text(json.dumps({**LABELS, **changes}))


def rename(data: Path) -> None:
    for kind in ("images", "masks"):
        (data / kind / "train" / "bb.png").rename(data / kind / "train" / "b2.png")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda data: relabel(data, names=["road", "sky", "tree"]), ["class 0 was 'sky' and is 'road'", "class 1"]),
        (
            lambda data: relabel(data, raw={"0": 0, "10": 2, "20": 1, "99": 255}),
            ["mask value 10 was 'road' and is 'tree'", "mask value 20 was 'tree' and is 'road'"],
        ),
        (
            lambda data: relabel(data, raw={"0": 0, "10": 1, "20": 2, "99": 2}),
            ["mask value 99 was ignored and is 'tree'"],
        ),
        (
            lambda data: relabel(data, names=["sky", "road", "tree", "car"], raw={**LABELS["raw"], "30": 3}),  # type: ignore[dict-item]
            ["class 3, 'car', is new", "mask value 30 was no class and is 'car'"],
        ),
        (lambda data: write_pair(data, "train", "new"), ["1 train image new, such as 'new'"]),
        (
            lambda data: [(data / kind / "train" / "a.png").unlink() for kind in ("images", "masks")],
            ["1 train image gone, such as 'a'"],
        ),
        (rename, ["1 train image new, such as 'b2'", "1 train image gone, such as 'bb'"]),
        (lambda data: write_pair(data, "val", "x"), ["1 val image new, such as 'x'"]),
    ],
)
def test_data_that_changed_are_named(begun: Begun, change: Callable[[Path], Any], named: list[str]) -> None:
    change(begun.data)
    before = begun.files()
    with pytest.raises(ms.InputError, match=r"run: the data have changed .*--model\.init_from .*run") as caught:
        begun.resume()
    assert all(text in str(caught.value) for text in named), caught.value
    assert "\n" not in str(caught.value)
    assert begun.files() == before


def test_a_value_that_masks_did_not_hold_before_is_named(begun: Begun, tmp_path: Path) -> None:
    (begun.data / "labels.json").unlink()
    config = replace(begun.config, out=str(tmp_path / "other"))
    train(config, quiet=True)
    write_pair(begun.data, "train", "a", values=(0, 10, 20, 99, 120))
    with pytest.raises(ms.InputError, match=r"class 4, 'class 120', is new; mask value 120 was no class"):
        train(config, resume=True, quiet=True)


def test_colors_of_label_maps_and_another_place_are_the_same_data(begun: Begun, tmp_path: Path) -> None:
    shutil.move(begun.data, tmp_path / "moved")
    relabel(tmp_path / "moved", palette=[[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    begun.resume(data=replace(begun.config.data, root=str(tmp_path / "moved")))


@pytest.mark.parametrize(
    ("then", "now", "named"),
    [
        (
            LabelSpace(("a", "b"), colors={(1, 2, 3): 0, (4, 5, 6): 1}),
            LabelSpace(("a", "b"), colors={(1, 2, 3): 1, (4, 5, 6): 1}),
            ["mask color (1, 2, 3) was 'a' and is 'b'"],
        ),
        (
            LabelSpace(("a", "b"), ignore=255),
            LabelSpace(("a", "b"), ignore=9),
            [
                "the ignored train id was 255 and is 9",
                "mask value 255 was ignored and is no class",
                "mask value 9 was no class and is ignored",
            ],
        ),
        (LabelSpace(("a", "b")), LabelSpace(("a",)), ["class 1, 'b', is gone", "mask value 1 was 'b' and is no class"]),
        (LabelSpace(("a", "b")), LabelSpace(("a", "b"), raw={0: 0, 1: 1, 255: 255}), []),
    ],
)
def test_every_part_of_a_label_space_is_compared(then: LabelSpace, now: LabelSpace, named: list[str]) -> None:
    records = [DataRecord(SplitRecord(labels, ("x",)), SplitRecord(labels, ("y",))) for labels in (then, now)]
    assert records[0].changes(records[1]) == named


def test_the_same_images_in_another_order_are_other_data() -> None:
    labels = LabelSpace(("a",))
    val = SplitRecord(labels, ("v",))
    records = [DataRecord(SplitRecord(labels, names), val) for names in (("x", "y", "z"), ("x", "z", "y"))]
    assert records[0].changes(records[1]) == ["train images are in a different order: number 1 was 'y' and is 'z'"]
    assert records[0].changes(records[0]) == []


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    labels = LabelSpace(("sky", "road"), raw={7: 0, 8: 1, -1: 255}, colors={(0, 1, 2): 1}, ignore=255)
    name = "f\udce4r/\u4e00"  # a byte that is no UTF-8, as Python spells it
    record = DataRecord(SplitRecord(labels, (name, "b")), SplitRecord(LabelSpace(("sky", "road")), ()))
    (tmp_path / "data.json").write_text(record.to_json())
    assert DataRecord.read(tmp_path / "data.json") == record


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        (
            "checkpoints/last/training.safetensors",
            r"training\.safetensors: missing, though .*best exists; .*--model.init_from .*best",
        ),
        ("checkpoints/last", r"training\.safetensors: missing, though .*best exists; restore it .*--out DIR"),
        ("checkpoints", r"training\.safetensors: missing, though metrics\.jsonl reaches step 8; restore it"),
    ],
)
def test_a_run_without_its_newest_checkpoint_does_not_begin_again(begun: Begun, gone: str, named: str) -> None:
    path = begun.run / gone
    path.unlink() if path.is_file() else shutil.rmtree(path)
    before = begun.files()
    with pytest.raises(ms.InputError, match=named):
        begun.resume()
    assert begun.files() == before


def test_steps_beyond_the_first_checkpoint_prove_that_there_was_one(begun: Begun) -> None:
    shutil.rmtree(begun.run / "checkpoints")
    lines = [line for line in (begun.run / "metrics.jsonl").read_text().splitlines(True) if "mIoU" not in line]
    (begun.run / "metrics.jsonl").write_text("".join(lines[:2]))
    with pytest.raises(ms.InputError, match=r"missing, though metrics\.jsonl reaches step 4"):
        begun.resume()


@pytest.mark.parametrize("lines", [0, 3])
def test_a_run_killed_before_its_first_checkpoint_begins_again(begun: Begun, lines: int, tmp_path: Path) -> None:
    """Steps 1 to 3 are logged; the checkpoint that is due after the third was not written yet."""
    whole = curve(begun.run)
    shutil.rmtree(begun.run / "checkpoints")
    text = "".join(json.dumps({"step": step, "loss": 0.0}) + "\n" for step in range(1, 1 + lines))
    (begun.run / "metrics.jsonl").write_text(text)
    if lines:
        with pytest.warns(UserWarning, match="run: stopped before its first checkpoint; .* step 0"):
            begun.resume()
    else:
        begun.resume()
    assert curve(begun.run) == whole


def test_where_the_best_checkpoint_is_gone_the_next_best_takes_its_place(
    begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(5, begun, monkeypatch)
    shutil.rmtree(begun.run / "checkpoints" / "best")
    with pytest.warns(UserWarning, match=r"best: missing, though an evaluation scored \d+\.\d\d"):
        begun.resume()
    assert ms.load_model(begun.run / "checkpoints" / "best").label_space.names == ("sky", "road", "tree")


def stop_after(step: int, begun: Begun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train anew and stop as a user does."""
    from meanshifter.training import loop

    shutil.rmtree(begun.run)
    with monkeypatch.context() as patch:
        take_step = loop.take_step

        def interrupting(*args: Any, **options: Any) -> Any:
            taken = take_step(*args, **options)
            if args[2].state.progress.step == step:
                raise KeyboardInterrupt
            return taken

        patch.setattr(loop, "take_step", interrupting)
        with pytest.raises(KeyboardInterrupt):
            train(begun.config, quiet=True)


def test_a_run_without_a_record_of_its_data_says_so_and_makes_one(begun: Begun) -> None:
    (begun.run / "data.json").unlink()
    with pytest.warns(UserWarning, match=r"data\.json: missing"):
        begun.resume()
    write_pair(begun.data, "train", "new")
    with pytest.raises(ms.InputError, match="1 train image new"):
        begun.resume()


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 1, "train": {}}', '{"format_version": 9}'])
def test_a_record_that_cannot_be_read_is_refused(begun: Begun, text: str) -> None:
    (begun.run / "data.json").write_text(text)
    with pytest.raises(ms.InputError, match=r"data\.json: ") as caught:
        begun.resume()
    assert "\n" not in str(caught.value)


def test_fields_that_changed_are_told_with_both_values(begun: Begun) -> None:
    with pytest.raises(ms.InputError, match=r"optimizer\.lr is 0\.5, but was 0\.001 "):
        begun.resume(optimizer=replace(begun.config.optimizer, lr=0.5))


def test_more_steps_are_refused_with_the_way_that_works(begun: Begun, tmp_path: Path) -> None:
    with pytest.raises(ms.InputError, match=r"steps is 9, but was 8 .*--model\.init_from .*run --out DIR"):
        begun.resume(steps=9)
    model = replace(begun.config.model, init_from=str(begun.run))
    longer = replace(begun.config, model=model, steps=9, out=str(tmp_path / "longer"))
    assert (train(longer, quiet=True).path / "checkpoints" / "best").is_dir()


def test_a_run_folder_that_is_taken_is_refused(tiny: TrainConfig) -> None:
    run = Path(str(tiny.out))
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    with pytest.raises(ms.InputError, match=r"run: already exists; .*--resume, .*--out"):
        train(tiny, quiet=True)
    assert [path.name for path in run.iterdir()] == ["notes.txt"]


def test_resuming_with_other_fields_is_refused(tiny: TrainConfig) -> None:
    train(tiny, quiet=True)
    other = replace(tiny, batch_size=3)
    with pytest.raises(ms.InputError, match="but was 2 at the start"):
        train(other, resume=True, quiet=True)


def test_a_run_of_an_earlier_version_lacks_later_fields_and_resumes(tiny: TrainConfig) -> None:
    run = train(tiny, quiet=True).path
    stored = yaml.safe_load((run / "config.yaml").read_text())
    for name in ("rotation", "transforms", "cutmix"):
        del stored["augment"][name]
    (run / "config.yaml").write_text(yaml.safe_dump(stored))
    with pytest.raises(ms.InputError, match=r"augment\.rotation is 9\.0, but was 0\.0"):
        train(replace(tiny, augment=replace(tiny.augment, rotation=9.0)), resume=True, quiet=True)
    train(tiny, resume=True, quiet=True)


@pytest.mark.parametrize("former", [4, 2])
def test_a_run_with_the_former_default_of_cells_per_patch_resumes(former: int, tiny: TrainConfig) -> None:
    block = PixelShiftConfig(layers=1, channels=4)
    tiny = replace(tiny, model=replace(tiny.model, pixel_shift=block), steps=2)
    run = train(tiny, quiet=True).path
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert stored["model"]["pixel_shift"]["factor"] is None
    stored["model"]["pixel_shift"]["factor"] = former
    del stored["model"]["pixel_shift"]["spatial_sigma"]  # as if it were later than that version
    (run / "config.yaml").write_text(yaml.safe_dump(stored))
    if former == 4:
        train(tiny, resume=True, quiet=True)
        return
    with pytest.raises(ms.InputError, match=r"model\.pixel_shift\.factor is 4, but was 2"):
        train(tiny, resume=True, quiet=True)


def test_resuming_what_was_never_started_is_refused(tiny: TrainConfig) -> None:
    with pytest.raises(ms.InputError, match="run: no run to resume"):
        train(tiny, resume=True, quiet=True)


def test_a_damaged_checkpoint_is_refused_and_loses_nothing(tiny: TrainConfig) -> None:
    run = train(tiny, quiet=True).path
    last, lines = run / "checkpoints" / "last" / "training.safetensors", (run / "metrics.jsonl").read_bytes()
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(ms.InputError, match=r"last.training\.safetensors: damaged .*; restore it from a copy"):
        train(tiny, resume=True, quiet=True)
    assert (run / "metrics.jsonl").read_bytes() == lines
