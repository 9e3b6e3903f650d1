"""Model configuration, as stored in `config.json`. This module does not import torch, so that commands start fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, Final, Literal

from meanshifter.errors import InputError

FORMAT_VERSION = 2
MOST_STEPS = 1000
LARGEST = 2**31 - 1
"""The largest size or count that torch, timm and image formats support everywhere."""
STEPS, COUNT = f"an integer from 0 to {MOST_STEPS}", f"an integer from 1 to {LARGEST}"
Triple = tuple[float, float, float]
OWN_MODULE = "module:"
"""Prefix of `ModelConfig.encoder` for a module of one's own; no name in timm has a colon."""
FORMER: Final = {"pixel_shift": {"anchor": 0.0}}
"""Fields of blocks that stored configurations may lack, with values that mean what earlier versions did."""


def _is_steps(value: object) -> bool:
    return isinstance(value, int) and 0 <= value <= MOST_STEPS


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and isfinite(value) and value > 0


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def _are_arguments(values: Any) -> bool:
    if not isinstance(values, Mapping):
        return False
    numbers = [value for value in values.values() if isinstance(value, int | float)]
    return all(isinstance(name, str) for name in values) and all(0 <= number < 2**31 for number in numbers)


def _is_triple(value: object) -> bool:
    if not isinstance(value, tuple | list) or len(value) != 3:
        return False
    return all(isinstance(entry, int | float) and isfinite(entry) for entry in value)


def arguments_with(encoder_args: Mapping[str, Any] | None, patch_size: int | None) -> dict[str, Any]:
    """Arguments for timm.create_model, with the patch size among them.

    Raises:
        InputError: they state another patch size already.
    """
    arguments = dict(encoder_args or {})
    if patch_size is None:
        return arguments
    if arguments.get("patch_size", patch_size) != patch_size:
        raise InputError(
            f"patch_size: {patch_size}, but encoder_args.patch_size is {arguments['patch_size']}; leave one out"
        )
    return {**arguments, "patch_size": patch_size}


Rule = tuple[str, Any, bool, str]
"""Field, value, whether it is valid, and what is expected."""


def _argument_rules(values: Any) -> list[Rule]:
    """Rules for arguments that timm divides by or builds loops and layers from."""
    if not isinstance(values, Mapping):
        return []
    rules: dict[str, tuple[Callable[[object], bool], str]] = {
        **dict.fromkeys(("patch_size", "embed_dim", "num_heads"), (_is_count, COUNT)),
        "depth": (_is_steps, STEPS),
        "in_chans": (lambda value: value == 3, "3 (RGB)"),
        "mlp_ratio": (_is_positive, "a number above 0"),
    }
    return [
        (f"encoder_args.{name}", values[name], is_valid(values[name]), rule)
        for name, (is_valid, rule) in rules.items()
        if name in values
    ]


def _check(prefix: str, *rules: Rule) -> None:
    """Raise one `InputError` for all fields that break their rule."""
    wrong = [f"{prefix}{name}: {value!r:.80} is not {rule}" for name, value, valid, rule in rules if not valid]
    if wrong:
        raise InputError("; ".join(wrong))


@dataclass(frozen=True)
class MeanShiftConfig:
    """The mean shift block."""

    layers: int = 1
    """L_ms, the number of steps; 0 leaves the tokens unchanged."""
    channels: int | None = None
    """d_ms, the width of the space in which tokens are compared; None: the encoder's width."""
    kernel: Literal["dot", "gaussian"] = "dot"
    """"dot": exp(r_i·r_j / √d_ms), as in the thesis, where long r_j attract regardless of their direction;
    "gaussian": exp(-‖r_i - r_j‖² / 2√d_ms), mean shift as defined by Fukunaga & Hostetler (1975)."""
    init_neighbors: float | None = None
    """Scale E_r before training so that a token averages over this many others (exp of the entropy of its weights);
    None keeps E_r as initialized, which averages over nearly all."""
    spatial_sigma: float | None = None
    """σ in patches: weights also decay with distance in the image (Comaniciu & Meer, PAMI 2002); None: they do not."""
    blurring: bool = True
    """True: blurring mean shift, as in the thesis, in which the averaged tokens move too; False: fixed reference
    points, whose density the tokens climb (Mean Shift Mask Transformer, arXiv 2211.11679)."""
    step_size: float = 1.0
    """η: z ← z + η (m(z) - z)."""
    residual_readout: bool = False
    """The decoder reads z⁰ + W s instead of z, with W initialized to 0: the plain decoder is a special case (Mean-Shift
    Feature Transformer, CVPR 2024). s is z - z⁰ scaled to the spread of z⁰, so that more steps do not lengthen it."""
    with_classes: Literal["before_layers", "after_layers", "before_product"] | None = None
    """Shift the mask decoder's class embeddings jointly with its patch tokens, with keys and values from both: before
    its transformer layers; after them; or "before_product", as the unit vectors whose scalar products are the masks,
    normalized again afterwards. None: patch tokens alone, before the decoder."""

    def __post_init__(self) -> None:
        neighbors, sigma = self.init_neighbors, self.spatial_sigma
        places = (None, "before_layers", "after_layers", "before_product")
        known = "'before_layers', 'after_layers', 'before_product' or null"
        rules = [
            ("layers", self.layers, _is_steps(self.layers), STEPS),
            ("channels", self.channels, self.channels is None or _is_count(self.channels), f"{COUNT}, or null"),
            ("kernel", self.kernel, self.kernel in ("dot", "gaussian"), "'dot' or 'gaussian'"),
            ("init_neighbors", neighbors, neighbors is None or neighbors > 1, "a number above 1, or null"),
            ("spatial_sigma", sigma, sigma is None or sigma > 0, "a number above 0, or null"),
            ("step_size", self.step_size, 0 <= self.step_size <= 1, "a number from 0 to 1"),
            ("with_classes", self.with_classes, self.with_classes in places, known),
        ]
        if self.with_classes is not None:
            reason = f"null, which with_classes {self.with_classes!r} needs: class embeddings have no position"
            rules.append(("spatial_sigma", sigma, sigma is None, reason))
        _check("mean_shift.", *rules)

    @property
    def is_published(self) -> bool:
        """Whether this is the block of the thesis, regardless of how E_r is initialized."""
        return self == MeanShiftConfig(self.layers, self.channels, init_neighbors=self.init_neighbors)

    def check_decoder(self, decoder: str) -> None:
        """Check that the decoder has what the block needs.

        Raises:
            InputError: `with_classes` and a decoder other than the mask transformer.
        """
        if self.with_classes is not None and decoder != "mask":
            raise InputError(
                f"mean_shift.with_classes: {self.with_classes!r}, but a {decoder} decoder has no class embeddings; use "
                'a "-mask" preset, or leave it out'
            )


@dataclass(frozen=True)
class PixelShiftConfig:
    """Mean shift from pixels: logits on a finer grid than that of the patches."""

    layers: int = 1
    """Number of steps."""
    factor: int | None = None
    """Cells along a side of a patch; each cell has logits. None: 4, or the nearest number that divides the patch size,
    7 for patches of 14 pixels."""
    channels: int = 48
    """Width of the space in which cells and patches are compared."""
    spatial_sigma: float = 0.5
    """Initial σ in patches of the spatial kernel, whose offsets are then learned individually."""
    anchor: float = 0.5
    """How much of a cell's own features is left in it after each step, from 0 to 1."""

    def __post_init__(self) -> None:
        rules = [
            ("layers", self.layers, _is_steps(self.layers), STEPS),
            ("factor", self.factor, self.factor is None or _is_count(self.factor), f"{COUNT}, or null"),
            ("channels", self.channels, _is_count(self.channels), COUNT),
            ("spatial_sigma", self.spatial_sigma, self.spatial_sigma > 0, "a number above 0"),
            ("anchor", self.anchor, _is_share(self.anchor), "a share from 0 to 1"),
        ]
        _check("pixel_shift.", *rules)

    def factor_for(self, patch_size: int) -> int:
        """Return `factor`, or its default for a patch size.

        Raises:
            InputError: it does not divide the patch size.
        """
        if self.factor is None:
            divisors = (number for number in range(1, patch_size + 1) if patch_size % number == 0)
            return min(divisors, key=lambda number: max(number / 4, 4 / number))
        if patch_size % self.factor:
            raise InputError(
                f"pixel_shift.factor: {self.factor} does not divide the patch size {patch_size}; use a divisor"
            )
        return self.factor


@dataclass(frozen=True)
class TokenMergingConfig:
    """Merging of uniform 2×2 windows of patches within the encoder."""

    after_layer: int = 4
    """Encoder layers that see all tokens; the remaining ones see the merged tokens."""
    ratio: float = 0.6
    """Share of the windows, the most uniform ones, whose four tokens become one; 0: none."""

    def __post_init__(self) -> None:
        ratio = self.ratio
        rules = [
            ("after_layer", self.after_layer, _is_steps(self.after_layer), STEPS),
            ("ratio", ratio, _is_share(ratio), "a share from 0 to 1"),
        ]
        _check("token_merging.", *rules)

    def merged(self, windows: int) -> int:
        """How many of the windows are merged; written with integers so that exporters keep it symbolic."""
        return windows * round(self.ratio * 1000) // 1000


@dataclass(frozen=True)
class ModelConfig:
    """Encoder, mean shift block, decoder and preprocessing; the classes are in the model's `LabelSpace`."""

    encoder: str
    """Name of any plain ViT in timm, or "module:" and the class of a module of one's own."""
    image_size: tuple[int, int] = (512, 512)
    """(H, W) in pixels that the position embeddings are made for; other sizes resample them."""
    decoder: Literal["linear", "mask"] = "linear"
    """"linear", or "mask" for the mask transformer."""
    decoder_layers: int = 2
    """Transformer layers of the mask decoder."""
    decoder_heads: int | None = None
    """Attention heads of the mask decoder; None: one for each 64 channels, as in Segmenter."""
    mean_shift: MeanShiftConfig | None = None
    """The mean shift block between encoder and decoder, or within the mask decoder (`with_classes`), or None."""
    pixel_shift: PixelShiftConfig | None = None
    """Mean shift from pixels after the decoder, instead of `mean_shift`, or None."""
    token_merging: TokenMergingConfig | None = None
    """Merging of tokens within the encoder, or None."""
    drop_path: float = 0.1
    """Stochastic depth of the encoder, which increases linearly to this rate; active in training only."""
    encoder_args: Mapping[str, Any] = field(default_factory=dict)
    """More arguments for timm.create_model, such as depth, embed_dim, num_heads, patch_size."""
    positions: Literal["antialias", "bicubic", "bilinear"] = "antialias"
    """How position embeddings are resampled to other grids: "antialias" as in timm, bicubic with antialiasing;
    "bicubic" as in MMSegmentation, "bilinear" as in the official Segmenter."""
    norm_eps: float | None = None
    """ε of the encoder's layer norms; None: timm's value for the encoder (1e-6 for a ViT)."""
    patch_bias: bool = True
    """Whether the patch embedding has a bias; MMSegmentation's VisionTransformer has none by default."""
    window: int | None = 512
    """Default side in pixels of sliding windows; None: the full image."""
    window_stride: int = 480
    """Default distance in pixels between windows."""
    short_side: int | None = 512
    """By default, images are resized to fit (`long_side`, `short_side`) pixels; None: no resizing."""
    long_side: int = 2048
    """The longer of the two sides."""
    mean: Triple = (0.5, 0.5, 0.5)
    """Subtracted from RGB in 0..1."""
    std: Triple = (0.5, 0.5, 0.5)
    """RGB is divided by it after the mean is subtracted."""
    temperature: float = 1.0
    """T of temperature scaling, by which logits are divided before the softmax of every probability and confidence;
    `meanshifter calibrate` fits it. Logits, losses and training do not use it."""

    def __post_init__(self) -> None:
        self._check_fields()
        if self.decoder not in ("linear", "mask"):
            raise InputError(f"decoder: {self.decoder!r}; use 'linear' or 'mask'")
        if self.positions not in ("antialias", "bicubic", "bilinear"):
            raise InputError(f"positions: {self.positions!r}; use 'antialias', 'bicubic' or 'bilinear'")
        if self.window is not None and self.window_stride > self.window:
            raise InputError(
                f"window_stride: {self.window_stride} is above window {self.window} and would skip pixels; use 1 to "
                f"{self.window}"
            )
        if self.mean_shift is not None and self.pixel_shift is not None:
            raise InputError("pixel_shift: given together with mean_shift; a model can have only one of the two")
        if self.mean_shift is not None:
            self.mean_shift.check_decoder(self.decoder)
        if self.token_merging is not None and self.encoder_args.get("patch_drop_rate"):
            raise InputError(
                "token_merging: given together with encoder_args.patch_drop_rate, which drops patches of the windows; "
                "leave one out"
            )

    def _check_fields(self) -> None:
        """Check each field by itself; values from a file may have any type."""
        size, rate, eps, arguments = self.image_size, self.drop_path, self.norm_eps, self.encoder_args
        counts = {"window_stride": self.window_stride, "long_side": self.long_side}
        optional = {"decoder_heads": self.decoder_heads, "window": self.window, "short_side": self.short_side}
        is_size, is_rate = len(size) == 2 and all(map(_is_count, size)), isinstance(rate, int | float) and 0 <= rate < 1
        rules = [
            ("decoder_layers", self.decoder_layers, _is_steps(self.decoder_layers), STEPS),
            ("encoder", self.encoder, isinstance(self.encoder, str), "a name"),
            ("encoder_args", arguments, _are_arguments(arguments), "a mapping of names to values from 0 on"),
            *_argument_rules(arguments),
            ("image_size", size, is_size, "height and width in pixels, each at least 1"),
            *((name, value, _is_count(value), COUNT) for name, value in counts.items()),
            *(
                (name, value, value is None or _is_count(value), f"{COUNT}, or null")
                for name, value in optional.items()
            ),
            ("mean", self.mean, _is_triple(self.mean), "three numbers"),
            ("std", self.std, _is_triple(self.std) and min(self.std) > 0, "three numbers above 0"),
            ("drop_path", rate, is_rate, "a rate from 0 up to but not including 1"),
            ("norm_eps", eps, eps is None or _is_positive(eps), "a number above 0, or null"),
            ("temperature", self.temperature, _is_positive(self.temperature), "a number above 0"),
        ]
        _check("", *rules)

    @property
    def has_own_module(self) -> bool:
        """Whether the encoder is a module of one's own, which no configuration can build."""
        return self.encoder.startswith(OWN_MODULE)

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return {**asdict(self), "encoder_args": dict(self.encoder_args)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Restore the configuration that `to_dict` returned."""
        values = dict(data)
        blocks = {"mean_shift": MeanShiftConfig, "pixel_shift": PixelShiftConfig, "token_merging": TokenMergingConfig}
        for name, block in blocks.items():
            if values.get(name) is not None:
                values[name] = block(**{**FORMER.get(name, {}), **values[name]})
        for name in ("image_size", "mean", "std"):
            values[name] = tuple(values[name])
        return cls(**values)
