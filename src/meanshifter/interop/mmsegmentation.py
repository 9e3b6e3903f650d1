"""What an MMSegmentation checkpoint says of its model: shapes of tensors, `meta`, and the configuration in it.

Source: `VisionTransformer`, `FCNHead`, `SegmenterMaskTransformerHead` and the Segmenter configurations of 1.2.2; `meta`
of 0.x holds CLASSES, PALETTE and `config`, that of 1.x `dataset_meta` or `meta_info`, and `cfg`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from meanshifter.data.labels import Color, LabelSpace
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
from meanshifter.interop.literals import look_up, read_config
from meanshifter.interop.mmsegmentation_pipeline import is_triple, reading_of
from meanshifter.model.config import MeanShiftConfig, ModelConfig

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
"""Of layer norms whose configuration does not state it (`build_norm_layer`)."""
SYNONYMS = {"television receiver": "television"}
"""Where its name of an ADE20K class is not the first of the challenge's list, as ours are."""
STEPS = ("num_layers", "n_layers", "layers", "num_iters", "iterations")
"""Fields in which a MeanShifter head's configuration may state L_ms."""


def describe_mmsegmentation(
    state: Mapping[str, Tensor], whole: Mapping[str, Any], path: Path
) -> tuple[ModelConfig, LabelSpace, Notes]:
    """Configuration and classes of the model, and what to know of it.

    Raises:
        InputError: no plain ViT with a head of Segmenter or MeanShifter.
    """
    meta = whole.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    if "meta_info" in whole:
        meta = {"meta_info": whole["meta_info"], **meta}
    stated, notes = _configuration(meta), Notes()
    part, head = look_up(stated, "model", "backbone") or {}, look_up(stated, "model", "decode_head") or {}
    if not part:
        notes.assumed.append("one attention head for each 64 channels, layer norms with ε 1e-6")
    encoder = encoder_of(state, NAMES, path)
    heads = part.get("num_heads", 12) if part else max(encoder.width // 64, 1)  # 12: the tool's own default
    if type(heads) is not int:
        raise InputError(f"{path}: its configuration has backbone.num_heads {heads!r:.40}; write a whole number")
    name, arguments = backbone(encoder, heads)
    _check_backbone(part, head, encoder.depth, path)
    if "backbone.ln1.weight" not in state:
        arguments["final_norm"] = False
    norm = look_up(part, "norm_cfg", "eps")
    decoder = decoder_of(state, NAMES, path)
    _check_head(head, decoder, notes, path)
    shift = _mean_shift(decoder, head, notes)
    config = ModelConfig(
        backbone=name,
        image_size=image_size(encoder, 1, part.get("img_size"), path),
        decoder="mask" if decoder.mask else "linear",
        decoder_layers=count_layers(state, "decode_head.layers."),
        decoder_heads=head.get("num_heads") if decoder.mask else None,
        mean_shift=shift,
        drop_path=float(part.get("drop_path_rate") or 0.0),
        backbone_args=arguments,
        positions=_positions(part.get("interpolate_mode", "bicubic"), path),
        norm_eps=float(norm) if norm is not None else MMCV_EPS if part else 1e-6,
        patch_bias=encoder.patch_bias,
        **reading_of(stated, path, notes)._asdict(),
    )
    return config, _labels(meta, decoder.classes, path), notes


def _configuration(meta: Mapping[str, Any]) -> dict[str, Any]:
    text = meta.get("cfg", meta.get("config"))
    return read_config(text) if isinstance(text, str) else {}


def _check_backbone(part: Mapping[str, Any], head: Mapping[str, Any], depth: int, path: Path) -> None:
    """Refuse what no tensor tells and would give other logits."""
    if part.get("with_cls_token") is False:
        raise InputError(f"{path}: backbone.with_cls_token is False; only encoders with a class token are read")
    activation = look_up(part, "act_cfg", "type")
    if activation not in (None, "GELU"):
        raise InputError(f"{path}: backbone.act_cfg is {activation!r:.40}; only encoders with GELU are read")
    taken, index = part.get("out_indices", -1), head.get("in_index", -1)
    layers = [depth - 1 if i == -1 else i for i in ([taken] if isinstance(taken, int) else taken)]
    wanted = [layers[i] for i in ([index] if isinstance(index, int) else index)]
    if wanted != [depth - 1]:
        raise InputError(
            f"{path}: its head reads layer {wanted} of {depth} (backbone.out_indices {taken!r:.40}, "
            f"decode_head.in_index {index!r:.40}); only heads on the last layer are read"
        )


def _check_head(head: Mapping[str, Any], decoder: Decoder, notes: Notes, path: Path) -> None:
    """As `_check_backbone`; a head by another name than its tensors' is told of."""
    kind = head.get("type")
    named = MASK_HEAD if decoder.mask else LINEAR_HEAD
    if kind is not None and kind != named and decoder.channels is None:
        notes.otherwise.append(f"its head, a {kind!r:.60}, is read as a {named}, whose tensors it has")
    if head.get("align_corners"):
        notes.otherwise.append("logits are upsampled with align_corners False")
    outputs = head.get("out_channels")
    if outputs is not None and outputs != head.get("num_classes", outputs):
        raise InputError(
            f"{path}: decode_head.out_channels is {outputs!r:.20} for {head['num_classes']!r:.20} classes; heads with "
            "a threshold are not read, so train one with an output for each class"
        )
    activation = look_up(head, "act_cfg", "type")
    if decoder.mask and activation not in (None, "GELU"):
        raise InputError(
            f"{path}: decode_head.act_cfg is {activation!r:.40}; only mask transformers with GELU are read"
        )
    eps = look_up(head, "norm_cfg", "eps")
    if decoder.mask and eps not in (None, MMCV_EPS):
        raise InputError(f"{path}: decode_head.norm_cfg.eps is {eps!r:.20}; mask transformers with {MMCV_EPS} are read")


def _mean_shift(decoder: Decoder, head: Mapping[str, Any], notes: Notes) -> MeanShiftConfig | None:
    if decoder.channels is None:
        return None
    layers = next((head[key] for key in STEPS if isinstance(head.get(key), int) and not decoder.mask), None)
    if layers is None:
        notes.assumed.append(UNTOLD_STEPS)
    return MeanShiftConfig(1 if layers is None else layers, decoder.channels)


def _positions(mode: Any, path: Path) -> Any:
    if mode not in ("bicubic", "bilinear"):
        raise InputError(f"{path}: backbone.interpolate_mode is {mode!r}; 'bicubic' and 'bilinear' are read")
    return mode


def _labels(meta: Mapping[str, Any], K: int, path: Path) -> LabelSpace:
    places = [meta.get("dataset_meta"), meta.get("meta_info"), meta]
    data = next(place for place in places if isinstance(place, Mapping))
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
    if isinstance(palette, Sequence) and len(palette) == K and all(is_triple(color) for color in palette):
        colors = tuple((int(r), int(g), int(b)) for r, g, b in palette)
    return LabelSpace(tuple(SYNONYMS.get(name, name) for name in clean), colors)
