"""The commands and the Python that README and docs print, and the tiny files that stand in for those they name."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import re
import shlex
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from meanshifter.cli import main as cli
from meanshifter.data.catalog import camvid
from tests.data.clips import write_clip

ROOT = Path(__file__).resolve().parents[1]
TOP = tuple(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))
PAGES = (*(page for page in TOP if page.exists()), *sorted((ROOT / "docs").rglob("*.md")))
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.M | re.S)
"""A block of code, which is indented in a tab."""
PROGRAMS = ("meanshifter", "python", "python3", "pip", "torchrun", "srun")
STAND_INS = {
    "N": "2",
    "S": "64",
    "PERCENT": "1",
    "--field": "--steps",
    "value": "2",
    "RECIPE": "camvid_ti16",
    "DATASET": "camvid",
}
"""What is typed for a placeholder that is no file."""
LAYOUTS = {
    "camvid": (11, "{split}/{name}.png", "{split}annot/{name}.png", ("train", "val", "test")),
    "ade20k": (151, "images/{split}/{name}.jpg", "annotations/{split}/{name}.png", ("training", "validation")),
    "folder": (11, "images/{split}/{name}.jpg", "masks/{split}/{name}.png", ("train", "val")),
}
"""Of each dataset: how many values its masks have, where its files lie, and its splits."""


QUICK: dict[str, Any] = {
    "steps": 1,
    "batch_size": 2,
    "size": 32,
    "quiet": True,
    "model": {"encoder_weights": None, "encoder_args": {"depth": 5, "embed_dim": 24, "num_heads": 2}},
    "evaluation": {"limit": 1},
}
"""What is added so that a training of a page takes a second, and no weights."""


@dataclass(frozen=True)
class Command:
    """One command of a page."""

    place: str
    """Page, and line of its block."""
    words: tuple[str, ...]
    whole: bool
    """False for one in running text, which may leave out what does not matter there."""

    def __str__(self) -> str:
        return f"{self.place}: {shlex.join(self.words)}"


def commands() -> list[Command]:
    """All commands of all pages, each once."""
    found = [command for page in PAGES for command in _of_page(page)]
    first: dict[tuple[str, ...], Command] = {}
    for command in sorted(found, key=lambda command: not command.whole):
        first.setdefault(command.words, command)
    return list(first.values())


def _of_page(page: Path) -> Iterator[Command]:
    for place, language, text, _ in blocks(page):
        if language in ("bash", "sh", "console"):
            for line in text.replace("\\\n", " ").splitlines():
                typed = line.removeprefix("$ ")
                if language != "console" or typed != line:
                    yield from (Command(place, words, True) for words in _split(typed))
    for snippet in inline(page):
        if snippet.split(maxsplit=1)[0] in PROGRAMS and " " in snippet:
            yield from (Command(f"{page.name}:text", words, False) for words in _split(snippet))


def blocks(page: Path) -> Iterator[tuple[str, str, str, bool]]:
    """Place, language and text of each block of code, and whether it is in a tab."""
    text = page.read_text("utf-8")
    for block in BLOCK.finditer(text):
        yield f"{page.name}:{text.count(chr(10), 0, block.start()) + 1}", block[2], dedent(block[3]), bool(block[1])


def inline(page: Path) -> list[str]:
    """The code in running text, each on one line."""
    return [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", BLOCK.sub("", page.read_text("utf-8")))]


def _split(line: str) -> Iterator[tuple[str, ...]]:
    """The words of each command of a line, without marks of usage and with stand-ins for placeholders."""
    lexer = shlex.shlex(re.sub(r"\[(-[^\]]*)\]", r"\1", line), posix=True, punctuation_chars="&|;")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if not set(word) <= set("&|;"):
            words.append(STAND_INS.get(word, word))
            continue
        kept = tuple(word.removesuffix("…") for word in words if word not in ("…", "..."))
        if kept and kept[0] != ".":  # which reads the file that activates an environment
            yield kept
        words = []


def python_blocks() -> list[tuple[str, str]]:
    """Place and text of each block of Python."""
    return [(place, text) for page in PAGES for place, language, text, _ in blocks(page) if language == "python"]


def parsed(words: Sequence[str], patch: pytest.MonkeyPatch, *, whole: bool = True) -> argparse.Namespace:
    """What `meanshifter` hands to a command's own function, by its own parser; status 2 is a failure."""
    got: list[argparse.Namespace] = []
    with patch.context() as here:
        here.setattr(import_module(f"meanshifter.cli.{words[0]}"), "run", got.append)
        if not whole:
            here.setattr(cli, "_Parser", _Lenient)
        status, said = run(words)
    assert status == 0, said
    return got[0]


def run(words: Sequence[str]) -> tuple[int, str]:
    """Status of the command in this process, and the lines on standard error."""
    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("default")
        status = cli.main(list(words))
    return status, said.getvalue()


class _Lenient(cli._Parser):
    """Asks for nothing that a text has left out."""

    def parse_known_args(self, *given: Any, **named: Any) -> Any:
        for action in self._actions:
            action.required = False
            if not action.option_strings and action.nargs in (None, "+"):
                action.nargs = "?" if action.nargs is None else "*"
        return super().parse_known_args(*given, **named)


class Workshop:
    """Tiny data and models, put where a command expects its own."""

    def __init__(self, store: Path) -> None:
        """Make images, datasets of CamVid's and ADE20K's layout, a folder, and a run of each number of classes."""
        self.store = store
        for kind, (values, image, mask, splits) in LAYOUTS.items():
            for split, k in itertools.product(splits, range(4)):
                names = {"split": split, "name": f"{split}{k}"}
                _draw(store / kind / image.format(**names), store / kind / mask.format(**names), values)
        (store / "folder/classes.txt").write_text("\n".join(camvid.LABELS.names) + "\n")
        shutil.copytree(store / "folder/images/val", store / "photos")
        self._train("camvid", "run", "--model.mean_shift.layers", "1")
        self._train("camvid", "plain")
        self._train("ade20k", "run150")
        self._train("shapes", "run7", "--model.mean_shift.layers", "1")

    def _train(self, kind: str, name: str, *fields: str) -> None:
        tiny = ["--model.encoder_weights", "null", "--model.encoder_args.embed_dim", "24"]
        tiny += ["--model.encoder_args.depth", "1", "--model.encoder_args.num_heads", "2", "--augment.crop", "32"]
        tiny += ["--model.image_size", "null", "--data.workers", "0", "--steps", "1", "--batch_size", "2"]
        tiny += ["--evaluation.limit", "1", "--accelerator", "cpu", "--precision", "fp32", "--no-report"]
        data = ["--data.name", kind, "--data.root", str(self.store / kind), "--out", str(self.store / name)]
        status, said = run(["train", "camvid_ti16", *tiny, *data, *fields])
        assert status == 0, said

    def model(self, place: str, dataset: str = "camvid") -> None:
        """Put a model at `place`: a run, an exported folder or another tool's file."""
        own = {"ade20k": "run150", "shapes": "run7"}
        if place.endswith(".pth"):
            self._convert(own.get(dataset, "plain"), place, "--to", "mmsegmentation")
        elif place.endswith("/"):
            self._convert("plain", place, "--to", "segmenter")
        else:
            _copy(self.store / own.get(dataset, "run"), Path(place))

    def _convert(self, name: str, *words: str) -> None:
        status, said = run(["convert", str(self.store / name), *words])
        assert status == 0, said

    def data(self, place: str, dataset: str = "folder") -> None:
        """Put a dataset at `place`."""
        _copy(self.store / (dataset if (self.store / dataset).is_dir() else "folder"), Path(place))

    def images(self, place: str) -> None:
        """Put an image or a video at `place`, or a folder of images; a glob finds one."""
        path = Path(place.replace("*", "some"))
        if path.suffix == ".mp4":
            path.parent.mkdir(parents=True, exist_ok=True)
            write_clip(path, count=2)
            return
        _copy(self.store / "photos" / ("val0.jpg" if path.suffix else ""), path)

    def prepare(self, command: str, args: argparse.Namespace) -> None:
        """Put everything into the working folder that the arguments name as there."""
        given = vars(args)
        by_name = command == "predict" and given.get("root") is not None  # the test images of a dataset
        dataset = str(given.get("dataset") or (given["inputs"][0] if by_name else "camvid"))
        models = [given.get(name) for name in ("model", "source")] + list(given.get("models") or [])
        for place in filter(None, [*models, *(given.get("ensemble") or [])]):
            if not Path(place).exists():
                self.model(place, dataset)
        if by_name:
            _copy(self.store / "photos", given["root"] / "release_test/testing")
        elif given.get("root") is not None:
            self.data(str(given["root"]), dataset)
        elif given.get("dataset") is not None and dataset not in ("camvid", "ade20k", "shapes"):
            self.data(dataset)
        named = [given.get("image"), *([] if by_name else given.get("inputs") or [])]
        named += [*(given.get("images") or []), given.get("calibrate")] if command == "export" else []
        named += given.get("unlabeled") or []
        for place in filter(None, named):
            self.images(str(place))
        if given.get("predictions") is not None:
            annotated = self.store / "camvid/valannot"
            _copy(annotated, given["predictions"])
        if given.get("results") is not None:
            data = ["camvid", "--root", str(self.store / "camvid")]
            status, said = run(["evaluate", args.source, *data, "--out", str(args.results)])
            assert status == 0, said


def _copy(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, place, dirs_exist_ok=True)
    else:
        shutil.copy(source, place)


def _draw(image: Path, mask: Path, values: int) -> None:
    """An image of its name's own noise, and a mask with all values."""
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(crc32(image.name.encode()))
    Image.fromarray((np.arange(40 * 48).reshape(40, 48) // 4 % values).astype(np.uint8)).save(mask)
    Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(image)
