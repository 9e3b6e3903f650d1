"""A model as one traceable program for any batch and image size, and as one ONNX graph from pixels to label maps.

The encoder's dependence on the image size is written in terms of shapes in `export.encoder`.

The label graph never holds K × H × W values: an ONNX Scan over the classes carries the largest logit so far and its
class. Upsampling one class is two products with small matrices, those of `ops.bilinear_matrix` computed from shapes.

Glossary: B batch, K classes, H W pixels, h w grid of patches or logits, P patch size, D token width, N tokens.
"""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from meanshifter.export import onnx_format
from meanshifter.export.encoder import SizedEncoder
from meanshifter.model.segmenter import Segmenter

if TYPE_CHECKING:
    from pathlib import Path


class PatchLogits(nn.Module):
    """Normalized images (B, 3, H, W) to patch logits (B, K, h, w), after a fixed number of mean shift steps."""

    def __init__(self, model: Segmenter, layers: int) -> None:
        super().__init__()
        self.model = deepcopy(model).cpu().eval()
        self.model.encoder = SizedEncoder(self.model.encoder)
        self.layers = layers

    def forward(self, images: Tensor) -> Tensor:
        """Compute `Segmenter.forward` up to rounding; a fine grid also has the cells of padding."""
        (H, W), P = images.shape[-2:], self.model.patch_size
        padded = F.pad(images, (0, (W + P - 1) // P * P - W, 0, (H + P - 1) // P * P - H))
        return self.model.logits_at(padded, [self.layers])[0].float()


def exported(module: nn.Module, example: Tensor, *, side: int, rows: int = 2) -> ExportedProgram:
    """Trace `module`, whose only argument `images` has any batch, height (axis `rows`) and width (the next axis).

    `side` is the minimum height and width, see `least_side`.
    Dimensions are dynamic hints without names, so that guards it cannot solve become assertions instead of errors.
    """
    sizes = {axis: Dim.DYNAMIC(min=size) for axis, size in ((0, 1), (rows, side), (rows + 1, side))}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        return torch.export.export(
            module.eval(),
            (example,),
            dynamic_shapes={"images": sizes},
            prefer_deferred_runtime_asserts_over_guards=True,
        )


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
    """Write the graph from uint8 RGB images (B, H, W, 3) to labels (B, H, W), without windows.

    Labels are uint8, or uint16 above 255 classes.
    """
    example = torch.zeros(2, *example_size(model), 3, dtype=torch.uint8)
    program = exported(_Parts(model, layers), example, side=least_side(model), rows=1)
    graph = onnx_format.to_onnx(program, ("images",), _PARTS)
    _append_argmax(graph.graph, model.label_space.num_classes)
    onnx_format.save(graph, path)


def read_labels(path: Path, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Run a written graph on an image (H, W, 3) and return its label map (H, W)."""
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
        self.stride = model.output_stride
        self.register_buffer("mean", torch.tensor(model.config.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(model.config.std).view(3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pixels = images.permute(0, 3, 1, 2).float()
        z = self.logits((pixels / 255 - self.mean) / self.std)
        rows, cols = (upsampling(n, side, self.stride) for n, side in zip(z.shape[-2:], images.shape[1:3], strict=True))
        nothing = torch.full_like(pixels[:, 0], -torch.inf)
        return z.permute(1, 0, 2, 3), rows, cols.T, nothing


def upsampling(n: int, pixels: int, stride: int) -> Tensor:
    """Compute `ops.bilinear_matrix` from its hat functions, since exporters cannot trace scattered writes.

    Only the first ceil(pixels / stride) of `n` values have weights: the others hold padding.
    """
    position = (torch.arange(pixels, dtype=torch.float32) + 0.5) / stride - 0.5
    places = torch.arange(n, dtype=torch.float32)
    last = torch.scalar_tensor((pixels + stride - 1) // stride - 1, dtype=torch.float32)
    position = torch.minimum(position.clamp(min=0), last)
    return (1 - (position[:, None] - places).abs()).clamp(min=0)


def least_side(model: Segmenter) -> int:
    """Pixels that programs need along a side: `torch.export` proves shapes for two patches or windows upward."""
    return model.patch_size * (1 if model.config.token_merging is None else 2) + 1


def example_size(model: Segmenter) -> tuple[int, int]:
    """Height and width to trace with: different, and no multiples of the patch, so that neither is specialized."""
    P = model.patch_size
    return 3 * P + 1, 4 * P - 1


def _append_argmax(graph: Any, K: int) -> None:
    """Append the scan over classes to the graph, whose four outputs it replaces with the label map.

    The matrices pass through the scan as states, because OpenVINO cannot resolve outer names in its body.
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
