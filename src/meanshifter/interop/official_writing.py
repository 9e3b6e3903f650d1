"""Our models as the files that the Segmenter of its authors loads.

Source: `load_model` in `segm/model/factory.py` of github.com/rstrudel/segmenter, which takes `checkpoint.pth` beside
`variant.yml`, and what its `segm/inference.py` and `segm/eval/miou.py` ask of the latter.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError
from meanshifter.files import write_text
from meanshifter.interop.foreign_files import changed_positions, foreign_state, mlp_ratio, norm_eps, save_pickle, tell
from meanshifter.interop.naming import SEGMENTER
from meanshifter.interop.official import DATASETS, MAX_RATIOS, NORMALISATIONS, STEPS, labelling
from meanshifter.interop.plain import check_plain
from meanshifter.model.decoder import MaskTransformer
from meanshifter.model.segmenter import Segmenter

AUTHORS_EPS = 1e-5
"""torch's default, which their ViT leaves as it is."""


def write_segmenter(model: Segmenter, folder: str | Path) -> list[Path]:
    """`checkpoint.pth` and `variant.yml` in `folder`, as the Segmenter of its authors writes them.

    The ImageNet classifier that its encoder carries along unused is the one of the file that the model was read from;
    zeros for a model of another origin.

    Raises:
        InputError: a model with a part that it has not.
    """
    folder = Path(folder)
    check_plain(
        model.encoder.vit, "the authors' Segmenter", without=("patch_embed.proj.bias",), besides=("dist_token",)
    )
    _check_sizes(model)
    state = foreign_state(model, SEGMENTER, "the authors' Segmenter")
    normalisation = _normalisation(model)
    changed = changed_positions(model, "bilinear")
    if (eps := norm_eps(model)) != AUTHORS_EPS:
        changed.append(f"its layer norms have ε {AUTHORS_EPS:g} for {eps:g}")
    distilled = getattr(model.encoder.vit, "dist_token", None) is not None
    variant = _variant(model, normalisation, distilled=distilled)
    if not model.config.patch_bias:
        state["encoder.patch_embed.proj.bias"] = torch.zeros(model.encoder.width)
    for head in ("head", "head_dist")[: 1 + distilled]:
        for name, shape in (("weight", (1000, model.encoder.width)), ("bias", (1000,))):
            key = f"encoder.{head}.{name}"
            state.setdefault(key, torch.zeros(shape))
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "checkpoint.pth", folder / "variant.yml"]
    save_pickle(written[0], {"model": OrderedDict(state), "n_cls": model.labels.num_classes})
    write_text(written[1], yaml.safe_dump(variant))
    tell("the authors' Segmenter", changed + _lost(model, variant))
    if model.mean_shift is not None:
        warnings.warn("the authors' Segmenter has no mean shift block; a fork that has one loads it", stacklevel=2)
    return written


def _check_sizes(model: Segmenter) -> None:
    """Refuse what the authors' `create_segmenter` takes from the width and no field of `variant.yml` says."""
    width, heads = model.encoder.width, model.config.decoder_heads
    if (ratio := mlp_ratio(model)) != 4:
        raise InputError(f"model: mlp_ratio is {ratio}, but the authors' Segmenter has 4; write it for mmsegmentation")
    heads = max(width // 64, 1) if heads is None else heads
    if isinstance(model.decoder, MaskTransformer) and heads != width // 64:
        raise InputError(
            f"model: decoder_heads is {heads}, but the authors' Segmenter has one for each 64 of {width} channels; "
            "write it for mmsegmentation"
        )
    if any(side % model.patch_size for side in model.config.image_size):
        raise InputError(
            f"model: image_size is {model.config.image_size}, but the authors' Segmenter takes multiples of "
            f"its patches of {model.patch_size} only; write it for mmsegmentation"
        )


def _lost(model: Segmenter, variant: Mapping[str, Any]) -> list[str]:
    """What `variant.yml` has no way to say of how images are read, and of the classes."""
    config, side = model.config, variant["inference_kwargs"]["im_size"]
    long_side = MAX_RATIOS.get(variant["dataset_kwargs"].get("dataset"), MAX_RATIOS["ade20k"]) * side
    lost = []
    if config.window is None:
        lost.append(f"images are read in windows of {variant['inference_kwargs']['window_size']}, not whole")
    if config.short_side is None or config.long_side != long_side:
        sides = "left at their size" if config.short_side is None else f"into {config.long_side}×{config.short_side}"
        lost.append(f"scored images are fitted into {long_side}×{side}, not {sides}")
    K = model.labels.num_classes
    if "dataset" not in variant["dataset_kwargs"] and model.labels.names != LabelSpace.unnamed(K).names:
        lost.append("its classes have no names")
    return lost


def _normalisation(model: Segmenter) -> str:
    """The name that the authors have for the model's mean and deviation."""
    for name, (mean, std) in NORMALISATIONS.items():
        if np.allclose([*model.config.mean, *model.config.std], [*mean, *std], atol=1e-3):
            return name
    raise InputError(
        f"model: it has mean {model.config.mean} and std {model.config.std}, and the authors' Segmenter "
        f"knows those of {' and '.join(NORMALISATIONS)} only; write it for mmsegmentation"
    )


def _variant(model: Segmenter, kind: str, *, distilled: bool) -> dict[str, Any]:
    config, width = model.config, model.encoder.width
    reading = labelling(config)
    window, side = reading["window"], config.short_side
    decoder: dict[str, Any] = {"name": "linear"}
    if isinstance(model.decoder, MaskTransformer):
        layers = len(model.decoder.blocks)
        decoder = {"name": "mask_transformer", "drop_path_rate": 0.0, "dropout": 0.1, "n_layers": layers}
    net = {
        "backbone": _backbone(model),
        "image_size": list(config.image_size),
        "patch_size": model.patch_size,
        "d_model": width,
        "n_heads": model.encoder.heads,
        "n_layers": len(model.encoder.vit.blocks),
        "n_cls": model.labels.num_classes,
        "normalization": kind,
        "distilled": distilled,
        "dropout": 0.0,
        "drop_path_rate": config.drop_path,
        "decoder": decoder,
    }
    side = window if side is None else side
    height, crop = config.image_size
    trained: dict[str, Any] = {
        "normalization": kind,
        "image_size": side,
        "crop_size": crop if crop == height else window,  # the window in which segm.eval.miou scores
    }
    for name, known in DATASETS.items():
        if known.names == model.labels.names:
            trained["dataset"] = name  # the only way in which the file tells the names of classes
    windows = {"im_size": side, "window_size": window, "window_stride": reading["stride"]}
    variant: dict[str, Any] = {"net_kwargs": net, "inference_kwargs": windows, "dataset_kwargs": trained}
    return variant if config.mean_shift is None else variant | {STEPS: config.mean_shift.layers}


def _backbone(model: Segmenter) -> str:
    """timm's name, from which the authors' loader fetches ImageNet weights; for other sizes one without any."""
    args = model.config.backbone_args
    return f"vit_{model.encoder.width}_patch{model.patch_size}" if args else model.config.backbone.split(".")[0]
