"""One ONNX graph from pixels to the label map, which never holds K × H × W.

A Scan goes through the classes with the largest logit and its class so far; upsampling one class is two products with
the small matrices of `ops.bilinear_matrix`, which the graph makes from the shapes. Glossary: B batch, K classes,
H W pixels, h w the grid of the logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from meanshifter.interop import onnx_format
from meanshifter.interop.program import PatchLogits, exported

if TYPE_CHECKING:
    from pathlib import Path

    from meanshifter.model.segmenter import Segmenter

FILE = "labels.onnx"
_PARTS = ("by_class", "rows", "cols", "nothing")
_STEP = """
one_class (float[B, H, W] best, int32[B, H, W] winner, float[H, h] rows, float[w, W] cols, float[B, h, w] z, int32 k)
    => (float[B, H, W] best_out, int32[B, H, W] winner_out, float[H, h] rows_out, float[w, W] cols_out) {
  down = MatMul(rows, z)
  up = MatMul(down, cols)
  wins = Greater(up, best)
  best_out = Where(wins, up, best)
  winner_out = Where(wins, k, winner)
  rows_out = Identity(rows)
  cols_out = Identity(cols)
}
"""


def write_label_graph(model: Segmenter, layers: int, path: Path) -> None:
    """uint8 RGB images (B, H, W, 3) to labels (B, H, W), uint8 or above 255 classes uint16, read as whole images."""
    parts = _Parts(model, layers)
    example = torch.zeros(2, *_sides(model), 3, dtype=torch.uint8)
    graph = onnx_format.to_onnx(exported(parts, example, side=model.patch_size + 1, rows=1), ("images",), _PARTS)
    _append_argmax(graph.graph, model.labels.num_classes)
    onnx_format.save(graph, path)


def read_labels(path: Path, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.unsignedinteger[Any]]:
    """The label map (H, W) that a written graph gives for an image (H, W, 3)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    labels: npt.NDArray[np.unsignedinteger[Any]] = session.run(None, {"images": image[None]})[0][0]
    return labels


class _Parts(nn.Module):
    """Pixels to the logits of each class (K, B, h, w), the matrices (H, h) and (w, W), and -inf (B, H, W)."""

    def __init__(self, model: Segmenter, layers: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.logits = PatchLogits(model, layers)
        self.stride = model.stride
        self.register_buffer("mean", torch.tensor(model.config.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(model.config.std).view(3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pixels = images.permute(0, 3, 1, 2).float()
        z = self.logits((pixels / 255 - self.mean) / self.std)
        rows, cols = (upsampling(n, side, self.stride) for n, side in zip(z.shape[-2:], images.shape[1:3], strict=True))
        nothing = torch.full_like(pixels[:, 0], -torch.inf)
        return z.permute(1, 0, 2, 3), rows, cols.T, nothing


def upsampling(n: int, pixels: int, stride: int) -> Tensor:
    """`ops.bilinear_matrix` by its hat functions, as exporters follow no scattered writes.

    It reads the first ceil(pixels / stride) of `n` values only: those behind hold padding.
    """
    position = (torch.arange(pixels, dtype=torch.float32) + 0.5) / stride - 0.5
    places = torch.arange(n, dtype=torch.float32)
    last = torch.scalar_tensor((pixels + stride - 1) // stride - 1, dtype=torch.float32)
    position = torch.minimum(position.clamp(min=0), last)
    return (1 - (position[:, None] - places).abs()).clamp(min=0)


def _sides(model: Segmenter) -> tuple[int, int]:
    """An example's, which are no multiple of the patch."""
    P = model.patch_size
    return 3 * P + 1, 4 * P - 1


def _append_argmax(graph: Any, K: int) -> None:
    """Put the scan over classes behind the graph's four outputs, and its winner in their place.

    The matrices go through the scan as states, because OpenVINO reads no names from outside of its body.
    """
    from onnx import TensorProto, helper, numpy_helper, parser

    small = TensorProto.UINT8 if K <= 255 else TensorProto.UINT16
    graph.initializer.append(numpy_helper.from_array(torch.arange(K, dtype=torch.int32).numpy(), "classes"))
    graph.initializer.append(numpy_helper.from_array(torch.zeros((), dtype=torch.int32).numpy(), "first_class"))
    nodes = [
        helper.make_node("Shape", ["nothing"], ["label_shape"]),
        helper.make_node("Expand", ["first_class", "label_shape"], ["first_labels"]),
        helper.make_node(
            "Scan",
            ["nothing", "first_labels", "rows", "cols", "by_class", "classes"],
            ["largest", "winners", "same_rows", "same_cols"],
            body=parser.parse_graph(_STEP),
            num_scan_inputs=2,
        ),
        helper.make_node("Cast", ["winners"], ["labels"], to=small),
    ]
    graph.node.extend(nodes)
    shape = [dim.dim_param for dim in graph.output[3].type.tensor_type.shape.dim]
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("labels", small, shape))
