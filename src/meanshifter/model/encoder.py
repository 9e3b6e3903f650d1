"""The encoder: a ViT of timm without its classifier, and its pretrained weights.

Source: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021; weights and code by timm. Tensor names of other
tools: the files of google/vit-base-patch16-224 and facebook/deit-tiny-distilled-patch16-224 on the Hub, and the
pretrained encoders in MMSegmentation's Segmenter configurations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from safetensors.torch import load_file
from timm.models import checkpoint_seq
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from meanshifter.data.download import why_unreachable
from meanshifter.errors import InputError, did_you_mean, is_out_of_memory, summarize_error
from meanshifter.utils.safe_pickle import read_pickle


class PatchProjection(nn.Conv2d):
    """The convolution of a patch embedding, computed on mean-free patches at inference, which rounds less.

    W x = W (x − x̄) + (Σ W) x̄ with the mean x̄ of each channel of a patch. In a smooth patch, such as sky or a wall, all
    products of the plain sum are large and nearly cancel, and layer norms amplify the rounding error of float32.
    Training keeps the plain product, since its noise is larger; so do 16-bit types, which would round Σ W, and the
    meta device, which has no values to round and on which FLOPs of the plain product are counted.
    """

    @classmethod
    def of(cls, plain: nn.Conv2d) -> PatchProjection:
        """Wrap a convolution, sharing its parameters."""
        size = cast(tuple[int, int], plain.kernel_size)
        own = cls(plain.in_channels, plain.out_channels, size, size, bias=plain.bias is not None, device="meta")
        own.weight, own.bias = plain.weight, plain.bias
        return own.train(plain.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Project images (B, C, H, W) of full patches to (B, D, h, w)."""
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
    """Use `PatchProjection` in a patch embedding of timm, if its patches do not overlap."""
    proj = getattr(embed, "proj", None)
    if type(proj) is nn.Conv2d and proj.kernel_size == proj.stride != (1, 1):
        embed.proj = PatchProjection.of(proj)


Grid = tuple[int, int]
_ARGUMENTS = {*signature(VisionTransformer).parameters} - {
    "img_size",
    "num_classes",
    "fc_norm",
    "dynamic_img_size",
    "device",
    "dtype",
}
"""Valid `encoder_args`; timm.create_model also accepts URLs and files, which a configuration must not contain."""


class Encoder(nn.Module):
    """A timm ViT without its classifier: images (B, 3, H, W) to patch tokens (B, h·w, D) after its final norm."""

    def __init__(
        self,
        encoder: str,
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
        self.frozen = False
        self.vit = _create_vit(encoder, image_size, drop_path, dict(arguments or {}), pretrained)
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

    def freeze(self) -> None:
        """Stop training the encoder: without gradients, and in evaluation mode whatever `train` is called with."""
        self.frozen = True
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Encoder:
        """Set the mode, as of any module, unless the encoder is frozen."""
        return super().train(mode and not self.frozen)

    @property
    def heads(self) -> int:
        """Attention heads per layer."""
        return max((int(getattr(module, "num_heads", 1)) for module in self.vit.modules()), default=1)

    def set_attention(self, *, fused: bool) -> None:
        """Choose whether attention runs fused, without N × N weights, or as products with a softmax in between."""
        for module in self.vit.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = fused  # type: ignore[assignment]

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B N D"], Grid]:
        """Return patch tokens and their grid (h, w) = (ceil(H/P), ceil(W/P)).

        Images are zero-padded at the right and bottom to a multiple of the patch; position embeddings are resampled to
        the grid; class, distillation and register tokens are dropped after the final norm.
        """
        P = self.patch_size
        grid = (-(-images.shape[-2] // P), -(-images.shape[-1] // P))
        images = F.pad(images, (0, grid[1] * P - images.shape[-1], 0, grid[0] * P - images.shape[-2]))
        if self.positions == "antialias":
            tokens = self.vit.forward_features(images)
        else:
            x = self.vit.norm_pre(self._embed(images))
            recomputed = self.vit.grad_checkpointing
            tokens = self.vit.norm(checkpoint_seq(self.vit.blocks, x) if recomputed else self.vit.blocks(x))
        return tokens[:, self.vit.num_prefix_tokens :], grid

    def _embed(self, images: Tensor) -> Tensor:
        """Patch, class and distillation tokens with positions that are resampled as in other tools.

        Sources: MMSegmentation's `VisionTransformer.resize_pos_embed` and the official Segmenter's `resize_pos_embed`;
        both resample only if the number of patches differs.
        """
        vit = self.vit
        assert vit.pos_embed is not None  # the models of other tools have it
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
    encoder: str, image_size: tuple[int, int], drop_path: float, arguments: dict[str, Any], pretrained: bool
) -> VisionTransformer:
    name = encoder.split(".")[0]
    unknown = sorted(str(key) for key in arguments.keys() - _ARGUMENTS)
    if unknown:
        raise InputError(
            f"encoder_args: {unknown[0]!r} is not an argument of a ViT; use one of {', '.join(sorted(_ARGUMENTS))}"
        )
    if not timm.is_model(name):
        names = timm.list_models("vit*") + timm.list_models("deit*")
        hint = did_you_mean(name, names, "`timm.list_models('vit*')` lists the names")
        raise InputError(f"encoder: {encoder!r} is not a model in timm; {hint}")
    cached = _cached_weights(encoder) if pretrained else None
    try:
        vit = timm.create_model(
            encoder,
            pretrained=pretrained,
            img_size=image_size,
            num_classes=0,
            fc_norm=False,
            dynamic_img_size=True,
            drop_path_rate=drop_path,
            pretrained_cfg_overlay=cached,
            **arguments,
        )
    except (TypeError, AssertionError, ValueError, ArithmeticError) as error:
        raise InputError(f"encoder: {encoder!r} cannot be built as a plain ViT: {summarize_error(error)}") from error
    except (OSError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = summarize_error(error)
        if not pretrained:
            raise InputError(f"encoder: {encoder!r} cannot be built as a plain ViT: {reason}") from error
        raise InputError(
            f"encoder_weights: timm could not load {encoder!r}: {reason}; check the tag and the network, "
            "or give a local file, --model.encoder_weights FILE"
        ) from error
    if not isinstance(vit, VisionTransformer):
        raise InputError(
            f"encoder: {encoder!r} is a {type(vit).__name__}, not a plain ViT; choose a vit_* or deit_* name"
        )
    vit.attn_pool = None  # type: ignore[assignment]
    patch = vit.patch_embed.patch_size[0]
    if min(image_size) < patch:
        raise InputError(
            f"image_size: {tuple(image_size)} (by default the crop) is below the patch size of {patch} pixels; both "
            f"sides must be at least {patch}"
        )
    return vit


def _cached_weights(encoder: str) -> dict[str, Any] | None:
    """The file of these weights in the Hub's cache, as timm's overlay; None if timm has to download it.

    Raises:
        InputError: it is not cached and the Hub is unreachable; the Hub's client would retry for a minute.
    """
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

    stated: Any = timm.get_pretrained_cfg(encoder)  # Any, since `custom_load` may be a string, unlike its annotation
    if stated is None or stated.hf_hub_id is None or stated.custom_load == "hf":
        return None
    repo, _, revision = stated.hf_hub_id.partition("@")
    names = (constants.SAFETENSORS_SINGLE_FILE, constants.PYTORCH_WEIGHTS_NAME)
    for name in names if stated.hf_hub_filename is None else (stated.hf_hub_filename,):
        cached = try_to_load_from_cache(repo, name, revision=revision or None)
        if isinstance(cached, str):
            return {"file": cached, "custom_load": False}
    reason = why_unreachable(constants.ENDPOINT)
    if reason is None:
        return None
    raise InputError(
        f"encoder_weights: {encoder!r} is not in the cache, and {constants.ENDPOINT} is unreachable ({reason}); "
        f"download {hf_hub_url(repo, names[0])} elsewhere and give it with --model.encoder_weights FILE"
    )


def load_encoder_weights(encoder: Encoder, path: str | Path, *, average_corners: bool = False) -> None:
    """Load ViT weights from a .safetensors, .pth or .pt file with timm's, Hugging Face's or MMSegmentation's names.

    Position embeddings are resampled to the encoder's grid; with `average_corners`, their corners are averaged first
    (see `average_corner_positions`). A classifier in the file is ignored.

    Raises:
        InputError: a missing or unreadable file, or tensors that do not match; nothing is loaded then.
    """
    _load(encoder, _read_tensors(Path(path)), Path(path), average_corners=average_corners)


def load_timm_weights(encoder: Encoder, name: str, arguments: Mapping[str, Any], *, average_corners: bool) -> None:
    """Load timm's pretrained weights for the tag in `name`, otherwise as `load_encoder_weights` does."""
    stated = timm.get_pretrained_cfg(name)
    assert stated is not None  # the caller has read the normalization from it
    _, height, width = stated.input_size
    source = _create_vit(name, (height, width), 0.0, dict(arguments), pretrained=True)
    _load(encoder, source.state_dict(), Path(name), average_corners=average_corners)


def average_corner_positions(positions: Float[Tensor, "1 N D"]) -> Float[Tensor, "1 N D"]:
    """Replace the position embeddings of the four corner patches with the mean of their two neighbors on the edge.

    AugReg ViTs use their corner patches as registers (Darcet et al., Vision Transformers Need Registers, ICLR 2024) and
    recognize them by these four embeddings alone: from block 8 of ViT-Ti/16 on, corner tokens have 25 times the norm of
    others and are nearly the same vector in all images, so that a new head gives them one class
    (benchmarks/corners.py).

    Args:
        positions: those of prefix tokens (class, registers) and of a square grid of patches in row-major order, before
            resampling.

    Raises:
        InputError: the grid is not square, or smaller than 3 × 3.
    """
    side = math.isqrt(positions.shape[1])
    prefix = positions.shape[1] - side * side
    if side < 3 or prefix >= side:
        raise InputError(
            f"average_corners: {positions.shape[1]} position embeddings do not form a square of at least 3 × 3 "
            "patches; set average_corners to false"
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
        raise InputError(f"encoder_weights: {path} is not a ViT with timm's names: {summarize_error(error)}") from error
    own = encoder.vit.state_dict()
    missing, unexpected = own.keys() - state.keys(), state.keys() - own.keys()
    shapes = {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}
    for kind, keys in (("lacks", missing), ("has unknown", unexpected), ("has other shapes for", shapes)):
        if keys:
            raise InputError(
                f"encoder_weights: {path} {kind} {len(keys)} of {len(own)} tensors ({', '.join(sorted(keys)[:3])}"
                f"{', …' if len(keys) > 3 else ''}); give weights of the model's encoder"
            )
    encoder.vit.load_state_dict(state)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"encoder_weights: {path} {what}; give a .safetensors or .pth file, 'timm' or nothing")
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else read_pickle(path)
    except InputError as error:
        raise InputError(f"encoder_weights: {error}") from error
    except Exception as error:  # safetensors also lets torch's errors about unknown data types through
        raise InputError(
            f"encoder_weights: {path} cannot be read as {path.suffix} ({summarize_error(error)}); copy it again, or "
            "correct its suffix"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    plain = isinstance(loaded, dict) and all(isinstance(value, Tensor) for value in loaded.values())
    if not plain or not all(isinstance(name, str) for name in loaded):
        raise InputError(f"encoder_weights: {path} is not a state dict; give one with timm's names")
    try:
        check_tensors(loaded, path)
    except InputError as error:
        raise InputError(f"encoder_weights: {error}") from error
    return loaded


HUGGING_FACE = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layer\.(\d+)\.output\.dense\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.layer\.(\d+)\.layernorm_before\.(\w+)", r"blocks.\1.norm1.\2"),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.(\w+)", r"blocks.\1.norm2.\2"),
    (r"layernorm\.(\w+)", r"norm.\1"),
)
MMSEGMENTATION = (
    (r"(cls_token|pos_embed)", r"\1"),
    (r"patch_embed\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"layers\.(\d+)\.ln(\d)\.(\w+)", r"blocks.\1.norm\2.\3"),
    (r"layers\.(\d+)\.attn\.attn\.in_proj_(\w+)", r"blocks.\1.attn.qkv.\2"),
    (r"layers\.(\d+)\.attn\.attn\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"layers\.(\d+)\.ffn\.layers\.0\.0\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"layers\.(\d+)\.ffn\.layers\.1\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"ln1\.(\w+)", r"norm.\1"),
)
UNUSED = ("classifier.", "cls_classifier.", "distillation_classifier.", "pooler.", "head.", "head_dist.", "pre_logits")


def timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors of the three tools to timm's names, without classifiers; unknown names are kept."""
    bare = {re.sub(r"^(vit|deit|backbone)\.", "", key): value for key, value in state.items()}
    bare = {key: value for key, value in bare.items() if not key.startswith(UNUSED)}
    if any(key.startswith("encoder.layer.") for key in bare):
        return _renamed(_with_joint_queries(bare), HUGGING_FACE)
    if any(key.startswith("layers.") for key in bare):
        return _renamed(bare, MMSEGMENTATION)
    return bare


def _with_joint_queries(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Concatenate queries, keys and values of each layer, under timm's name."""
    joint = {}
    for key, value in state.items():
        match = re.fullmatch(r"(encoder\.layer\.(\d+)\.attention\.attention)\.(query|key|value)\.(\w+)", key)
        if match is None:
            joint[key] = value
        elif match[3] == "query":
            parts = [state.get(f"{match[1]}.{part}.{match[4]}") for part in ("query", "key", "value")]
            present = [part for part in parts if part is not None]
            joint[f"blocks.{match[2]}.attn.qkv.{match[4]}"] = torch.cat(present)
    return joint


def _renamed(state: dict[str, Tensor], table: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    return {
        next((re.sub(pattern, name, key) for pattern, name in table if re.fullmatch(pattern, key)), key): value
        for key, value in state.items()
    }


def check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check that all tensors are plain floating-point numbers with their own storage.

    Raises:
        InputError: a tensor has no data, is sparse, quantized, integer or complex, has values that are not finite, or
            expands to more bytes than the file stores (and would fill the disk when saved).
    """
    for name, value in tensors.items():
        if name.endswith("num_batches_tracked"):
            continue
        if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
            wrong = f"of layout {value.layout}" if value.layout != torch.strided else "quantized or without data"
        elif value.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            wrong = f"of {value.dtype}"
        elif value.numel() * value.itemsize > value.untyped_storage().nbytes():
            wrong = f"{tuple(value.shape)} made from {value.untyped_storage().nbytes():,} bytes"
        elif not torch.isfinite(value).all():
            wrong = "not finite everywhere"
        else:
            continue
        raise InputError(f"{path}: {name} is {wrong}; expected dense floating-point weights")
