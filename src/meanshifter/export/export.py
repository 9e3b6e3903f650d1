"""Write exports, a model's program in another runtime's format plus its `config.json`, and check their agreement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meanshifter.errors import InputError
from meanshifter.export.program import FILE, PatchLogits, example_size, exported, least_side, write_label_graph
from meanshifter.export.runtime import FORMATS, RuntimeModel, load_export
from meanshifter.export.torch_format import require_exporter
from meanshifter.inference.predictor import Predictor
from meanshifter.inference.preprocess import Picture, Pixels, as_pixels, resize
from meanshifter.inference.protocol import as_segmenter
from meanshifter.inference.resolve import resolve_model
from meanshifter.inference.windows import axis, crops
from meanshifter.model.saving import CONFIG, RUNTIME, describe, is_export
from meanshifter.model.segmenter import Segmenter
from meanshifter.ops import View, label_map
from meanshifter.utils.environment import require_installed, require_versions
from meanshifter.utils.files import dump_json, replace_folder, require_replaceable, write_text

Check = Callable[[RuntimeModel], object]
WRITTEN = {CONFIG, FILE, *(name for form in FORMATS.values() for name in form.FILES)}
"""Files that an export of any format may contain."""


def export(
    model: Segmenter | str | Path,
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
    """Export `model` to the folder `out`, for any batch and image size; `load_model(out)` loads it.

    Args:
        model: the model to export, or a name that `load_model` accepts.
        out: the folder, which appears only once everything in it is complete and checked.
        format: "onnx", "openvino" or "torch".
        precision: "fp32"; "fp16", "bf16" and "int8" where the format has them.
        mean_shift_layers: fixed number of mean shift steps; None is the trained number.
        calibration: normalized images (B, 3, H, W) to calibrate activation ranges; int8 only. Without them, OpenVINO
            quantizes weights only, and ONNX computes ranges dynamically in every call.
        label_graph: also write `labels.onnx`, from uint8 images to label maps; ONNX only.
        reading: preprocessing of the model's scores, as arguments of `Predictor`, for later commands.
        check: called with the loaded export before it is moved into place; if it raises, nothing is left behind.
        overwrite: replace an earlier export in `out`.

    Raises:
        InputError: an export or an ensemble, unknown format or precision, a missing or outdated package, or a folder
            that is in use.
    """
    folder, model = Path(out), as_segmenter(resolve_model(model))
    check_export(folder, format, precision, calibrated=bool(calibration), label_graph=label_graph, overwrite=overwrite)
    layers = model.steps(mean_shift_layers)
    example = torch.zeros(2, 3, *example_size(model))
    program = exported(PatchLogits(model, layers), example, side=least_side(model))
    described = describe(model)
    described[RUNTIME] = {
        "format": format,
        "file": FORMATS[format].FILE,
        "precision": precision,
        "mean_shift_layers": layers,
        "output_stride": model.output_stride,
        "reading": dict(reading or {}),
    }
    with replace_folder(folder) as temporary:
        FORMATS[format].write(program, temporary, precision, calibration=calibration)
        if label_graph:
            write_label_graph(model, layers, temporary / FILE)
        write_text(temporary / CONFIG, dump_json(described, indent=2) + "\n")
        if check is not None:
            check(load_export(temporary))


def check_export(
    folder: Path, form: str, precision: str, *, calibrated: bool, label_graph: bool, overwrite: bool
) -> None:
    """Check the arguments of an export before any work; raises as `export` does."""
    require_exporter("export")
    if form not in FORMATS:
        raise InputError(f"format: unknown format {form!r}; use one of {', '.join(FORMATS)}")
    known = FORMATS[form].PRECISIONS
    if precision not in known:
        raise InputError(f"precision: format {form} does not support {precision}; use one of {', '.join(known)}")
    if calibrated and precision != "int8":
        raise InputError(f"calibrate: given for precision {precision}, but only int8 is calibrated; leave it out")
    if label_graph and (form, precision) != ("onnx", "fp32"):
        raise InputError(f"label_map: given for format {form} in {precision}, but only onnx in fp32 has it")
    writer = FORMATS[form]
    packages = (*writer.PACKAGES, *writer.WRITING, *(writer.QUANTIZING if precision == "int8" else ()))
    require_installed(f"format: {form}", writer.EXTRA, *packages)
    require_versions(f"format: {form}", writer.EXTRA, *packages)
    require_replaceable(folder)
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if (folder.exists() and not folder.is_dir()) or (found and not is_export(folder)):
        raise InputError(f"{folder}: already exists and is not an export; choose an empty or new folder")
    if strange := [name for name in found if name not in WRITTEN]:
        raise InputError(
            f"{folder}: contains {strange[0]!r}, which is not from an export; choose an empty or new folder"
        )
    if found and not overwrite:
        raise InputError(f"{folder}: already holds an export; replace it with --overwrite")


@dataclass(frozen=True)
class Agreement:
    """Agreement of two predictors on one or more images."""

    images: int
    pixels: int
    different: int
    """Pixels with different labels."""
    logits: float
    """Largest difference between two patch logits."""
    largest: float
    """Largest absolute patch logit of the first predictor, for scale."""

    @property
    def percent(self) -> float:
        """Pixels with different labels, in percent."""
        return 100 * self.different / self.pixels

    def __str__(self) -> str:
        return (
            f"{100 - self.percent:.4f} % of {self.pixels} pixels agree, patch logits within {self.logits:.2g} "
            f"(the largest is {self.largest:.2g})"
        )


def agreement(first: Predictor, second: Predictor, images: Sequence[Picture]) -> Agreement:
    """Compare two predictors with the same preprocessing, view by view where they average several.

    Raises:
        InputError: no images, or one that cannot be read.
    """
    if not images:
        raise InputError("images: 0 given; compare on at least one")
    pixels = different = 0
    logits = largest = 0.0
    for image in images:
        for ours, theirs in _bands(first, second, as_pixels(image, first.max_pixels)):
            labels = label_map(ours)
            pixels += labels.numel()
            different += int((labels != label_map(theirs).to(labels.device)).sum())
            for a, b in zip(ours, theirs, strict=True):
                logits = max(logits, float((a.z - b.z.to(a.z.device)).abs().max()))
                largest = max(largest, float(a.z.abs().max()))
    return Agreement(len(images), pixels, different, logits, largest)


@torch.inference_mode()
def _bands(first: Predictor, second: Predictor, pixels: Pixels) -> Iterator[tuple[list[View], list[View]]]:
    """The views of both, for each band of rows."""
    both = [predictor.bands(pixels, [predictor.mean_shift_layers]) for predictor in (first, second)]
    for (_, (ours,)), (_, (theirs,)) in zip(*both, strict=True):
        yield ours, theirs


def windows_of(predictor: Predictor, image: Picture) -> Iterator[Tensor]:
    """Yield the normalized windows (1, 3, H, W) of an image at the first scale.

    Raises:
        InputError: the image cannot be read.
    """
    pixels = as_pixels(image, predictor.max_pixels)
    reading, P = predictor.preprocess, predictor.model.output_stride
    size = reading.size(pixels.shape[0], pixels.shape[1], predictor.scales[0])
    rows, cols = (
        axis(length, length, window=reading.window, stride=reading.window_stride, patch_size=P) for length in size
    )
    for crop in crops([resize(pixels, size)], rows, cols, 1):
        yield predictor.model.normalize(crop)
