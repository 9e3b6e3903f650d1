"""Pretrained weights of an encoder, from timm or a file, in the tensor names of several tools.

Tensor names: the files of google/vit-base-patch16-224, facebook/deit-tiny-distilled-patch16-224, facebook/dinov2-small
and facebook/dinov3-vits16-pretrain-lvd1689m on the Hub and the models of transformers 5, which differ from them; the
pretrained encoders in MMSegmentation's Segmenter configurations; github.com/facebookresearch/dinov2 and dinov3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from meanshifter.errors import InputError, summarize_error
from meanshifter.model.encoder import Encoder
from meanshifter.utils.safe_pickle import read_pickle


def load_encoder_weights(encoder: Encoder, path: str | Path, *, average_corners: bool = False) -> None:
    """Load ViT weights from a .safetensors, .pth or .pt file with timm's, transformers' or MMSegmentation's names.

    Patch and position embeddings are resampled to the encoder's patch size and grid; with `average_corners`, the
    corners of the latter are averaged first (see `average_corner_positions`). A classifier in the file is ignored.

    Raises:
        InputError: a missing or unreadable file, or tensors that do not match; nothing is loaded then.
    """
    _load(encoder, _read_tensors(Path(path)), Path(path), average_corners=average_corners)


def load_timm_weights(encoder: Encoder, name: str, arguments: Mapping[str, Any], *, average_corners: bool) -> None:
    """Load timm's pretrained weights for the tag in `name`, otherwise as `load_encoder_weights` does."""
    import timm

    from meanshifter.model.vits import load_from_timm

    stated = timm.get_pretrained_cfg(name)
    assert stated is not None  # the caller has read the normalization from it
    _, height, width = stated.input_size
    own = {key: value for key, value in arguments.items() if key != "patch_size"}
    source, _ = load_from_timm(name, (height, width), own, pretrained=True)
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
    assert encoder.family is not None  # the caller has refused weights for a module of one's own
    try:
        state = _with_final_norm(timm_names(state), encoder.vit.state_dict())
        if average_corners and "pos_embed" in state:
            flat = state["pos_embed"].flatten(1, -2)  # SAM's has two axes
            state["pos_embed"] = average_corner_positions(flat).view_as(state["pos_embed"])
        with redirect_stdout(StringIO()):  # timm prints the parameters that it looked for
            state = encoder.family.convert(state, encoder.vit)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise InputError(f"encoder_weights: {path}: {error}") from error
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


def _with_final_norm(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the norm that timm has behind the pooling of some models to that of the tokens, if there is no other."""
    if "norm.weight" in own and "norm.weight" not in state:
        return {re.sub(r"^fc_norm\.", "norm.", name): value for name, value in state.items()}
    return {name: value for name, value in state.items() if not name.startswith("fc_norm.")}


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


_LAYER = r"(?:(?:encoder\.|model\.)?layers?)\.(\d+)\."
HUGGING_FACE = (
    (r"embeddings\.(cls_token|mask_token|register_tokens)", r"\1"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.(?:projection\.)?(weight|bias)", r"patch_embed.proj.\1"),
    (_LAYER + r"attention\.(?:output\.dense|o_proj)\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (_LAYER + r"(?:intermediate\.dense|mlp\.fc1|mlp\.up_proj)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (_LAYER + r"(?:output\.dense|mlp\.fc2|mlp\.down_proj)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (_LAYER + r"mlp\.weights_in\.(\w+)", r"blocks.\1.mlp.w12.\2"),
    (_LAYER + r"mlp\.weights_out\.(\w+)", r"blocks.\1.mlp.w3.\2"),
    (_LAYER + r"(?:layernorm_before|norm1)\.(\w+)", r"blocks.\1.norm1.\2"),
    (_LAYER + r"(?:layernorm_after|norm2)\.(\w+)", r"blocks.\1.norm2.\2"),
    (_LAYER + r"layer_scale(\d)\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"(?:layernorm|norm)\.(\w+)", r"norm.\1"),
)
"""Names of transformers to timm's; those of DINOv2 and DINOv3 to the authors', which timm converts."""
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
UNUSED = (
    "classifier.",
    "cls_classifier.",
    "distillation_classifier.",
    "pooler.",
    "head.",
    "head_dist.",
    "attn_pool.",
    "pre_logits",
)
"""Prefixes of names behind the encoder: classifiers and pooling."""


def timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors of the three tools to names that timm knows, without classifiers; unknown names are kept."""
    bare = {
        re.sub(r"^(vit|deit|dinov2|dinov2_with_registers|dinov3_vit|backbone)\.", "", k): v for k, v in state.items()
    }
    bare = {key: value for key, value in bare.items() if not key.startswith(UNUSED)}
    if any(key.startswith(("embeddings.", "encoder.layer.")) for key in bare):
        return _from_hugging_face(bare)
    if any(key.startswith("layers.") for key in bare):
        return _renamed(bare, MMSEGMENTATION)
    return bare


def _from_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    rotary = "embeddings.position_embeddings" not in state
    found = _renamed(_with_gates(_with_joint_queries(state, keyless=rotary), joint=not rotary), HUGGING_FACE)
    if rotary and "register_tokens" in found:
        found["storage_tokens"] = found.pop("register_tokens")  # by which timm recognizes DINOv3
    return found


def _with_joint_queries(state: dict[str, Tensor], *, keyless: bool) -> dict[str, Tensor]:
    """Concatenate queries, keys and values of each layer, under timm's name; the keys of DINOv3 have no bias."""
    names = (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))
    joint: dict[str, Tensor] = {}
    for key, value in state.items():
        match = re.fullmatch(rf"({_LAYER}attention\.(?:attention\.)?)(query|key|value|[qkv]_proj)\.(\w+)", key)
        if match is None:
            joint[key] = value
            continue
        given = [state.get(f"{match[1]}{a}.{match[4]}", state.get(f"{match[1]}{b}.{match[4]}")) for a, b in names]
        zero = value.new_zeros(value.shape) if keyless and match[4] == "bias" else None
        parts = [zero if part is None else part for part in given]
        joint[f"blocks.{match[2]}.attn.qkv.{match[4]}"] = torch.cat([part for part in parts if part is not None])
    return joint


def _with_gates(state: dict[str, Tensor], *, joint: bool) -> dict[str, Tensor]:
    """Rename gated MLPs as their authors do: DINOv2 has gate and values in one tensor, `joint`, and DINOv3 in two."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        match = re.fullmatch(rf"({_LAYER}mlp\.)(gate|up|down)_proj\.(\w+)", key)
        gate = None if match is None else state.get(f"{match[1]}gate_proj.{match[4]}")
        if match is None or gate is None:
            found[key] = value
        elif match[3] == "down":
            found[f"blocks.{match[2]}.mlp.w3.{match[4]}"] = value
        elif not joint:
            found[f"blocks.{match[2]}.mlp.{'w1' if match[3] == 'gate' else 'w2'}.{match[4]}"] = value
        elif match[3] == "up":
            found[f"blocks.{match[2]}.mlp.w12.{match[4]}"] = torch.cat([gate, value])
    return found


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
        elif not math.isfinite(value.sum()) and not torch.isfinite(value).all():  # a sum is faster, but may overflow
            wrong = "not finite everywhere"
        else:
            continue
        raise InputError(f"{path}: {name} is {wrong}; expected dense floating-point weights")
