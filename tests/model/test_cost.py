"""The formula for a preset's size is compared with the model that it builds, counted on the meta device."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from meanshifter.analysis.findings import TABLE_1, Published
from meanshifter.analysis.study_scores import size_of_model
from meanshifter.cli.main import main
from meanshifter.errors import InputError
from meanshifter.model.presets import ENCODERS, FAMILIES, PRESETS, Size, create_model, size_of

JOINT = {
    "layers": 3,
    "kernel": "gaussian",
    "spatial_sigma": 2.5,
    "blurring": False,
    "residual_readout": True,
    "channels": 190,
}


def counted(preset: str, num_classes: int, image_size: int, mean_shift: dict[str, Any] | None = None) -> Size:
    with torch.device("meta"):
        model = create_model(preset, num_classes=num_classes, image_size=image_size, mean_shift=mean_shift)
    return size_of_model(model, (image_size, image_size))


@pytest.mark.parametrize(
    "preset",
    [
        *(f"{family}{mask}-ti16" for family in FAMILIES for mask in ("", "-mask")),
        "segmenter-b16",
        "meanshifter-pixel-mask-s16",
        "meanshifter-pixel-ti12",
        "meanshifter-pixel-mask-ti8",
    ],
)
def test_the_formula_equals_the_count_of_the_model(preset: str) -> None:
    assert size_of(preset, num_classes=7, image_size=100) == counted(preset, 7, 100)


@pytest.mark.parametrize("block", [{"layers": 0}, {"layers": 2, "channels": 64}, {"channels": 768}, JOINT])
def test_the_formula_follows_the_fields_of_the_block(block: dict[str, Any]) -> None:
    ours = size_of("meanshifter-ti16", num_classes=150, image_size=64, mean_shift=block)
    assert ours == counted("meanshifter-ti16", 150, 64, block)


@pytest.mark.parametrize("place", ["before_layers", "after_layers", "before_product"])
def test_the_formula_counts_class_embeddings_that_shift_along(place: str) -> None:
    block = {"layers": 2, "channels": 64, "with_classes": place}
    ours = size_of("meanshifter-mask-ti16", num_classes=150, image_size=64, mean_shift=block)
    assert ours == counted("meanshifter-mask-ti16", 150, 64, block)
    with pytest.raises(InputError, match=rf"mean_shift.with_classes: '{place}', but a linear decoder"):
        size_of("meanshifter-ti16", num_classes=150, image_size=64, mean_shift=block)


def test_every_encoder_has_the_parameters_of_its_encoder() -> None:
    for name in ENCODERS:
        with torch.device("meta"):
            model = create_model(f"segmenter-{name}16", num_classes=1, image_size=16)
        ours = size_of(f"segmenter-{name}16", num_classes=1, image_size=16).parameters
        assert ours == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("row", TABLE_1)
def test_parameters_agree_with_the_published_decimals(row: Published) -> None:
    block = None if row.layers is None else {"layers": row.layers, "channels": row.channels}
    preset = "segmenter-ti16" if block is None else "meanshifter-ti16"
    size = size_of(preset, num_classes=150, image_size=512, mean_shift=block)
    assert round(size.parameters / 1e6, 2) == row.millions


def test_the_command_prints_every_preset_without_importing_torch() -> None:
    script = (
        "import sys; from meanshifter.cli.main import main; status = main(['models']);"
        "sys.exit(status or sorted({'torch', 'timm'} & {*sys.modules}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines()[1:]}
    assert tuple(lines) == PRESETS
    assert lines["segmenter-ti16"][1:] == ["vit_tiny_patch16_384", "5,712,342", "10.46"]
    assert lines["meanshifter-pixel-mask-l16"][1:] == ["vit_large_patch16_384", "332,744,828", "400.55"]


def test_arguments_without_a_size_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("--image-size", "15"), ("--classes", "0"), ("--image-size", "9" * 200)):
        assert main(["models", name, value]) == 2
        assert f"{name}: {value}" in capsys.readouterr().err
    for words, named in ((["--table", "--published"], "--table"), (["--table", "--classes", "5"], "--classes")):
        assert main(["models", *words]) == 2
        assert f"{named}: " in capsys.readouterr().err
    with pytest.raises(InputError, match="image_size: 15"):
        size_of("segmenter-ti16", num_classes=1, image_size=15)
    with pytest.raises(InputError, match="did you mean 'layers'"):
        size_of("meanshifter-ti16", num_classes=1, image_size=16, mean_shift={"layer": 1})
    with pytest.raises(InputError, match="mean_shift: given for a 'meanshifter-pixel'"):
        size_of("meanshifter-pixel-ti16", num_classes=1, image_size=16, mean_shift={"layers": 1})
