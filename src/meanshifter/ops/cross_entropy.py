"""Cross-entropy of upsampled logits, with the gradient taken on the way."""

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
from meanshifter.ops.backends import OPERATOR_TAGS, backend
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
        label_smoothing: in [0, 1], mixed evenly over classes.

    Where every pixel is ignored, the loss and its gradient are 0. NaN and infinite logits give the loss and gradient
    that they give to torch, except that a patch whose weight in a pixel is 0 adds nothing to it. Second derivatives are
    exact, third ones are refused. A torch operator, so that `torch.compile` keeps it in its graph.

    On the CPU a label outside 0..K-1 that is not ignored is refused. On other devices looking for one would wait for
    the device: there loss and gradient become NaN.

    Raises:
        InputError: shapes or devices that do not fit, an unknown `normalize`, a `label_smoothing` outside [0, 1],
            weights that ask for a gradient, logits with a forward-mode tangent, or, on the CPU, a label outside
            0..K-1 that is not ignored.
    """
    _check(logits, labels, normalize, weight, label_smoothing)
    height, width = labels.shape[-2:]
    padded = (height, width) if padded_size is None else padded_size
    upsampling_axes(logits, (height, width), padded)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    weight = logits.new_ones(logits.shape[1], dtype=dtype) if weight is None else weight.to(logits.device, dtype)
    settings = list(padded), ignore_index, normalize, label_smoothing
    loss: Tensor = _loss_and_gradient(
        logits, labels, weight, *settings, torch.is_grad_enabled() and logits.requires_grad
    )[0]
    return loss


_SETTINGS = "SymInt[] padded_size, SymInt ignore_index, str normalize, float label_smoothing"


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
    normalize: Normalize,
    label_smoothing: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient in the logits, which is empty where it is not asked for."""
    _check_values(labels, ignore_index, logits.shape[1])
    axes = upsampling_axes(logits, labels.shape[-2:], padded_size)
    wide = logits.to(weight.dtype)
    settings: dict[str, Any] = {"ignore_index": ignore_index, "smoothing": label_smoothing}
    total, gradient = _implementation(wide)(wide, labels, axes, weight, **settings, with_gradient=with_gradient)
    count = _divisor(labels, weight, ignore_index, normalize)
    return total / count, (gradient / count).to(logits.dtype).contiguous()


@_loss_and_gradient.register_fake
def _fake_loss(logits: Tensor, labels: Tensor, weight: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    return weight.new_empty(()), logits.new_empty(logits.shape if settings[-1] else 0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, labels, weight, *ctx.settings, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, labels, weight, output[1])


def _backward(ctx: Any, from_loss: Tensor | None, from_gradient: Tensor | None) -> tuple[Tensor | None, ...]:
    """The first derivative is an output of the operator already; the second is that output's own derivative."""
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
    normalize: Normalize,
    label_smoothing: float,
) -> Tensor:
    """The loss's matrix of second derivatives in the logits, times `direction` (B, K, h, w), tile by tile.

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
    return (out / _divisor(labels, weight, ignore_index, normalize)).to(logits.dtype)


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
            if smoothing > 0:  # as 0 times infinity is NaN
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
    """The class of each pixel, its factor (1 - e) w_t, and whether it counts.

    A label that is no class has the factor NaN.
    """
    target = labels.long()
    valid, known = target != ignore_index, (target >= 0) & (target < len(weight))
    target = target.where(known, 0)
    keep = ((1 - smoothing) * weight[target]).where(known, math.nan)
    return target[None], keep.where(valid, 0), valid


def _divisor(labels: Tensor, weight: Tensor, ignore_index: int, normalize: Normalize) -> Tensor:
    count = loss_count(labels, weight, ignore_index=ignore_index, normalize=normalize)
    return torch.where(count > 0, count, 1.0)  # which keeps 0 / 0 at 0


def loss_count(
    labels: Integer[Tensor, "B H W"], weight: Float[Tensor, " K"], *, ignore_index: int, normalize: Normalize
) -> Float[Tensor, ""]:
    """What `upsampled_cross_entropy` divides its sum by: the (weighted) labelled pixels, or all pixels.

    Losses of parts of a batch times their counts add up to that of the whole batch times its own.
    """
    if normalize == "pixels":
        return weight.new_tensor(labels.numel())
    target = labels.long()
    counted = (target != ignore_index) & (target >= 0) & (target < len(weight))
    return (weight[target.where(counted, 0)] * counted).sum()


def _check(logits: Tensor, labels: Tensor, normalize: str, weight: Tensor | None, smoothing: float) -> None:
    check_logits(logits)
    if labels.ndim != 3 or len(labels) != len(logits) or labels.is_floating_point():
        raise InputError(
            f"labels: shape {tuple(labels.shape)} of {labels.dtype}; expected integers (B, H, W) with B={len(logits)}"
        )
    if labels.device != logits.device:
        raise InputError(f"labels: on {labels.device}, and the logits on {logits.device}; move them to one device")
    if normalize not in ("valid", "pixels"):
        raise InputError(f"normalize: {normalize!r}; use 'valid' or 'pixels'")
    if not 0 <= smoothing <= 1:
        raise InputError(f"label_smoothing: {smoothing}; it lies in 0 to 1")
    if weight is not None and weight.shape != logits.shape[1:2]:
        raise InputError(
            f"weight: shape {tuple(weight.shape)}; expected one factor for each of {logits.shape[1]} classes"
        )
    if weight is not None and weight.requires_grad and torch.is_grad_enabled():
        raise InputError("weight: requires a gradient, which the loss has none of; pass weight.detach()")
    if not torch.compiler.is_compiling() and _is_dual(logits):
        raise InputError("logits: a dual tensor; the loss has no forward-mode derivative, use torch.autograd.grad")


def _is_dual(logits: Tensor) -> bool:
    return forward_ad.unpack_dual(logits).tangent is not None  # type: ignore[no-untyped-call]


def _check_values(labels: Tensor, ignore_index: int, K: int) -> None:
    if labels.device.type != "cpu":
        return
    wide = labels.long()
    wrong = wide[(wide != ignore_index) & ((wide < 0) | (wide >= K))]
    if len(wrong):
        raise InputError(
            f"labels: value {int(wrong[0])} in {len(wrong)} pixels; classes are 0 to {K - 1}, ignored is {ignore_index}"
        )
