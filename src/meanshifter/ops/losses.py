"""Cross-entropy of upsampled logits, whose gradient is computed along with the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.autograd import forward_ad

from meanshifter.errors import InputError
from meanshifter.ops import cpu
from meanshifter.ops.argmax import OPERATOR_TAGS, backend
from meanshifter.ops.upsampling import Axes, Size, axis_matrices, check_logits, tile_side, tiles, upsampling_axes

Reduction = Literal["mean_valid", "mean_all"]


def upsampled_cross_entropy(
    logits: Float[Tensor, "B K h w"],
    labels: Integer[Tensor, "B H W"],
    *,
    padded_size: Size | None = None,
    ignore_index: int = 255,
    reduction: Reduction = "mean_valid",
    weight: Float[Tensor, " K"] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Return the cross-entropy between labels (B, H, W) and bilinearly upsampled logits, as a float32 scalar.

    Equal to `torch.nn.functional.cross_entropy` of the upsampled logits, which are never stored: the sum runs over
    tiles or pixels, whose gradients are immediately folded back onto the patch grid (B, K, h, w).

    Args:
        logits: patch logits of any floating dtype; arithmetic is float32 (float64 for float64 logits).
        labels: class per pixel, of an integer dtype.
        padded_size: upsample to this size and crop at the top left to the labels' size.
        ignore_index: the label that contributes neither loss nor gradient.
        reduction: "mean_valid" divides by the (weighted) number of labeled pixels, "mean_all" by all B·H·W.
        weight: one factor per class.
        label_smoothing: in [0, 1], spread evenly over classes.

    If every pixel is ignored, loss and gradient are 0. NaN and infinite logits give the same loss and gradient as in
    torch, except that a patch with weight 0 in a pixel contributes nothing to it. Second derivatives are exact; third
    ones are not supported. This is a torch operator, so that `torch.compile` keeps it in its graph.

    On other devices than the CPU, checking labels would synchronize the device; there, labels outside 0..K-1 that are
    not ignored make loss and gradient NaN.

    Raises:
        InputError: incompatible shapes or devices, an unknown `reduction`, a `label_smoothing` outside [0, 1], weights
            that require a gradient, logits with a forward-mode tangent, or, on the CPU, a label outside 0..K-1 that
            is not ignored.
    """
    check_inputs(logits, labels, reduction, weight, label_smoothing)
    height, width = labels.shape[-2:]
    padded = (height, width) if padded_size is None else padded_size
    upsampling_axes(logits, (height, width), padded)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    weight = logits.new_ones(logits.shape[1], dtype=dtype) if weight is None else weight.to(logits.device, dtype)
    settings = list(padded), ignore_index, reduction, label_smoothing
    with_gradient = torch.is_grad_enabled() and logits.requires_grad
    loss: Tensor = _loss_and_gradient(logits, labels, weight, *settings, with_gradient)[0]
    return loss


_SETTINGS = "SymInt[] padded_size, SymInt ignore_index, str reduction, float label_smoothing"


@torch.library.custom_op(
    "meanshifter::upsampled_cross_entropy",
    mutates_args=(),
    schema=f"(Tensor logits, Tensor labels, Tensor weight, {_SETTINGS}, bool with_gradient) -> (Tensor, Tensor)",
    **OPERATOR_TAGS,
)
def _loss_and_gradient(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor,
    padded_size: list[int],
    ignore_index: int,
    reduction: Reduction,
    label_smoothing: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient with respect to the logits, which is empty unless requested."""
    check_values(labels, ignore_index, logits.shape[1])
    axes = upsampling_axes(logits, labels.shape[-2:], padded_size)
    wide = logits.to(weight.dtype)
    settings: dict[str, Any] = {"ignore_index": ignore_index, "smoothing": label_smoothing}
    total, gradient = _implementation(wide)(wide, labels, axes, weight, **settings, with_gradient=with_gradient)
    count = divisor(labels, weight, ignore_index, reduction)
    return total / count, (gradient / count).to(logits.dtype).contiguous()


@_loss_and_gradient.register_fake
def _fake_loss(logits: Tensor, labels: Tensor, weight: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    return weight.new_empty(()), logits.new_empty(logits.shape if settings[-1] else 0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, labels, weight, *ctx.settings, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, labels, weight, output[1])


def _backward(ctx: Any, from_loss: Tensor | None, from_gradient: Tensor | None) -> tuple[Tensor | None, ...]:
    """Backward pass: the first derivative is an output of the operator; the second is that output's derivative."""
    logits, labels, weight, gradient = ctx.saved_tensors
    total = None
    if from_loss is not None:
        total = gradient * from_loss.to(gradient.dtype)
    if from_gradient is not None:
        turned = _hessian_product(logits, labels, weight, from_gradient, *ctx.settings)
        total = turned if total is None else total + turned
    return (total, *[None] * 7)


_loss_and_gradient.register_autograd(_backward, setup_context=_setup)


@torch.library.custom_op(
    "meanshifter::upsampled_cross_entropy_hessian",
    mutates_args=(),
    schema=f"(Tensor logits, Tensor labels, Tensor weight, Tensor direction, {_SETTINGS}) -> Tensor",
    **OPERATOR_TAGS,
)
def _hessian_product(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor,
    direction: Tensor,
    padded_size: list[int],
    ignore_index: int,
    reduction: Reduction,
    label_smoothing: float,
) -> Tensor:
    """The product of the loss's Hessian in the logits with `direction` (B, K, h, w), tile by tile.

    With q the softmax of a pixel's logits, u its upsampled direction and f = (1 - e) w_t + e/K sum w, that of a
    pixel is f (q u - q sum_k q_k u_k).
    """
    rows, cols = axis_matrices(upsampling_axes(logits, labels.shape[-2:], padded_size), logits)
    wide, along = logits.to(weight.dtype), direction.to(weight.dtype)
    out = torch.zeros_like(wide, memory_format=torch.contiguous_format)
    for b in range(len(logits)):
        for tile in tiles(rows, cols, tile_side(len(weight), logits.device)):
            _, keep, valid = _targets(labels[b, tile.out_rows, tile.out_cols], weight, ignore_index, label_smoothing)
            q = tile.upsample(wide[b], rows, cols).softmax(0)
            turned = q * tile.upsample(along[b], rows, cols)
            turned -= q * turned.sum(0)
            turned *= keep + label_smoothing / len(weight) * weight.sum() * valid
            out[b, :, tile.in_rows, tile.in_cols] += tile.fold(turned, rows, cols)
    return (out / divisor(labels, weight, ignore_index, reduction)).to(logits.dtype)


@_hessian_product.register_fake
def _fake_product(logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _implementation(logits: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    kind = backend(logits)
    if kind == "triton":
        from meanshifter.ops import cuda

        return cuda.cross_entropy
    return cpu.cross_entropy if kind == "numba" else _reference


def _reference(
    logits: Tensor,
    labels: Tensor,
    axes: Axes,
    weight: Tensor,
    *,
    ignore_index: int,
    smoothing: float,
    with_gradient: bool = True,
) -> tuple[Tensor, Tensor]:
    """The summed loss and its gradient (B, K, h, w), tile by tile on any device.

    With w the class weights, t the label of a pixel, e the smoothing and q the softmax of a pixel's logits,
    loss = -(1 - e) w_t log q_t - e/K sum_k w_k log q_k. Its gradient in logit k is
    ((1 - e) w_t + e/K sum w) q_k - (1 - e) w_t [k = t] - e/K w_k, and each tile's is folded onto the patches.
    """
    rows, cols = axis_matrices(axes, logits)
    gradient, total = torch.zeros_like(logits) if with_gradient else logits.new_empty(0), logits.new_zeros(())
    smooth = (smoothing / len(weight) * weight)[:, None, None]
    for b, z in enumerate(logits):
        for tile in tiles(rows, cols, tile_side(len(weight), logits.device)):
            target, keep, valid = _targets(labels[b, tile.out_rows, tile.out_cols], weight, ignore_index, smoothing)
            log_q = tile.upsample(z, rows, cols).log_softmax(0)
            loss = -keep * log_q.gather(0, target)[0]
            if smoothing > 0:  # because 0 times infinity is NaN
                loss -= (smooth * log_q).sum(0)
            total += loss.where(valid, 0).sum()
            if with_gradient:
                slope = log_q.exp_().mul_(keep + smooth.sum() * valid)
                slope -= smooth * valid
                slope.scatter_add_(0, target, -keep[None])
                gradient[b, :, tile.in_rows, tile.in_cols] += tile.fold(slope, rows, cols)
    return total, gradient


def _targets(
    labels: Tensor, weight: Tensor, ignore_index: int, smoothing: float
) -> tuple[Integer[Tensor, "1 R C"], Float[Tensor, "R C"], Bool[Tensor, "R C"]]:
    """The class of each pixel, its factor (1 - e) w_t (NaN if the label is not a class), and whether it counts."""
    target = labels.long()
    valid, known = target != ignore_index, (target >= 0) & (target < len(weight))
    target = target.where(known, 0)
    keep = ((1 - smoothing) * weight[target]).where(known, math.nan)
    return target[None], keep.where(valid, 0), valid


def divisor(
    labels: Tensor,
    weight: Tensor,
    ignore_index: int,
    reduction: Reduction,
    *,
    near: Tensor | None = None,
    near_weight: float = 1.0,
) -> Tensor:
    """`loss_count`, or 1 where that is 0, so that 0 / 0 is 0."""
    settings: dict[str, Any] = {"ignore_index": ignore_index, "reduction": reduction}
    count = loss_count(labels, weight, **settings, near=near, near_weight=near_weight)
    return torch.where(count > 0, count, 1.0)


def loss_count(
    labels: Integer[Tensor, "B H W"],
    weight: Float[Tensor, " K"],
    *,
    ignore_index: int,
    reduction: Reduction,
    near: Bool[Tensor, "B H W"] | None = None,
    near_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """Return the divisor of `upsampled_cross_entropy`: the (weighted) number of labeled pixels, or of all pixels.

    The losses of parts of a batch, multiplied by their counts, add up to the loss of the batch times its count. Labeled
    pixels of `near` count `near_weight` times.
    """
    if reduction == "mean_all":
        return weight.new_tensor(labels.numel())
    target = labels.long()
    counted = (target != ignore_index) & (target >= 0) & (target < len(weight))
    each = weight[target.where(counted, 0)] * counted
    return each.sum() if near is None else torch.where(near, near_weight * each, each).sum()


def check_inputs(logits: Tensor, labels: Tensor, reduction: str, weight: Tensor | None, smoothing: float) -> None:
    """Raise unless the arguments of a loss fit together."""
    check_logits(logits)
    if labels.ndim != 3 or len(labels) != len(logits) or labels.is_floating_point():
        raise InputError(
            f"labels: shape {tuple(labels.shape)} of {labels.dtype}; expected integers (B, H, W) with B={len(logits)}"
        )
    if labels.device != logits.device:
        raise InputError(f"labels: on {labels.device}, but logits on {logits.device}; move them to the same device")
    if reduction not in ("mean_valid", "mean_all"):
        raise InputError(f"reduction: {reduction!r}; use 'mean_valid' or 'mean_all'")
    if not 0 <= smoothing <= 1:
        raise InputError(f"label_smoothing: {smoothing}; it must be from 0 to 1")
    if weight is not None and weight.shape != logits.shape[1:2]:
        raise InputError(
            f"weight: shape {tuple(weight.shape)}; expected one factor for each of {logits.shape[1]} classes"
        )
    if weight is not None and weight.requires_grad and torch.is_grad_enabled():
        raise InputError("weight: requires a gradient, which the loss does not support; pass weight.detach()")
    if torch.compiler.is_compiling():
        return
    if forward_ad.unpack_dual(logits).tangent is not None:  # type: ignore[no-untyped-call]
        raise InputError("logits: a dual tensor; forward-mode derivatives are not supported, use torch.autograd.grad")


def check_values(labels: Tensor, ignore_index: int, K: int) -> None:
    """Raise on the CPU if a label is neither a class nor ignored."""
    if labels.device.type != "cpu":
        return
    wide = labels.long()
    wrong = wide[(wide != ignore_index) & ((wide < 0) | (wide >= K))]
    if len(wrong):
        raise InputError(
            f"labels: value {int(wrong[0])} in {len(wrong)} pixels; expected 0 to {K - 1}, or {ignore_index} to ignore"
        )
