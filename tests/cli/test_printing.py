"""Names that would speak to the terminal, or to the browser, are shown and not obeyed."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import meanshifter as ms
import meanshifter.cli
from meanshifter.analysis.html import Page
from meanshifter.cli.main import main
from meanshifter.cli.options import echo, say

SMALL = {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8}
EVIL = "a\x1b[31m<b>\u202e\nforged: line"


def test_lines_stay_lines_and_names_are_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    echo(f"  {EVIL}", "ü")
    say(EVIL)
    out, err = capsys.readouterr()
    assert out == "  a\\x1b[31m<b>\\u202e\\nforged: line\nü\n"
    assert err == "meanshifter: a\\x1b[31m<b>\\u202e forged: line\n"


def test_commands_print_in_no_other_way() -> None:
    folder = Path(meanshifter.cli.__file__).parent
    printing = {
        path.name
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing == {"options.py"}


def test_pages_show_what_is_invisible() -> None:
    page = Page(EVIL)
    page.heading(EVIL)
    page.text(EVIL)
    page.code(f"one\ntwo {EVIL}")
    page.table([EVIL], [[EVIL]], caption=EVIL)
    page.bars([EVIL], [[EVIL]])
    page.legend(ms.LabelSpace(("a<b>", "b")))
    page.pictures([{EVIL: np.zeros((2, 2, 3), np.uint8)}])
    html = page.html()
    assert not {"\x1b", "\u202e"} & set(html)
    assert "<b>" not in html
    assert "one\ntwo a\\x1b[31m&lt;b&gt;\\u202e" in html


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Pairs whose names hold a line break and escape sequences."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(3):
            for kind, mode in (("images", "RGB"), ("masks", "L")):
                pixels = rng.integers(0, 256 if kind == "images" else 2, (40, 48, 3), dtype=np.uint8)
                picture = Image.fromarray(pixels) if mode == "RGB" else Image.fromarray(pixels[..., 0])
                folder = tmp_path / "data" / kind / split
                folder.mkdir(parents=True, exist_ok=True)
                picture.save(folder / f"{i}\x1b[31m<b>\u202e\nx.png")
    (tmp_path / "data" / "classes.txt").write_text("first\nsecond\n", "utf-8")
    return tmp_path / "data"


def test_names_of_files_do_not_reach_the_terminal_or_the_page(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ms.LabelSpace(("first", "second"))
    for name in ("a\x1b[32m", "b"):
        model = ms.create_model("segmenter-ti16", classes=labels, image_size=32, encoder_args=SMALL)
        model.save(tmp_path / name)
    out = tmp_path / "out\x1b[33m"
    commands = (
        [
            "compare",
            tmp_path / "a\x1b[32m",
            tmp_path / "b",
            "folder",
            "--root",
            data,
            "--num-images",
            "1",
            "--out",
            out,
        ],
        ["evaluate", tmp_path / "a\x1b[32m", "folder", "--root", data, "--out", tmp_path / "s\x1b.json"],
        ["data", "check", data, "--out", tmp_path / "check\x1b.html"],
    )
    for command in commands:
        assert main([*map(str, command)]) in (0, 2)
        out_text, err_text = capsys.readouterr()
        assert not {"\x1b", "\u202e"} & set(out_text + err_text)
        assert not any(line.startswith("x") for line in out_text.splitlines())
    for page in (*out.glob("*.html"), *tmp_path.glob("*.html")):
        assert not {"\x1b", "\u202e"} & set(page.read_text("utf-8"))
    strict = json.loads((out / "compare.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert len(strict["images"]) == 3
