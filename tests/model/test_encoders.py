"""Every family of plain ViTs: tokens equal to timm's at any grid, training, saving, and what is no plain ViT."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models import beit, vision_transformer_sam
from torch import Tensor, nn

import meanshifter as ms
from meanshifter.export.encoder import SizedEncoder
from meanshifter.model.encoder import Encoder
from meanshifter.model.encoder_weights import load_encoder_weights
from meanshifter.model.vits import plain_names
from meanshifter.training.optimizer import SampledDropPath, SampledDropPaths, create_optimizer
from meanshifter.training.sections import OptimizerConfig

TINY: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2}
SAM: dict[str, Any] = {**TINY, "global_attn_indexes": [1], "window_size": 3, "neck_chans": 24}
FAMILIES: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": TINY,
    "deit_tiny_distilled_patch16_224": TINY,
    "deit3_small_patch16_224": TINY,
    "vit_small_patch14_reg4_dinov2": TINY,
    "vit_small_patch16_dinov3": TINY,
    "vit_small_plus_patch16_dinov3_qkvb": TINY,
    "eva02_tiny_patch14_224": TINY,
    "vit_pe_core_tiny_patch16_384": TINY,
    "vit_small_patch16_rope_mixed_ape_224": TINY,
    "vit_medium_patch16_rope_reg1_gap_256": TINY,
    "vit_base_patch16_sapiens2": {**TINY, "num_kv_heads": 1},
    "beit_base_patch16_224": TINY,
    "samvit_base_patch16": SAM,
}


def patch_of(name: str) -> int:
    return 14 if "patch14" in name else 16


def randomized(module: nn.Module) -> None:
    """Weights of every kind at random: timm initializes biases, scales and bias tables to constants."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)


def tiny(name: str, preset: str = "segmenter-ti16", **settings: Any) -> ms.Segmenter:
    torch.manual_seed(0)
    side = 4 * patch_of(name)
    settings = {"num_classes": 3, "image_size": side, "encoder_args": FAMILIES[name], **settings}
    model = ms.create_model(preset, encoder=name, **settings)
    randomized(model.encoder)
    return model.eval()


def timms_tokens(name: str, vit: nn.Module, images: Tensor) -> Tensor:
    """Patch tokens of `forward_features` of timm's model, with its final norm at the tokens."""
    side, any_size = 4 * patch_of(name), not name.startswith(("beit", "samvit"))
    size: dict[str, Any] = {"dynamic_img_size": True} if any_size else {}
    theirs: Any = timm.create_model(name, img_size=side, num_classes=0, **size, **FAMILIES[name]).double().eval()
    if isinstance(getattr(theirs, "norm", None), nn.Identity):
        theirs.norm, theirs.fc_norm = theirs.fc_norm, nn.Identity()
    theirs.load_state_dict({k: v for k, v in vit.state_dict().items() if k in theirs.state_dict()}, strict=False)
    assert {k for k in theirs.state_dict() if not k.startswith("attn_pool.")} == {*vit.state_dict()}
    if isinstance(theirs, beit.Beit):
        theirs.set_input_size((images.shape[-2], images.shape[-1]))
    features: Tensor = theirs.forward_features(images)
    if isinstance(theirs, vision_transformer_sam.VisionTransformerSAM):
        return features.flatten(2).mT
    tokens: Tensor = features[:, theirs.num_prefix_tokens :]
    return tokens


@pytest.mark.filterwarnings("ignore::UserWarning")  # in timm's own resampling of BEiT's tables
@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_timms_at_any_grid(name: str) -> None:
    encoder = tiny(name).encoder.double()
    sized, P = SizedEncoder(copy.deepcopy(encoder)), patch_of(name)
    for h, w in ((4, 4), (3, 5), (7, 6)):
        images = torch.randn(2, 3, h * P, w * P, dtype=torch.float64)
        with torch.no_grad():
            tokens, grid = encoder(images)
            expected = timms_tokens(name, encoder.vit, images)
            exported, _ = sized(images)
        assert grid == (h, w)
        assert expected.abs().mean() > 0.1
        torch.testing.assert_close(tokens, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(exported, expected, atol=1e-6, rtol=0)  # what export traces


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_resampled_to_another_patch_size(name: str, tmp_path: Path) -> None:
    source, P = tiny(name), patch_of(name)
    save_file(
        {key: value.clone() for key, value in source.encoder.vit.state_dict().items()}, tmp_path / "w.safetensors"
    )
    for size in (2 * P, P // 2):
        model = tiny(name, patch_size=size, image_size=4 * size, encoder_weights=str(tmp_path / "w.safetensors"))
        assert model.patch_size == size
        assert model.encode(torch.randn(1, 3, 3 * size - 1, 2 * size))[1] == (3, 2)
    wide = ms.create_model(
        *("segmenter-ti16", 3),
        encoder=name,
        encoder_args=FAMILIES[name],
        patch_size=2 * P,
        image_size=8 * P,
        encoder_weights=str(tmp_path / "w.safetensors"),
    )
    patch = torch.randn(5, 3, P, P)
    enlarged = F.interpolate(patch, (2 * P, 2 * P), mode="bicubic", antialias=True)
    ours, theirs = (model.encoder.vit.patch_embed.proj for model in (wide, source))
    torch.testing.assert_close(ours(enlarged), theirs(patch), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_training_saving_and_prediction(name: str, tmp_path: Path) -> None:
    model = tiny(name, drop_path=0.5).train()
    P = model.patch_size
    images, labels = torch.randn(4, 3, 4 * P, 4 * P), torch.randint(3, (4, 4 * P, 4 * P))
    optimizer, paths = create_optimizer(model, OptimizerConfig(lr=0.01)), SampledDropPaths(model)
    assert len(paths.paths) == 2  # the first layer's rate is 0
    before = {key: value.clone() for key, value in model.named_parameters()}
    for _ in range(2):
        paths.draw(4)
        paths.drawn = [torch.tensor([1.0, 0, 1, 1]) for _ in paths.paths]
        paths.use(slice(0, 4), torch.device("cpu"))
        optimizer.zero_grad()
        model(images, labels=labels).loss.backward()
        optimizer.step()
    unused = [key for key, value in model.named_parameters() if value.grad is None]
    assert not unused
    changed = [bool((before[key] != value).any()) for key, value in model.named_parameters()]
    assert sum(changed) > 0.8 * len(changed)  # gradients of keys and their norms may be below rounding
    model.eval().save(tmp_path / "model")
    again: Any = ms.load_model(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(again(images[:, :, :-3]), model(images[:, :, :-3]))
    assert again.predict(np.zeros((40, 50, 3), np.uint8)).labels.shape == (40, 50)


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "beit_base_patch16_224", "samvit_base_patch16"])
def test_attention_kinds_and_gradient_checkpointing_agree(name: str) -> None:
    model = tiny(name)
    images = torch.randn(2, 3, 48, 80)
    model.set_attention(fused=True)
    tokens = model.encode(images)[0]
    tokens.square().sum().backward()
    expected = {key: value.grad for key, value in model.encoder.named_parameters()}
    model.set_attention(fused=False)
    torch.testing.assert_close(model.encode(images)[0], tokens)
    model.set_attention(fused=True)
    model.encoder.vit.set_grad_checkpointing()
    model.zero_grad()
    again = model.encode(images)[0]
    again.square().sum().backward()
    assert torch.equal(again, tokens)
    for key, value in model.encoder.named_parameters():
        torch.testing.assert_close(value.grad, expected[key])


def test_a_sample_that_drops_a_branch_drops_it_in_all_windows() -> None:
    path = SampledDropPath(0.5)
    path.keep = torch.tensor([1.0, 0.0])
    windows = torch.rand(6, 3, 3, 4)  # three of each sample
    assert torch.equal(path.train()(windows), torch.cat([2 * windows[:3], 0 * windows[3:]]))


@pytest.mark.parametrize(
    "preset", ["segmenter", "segmenter-mask", "meanshifter", "meanshifter-pixel", "meanshifter-joint"]
)
@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_patch14_reg4_dinov2"])
def test_each_preset_takes_each_encoder(preset: str, name: str) -> None:
    model = tiny(name, f"{preset}-ti16")
    images, labels = torch.randn(1, 3, 50, 61), torch.randint(3, (1, 50, 61))
    logits, loss = model(images, labels=labels)
    stride = model.output_stride
    assert logits.shape == (1, 3, -(-50 // stride), -(-61 // stride))
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("patch", "factor", "chosen"), [(14, None, 7), (16, None, 4), (14, 2, 2), (14, 14, 14), (8, 8, 8)]
)
def test_the_factor_of_pixels_follows_the_patch(patch: int, factor: int | None, chosen: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    args = {**TINY, "patch_size": patch}
    pixel_shift = {"channels": 5} | ({} if factor is None else {"factor": factor})
    model = ms.create_model(
        "meanshifter-pixel-ti16", 3, image_size=4 * patch, encoder_args=args, pixel_shift=pixel_shift
    )
    assert model.config.pixel_shift is not None
    assert (model.config.pixel_shift.factor, model.output_stride) == (chosen, patch // chosen)
    assert model(torch.randn(1, 3, 3 * patch, 2 * patch)).shape == (1, 3, 3 * chosen, 2 * chosen)
    model.eval().save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model"]["pixel_shift"]["factor"] == chosen
    again: Any = ms.load_model(tmp_path)
    assert again.predict(np.zeros((2 * patch + 3, 40, 3), np.uint8)).labels.shape == (2 * patch + 3, 40)


class Strided(nn.Module):
    """A module of one's own: one convolution per patch."""

    def __init__(self, prefix: int = 0) -> None:
        super().__init__()
        self.patch_size, self.embed_dim, self.prefix = 8, 6, prefix
        self.project = nn.Conv2d(3, 6, 8, 8)

    def forward(self, images: Tensor) -> Tensor:
        """Compute tokens, with some that are not of a patch."""
        tokens = self.project(images).flatten(2).mT
        return torch.cat([tokens[:, : self.prefix], tokens], 1)


def test_a_module_of_ones_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ms.create_model("meanshifter-pixel-ti16", 3, encoder=Strided(), mean=(0.4, 0.4, 0.4)).eval()
    images = torch.randn(2, 3, 20, 33)
    assert model(images).shape == (2, 3, 10, 17)
    model.save(tmp_path)
    with pytest.raises(ms.InputError, match=r"config\.json: encoder: a module of one's own, 'Strided'.*encoder=MODULE"):
        ms.load_model(tmp_path)
    again: Any = ms.load_model(tmp_path, encoder=Strided())
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
    other: Any = ms.load_model(tmp_path, 7, encoder=Strided())
    assert other(images).shape == (2, 7, 10, 17)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": nn.Linear(2, 2)}, r"encoder: Linear\.patch_size is None"),
        ({"encoder": Strided(), "encoder_args": {"depth": 1}}, "encoder_args: given with a module"),
        ({"encoder": Strided(), "drop_path": 0.1}, "drop_path: given with a module"),
        ({"encoder": Strided(), "encoder_weights": "timm"}, "encoder_weights: given with a module"),
        ({"encoder": 3}, "encoder: 3 is neither"),
        ({"encoder": "module:Strided"}, "encoder: a module of one's own, 'Strided'"),
    ],
)
def test_modules_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ms.InputError, match=message):
        ms.create_model("segmenter-ti16", 3, **settings)


def test_tokens_that_are_not_of_patches_are_refused(tmp_path: Path) -> None:
    model = ms.create_model("segmenter-ti16", 3, encoder=Strided(prefix=1))
    with pytest.raises(ms.InputError, match=r"Strided returned \(1, 7, 6\).*\(1, 6, 6\)"):
        model(torch.zeros(1, 3, 16, 24))
    tiny("vit_tiny_patch16_224").save(tmp_path)
    with pytest.raises(ms.InputError, match="encoder: given, but the model's encoder is 'vit_tiny_patch16_224'"):
        ms.load_model(tmp_path, encoder=Strided())


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("convnext_tiny", "vit_tiny_patch16_224, deit_tiny_patch16_224"),
        ("swin_base_patch4_window7_224", "vit_base_patch16_224"),
        ("hiera_small_224", "vit_small_patch16_dinov3"),
        ("vit_base_r50_s16_224", "vit_base_patch16_224"),
        ("mobilevit_s", "vit_small_patch16_224"),
    ],
)
def test_what_is_no_plain_vit_is_refused_before_it_is_built(
    name: str, nearest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *_args, **_kwargs: pytest.fail("built"))
    with pytest.raises(ms.InputError, match=rf"encoder: '{name}' is not a plain ViT; .*\b{nearest}\b"):
        Encoder(name, (64, 64))


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("vit_small_patch16_dinov3", "pretrained_cfg"),
        ("vit_small_patch16_dinov3", "use_naflex"),
        ("beit_base_patch16_224", "checkpoint_path"),
        ("samvit_base_patch16", "use_rope"),
        ("vit_tiny_patch16_224", "rope_temperature"),
    ],
)
def test_arguments_of_other_families_and_urls_are_refused(name: str, argument: str) -> None:
    with pytest.raises(ms.InputError, match=f"encoder_args: '{argument}' is not an argument of a"):
        Encoder(name, (64, 64), arguments={**TINY, argument: {"url": "https://example.org"}})


def test_positions_of_other_tools_are_of_plain_vits_only() -> None:
    with pytest.raises(ms.InputError, match=r"positions: 'bicubic'.*Eva"):
        Encoder("vit_small_patch16_dinov3", (64, 64), arguments=TINY, positions="bicubic")


def test_a_configuration_cannot_ask_for_indices_of_all_pairs_of_patches() -> None:
    encoder = Encoder("beit_base_patch16_224", (4800, 4800), arguments=TINY)  # 90,000 patches: 65 GB in timm's class
    assert max(buffer.numel() for buffer in encoder.buffers()) < 100


@pytest.mark.parametrize(
    "name", ["samvit_base_patch16", "beit_base_patch16_224", "vit_medium_patch16_rope_reg1_gap_256"]
)
def test_weights_of_another_size_are_resampled(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file and from timm, with timm's names of the final norm."""
    source = tiny(name, image_size=96)
    state = source.encoder.vit.state_dict()
    if "fc_norm" in "".join(timm.create_model(name, img_size=64, **FAMILIES[name]).state_dict()):
        state = {
            key.removeprefix("norm.").join(["fc_norm.", ""]) if key.startswith("norm.") else key: v
            for key, v in state.items()
        }
    save_file({**state, "head.weight": torch.zeros(1)}, tmp_path / "weights.safetensors")
    images = torch.randn(1, 3, 64, 64)
    model = tiny(name, encoder_weights=str(tmp_path / "weights.safetensors"))
    assert model.config.mean == timm.get_pretrained_cfg(name).mean  # type: ignore[union-attr]
    assert model.encoder.vit.patch_embed.grid_size == (4, 4)
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    loaded = Encoder(name, (64, 64), arguments=FAMILIES[name]).eval()
    load_encoder_weights(loaded, tmp_path / "weights.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(loaded(images)[0], source.eval().encode(images)[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_in_timms_names_gives_equal_tokens(name: str, tmp_path: Path) -> None:
    source = tiny(name)
    save_file(source.encoder.vit.state_dict(), tmp_path / "weights.safetensors")
    images, P = torch.randn(1, 3, 50, 80), patch_of(name)
    for average_corners in (False, True):
        other = Encoder(name, (4 * P, 4 * P), arguments=FAMILIES[name]).eval()
        load_encoder_weights(other, tmp_path / "weights.safetensors", average_corners=average_corners)
        with torch.no_grad():
            equal = torch.equal(other(images)[0], source.encode(images)[0])
        assert equal == (not average_corners or getattr(source.encoder.vit, "pos_embed", None) is None)


def test_all_names_are_of_timm_and_each_is_listed_once() -> None:
    names = plain_names()
    assert len(names) == len({*names}) > 200
    for name in (*FAMILIES, "vit_7b_patch16_dinov3", "eva_giant_patch14_560", "samvit_huge_patch16"):
        assert name in names
