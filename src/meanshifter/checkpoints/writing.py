"""Write our models as files that other tools load.

Sources: `init_model` of MMSegmentation 1.2.2, which takes a configuration and a checkpoint; `load_model` in
`segm/model/factory.py` of github.com/rstrudel/segmenter, which takes `checkpoint.pth` and the `variant.yml` in the same
folder, and what its `segm/inference.py` and `segm/eval/miou.py` read from the latter; timm's `create_model`.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from pprint import pformat
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from meanshifter.checkpoints.compat import segmenter_inference
from meanshifter.checkpoints.naming import MMSEGMENTATION, SEGMENTER, TIMM, Naming, assert_plain, to_foreign
from meanshifter.checkpoints.segmenter_official import DATASETS, EPS, MAX_RATIOS, NORMALIZATIONS, STEPS
from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError
from meanshifter.model.decoder import MaskTransformer
from meanshifter.model.saving import FileState, save_tensors
from meanshifter.model.segmenter import Segmenter
from meanshifter.utils.files import write_all_or_none, write_atomically, write_text

OFFICIAL = "the official Segmenter"


def write_mmsegmentation(model: Segmenter, path: str | Path, held: FileState | None = None) -> list[Path]:
    """Write an MMSegmentation checkpoint `path` (.pth) and, with the suffix `.py`, its configuration for `init_model`.

    Raises:
        InputError: the model has a part that MMSegmentation lacks.
    """
    path = Path(path)
    assert_plain(model.encoder.vit, "MMSegmentation", without=("patch_embed.proj.bias", "norm.weight", "norm.bias"))
    state = _foreign_state(model, MMSEGMENTATION, "MMSegmentation", held)
    config = _mmsegmentation_config(model)
    labels = {"classes": list(model.label_space.names), "palette": [list(color) for color in model.label_space.palette]}
    text = "\n".join(f"{name} = {pformat(value, sort_dicts=False)}" for name, value in config.items()) + "\n"
    meta = {"dataset_meta": labels, "CLASSES": labels["classes"], "PALETTE": labels["palette"], "cfg": text}
    content = {"meta": meta, "state_dict": OrderedDict(state)}
    described = path.with_suffix(".py")
    write_all_or_none(
        {
            path: lambda file: torch.save(content, file.name),
            described: lambda file: file.write(text.encode()),
        }
    )
    _warn_of_changes("MMSegmentation", _changed_positions(model, "bicubic") + _changed_temperature(model))
    if model.mean_shift is not None:
        warnings.warn("MMSegmentation has no MeanShifterHead; register one before calling init_model", stacklevel=2)
    return [path, described]


def write_segmenter(model: Segmenter, folder: str | Path, held: FileState | None = None) -> list[Path]:
    """Write `checkpoint.pth` and `variant.yml` into `folder`, as the official Segmenter does.

    Its encoder has an ImageNet classifier that it does not use; it is the one in `held`, or else zeros.

    Raises:
        InputError: the model has a part that the official Segmenter lacks.
    """
    folder = Path(folder)
    assert_plain(model.encoder.vit, OFFICIAL, without=("patch_embed.proj.bias",), extra=("dist_token",))
    _check_sizes(model)
    state = _foreign_state(model, SEGMENTER, OFFICIAL, held)
    normalization = _normalization_of(model)
    changed = _changed_positions(model, "bilinear") + _changed_temperature(model)
    if (eps := _norm_eps(model)) != EPS:
        changed.append(f"layer norms have ε {EPS:g} instead of {eps:g}")
    distilled = getattr(model.encoder.vit, "dist_token", None) is not None
    variant = _variant(model, normalization, distilled=distilled)
    if not model.config.patch_bias:
        state["encoder.patch_embed.proj.bias"] = torch.zeros(model.encoder.width)
    for head in ("head", "head_dist")[: 1 + distilled]:
        for name, shape in (("weight", (1000, model.encoder.width)), ("bias", (1000,))):
            state.setdefault(f"encoder.{head}.{name}", torch.zeros(shape))
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "checkpoint.pth", folder / "variant.yml"]
    _save_pickle(written[0], {"model": OrderedDict(state), "n_cls": model.label_space.num_classes})
    write_text(written[1], yaml.safe_dump(variant))
    _warn_of_changes(OFFICIAL, changed + _lost(model, variant))
    if model.mean_shift is not None:
        warnings.warn(f"{OFFICIAL} has no mean shift block; load the files with a fork that has one", stacklevel=2)
    return written


def write_timm(model: Segmenter, path: str | Path, held: FileState | None = None) -> list[Path]:
    """Write the encoder alone under timm's names, as .safetensors or as a .pth of its state dict."""
    path = Path(path)
    state = to_foreign((FileState() if held is None else held).tensors(model), TIMM)
    if not model.config.patch_bias:
        state["patch_embed.proj.bias"] = torch.zeros(model.encoder.width)
    if path.suffix == ".safetensors":
        save_tensors(path, state, {"format": "pt"})
    else:
        _save_pickle(path, state)
    return [path]


WRITERS: dict[str, Callable[..., list[Path]]] = {
    "mmsegmentation": write_mmsegmentation,
    "segmenter": write_segmenter,
    "timm": write_timm,
}
"""By tool, the function that writes a model to a path, given the `FileState` of its source; returns the files."""


def _foreign_state(model: Segmenter, naming: Naming, tool: str, held: FileState | None) -> dict[str, Tensor]:
    """The model's tensors under a tool's names, plus the extra tensors of the file that it was read from."""
    held = FileState() if held is None else held
    own = held.tensors(model)
    unplaced = [name for name in own if naming.place(name) is None]
    shift = model.config.mean_shift
    if shift is not None and not shift.is_published:
        unplaced.append("mean_shift, which is not the published block")
    if unplaced:
        raise InputError(f"model: {tool} has no place for {', '.join(unplaced[:3])}; save a model folder instead")
    extra = {name: value for name, value in held.extra_tensors.items() if name.startswith(naming.unused)}
    return to_foreign(own, naming) | extra


def _save_pickle(path: Path, content: Any) -> None:
    write_atomically(path, lambda file: torch.save(content, file.name))


def _warn_of_changes(tool: str, changed: list[str]) -> None:
    if changed:
        warnings.warn(f"{tool} computes this model slightly differently: {'; '.join(changed)}", stacklevel=3)


def _changed_temperature(model: Segmenter) -> list[str]:
    """A note if probabilities have a temperature, for which no other tool has a place."""
    temperature = model.config.temperature
    return [] if temperature == 1 else [f"probabilities without dividing logits by the temperature {temperature:g}"]


def _changed_positions(model: Segmenter, theirs: str) -> list[str]:
    """A note if the tool resamples position embeddings as `theirs` and the model does not."""
    ours = model.config.positions
    if ours == theirs or (theirs == "bicubic" and ours == "bilinear"):  # MMSegmentation can be configured for either
        return []
    height, width = model.config.image_size
    return [f"position embeddings are resampled {theirs}, not {ours}, for windows other than {height}×{width}"]


def _norm_eps(model: Segmenter) -> float:
    """ε of the encoder's layer norms."""
    return next(module.eps for module in model.encoder.vit.modules() if isinstance(module, torch.nn.LayerNorm))


def _mlp_ratio(model: Segmenter) -> float | int:
    """Width of the encoder's MLPs relative to its tokens."""
    hidden = next(value for key, value in model.state_dict().items() if key.endswith("mlp.fc1.weight")).shape[0]
    ratio = hidden / model.encoder.width
    return int(ratio) if ratio == int(ratio) else ratio


def _mmsegmentation_config(model: Segmenter) -> dict[str, Any]:
    """What `init_model` needs, in the fields of MMSegmentation 1.x."""
    config, vit = model.config, model.encoder.vit
    encoder = {
        "type": "VisionTransformer",
        "img_size": config.image_size,
        "patch_size": model.patch_size,
        "embed_dims": model.encoder.width,
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
    test: dict[str, Any] = {"mode": "whole"}
    if config.window is not None:
        stride = config.window_stride
        test = {"mode": "slide", "crop_size": (config.window, config.window), "stride": (stride, stride)}
    network = {
        "type": "EncoderDecoder",
        "data_preprocessor": {"type": "SegDataPreProcessor", **pixels, "bgr_to_rgb": True, "size": config.image_size},
        "backbone": encoder,
        "decode_head": _mmsegmentation_head(model),
        "test_cfg": test,
    }
    steps: list[dict[str, Any]] = [{"type": "LoadImageFromFile"}]
    if config.short_side is not None:
        steps.append({"type": "Resize", "scale": (config.long_side, config.short_side), "keep_ratio": True})
    steps.append({"type": "PackSegInputs"})
    return {"default_scope": "mmseg", "model": network, "test_pipeline": steps}


def _mmsegmentation_head(model: Segmenter) -> dict[str, Any]:
    width, K = model.encoder.width, model.label_space.num_classes
    shared = {"in_channels": width, "channels": width, "num_classes": K, "dropout_ratio": 0.0}
    if isinstance(model.decoder, MaskTransformer):
        sizes = {"num_layers": len(model.decoder.blocks), "num_heads": _decoder_heads(model), "embed_dims": width}
        return {"type": "SegmenterMaskTransformerHead", **shared, **sizes}
    if model.mean_shift is not None:
        return {"type": "MeanShifterHead", **shared, "num_layers": model.mean_shift.layers}
    return {"type": "FCNHead", **shared, "num_convs": 0, "concat_input": False}


def _decoder_heads(model: Segmenter) -> int:
    heads = model.config.decoder_heads
    return max(model.encoder.width // 64, 1) if heads is None else heads


def _check_sizes(model: Segmenter) -> None:
    """Refuse sizes that the official `create_segmenter` derives from the width, without a field in `variant.yml`."""
    width, heads = model.encoder.width, _decoder_heads(model)
    if (ratio := _mlp_ratio(model)) != 4:
        raise InputError(f"model: mlp_ratio is {ratio}, but {OFFICIAL} has 4; write it for mmsegmentation")
    if isinstance(model.decoder, MaskTransformer) and heads != width // 64:
        raise InputError(
            f"model: decoder_heads is {heads}, but {OFFICIAL} has one for each 64 of {width} channels; write it for "
            "mmsegmentation"
        )
    if any(side % model.patch_size for side in model.config.image_size):
        raise InputError(
            f"model: image_size is {model.config.image_size}, but {OFFICIAL} takes multiples of its patches of "
            f"{model.patch_size} pixels only; write it for mmsegmentation"
        )


def _normalization_of(model: Segmenter) -> str:
    """The official name of the model's mean and standard deviation."""
    for name, (mean, std) in NORMALIZATIONS.items():
        if np.allclose([*model.config.mean, *model.config.std], [*mean, *std], atol=1e-3):
            return name
    raise InputError(
        f"model: mean is {model.config.mean} and std is {model.config.std}, but {OFFICIAL} has those of "
        f"{' and '.join(NORMALIZATIONS)} only; write it for mmsegmentation"
    )


def _variant(model: Segmenter, normalization: str, *, distilled: bool) -> dict[str, Any]:
    """The content of `variant.yml`."""
    config = model.config
    reading = segmenter_inference(config)
    window, side = reading.window, config.short_side
    decoder: dict[str, Any] = {"name": "linear"}
    if isinstance(model.decoder, MaskTransformer):
        layers = len(model.decoder.blocks)
        decoder = {"name": "mask_transformer", "drop_path_rate": 0.0, "dropout": 0.1, "n_layers": layers}
    # the official loader fetches ImageNet weights by timm's name; a name that timm lacks fetches none
    custom = f"vit_{model.encoder.width}_patch{model.patch_size}"
    net = {
        "backbone": custom if config.encoder_args else config.encoder.split(".")[0],
        "image_size": list(config.image_size),
        "patch_size": model.patch_size,
        "d_model": model.encoder.width,
        "n_heads": model.encoder.heads,
        "n_layers": len(model.encoder.vit.blocks),
        "n_cls": model.label_space.num_classes,
        "normalization": normalization,
        "distilled": distilled,
        "dropout": 0.0,
        "drop_path_rate": config.drop_path,
        "decoder": decoder,
    }
    side = window if side is None else side
    height, crop = config.image_size
    trained: dict[str, Any] = {
        "normalization": normalization,
        "image_size": side,
        "crop_size": crop if crop == height else window,  # the window with which segm.eval.miou scores
    }
    for name, known in DATASETS.items():
        if known.names == model.label_space.names:
            trained["dataset"] = name  # the only place where the file can state the class names
    windows = {"im_size": side, "window_size": window, "window_stride": reading.window_stride}
    variant: dict[str, Any] = {"net_kwargs": net, "inference_kwargs": windows, "dataset_kwargs": trained}
    return variant if config.mean_shift is None else variant | {STEPS: config.mean_shift.layers}


def _lost(model: Segmenter, variant: Mapping[str, Any]) -> list[str]:
    """Preprocessing and class names that `variant.yml` cannot express."""
    config, side = model.config, variant["inference_kwargs"]["im_size"]
    lost: list[str] = []
    long_side = MAX_RATIOS.get(variant["dataset_kwargs"].get("dataset"), MAX_RATIOS["ade20k"]) * side
    if config.window is None:
        lost.append(f"images are split into windows of {variant['inference_kwargs']['window_size']}")
    if config.short_side is None or config.long_side != long_side:
        sides = "kept at their size" if config.short_side is None else f"{config.long_side}×{config.short_side}"
        lost.append(f"scored images are resized to fit {long_side}×{side}, not {sides}")
    unnamed = LabelSpace.unnamed(model.label_space.num_classes).names
    if "dataset" not in variant["dataset_kwargs"] and model.label_space.names != unnamed:
        lost.append("class names are lost")
    return lost
