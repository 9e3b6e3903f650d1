"""Export to OpenVINO's intermediate representation."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from meanshifter.errors import InputError, summarize_error

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FILE = "model.xml"
FILES = (FILE, "model.bin")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
PACKAGES = ("openvino",)
WRITING: tuple[str, ...] = ()
QUANTIZING: tuple[str, ...] = ("nncf",)
EXTRA = "openvino"
_ARITHMETIC = {"fp32": "f32", "fp16": "f32", "bf16": "bf16", "int8": "f32"}
"""The runtime's precision hint; by default it uses bfloat16 wherever the processor has units for it."""
_PRODUCTS = 384
"""Products of a linear layer that are summed at a time: the runtime sums sequentially, and shorter sums round less."""


def write(program: ExportedProgram, folder: Path, precision: str, *, calibration: Sequence[Tensor]) -> None:
    """Write the program; fp16 and int8 compress the weights, and int8 with `calibration` images also computes in it."""
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converter's own deprecations
        model = openvino.convert_model(program)
        if precision == "fp32":
            _shorten_sums(model)
        if precision == "int8":
            with redirect_stdout(None):  # progress bars
                model = _quantize(model, calibration)
    model.inputs[0].tensor.set_names({"images"})
    model.outputs[0].tensor.set_names({"logits"})
    try:
        openvino.save_model(model, folder / FILE, compress_to_fp16=precision == "fp16")
    except RuntimeError as error:  # the streams of OpenVINO do not report the reason
        raise OSError("OpenVINO could not write the model; the disk may be full") from error


def _shorten_sums(model: Any) -> None:
    """Split each linear layer with many inputs into several with few, and add their outputs."""
    import numpy as np
    from openvino import opset13 as ops

    for layer in model.get_ordered_ops():
        if layer.get_type_name() != "MatMul" or not layer.get_attributes()["transpose_b"]:
            continue
        weight = layer.input_value(1).get_node()
        if weight.get_type_name() != "Constant" or weight.data.ndim != 2 or weight.data.shape[1] <= _PRODUCTS:
            continue
        weights = np.array_split(weight.data, -(-weight.data.shape[1] // _PRODUCTS), axis=1)
        inputs = ops.variadic_split(layer.input_value(0), -1, [part.shape[1] for part in weights]).outputs()
        sums = [
            ops.matmul(one, ops.constant(np.ascontiguousarray(part)), False, True)
            for one, part in zip(inputs, weights, strict=True)
        ]
        total = reduce(ops.add, sums).output(0)
        for user in layer.output(0).get_target_inputs():
            user.replace_source_output(total)


def _quantize(model: Any, calibration: Sequence[Tensor]) -> Any:
    import nncf

    nncf.set_log_level(logging.ERROR)
    if not calibration:
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    images = nncf.Dataset([part.cpu().numpy() for part in calibration])
    return nncf.quantize(model, images, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(calibration))


class Compiled:
    """The OpenVINO model in a file, compiled."""

    fastest_device = "cpu"

    def __init__(self, path: Path, precision: str, device: torch.device) -> None:
        import openvino

        self.to(device)
        with path.open("rb") as file:
            start = file.read(200).lstrip()
        if not start.startswith((b"<?xml", b"<net")):  # OpenVINO's readers of other formats would print messages
            raise InputError(f"{path}: not an OpenVINO model, which is XML; export the model again")
        options = {"INFERENCE_PRECISION_HINT": _ARITHMETIC[precision], "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        try:
            self._model = openvino.Core().compile_model(path, "CPU", options)
        except RuntimeError as error:
            reason = summarize_error(error)
            raise InputError(f"{path}: OpenVINO cannot read it ({reason}); export the model again") from error

    def to(self, device: torch.device) -> None:
        """Accept only the CPU."""
        if device.type != "cpu":
            raise InputError(f"device: {device}, but OpenVINO exports run on the CPU; use cpu, or --format onnx")
        self.device = device

    def run(self, images: Tensor) -> Tensor:
        """Patch logits."""
        return torch.from_numpy(self._model(images.cpu().numpy())[0].copy())


load = Compiled
