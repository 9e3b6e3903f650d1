"""The encoder: any plain ViT of timm, from images to tokens on a grid.

Source: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021; weights and code by timm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from meanshifter.errors import InputError, is_out_of_memory
from meanshifter.model.projection import center_patches
from meanshifter.model.vit_names import timm_names
from meanshifter.network import why_unreachable
from meanshifter.pickles import check_tensors, read_pickle

Grid = tuple[int, int]
_ARGUMENTS = {*signature(VisionTransformer).parameters} - {
    "img_size",
    "num_classes",
    "fc_norm",
    "dynamic_img_size",
    "device",
    "dtype",
}
"""What `backbone_args` may hold: timm.create_model also takes addresses and files, which are not a configuration's."""


class Encoder(nn.Module):
    """A timm ViT without its classifier: images (B, 3, H, W) to patch tokens (B, h·w, D) after its final norm."""

    def __init__(
        self,
        backbone: str,
        image_size: tuple[int, int],
        *,
        drop_path: float = 0.0,
        arguments: Mapping[str, Any] | None = None,
        positions: str = "antialias",
        norm_eps: float | None = None,
        patch_bias: bool = True,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.vit = _create_vit(backbone, image_size, drop_path, dict(arguments or {}), pretrained)
        self.positions = positions
        if norm_eps is not None:
            for module in self.vit.modules():
                if isinstance(module, nn.LayerNorm):
                    module.eps = norm_eps
        if not patch_bias:
            self.vit.patch_embed.proj.bias = None
        center_patches(self.vit.patch_embed)
        self.patch_size: int = int(self.vit.patch_embed.patch_size[0])
        self.width: int = int(self.vit.embed_dim)

    @property
    def heads(self) -> int:
        """Attention heads of a layer."""
        return max((int(getattr(module, "num_heads", 1)) for module in self.vit.modules()), default=1)

    def set_attention(self, *, fused: bool) -> None:
        """Whether attention runs fused (no N × N weights are held) or as products with softmax in between."""
        for module in self.vit.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = fused  # type: ignore[assignment]

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B N D"], Grid]:
        """Patch tokens and their grid (h, w) = (ceil(H/P), ceil(W/P)).

        Sides that are no multiple of the patch are padded with 0 right and bottom; class, distillation and
        register tokens are dropped after the final norm; position embeddings are resampled to the grid.
        """
        P = self.patch_size
        grid = (-(-images.shape[-2] // P), -(-images.shape[-1] // P))
        images = F.pad(images, (0, grid[1] * P - images.shape[-1], 0, grid[0] * P - images.shape[-2]))
        if self.positions == "antialias":
            tokens = self.vit.forward_features(images)
        else:
            tokens = self.vit.norm(self.vit.blocks(self.vit.norm_pre(self._embed(images))))
        return tokens[:, self.vit.num_prefix_tokens :], grid

    def _embed(self, images: Tensor) -> Tensor:
        """Patch, class and distillation tokens with positions that are resampled as other tools do it.

        Sources: MMSegmentation's `VisionTransformer.resize_pos_embed` and the `resize_pos_embed` of Segmenter's
        authors; both resample only where the number of patches is another one.
        """
        vit = self.vit
        assert vit.pos_embed is not None  # of the models that other tools train
        x = vit.patch_embed(images)
        grid, size = tuple(vit.patch_embed.grid_size), tuple(x.shape[1:3])
        own, positions = torch.tensor_split(vit.pos_embed, [vit.num_prefix_tokens], dim=1)
        if size[0] * size[1] != positions.shape[1]:
            table = rearrange(positions, "1 (h w) d -> 1 d h w", h=grid[0])
            table = F.interpolate(table, size, mode=self.positions, align_corners=False)
            positions = rearrange(table, "1 d h w -> 1 (h w) d")
        prefix = [token for token in (vit.cls_token, getattr(vit, "dist_token", None)) if token is not None]
        first = [(torch.cat(prefix, 1) + own).expand(len(x), -1, -1)] if prefix else []
        return torch.cat([*first, x.flatten(1, 2) + positions], dim=1)


def _create_vit(
    backbone: str, image_size: tuple[int, int], drop_path: float, arguments: dict[str, Any], pretrained: bool
) -> VisionTransformer:
    name = backbone.split(".")[0]
    unknown = sorted(str(key) for key in arguments.keys() - _ARGUMENTS)
    if unknown:
        raise InputError(f"backbone_args: {unknown[0]!r} is no argument of a ViT; {', '.join(sorted(_ARGUMENTS))} are")
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models("vit*") + timm.list_models("deit*"), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; `timm.list_models('vit*')` lists the names"
        raise InputError(f"backbone: {backbone!r} is no model of timm{hint}")
    kept = _kept_weights(backbone) if pretrained else None
    try:
        vit = timm.create_model(
            backbone,
            pretrained=pretrained,
            img_size=image_size,
            num_classes=0,
            fc_norm=False,
            dynamic_img_size=True,
            drop_path_rate=drop_path,
            pretrained_cfg_overlay=kept,
            **arguments,
        )
    except (TypeError, AssertionError, ValueError, ArithmeticError) as error:
        raise InputError(f"backbone: {backbone!r} cannot be built as a plain ViT: {_one_line(error)}") from error
    except (OSError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        if not pretrained:
            raise InputError(f"backbone: {backbone!r} cannot be built as a plain ViT: {_one_line(error)}") from error
        raise InputError(
            f"backbone_weights: timm could not load {backbone!r}: {_one_line(error)}; check the tag and the network, "
            "or give a local file, --model.backbone_weights FILE"
        ) from error
    if not isinstance(vit, VisionTransformer):
        raise InputError(
            f"backbone: {backbone!r} is a {type(vit).__name__}, not a plain ViT; choose a vit_* or deit_* name"
        )
    vit.attn_pool = None  # type: ignore[assignment]
    patch = vit.patch_embed.patch_size[0]
    if min(image_size) < patch:
        raise InputError(
            f"image_size: {tuple(image_size)} (the crop, unless another is given) is below the patch of {patch} "
            f"pixels; both sides are {patch} or more"
        )
    return vit


def _kept_weights(backbone: str) -> dict[str, Any] | None:
    """For timm: the file of these weights in the Hub's cache; None where it is to be fetched.

    Raises:
        InputError: it is not there, and the Hub does not answer; the Hub's client would try for a minute.
    """
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

    stated: Any = timm.get_pretrained_cfg(backbone)  # whose `custom_load` is a string too
    if stated is None or stated.hf_hub_id is None or stated.custom_load == "hf":
        return None
    repo, _, revision = stated.hf_hub_id.partition("@")
    names = (constants.SAFETENSORS_SINGLE_FILE, constants.PYTORCH_WEIGHTS_NAME)
    for name in names if stated.hf_hub_filename is None else (stated.hf_hub_filename,):
        kept = try_to_load_from_cache(repo, name, revision=revision or None)
        if isinstance(kept, str):
            return {"file": kept, "custom_load": False}
    reason = why_unreachable(constants.ENDPOINT)
    if reason is None:
        return None
    raise InputError(
        f"backbone_weights: {backbone!r} is not in the cache, and {constants.ENDPOINT} gives no answer ({reason}); "
        f"fetch {hf_hub_url(repo, names[0])} where there is a network and give it with --model.backbone_weights FILE"
    )


def load_backbone_weights(encoder: Encoder, path: str | Path, *, average_corners: bool = False) -> None:
    """Load ViT weights from a .safetensors, .pth or .pt file into `encoder`.

    Names are timm's, Hugging Face's or MMSegmentation's.

    Position embeddings are resampled to the encoder's grid, their corners averaged first where that is asked for (see
    `average_corner_positions`); the classifier in the file is left out.

    Raises:
        InputError: a missing or unreadable file, or tensors that do not fit; nothing is loaded then.
    """
    _load(encoder, _read_tensors(Path(path)), Path(path), average_corners=average_corners)


def load_timm_weights(encoder: Encoder, backbone: str, arguments: Mapping[str, Any], *, average_corners: bool) -> None:
    """Fetch the weights that the tag in `backbone` names, for `encoder`; as `load_backbone_weights` otherwise."""
    stated = timm.get_pretrained_cfg(backbone)
    assert stated is not None  # whoever asks has read the normalization there
    _, height, width = stated.input_size
    source = _create_vit(backbone, (height, width), 0.0, dict(arguments), pretrained=True)
    _load(encoder, source.state_dict(), Path(backbone), average_corners=average_corners)


def average_corner_positions(positions: Float[Tensor, "1 N D"]) -> Float[Tensor, "1 N D"]:
    """Position embeddings whose four corner patches have the mean of their two neighbors on the edge.

    ViTs of AugReg use their corner patches as registers (Darcet et al., Vision Transformers Need Registers, ICLR 2024)
    and know them by these four embeddings alone: from block 8 of ViT-Ti/16 on, corner tokens have 25 times the norm of
    others and are nearly one vector for all images, so that a new head gives them one class (benchmarks/corners.py).

    Args:
        positions: of prefix tokens (class, registers) and of a square grid of patches, row by row, before resampling.

    Raises:
        InputError: a grid that is not square, or without neighbors that are no corners.
    """
    side = math.isqrt(positions.shape[1])
    prefix = positions.shape[1] - side * side
    if side < 3 or prefix >= side:
        raise InputError(
            f"average_corners: {positions.shape[1]} position embeddings are no square of at least 3 × 3 patches; "
            "set average_corners to false"
        )
    positions = positions.clone()
    grid = positions[:, prefix:].view(1, side, side, -1)
    last = side - 1
    for y, inner_y in ((0, 1), (last, last - 1)):
        for x, inner_x in ((0, 1), (last, last - 1)):
            grid[:, y, x] = (grid[:, inner_y, x] + grid[:, y, inner_x]) / 2
    return positions


def _load(encoder: Encoder, state: dict[str, Tensor], path: Path, *, average_corners: bool) -> None:
    try:
        state = timm_names(state)
        if average_corners and "pos_embed" in state and state["pos_embed"].ndim == 3:
            state["pos_embed"] = average_corner_positions(state["pos_embed"])
        state = checkpoint_filter_fn(state, encoder.vit)
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(f"backbone_weights: {path} holds no ViT in timm's names: {_one_line(error)}") from error
    own = encoder.vit.state_dict()
    missing = sorted(own.keys() - state.keys())
    left_over = sorted(state.keys() - own.keys())
    shapes = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    for kind, keys in (("lacks", missing), ("has unknown", left_over), ("has other shapes for", sorted(shapes))):
        if keys:
            raise InputError(
                f"backbone_weights: {path} {kind} {len(keys)} of {len(own)} tensors ({', '.join(keys[:3])}"
                f"{', …' if len(keys) > 3 else ''}); give weights of the backbone that the model names"
            )
    encoder.vit.load_state_dict(state)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"backbone_weights: {path} {what}; give a .safetensors or .pth file, 'timm' or nothing")
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else read_pickle(path)
    except InputError as error:
        raise InputError(f"backbone_weights: {error}") from error
    except Exception as error:  # besides its own error, safetensors raises what torch says of strange numbers
        raise InputError(
            f"backbone_weights: {path} cannot be read as {path.suffix} ({_one_line(error)}); copy it again, or give it "
            "the ending of what it is"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    plain = isinstance(loaded, dict) and all(isinstance(value, Tensor) for value in loaded.values())
    if not plain or not all(isinstance(name, str) for name in loaded):
        raise InputError(f"backbone_weights: {path} is no plain file of tensors; give a state dict in timm's names")
    try:
        check_tensors(loaded, path)
    except InputError as error:
        raise InputError(f"backbone_weights: {error}") from error
    return loaded


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
