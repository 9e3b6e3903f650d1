"""Export to ONNX, run by ONNX Runtime."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from meanshifter.errors import InputError, summarize_error

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FILE = "model.onnx"
FILES = (FILE,)
PRECISIONS = ("fp32", "fp16", "int8")
PACKAGES = ("onnxruntime",)
WRITING: tuple[str, ...] = ("onnx", "onnxscript")
QUANTIZING: tuple[str, ...] = ()
EXTRA = "onnx"
OPSET = 20
"""The first with GELU and dynamic padding as the exporter writes them, of 2023, which today's runtimes support."""
_CUDA = "CUDAExecutionProvider"


def write(program: ExportedProgram, folder: Path, precision: str, *, calibration: Sequence[Tensor]) -> None:
    """Write the program; int8 is static with `calibration` images (B, 3, H, W), else dynamic."""
    model = to_onnx(program, ("images",), ("logits",))
    if precision == "fp16":  # weights and arithmetic; inputs, outputs and patch positions stay in float32
        from onnxruntime.transformers.float16 import convert_float_to_float16

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values clipped to float16's range
            model = convert_float_to_float16(model, keep_io_types=True)
    if precision != "int8":
        save(model, folder / FILE)
        return
    with TemporaryDirectory(dir=folder) as place:
        save(model, Path(place) / FILE)
        _quantize(Path(place), folder / FILE, calibration)


def to_onnx(program: ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """Convert the program to an `onnx.ModelProto`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        written = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            verbose=False,
        )
    assert written is not None  # since no file was given
    return written.model_proto


def save(model: Any, path: Path) -> None:
    """Write a `ModelProto`; refuse weights above 2 GB, which would need separate files."""
    import onnx

    try:
        onnx.save(model, path)
    except ValueError as error:  # from protobuf
        raise InputError(f"{path}: above 2 GB, the limit of an ONNX file; use --format openvino or torch") from error


def _quantize(place: Path, target: Path, calibration: Sequence[Tensor]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._images: Iterator[Tensor] = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            images = next(self._images, None)
            return None if images is None else {"images": images.cpu().numpy()}

    quant_pre_process(place / FILE, place / "prepared.onnx", skip_symbolic_shape=True)
    if not calibration:
        quantize_dynamic(place / "prepared.onnx", target, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"])
        return
    quantize_static(
        place / "prepared.onnx", target, Images(), per_channel=True, op_types_to_quantize=["MatMul", "Conv"]
    )


class Session:
    """An ONNX Runtime session on a file, which includes its precision."""

    def __init__(self, path: Path, precision: str, device: torch.device) -> None:
        self._path = path
        self.to(device)

    @property
    def fastest_device(self) -> str:
        """cuda if ONNX Runtime was built for it and a GPU is available, else cpu."""
        import onnxruntime

        return "cuda" if _CUDA in onnxruntime.get_available_providers() and torch.cuda.is_available() else "cpu"

    def to(self, device: torch.device) -> None:
        """Open the file on this device."""
        import onnxruntime

        if device.type not in ("cpu", "cuda") or (device.type == "cuda" and self.fastest_device == "cpu"):
            raise InputError(f"device: {device} is not available in this ONNX Runtime; use {self.fastest_device}")
        providers: list[Any] = ["CPUExecutionProvider"]
        if device.type == "cuda":
            providers.insert(0, (_CUDA, {"device_id": 0 if device.index is None else device.index}))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(self._path, options, providers=providers)
        except Exception as error:  # ONNX Runtime's errors have no common class
            reason = summarize_error(error)
            raise InputError(f"{self._path}: ONNX Runtime cannot read it ({reason}); export the model again") from error
        self.device = device

    def run(self, images: Tensor) -> Tensor:
        """Patch logits."""
        (logits,) = self._session.run(None, {"images": images.cpu().numpy()})
        return torch.from_numpy(logits).to(self.device)


load = Session
