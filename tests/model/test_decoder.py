"""The decoders against the Segmenter paper (section 3.2), written out in float64 NumPy."""

from __future__ import annotations

from collections.abc import Callable
from math import erf

import numpy as np
import numpy.typing as npt
import pytest
import torch

from meanshifter.model.decoder import LinearDecoder, MaskTransformer

Array = npt.NDArray[np.float64]
Weights = Callable[[str], Array]


def linear(x: Array, weights: Weights, name: str, bias: bool = True) -> Array:
    out = x @ weights(f"{name}.weight").T
    return out + weights(f"{name}.bias") if bias else out


def layer_norm(x: Array, weights: Weights, name: str, eps: float = 1e-5) -> Array:
    centered = x - x.mean(-1, keepdims=True)
    normal = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + eps)
    return np.asarray(normal * weights(f"{name}.weight") + weights(f"{name}.bias"))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def attention(x: Array, weights: Weights, name: str, heads: int) -> Array:
    B, N, D = x.shape
    q, k, v = linear(x, weights, f"{name}.qkv").reshape(B, N, 3, heads, D // heads).transpose(2, 0, 3, 1, 4)
    mixed = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(D // heads)) @ v
    return linear(mixed.transpose(0, 2, 1, 3).reshape(B, N, D), weights, f"{name}.proj")


def gelu(x: Array) -> Array:
    return np.asarray(x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2))))


def mask_transformer(z: Array, weights: Weights, layers: int, heads: int) -> Array:
    """Masks(z', c) = norm(z' W_p) · norm(c' W_c), after `layers` pre-norm blocks over patches and classes."""
    B, N, _ = z.shape
    classes = np.repeat(weights("class_embeddings"), B, 0)
    x = np.concatenate([linear(z, weights, "project"), classes], 1)
    for layer in range(layers):
        name = f"blocks.{layer}"
        x = x + attention(layer_norm(x, weights, f"{name}.norm1"), weights, f"{name}.attn", heads)
        hidden = gelu(linear(layer_norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp.fc1"))
        x = x + linear(hidden, weights, f"{name}.mlp.fc2")
    x = layer_norm(x, weights, "norm")
    patches = linear(x[:, :N], weights, "patch_projection", bias=False)
    classes = linear(x[:, N:], weights, "class_projection", bias=False)
    patches /= np.linalg.norm(patches, axis=-1, keepdims=True)
    classes /= np.linalg.norm(classes, axis=-1, keepdims=True)
    return layer_norm(patches @ classes.swapaxes(-1, -2), weights, "mask_norm")


def shake(module: torch.nn.Module) -> Weights:
    """Set random values everywhere, so that every part matters."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    state = module.state_dict()
    return lambda name: np.asarray(state[name].double().numpy())


@pytest.mark.parametrize(("layers", "heads"), [(0, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_mask_transformer_follows_the_paper(layers: int, heads: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    decoder = MaskTransformer(24, 5, layers, heads).to(dtype)
    weights = shake(decoder)
    z = torch.randn(2, 12, 24, dtype=dtype)
    with torch.no_grad():
        logits = decoder(z, (3, 4)).double().numpy()
    expected = mask_transformer(z.double().numpy(), weights, layers, heads)
    np.testing.assert_allclose(logits, expected.swapaxes(1, 2).reshape(2, 5, 3, 4), atol=tolerance, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_linear_decoder_is_one_matrix(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    decoder = LinearDecoder(8, 5).to(dtype)
    weights = shake(decoder)
    z = torch.randn(2, 12, 8, dtype=dtype)
    with torch.no_grad():
        logits = decoder(z, (3, 4)).double().numpy()
    expected = linear(z.double().numpy(), weights, "head").swapaxes(1, 2).reshape(2, 5, 3, 4)
    np.testing.assert_allclose(logits, expected, atol=tolerance, rtol=0)


def test_the_gradients_of_both_decoders_are_right() -> None:
    torch.manual_seed(0)
    for decoder in (LinearDecoder(6, 3), MaskTransformer(6, 3, 1, 2)):
        decoder.double()
        shake(decoder)
        z = torch.randn(1, 4, 6, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda tokens, d=decoder: d(tokens, (2, 2)), (z,))
