"""Mean shift from pixels against its equations, cell by cell in float64 NumPy, and in complete models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

import meanshifter as ms
from meanshifter.model.config import ModelConfig, PixelShiftConfig
from meanshifter.model.pixel_shift import PixelShift, _around
from tests import commands

COMPILED = """
import torch
from meanshifter.model.pixel_shift import _around

x = torch.randn(1, 4, 5, 3).permute(0, 3, 1, 2).requires_grad_()
found = [torch.autograd.grad(run(x).square().sum(), x)[0] for run in (_around, torch.compile(_around))]
torch.testing.assert_close(*found)
"""

SMALL: dict[str, Any] = {"encoder_args": {"embed_dim": 24, "depth": 1, "num_heads": 3}, "drop_path": 0.0}


def block_of(factor: int, layers: int, anchor: float = 0.5) -> PixelShift:
    torch.manual_seed(0)
    block = PixelShift(6, 8, PixelShiftConfig(layers, factor, channels=5, spatial_sigma=0.5, anchor=anchor)).double()
    torch.nn.init.normal_(block.project.weight, std=0.5)
    return block


def definition(
    block: PixelShift, looks: npt.NDArray[Any], z: npt.NDArray[Any], logits: npt.NDArray[Any], layers: int
) -> npt.NDArray[Any]:
    """The logits (K, h·s, w·s) of one image after some steps, from the features (C, h·s, w·s) of its cells."""
    s = block.factor
    E, e = (p.detach().numpy() for p in block.project.parameters())
    K, h, w = logits.shape
    out = np.empty((K, s * h, s * w))
    for y in range(s * h):
        for x in range(s * w):
            own = (y // s, x // s)
            first = r = looks[:, y, x]
            around = [(own[0] + i, own[1] + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
            inside = [(min(max(i, 0), h - 1), min(max(j, 0), w - 1)) for i, j in around]
            cells = [looks[:, s * i : s * i + s, s * j : s * j + s].mean((1, 2)) for i, j in inside]
            keys = np.stack([E @ z[place] + e + mean for place, mean in zip(inside, cells, strict=True)])
            away = [((y + 0.5) / s - i - 0.5) ** 2 + ((x + 0.5) / s - j - 0.5) ** 2 for i, j in around]
            for _ in range(layers):
                exponents = keys @ r / np.sqrt(len(r)) - np.array(away) / (2 * 0.5**2)
                weights = np.exp(exponents - exponents.max())
                weights /= weights.sum()
                r = block.anchor * first + (1 - block.anchor) * (weights @ keys)
            out[:, y, x] = sum(weight * logits[:, i, j] for weight, (i, j) in zip(weights, inside, strict=True))
    return out


@pytest.mark.parametrize(("factor", "anchor"), [(1, 0.5), (2, 0.0), (4, 0.3), (8, 1.0)])
def test_steps_follow_the_equations(factor: int, anchor: float) -> None:
    block = block_of(factor, 1, anchor)
    grid = (3, 2)
    images = torch.randn(2, 3, 24, 16, dtype=torch.float64)
    tokens, logits = torch.randn(2, 6, 6, dtype=torch.float64), torch.randn(2, 4, *grid, dtype=torch.float64)
    with torch.no_grad():
        fine = [z.numpy() for z in block.readouts(images, tokens, grid, logits, range(4)).values()]
        looks = block.pixel_features(F.pad(images, (0, block.odd, 0, block.odd))).numpy()
    upsampled = F.interpolate(logits, scale_factor=float(factor), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(fine[0], upsampled.numpy(), atol=1e-6)
    for b in range(2):
        z = tokens[b].reshape(*grid, 6).numpy()
        for layers in (1, 2, 3):
            expected = definition(block, looks[b], z, logits[b].numpy(), layers)
            np.testing.assert_allclose(fine[layers][b], expected, atol=1e-10)


def test_a_model_of_an_earlier_version_has_no_anchor() -> None:
    model = ms.create_model("meanshifter-pixel-ti16", 3, image_size=32, **SMALL)
    stored = model.config.to_dict()
    assert ModelConfig.from_dict(stored).pixel_shift == PixelShiftConfig(factor=4, anchor=0.5)
    del stored["pixel_shift"]["anchor"]
    assert ModelConfig.from_dict(stored).pixel_shift == PixelShiftConfig(factor=4, anchor=0.0)


def test_several_numbers_of_steps_share_a_loss() -> None:
    torch.manual_seed(0)
    model = ms.create_model("meanshifter-pixel-ti16", 3, image_size=32, **SMALL)
    images, labels = torch.randn(2, 3, 32, 48), torch.randint(3, (2, 32, 48))
    one, two = (model(images, steps, labels=labels) for steps in (1, 2))
    both = model(images, [1, 2], labels=labels)
    assert not torch.equal(one.logits, two.logits)
    torch.testing.assert_close(both.loss, (one.loss + two.loss) / 2)
    torch.testing.assert_close(both.logits, two.logits)
    for found, alone in zip(model(images, [1, 2]), (one, two), strict=True):
        torch.testing.assert_close(found, alone.logits)


def test_neighbors_are_those_of_a_repeated_border() -> None:
    x = torch.randn(1, 3, 4, 5)
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    for n, neighbor in enumerate(_around(x).unbind(1)):
        i, j = divmod(n, 3)
        assert torch.equal(neighbor, padded[..., i : i + 4, j : j + 5])


def test_the_gradient_of_neighbors_compiles() -> None:
    """Tensors are channels-last, as linear layers give them."""
    done = commands.run(code=COMPILED)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(("patch", "factor"), [(14, 2), (14, 14), (6, 2)])
def test_an_odd_window_has_its_extra_pixel_after_the_cell(patch: int, factor: int) -> None:
    block = PixelShift(6, patch, PixelShiftConfig(1, factor, channels=5)).double()
    side, images = patch // factor, torch.randn(1, 3, 3 * patch, 2 * patch, dtype=torch.float64)
    first = block.pixel_features[0]
    assert isinstance(first, torch.nn.Conv2d)
    seen: list[torch.Tensor] = []
    first.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    tokens, logits = torch.randn(1, 6, 6).double(), torch.randn(1, 4, 3, 2).double()
    fine = block.readouts(images, tokens, (3, 2), logits, [1])[1]
    assert fine.shape == (1, 4, 3 * factor, 2 * factor)
    padded = F.pad(images, (side // 2, side - side // 2) * 2)
    torch.testing.assert_close(seen[0], F.conv2d(padded, first.weight, first.bias, stride=side))


@pytest.mark.parametrize("size", [(32, 48), (37, 50)])
def test_every_cell_has_logits_and_label_maps_use_them(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = ms.create_model("meanshifter-pixel-ti16", num_classes=5, image_size=48, **SMALL).eval()
    assert model.output_stride == 4
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    with torch.no_grad():
        logits = model(model.normalize(pixels))
    h, w = logits.shape[-2:]
    assert (h, w) == (-(-size[0] // 4), -(-size[1] // 4))
    full = F.interpolate(logits, (4 * h, 4 * w), mode="bilinear", align_corners=False)[..., : size[0], : size[1]]
    labels = ms.Predictor(model, window=None, short_side=None)(pixels).labels
    best = full.topk(2, dim=1).values[0]
    clear = (best[0] - best[1] > 1e-4).numpy()
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(labels[clear], full.argmax(1)[0].numpy()[clear])


def test_zero_steps_equal_the_plain_decoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ms.create_model("meanshifter-pixel-ti16", num_classes=5, image_size=48, **SMALL).eval()
    plain = ms.create_model("segmenter-ti16", num_classes=5, image_size=48, **SMALL).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    with torch.no_grad():
        fine = model(model.normalize(pixels), mean_shift_layers=0)
        coarse = plain(plain.normalize(pixels))
    torch.testing.assert_close(fine, F.interpolate(coarse, scale_factor=4, mode="bilinear", align_corners=False))
    model.save(tmp_path / "model")
    again = ms.load_model(tmp_path / "model")
    assert again.config == model.config
    with torch.no_grad():
        torch.testing.assert_close(again(again.normalize(pixels)), model(model.normalize(pixels)))


@pytest.mark.parametrize(
    ("preset", "settings", "message"),
    [
        (
            "meanshifter-pixel-ti16",
            {"pixel_shift": {"factor": 3}},
            "pixel_shift.factor: 3 does not divide the patch size 16",
        ),
        ("meanshifter-pixel-ti16", {"pixel_shift": {"steps": 1}}, "pixel_shift.steps: unknown; fields are"),
        (
            "meanshifter-pixel-ti16",
            {"pixel_shift": {"spatial_sigma": 0.0}},
            "spatial_sigma: 0.0 is not",
        ),
        ("meanshifter-ti16", {"pixel_shift": {}}, "'meanshifter-pixel' preset"),
    ],
)
def test_invalid_settings_are_refused(preset: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ms.InputError, match=message):
        ms.create_model(preset, num_classes=3, **settings)
