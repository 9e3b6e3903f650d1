"""Transforms of torchvision.transforms.v2, by name and arguments, on a crop and its labels together.

torchvision is imported on use.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from meanshifter.data.labels import Labels
from meanshifter.errors import InputError, did_you_mean, summarize_error

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Color = tuple[int, int, int]
TRIALS: Final = 4
"""Crops on which a transform is tried; one that changes sizes at random may show it later, which is an error then."""
EXAMPLE: Final = "[{name: RandomSolarize, threshold: 128}]"


def check_transforms(specs: Sequence[Any], crop: tuple[int, int]) -> Iterator[str]:
    """What is wrong with transforms, as `[i]…: …`: names, arguments, and what they do to a crop of this size."""
    if min(crop) < 1:
        return
    for number, spec in enumerate(specs):
        if (error := _wrong(json.dumps(spec, sort_keys=True, default=repr), crop)) is not None:
            yield f"[{number}]{error}"


@lru_cache(maxsize=64)
def _wrong(text: str, crop: tuple[int, int]) -> str | None:
    """What is wrong with a transform, given as JSON; None: nothing."""
    spec = json.loads(text)
    try:
        transform = _created(spec, (0, 0, 0), 255)
    except InputError as error:
        return str(error)
    pixels = np.random.default_rng(0).integers(0, 256, (*crop, 3), dtype=np.uint8)
    parts = pixels, np.zeros(crop, np.uint8), np.zeros(crop, np.bool_)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what leaves masks as they are warns
            for seed in range(TRIALS):
                _apply(transform, *parts, seed=seed)
    except InputError as error:
        return f".name: {spec['name']} {error}"
    except Exception as error:  # any of torchvision's
        reason = summarize_error(error)
        return f".name: {spec['name']} does not work on a uint8 image and its mask ({reason}); leave it out"
    return None


def apply_transforms(
    specs: Sequence[Mapping[str, Any]],
    pixels: Pixels,
    labels: Labels,
    outside: Mask,
    *,
    seed: int,
    fill: Color,
    ignore: int,
) -> tuple[Pixels, Labels, Mask]:
    """Apply transforms to pixels (h, w, 3), labels (h, w) and the mask (h, w) of what is outside of the image.

    Masks are resampled to the nearest neighbor. What a transform shows from outside is `fill`, `ignore` and True. The
    draws depend on `seed` alone, and torch's global generator is left as it was.

    Raises:
        InputError: a transform changes the size of the crop, or the type of its values.
    """
    return _apply(_composed(json.dumps(list(specs)), fill, ignore), pixels, labels, outside, seed=seed)


def _apply(transform: Any, pixels: Pixels, labels: Labels, outside: Mask, *, seed: int) -> tuple[Pixels, Labels, Mask]:
    import torch

    tv_tensors: Any = import_module("torchvision.tv_tensors")
    image = tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))
    kind = np.uint8 if labels.dtype == np.uint8 else np.int32  # torch lacks most operations on uint16
    masks = tv_tensors.Mask(torch.from_numpy(np.stack([labels.astype(kind), outside.astype(kind)])))
    with _seeded(seed):
        out = transform(image, masks)
    shown: Any
    found: Any
    shown, found = out if isinstance(out, tuple) and len(out) == 2 else (None, None)
    for part, before in ((shown, image), (found, masks)):
        if not isinstance(part, type(before)) or part.shape != before.shape or part.dtype != before.dtype:
            h, w = labels.shape
            raise InputError(
                f"does not turn a crop of {h}×{w} in uint8 into another one with its labels; leave it out, or set "
                "augment.crop, augment.scale and augment.rotation instead"
            )
    target, beyond = found.numpy()
    return np.ascontiguousarray(shown.numpy().transpose(1, 2, 0)), target.astype(labels.dtype), beyond != 0


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator of the CPU within, and restore it; those of other devices are not touched."""
    import torch

    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)


@lru_cache(maxsize=8)
def _composed(specs: str, fill: Color, ignore: int) -> Any:
    v2: Any = import_module("torchvision.transforms.v2")
    return v2.Compose([_created(spec, fill, ignore) for spec in json.loads(specs)])


def _created(spec: Any, fill: Color, ignore: int) -> Any:
    """The transform of a mapping of a name and arguments; an InputError whose message begins with `.name` or such."""
    v2: Any = import_module("torchvision.transforms.v2")
    tv_tensors: Any = import_module("torchvision.tv_tensors")
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise InputError(f": {spec!r:.80} is not a name with arguments, such as {EXAMPLE}")
    name, given = spec["name"], {key: value for key, value in spec.items() if key != "name"}
    known = [key for key, value in vars(v2).items() if inspect.isclass(value) and issubclass(value, v2.Transform)]
    if name not in known:
        hint = did_you_mean(name, known, "see the list of torchvision.transforms.v2")
        raise InputError(f".name: {name!r} is not a transform of torchvision.transforms.v2; {hint}")
    cls = getattr(v2, name)
    arguments = [key for key in inspect.signature(cls).parameters if key not in ("args", "kwargs", "inplace")]
    for key in given:
        if key not in arguments:
            hint = did_you_mean(key, arguments, f"arguments are {', '.join(arguments) or 'none'}")
            raise InputError(f".{key}: {name} has no such argument; {hint}")
    if "interpolation" in given:
        modes = [mode.value for mode in v2.InterpolationMode]
        if given["interpolation"] not in modes:
            raise InputError(f".interpolation: {given['interpolation']!r} is not one of {', '.join(modes)}")
        given["interpolation"] = v2.InterpolationMode(given["interpolation"])
    if "fill" in arguments:
        given["fill"] = {tv_tensors.Image: given.get("fill", list(fill)), tv_tensors.Mask: ignore}
    if isinstance(inner := given.get("transforms"), Sequence):  # of RandomApply, RandomChoice, RandomOrder
        given["transforms"] = [_created(part, fill, ignore) for part in inner]
    try:
        return cls(**given)
    except Exception as error:  # any of torchvision's
        raise InputError(f".name: {name} rejects its arguments ({summarize_error(error)})") from error
