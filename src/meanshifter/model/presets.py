"""Named models: one table of encoders, times {linear, mask transformer} × {no shift, mean shift as published, mean
shift in the joint domain, mean shift from pixels}.

Sizes: Strudel et al., Segmenter, ICCV 2021, table 1, after Dosovitskiy et al., ICLR 2021, and for Ti and S
Touvron et al., DeiT, ICML 2021. `meanshifter.model.cost` says how large each is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError
from meanshifter.model.config import MeanShiftConfig, ModelConfig, PixelShiftConfig, Triple

if TYPE_CHECKING:
    from meanshifter.model.segmenter import Segmenter

Config = TypeVar("Config")
BACKBONES = {
    "ti16": "vit_tiny_patch16_384",
    "s16": "vit_small_patch16_384",
    "b16": "vit_base_patch16_384",
    "l16": "vit_large_patch16_384",
}
JOINT = MeanShiftConfig(
    layers=3, kernel="gaussian", neighbors=20.0, spatial=2.5, blurring=False, step_size=0.8, beside=True
)
"""A block whose further steps do no harm: docs/mean-shift.md."""
SHIFTS = {"meanshifter": MeanShiftConfig(), "jointshifter": JOINT}
PIXEL_SHIFTS = {"pixelshifter": PixelShiftConfig()}
FAMILIES = ("segmenter", *SHIFTS, *PIXEL_SHIFTS)
PRESETS = tuple(f"{family}{mask}-{size}" for family in FAMILIES for mask in ("", "-mask") for size in BACKBONES)


def create_model(
    preset: str,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    labels: LabelSpace | None = None,
    image_size: int | Sequence[int] = 512,
    mean_shift: Mapping[str, Any] | MeanShiftConfig | None = None,
    pixel_shift: Mapping[str, Any] | PixelShiftConfig | None = None,
    decoder_layers: int = 2,
    drop_path: float = 0.1,
    backbone: str | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    backbone_weights: str | Path | None = None,
    average_corners: bool = False,
    mean: Triple | None = None,
    std: Triple | None = None,
) -> Segmenter:
    """A model by name, such as "segmenter-ti16" or "meanshifter-mask-s16".

    Args:
        preset: one of `PRESETS`; "-mask" has the mask-transformer decoder, without it the decoder is linear.
        num_classes: K; or give `classes` (names) or `labels` (a LabelSpace). Exactly one of the three.
        classes: the class names.
        labels: names, palette and mask values.
        image_size: side, or (height, width), that the position embeddings are made for, in pixels.
        mean_shift: fields of the block in which it differs from the preset's, `{"layers": 1, "channels": 192}`; only
            for "meanshifter-…" and "jointshifter-…" presets.
        pixel_shift: likewise of mean shift from pixels, `{"layers": 1, "factor": 4}`; only for "pixelshifter-…".
        decoder_layers: transformer layers of the mask decoder.
        drop_path: stochastic depth of the encoder in training.
        backbone: another plain ViT of timm than the preset's.
        backbone_args: more arguments for timm.create_model.
        backbone_weights: a local .safetensors or .pth file in timm's names; "timm" to fetch what the tag in
            `backbone` names; None for random weights.
        average_corners: give corner patches of these weights the mean position embedding of their neighbors, see
            `meanshifter.model.encoder.average_corner_positions`.
        mean: of RGB in 0..1; by default what timm states for `backbone_weights="timm"`, else 0.5.
        std: likewise.

    Raises:
        InputError: an unknown preset or field, or weights that do not fit.
    """
    from meanshifter.model.encoder import load_backbone_weights, load_timm_weights
    from meanshifter.model.segmenter import Segmenter

    family, decoder, size = parse_preset(preset)
    backbone = BACKBONES[size] if backbone is None else backbone
    pretrained = backbone_weights == "timm"
    stated = _stated_normalisation(backbone) if pretrained else ((0.5,) * 3, (0.5,) * 3)
    config = ModelConfig(
        backbone=backbone,
        image_size=_pair(image_size),
        decoder=decoder,
        decoder_layers=decoder_layers,
        mean_shift=resolve_block(family, "mean_shift", mean_shift, SHIFTS),
        pixel_shift=resolve_block(family, "pixel_shift", pixel_shift, PIXEL_SHIFTS),
        drop_path=drop_path,
        backbone_args=dict(backbone_args or {}),
        mean=stated[0] if mean is None else mean,
        std=stated[1] if std is None else std,
    )
    model = Segmenter(config, _labels(num_classes, classes, labels), pretrained=pretrained and not average_corners)
    if pretrained and average_corners:
        load_timm_weights(model.encoder, backbone, config.backbone_args, average_corners=True)
    elif backbone_weights is not None and not pretrained:
        load_backbone_weights(model.encoder, backbone_weights, average_corners=average_corners)
    return model


def parse_preset(preset: str) -> tuple[str, Literal["linear", "mask"], str]:
    """Family, decoder and size of a preset's name."""
    if preset not in PRESETS:
        near = get_close_matches(preset, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(PRESETS)}"
        raise InputError(f"preset: {preset!r} is unknown; {hint}")
    family, *mask, size = preset.split("-")
    return family, "mask" if mask else "linear", size


def resolve_block(
    family: str, name: str, given: Mapping[str, Any] | Config | None, owners: Mapping[str, Config]
) -> Config | None:
    """The configuration of the block that the family has, if it is one of the owners of such a block."""
    if family not in owners:
        if given is not None:
            having = " or ".join(map(repr, owners))
            raise InputError(f"{name}: given for a {family!r} preset, which has no such block; use a {having} preset")
        return None
    default = owners[family]
    if not isinstance(given, Mapping):
        return default if given is None else given
    known = [field.name for field in fields(default)]  # type: ignore[arg-type]
    for key in given:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            raise InputError(
                f"{name}.{key}: unknown; {f'did you mean {near[0]!r}?' if near else f'fields are {known}'}"
            )
    return replace(default, **given)  # type: ignore[type-var]


def _labels(num_classes: int | None, classes: Sequence[str] | None, labels: LabelSpace | None) -> LabelSpace:
    if sum(given is not None for given in (num_classes, classes, labels)) != 1:
        raise InputError("num_classes, classes, labels: give exactly one of the three")
    if labels is not None:
        return labels
    if classes is not None:
        return LabelSpace(tuple(classes))
    assert num_classes is not None  # exactly one of the three was given
    return LabelSpace.unnamed(num_classes)


def _stated_normalisation(backbone: str) -> tuple[Triple, Triple]:
    import timm

    try:
        stated = timm.get_pretrained_cfg(backbone)
    except RuntimeError:  # an unknown tag
        stated = None
    if stated is None:
        raise InputError(f"backbone: timm knows no published weights for {backbone!r}; give a local file or none")
    return _triple(stated.mean), _triple(stated.std)


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = values
    return red, green, blue


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if len(size) != 2:
        raise InputError(f"image_size: {list(size)}; give one side, or height and width")
    return int(size[0]), int(size[1])
