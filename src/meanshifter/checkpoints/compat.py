"""Preprocessing of other tools as `Preprocess` values, which `--compat` and `Predictor(compat=…)` select by name.

Sources: `encode_decode` and `slide_inference` of MMSegmentation 1.2.2; `segm/model/utils.py`, `segm/eval/miou.py` and
`segm/inference.py` of github.com/rstrudel/segmenter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from meanshifter.errors import InputError, did_you_mean
from meanshifter.inference.preprocess import Preprocess
from meanshifter.model.config import ModelConfig

OVERLAP = 32
"""Pixels by which windows overlap in `segm/eval/miou.py`."""


def preprocess_of(tool: str, config: ModelConfig) -> Preprocess:
    """Return the preprocessing with which `tool` scores a model.

    Raises:
        InputError: unknown tool.
    """
    if tool not in COMPAT:
        hint = did_you_mean(tool, COMPAT, f"use one of {', '.join(COMPAT)}, or None")
        raise InputError(f"compat: {tool!r} is unknown; {hint}")
    return COMPAT[tool](config)


def mmsegmentation(config: ModelConfig) -> Preprocess:
    """MMSegmentation's: windows are padded to a multiple of the patch, and the padding is upsampled with them."""
    return replace(Preprocess.of(config), stretch_padding=True, compat="mmsegmentation")


def segmenter(config: ModelConfig) -> Preprocess:
    """That of `segm/eval/miou.py`: windows of the size of the training crops, at a stride of 32 pixels less.

    It ignores the windows in `variant.yml`. Training crops there are square; other models keep their own windows.
    """
    height, width = config.image_size
    own = replace(Preprocess.of(config), enlarge_to_window=True, compat="segmenter")
    return replace(own, window=width, window_stride=max(width - OVERLAP, 1)) if height == width else own


def segmenter_inference(config: ModelConfig) -> Preprocess:
    """That of `segm/inference.py`: images at their own size, in the windows that `variant.yml` states."""
    window = config.image_size[1] if config.window is None else config.window
    stride = min(config.window_stride, window)
    return Preprocess(window, stride, None, config.long_side, enlarge_to_window=True, compat="segmenter")


COMPAT: Mapping[str, Callable[[ModelConfig], Preprocess]] = {"mmsegmentation": mmsegmentation, "segmenter": segmenter}
"""By tool, the preprocessing with which it scores a model."""
