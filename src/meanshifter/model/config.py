"""What a model is made of, as it is stored beside its weights. Imports no torch, so that commands start fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, Literal

from meanshifter.errors import InputError

FORMAT_VERSION = 1
Triple = tuple[float, float, float]


MOST_STEPS = 1000


def _is_steps(value: object) -> bool:
    return isinstance(value, int) and 0 <= value <= MOST_STEPS


LARGEST = 2**31 - 1
"""Of sizes and counts: what torch, timm and image formats take everywhere."""
COUNT = f"a whole number from 1 to {LARGEST}"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and isfinite(value) and value > 0


def _are_arguments(values: Any) -> bool:
    if not isinstance(values, Mapping):
        return False
    numbers = [value for value in values.values() if isinstance(value, int | float)]
    return all(isinstance(name, str) for name in values) and all(0 <= number < 2**31 for number in numbers)


def _argument_rules(values: Any) -> list[tuple[str, Any, bool, str]]:
    """Field, value, whether it is right and what it must be, of those that timm would divide by or build with."""
    if not isinstance(values, Mapping):
        return []
    rules: dict[str, tuple[Callable[[object], bool], str]] = {
        **dict.fromkeys(("patch_size", "embed_dim", "num_heads"), (_is_count, COUNT)),
        "depth": (_is_steps, f"a whole number from 0 to {MOST_STEPS}"),
        "in_chans": (lambda value: value == 3, "3: images are RGB"),
        "mlp_ratio": (_is_positive, "a number above 0"),
    }
    return [
        (f"backbone_args.{name}", values[name], rules[name][0](values[name]), rules[name][1])
        for name in rules
        if name in values
    ]


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1


def _is_triple(value: object) -> bool:
    if not isinstance(value, tuple | list) or len(value) != 3:
        return False
    return all(isinstance(entry, int | float) and isfinite(entry) for entry in value)


@dataclass(frozen=True)
class MeanShiftConfig:
    """The mean shift block."""

    layers: int = 1
    """L_ms, the number of steps; 0 leaves the tokens as they are."""
    channels: int | None = None
    """d_ms, the width of the space in which tokens are compared; None: the encoder's width."""
    kernel: Literal["dot", "gaussian"] = "dot"
    """"dot": exp(r_i·r_j / √d_ms), as the thesis has it, which long r_j attract whatever their direction;
    "gaussian": exp(-‖r_i - r_j‖² / 2√d_ms), mean shift as Fukunaga & Hostetler (1975) define it."""
    neighbors: float | None = None
    """Before training, E_r is scaled so that a token averages over so many others (exp of the entropy of its weights);
    None leaves E_r as initialised, which averages over nearly all."""
    spatial: float | None = None
    """σ in patches: weights fall with distance in the image too (Comaniciu & Meer, PAMI 2002); None: they do not."""
    blurring: bool = True
    """True: the tokens that are averaged move too (Gaussian blurring mean shift, as in the thesis); False: they stay
    where they started, and tokens climb a fixed density (Mean Shift Mask Transformer, arXiv 2211.11679)."""
    step_size: float = 1.0
    """η: z ← z + η (m(z) - z)."""
    restore: bool = False
    """After each step, put back the mean and the spread over the image that the tokens started with."""
    beside: bool = False
    """The decoder reads z⁰ + W s, W starting at 0, in place of z: the plain decoder is a special case (Mean-Shift
    Feature Transformer, CVPR 2024). s is z - z⁰ with the spread of z⁰, so that further steps do not lengthen it."""
    with_classes: Literal["before_layers", "after_layers", "before_product"] | None = None
    """Class embeddings of the mask decoder shift together with its patch tokens, keys and values of both: before its
    transformer layers; after them; or "before_product", as the vectors of length 1 whose scalar products are the masks,
    brought back to that length. None: patch tokens alone, before the decoder."""

    def __post_init__(self) -> None:
        rules = [
            ("layers", self.layers, _is_steps(self.layers), f"a whole number from 0 to {MOST_STEPS}"),
            ("channels", self.channels, self.channels is None or _is_count(self.channels), f"{COUNT}, or null"),
            ("kernel", self.kernel, self.kernel in ("dot", "gaussian"), "'dot' or 'gaussian'"),
            ("neighbors", self.neighbors, self.neighbors is None or self.neighbors > 1, "above 1, or null"),
            ("spatial", self.spatial, self.spatial is None or self.spatial > 0, "above 0, or null"),
            ("step_size", self.step_size, 0 <= self.step_size <= 1, "from 0 to 1"),
            (
                "with_classes",
                self.with_classes,
                self.with_classes in (None, "before_layers", "after_layers", "before_product"),
                "'before_layers', 'after_layers', 'before_product' or null",
            ),
        ]
        wrong = [f"mean_shift.{name}: {value!r} is not {rule}" for name, value, right, rule in rules if not right]
        if self.with_classes is not None and self.spatial is not None:
            wrong.append(
                f"mean_shift.spatial: {self.spatial!r} beside with_classes {self.with_classes!r}; class embeddings "
                "have no position in the image, so set spatial to null"
            )
        if wrong:
            raise InputError("; ".join(wrong))

    def check_decoder(self, decoder: str) -> None:
        """Refuse a decoder that the block cannot stand in.

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
    """Mean shift from pixels: logits on a finer grid than the patches'."""

    layers: int = 1
    """Number of steps."""
    factor: int = 4
    """Cells along a side of a patch; logits come for each cell."""
    channels: int = 48
    """Width of the space in which cells and patches are compared."""
    spatial: float = 0.5
    """σ in patches of the spatial kernel at the start of training, which then learns each offset by itself."""

    def __post_init__(self) -> None:
        rules = [
            ("layers", self.layers, _is_steps(self.layers), f"a whole number from 0 to {MOST_STEPS}"),
            ("factor", self.factor, _is_count(self.factor), COUNT),
            ("channels", self.channels, _is_count(self.channels), COUNT),
            ("spatial", self.spatial, self.spatial > 0, "above 0"),
        ]
        wrong = [f"pixel_shift.{name}: {value!r} is not {rule}" for name, value, right, rule in rules if not right]
        if wrong:
            raise InputError("; ".join(wrong))


@dataclass(frozen=True)
class ModelConfig:
    """Encoder, mean shift block and decoder; the classes are in the model's LabelSpace."""

    backbone: str
    """Any plain ViT name of timm."""
    image_size: tuple[int, int] = (512, 512)
    """(H, W) in pixels that the position embeddings are made for; other sizes resample them."""
    decoder: Literal["linear", "mask"] = "linear"
    """"linear", or "mask" for the mask transformer."""
    decoder_layers: int = 2
    """Transformer layers of the mask decoder."""
    decoder_heads: int | None = None
    """Attention heads of the mask decoder; None: one for each 64 channels, as Segmenter has it."""
    mean_shift: MeanShiftConfig | None = None
    """The mean shift block between encoder and decoder, or within the mask decoder (`with_classes`), or None."""
    pixel_shift: PixelShiftConfig | None = None
    """Mean shift from pixels after the decoder, in place of `mean_shift`, or None."""
    drop_path: float = 0.1
    """Stochastic depth of the encoder, rising linearly to this rate; active in training only."""
    backbone_args: Mapping[str, Any] = field(default_factory=dict)
    """More arguments for timm.create_model, such as depth, embed_dim, num_heads, patch_size."""
    positions: Literal["antialias", "bicubic", "bilinear"] = "antialias"
    """How position embeddings are resampled to other grids: "antialias" as timm does it, bicubic with antialiasing;
    "bicubic" as MMSegmentation, "bilinear" as the Segmenter of its authors."""
    norm_eps: float | None = None
    """ε of the encoder's layer norms; None: as timm builds the backbone (1e-6 for a ViT)."""
    patch_bias: bool = True
    """Whether the patch embedding adds a bias; MMSegmentation's VisionTransformer has none unless told."""
    window: int | None = 512
    """Side in pixels of the windows in which images are read unless told otherwise; None: the whole image."""
    stride: int = 480
    """Distance in pixels between windows."""
    short_side: int | None = 512
    """With `long_side`, the sides in pixels into which images are fitted first; None: they are read at their size."""
    long_side: int = 2048
    """The longer of the two."""
    mean: Triple = (0.5, 0.5, 0.5)
    """Subtracted from RGB in 0..1 before the encoder."""
    std: Triple = (0.5, 0.5, 0.5)
    """RGB is divided by it after the mean is subtracted."""

    def __post_init__(self) -> None:
        self._check_fields()
        if self.decoder not in ("linear", "mask"):
            raise InputError(f"decoder: {self.decoder!r}; use 'linear' or 'mask'")
        if self.positions not in ("antialias", "bicubic", "bilinear"):
            raise InputError(f"positions: {self.positions!r}; use 'antialias', 'bicubic' or 'bilinear'")
        if self.window is not None and self.stride > self.window:
            raise InputError(f"stride: {self.stride} is above window {self.window}; images would be read in part only")
        if self.mean_shift is not None and self.pixel_shift is not None:
            raise InputError("pixel_shift: given beside mean_shift; a model has one of the two")
        if self.mean_shift is not None:
            self.mean_shift.check_decoder(self.decoder)

    def _check_fields(self) -> None:
        """Each field by itself, and all at once; what comes out of a file may be of any type."""
        whole = {"stride": self.stride, "long_side": self.long_side}
        optional = {"decoder_heads": self.decoder_heads, "window": self.window, "short_side": self.short_side}
        rules = [
            (
                "decoder_layers",
                self.decoder_layers,
                _is_steps(self.decoder_layers),
                f"a whole number from 0 to {MOST_STEPS}",
            ),
            ("backbone", self.backbone, isinstance(self.backbone, str), "a name"),
            (
                "backbone_args",
                self.backbone_args,
                _are_arguments(self.backbone_args),
                "names with values from 0 on",
            ),
            *_argument_rules(self.backbone_args),
            (
                "image_size",
                self.image_size,
                len(self.image_size) == 2 and all(map(_is_count, self.image_size)),
                "height and width in pixels, each at least 1",
            ),
            *((name, value, _is_count(value), COUNT) for name, value in whole.items()),
            *(
                (name, value, value is None or _is_count(value), f"{COUNT}, or null")
                for name, value in optional.items()
            ),
            ("mean", self.mean, _is_triple(self.mean), "three numbers"),
            ("std", self.std, _is_triple(self.std) and min(self.std) > 0, "three numbers above 0"),
            ("drop_path", self.drop_path, _is_rate(self.drop_path), "a rate from 0 up to but not including 1"),
            ("norm_eps", self.norm_eps, self.norm_eps is None or _is_positive(self.norm_eps), "above 0, or null"),
        ]
        wrong = [f"{name}: {value!r:.80} is not {rule}" for name, value, right, rule in rules if not right]
        if wrong:
            raise InputError("; ".join(wrong))

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        return {**asdict(self), "backbone_args": dict(self.backbone_args)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """The configuration that `to_dict` wrote."""
        values = dict(data)
        shift, pixel = values.pop("mean_shift", None), values.pop("pixel_shift", None)
        for name in ("image_size", "mean", "std"):
            values[name] = tuple(values[name])
        return cls(
            **values,
            mean_shift=None if shift is None else MeanShiftConfig(**shift),
            pixel_shift=None if pixel is None else PixelShiftConfig(**pixel),
        )
