"""Our models as files that other tools load.

Sources: `init_model` of MMSegmentation 1.2.2, which takes a configuration and a checkpoint; `load_model` of
github.com/rstrudel/segmenter, which takes `checkpoint.pth` beside `variant.yml`; timm's `create_model`.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from pprint import pformat
from typing import Any

import torch

from meanshifter.files import write_together
from meanshifter.interop.foreign_files import changed_positions, foreign_state, mlp_ratio, norm_eps, save_pickle, tell
from meanshifter.interop.naming import MMSEGMENTATION, TIMM, to_foreign
from meanshifter.interop.official_writing import write_segmenter
from meanshifter.interop.plain import check_plain
from meanshifter.model.checkpoint import save_tensors
from meanshifter.model.decoder import MaskTransformer
from meanshifter.model.segmenter import Segmenter
from meanshifter.model.stored import stored_state


def write_mmsegmentation(model: Segmenter, path: str | Path) -> list[Path]:
    """A checkpoint `path` (.pth) of MMSegmentation's names, and a configuration `.py` beside it for `init_model`.

    Raises:
        InputError: a model with a part that MMSegmentation has not.
    """
    path = Path(path)
    check_plain(model.encoder.vit, "MMSegmentation", without=("patch_embed.proj.bias", "norm.weight", "norm.bias"))
    state = foreign_state(model, MMSEGMENTATION, "MMSegmentation")
    config = _mmsegmentation_config(model)
    labels = {"classes": list(model.labels.names), "palette": [list(color) for color in model.labels.palette]}
    text = "\n".join(f"{name} = {pformat(value, sort_dicts=False)}" for name, value in config.items()) + "\n"
    meta = {"dataset_meta": labels, "CLASSES": labels["classes"], "PALETTE": labels["palette"], "cfg": text}
    content = {"meta": meta, "state_dict": OrderedDict(state)}
    described = path.with_suffix(".py")
    write_together(
        {
            path: lambda file: torch.save(content, file.name),
            described: lambda file: file.write(text.encode()),
        }
    )
    tell("MMSegmentation", changed_positions(model, "bicubic"))
    if model.mean_shift is not None:
        warnings.warn("MMSegmentation has no MeanShifterHead; register one before init_model", stacklevel=2)
    return [path, described]


def write_timm(model: Segmenter, path: str | Path) -> list[Path]:
    """The encoder alone under timm's names, as .safetensors or as a .pth of its state dict."""
    path = Path(path)
    state = to_foreign(stored_state(model), TIMM)
    if not model.config.patch_bias:
        state["patch_embed.proj.bias"] = torch.zeros(model.encoder.width)
    if path.suffix == ".safetensors":
        save_tensors(path, state, {"format": "pt"})
    else:
        save_pickle(path, state)
    return [path]


def _mmsegmentation_config(model: Segmenter) -> dict[str, Any]:
    """What `init_model` needs, in the fields of MMSegmentation 1.x."""
    config, width = model.config, model.encoder.width
    vit = model.encoder.vit
    encoder = {
        "type": "VisionTransformer",
        "img_size": config.image_size,
        "patch_size": model.patch_size,
        "embed_dims": width,
        "num_layers": len(vit.blocks),
        "num_heads": model.encoder.heads,
        "mlp_ratio": mlp_ratio(model),
        "drop_path_rate": config.drop_path,
        "norm_cfg": {"type": "LN", "eps": norm_eps(model)},
        "patch_bias": config.patch_bias,
        "final_norm": isinstance(vit.norm, torch.nn.LayerNorm),
        "interpolate_mode": "bilinear" if config.positions == "bilinear" else "bicubic",
    }
    pixels = {"mean": [255 * value for value in config.mean], "std": [255 * value for value in config.std]}
    window = None if config.window is None else (config.window, config.window)
    test: dict[str, Any] = {"mode": "whole"}
    if window is not None:
        test = {"mode": "slide", "crop_size": window, "stride": (config.stride, config.stride)}
    network = {
        "type": "EncoderDecoder",
        "data_preprocessor": {"type": "SegDataPreProcessor", **pixels, "bgr_to_rgb": True, "size": config.image_size},
        "backbone": encoder,
        "decode_head": _head(model),
        "test_cfg": test,
    }
    steps: list[dict[str, Any]] = [{"type": "LoadImageFromFile"}]
    if config.short_side is not None:
        steps.append({"type": "Resize", "scale": (config.long_side, config.short_side), "keep_ratio": True})
    steps.append({"type": "PackSegInputs"})
    return {"default_scope": "mmseg", "model": network, "test_pipeline": steps}


def _head(model: Segmenter) -> dict[str, Any]:
    width, K = model.encoder.width, model.labels.num_classes
    shared = {"in_channels": width, "channels": width, "num_classes": K, "dropout_ratio": 0.0}
    if isinstance(model.decoder, MaskTransformer):
        heads = model.config.decoder_heads
        heads = max(width // 64, 1) if heads is None else heads
        layers = len(model.decoder.blocks)
        return {
            "type": "SegmenterMaskTransformerHead",
            **shared,
            "num_layers": layers,
            "num_heads": heads,
            "embed_dims": width,
        }
    if model.mean_shift is not None:
        return {"type": "MeanShifterHead", **shared, "num_layers": model.mean_shift.layers}
    return {"type": "FCNHead", **shared, "num_convs": 0, "concat_input": False}


WRITERS: dict[str, Callable[[Segmenter, Path], list[Path]]] = {
    "mmsegmentation": write_mmsegmentation,
    "segmenter": write_segmenter,
    "timm": write_timm,
}
