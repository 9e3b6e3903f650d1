"""Writing exports: a model's program in another runtime's format, beside its `config.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meanshifter.documents import dump_json
from meanshifter.errors import InputError
from meanshifter.files import folder_beside, require_replaceable, write_text
from meanshifter.interop.label_graph import FILE, write_label_graph
from meanshifter.interop.program import PatchLogits, exported
from meanshifter.interop.runtime import FORMATS, RUNTIME, RuntimeModel, is_export, load_export
from meanshifter.interop.torch_format import require_exporter
from meanshifter.model.checkpoint import CONFIG, describe
from meanshifter.model.segmenter import Segmenter
from meanshifter.packages import require_installed, require_versions

Check = Callable[[RuntimeModel], object]
WRITTEN = {CONFIG, FILE, *(name for form in FORMATS.values() for name in form.FILES)}
"""What an export of any format may hold."""


def export_model(
    model: Segmenter,
    out: str | Path,
    *,
    format: str = "onnx",  # noqa: A002 (the word for it)
    precision: str = "fp32",
    mean_shift_layers: int | None = None,
    calibration: Sequence[Tensor] = (),
    label_graph: bool = False,
    reading: Mapping[str, Any] | None = None,
    check: Check | None = None,
    overwrite: bool = False,
) -> None:
    """Write `model` into the folder `out`, for any batch and image size; `load_model(out)` reads it.

    Args:
        model: what is written.
        out: the folder; it is made beside and renamed into place once everything in it is right.
        format: "onnx", "openvino" or "torch".
        precision: "fp32"; "fp16", "bf16" and "int8" where the format has them.
        mean_shift_layers: steps that are built in; None is the trained number.
        calibration: normalised images (B, 3, H, W) that ranges of activations are taken from; int8 only, where
            without them weights alone are stored so (OpenVINO) or ranges are taken anew in every call (ONNX).
        label_graph: also write `labels.onnx`, from uint8 images to label maps; ONNX only.
        reading: how the model's scores read images, as arguments of `Predictor`, for later commands.
        check: called with what was written before it is put in place; where it raises, nothing is left behind.
        overwrite: replace an earlier export in `out`.

    Raises:
        InputError: a format or precision that is not there, a package that is not installed or too old, or a folder
            that is taken.
    """
    folder = Path(out)
    check_export(folder, format, precision, calibrated=bool(calibration), label_graph=label_graph, overwrite=overwrite)
    layers = model.steps(mean_shift_layers)
    program = exported(PatchLogits(model, layers), _example(model), side=model.patch_size + 1)
    described = describe(model)
    described[RUNTIME] = {
        "format": format,
        "file": FORMATS[format].FILE,
        "precision": precision,
        "mean_shift_layers": layers,
        "stride": model.stride,
        "reading": dict(reading or {}),
    }
    with folder_beside(folder) as beside:
        FORMATS[format].write(program, beside, precision, calibration=calibration)
        if label_graph:
            write_label_graph(model, layers, beside / FILE)
        write_text(beside / CONFIG, dump_json(described, indent=2) + "\n")
        if check is not None:
            check(load_export(beside))


def check_export(
    folder: Path, form: str, precision: str, *, calibrated: bool, label_graph: bool, overwrite: bool
) -> None:
    """Refuse what cannot be written before any work.

    Raises:
        InputError: as `export_model`.
    """
    require_exporter("export")
    if form not in FORMATS:
        raise InputError(f"format: {form!r}; use one of {', '.join(FORMATS)}")
    known = FORMATS[form].PRECISIONS
    if precision not in known:
        raise InputError(f"precision: {precision} is not there in format {form}; it has {', '.join(known)}")
    if calibrated and precision != "int8":
        raise InputError(f"calibrate: given for precision {precision}; only int8 takes ranges from images")
    if label_graph and (form, precision) != ("onnx", "fp32"):
        raise InputError(f"label_map: given for format {form} in {precision}; it is written for onnx in fp32")
    writer = FORMATS[form]
    packages = (*writer.PACKAGES, *writer.WRITING, *(writer.QUANTIZING if precision == "int8" else ()))
    require_installed(f"format: {form}", writer.EXTRA, *packages)
    require_versions(f"format: {form}", writer.EXTRA, *packages)
    require_replaceable(folder)
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if (folder.exists() and not folder.is_dir()) or (found and not is_export(folder)):
        raise InputError(f"{folder}: is taken; name an empty or a new folder")
    if strange := [name for name in found if name not in WRITTEN]:
        raise InputError(f"{folder}: holds {strange[0]!r}, which no export wrote; name an empty or a new folder")
    if found and not overwrite:
        raise InputError(f"{folder}: is taken; replace it with --overwrite")


def _example(model: Segmenter) -> Tensor:
    """Images whose sides are no multiple of the patch and unlike each other, so that nothing is taken for fixed."""
    P = model.patch_size
    return torch.zeros(2, 3, 3 * P + 1, 4 * P - 1)
