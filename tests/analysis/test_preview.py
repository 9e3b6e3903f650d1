"""The sheet of training samples: what it shows, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from meanshifter.analysis import preview as module
from meanshifter.analysis.figures import draw_strip
from meanshifter.analysis.html import ignored_color
from meanshifter.analysis.preview import preview
from meanshifter.data.catalog.shapes import Shapes
from meanshifter.errors import InputError
from meanshifter.training.parsing import config_of
from meanshifter.training.stream import SampleStream
from tests.commands import run

FIELDS: dict[str, Any] = {"augment": {"crop": [48, 64], "cutmix": 0.5, "rotation": 30}, "seed": 4}


def test_the_command_draws_the_samples_and_keeps_files(tmp_path: Path) -> None:
    words = ("train", "shapes", "--preview", "sheet.png", "--num-images", 3, "--augment.crop", 48, 64)
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "sheet.png: 3 training samples" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"], "nothing else, such as a run folder"
    before = (tmp_path / "sheet.png").read_bytes()
    again = run(*words, "--seed", 1, cwd=tmp_path)
    assert again.returncode == 2
    assert "sheet.png: already exists" in again.stderr
    assert (tmp_path / "sheet.png").read_bytes() == before
    assert run(*words, "--seed", 1, "--overwrite", cwd=tmp_path).returncode == 0
    assert (tmp_path / "sheet.png").read_bytes() != before


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--overwrite",), "--overwrite"),
        (("--preview", "a.png", "--resume"), "--resume"),
    ],
)
def test_what_contradicts_is_refused(words: tuple[object, ...], named: str, tmp_path: Path) -> None:
    done = run("train", "shapes", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert named in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_pictures_are_the_samples_of_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(None, "shapes", FIELDS)
    size = np.asarray(Shapes(split="train")[0].image).shape
    assert size[0] >= 48
    rows: list[Any] = []

    def draw(heading: str, tiles: Any, legend: Any) -> Image.Image:
        rows.extend(tiles)
        return draw_strip(heading, tiles, legend)

    monkeypatch.setattr(module, "draw_strip", draw)
    path = preview(config, tmp_path / "a.png", 3)
    with Image.open(path) as sheet:
        assert sheet.width > 4 * 64
    tiles = [tile for row in rows for tile in row]
    assert len(tiles) == 6
    stream = SampleStream(Shapes(split="train"), config.augment, 4, mean=(0.5,) * 3, std=(0.5,) * 3)
    for position in range(3):
        image, labels, name = stream.sample(position)
        picture, overlay = tiles[2 * position : 2 * position + 2]
        assert picture.title == name
        factor = module.SIDE // 64
        pixels = np.rint((image.numpy() * 0.5 + 0.5) * 255).transpose(1, 2, 0).clip(0, 255)
        np.testing.assert_allclose(picture.pixels[::factor, ::factor], pixels, atol=1)
        ignored = (labels.numpy() == 255).repeat(factor, 0).repeat(factor, 1)
        stripes = (overlay.pixels == ignored_color(Shapes(split="train").label_space)).all(2)
        assert not stripes[~ignored].any()
        assert 0.3 < stripes[ignored].mean() < 0.7


def test_a_bad_configuration_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    config = config_of(None, "shapes", FIELDS)
    config.augment.rotation = 200
    with pytest.raises(InputError, match=r"augment\.rotation: 200"):
        preview(config, tmp_path / "a.png")
    for path, number, words in (("a.jpg", 3, "a.jpg is not a PNG"), ("a.png", 0, "num_images: 0")):
        with pytest.raises(InputError, match=words):
            preview(config, tmp_path / path, number)
    assert not list(tmp_path.iterdir())
