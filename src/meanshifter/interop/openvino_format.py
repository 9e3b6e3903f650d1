"""OpenVINO's intermediate representation."""

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

from meanshifter.errors import InputError

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
"""What is told to the runtime; left to itself it takes bfloat16 wherever the processor has units for it."""
_PRODUCTS = 384
"""The runtime adds the products of a linear layer one after the other; so many at a time round less."""


def write(program: ExportedProgram, folder: Path, precision: str, *, calibration: Sequence[Tensor]) -> None:
    """Write the program; fp16 stores the weights so, int8 too, or with `calibration` images computes in it."""
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converter's own deprecations
        model = openvino.convert_model(program)
        if precision == "fp32":
            _shorten_sums(model)
        if precision == "int8":
            with redirect_stdout(None):  # its bars
                model = _quantize(model, calibration)
    model.inputs[0].tensor.set_names({"images"})
    model.outputs[0].tensor.set_names({"logits"})
    try:
        openvino.save_model(model, folder / FILE, compress_to_fp16=precision == "fp16")
    except RuntimeError as error:  # its streams do not say why
        raise OSError("OpenVINO could not write it, perhaps for want of space") from error


def _shorten_sums(model: Any) -> None:
    """Make of each linear layer with many inputs several with few, and add what they give."""
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


def load(path: Path, precision: str, device: torch.device) -> Compiled:
    """The program in a file, compiled."""
    return Compiled(path, precision, device)


class Compiled:
    """A compiled OpenVINO model."""

    fastest_device = "cpu"

    def __init__(self, path: Path, precision: str, device: torch.device) -> None:
        import openvino

        self.to(device)
        _require_program(path)
        options = {"INFERENCE_PRECISION_HINT": _ARITHMETIC[precision], "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        try:
            self._model = openvino.Core().compile_model(path, "CPU", options)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: OpenVINO cannot read it ({reason}); export the model again") from error

    def to(self, device: torch.device) -> None:
        """Refuse anything but the CPU."""
        if device.type != "cpu":
            raise InputError(f"device: {device}; OpenVINO exports run on the CPU here: use cpu, or --format onnx")
        self.device = device

    def run(self, images: Tensor) -> Tensor:
        """Patch logits."""
        return torch.from_numpy(self._model(images.cpu().numpy())[0].copy())


def _require_program(path: Path) -> None:
    """Refuse what OpenVINO would hand to its readers of other formats, which print for themselves.

    Raises:
        InputError: it does not begin as a program of OpenVINO does.
    """
    with path.open("rb") as file:
        start = file.read(200).lstrip()
    if not start.startswith((b"<?xml", b"<net")):
        raise InputError(f"{path}: holds no program of OpenVINO, which is XML; export the model again")
