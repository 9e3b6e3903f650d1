"""Preprocessing of other tools, written out with full tensors, compared with ours under their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import meanshifter as ms
from meanshifter.checkpoints.compat import segmenter as scoring
from meanshifter.checkpoints.compat import segmenter_inference
from meanshifter.inference.preprocess import Preprocess, fitted_size, resize

Make = Callable[..., ms.Segmenter]
Pixels = npt.NDArray[np.uint8]


def normalized(model: ms.Segmenter, image: Pixels, size: tuple[int, int]) -> Tensor:
    pixels = torch.from_numpy(resize(image, size).copy()).permute(2, 0, 1)[None].float()
    mean, std = (torch.tensor(entry).view(3, 1, 1) for entry in (model.config.mean, model.config.std))
    return (pixels / 255 - mean) / std


def mmsegmentation(model: ms.Segmenter, images: Tensor, size: tuple[int, int], window: int, stride: int) -> Tensor:
    """`slide_inference` and the resize of `postprocess_result`: scores (K, H, W)."""
    H, W = images.shape[-2:]
    total, count = torch.zeros(1, model.label_space.num_classes, H, W), torch.zeros(1, 1, H, W)
    for i in range(max(H - window + stride - 1, 0) // stride + 1):
        for j in range(max(W - window + stride - 1, 0) // stride + 1):
            bottom, right = min(i * stride + window, H), min(j * stride + window, W)
            y, x = max(bottom - window, 0), max(right - window, 0)
            crop = images[..., y:bottom, x:right]
            scores = F.interpolate(model(crop), crop.shape[-2:], mode="bilinear", align_corners=False)
            total[..., y:bottom, x:right] += scores
            count[..., y:bottom, x:right] += 1
    return F.interpolate(total / count, size, mode="bilinear", align_corners=False)[0]


def segmenter(model: ms.Segmenter, images: Tensor, size: tuple[int, int], window: int, stride: int) -> Tensor:
    """The official `inference` for one scale: probabilities (K, H, W)."""
    h, w = images.shape[-2:]
    if min(h, w) < window:
        wider = (window, int(w / h * window)) if h < w else (int(h / w * window), window)
        images = F.interpolate(images, wider, mode="bilinear")
    H, W = images.shape[-2:]
    P, K = model.patch_size, model.label_space.num_classes
    total, count = torch.zeros(1, K, H, W), torch.zeros(1, 1, H, W)
    rows = [y for y in range(0, H, stride) if y < H - window] + [H - window]
    columns = [x for x in range(0, W, stride) if x < W - window] + [W - window]
    for y in rows:
        for x in columns:
            padded = F.pad(images[..., y : y + window, x : x + window], (0, -window % P, 0, -window % P))
            scores = F.interpolate(model(padded), padded.shape[-2:], mode="bilinear")[..., :window, :window]
            total[..., y : y + window, x : x + window] += scores
            count[..., y : y + window, x : x + window] += 1
    return F.interpolate(total / count, size, mode="bilinear")[0].softmax(0)


PLAIN = {"mmsegmentation": mmsegmentation, "segmenter": segmenter}
SIZES = [(61, 90), (96, 41), (20, 75), (33, 21), (50, 50), (24, 24)]


def agreement(found: npt.NDArray[np.integer], scores: Tensor) -> float:
    return float((found == scores.argmax(0).numpy()).mean())


@pytest.mark.parametrize("tool", ["mmsegmentation", "segmenter"])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("window", "stride", "short_side"), [(32, 24, None), (32, 32, 43), (30, 17, 28)])
@torch.inference_mode()
def test_labels_equal_those_of_the_tool(
    tiny_model: Make, tool: str, height: int, width: int, window: int, stride: int, short_side: int | None
) -> None:
    model = tiny_model("segmenter-ti16").eval()
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    predictor = ms.Predictor(
        model,
        window=window,
        window_stride=stride,
        short_side=short_side,
        long_side=90,
        compat=tool,
    )
    size = fitted_size(height, width, short_side=short_side, long_side=90, scale=1.0)
    scores = PLAIN[tool](model, normalized(model, image, size), (height, width), window, stride)
    assert agreement(predictor(image).labels, scores) >= 0.9999
    assert predictor.protocol()["compat"] == tool


@torch.inference_mode()
def test_official_scales_and_flips_average_probabilities(tiny_model: Make) -> None:
    model = tiny_model("segmenter-ti16").eval()
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    total: Tensor | float = 0.0
    for scale in (0.5, 1.5):
        size = fitted_size(40, 60, short_side=40, long_side=160, scale=scale)
        images = normalized(model, image, size)
        total = total + segmenter(model, images, (40, 60), 32, 32)
        total = total + segmenter(model, images.flip(-1), (40, 60), 32, 32).flip(-1)
    predictor = ms.Predictor(
        model,
        window=32,
        window_stride=32,
        short_side=40,
        long_side=160,
        scales=(0.5, 1.5),
        flip=True,
        compat="segmenter",
    )
    assert isinstance(total, Tensor)
    assert agreement(predictor(image).labels, total) >= 0.999


@torch.inference_mode()
def test_labels_equal_those_of_the_tool_on_real_images(shared: Path) -> None:
    torch.manual_seed(0)
    weights = next((shared / "weights").glob("*.safetensors"))
    model = ms.create_model("segmenter-ti16", num_classes=150, encoder_weights=weights).eval()
    for path in sorted((shared / "data" / "ade20k_sample").rglob("*.jpg")):
        seg = ms.Predictor(model, compat="mmsegmentation")(path)
        size = fitted_size(*seg.labels.shape, short_side=512, long_side=2048, scale=1.0)
        images = normalized(model, np.asarray(seg.image), size)
        height, width = seg.labels.shape
        assert agreement(seg.labels, mmsegmentation(model, images, (height, width), 512, 480)) >= 0.9999


def windows(reading: Preprocess) -> tuple[int | None, int, int | None]:
    return reading.window, reading.window_stride, reading.short_side


@torch.inference_mode()
def test_the_official_code_scores_and_predicts_in_different_windows(tiny_model: Make) -> None:
    model = tiny_model("segmenter-ti16").eval()
    model.config = replace(model.config, image_size=(48, 48), window=40, window_stride=30, short_side=43, long_side=90)
    image = np.random.default_rng(0).integers(0, 256, (55, 130, 3), dtype=np.uint8)
    size = fitted_size(55, 130, short_side=43, long_side=90, scale=1.0)
    scored = segmenter(model, normalized(model, image, size), (55, 130), 48, 16)
    assert agreement(ms.Predictor(model, compat="segmenter")(image).labels, scored) >= 0.9999
    labeled = segmenter(model, normalized(model, image, (55, 130)), (55, 130), 40, 30)
    predictor = ms.Predictor(model, compat=segmenter_inference(model.config))
    assert agreement(predictor(image).labels, labeled) >= 0.9999
    assert agreement(predictor(image).labels, scored) < 0.99
    given = ms.Predictor(model, compat="segmenter", window=40, window_stride=8)
    assert (given.preprocess.window, given.preprocess.window_stride) == (40, 8)
    wide = replace(model.config, image_size=(48, 64), window=None, window_stride=480)
    assert windows(scoring(wide)) == (None, 480, 43)
    assert windows(segmenter_inference(wide)) == (64, 64, None)
    assert windows(scoring(replace(wide, image_size=(32, 32)))) == (32, 1, 43)


def test_windows_and_sides_default_to_those_of_the_model(tiny_model: Make) -> None:
    assert ms.Predictor(tiny_model("segmenter-ti16")).preprocess == Preprocess(512, 480, 512, 2048)
    given = ms.Predictor(tiny_model("segmenter-ti16"), window=None, short_side=None).preprocess
    assert given == Preprocess(None, 480, None, 2048)
    with pytest.raises(ms.InputError, match="compat: 'mmseg' is unknown; use one of mmsegmentation"):
        ms.Predictor(tiny_model("segmenter-ti16"), compat="mmseg")
