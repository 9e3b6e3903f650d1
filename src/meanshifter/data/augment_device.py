"""`augment` for a batch of images on a device: the same random draws, and the same crops up to rounding.

Crops are resampled by two small matrices of Pillow's filter and distorted together.
Glossary: B crops of H × W; h, w the part of a crop that its image fills.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from meanshifter.data.crop_plan import Plan
from meanshifter.data.distortion import Distortion
from meanshifter.data.resampling import nearest_indices


def augment_batch(
    images: Sequence[Tensor],
    labels: Sequence[Tensor],
    plans: Sequence[Plan],
    crop: tuple[int, int],
    *,
    factor: Tensor,
    offset: Tensor,
    ignore: int,
) -> tuple[Tensor, Tensor]:
    """Augment uint8 images (3, Hi, Wi) and labels (Hi, Wi) by their plans: float32 (B, 3, H, W) and int64 (B, H, W).

    Everything stays on the device of the images. Pillow rounds after each pass of its filter and this function does
    not: before distortion, pixels differ from those of `augment` by one or two of 255; labels do not differ. What
    `AugmentConfig.host_only` lists must be off.
    """
    device = images[0].device
    pixels = torch.zeros(len(plans), 3, *crop, device=device)
    inside = torch.zeros(len(plans), 1, *crop, device=device)
    target = torch.full((len(plans), *crop), ignore, dtype=torch.int64, device=device)
    for b, (image, mask, plan) in enumerate(zip(images, labels, plans, strict=True)):
        content = _resample(image, plan)
        h, w = content.shape[1:]
        pixels[b, :, :h, :w] = content
        target[b, :h, :w] = _nearest(mask, plan)
        inside[b, :, :h, :w] = 1
        if plan.erased is not None:
            top, left, bottom, right = plan.erased
            target[b, top:bottom, left:right] = ignore
            inside[b, :, top:bottom, left:right] = 0
    distort_batch(pixels, [plan.distortion for plan in plans])
    pixels.mul_(factor[:, None, None]).sub_(offset[:, None, None]).mul_(inside)
    return pixels, target


def _nearest(labels: Tensor, plan: Plan) -> Tensor:
    top, left, bottom, right = plan.box
    rows = torch.from_numpy(nearest_indices(labels.shape[0], plan.size[0], top, bottom))
    cols = torch.from_numpy(nearest_indices(labels.shape[1], plan.size[1], left, right))
    rows, cols = _flipped(rows, cols, plan)
    return labels[rows.to(labels.device)[:, None], cols.to(labels.device)].long().rot90(plan.turns)


def _resample(image: Tensor, plan: Plan) -> Tensor:
    """The plan's box of the resized image (3, h, w), flipped and turned as the plan says."""
    top, left, bottom, right = plan.box
    H, W = image.shape[-2:]
    y0, y1, rows = _filter(H, plan.size[0], top, bottom, image.device)
    x0, x1, cols = _filter(W, plan.size[1], left, right, image.device)
    rows, cols = _flipped(rows, cols, plan)
    return (rows @ (image[:, y0:y1, x0:x1].float() @ cols.T)).rot90(plan.turns, (1, 2))


def _flipped(rows: Tensor, cols: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """What says, for each row and column of the crop, which source pixels it shows."""
    return rows.flip(0) if plan.upside_down else rows, cols.flip(0) if plan.mirrored else cols


def _filter(whole: int, target: int, start: int, stop: int, device: torch.device) -> tuple[int, int, Tensor]:
    """First and last source pixel of an axis, and the weights (stop - start, last - first) of Pillow's triangle."""
    step = whole / target
    reach = max(step, 1.0)
    first = max(0, int((start + 0.5) * step - reach))
    last = min(whole, int((stop - 0.5) * step + reach) + 1)
    centers = (torch.arange(start, stop, device=device, dtype=torch.float64) + 0.5) * step
    source = torch.arange(first, last, device=device, dtype=torch.float64) + 0.5
    weights = (1 - (source - centers[:, None]).abs() / reach).clamp_(min=0)
    return first, last, (weights / weights.sum(1, keepdim=True)).float()


def distort_batch(pixels: Tensor, changes: Sequence[Distortion]) -> None:
    """Photometric distortion of (B, 3, H, W) in 0..255, in place, with changes per image (see `distortion.distort`)."""
    facts = [(c.brightness, c.contrast_first, c.contrast, c.saturation, c.hue) for c in changes]
    values = torch.tensor(facts, dtype=torch.float32, device=pixels.device).T[:, :, None, None, None]
    brightness, first, contrast, saturation, hue = values
    pixels.add_(brightness).clamp_(0, 255)
    pixels.mul_(torch.where(first > 0, contrast, 1)).clamp_(max=255)
    if any(c.hue != 0 or c.saturation != 1 for c in changes):
        pixels.copy_(_shifted(pixels, hue, saturation))
    pixels.mul_(torch.where(first > 0, 1, contrast)).clamp_(max=255)


def _shifted(pixels: Tensor, hue: Tensor, saturation: Tensor) -> Tensor:
    """`distortion.shift_colors`, whose docstring has the formula."""
    red, green, blue = pixels[:, 0:1], pixels[:, 1:2], pixels[:, 2:3]
    value, low = pixels.amax(1, keepdim=True), pixels.amin(1, keepdim=True)
    chroma = value - low
    inverse = 1 / chroma.clamp(min=1e-6)
    sixths = torch.where(value == green, 2 + (blue - red) * inverse, 4 + (red - green) * inverse)
    sixths = torch.where(value == red, (green - blue) * inverse, sixths) + 6 * hue
    sixths = sixths + 6 * (sixths < 0)
    weights = torch.cat([(sixths - 3).abs() - 1, 2 - (sixths - 2).abs(), 2 - (sixths - 4).abs()], 1).clamp_(0, 1)
    target = torch.minimum(chroma * saturation, value)
    return value - target * (1 - weights)
