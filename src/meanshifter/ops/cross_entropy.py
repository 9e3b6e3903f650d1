"""Cross-entropy of upsampled logits, with the gradient taken on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from meanshifter.errors import InputError
from meanshifter.ops import cpu
from meanshifter.ops.backends import backend
from meanshifter.ops.upsampling import Axes, Size, axis_matrices, check_logits, tile_side, tiles, upsampling_axes

Normalize = Literal["valid", "pixels"]


def upsampled_cross_entropy(
    logits: Float[Tensor, "B K h w"],
    labels: Integer[Tensor, "B H W"],
    *,
    padded_size: Size | None = None,
    ignore_index: int = 255,
    normalize: Normalize = "valid",
    weight: Float[Tensor, " K"] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Cross-entropy between labels (B, H, W) and logits upsampled bilinearly to their size, as a float32 scalar.

    Equal to `torch.nn.functional.cross_entropy` of the upsampled logits, which are never held: the sum runs over
    tiles or pixels, and the gradient of each is folded back onto the patch grid (B, K, h, w) at once.

    Args:
        logits: patch logits of any floating dtype; arithmetic is float32 (float64 for float64 logits).
        labels: class per pixel, of an integer dtype; `ignore_index` adds nothing.
        padded_size: upsample to this size and crop at the top left to the labels' size.
        ignore_index: the label that adds neither loss nor gradient.
        normalize: "valid" divides by the (weighted) number of labelled pixels, "pixels" by all B·H·W.
        weight: one factor per class.
        label_smoothing: in [0, 1), mixed evenly over classes.

    Where every pixel is ignored, the loss and its gradient are 0.

    Raises:
        InputError: shapes that do not fit, an unknown `normalize`, or a label outside 0..K-1 that is not ignored.
    """
    _check(logits, labels, ignore_index, normalize, weight)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    weight = logits.new_ones(logits.shape[1], dtype=dtype) if weight is None else weight.to(logits.device, dtype)
    settings = (padded_size, ignore_index, normalize, label_smoothing)
    loss: Tensor = _UpsampledCrossEntropy.apply(logits, labels, weight, settings)
    return loss


class _UpsampledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, weight: Tensor, settings: Any) -> Tensor:
        padded_size, ignore_index, normalize, smoothing = settings
        height, width = labels.shape[-2:]
        axes = upsampling_axes(logits, (height, width), padded_size)
        wide = logits.detach().to(weight.dtype)
        sums = _implementation(wide)
        total, gradient = sums(wide, labels, axes, weight, ignore_index=ignore_index, smoothing=smoothing)
        count = loss_count(labels, weight, ignore_index=ignore_index, normalize=normalize)
        count = torch.where(count > 0, count, 1.0)  # which keeps 0 / 0 at 0
        ctx.save_for_backward((gradient / count).to(logits.dtype))
        return total / count

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].to(gradient.dtype), None, None, None


def _implementation(logits: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    kind = backend(logits)
    if kind == "triton":
        from meanshifter.ops import cuda

        return cuda.cross_entropy
    return cpu.cross_entropy if kind == "numba" else _reference


def _reference(
    logits: Tensor, labels: Tensor, axes: Axes, weight: Tensor, *, ignore_index: int, smoothing: float
) -> tuple[Tensor, Tensor]:
    """The summed loss and its gradient (B, K, h, w), tile by tile on any device.

    With w the class weights, t the label of a pixel, e the smoothing and q the softmax of a pixel's logits,
    loss = -(1 - e) w_t log q_t - e/K sum_k w_k log q_k. Its gradient in logit k is
    ((1 - e) w_t + e/K sum w) q_k - (1 - e) w_t [k = t] - e/K w_k, and each tile's is folded onto the patches.
    """
    rows, cols = axis_matrices(axes, logits)
    gradient, total = torch.zeros_like(logits), logits.new_zeros(())
    smooth = (smoothing / len(weight) * weight)[:, None, None]
    for b, z in enumerate(logits):
        for tile in tiles(rows, cols, tile_side(len(weight), logits.device)):
            target = labels[b, tile.out_rows, tile.out_cols].long()
            valid = target != ignore_index
            target = torch.where(valid, target, 0)[None]
            keep = (1 - smoothing) * weight[target] * valid
            log_q = tile.upsample(z, rows, cols).log_softmax(0)
            total -= (keep * log_q.gather(0, target)).sum() + (smooth * log_q * valid).sum()
            slope = log_q.exp_().mul_(keep + smooth.sum() * valid)
            slope -= smooth * valid
            slope.scatter_add_(0, target, -keep)
            gradient[b, :, tile.in_rows, tile.in_cols] += tile.fold(slope, rows, cols)
    return total, gradient


def loss_count(
    labels: Integer[Tensor, "B H W"], weight: Float[Tensor, " K"], *, ignore_index: int, normalize: Normalize
) -> Float[Tensor, ""]:
    """What `upsampled_cross_entropy` divides its sum by: the (weighted) labelled pixels, or all pixels.

    Losses of parts of a batch times their counts add up to that of the whole batch times its own.
    """
    if normalize == "pixels":
        return weight.new_tensor(labels.numel())
    valid = labels != ignore_index
    return (weight[torch.where(valid, labels, 0).long()] * valid).sum()


def _check(logits: Tensor, labels: Tensor, ignore_index: int, normalize: str, weight: Tensor | None) -> None:
    check_logits(logits)
    if labels.ndim != 3 or len(labels) != len(logits) or labels.is_floating_point():
        raise InputError(
            f"labels: shape {tuple(labels.shape)} of {labels.dtype}; expected integers (B, H, W) with B={len(logits)}"
        )
    if normalize not in ("valid", "pixels"):
        raise InputError(f"normalize: {normalize!r}; use 'valid' or 'pixels'")
    if weight is not None and weight.shape != logits.shape[1:2]:
        raise InputError(
            f"weight: shape {tuple(weight.shape)}; expected one factor for each of {logits.shape[1]} classes"
        )
    if labels.device.type == "cpu" and labels.numel():
        wide = labels.long()
        wrong = wide[(wide != ignore_index) & ((wide < 0) | (wide >= logits.shape[1]))]
        if len(wrong):
            raise InputError(
                f"labels: value {int(wrong[0])} in {len(wrong)} pixels; classes are 0 to {logits.shape[1] - 1}, "
                f"ignored is {ignore_index}"
            )
