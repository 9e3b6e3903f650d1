"""Presets: encoders × {linear, mask transformer} × {no shift, published, joint-domain or pixel mean shift}.

Sizes: Strudel et al., Segmenter, ICCV 2021, table 1, after Dosovitskiy et al., ICLR 2021, and for Ti and S
Touvron et al., DeiT, ICML 2021. `size_of` computes parameters and multiply-adds without building the model, and
`meanshifter.analysis.study_scores` counts those of any model; tests check that they agree.
Glossary: D token width, K classes, N patches, P patch size, C channels of a block, S side of the image in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError, did_you_mean
from meanshifter.model.config import (
    OWN_MODULE,
    MeanShiftConfig,
    ModelConfig,
    PixelShiftConfig,
    TokenMergingConfig,
    Triple,
    arguments_with,
)

if TYPE_CHECKING:
    from torch import nn

    from meanshifter.model.segmenter import Segmenter


Config = TypeVar("Config")
ENCODERS = {
    "ti": "vit_tiny_patch16_384",
    "s": "vit_small_patch16_384",
    "b": "vit_base_patch16_384",
    "l": "vit_large_patch16_384",
}
JOINT = MeanShiftConfig(
    layers=3,
    kernel="gaussian",
    init_neighbors=20.0,
    spatial_sigma=2.5,
    blurring=False,
    step_size=0.8,
    residual_readout=True,
)
"""A block that additional steps do not harm: docs/mean-shift.md."""
SHIFTS = {"meanshifter": MeanShiftConfig(), "meanshifter-joint": JOINT}
PIXEL_SHIFTS = {"meanshifter-pixel": PixelShiftConfig()}
FAMILIES = ("segmenter", *SHIFTS, *PIXEL_SHIFTS)
PATCH = 16
"""P of the published models, and of the encoders' weights."""


FINER = {12: TokenMergingConfig(after_layer=4, ratio=0.65), 8: TokenMergingConfig(after_layer=3, ratio=0.75)}
"""Finer patches of the families in PIXEL_SHIFTS, fast and accurate, and the merging that pays for them:
docs/mean-shift.md."""
PRESETS = tuple(
    f"{family}{mask}-{size}{patch}"
    for family in FAMILIES
    for mask in ("", "-mask")
    for size in ENCODERS
    for patch in (PATCH, *(FINER if family in PIXEL_SHIFTS else ()))
)


class Preset(NamedTuple):
    """What the name of a preset says."""

    family: str
    decoder: Literal["linear", "mask"]
    size: str
    """Of the encoder: ti, s, b or l."""
    patch_size: int

    @property
    def encoder(self) -> str:
        """Its name in timm."""
        return ENCODERS[self.size]

    @property
    def token_merging(self) -> TokenMergingConfig | None:
        """Its merging of tokens."""
        return FINER.get(self.patch_size)


def create_model(
    preset: str,
    num_classes: int | None = None,
    *,
    classes: Sequence[str] | LabelSpace | None = None,
    image_size: int | Sequence[int] = 512,
    mean_shift: Mapping[str, Any] | MeanShiftConfig | None = None,
    pixel_shift: Mapping[str, Any] | PixelShiftConfig | None = None,
    token_merging: Mapping[str, Any] | TokenMergingConfig | None = None,
    patch_size: int | None = None,
    decoder_layers: int = 2,
    drop_path: float | None = None,
    encoder: str | nn.Module | None = None,
    encoder_args: Mapping[str, Any] | None = None,
    encoder_weights: str | Path | None = None,
    average_corners: bool = False,
    mean: Triple | None = None,
    std: Triple | None = None,
) -> Segmenter:
    """Create a model from a preset, such as "segmenter-ti16" or "meanshifter-mask-s16".

    Args:
        preset: one of `list_models()`; "-mask" selects the mask-transformer decoder instead of the linear one.
        num_classes: K; or give `classes`.
        classes: the class names, or a `LabelSpace` of names, palette and mask values.
        image_size: side, or (height, width), in pixels that the position embeddings are made for.
        mean_shift: fields that override those of the preset's mean shift block, `{"layers": 1, "channels": 192}`; a
            "segmenter-…" preset gets the block of "meanshifter-…" with these fields.
        pixel_shift: the same for mean shift from pixels, `{"layers": 1, "factor": 4}`, and "meanshifter-pixel-…".
        token_merging: fields that override those of the preset's merging of uniform patches within the encoder,
            `{"after_layer": 4, "ratio": 0.6}`; a ratio of 0 merges none.
        patch_size: P, the side of a patch in pixels, to which the weights of the patch embedding are resampled
            (FlexiViT, CVPR 2023, section 3.4); None: the preset's if that is finer, else the encoder's own. Finer
            patches give finer label maps, and cost as many times as much as there are more of them.
        decoder_layers: transformer layers of the mask decoder.
        drop_path: stochastic depth of the encoder in training; None: 0.1, or that of a module of one's own.
        encoder: the name of any other plain ViT in timm, or a module of one's own, see
            `meanshifter.model.encoder.TokenEncoder`.
        encoder_args: more arguments for timm.create_model.
        encoder_weights: a local .safetensors or .pth file with timm's, transformers' or MMSegmentation's names;
            "timm" to download those of the tag in `encoder`; None for random weights.
        average_corners: replace the position embeddings of corner patches in these weights with the mean of their
            neighbors, see `meanshifter.model.encoder_weights.average_corner_positions`; encoders without position
            embeddings stay as they are.
        mean: mean of RGB in 0..1; by default timm's value for the encoder's weights, 0.5 without weights.
        std: standard deviation of RGB, with the same defaults.

    Raises:
        InputError: an unknown preset or field, or weights that do not match.
    """
    from meanshifter.model.encoder_weights import load_encoder_weights, load_timm_weights
    from meanshifter.model.segmenter import Segmenter

    named = parse_preset(preset)
    family = named.family
    encoder = named.encoder if encoder is None else encoder
    module = None if isinstance(encoder, str) else encoder
    if not isinstance(encoder, str):
        refused = {
            "encoder_args": encoder_args,
            "encoder_weights": encoder_weights,
            "drop_path": drop_path,
            "patch_size": patch_size,
            "token_merging": token_merging,
        }
        encoder = name_of_module(encoder, refused)
    elif named.patch_size != PATCH and patch_size is None:
        patch_size = (encoder_args or {}).get("patch_size", named.patch_size)
    pretrained = encoder_weights == "timm"
    stated = ((0.5,) * 3, (0.5,) * 3) if encoder_weights is None else _stated_normalization(encoder, pretrained)
    rate = 0.0 if module is not None else 0.1
    config = ModelConfig(
        encoder=encoder,
        image_size=_height_and_width(image_size),
        decoder=named.decoder,
        decoder_layers=decoder_layers,
        mean_shift=resolve_block(family, "mean_shift", mean_shift, SHIFTS),
        pixel_shift=resolve_block(family, "pixel_shift", pixel_shift, PIXEL_SHIFTS),
        drop_path=rate if drop_path is None else drop_path,
        token_merging=None if module is not None else resolve_merging(named, token_merging),
        encoder_args=arguments_with(encoder_args, patch_size),
        mean=stated[0] if mean is None else mean,
        std=stated[1] if std is None else std,
    )
    while_built = pretrained and not average_corners and _is_resampled_by_timm(encoder)
    model = Segmenter(config, label_space_of(num_classes, classes), pretrained=while_built, encoder=module)
    if pretrained and not while_built:
        load_timm_weights(model.encoder, encoder, config.encoder_args, average_corners=average_corners)
    elif encoder_weights is not None and not pretrained:
        load_encoder_weights(model.encoder, encoder_weights, average_corners=average_corners)
    return model


def list_models(pattern: str = "*") -> list[str]:
    """List the presets that match a pattern such as "*pixel*"."""
    return [name for name in PRESETS if fnmatchcase(name, pattern)]


def parse_preset(preset: str) -> Preset:
    """Split a preset's name into its parts.

    Raises:
        InputError: an unknown name; says which is the nearest.
    """
    if preset not in PRESETS:
        hint = did_you_mean(preset, PRESETS, f"use one of {', '.join(PRESETS)}")
        raise InputError(f"preset: {preset!r} is unknown; {hint}")
    stem, _, encoder = preset.rpartition("-")
    family, size = stem.removesuffix("-mask"), encoder.rstrip("0123456789")
    return Preset(family, "linear" if family == stem else "mask", size, int(encoder.removeprefix(size)))


def resolve_block(
    family: str, name: str, given: Mapping[str, Any] | Config | None, owners: Mapping[str, Config]
) -> Config | None:
    """Return the configuration of a preset's block, with the given fields changed.

    A "segmenter" preset gets the block of the first owner if any are given.
    """
    if given is not None and family == "segmenter":
        family = next(iter(owners))
    if family not in owners:
        if given is not None:
            having = " or ".join(map(repr, ("segmenter", *owners)))
            raise InputError(f"{name}: given for a {family!r} preset, which has no such block; use a {having} preset")
        return None
    default = owners[family]
    if not isinstance(given, Mapping):
        return default if given is None else given
    known = [field.name for field in fields(default)]  # type: ignore[arg-type]
    for key in given:
        if key not in known:
            raise InputError(f"{name}.{key}: unknown; {did_you_mean(key, known, f'fields are {known}')}")
    return replace(default, **given)  # type: ignore[type-var]


def label_space_of(num_classes: int | None, classes: Sequence[str] | LabelSpace | None) -> LabelSpace:
    """Return the label space given by a number of classes, their names or a `LabelSpace`.

    Raises:
        InputError: neither is given, or they contradict each other.
    """
    if isinstance(num_classes, LabelSpace) or (num_classes is not None and not isinstance(num_classes, int)):
        raise InputError(f"num_classes: {num_classes!r:.60} is not a number; give names or a LabelSpace as classes=")
    if classes is None:
        if num_classes is None:
            raise InputError("num_classes: missing; give the number of classes, or their names as classes=")
        return LabelSpace.unnamed(num_classes)
    space = classes if isinstance(classes, LabelSpace) else LabelSpace(tuple(classes))
    if num_classes not in (None, space.num_classes):
        raise InputError(f"num_classes: {num_classes}, but classes has {space.num_classes}; leave one of the two out")
    return space


def _is_resampled_by_timm(encoder: str) -> bool:
    from meanshifter.model.vits import family_of

    return family_of(encoder).resampled_by_timm


def _stated_normalization(encoder: str, pretrained: bool) -> tuple[Triple, Triple]:
    """Mean and std of timm's weights for the encoder; 0.5 if timm has none and they come from a file."""
    import timm

    try:
        stated = timm.get_pretrained_cfg(encoder)
    except RuntimeError:  # an unknown tag
        stated = None
    if stated is None and not pretrained:
        return (0.5,) * 3, (0.5,) * 3
    if stated is None:
        raise InputError(f"encoder: timm has no published weights for {encoder!r}; give a local file or none")
    (r, g, b), (R, G, B) = stated.mean, stated.std
    return (r, g, b), (R, G, B)


def name_of_module(module: nn.Module, refused: Mapping[str, object] | None = None) -> str:
    """Name of a module of one's own in a configuration, after checking that nothing else describes the encoder."""
    from torch import nn

    if not isinstance(module, nn.Module):
        raise InputError(f"encoder: {module!r:.60} is neither the name of a plain ViT in timm nor a torch.nn.Module")
    for name, value in (refused or {}).items():
        if value is not None:
            raise InputError(f"{name}: given with a module as encoder, which is used as it is; leave it out")
    return OWN_MODULE + type(module).__name__


def resolve_merging(preset: Preset, given: Mapping[str, Any] | TokenMergingConfig | None) -> TokenMergingConfig | None:
    """Return the preset's merging of tokens with the given fields changed; None if nothing is merged."""
    if isinstance(given, Mapping):
        known = [field.name for field in fields(TokenMergingConfig)]
        for key in given:
            if key not in known:
                raise InputError(f"token_merging.{key}: unknown; {did_you_mean(key, known, f'fields are {known}')}")
        default = TokenMergingConfig() if preset.token_merging is None else preset.token_merging
        given = replace(default, **given)
    merging = preset.token_merging if given is None else given
    return None if merging is None or merging.ratio == 0 else merging


def _height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if len(size) != 2:
        raise InputError(f"image_size: {list(size)}; give one side, or height and width")
    return int(size[0]), int(size[1])


DECODER_LAYERS = 2
SHAPES = {"ti": (192, 12), "s": (384, 12), "b": (768, 12), "l": (1024, 24)}
"""Width and layers: Segmenter, ICCV 2021, table 1."""


@dataclass(frozen=True)
class Size:
    """Parameters and computation of a model or a part of it."""

    parameters: int = 0
    multiply_adds: int = 0
    """For one image: matrix products, convolutions and attention."""

    def __add__(self, other: Size) -> Size:
        """Sum the sizes of two parts."""
        return Size(self.parameters + other.parameters, self.multiply_adds + other.multiply_adds)


def size_of(preset: str, *, num_classes: int, image_size: int, mean_shift: Mapping[str, Any] | None = None) -> Size:
    """Return the parameters and multiply-adds of the model that `create_model` builds with these arguments.

    Raises:
        InputError: an unknown preset or field, less than one class, or a side below one patch.
    """
    named = parse_preset(preset)
    family, decoder, P = named.family, named.decoder, named.patch_size
    for name, value, least in (("num_classes", num_classes, 1), ("image_size", image_size, P)):
        if value < least:
            raise InputError(f"{name}: {value}; it must be at least {least}")
    (D, layers), side = SHAPES[named.size], -(-image_size // P)
    N = side**2
    total = _embeddings(D, P, N, positions=(image_size // P) ** 2) + Size(parameters=2 * D)
    if (merging := named.token_merging) is None:
        total += _transformer_layers(layers, D, N + 1)
    else:
        windows = (-(-side // 2)) ** 2
        fewer = 4 * windows - 3 * merging.merged(windows)
        total += _transformer_layers(merging.after_layer, D, N + 1)
        total += _transformer_layers(layers - merging.after_layer, D, fewer + 1)
    total += _linear(D, num_classes, N) if decoder == "linear" else _mask_transformer(D, num_classes, N)
    if (shift := resolve_block(family, "mean_shift", mean_shift, SHIFTS)) is not None:
        shift.check_decoder(decoder)
        total += _mean_shift(D, N if shift.with_classes is None else N + num_classes, shift)
    if family in PIXEL_SHIFTS:
        total += _pixel_shift(D, num_classes, N, P, PIXEL_SHIFTS[family])
    return total


def _linear(inputs: int, outputs: int, rows: int, *, bias: bool = True) -> Size:
    return Size(inputs * outputs + bias * outputs, rows * inputs * outputs)


def _transformer_layers(count: int, D: int, tokens: int) -> Size:
    norms, attention = Size(parameters=4 * D), Size(multiply_adds=2 * tokens**2 * D)
    products = _linear(D, 3 * D, tokens) + _linear(D, D, tokens) + _linear(D, 4 * D, tokens) + _linear(4 * D, D, tokens)
    one = norms + attention + products
    return Size(count * one.parameters, count * one.multiply_adds)


def _embeddings(D: int, P: int, N: int, *, positions: int) -> Size:
    """Patch embedding, class token and position embeddings."""
    return Size(parameters=D + (positions + 1) * D) + _linear(3 * P**2, D, N)


def _mask_transformer(D: int, K: int, N: int) -> Size:
    embeddings, norms = Size(parameters=K * D), Size(parameters=2 * D + 2 * K)
    masks = Size(multiply_adds=N * K * D)
    ends = _linear(D, D, N) + _linear(D, D, N, bias=False) + _linear(D, D, K, bias=False)
    return embeddings + norms + masks + ends + _transformer_layers(DECODER_LAYERS, D, N + K)


def _mean_shift(D: int, N: int, config: MeanShiftConfig) -> Size:
    C = D if config.channels is None else config.channels
    spatial = config.spatial_sigma is not None
    kernel = 0 if config.kernel == "dot" and not spatial else 1 + 2 * spatial
    width = -(-max(C + kernel, D) // 8) * 8  # of the attention call of a step, padded to a multiple of eight
    project = _linear(D, C, config.layers * N)
    steps = Size(multiply_adds=config.layers * 2 * N**2 * width)
    residual = _linear(D, D, N if config.layers else 0, bias=False) if config.residual_readout else Size()
    return project + steps + residual


def _pixel_shift(D: int, K: int, N: int, P: int, config: PixelShiftConfig) -> Size:
    factor = config.factor_for(P)
    C, cells, side = config.channels, factor**2 * N, P // factor
    features = _linear(3 * (2 * side) ** 2, C, cells) + _linear(9 * C, C, cells) + _linear(9 * C, C, cells)
    steps = Size(9 * factor**2, cells * 9 * (C * (2 * config.layers - 1) + K) if config.layers else 0)
    return features + _linear(D, C, N) + steps
