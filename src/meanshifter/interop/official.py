"""What `variant.yml` and the tensors say of a model of the Segmenter's authors.

Source: `segm/model/factory.py`, `segm/model/vit.py`, `segm/train.py`, `segm/inference.py`, `segm/eval/miou.py` and
`segm/data/config` of github.com/rstrudel/segmenter. Its layer norms have PyTorch's ε of 1e-5, in the encoder too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from meanshifter.data.catalog import ade20k, cityscapes
from meanshifter.data.labels import LabelSpace
from meanshifter.documents import LARGEST_YAML, parse_yaml, read_text
from meanshifter.errors import InputError
from meanshifter.interop.architecture import (
    UNTOLD_STEPS,
    Decoder,
    Names,
    Notes,
    backbone,
    count_layers,
    decoder_of,
    encoder_of,
    image_size,
)
from meanshifter.interop.fields import count, rate, sides
from meanshifter.interop.literals import look_up
from meanshifter.model.config import MeanShiftConfig, ModelConfig, Triple

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
"""Its names of data sets whose classes are in the catalogue."""
NORMALISATIONS: dict[str, tuple[Triple, Triple]] = {
    "vit": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "deit": ((123.68 / 255, 116.28 / 255, 103.53 / 255), (58.4 / 255, 57.12 / 255, 57.38 / 255)),
}
"""As `segm/data/base.py` rounds them, to hundredths of a level."""
MAX_RATIOS: dict[Any, int] = {"ade20k": 4, "pascal_context": 8, "cityscapes": 2}
"""How many times its shorter side an image's longer one may have, before the shorter is made smaller (`max_ratio`)."""
STEPS = "mean_shift_layers"
"""Where a `variant.yml` of ours states the steps of a MeanShifter, of which the authors' knows nothing."""
OVERLAP = 32
"""Pixels that windows share in `segm/eval/miou.py`."""


def describe_segmenter(
    state: Mapping[str, Tensor], _whole: Mapping[str, Any], path: Path
) -> tuple[ModelConfig, LabelSpace, Notes]:
    """Configuration of the model, its classes, and what to know of it.

    Raises:
        InputError: no plain ViT with a linear or mask-transformer decoder, or a `variant.yml` that cannot be read.
    """
    variant = read_variant(path.parent / "variant.yml")
    net = variant.get("net_kwargs")
    net = net if isinstance(net, Mapping) else {}
    distilled = "encoder.dist_token" in state
    encoder = encoder_of(state, NAMES, path)
    notes, said = Notes(), path.parent / "variant.yml"
    heads = count(net, "net_kwargs.n_heads", said)
    if heads is None:
        notes.assumed.append("one attention head for each 64 channels")
        heads = max(encoder.width // 64, 1)
    name, arguments = backbone(encoder, heads, distilled=distilled)
    mean, std = _normalisation(net, "deit" if distilled else "vit", notes, said)
    decoder = decoder_of(state, NAMES, path)
    layers = count_layers(state, "decoder.blocks.")
    shown = {"n_cls": decoder.classes, "n_layers": encoder.depth, "d_model": encoder.width, "patch_size": encoder.patch}
    _check_same(shown | {"distilled": distilled}, net, path)
    _check_same(_shown_decoder(decoder, layers, look_up(net, "decoder", "name")), net, path, "decoder")
    reading = variant.get("inference_kwargs")
    reading = reading if isinstance(reading, Mapping) else {}
    window = _reading(reading, "window_size", 512, notes, said)
    stride = _reading(reading, "window_stride", min(512, window), notes, said)
    side = _reading(reading, "im_size", 512, notes, said)
    steps = variant.get(STEPS)
    if decoder.channels is not None and not isinstance(steps, int):
        notes.assumed.append(UNTOLD_STEPS)
        steps = 1
    config = ModelConfig(
        backbone=name,
        image_size=image_size(encoder, 2 if distilled else 1, sides(net, "net_kwargs.image_size", said), path),
        decoder="mask" if decoder.mask else "linear",
        decoder_layers=layers,
        mean_shift=None if decoder.channels is None or steps is None else MeanShiftConfig(steps, decoder.channels),
        drop_path=rate(net, "net_kwargs.drop_path_rate", said),
        backbone_args=arguments,
        positions="bilinear",
        norm_eps=1e-5,
        window=window,
        stride=stride,
        short_side=side,
        long_side=MAX_RATIOS.get(_dataset(variant), MAX_RATIOS["ade20k"]) * side,
        mean=mean,
        std=std,
    )
    return config, _labels(variant, decoder.classes), notes


def _normalisation(net: Mapping[str, Any], untold: str, notes: Notes, path: Path) -> tuple[Triple, Triple]:
    """Mean and standard deviation, of the name that is stated for them."""
    if "normalization" not in net:
        notes.assumed.append(f"the normalisation of {untold!r}")
    kind = str(net.get("normalization", untold))
    if kind not in NORMALISATIONS:
        raise InputError(f"{path}: normalization {kind!r:.40}; 'vit' and 'deit' are known")
    return NORMALISATIONS[kind]


def _reading(section: Mapping[str, Any], field: str, untold: int, notes: Notes, path: Path) -> int:
    """Pixels of how images are read."""
    value = count(section, f"inference_kwargs.{field}", path)
    if value is None:
        notes.assumed.append(f"{field} {untold}")
    return untold if value is None else value


def _shown_decoder(decoder: Decoder, layers: int, named: Any) -> dict[str, Any]:
    """What tensors show of a decoder; its name where another one is stated (it counts what is in a name)."""
    kind = "mask_transformer" if decoder.mask else "linear"
    name = {"name": kind} if isinstance(named, str) and kind not in named else {}
    return name | ({"n_layers": layers} if decoder.mask else {})


def _check_same(shown: Mapping[str, Any], stated: Any, path: Path, *within: str) -> None:
    """Refuse a description that contradicts what the tensors show; what it leaves out contradicts nothing."""
    for key in within:
        stated = stated.get(key) if isinstance(stated, Mapping) else None
    for field, value in shown.items() if isinstance(stated, Mapping) else ():
        if stated.get(field, value) != value:
            name = ".".join(("net_kwargs", *within, field))
            raise InputError(
                f"{path.parent / 'variant.yml'}: {name} is {stated[field]!r:.40}, but the tensors beside it show "
                f"{value}; put the two files of one model together"
            )


def scoring_windows(config: ModelConfig) -> tuple[int | None, int]:
    """Window and stride of `segm/eval/miou.py`: the side of the training crops, and 32 pixels less.

    It does not ask what `variant.yml` says of windows. Crops of those models are square; others keep what they say.
    """
    height, width = config.image_size
    return (width, max(width - OVERLAP, 1)) if height == width else (config.window, config.stride)


def labelling(config: ModelConfig) -> dict[str, Any]:
    """How `segm/inference.py` reads images, as arguments of `Predictor`.

    That is at their own size, whatever they were trained at, in the windows that `variant.yml` states.
    """
    window = config.image_size[1] if config.window is None else config.window
    return {"window": window, "stride": min(config.stride, window), "short_side": None}


def _dataset(variant: Mapping[str, Any]) -> str | None:
    """The data set that was trained on, as that tool calls it."""
    trained = variant.get("dataset_kwargs")
    name = trained.get("dataset") if isinstance(trained, Mapping) else None
    return name if isinstance(name, str) else None


def _labels(variant: Mapping[str, Any], K: int) -> LabelSpace:
    """Names and palette of the data set that was trained on, where it is one of the catalogue with as many classes."""
    known = DATASETS.get(_dataset(variant))
    if known is None or known.num_classes != K:
        return LabelSpace.unnamed(K)
    return LabelSpace(known.names, known.palette)


class _Loader(yaml.SafeLoader):
    """Plain YAML and Python's tuples, which that tool's training writes for sizes."""


def _sequence(loader: _Loader, node: yaml.SequenceNode) -> list[Any]:
    return list(loader.construct_sequence(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _sequence)


def read_variant(path: Path) -> dict[str, Any]:
    """What a `variant.yml` says; nothing where there is none.

    Raises:
        InputError: it is no YAML of plain values.
    """
    if not path.is_file():
        return {}
    found = parse_yaml(read_text(path, LARGEST_YAML), path, _Loader)
    return dict(found) if isinstance(found, Mapping) else {}
