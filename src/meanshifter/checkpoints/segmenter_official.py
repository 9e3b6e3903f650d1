"""Configuration and classes of an official Segmenter checkpoint, from its `variant.yml` and its tensors.

Sources: `segm/model/factory.py`, `segm/model/vit.py`, `segm/train.py`, `segm/inference.py`, `segm/eval/miou.py` and
`segm/data/config` of github.com/rstrudel/segmenter. Layer norms have PyTorch's ε of 1e-5, in the encoder too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from meanshifter.checkpoints.mmsegmentation import look_up
from meanshifter.checkpoints.naming import (
    ASSUMED_STEPS,
    Decoder,
    Names,
    Notes,
    backbone,
    count_layers,
    decoder_of,
    encoder_of,
    image_size,
)
from meanshifter.data.catalog import ade20k, cityscapes
from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError
from meanshifter.model.config import MeanShiftConfig, ModelConfig, Triple
from meanshifter.utils.files import LARGEST_YAML, parse_yaml, read_text

NAMES = Names(
    "encoder.cls_token",
    "encoder.patch_embed.proj.",
    "encoder.pos_embed",
    "encoder.blocks.",
    "mlp.fc1.weight",
    "decoder.cls_emb",
    "decoder.head.weight",
    "decoder.q.weight",
)
DATASETS: dict[Any, LabelSpace] = {"ade20k": ade20k.LABELS, "cityscapes": cityscapes.LABELS}
"""Its names of the datasets whose classes are in our catalog."""
NORMALIZATIONS: dict[str, tuple[Triple, Triple]] = {
    "vit": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "deit": ((123.68 / 255, 116.28 / 255, 103.53 / 255), (58.4 / 255, 57.12 / 255, 57.38 / 255)),
}
"""Mean and std, rounded to hundredths of a gray level as in `segm/data/base.py`."""
MAX_RATIOS: dict[Any, int] = {"ade20k": 4, "pascal_context": 8, "cityscapes": 2}
"""Largest ratio of the longer to the shorter side before the shorter one is reduced further (`max_ratio`)."""
EPS = 1e-5
"""ε of layer norms: PyTorch's default, which its ViT keeps."""
STEPS = "mean_shift_layers"
"""The field in which we store a MeanShifter's number of steps in `variant.yml`; the official code has none."""
LARGEST = 2**31 - 1


def describe_segmenter(
    state: Mapping[str, Tensor], _content: Mapping[str, Any], path: Path
) -> tuple[ModelConfig, LabelSpace, Notes]:
    """Return the configuration of the model, its classes, and notes for the user.

    Raises:
        InputError: not a plain ViT with a linear or mask-transformer decoder, or an unreadable `variant.yml`.
    """
    source = path.parent / "variant.yml"
    variant = read_variant(source)
    net = _section(variant, "net_kwargs")
    distilled = "encoder.dist_token" in state
    encoder, notes = encoder_of(state, NAMES, path), Notes()
    heads = _count(net, "net_kwargs.n_heads", source)
    if heads is None:
        notes.assumed.append("one attention head for each 64 channels")
        heads = max(encoder.width // 64, 1)
    name, arguments = backbone(encoder, heads, distilled=distilled)
    mean, std = _normalization(net, "deit" if distilled else "vit", notes, source)
    decoder = decoder_of(state, NAMES, path)
    layers = count_layers(state, "decoder.blocks.")
    shown = {"n_cls": decoder.classes, "n_layers": encoder.depth, "d_model": encoder.width, "patch_size": encoder.patch}
    _check_same(shown | {"distilled": distilled}, net, source)
    _check_same(_shown_decoder(decoder, layers, look_up(net, "decoder", "name")), net, source, "decoder")
    reading = _section(variant, "inference_kwargs")
    window = _pixels(reading, "window_size", 512, notes, source)
    stride = _pixels(reading, "window_stride", min(512, window), notes, source)
    side = _pixels(reading, "im_size", 512, notes, source)
    steps = variant.get(STEPS)
    if decoder.channels is not None and not isinstance(steps, int):
        notes.assumed.append(ASSUMED_STEPS)
        steps = 1
    config = ModelConfig(
        encoder=name,
        image_size=image_size(encoder, 2 if distilled else 1, _sides(net, "net_kwargs.image_size", source), path),
        decoder="mask" if decoder.mask else "linear",
        decoder_layers=layers,
        mean_shift=None if decoder.channels is None or steps is None else MeanShiftConfig(steps, decoder.channels),
        drop_path=_rate(net, "net_kwargs.drop_path_rate", source),
        encoder_args=arguments,
        positions="bilinear",
        norm_eps=EPS,
        window=window,
        window_stride=stride,
        short_side=side,
        long_side=MAX_RATIOS.get(_dataset(variant), MAX_RATIOS["ade20k"]) * side,
        mean=mean,
        std=std,
    )
    known = DATASETS.get(_dataset(variant))
    if known is None or known.num_classes != decoder.classes:
        return config, LabelSpace.unnamed(decoder.classes), notes
    return config, LabelSpace(known.names, known.palette), notes


def _section(variant: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = variant.get(name)
    return section if isinstance(section, Mapping) else {}


def _field(section: Mapping[str, Any], name: str) -> Any:
    """The value of a field whose `name` includes its sections, as messages show it; None if unset."""
    return section.get(name.rpartition(".")[2])


def _count(section: Mapping[str, Any], name: str, path: Path) -> int | None:
    """A positive integer; None if unset."""
    value = _field(section, name)
    if value is not None and not (type(value) is int and 1 <= value <= LARGEST):
        raise InputError(f"{path}: {name} is {value!r:.40}; write an integer from 1 to {LARGEST}")
    return value


def _rate(section: Mapping[str, Any], name: str, path: Path) -> float:
    """A fraction; 0 if unset."""
    value = _field(section, name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InputError(f"{path}: {name} is {value!r:.40}; write a number from 0 to 1")
    return 0.0 if value is None else float(value)


def _sides(section: Mapping[str, Any], name: str, path: Path) -> Any:
    """One side, or height and width, in pixels; None if unset."""
    value = _field(section, name)
    several = value if isinstance(value, list) else [value]
    if value is not None and not (several and all(type(side) is int and 1 <= side <= LARGEST for side in several)):
        raise InputError(f"{path}: {name} is {value!r:.40}; write height and width in pixels")
    return value


def _pixels(section: Mapping[str, Any], field: str, default: int, notes: Notes, path: Path) -> int:
    """A field of `inference_kwargs`, or `default` with a note."""
    value = _count(section, f"inference_kwargs.{field}", path)
    if value is None:
        notes.assumed.append(f"{field} {default}")
    return default if value is None else value


def _normalization(net: Mapping[str, Any], default: str, notes: Notes, path: Path) -> tuple[Triple, Triple]:
    """Mean and standard deviation of the stated normalization."""
    if "normalization" not in net:
        notes.assumed.append(f"the normalization of {default!r}")
    kind = str(net.get("normalization", default))
    if kind not in NORMALIZATIONS:
        raise InputError(f"{path}: normalization is {kind!r:.40}; expected one of {', '.join(NORMALIZATIONS)}")
    return NORMALIZATIONS[kind]


def _shown_decoder(decoder: Decoder, layers: int, stated: Any) -> dict[str, Any]:
    """The decoder's fields as its tensors show them; the name only where `stated` lacks it, as substrings count."""
    kind = "mask_transformer" if decoder.mask else "linear"
    name = {"name": kind} if isinstance(stated, str) and kind not in stated else {}
    return name | ({"n_layers": layers} if decoder.mask else {})


def _check_same(shown: Mapping[str, Any], stated: Any, path: Path, *within: str) -> None:
    """Refuse a `variant.yml` that contradicts the tensors; fields that it leaves out do not count."""
    for key in within:
        stated = stated.get(key) if isinstance(stated, Mapping) else None
    for field, value in shown.items() if isinstance(stated, Mapping) else ():
        if stated.get(field, value) != value:
            name = ".".join(("net_kwargs", *within, field))
            raise InputError(
                f"{path}: {name} is {stated[field]!r:.40}, but the tensors of the checkpoint show {value}; use the "
                "variant.yml that belongs to the checkpoint"
            )


def _dataset(variant: Mapping[str, Any]) -> str | None:
    """The training dataset, by its name there."""
    name = _section(variant, "dataset_kwargs").get("dataset")
    return name if isinstance(name, str) else None


class _Loader(yaml.SafeLoader):
    """Plain YAML plus Python tuples, which the official training code writes for sizes."""


def _sequence(loader: _Loader, node: yaml.SequenceNode) -> list[Any]:
    return list(loader.construct_sequence(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _sequence)


def read_variant(path: Path) -> dict[str, Any]:
    """Return the content of a `variant.yml`, empty if there is no such file.

    Raises:
        InputError: it is not YAML of plain values.
    """
    if not path.is_file():
        return {}
    found = parse_yaml(read_text(path, LARGEST_YAML), path, _Loader)
    return dict(found) if isinstance(found, Mapping) else {}
