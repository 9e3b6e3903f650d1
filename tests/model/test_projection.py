"""The patch projection equals the convolution, with less rounding error."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import meanshifter as ms
from meanshifter.model.encoder import PatchProjection, center_patches


def convolution(size: int = 16, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(3, 24, size, size, bias=bias).eval()


def smooth(*size: int) -> Tensor:
    """Images that hardly vary within a patch and are far from zero, such as a bright sky."""
    torch.manual_seed(1)
    return 2 + F.interpolate(0.05 * torch.randn(2, 3, 2, 2), size, mode="bilinear")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(32, 48), (16, 16)])
def test_the_projection_is_the_sum_over_patches(bias: bool, size: tuple[int, int]) -> None:
    plain = convolution(bias=bias).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64) + 3
    patches = images.unfold(2, 16, 16).unfold(3, 16, 16)
    expected = torch.einsum("bchwij,dcij->bdhw", patches, plain.weight)
    if plain.bias is not None:
        expected = expected + plain.bias[:, None, None]
    torch.testing.assert_close(PatchProjection.of(plain)(images), expected, atol=1e-12, rtol=1e-12)


def test_smooth_patches_are_nearer_to_float64() -> None:
    plain, images = convolution(), smooth(128, 128)
    exact = deepcopy(plain).double()(images.double())
    error, plain_error = ((conv(images) - exact).square().mean() for conv in (PatchProjection.of(plain), plain))
    assert error < plain_error / 4


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_training_and_16_bits_keep_the_plain_convolution(form: torch.memory_format) -> None:
    plain, images = convolution(), smooth(64, 64).contiguous(memory_format=form)
    own = PatchProjection.of(plain)
    assert not torch.equal(own(images), plain(images))
    assert torch.equal(deepcopy(own).train()(images), plain(images))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(own(images), plain(images))
    assert torch.equal(deepcopy(own).bfloat16()(images.bfloat16()), deepcopy(plain).bfloat16()(images.bfloat16()))


def test_the_meta_device_gets_the_size_of_the_result() -> None:
    projected = PatchProjection.of(convolution()).to("meta")(torch.empty(2, 3, 32, 48, device="meta"))
    assert projected.shape == (2, 24, 2, 3)


def test_parameters_are_the_same_ones_under_the_same_names() -> None:
    embed = nn.Module()
    plain = embed.proj = convolution()
    names = list(embed.state_dict())
    center_patches(embed)
    assert isinstance(embed.proj, PatchProjection)
    assert embed.proj.weight is plain.weight
    assert embed.proj.bias is plain.bias
    assert not embed.proj.training
    assert list(embed.state_dict()) == names


@pytest.mark.parametrize("other", [nn.Conv2d(3, 8, 4, 2), nn.Conv2d(3, 8, 1), nn.Identity()])
def test_other_convolutions_are_kept(other: nn.Module) -> None:
    embed = nn.Module()
    embed.proj = other
    center_patches(embed)
    assert embed.proj is other


def test_models_use_the_projection() -> None:
    model = ms.create_model("segmenter-ti16", num_classes=2, image_size=32, encoder_args={"depth": 1})
    assert isinstance(model.encoder.vit.patch_embed.proj, PatchProjection)
