"""The plain ViT that is built without timm: tensors, arithmetic and random draws are those of timm's."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

from meanshifter.errors import InputError
from meanshifter.model.encoder import Encoder
from meanshifter.model.saving import read_model
from meanshifter.model.segmenter import Segmenter
from meanshifter.model.vit import STANDARD, Block, DropPath, VisionTransformer, create_standard
from tests.model.test_encoders import tiny

TINY = {"depth": 2, "embed_dim": 24, "num_heads": 3}
SIZE = (64, 96)


def theirs(name: str, **options: Any) -> Any:
    return timm.create_model(name, img_size=SIZE, num_classes=0, dynamic_img_size=True, **options)


def ours(name: str, drop_path: float = 0.0, **options: Any) -> VisionTransformer:
    found = create_standard(name, SIZE, drop_path, options)
    assert found is not None
    return found


@pytest.mark.parametrize("name", STANDARD)
def test_every_standard_name_has_timms_shapes_and_defaults(name: str) -> None:
    with torch.device("meta"):
        a = theirs(name)
        b = ours(name)

    assert type(a) is TimmVisionTransformer
    assert {key: value.shape for key, value in a.state_dict().items()} == {
        key: value.shape for key, value in b.state_dict().items()
    }
    assert [block.attn.num_heads for block in a.blocks] == [block.attn.num_heads for block in b.blocks]  # type: ignore[union-attr]
    norms = ({m.eps for m in vit.modules() if isinstance(m, torch.nn.LayerNorm)} for vit in (a, b))
    assert next(norms) == next(norms) == {1e-6}


@pytest.mark.parametrize("options", [{}, {"patch_size": 8}, {"mlp_ratio": 2.0, "patch_size": 12}])
def test_random_weights_and_what_is_drawn_after_them_are_those_of_timm(options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    a, after_a = theirs("vit_tiny_patch16_224", **TINY, **options), torch.rand(3)
    torch.manual_seed(3)
    b, after_b = ours("vit_tiny_patch16_224", **TINY, **options), torch.rand(3)

    assert list(a.state_dict()) == list(b.state_dict())
    assert all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())
    assert torch.equal(after_a, after_b)


@pytest.mark.parametrize("sides", [SIZE, (32, 128), (96, 96), (16, 16)])
@pytest.mark.parametrize("fused", [True, False])
def test_tokens_are_those_of_timm_at_any_grid(sides: tuple[int, int], fused: bool) -> None:
    torch.manual_seed(0)
    a = theirs("vit_tiny_patch16_224", **TINY).eval()
    b = ours("vit_tiny_patch16_224", **TINY).eval()
    b.load_state_dict(a.state_dict())
    for module in (*a.modules(), *b.modules()):
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    images = torch.randn(2, 3, *sides)

    torch.testing.assert_close(b.forward_features(images), a.forward_features(images), atol=1e-6, rtol=1e-6)


def test_stochastic_depth_and_gradients_are_those_of_timm() -> None:
    torch.manual_seed(0)
    a = theirs("vit_tiny_patch16_224", drop_path_rate=0.5, **TINY)
    b = ours("vit_tiny_patch16_224", drop_path=0.5, **TINY)
    b.load_state_dict(a.state_dict())
    images = torch.randn(4, 3, *SIZE)
    for vit in (a, b):
        torch.manual_seed(1)
        vit.train().forward_features(images).square().mean().backward()

    assert isinstance(b.blocks[1], Block)
    assert isinstance(b.blocks[1].drop_path1, DropPath)
    assert b.blocks[1].drop_path1.drop_prob == 0.5
    for own, expected in zip(b.parameters(), a.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad, atol=1e-6, rtol=1e-5)


def test_checkpointing_keeps_tokens_and_gradients() -> None:
    vit = ours("vit_tiny_patch16_224", **TINY)
    images = torch.randn(1, 3, *SIZE)
    plain = torch.autograd.grad(vit.forward_features(images).square().sum(), list(vit.parameters()))
    vit.set_grad_checkpointing()

    again = torch.autograd.grad(vit.forward_features(images).square().sum(), list(vit.parameters()))

    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(plain, again, strict=True))


def test_layers_for_learning_rate_decay_are_those_of_timm() -> None:
    from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]

    def groups(vit: Any) -> list[Any]:
        names = {id(parameter): name for name, parameter in vit.named_parameters()}
        found = param_groups_layer_decay(vit, 0.05, layer_decay=0.5)
        return [(one["lr_scale"], one["weight_decay"], {names[id(p)] for p in one["params"]}) for one in found]

    assert groups(ours("vit_tiny_patch16_224", **TINY)) == groups(theirs("vit_tiny_patch16_224", **TINY))


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"num_heads": 5}, "num_heads"),
        ({"patch_size": 128}, "128"),
        ({"depth": True, "nonsense": 1}, "nonsense"),
    ],
)
def test_invalid_arguments_are_refused_as_for_any_encoder(options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(InputError, match=wrong):
        Encoder("vit_tiny_patch16_224", SIZE, arguments=options)


def test_arguments_that_only_timm_knows_are_built_by_timm() -> None:
    encoder = Encoder("vit_tiny_patch16_224", SIZE, arguments={**TINY, "init_values": 0.1})

    assert isinstance(encoder.vit, TimmVisionTransformer)
    assert "blocks.0.ls1.gamma" in encoder.vit.state_dict()


def test_a_saved_model_is_read_without_drawing_random_numbers(tmp_path: Any) -> None:
    model = tiny("vit_tiny_patch16_224")
    model.save(tmp_path / "model")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)

    again = read_model(tmp_path / "model")

    assert torch.equal(torch.rand(1), expected)
    assert isinstance(again, Segmenter)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())


def test_predicting_imports_neither_timm_nor_numba(tmp_path: Any) -> None:
    model = tiny("vit_tiny_patch16_224")
    model.save(tmp_path / "model")
    code = (
        "import sys, numpy as np; from PIL import Image; from meanshifter.cli.main import main; "
        f"Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(r'{tmp_path / 'a.png'}'); "
        f"status = main(['predict', r'{tmp_path / 'model'}', r'{tmp_path / 'a.png'}', '--out', r'{tmp_path}/out']); "
        "found = {'timm', 'torchvision', 'numba', 'torch._dynamo'} & {*sys.modules}; "
        "sys.exit(f'{status} {found}' if status or found else 0)"
    )

    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "out" / "a.png").is_file()
