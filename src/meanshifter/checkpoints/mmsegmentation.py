"""Configuration and classes of an MMSegmentation checkpoint, from its configuration text and its tensors.

The configuration is Python text, which is parsed and never run.

Sources: `VisionTransformer`, `FCNHead`, `SegmenterMaskTransformerHead`, `SegDataPreProcessor`,
`EncoderDecoder.slide_inference` and the Segmenter configurations of 1.2.2, with their transforms; the corresponding
fields of 0.x. `meta` of 0.x holds CLASSES, PALETTE and `config`, that of 1.x `dataset_meta` or `meta_info`, and `cfg`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

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
from meanshifter.data.labels import Color, LabelSpace
from meanshifter.errors import InputError
from meanshifter.model.config import MeanShiftConfig, ModelConfig, Triple


def _read_config(text: str) -> dict[str, Any]:
    """Return the top-level assignments of Python text: literals, `dict(…)` and names that were assigned before.

    Anything else (calls, imports, expressions) is skipped, and so is text that is not Python.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    known: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            try:
                known[node.targets[0].id] = _value(node.value, known)
            except (ValueError, TypeError, RecursionError):
                continue
    return known


def look_up(config: Mapping[str, Any], *keys: str) -> Any:
    """Return `config[keys[0]][keys[1]]…`, or None if a key is missing."""
    found: Any = config
    for key in keys:
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return found


def _value(node: ast.expr, known: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name) and node.id in known:
        return known[node.id]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {word.arg: _tolerant(word.value, known) for word in node.keywords if word.arg is not None}
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {_value(key, known): _tolerant(value, known) for key, value in pairs if key is not None}
    if isinstance(node, ast.List | ast.Tuple):
        return [_tolerant(entry, known) for entry in node.elts]
    return ast.literal_eval(node)


def _tolerant(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """A nested value; None if it is not a literal, so that its neighbors can still be read."""
    try:
        return _value(node, known)
    except (ValueError, TypeError):
        return None


NAMES = Names(
    "backbone.cls_token",
    "backbone.patch_embed.projection.",
    "backbone.pos_embed",
    "backbone.layers.",
    "ffn.layers.0.0.weight",
    "decode_head.cls_emb",
    "decode_head.conv_seg.weight",
    "decode_head.q.weight",
)
LINEAR_HEAD, MASK_HEAD = "FCNHead", "SegmenterMaskTransformerHead"
MMCV_EPS = 1e-5
"""ε of layer norms whose configuration does not state it (`build_norm_layer`)."""
SYNONYMS = {"television receiver": "television"}
"""Its names of ADE20K classes → ours, which are the first in the challenge's list."""
STEPS = ("num_layers", "n_layers", "layers", "num_iters", "iterations")
"""Fields of a MeanShifter head's configuration that may state L_ms."""
WINDOW, STRIDE, SIDES = 512, 480, (512, 2048)
"""Those of the Segmenter configurations for ADE20K."""
Config = Mapping[str, Any]


def describe_mmsegmentation(
    state: Mapping[str, Tensor], content: Mapping[str, Any], path: Path
) -> tuple[ModelConfig, LabelSpace, Notes]:
    """Return the configuration of the model, its classes, and notes for the user.

    Raises:
        InputError: not a plain ViT with a Segmenter or MeanShifter head.
    """
    meta = content.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    if "meta_info" in content:
        meta = {"meta_info": content["meta_info"], **meta}
    text, notes = meta.get("cfg", meta.get("config")), Notes()
    stated = _read_config(text) if isinstance(text, str) else {}
    part, head = look_up(stated, "model", "backbone") or {}, look_up(stated, "model", "decode_head") or {}
    if not part:
        notes.assumed.append("one attention head for each 64 channels, layer norms with ε 1e-6")
    encoder = encoder_of(state, NAMES, path)
    heads = part.get("num_heads", 12) if part else max(encoder.width // 64, 1)  # 12: the tool's own default
    if type(heads) is not int:
        raise InputError(f"{path}: its configuration has backbone.num_heads {heads!r:.40}; write an integer")
    name, arguments = backbone(encoder, heads)
    _check_backbone(part, head, encoder.depth, path)
    if "backbone.ln1.weight" not in state:
        arguments["final_norm"] = False
    norm = look_up(part, "norm_cfg", "eps")
    decoder = decoder_of(state, NAMES, path)
    _check_head(head, decoder, notes, path)
    steps = next((head[key] for key in STEPS if isinstance(head.get(key), int) and not decoder.mask), None)
    if decoder.channels is not None and steps is None:
        notes.assumed.append(ASSUMED_STEPS)
        steps = 1
    config = ModelConfig(
        encoder=name,
        image_size=image_size(encoder, 1, part.get("img_size"), path),
        decoder="mask" if decoder.mask else "linear",
        decoder_layers=count_layers(state, "decode_head.layers."),
        decoder_heads=head.get("num_heads") if decoder.mask else None,
        mean_shift=None if decoder.channels is None or steps is None else MeanShiftConfig(steps, decoder.channels),
        drop_path=float(part.get("drop_path_rate") or 0.0),
        encoder_args=arguments,
        positions=part.get("interpolate_mode", "bicubic"),
        norm_eps=float(norm) if norm is not None else MMCV_EPS if part else 1e-6,
        patch_bias=encoder.patch_bias,
        **_reading(stated, path, notes),
    )
    return config, _labels(meta, decoder.classes, path), notes


def _check_backbone(part: Config, head: Config, depth: int, path: Path) -> None:
    """Refuse settings that would give different logits and that no tensor shows."""
    if part.get("with_cls_token") is False:
        raise InputError(f"{path}: backbone.with_cls_token is False; only encoders with a class token are supported")
    activation = look_up(part, "act_cfg", "type")
    if activation not in (None, "GELU"):
        raise InputError(f"{path}: backbone.act_cfg is {activation!r:.40}; only GELU encoders are supported")
    if (mode := part.get("interpolate_mode", "bicubic")) not in ("bicubic", "bilinear"):
        raise InputError(f"{path}: backbone.interpolate_mode is {mode!r:.40}; expected 'bicubic' or 'bilinear'")
    taken, index = part.get("out_indices", -1), head.get("in_index", -1)
    layers = [depth - 1 if i == -1 else i for i in ([taken] if isinstance(taken, int) else taken)]
    wanted = [layers[i] for i in ([index] if isinstance(index, int) else index)]
    if wanted != [depth - 1]:
        raise InputError(
            f"{path}: its head reads layer {wanted} of {depth} (backbone.out_indices {taken!r:.40}, "
            f"decode_head.in_index {index!r:.40}); only heads on the last layer are supported"
        )


def _check_head(head: Config, decoder: Decoder, notes: Notes, path: Path) -> None:
    """As `_check_backbone`; a head whose type and tensors disagree is noted."""
    kind = head.get("type")
    actual = MASK_HEAD if decoder.mask else LINEAR_HEAD
    if kind is not None and kind != actual and decoder.channels is None:
        notes.ignored.append(f"its head, of type {kind!r:.60}, is loaded as the {actual} that its tensors show")
    if head.get("align_corners"):
        notes.ignored.append("logits are upsampled with align_corners False")
    outputs = head.get("out_channels")
    if outputs is not None and outputs != head.get("num_classes", outputs):
        raise InputError(
            f"{path}: decode_head.out_channels is {outputs!r:.20} for {head['num_classes']!r:.20} classes; heads with "
            "a threshold are not supported; train one with an output for each class"
        )
    activation = look_up(head, "act_cfg", "type")
    if decoder.mask and activation not in (None, "GELU"):
        raise InputError(
            f"{path}: decode_head.act_cfg is {activation!r:.40}; only GELU mask transformers are supported"
        )
    eps = look_up(head, "norm_cfg", "eps")
    if decoder.mask and eps not in (None, MMCV_EPS):
        raise InputError(f"{path}: decode_head.norm_cfg.eps is {eps!r:.20}; only {MMCV_EPS} is supported")


def _labels(meta: Config, K: int, path: Path) -> LabelSpace:
    places = [meta.get("dataset_meta"), meta.get("meta_info"), meta]
    data = next(place for place in places if isinstance(place, Mapping))
    names = data.get("classes", data.get("CLASSES"))
    if not isinstance(names, Sequence) or isinstance(names, str):
        return LabelSpace.unnamed(K)
    if len(names) != K:
        raise InputError(f"{path}: {len(names)} class names for {K} classes; metadata and tensors do not match")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{path}: class name is {name!r:.40}; expected a non-empty string")
    clean = [name.strip() for name in names]
    palette = data.get("palette", data.get("PALETTE"))
    colors: tuple[Color, ...] = ()
    if isinstance(palette, Sequence) and len(palette) == K and all(_is_triple(color) for color in palette):
        colors = tuple((int(r), int(g), int(b)) for r, g, b in palette)
    return LabelSpace(tuple(SYNONYMS.get(name, name) for name in clean), colors)


def _reading(stated: Config, path: Path, notes: Notes) -> dict[str, Any]:
    """Preprocessing fields of a `ModelConfig`, from a configuration that may be empty."""
    steps = list(_steps(stated.get("test_pipeline")))
    before = look_up(stated, "model", "data_preprocessor") or stated.get("data_preprocessor")
    before = before if isinstance(before, Mapping) else {}
    mean, std = _normalization(before, stated.get("img_norm_cfg"), steps, path, notes)
    window, stride = _windows(look_up(stated, "model", "test_cfg"), path, notes)
    short, long = _sides(steps, notes)
    if before.get("test_cfg") or any(step.get("type") == "Pad" for step in steps):
        notes.ignored.append("images are not padded at test time")
    sizes = {"window": window, "window_stride": stride, "short_side": short, "long_side": long}
    return {"mean": mean, "std": std, **sizes}


def _is_triple(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 3 and all(isinstance(entry, int | float) for entry in value)


def _steps(pipeline: Any) -> Iterator[Config]:
    """The steps of a pipeline, including nested ones."""
    for step in pipeline if isinstance(pipeline, list) else []:
        if isinstance(step, Mapping):
            yield step
            yield from _steps(step.get("transforms"))


def _windows(test: Any, path: Path, notes: Notes) -> tuple[int | None, int]:
    """Side and stride of square windows."""
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
            notes.ignored.append(f"{name} {found[-1]}, as {size} is not square")
    if found[1] > found[0]:
        notes.ignored.append(f"stride {found[0]}, as {found[1]} would skip pixels")
    return found[0], min(found)


def _sides(steps: Sequence[Config], notes: Notes) -> tuple[int | None, int]:
    """Shorter and longer side that images are resized to fit: `scale` of 1.x or `img_scale` of 0.x."""
    if not steps:
        notes.assumed.append(f"images resized to fit {SIDES[1]}×{SIDES[0]}")
        return SIDES
    resizing = [step for step in steps if step.get("type") == "Resize"]
    # in 0.x the step around Resize states the scale; keep_ratio defaults to True there, and to False in 1.x
    stated = [step for step in steps if step.get("scale", step.get("img_scale")) is not None]
    if not stated:
        if resizing:
            notes.ignored.append("images keep their size, as its kind of Resize is not supported")
        return None, SIDES[1]
    scale = stated[0].get("scale", stated[0].get("img_scale"))
    sides = [scale] * 2 if isinstance(scale, int) else scale
    if not isinstance(sides, list) or len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        notes.ignored.append(f"images resized to fit {SIDES[1]}×{SIDES[0]}, as scale {scale!r:.40} is not supported")
        return SIDES
    if any(step.get("keep_ratio", "scale" not in step) is False for step in resizing):
        notes.ignored.append("images keep their aspect ratio, as keep_ratio False is not supported")
    return min(sides), max(sides)


def _normalization(
    before: Config, older: Any, steps: Sequence[Config], path: Path, notes: Notes
) -> tuple[Triple, Triple]:
    """Mean and standard deviation of RGB in 0..1, from the preprocessor of 1.x or its counterparts of 0.x."""
    places = [before, older, *(step for step in steps if step.get("type") == "Normalize")]
    found = next((place for place in places if isinstance(place, Mapping) and place), {})
    mean, std = found.get("mean"), found.get("std")
    if mean is None or std is None or not (_is_triple(mean) and _is_triple(std)):
        notes.assumed.append("pixels normalized with mean and std 127.5")
        return (0.5,) * 3, (0.5,) * 3
    name, default = ("bgr_to_rgb", False) if found is before else ("to_rgb", True)
    if found.get(name, default) is False:
        raise InputError(
            f"{path}: its configuration has {name} {'False' if name in found else 'unset'}: the encoder takes BGR "
            "images, which is not supported; reverse the channels of backbone.patch_embed.projection.weight, mean and "
            f"std, and set {name}=True"
        )
    red, green, blue = (float(value) / 255 for value in mean)
    r, g, b = (float(value) / 255 for value in std)
    return (red, green, blue), (r, g, b)
