"""What an MMSegmentation checkpoint says of its model: shapes of tensors, `meta`, and the configuration in it.

Source: `VisionTransformer`, `FCNHead`, `SegmenterMaskTransformerHead` and the Segmenter configurations of 1.2.2; `meta`
of 0.x holds CLASSES, PALETTE and `config`, that of 1.x `dataset_meta` and `cfg`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from meanshifter.data.labels import Color, LabelSpace
from meanshifter.errors import InputError
from meanshifter.interop.architecture import Names, backbone, count_layers, encoder_of, image_size
from meanshifter.interop.literals import look_up, read_config
from meanshifter.model.config import MeanShiftConfig, ModelConfig, Triple

NAMES = Names(
    "backbone.cls_token",
    "backbone.patch_embed.projection.",
    "backbone.pos_embed",
    "backbone.layers.",
    "ffn.layers.0.0.weight",
)
MMCV_EPS = 1e-5
"""Of layer norms whose configuration does not state it (`build_norm_layer`)."""
SYNONYMS = {"television receiver": "television"}
"""Where its name of an ADE20K class is not the first of the challenge's list, as ours are."""
STEPS = ("num_layers", "n_layers", "layers", "num_iters", "iterations")
"""Fields in which a MeanShifter head's configuration may state L_ms."""


def describe_mmsegmentation(
    state: Mapping[str, Tensor], whole: Mapping[str, Any], path: Path
) -> tuple[ModelConfig, LabelSpace, list[str]]:
    """Configuration and classes of the model, and what had to be assumed.

    Raises:
        InputError: no plain ViT with a head of Segmenter or MeanShifter.
    """
    meta = whole.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    stated = _configuration(meta)
    part, head = look_up(stated, "model", "backbone") or {}, look_up(stated, "model", "decode_head") or {}
    assumed = [] if part else ["one attention head for each 64 channels, layer norms with ε 1e-6"]
    encoder = encoder_of(state, NAMES, path)
    heads = int(part.get("num_heads", 12)) if part else max(encoder.width // 64, 1)  # 12: the tool's own default
    name, arguments = backbone(encoder, heads)
    if part.get("with_cls_token") is False:
        raise InputError(f"{path}: backbone.with_cls_token is False; only encoders with a class token are read")
    if "backbone.ln1.weight" not in state:
        arguments["final_norm"] = False
    norm = look_up(part, "norm_cfg", "eps")
    mean, std, how = _normalisation(stated, path)
    window, stride, squared = _windows(look_up(stated, "model", "test_cfg") or {})
    sides = _sides(stated.get("test_pipeline"))
    decoder, K, shift, more = _decoder(state, head, path)
    config = ModelConfig(
        backbone=name,
        image_size=image_size(encoder, 1, part.get("img_size"), path),
        decoder="mask" if decoder else "linear",
        decoder_layers=count_layers(state, "decode_head.layers."),
        decoder_heads=head.get("num_heads") if decoder else None,
        mean_shift=shift,
        drop_path=float(part.get("drop_path_rate") or 0.0),
        backbone_args=arguments,
        positions=_positions(part.get("interpolate_mode", "bicubic"), path),
        norm_eps=float(norm) if norm is not None else MMCV_EPS if part else 1e-6,
        patch_bias=encoder.patch_bias,
        window=window,
        stride=stride,
        short_side=sides[0],
        long_side=sides[1],
        mean=mean,
        std=std,
    )
    return config, _labels(meta, K, path), assumed + how + squared + more


def _configuration(meta: Mapping[str, Any]) -> dict[str, Any]:
    text = meta.get("cfg", meta.get("config"))
    return read_config(text) if isinstance(text, str) else {}


def _windows(test: Mapping[str, Any]) -> tuple[int | None, int, list[str]]:
    """Side and stride of square windows, and what is not square.

    Those of the Segmenter configurations where nothing of the kind is stated.
    """
    if test.get("mode") == "whole":
        return None, 480, []
    found, told = [], []
    for name, default in (("crop_size", 512), ("stride", 480)):
        size = test.get(name)
        sides = [size] if isinstance(size, int) else list(size or [default])
        found.append(int(min(sides)))
        if len(set(sides)) > 1:
            told.append(f"{name} {found[-1]}, as {size} is not square")
    return found[0], min(found), told


def _sides(pipeline: Any) -> tuple[int, int]:
    """The shorter and longer side into which images are fitted: `scale` of 1.x or `img_scale` of 0.x."""
    for step in pipeline if isinstance(pipeline, list) else []:
        if isinstance(step, Mapping):
            scale = step.get("scale", step.get("img_scale"))
            if isinstance(scale, list) and len(scale) == 2 and all(isinstance(side, int) for side in scale):
                return min(scale), max(scale)
    return 512, 2048


def _positions(mode: Any, path: Path) -> Any:
    if mode not in ("bicubic", "bilinear"):
        raise InputError(f"{path}: backbone.interpolate_mode is {mode!r}; 'bicubic' and 'bilinear' are read")
    return mode


def _normalisation(stated: Mapping[str, Any], path: Path) -> tuple[Triple, Triple, list[str]]:
    """Mean and standard deviation of RGB in 0..1."""
    found = look_up(stated, "model", "data_preprocessor") or stated.get("data_preprocessor")
    found = found or stated.get("img_norm_cfg") or {}
    mean, std = found.get("mean"), found.get("std")
    if mean is None or std is None or not (_is_triple(mean) and _is_triple(std)):
        return (0.5,) * 3, (0.5,) * 3, ["pixels normalised with mean and std 127.5"]
    for name in ("to_rgb", "bgr_to_rgb"):
        if found.get(name) is False:
            raise InputError(
                f"{path}: its configuration says {name}=False: the encoder takes BGR images, which is not read; "
                "reverse the channels of backbone.patch_embed.projection.weight, mean and std, and say True"
            )
    red, green, blue = (float(value) / 255 for value in mean)
    r, g, b = (float(value) / 255 for value in std)
    return (red, green, blue), (r, g, b), []


def _is_triple(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 3 and all(isinstance(entry, int | float) for entry in value)


def _decoder(
    state: Mapping[str, Tensor], head: Mapping[str, Any], path: Path
) -> tuple[bool, int, MeanShiftConfig | None, list[str]]:
    """Whether it is a mask transformer, K, the mean shift block, and what was assumed."""
    if "decode_head.cls_emb" in state:
        mask, K = True, state["decode_head.cls_emb"].shape[1]
    elif "decode_head.conv_seg.weight" in state:
        mask, K = False, state["decode_head.conv_seg.weight"].shape[0]
    else:
        raise InputError(f"{path}: decode_head has neither conv_seg nor cls_emb; give a Segmenter or a MeanShifter")
    if "decode_head.q.weight" not in state:
        return mask, K, None, []
    channels = state["decode_head.q.weight"].shape[0]
    layers = next((head[key] for key in STEPS if isinstance(head.get(key), int) and not mask), None)
    assumed = [] if layers is not None else ["1 mean shift step (`mean_shift_layers` says otherwise)"]
    return mask, K, MeanShiftConfig(1 if layers is None else layers, channels), assumed


def _labels(meta: Mapping[str, Any], K: int, path: Path) -> LabelSpace:
    data = meta.get("dataset_meta", meta)
    data = data if isinstance(data, Mapping) else {}
    names = data.get("classes", data.get("CLASSES"))
    if not isinstance(names, Sequence) or isinstance(names, str):
        return LabelSpace.unnamed(K)
    if len(names) != K:
        raise InputError(f"{path}: {len(names)} class names for {K} classes; the file is not of one model")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{path}: class name {name!r:.40}; names are text, and not empty")
    clean = [name.strip() for name in names]
    palette = data.get("palette", data.get("PALETTE"))
    colors: tuple[Color, ...] = ()
    if isinstance(palette, Sequence) and len(palette) == K and all(_is_triple(color) for color in palette):
        colors = tuple((int(r), int(g), int(b)) for r, g, b in palette)
    return LabelSpace(tuple(SYNONYMS.get(name, name) for name in clean), colors)
