"""Corner patches of pretrained encoders, which act as registers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.layers.pos_embed import resample_abs_pos_embed

import meanshifter as ms
from meanshifter.model import vits
from meanshifter.model.encoder_weights import average_corner_positions
from meanshifter.training.parsing import parse_recipe
from meanshifter.training.setup import build_model


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_corners_get_the_mean_of_their_neighbors_and_nothing_else_changes(prefix: int) -> None:
    positions = torch.randn(1, prefix + 49, 3, generator=torch.Generator().manual_seed(0))
    averaged = average_corner_positions(positions)
    before, after = (table[0, prefix:].view(7, 7, 3).numpy() for table in (positions, averaged))
    for y, x, one, other in (
        (0, 0, (0, 1), (1, 0)),
        (0, 6, (0, 5), (1, 6)),
        (6, 0, (6, 1), (5, 0)),
        (6, 6, (6, 5), (5, 6)),
    ):
        np.testing.assert_allclose(after[y, x], (before[one] + before[other]) / 2, rtol=1e-6)
        after[y, x] = before[y, x]
    np.testing.assert_array_equal(after, before)
    assert torch.equal(averaged[0, :prefix], positions[0, :prefix])


@pytest.mark.parametrize("count", [4, 5, 33])
def test_positions_without_a_square_grid_are_refused(count: int) -> None:
    with pytest.raises(ms.InputError, match=f"average_corners: {count} "):
        average_corner_positions(torch.zeros(1, count, 3))


def test_corner_tokens_of_imagenet_weights_are_like_others_once_averaged(shared: Path) -> None:
    weights = next((shared / "weights").glob("vit_tiny*.safetensors"))
    photo = next((shared / "data/ade20k_sample/images/validation").glob("*.jpg"))
    pixels = np.asarray(Image.open(photo).convert("RGB").resize((256, 256)), np.float32)
    image = torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]
    ratios = []
    for average in (False, True):
        model = ms.create_model(
            "segmenter-ti16",
            num_classes=2,
            image_size=256,
            encoder="vit_tiny_patch16_224",
            encoder_weights=weights,
            average_corners=average,
        ).eval()
        norms: list[torch.Tensor] = []
        model.encoder.vit.blocks[-1].register_forward_hook(lambda _m, _a, out, to=norms: to.append(out.norm(dim=-1)))
        with torch.no_grad():
            model(image)
        grid = norms[0][0, 1:].view(16, 16)
        ratios.append(float(grid[[0, 0, -1, -1], [0, -1, 0, -1]].max() / grid[2:-2, 2:-2].mean()))
    assert ratios[0] > 10
    assert ratios[1] < 3


def test_the_recipe_for_a_folder_averages_corners(tmp_path: Path, shared: Path) -> None:
    weights = next((shared / "weights").glob("vit_tiny*.safetensors"))
    labels = ms.LabelSpace.unnamed(2)
    grids = []
    for average in ("true", "false"):
        fields = [
            "--model.encoder=vit_tiny_patch16_224",
            f"--model.encoder_weights={weights}",
            "--augment.crop=[168,168]",  # 14×14 patches of 12 pixels, so that no position is resampled
        ]
        given = fields if average == "true" else [*fields, "--model.average_corners=false"]
        positions = build_model(parse_recipe(str(tmp_path), given), labels).encoder.vit.pos_embed
        assert positions is not None
        grids.append(positions)
    assert torch.equal(grids[0], average_corner_positions(grids[1]))


def test_weights_of_timm_are_averaged_before_they_are_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def fetched(name: str, *, pretrained: bool, pretrained_cfg_overlay: None = None, **arguments: Any) -> Any:
        torch.manual_seed(int(pretrained))
        return create(name, **arguments)

    monkeypatch.setattr(timm, "create_model", fetched)
    monkeypatch.setattr(vits, "_cached_weights", lambda _encoder: None)
    model = ms.create_model(
        "segmenter-ti16",
        num_classes=2,
        image_size=256,
        encoder="vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        encoder_args={"depth": 1},
        encoder_weights="timm",
        average_corners=True,
    )
    native = fetched("vit_tiny_patch16_224", pretrained=True, num_classes=0, depth=1).pos_embed.detach()
    expected = resample_abs_pos_embed(average_corner_positions(native), [16, 16], num_prefix_tokens=1)
    positions = model.encoder.vit.pos_embed
    assert positions is not None
    torch.testing.assert_close(positions.detach(), expected)
