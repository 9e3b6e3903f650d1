"""Plain ViT weights under timm's names, from those of Hugging Face's `transformers` and of MMSegmentation.

Sources: the files of google/vit-base-patch16-224 and facebook/deit-tiny-distilled-patch16-224 on the Hub, and the
pretrained encoders that MMSegmentation's Segmenter configurations name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

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
    """`state` under timm's names, without classifiers; names that none of the three tools has stay as they are."""
    bare = {re.sub(r"^(vit|deit|backbone)\.", "", key): value for key, value in state.items()}
    bare = {key: value for key, value in bare.items() if not key.startswith(UNUSED)}
    if any(key.startswith("encoder.layer.") for key in bare):
        return _renamed(_with_joint_queries(bare), HUGGING_FACE)
    if any(key.startswith("layers.") for key in bare):
        return _renamed(bare, MMSEGMENTATION)
    return bare


def _with_joint_queries(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values of each layer in one tensor, under timm's name."""
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
    renamed = {}
    for key, value in state.items():
        ours = next((re.sub(pattern, name, key) for pattern, name in table if re.fullmatch(pattern, key)), key)
        renamed[ours] = value
    return renamed
