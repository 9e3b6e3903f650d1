"""How an MMSegmentation configuration says that images are read at test time.

Source: `SegDataPreProcessor`, the transforms of the Segmenter configurations and `EncoderDecoder.slide_inference` of
1.2.2; the fields that 0.x had in their place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from meanshifter.errors import InputError
from meanshifter.interop.architecture import Notes
from meanshifter.interop.literals import look_up
from meanshifter.model.config import Triple

WINDOW, STRIDE, SIDES = 512, 480, (512, 2048)
"""Those of the Segmenter configurations for ADE20K."""
Config = Mapping[str, Any]


class Reading(NamedTuple):
    """Fields of a `ModelConfig`."""

    mean: Triple
    std: Triple
    window: int | None
    stride: int
    short_side: int | None
    long_side: int


def reading_of(stated: Config, path: Path, notes: Notes) -> Reading:
    """How images are read, from a configuration that may be empty; what it leaves open goes to `notes`.

    Raises:
        InputError: an encoder of BGR images, or windows that are no numbers of pixels.
    """
    steps = list(_steps(stated.get("test_pipeline")))
    before = look_up(stated, "model", "data_preprocessor") or stated.get("data_preprocessor")
    before = before if isinstance(before, Mapping) else {}
    mean, std = _normalisation(before, stated.get("img_norm_cfg"), steps, path, notes)
    window, stride = _windows(look_up(stated, "model", "test_cfg"), path, notes)
    short, long = _sides(steps, notes)
    if before.get("test_cfg") or any(step.get("type") == "Pad" for step in steps):
        notes.otherwise.append("images are not padded at test time")
    return Reading(mean, std, window, stride, short, long)


def is_triple(value: Any) -> bool:
    """Whether it is three numbers."""
    return isinstance(value, Sequence) and len(value) == 3 and all(isinstance(entry, int | float) for entry in value)


def _steps(pipeline: Any) -> Iterator[Config]:
    """The steps of a pipeline, and those within a step."""
    for step in pipeline if isinstance(pipeline, list) else []:
        if isinstance(step, Mapping):
            yield step
            yield from _steps(step.get("transforms"))


def _windows(test: Any, path: Path, notes: Notes) -> tuple[int | None, int]:
    """Side and stride of square windows.

    Raises:
        InputError: sides that are no numbers of pixels.
    """
    if not isinstance(test, Mapping):
        notes.assumed.append(f"windows of {WINDOW} every {STRIDE} pixels")
        return WINDOW, STRIDE
    if test.get("mode") == "whole":
        return None, STRIDE
    found = []
    for name, default in (("crop_size", WINDOW), ("stride", STRIDE)):
        size = test.get(name)
        if size is None:
            notes.assumed.append(f"{name} {default}")
        sides = [size] if isinstance(size, int) else list(size or [default])
        if not all(type(side) is int for side in sides):
            raise InputError(f"{path}: its configuration has test_cfg.{name} {size!r:.40}; write height and width")
        found.append(min(sides))
        if len(set(sides)) > 1:
            notes.otherwise.append(f"{name} {found[-1]}, as {size} is not square")
    if found[1] > found[0]:
        notes.otherwise.append(f"stride {found[0]}, as one of {found[1]} leaves pixels out")
    return found[0], min(found)


def _sides(steps: Sequence[Config], notes: Notes) -> tuple[int | None, int]:
    """The shorter and longer side into which images are fitted: `scale` of 1.x or `img_scale` of 0.x."""
    if not steps:
        notes.assumed.append(f"images fitted into {SIDES[1]}×{SIDES[0]}")
        return SIDES
    resizing = [step for step in steps if step.get("type") == "Resize"]
    # 0.x states the scale around its Resize, whose default is to keep the ratio; that of 1.x is not to
    stated = [step for step in steps if step.get("scale", step.get("img_scale")) is not None]
    if not stated:
        if resizing:
            notes.otherwise.append("images keep their size, as how its Resize scales them is not read")
        return None, SIDES[1]
    scale = stated[0].get("scale", stated[0].get("img_scale"))
    sides = [scale] * 2 if isinstance(scale, int) else scale
    if not isinstance(sides, list) or len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        notes.otherwise.append(f"images fitted into {SIDES[1]}×{SIDES[0]}, as scale {scale!r:.40} is not read")
        return SIDES
    if any(step.get("keep_ratio", "scale" not in step) is False for step in resizing):
        notes.otherwise.append("images keep the ratio of their sides, as keep_ratio False is not read")
    return min(sides), max(sides)


def _normalisation(
    before: Config, older: Any, steps: Sequence[Config], path: Path, notes: Notes
) -> tuple[Triple, Triple]:
    """Mean and standard deviation of RGB in 0..1, of the preprocessor of 1.x or what 0.x had in its place."""
    places = [before, older, *(step for step in steps if step.get("type") == "Normalize")]
    found = next((place for place in places if isinstance(place, Mapping) and place), {})
    mean, std = found.get("mean"), found.get("std")
    if mean is None or std is None or not (is_triple(mean) and is_triple(std)):
        notes.assumed.append("pixels normalised with mean and std 127.5")
        return (0.5,) * 3, (0.5,) * 3
    name, default = ("bgr_to_rgb", False) if found is before else ("to_rgb", True)
    if found.get(name, default) is False:  # False is what 1.x does untold, and True what 0.x did
        raise InputError(
            f"{path}: its configuration has {name} {'False' if name in found else 'unset'}: the encoder takes BGR "
            "images, which is not read; reverse the channels of backbone.patch_embed.projection.weight, mean and std, "
            "and say True"
        )
    red, green, blue = (float(value) / 255 for value in mean)
    r, g, b = (float(value) / 255 for value in std)
    return (red, green, blue), (r, g, b)
