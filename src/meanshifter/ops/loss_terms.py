"""Weighted sums of cross-entropy, focal and Dice loss of upsampled logits, in at most two passes over the pixels.

Cross-entropy and focal loss are sums over pixels, whose gradient a single pass makes along with the loss. Dice depends
on sums over all pixels, and the hardest pixels on a threshold; a first pass collects them, without a gradient. Neither
pass stores upsampled logits.

Glossary: B batch, K classes, h w patch grid, H W pixels, R C rows and columns of a tile; t label of a pixel, q softmax
of its logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypedDict

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from meanshifter.errors import InputError
from meanshifter.ops import cpu
from meanshifter.ops.argmax import OPERATOR_TAGS, backend
from meanshifter.ops.loss_passes import BINS, Pixels, Recipe, Sums
from meanshifter.ops.losses import Reduction, check_inputs, check_values, divisor, upsampled_cross_entropy
from meanshifter.ops.pixel_weights import boundary_pixels, hardest
from meanshifter.ops.upsampling import Size, Tile, axis_matrices, tile_side, tiles, upsampling_axes


class LossTerms(TypedDict, total=False):
    """What `upsampled_loss` adds up; its arguments of the same names."""

    cross_entropy: float
    focal: float
    dice: float
    lovasz: float
    focal_gamma: float
    ohem_share: float | None
    boundary_weight: float
    boundary_radius: int


def upsampled_loss(
    logits: Float[Tensor, "B K h w"],
    labels: Integer[Tensor, "B H W"],
    *,
    cross_entropy: float = 1.0,
    focal: float = 0.0,
    dice: float = 0.0,
    lovasz: float = 0.0,
    focal_gamma: float = 2.0,
    ohem_share: float | None = None,
    boundary_weight: float = 1.0,
    boundary_radius: int = 3,
    padded_size: Size | None = None,
    ignore_index: int = 255,
    reduction: Reduction = "mean_valid",
    weight: Float[Tensor, " K"] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Return a weighted sum of losses between labels (B, H, W) and bilinearly upsampled logits, as a float32 scalar.

    With the defaults this is `upsampled_cross_entropy`, which see for `padded_size` and the arguments after it.

    Args:
        logits: patch logits of any floating dtype; arithmetic is float32 (float64 for float64 logits).
        labels: class per pixel, of an integer dtype.
        cross_entropy: factor of the cross-entropy.
        focal: factor of the focal loss, -(1 - q_t)^gamma log q_t (Lin et al., ICCV 2017, equation 5, whose alpha is
            `weight`), divided like the cross-entropy.
        dice: factor of the soft Dice loss (Milletari et al., 3DV 2016): the mean over the classes that have labeled
            pixels of 1 - 2 I / C, with the intersection I = sum q_k [t = k] and the cardinality C = sum q_k + [t = k]
            of all labeled pixels of the batch. As `DiceLoss` of segmentation_models_pytorch in its multiclass mode
            (sums over the batch, smooth 0, absent classes excluded), except that it divides by all K classes.
        lovasz: factor of the Lovász-Softmax loss (Berman et al., CVPR 2018, equation 9, with the classes that have
            labeled pixels), over all labeled pixels of the batch. Errors are not sorted, but counted in 1024 bins, as
            if those of a bin were in its middle, which is exact to about 1e-5 (docs/benchmarks.md).
        focal_gamma: exponent of the focal loss.
        ohem_share: average the cross-entropy over this share of the labeled pixels only, those of the smallest q_t
            (online hard example mining, Shrivastava et al., CVPR 2016), separately for each call. Pixels of exactly
            the threshold share the remaining places, as does a fraction of a pixel.
        boundary_weight: count pixels near another class this many times, in all terms. Under "mean_valid" they also
            count in the divisor.
        boundary_radius: how many rows and columns away the other class may be.

    If every pixel is ignored, loss and gradient are 0. Only the first derivative exists, except of the cross-entropy
    alone. This is a torch operator.

    Raises:
        InputError: a factor that is negative or not finite, `ohem_share` outside (0, 1], a radius below 1, or as in
            `upsampled_cross_entropy`.
    """
    factors = {
        "cross_entropy": cross_entropy,
        "focal": focal,
        "dice": dice,
        "lovasz": lovasz,
        "focal_gamma": focal_gamma,
    }
    _check_terms({**factors, "boundary_weight": boundary_weight}, ohem_share, boundary_radius)
    if not focal and not dice and not lovasz and ohem_share is None and boundary_weight == 1:
        loss = upsampled_cross_entropy(
            logits,
            labels,
            padded_size=padded_size,
            ignore_index=ignore_index,
            reduction=reduction,
            weight=weight,
            label_smoothing=label_smoothing,
        )
        return loss if cross_entropy == 1 else cross_entropy * loss
    check_inputs(logits, labels, reduction, weight, label_smoothing)
    height, width = labels.shape[-2:]
    padded = (height, width) if padded_size is None else padded_size
    upsampling_axes(logits, (height, width), padded)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    weight = logits.new_ones(logits.shape[1], dtype=dtype) if weight is None else weight.to(logits.device, dtype)
    settings = list(padded), ignore_index, reduction, label_smoothing
    boundary = boundary_weight, boundary_radius
    with_gradient = torch.is_grad_enabled() and logits.requires_grad
    factors_of = cross_entropy, focal, dice, lovasz
    total: Tensor = _loss_and_gradient(
        logits, labels, weight, *settings, *factors_of, focal_gamma, ohem_share, *boundary, with_gradient
    )[0]
    return total


@torch.library.custom_op(
    "meanshifter::upsampled_loss",
    mutates_args=(),
    schema="(Tensor logits, Tensor labels, Tensor weight, SymInt[] padded_size, SymInt ignore_index, str reduction, "
    "float label_smoothing, float cross_entropy, float focal, float dice, float lovasz, float focal_gamma, "
    "float? ohem_share, float boundary_weight, SymInt boundary_radius, bool with_gradient) -> (Tensor, Tensor)",
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
    cross_entropy: float,
    focal: float,
    dice: float,
    lovasz: float,
    focal_gamma: float,
    ohem_share: float | None,
    boundary_weight: float,
    boundary_radius: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient with respect to the logits, which is empty unless requested."""
    check_values(labels, ignore_index, logits.shape[1])
    axes = upsampling_axes(logits, labels.shape[-2:], padded_size)
    wide = logits.to(weight.dtype)
    near = None if boundary_weight == 1 else boundary_pixels(labels, boundary_radius, ignore_index)
    count = divisor(labels, weight, ignore_index, reduction, near=near, near_weight=boundary_weight)
    pixels = Pixels(wide, labels, axes, ignore_index, near, boundary_weight)
    collect, make = _implementation(wide, histogram=lovasz > 0)
    hard = region = slopes = logsums = None
    loss = wide.new_zeros(())
    if dice or lovasz or ohem_share is not None:
        sums = collect(pixels, losses=ohem_share is not None, overlap=dice > 0, errors=lovasz > 0)
        logsums = sums.logsums
        if ohem_share is not None:
            valid = torch.stack([one.long() != ignore_index for one in labels])
            hard = hardest(sums.losses, valid, ohem_share)
        if dice:
            value, region = dice_slopes(sums.overlap, dice)
            loss = loss + value.to(loss.dtype)
        if lovasz:
            slopes = lovasz_slopes(sums.errors, lovasz)
    share = 1.0 if ohem_share is None else ohem_share
    factors = (cross_entropy / (share * count), focal / count, focal_gamma)
    recipe = Recipe(weight, label_smoothing, *factors, hard, region, slopes, logsums)
    summed, gradient = make(pixels, recipe, with_gradient=with_gradient)
    return loss + summed, gradient.to(logits.dtype).contiguous()


@_loss_and_gradient.register_fake
def _fake_loss(logits: Tensor, labels: Tensor, weight: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    return weight.new_empty(()), logits.new_empty(logits.shape if settings[-1] else 0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, from_loss: Tensor | None, from_gradient: Tensor | None) -> tuple[Tensor | None, ...]:
    if from_gradient is not None:
        raise InputError(
            "upsampled_loss: has no second derivative with focal, dice, lovasz, ohem_share or boundary_weight; use "
            "cross_entropy alone, or compute the first derivative without create_graph"
        )
    (gradient,) = ctx.saved_tensors
    return (None if from_loss is None else gradient * from_loss.to(gradient.dtype), *[None] * 15)


_loss_and_gradient.register_autograd(_backward, setup_context=_setup)


def _implementation(
    logits: Tensor, *, histogram: bool
) -> tuple[Callable[..., Any], Callable[..., tuple[Tensor, Tensor]]]:
    """The first and the second pass; the Triton kernels count no histogram."""
    match backend(logits):
        case "numba":
            return _collected_by(cpu.loss_sums), cpu.weighted_loss
        case "triton" if not histogram:
            from meanshifter.ops import cuda_losses

            return _collected_by(cuda_losses.loss_sums), cuda_losses.weighted_loss
    return _collect, _make


def _collected_by(kernels: Callable[..., tuple[Tensor, Tensor, Tensor | None, Tensor | None]]) -> Callable[..., Sums]:
    return lambda pixels, **wanted: Sums(*kernels(pixels, **wanted))


def _collect(pixels: Pixels, *, losses: bool, overlap: bool, errors: bool) -> Sums:
    """The first pass, tile by tile on any device."""
    z, K = pixels.logits, pixels.logits.shape[1]
    rows, cols = axis_matrices(pixels.axes, z)
    counts = torch.zeros(2, K, BINS, dtype=torch.float64, device=z.device) if errors else None
    per_pixel, per_class = z.new_zeros(pixels.labels.shape if losses else 0), z.new_zeros((3, K) if overlap else 0)
    found = Sums(per_pixel, per_class, counts, None)
    for b in range(len(z)):
        for tile in tiles(rows, cols, tile_side(K, z.device)):
            target, count, _ = _targets(pixels, b, tile)
            log_q = tile.upsample(z[b], rows, cols).log_softmax(0)
            if losses:
                own = -log_q.gather(0, target)[0]
                found.losses[b, tile.out_rows, tile.out_cols] = own.clamp(min=0) + 0.0  # never -0.0
            q, hit = log_q.exp_(), torch.zeros_like(log_q).scatter_(0, target, count[None])
            if counts is not None:
                q_own = q.gather(0, target)
                counts[0].view(-1).index_add_(0, (_bins(1 - q_own) + BINS * target).flatten(), count.flatten().double())
                counts[1].view(-1).index_add_(0, _places(q).flatten(), (count - hit).flatten().double())
            if overlap:
                found.overlap.add_(torch.stack([(q * hit).sum((1, 2)), (q * count).sum((1, 2)), hit.sum((1, 2))]))
    return found


def _make(pixels: Pixels, recipe: Recipe, *, with_gradient: bool) -> tuple[Tensor, Tensor]:
    """The second pass, tile by tile on any device: the sum over pixels and its gradient, with that of the region.

    With p = q_t, m the count of a pixel, g the focal exponent and w the class weights, the derivative of the focal loss
    m w_t (1 - p)^g (-log p) in the logits is -m w_t ((1 - p)^g - g p (1 - p)^(g - 1) log p) ([k = t] - q_k); that of a
    function with derivatives d_k in q_k is q_k (d_k - sum_j q_j d_j).
    """
    z, weight = pixels.logits, recipe.weight
    K = len(weight)
    rows, cols = axis_matrices(pixels.axes, z)
    gradient, total = torch.zeros_like(z) if with_gradient else z.new_empty(0), z.new_zeros(())
    smooth = (recipe.smoothing / K * weight)[:, None, None]
    for b in range(len(z)):
        for tile in tiles(rows, cols, tile_side(K, z.device)):
            target, count, valid = _targets(pixels, b, tile)
            own_weight = weight[target[0]] * count
            hard = 1.0 if recipe.hard is None else recipe.hard[b, tile.out_rows, tile.out_cols]
            kept = recipe.cross_entropy * count * hard
            keep = recipe.cross_entropy * (1 - recipe.smoothing) * own_weight * hard
            log_q = tile.upsample(z[b], rows, cols).log_softmax(0)
            own = log_q.gather(0, target)[0]
            loss = _times(keep, -own)
            if recipe.smoothing > 0:
                loss -= _times(kept, (smooth * log_q).sum(0))
            value, slope_of_own = _focal(own, recipe.gamma)
            scale = recipe.focal * own_weight
            loss += _times(scale, value)
            q, d = log_q.exp_(), torch.zeros_like(log_q)
            if recipe.slopes is not None:
                d, value = _lovasz(recipe.slopes, q, target)
                loss += count * value
            total += loss.where(valid, 0).sum()
            if not with_gradient:
                continue
            keep = keep + _times(scale, slope_of_own)
            slope = q * (keep + smooth.sum() * kept) - smooth * kept
            if recipe.region is not None:
                d = d + recipe.region[0, :, None, None]
                d = d.scatter_add(0, target, recipe.region[1][target])
            if recipe.region is not None or recipe.slopes is not None:
                slope += q * (d - (q * d).sum(0)) * count
            slope.scatter_add_(0, target, -keep[None])
            gradient[b, :, tile.in_rows, tile.in_cols] += tile.fold(slope.where(valid, 0), rows, cols)
    return total, gradient


def _targets(
    pixels: Pixels, b: int, tile: Tile
) -> tuple[Integer[Tensor, "1 R C"], Float[Tensor, "R C"], Bool[Tensor, "R C"]]:
    """The class of each pixel, how often it counts (NaN if the label is not a class), and whether it is labeled."""
    target = pixels.labels[b, tile.out_rows, tile.out_cols].long()
    valid, known = target != pixels.ignore_index, (target >= 0) & (target < pixels.logits.shape[1])
    count = pixels.logits.new_ones(target.shape)
    if pixels.near is not None:
        count = count.masked_fill(pixels.near[b, tile.out_rows, tile.out_cols], pixels.near_weight)
    return target.where(known, 0)[None], count.where(known, math.nan).where(valid, 0), valid


def _times(factor: Tensor, value: Tensor) -> Tensor:
    """`factor` times `value`, where 0 times infinity is 0."""
    return torch.where(factor == 0, factor, factor * value)


def _focal(own: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """The focal loss of log q_t, and the negative of its derivative in log q_t."""
    if gamma == 0:
        return -own, torch.ones_like(own)
    rest = -torch.expm1(own).clamp(max=0)
    rate = rest**gamma
    further = torch.where((rest > 0) & (rest < 1), -gamma * own * own.exp() * rest ** (gamma - 1), 0)
    return rate * -own, rate + further


def dice_slopes(overlap: Float[Tensor, "3 K"], factor: float) -> tuple[Float[Tensor, ""], Float[Tensor, "2 K"]]:
    """`factor` times the Dice loss of the sums of a `Sums`, and its derivatives a_k + b_k [t = k] in q_k."""
    inside, predicted, labeled = overlap
    present = (labeled > 0) | labeled.isnan()
    whole = torch.where(present, predicted + labeled, 1)
    share = factor * present.to(whole.dtype) / present.sum().clamp(min=1)
    score = 2 * inside / whole
    return (share * (1 - score)).sum(), torch.stack([share * score / whole, -2 * share / whole])


def lovasz_slopes(errors: Float[Tensor, "2 K bins"], factor: float) -> Float[Tensor, "2 K bins"]:
    """`factor` times the derivatives of the Lovász loss in the errors that `Sums.errors` counts.

    With G pixels of a class, of which F have larger errors, and B others with larger errors, the Jaccard loss is
    1 - (G - F) / (G + B). It grows by 1 / (G + B) with a pixel of the class, and by (G - F) / (G + B)^2 with another.
    F and B are taken at the middle of the bin.
    """
    labeled = errors[0].sum(1, keepdim=True)
    present = (labeled > 0) | labeled.isnan()
    inside, outside = errors.flip(2).cumsum(2).flip(2) - errors / 2
    union = torch.where(present, labeled + outside, 1)
    slopes = torch.stack([1 / union, (labeled - inside) / union**2])
    return factor * present.to(slopes.dtype) / present.sum().clamp(min=1) * slopes


def _lovasz(
    slopes: Float[Tensor, "2 K bins"], q: Float[Tensor, "K R C"], target: Integer[Tensor, "1 R C"]
) -> tuple[Float[Tensor, "K R C"], Float[Tensor, "R C"]]:
    """The derivatives of the Lovász loss in q_k, and what each pixel adds to it."""
    of_own = slopes[0].view(-1)[_bins(1 - q.gather(0, target)) + BINS * target].to(q.dtype)
    d = slopes[1].view(-1)[_places(q)].to(q.dtype).scatter(0, target, -of_own)
    return d, (q * d).sum(0) + of_own[0]


def _bins(errors: Tensor) -> Integer[Tensor, ...]:
    return (errors * BINS).long().clamp(0, BINS - 1)  # NaN has no bin of its own


def _places(q: Float[Tensor, "K R C"]) -> Integer[Tensor, "K R C"]:
    """The bin of each error q_k in a flat histogram (K, bins)."""
    return _bins(q) + BINS * torch.arange(len(q), device=q.device)[:, None, None]


def _check_terms(factors: dict[str, float], ohem_share: float | None, boundary_radius: int) -> None:
    for name, value in factors.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{name}: {value}; it must be a finite number of at least 0")
    if ohem_share is not None and not 0 < ohem_share <= 1:
        raise InputError(f"ohem_share: {ohem_share}; it must be above 0 and at most 1, or None for all labeled pixels")
    if boundary_radius < 1:
        raise InputError(f"boundary_radius: {boundary_radius}; it must be at least 1")
