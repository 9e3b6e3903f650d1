"""Random checkpoints with other tools' names, and reference implementations of those tools in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


class Toy(NamedTuple):
    """Size of a model."""

    D: int = 64
    depth: int = 2
    heads: int = 1
    P: int = 8
    side: int = 48
    K: int = 7
    decoder_layers: int = 2


TI16 = Toy(D=192, depth=12, heads=3, P=16, side=512, K=150)


def random(*shape: int, scale: float = 0.05) -> Tensor:
    return torch.randn(*shape) * scale


def norm(name: str, D: int) -> State:
    return {f"{name}.weight": 1 + random(D), f"{name}.bias": random(D)}


def linear(name: str, out: int, width: int, *, bias: bool = True) -> State:
    return {f"{name}.weight": random(out, width), **({f"{name}.bias": random(out)} if bias else {})}


def mmsegmentation_layers(name: str, toy: Toy, count: int) -> State:
    state: State = {}
    for i in range(count):
        at, D = f"{name}.{i}", toy.D
        state |= norm(f"{at}.ln1", D)
        state |= {f"{at}.attn.attn.in_proj_weight": random(3 * D, D), f"{at}.attn.attn.in_proj_bias": random(3 * D)}
        state |= linear(f"{at}.attn.attn.out_proj", D, D) | norm(f"{at}.ln2", D)
        state |= linear(f"{at}.ffn.layers.0.0", 4 * D, D) | linear(f"{at}.ffn.layers.1", D, 4 * D)
    return state


def mmsegmentation_state(toy: Toy, head: str, *, patch_bias: bool = False) -> State:
    """Return a state dict of `EncoderDecoder`; `head` is linear, mask, or shift for the head of the thesis."""
    D, N = toy.D, (toy.side // toy.P) ** 2
    state = {"backbone.cls_token": random(1, 1, D), "backbone.pos_embed": random(1, N + 1, D, scale=0.5)}
    state["backbone.patch_embed.projection.weight"] = random(D, 3, toy.P, toy.P)
    if patch_bias:
        state["backbone.patch_embed.projection.bias"] = random(D)
    state |= mmsegmentation_layers("backbone.layers", toy, toy.depth) | norm("backbone.ln1", D)
    if head == "mask":
        state["decode_head.cls_emb"] = random(1, toy.K, D, scale=1.0)
        state |= mmsegmentation_layers("decode_head.layers", toy, toy.decoder_layers)
        state |= linear("decode_head.dec_proj", D, D) | linear("decode_head.patch_proj", D, D, bias=False)
        state |= linear("decode_head.classes_proj", D, D, bias=False)
        return state | norm("decode_head.decoder_norm", D) | norm("decode_head.mask_norm", toy.K)
    state |= {"decode_head.conv_seg.weight": random(toy.K, D, 1, 1), "decode_head.conv_seg.bias": random(toy.K)}
    return state | linear("decode_head.q", 48, D) if head == "shift" else state


def segmenter_layers(name: str, toy: Toy, count: int) -> State:
    state: State = {}
    for i in range(count):
        at, D = f"{name}.{i}", toy.D
        state |= norm(f"{at}.norm1", D) | norm(f"{at}.norm2", D)
        state |= linear(f"{at}.attn.qkv", 3 * D, D) | linear(f"{at}.attn.proj", D, D)
        state |= linear(f"{at}.mlp.fc1", 4 * D, D) | linear(f"{at}.mlp.fc2", D, 4 * D)
    return state


def segmenter_state(toy: Toy, head: str, *, distilled: bool = False) -> State:
    """Return a state dict of the official `Segmenter`."""
    D, N, prefix = toy.D, (toy.side // toy.P) ** 2, 1 + distilled
    state = {"encoder.cls_token": random(1, 1, D), "encoder.pos_embed": random(1, N + prefix, D, scale=0.5)}
    if distilled:
        state |= {"encoder.dist_token": random(1, 1, D)} | linear("encoder.head_dist", 1000, D)
    state |= {"encoder.patch_embed.proj.weight": random(D, 3, toy.P, toy.P), "encoder.patch_embed.proj.bias": random(D)}
    state |= segmenter_layers("encoder.blocks", toy, toy.depth) | norm("encoder.norm", D)
    state |= linear("encoder.head", 1000, D)
    if head == "linear":
        return state | linear("decoder.head", toy.K, D)
    state |= {"decoder.cls_emb": random(1, toy.K, D, scale=1.0), "decoder.proj_patch": random(D, D)}
    state |= {"decoder.proj_classes": random(D, D)} | segmenter_layers("decoder.blocks", toy, toy.decoder_layers)
    state |= linear("decoder.proj_dec", D, D)
    return state | norm("decoder.decoder_norm", D) | norm("decoder.mask_norm", toy.K)


def mmsegmentation_logits(state: State, images: Tensor, toy: Toy) -> Tensor:
    """`decode_head(backbone(images))` of MMSegmentation: ε 1e-6 in the encoder, bicubic positions, end padding."""
    s = {key: value.double() for key, value in state.items()}
    x, grid = _patches(s, images, toy, "backbone.patch_embed.projection", "backbone")
    x = x + _positions(s["backbone.pos_embed"], grid, toy, 1, "bicubic")
    for i in range(toy.depth):
        x = _mmsegmentation_layer(s, f"backbone.layers.{i}", x, toy.heads, 1e-6)
    x = _norm(s, "backbone.ln1", x, 1e-6)[:, 1:]
    if "decode_head.cls_emb" in s:
        x = _linear(s, "decode_head.dec_proj", x)
        x = torch.cat([x, s["decode_head.cls_emb"].expand(len(x), -1, -1)], 1)
        for i in range(toy.decoder_layers):
            x = _mmsegmentation_layer(s, f"decode_head.layers.{i}", x, toy.heads, 1e-5)
        x = _norm(s, "decode_head.decoder_norm", x, 1e-5)
        patches, classes = x[:, : -toy.K], x[:, -toy.K :]
        patches, classes = (
            _linear(s, "decode_head.patch_proj", patches),
            _linear(s, "decode_head.classes_proj", classes),
        )
        masks = F.normalize(patches, dim=2) @ F.normalize(classes, dim=2).mT
        x = _norm(s, "decode_head.mask_norm", masks, 1e-5)
    else:
        if "decode_head.q.weight" in s:
            r = _linear(s, "decode_head.q", x)
            x = (r @ r.mT / r.shape[-1] ** 0.5).softmax(-1) @ x
        x = x @ s["decode_head.conv_seg.weight"][:, :, 0, 0].T + s["decode_head.conv_seg.bias"]
    return x.mT.reshape(len(x), -1, *grid)


def segmenter_logits(state: State, images: Tensor, toy: Toy) -> Tensor:
    """The official encoder and decoder before upsampling: ε 1e-5 everywhere, bilinear positions, padding at the end."""
    s = {key: value.double() for key, value in state.items()}
    x, grid = _patches(s, images, toy, "encoder.patch_embed.proj", "encoder")
    prefix = 1 + ("encoder.dist_token" in s)
    x = x + _positions(s["encoder.pos_embed"], grid, toy, prefix, "bilinear")
    for i in range(toy.depth):
        x = _segmenter_layer(s, f"encoder.blocks.{i}", x, toy.heads)
    x = _norm(s, "encoder.norm", x, 1e-5)[:, prefix:]
    if "decoder.head.weight" in s:
        x = _linear(s, "decoder.head", x)
    else:
        x = torch.cat([_linear(s, "decoder.proj_dec", x), s["decoder.cls_emb"].expand(len(x), -1, -1)], 1)
        for i in range(toy.decoder_layers):
            x = _segmenter_layer(s, f"decoder.blocks.{i}", x, toy.heads)
        x = _norm(s, "decoder.decoder_norm", x, 1e-5)
        patches = x[:, : -toy.K] @ s["decoder.proj_patch"]
        classes = x[:, -toy.K :] @ s["decoder.proj_classes"]
        patches = patches / patches.norm(dim=-1, keepdim=True)
        classes = classes / classes.norm(dim=-1, keepdim=True)
        x = _norm(s, "decoder.mask_norm", patches @ classes.mT, 1e-5)
    return x.mT.reshape(len(x), -1, *grid)


def _patches(s: State, images: Tensor, toy: Toy, name: str, encoder: str) -> tuple[Tensor, tuple[int, int]]:
    H, W = images.shape[-2:]
    padded = F.pad(images.double(), (0, -W % toy.P, 0, -H % toy.P))
    x = F.conv2d(padded, s[f"{name}.weight"], s.get(f"{name}.bias"), stride=toy.P)
    tokens = [s[f"{encoder}.{token}"] for token in ("cls_token", "dist_token") if f"{encoder}.{token}" in s]
    prefix = torch.cat(tokens, 1).expand(len(x), -1, -1)
    return torch.cat([prefix, x.flatten(2).mT], 1), (x.shape[2], x.shape[3])


def _positions(table: Tensor, grid: tuple[int, int], toy: Toy, prefix: int, mode: str) -> Tensor:
    side = toy.side // toy.P
    if grid[0] * grid[1] == side * side:
        return table
    own = table[:, prefix:].mT.reshape(1, -1, side, side)
    resized = F.interpolate(own, grid, mode=mode, align_corners=False)
    return torch.cat([table[:, :prefix], resized.flatten(2).mT], 1)


def _attention(qkv: Tensor, heads: int) -> Tensor:
    B, N, wide = qkv.shape
    q, k, v = qkv.reshape(B, N, 3, heads, wide // 3 // heads).permute(2, 0, 3, 1, 4)
    mean: Tensor = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
    return mean.transpose(1, 2).reshape(B, N, wide // 3)


def _mmsegmentation_layer(s: State, at: str, x: Tensor, heads: int, eps: float) -> Tensor:
    qkv = _norm(s, f"{at}.ln1", x, eps) @ s[f"{at}.attn.attn.in_proj_weight"].T + s[f"{at}.attn.attn.in_proj_bias"]
    x = x + _linear(s, f"{at}.attn.attn.out_proj", _attention(qkv, heads))
    hidden = F.gelu(_linear(s, f"{at}.ffn.layers.0.0", _norm(s, f"{at}.ln2", x, eps)))
    return x + _linear(s, f"{at}.ffn.layers.1", hidden)


def _segmenter_layer(s: State, at: str, x: Tensor, heads: int) -> Tensor:
    qkv = _linear(s, f"{at}.attn.qkv", _norm(s, f"{at}.norm1", x, 1e-5))
    x = x + _linear(s, f"{at}.attn.proj", _attention(qkv, heads))
    hidden = F.gelu(_linear(s, f"{at}.mlp.fc1", _norm(s, f"{at}.norm2", x, 1e-5)))
    return x + _linear(s, f"{at}.mlp.fc2", hidden)


def _linear(s: State, name: str, x: Tensor) -> Tensor:
    weight, bias = s[f"{name}.weight"], s.get(f"{name}.bias")
    return F.linear(x, weight, bias)


def _norm(s: State, name: str, x: Tensor, eps: float) -> Tensor:
    spread = (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
    return (x - x.mean(-1, keepdim=True)) / spread * s[f"{name}.weight"] + s[f"{name}.bias"]
