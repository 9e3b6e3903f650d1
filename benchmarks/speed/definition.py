"""The usual way, written out in plain PyTorch: what the package's results are equal to and its speed is held against.

Glossary: B batch, K classes, h w patch grid, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from meanshifter.inference.windows import window_starts

Size = tuple[int, int]


def upsampled_argmax(logits: Tensor, size: Size) -> Tensor:
    """Upsample (B, K, h, w) to pixels and take the largest."""
    full = F.interpolate(logits.float().contiguous(), size, mode="bilinear", align_corners=False)
    return full.argmax(1)


def upsampled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Upsample (B, K, h, w) to the labels (B, H, W) and take the cross-entropy."""
    full = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full, labels, ignore_index=255)


def windows(length_y: int, length_x: int, window: int, stride: int) -> list[tuple[int, int]]:
    """Top left corners of the windows of MMSegmentation's `slide_inference`."""
    return [(y, x) for y in window_starts(length_y, window, stride) for x in window_starts(length_x, window, stride)]


@torch.inference_mode()
def slide(
    patch_logits: Callable[[Tensor], Tensor],
    path: Path,
    mean: npt.NDArray[np.float32],
    std: npt.NDArray[np.float32],
    *,
    window: int,
    stride: int,
    K: int,
    device: torch.device | str = "cpu",
) -> npt.NDArray[np.uint8]:
    """From a file to its label map: full-size logits of all windows are added, averaged, and the largest taken."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    H, W = pixels.shape[:2]
    image = torch.from_numpy((pixels.astype(np.float32) / 255 - mean) / std).to(device).permute(2, 0, 1)[None]
    total, count = torch.zeros(1, K, H, W, device=device), torch.zeros(1, 1, H, W, device=device)
    for y, x in windows(H, W, window, stride):
        crop = image[:, :, y : y + window, x : x + window]
        logits = F.interpolate(patch_logits(crop), crop.shape[-2:], mode="bilinear", align_corners=False)
        total[:, :, y : y + window, x : x + window] += logits
        count[:, :, y : y + window, x : x + window] += 1
    labels: npt.NDArray[np.uint8] = (total / count).argmax(1)[0].byte().cpu().numpy()
    return labels


def training_sample(
    image_path: Path, mask_path: Path, rng: np.random.Generator, *, crop: int, base: Size, scale: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Decode, resize the whole image, crop, flip, distort, normalize: one training sample of the field's recipe."""
    image, mask = Image.open(image_path).convert("RGB"), Image.open(mask_path)
    factor = rng.uniform(*scale)
    long, short = max(base) * factor, min(base) * factor
    factor = min(long / max(image.size), short / min(image.size))
    size = (int(image.width * factor + 0.5), int(image.height * factor + 0.5))
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR)).astype(np.float32)
    labels = np.asarray(mask.resize(size, Image.Resampling.NEAREST))
    for _ in range(10):
        top = int(rng.integers(0, max(size[1] - crop, 0) + 1))
        left = int(rng.integers(0, max(size[0] - crop, 0) + 1))
        counts = np.unique(labels[top : top + crop, left : left + crop], return_counts=True)[1]
        if len(counts) > 1 and counts.max() < 0.75 * counts.sum():
            break
    pixels, labels = pixels[top : top + crop, left : left + crop], labels[top : top + crop, left : left + crop]
    if rng.random() < 0.5:
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]
    pixels = distorted(pixels, rng)
    out = np.zeros((crop, crop, 3), np.float32)
    out[: pixels.shape[0], : pixels.shape[1]] = (pixels / 255 - 0.5) / 0.5
    target = np.full((crop, crop), 255, np.int64)
    target[: labels.shape[0], : labels.shape[1]] = labels.astype(np.int64) - 1
    target[target == -1] = 255
    return torch.from_numpy(out.transpose(2, 0, 1).copy()), torch.from_numpy(target)


def distorted(pixels: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Brightness, contrast, saturation and hue in turn, each with probability one half, as in MMSegmentation."""
    if rng.random() < 0.5:
        pixels = (pixels + np.float32(rng.uniform(-32, 32))).clip(0, 255)
    first = rng.random() < 0.5
    if first and rng.random() < 0.5:
        pixels = (pixels * np.float32(rng.uniform(0.5, 1.5))).clip(0, 255)
    if rng.random() < 0.5:
        pixels = _in_hsv(pixels, saturation=rng.uniform(0.5, 1.5), hue=0)
    if rng.random() < 0.5:
        pixels = _in_hsv(pixels, saturation=1, hue=int(rng.integers(-18, 18)) / 180)
    if not first and rng.random() < 0.5:
        pixels = (pixels * np.float32(rng.uniform(0.5, 1.5))).clip(0, 255)
    return pixels


def _in_hsv(pixels: npt.NDArray[np.float32], *, saturation: float, hue: float) -> npt.NDArray[np.float32]:
    """Through Pillow's 8-bit HSV and back."""
    hsv = np.asarray(Image.fromarray(pixels.astype(np.uint8)).convert("HSV")).astype(np.float32)
    hsv[..., 1] = (hsv[..., 1] * saturation).clip(0, 255)
    hsv[..., 0] = (hsv[..., 0] + hue * 255) % 256
    return np.asarray(Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB")).astype(np.float32)
