"""YAML and JSON made to harm, and the printing of names made to deceive."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

import meanshifter as ms
from meanshifter.errors import InputError, one_line
from meanshifter.training.parsing import parse_recipe
from meanshifter.utils.files import parse_json, parse_yaml, read_text, write_text

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{k + 1}: &a{k + 1} [*a{k}, *a{k}]\n" for k in range(60))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "its aliases .*more than 100,000 values"),
        ("a: &a [*a]", "r.yaml: its aliases"),
        ("a: &a {b: 1}\nc: {<<: *a, d: &d [*d]}", "r.yaml: its aliases"),
        ("[" * 100_000, "nested too deeply"),
        ("x" * 10_000_000, "more than 262,144 characters"),
        ("!!python/object/apply:os.system ['touch ran']", "could not determine a constructor"),
        ("!!int ''", "not YAML .*string index"),
        ("2001-99-99", "not YAML .*month must be"),
        ("9" * 5000, "not YAML"),
        ("{[a]: b}", "unhashable key"),
        ("a: [", "not YAML"),
    ],
)
def test_harmful_yaml_is_refused_at_once(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(text)
    began = time.process_time()
    with pytest.raises(InputError, match=message):
        parse_yaml(text, "r.yaml")
    with pytest.raises(InputError, match=r"r\.yaml: "):
        parse_recipe("r.yaml")
    assert time.process_time() - began < 15  # busy machines double what a processor takes
    assert os.listdir() == ["r.yaml"]  # noqa: PTH208


def test_aliases_and_merges_in_reason_are_read() -> None:
    text = "a: &a {lr: 1, steps: [1, 2]}\nb: {<<: *a, lr: 2}\nc: *a"
    assert parse_yaml(text, "x")["b"] == {"lr": 2, "steps": [1, 2]}
    assert parse_yaml("", "x") is None


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "{", ""])
def test_harmful_json_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="x: invalid JSON"):
        parse_json(text, "x")


def test_only_files_of_a_sane_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "large").write_bytes(b"1" * 101)
    for name, message in [
        ("pipe", "is a pipe, socket or device"),
        ("loop", "symbolic links"),
        ("zero", "is a pipe, socket or device"),
        ("large", "larger than 100 bytes"),
        (".", "is a folder"),
        ("missing", "no such file"),
        ("a\0b", "null"),
        ("x" * 300, "name too long"),
    ]:
        with pytest.raises(InputError, match=f"(?i){message}"):
            read_text(tmp_path / name, 100)


def test_a_line_is_one_line_whatever_the_name() -> None:
    assert one_line("a.png\nmeanshifter: all is well") == "a.png meanshifter: all is well"
    assert one_line("a\x1b[2J\u202e\udcff'\"é") == "a\\x1b[2J\\u202e\\udcff'\"é"


def test_names_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 251 + ".png", "é" * 125 + ".png"):
        write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (("label_space", "names"), "abc", "names is str; give a list"),
        (("label_space", "names"), ["a", "b\nforged"], r"class name 'b.nforged'"),
        (("label_space", "palette"), [[0, 0, 300]] * 2, r"color \(0, 0, 300\)"),
        (("label_space", "ignore"), 1e999, "config.json: not a valid model configuration"),
        (("model", "window"), "512", "window: '512' is not"),
        (("model", "mean"), [0.5, float("nan"), 0.5], "mean: .* is not three numbers"),
        (("model", "encoder_args", "depth"), 1000, "depth is 1000, .* tensors"),
        (("model", "encoder_args", "depth"), 10**9, "depth: 1000000000 is not .* 0 to 1000"),
        (("model", "encoder_args", "embed_dim"), 192 * 4000, "describes a model of .* bytes, .* weights"),
        (("model", "encoder_args", "embed_dim"), 25, "cannot be built"),
        (("model", "encoder_args", "checkpoint_path"), "evil.pth", "encoder_args: 'checkpoint_path'"),
        (("model", "encoder_args", "device"), "meta", "encoder_args: 'device'"),
        (("model", "mean_shift", "layers"), 10**9, "mean_shift.layers: 1000000000 is not"),
    ],
)
def test_configurations_out_of_proportion_are_refused(
    tmp_path: Path, user: None, field: tuple[str, ...], value: object, message: str
) -> None:
    arguments = {"depth": 1, "embed_dim": 24, "num_heads": 2}
    ms.create_model(
        "meanshifter-ti16", num_classes=2, image_size=32, encoder="vit_tiny_patch16_224", encoder_args=arguments
    ).save(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    place = described
    for key in field[:-1]:
        place = place[key]
    place[field[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=message):
        ms.load_model(tmp_path)
