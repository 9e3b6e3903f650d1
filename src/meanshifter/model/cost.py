"""Parameters and multiply-adds of the presets, by formula: no model is built, and torch is not imported.

`meanshifter.study.sizes` counts those of any model; tests hold the two equal.
Glossary: D token width, K classes, N patches, P patch size, C channels of a block, S side of the image in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meanshifter.errors import InputError
from meanshifter.model.config import MeanShiftConfig, PixelShiftConfig
from meanshifter.model.presets import PIXEL_SHIFTS, SHIFTS, parse_preset, resolve_block

PATCH = 16
DECODER_LAYERS = 2
ENCODERS = {"ti16": (192, 12), "s16": (384, 12), "b16": (768, 12), "l16": (1024, 24)}
"""Width and layers: Segmenter, ICCV 2021, table 1."""


@dataclass(frozen=True)
class Size:
    """What a model holds and computes."""

    parameters: int = 0
    multiply_adds: int = 0
    """Of one image: matrix products, convolutions and attention counted."""

    def __add__(self, other: Size) -> Size:
        """Of two parts together."""
        return Size(self.parameters + other.parameters, self.multiply_adds + other.multiply_adds)


def size_of(preset: str, *, num_classes: int, image_size: int, mean_shift: Mapping[str, Any] | None = None) -> Size:
    """The parameters and multiply-adds of a preset, as `create_model` builds it with these arguments.

    Raises:
        InputError: an unknown preset or field, fewer classes than 1, or a side below one patch.
    """
    for name, value, least in (("num_classes", num_classes, 1), ("image_size", image_size, PATCH)):
        if value < least:
            raise InputError(f"{name}: {value}; it must be at least {least}")
    family, decoder, size = parse_preset(preset)
    (D, layers), N = ENCODERS[size], (-(-image_size // PATCH)) ** 2
    total = _encoder(D, layers, N, positions=(image_size // PATCH) ** 2)
    total += _linear(D, num_classes, N) if decoder == "linear" else _mask_transformer(D, num_classes, N)
    if (shift := resolve_block(family, "mean_shift", mean_shift, SHIFTS)) is not None:
        shift.check_decoder(decoder)
        total += _mean_shift(D, N if shift.with_classes is None else N + num_classes, shift)
    if family in PIXEL_SHIFTS:
        total += _pixel_shift(D, num_classes, N, PIXEL_SHIFTS[family])
    return total


def _linear(inputs: int, outputs: int, rows: int, *, bias: bool = True) -> Size:
    return Size(inputs * outputs + bias * outputs, rows * inputs * outputs)


def _transformer_layer(D: int, tokens: int) -> Size:
    norms, attention = Size(parameters=4 * D), Size(multiply_adds=2 * tokens**2 * D)
    products = _linear(D, 3 * D, tokens) + _linear(D, D, tokens) + _linear(D, 4 * D, tokens) + _linear(4 * D, D, tokens)
    return norms + attention + products


def _layers(count: int, D: int, tokens: int) -> Size:
    one = _transformer_layer(D, tokens)
    return Size(count * one.parameters, count * one.multiply_adds)


def _encoder(D: int, layers: int, N: int, *, positions: int) -> Size:
    """Patch embedding, class token, position embeddings, layers and a norm."""
    embeddings = Size(parameters=D + (positions + 1) * D + 2 * D)
    return embeddings + _linear(3 * PATCH**2, D, N) + _layers(layers, D, N + 1)


def _mask_transformer(D: int, K: int, N: int) -> Size:
    embeddings, norms = Size(parameters=K * D), Size(parameters=2 * D + 2 * K)
    masks = Size(multiply_adds=N * K * D)
    ends = _linear(D, D, N) + _linear(D, D, N, bias=False) + _linear(D, D, K, bias=False)
    return embeddings + norms + masks + ends + _layers(DECODER_LAYERS, D, N + K)


def _mean_shift(D: int, N: int, config: MeanShiftConfig) -> Size:
    C = D if config.channels is None else config.channels
    kernel = 0 if config.kernel == "dot" and config.spatial is None else 1 + 2 * (config.spatial is not None)
    width = -(-max(C + kernel, D) // 8) * 8  # of the attention that takes a step: a multiple of eight
    project = _linear(D, C, config.layers * N)
    steps = Size(multiply_adds=config.layers * 2 * N**2 * width)
    beside = _linear(D, D, N if config.layers else 0, bias=False) if config.beside else Size()
    return project + steps + beside


def _pixel_shift(D: int, K: int, N: int, config: PixelShiftConfig) -> Size:
    C, cells, side = config.channels, config.factor**2 * N, PATCH // config.factor
    look = _linear(3 * (2 * side) ** 2, C, cells) + _linear(9 * C, C, cells) + _linear(9 * C, C, cells)
    steps = Size(9 * config.factor**2, cells * 9 * (C * (2 * config.layers - 1) + K) if config.layers else 0)
    return look + _linear(D, C, N) + steps
