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

import numpy as np
import torch
import yaml
from torch import Tensor

from meanshifter.errors import InputError
from meanshifter.files import write_beside, write_text
from meanshifter.interop.naming import MMSEGMENTATION, SEGMENTER, TIMM, Naming, to_foreign
from meanshifter.interop.official import DATASETS, NORMALISATIONS
from meanshifter.model.checkpoint import save_tensors
from meanshifter.model.decoder import MaskTransformer
from meanshifter.model.segmenter import Segmenter
from meanshifter.model.stored import stored_state

AUTHORS_EPS = 1e-5
"""torch's default, which their ViT leaves as it is."""


def write_mmsegmentation(model: Segmenter, path: str | Path) -> list[Path]:
    """A checkpoint `path` (.pth) of MMSegmentation's names, and a configuration `.py` beside it for `init_model`.

    Raises:
        InputError: a model with a part that MMSegmentation has not.
    """
    path = Path(path)
    if model.encoder.vit.num_prefix_tokens != 1:
        raise InputError("model: MMSegmentation's VisionTransformer has a class token and no other; give such a model")
    state = _foreign_state(model, MMSEGMENTATION, "MMSegmentation")
    _tell("MMSegmentation", _changed_positions(model, "bicubic"))
    if model.mean_shift is not None:
        warnings.warn("MMSegmentation has no MeanShifterHead; register one before init_model", stacklevel=2)
    config = _mmsegmentation_config(model)
    labels = {"classes": list(model.labels.names), "palette": [list(color) for color in model.labels.palette]}
    text = "\n".join(f"{name} = {pformat(value, sort_dicts=False)}" for name, value in config.items()) + "\n"
    meta = {"dataset_meta": labels, "CLASSES": labels["classes"], "PALETTE": labels["palette"], "cfg": text}
    _save(path, {"meta": meta, "state_dict": OrderedDict(state)})
    write_text(path.with_suffix(".py"), text)
    return [path, path.with_suffix(".py")]


def write_segmenter(model: Segmenter, folder: str | Path) -> list[Path]:
    """`checkpoint.pth` and `variant.yml` in `folder`, as the Segmenter of its authors writes them.

    The ImageNet classifier that its encoder carries along unused is the one of the file that the model was read from;
    zeros for a model of another origin.

    Raises:
        InputError: a model with a part that it has not.
    """
    folder = Path(folder)
    state = _foreign_state(model, SEGMENTER, "the authors' Segmenter")
    normalisation = _normalisation(model)
    changed = _changed_positions(model, "bilinear")
    if (eps := _norm_eps(model)) != AUTHORS_EPS:
        changed.append(f"its layer norms have ε {AUTHORS_EPS:g} for {eps:g}")
    _tell("the authors' Segmenter", changed)
    if not model.config.patch_bias:
        state["encoder.patch_embed.proj.bias"] = torch.zeros(model.encoder.width)
    distilled = getattr(model.encoder.vit, "dist_token", None) is not None
    for head in ("head", "head_dist")[: 1 + distilled]:
        for name, shape in (("weight", (1000, model.encoder.width)), ("bias", (1000,))):
            key = f"encoder.{head}.{name}"
            state.setdefault(key, torch.zeros(shape))
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "checkpoint.pth", folder / "variant.yml"]
    _save(written[0], {"model": OrderedDict(state), "n_cls": model.labels.num_classes})
    write_text(written[1], yaml.safe_dump(_variant(model, normalisation, distilled=distilled)))
    return written


def write_timm(model: Segmenter, path: str | Path) -> list[Path]:
    """The encoder alone under timm's names, as .safetensors or as a .pth of its state dict."""
    path = Path(path)
    state = to_foreign(stored_state(model), TIMM)
    if not model.config.patch_bias:
        state["patch_embed.proj.bias"] = torch.zeros(model.encoder.width)
    if path.suffix == ".safetensors":
        save_tensors(path, state, {"format": "pt"})
    else:
        _save(path, state)
    return [path]


def _foreign_state(model: Segmenter, naming: Naming, tool: str) -> dict[str, Tensor]:
    own = stored_state(model)
    homeless = [name for name in own if naming.place(name) is None]
    shift = model.config.mean_shift
    if shift is not None and (shift.kernel, shift.spatial, shift.blurring, shift.step_size) != ("dot", None, True, 1.0):
        homeless.append("mean_shift, which is not the published block")
    if homeless:
        raise InputError(f"model: {tool} has no place for {', '.join(homeless[:3])}; write a model folder instead")
    carried = {name: value for name, value in model.carried.items() if name.startswith(naming.carried)}
    return to_foreign(own, naming) | carried


def _save(path: Path, content: Any) -> None:
    write_beside(path, lambda file: torch.save(content, file.name))


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
        "mlp_ratio": _mlp_ratio(model),
        "drop_path_rate": config.drop_path,
        "norm_cfg": {"type": "LN", "eps": _norm_eps(model)},
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


def _tell(tool: str, changed: list[str]) -> None:
    if changed:
        warnings.warn(f"{tool} computes the model a little otherwise: {'; '.join(changed)}", stacklevel=3)


def _changed_positions(model: Segmenter, theirs: str) -> list[str]:
    ours = model.config.positions
    if ours == theirs or (theirs == "bicubic" and ours == "bilinear"):  # MMSegmentation can be told either
        return []
    height, width = model.config.image_size
    return [f"position embeddings are resampled {theirs}, not {ours}, in windows of another size than {height}×{width}"]


def _norm_eps(model: Segmenter) -> float:
    return next(module.eps for module in model.encoder.vit.modules() if isinstance(module, torch.nn.LayerNorm))


def _normalisation(model: Segmenter) -> str:
    """The name that the authors have for the model's mean and deviation."""
    for name, (mean, std) in NORMALISATIONS.items():
        if np.allclose([*model.config.mean, *model.config.std], [*mean, *std], atol=1e-3):
            return name
    raise InputError(
        f"model: it has mean {model.config.mean} and std {model.config.std}, and the authors' Segmenter "
        f"knows those of {' and '.join(NORMALISATIONS)} only; write it for mmsegmentation"
    )


def _variant(model: Segmenter, kind: str, *, distilled: bool) -> dict[str, Any]:
    config, width = model.config, model.encoder.width
    window = config.image_size[0] if config.window is None else config.window
    decoder: dict[str, Any] = {"name": "linear"}
    if isinstance(model.decoder, MaskTransformer):
        layers = len(model.decoder.blocks)
        decoder = {"name": "mask_transformer", "drop_path_rate": 0.0, "dropout": 0.1, "n_layers": layers}
    net = {
        "backbone": config.backbone.split(".")[0],
        "image_size": list(config.image_size),
        "patch_size": model.patch_size,
        "d_model": width,
        "n_heads": model.encoder.heads,
        "n_layers": len(model.encoder.vit.blocks),
        "n_cls": model.labels.num_classes,
        "normalization": kind,
        "distilled": distilled,
        "dropout": 0.0,
        "drop_path_rate": config.drop_path,
        "decoder": decoder,
    }
    reading = {
        "im_size": window if config.short_side is None else config.short_side,
        "window_size": window,
        "window_stride": min(config.stride, window),
    }
    trained: dict[str, Any] = {"normalization": kind}
    for name, known in DATASETS.items():
        if known.names == model.labels.names:
            trained["dataset"] = name  # the only way in which the file tells the names of classes
    return {"net_kwargs": net, "inference_kwargs": reading, "dataset_kwargs": trained}


def _mlp_ratio(model: Segmenter) -> float | int:
    hidden = next(value for key, value in model.state_dict().items() if key.endswith("mlp.fc1.weight")).shape[0]
    ratio = hidden / model.encoder.width
    return int(ratio) if ratio == int(ratio) else ratio


WRITERS: dict[str, Callable[[Segmenter, Path], list[Path]]] = {
    "mmsegmentation": write_mmsegmentation,
    "segmenter": write_segmenter,
    "timm": write_timm,
}
