"""The patch embedding's product, with rounding that encoders do not feel."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchProjection(nn.Conv2d):
    """The convolution of a patch embedding; at inference on what is left of patches when their means are taken out.

    W x = W (x − x̄) + (Σ W) x̄ with the mean x̄ of a patch's channel. In a smooth patch, as of sky or of a wall, all
    products of the plain sum are large and nearly cancel; what float32 rounds away there, layer norms enlarge.
    Training, whose noise is larger, is left as it is, and so are 16 bits, which would round Σ W, and the meta device,
    which has no values to round and on which the plain product is counted.
    """

    @classmethod
    def of(cls, plain: nn.Conv2d) -> PatchProjection:
        """The same convolution with the same parameters, which are shared."""
        size = cast(tuple[int, int], plain.kernel_size)
        own = cls(plain.in_channels, plain.out_channels, size, size, bias=plain.bias is not None, device="meta")
        own.weight, own.bias = plain.weight, plain.bias
        return own.train(plain.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Images (B, C, H, W) of whole patches to (B, D, h, w)."""
        if self.training or input.is_meta or _has_16_bits(input):
            return super().forward(input)
        means = F.avg_pool2d(input, self.kernel_size)
        (B, C, h, w), (P, Q) = means.shape, self.kernel_size
        rest = input.reshape(B, C, h, P, w, Q) - means[:, :, :, None, :, None]
        return super().forward(rest.reshape(input.shape)) + F.conv2d(means, self.weight.sum((2, 3), keepdim=True))


def _has_16_bits(images: Tensor) -> bool:
    device = images.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return autocast or images.dtype in (torch.float16, torch.bfloat16)


def center_patches(embed: nn.Module) -> None:
    """Let a patch embedding of timm whose patches do not overlap project them so."""
    proj = getattr(embed, "proj", None)
    if type(proj) is nn.Conv2d and proj.kernel_size == proj.stride != (1, 1):
        embed.proj = PatchProjection.of(proj)
