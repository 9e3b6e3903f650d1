"""ONNX, run by ONNX Runtime."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from meanshifter.errors import InputError

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
"""Of 2023, which readers of today have; the first with GELU and dynamic padding as the exporter writes them."""
_CUDA = "CUDAExecutionProvider"


def write(program: ExportedProgram, folder: Path, precision: str, *, calibration: Sequence[Tensor]) -> None:
    """Write the program; int8 is dynamic without `calibration` images (B, 3, H, W), else static."""
    model = to_onnx(program, ("images",), ("logits",))
    if precision == "fp16":
        model = _half(model)
    if precision != "int8":
        save(model, folder / FILE)
        return
    with TemporaryDirectory(dir=folder) as place:
        save(model, Path(place) / FILE)
        _quantize(Path(place), folder / FILE, calibration)


def to_onnx(program: ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """The program as an `onnx.ModelProto`."""
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
    assert written is not None  # no file was named
    return written.model_proto


def save(model: Any, path: Path) -> None:
    """Write a `ModelProto`; weights above 2 GB are refused, as they would need files of their own."""
    import onnx

    try:
        onnx.save(model, path)
    except ValueError as error:  # what protobuf raises
        raise InputError(f"{path}: above 2 GB, the limit of an ONNX file; use --format openvino or torch") from error


def _half(model: Any) -> Any:
    """Weights and arithmetic in float16, images and logits in float32; what places patches stays in float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values that are rounded to float16's range
        return convert_float_to_float16(model, keep_io_types=True)


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


def load(path: Path, precision: str, device: torch.device) -> Session:
    """The program in a file, ready to run; its precision is in it."""
    return Session(path, device)


class Session:
    """An ONNX Runtime session."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self._path = path
        self.to(device)

    @property
    def fastest_device(self) -> str:
        """cuda where ONNX Runtime was built for it and there is one."""
        import onnxruntime

        return "cuda" if _CUDA in onnxruntime.get_available_providers() and torch.cuda.is_available() else "cpu"

    def to(self, device: torch.device) -> None:
        """Open the file for this device."""
        import onnxruntime

        if device.type not in ("cpu", "cuda") or (device.type == "cuda" and self.fastest_device == "cpu"):
            raise InputError(f"device: {device}; this ONNX Runtime runs on {self.fastest_device}: use that")
        providers: list[Any] = ["CPUExecutionProvider"]
        if device.type == "cuda":
            providers.insert(0, (_CUDA, {"device_id": 0 if device.index is None else device.index}))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(self._path, options, providers=providers)
        except Exception as error:  # its errors have no common class
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{self._path}: ONNX Runtime cannot read it ({reason}); export the model again") from error
        self.device = device

    def run(self, images: Tensor) -> Tensor:
        """Patch logits."""
        (logits,) = self._session.run(None, {"images": images.cpu().numpy()})
        return torch.from_numpy(logits).to(self.device)
