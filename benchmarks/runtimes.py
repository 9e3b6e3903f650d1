"""Exports beside torch: how far label maps and patch logits agree on images, and how fast two windows are read.

python benchmarks/runtimes.py [--model MODEL | --weights FILE] [--rounds 7] IMAGE…
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from speed.report import table
from speed.timing import compare

import meanshifter as ms
from meanshifter.data.augment import Pixels
from meanshifter.export.export import agreement, export, windows_of
from meanshifter.inference.protocol import PatchModel, as_segmenter
from meanshifter.training.stored_config import recipe_reading
from meanshifter.utils import environment

WAYS = {
    "torch.export, fp32": ("torch", "fp32", False),
    "ONNX Runtime, fp32": ("onnx", "fp32", False),
    "ONNX Runtime, fp16": ("onnx", "fp16", False),
    "ONNX Runtime, int8": ("onnx", "int8", False),
    "ONNX Runtime, int8, calibrated": ("onnx", "int8", True),
    "OpenVINO, fp32": ("openvino", "fp32", False),
    "OpenVINO, fp16": ("openvino", "fp16", False),
    "OpenVINO, bf16": ("openvino", "bf16", False),
    "OpenVINO, int8": ("openvino", "int8", False),
    "OpenVINO, int8, calibrated": ("openvino", "int8", True),
}
PLAIN = "torch, fp32, patches not centered"
EPSILON = 2.0**-24
"""What rounding to float32 changes a number by, at most, as a part of it."""


def exports(model: ms.Segmenter, calibration: list[torch.Tensor], place: Path) -> dict[str, PatchModel]:
    found = {}
    for name, (form, precision, calibrated) in WAYS.items():
        export(
            model,
            place / name,
            format=form,
            precision=precision,
            calibration=calibration if calibrated else [],
        )
        found[name] = ms.load_model(place / name)
    return found


def uncentered(model: ms.Segmenter) -> ms.Segmenter:
    """The model with the plain convolution for its patch embedding."""
    plain = copy.deepcopy(model)
    embed = plain.encoder.vit.patch_embed
    projection, embed.proj = embed.proj, torch.nn.Conv2d(3, embed.proj.out_channels, plain.patch_size, plain.patch_size)
    embed.proj.weight, embed.proj.bias = projection.weight, projection.bias
    return plain


def in_double(model: ms.Segmenter, nudge: float = 0.0) -> ms.Segmenter:
    """The model in float64, on normalized pixels that are off by `nudge` of themselves at random."""
    double, draws = copy.deepcopy(model).double(), torch.Generator().manual_seed(0)

    def normalize(images: Pixels | torch.Tensor) -> torch.Tensor:
        exact = model.normalize(images).double()
        return exact * (1 + nudge * torch.randn(exact.shape, generator=draws, dtype=exact.dtype))

    double.normalize = normalize  # type: ignore[method-assign]
    return double


def agreements(model: ms.Segmenter, others: dict[str, PatchModel], images: list[str], reading: dict[str, Any]) -> str:
    own, exact = ms.Predictor(model, **reading), ms.Predictor(in_double(model), **reading)
    lines = [
        "| | pixels that agree, % | patch logits within | and of float64 within |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, other in others.items():
        precision = "bf16" if name == "torch, bf16" else "fp32"
        predictor = ms.Predictor(other, **{**reading, "precision": precision})
        found, rounding = (agreement(one, predictor, images) for one in (own, exact))
        lines.append(f"| {name} | {100 - found.percent:.4f} | {found.logits:.2g} | {rounding.logits:.2g} |")
    return "\n".join([f"Largest patch logit {found.largest:.3g}, {found.pixels} pixels:", "", *lines])


def latencies(model: ms.Segmenter, others: dict[str, PatchModel], rounds: int) -> str:
    images = torch.randn(2, 3, 512, 512)
    compiled = torch.compile(copy.deepcopy(model))

    def work(run: Callable[[torch.Tensor], object], half: bool = False) -> Callable[[], object]:
        def call() -> object:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                return run(images)

        return call

    unfused = model.evaluation_view()
    unfused.set_attention(fused=False)
    ways = {
        "torch, fp32": work(model),
        PLAIN: work(uncentered(model)),
        "torch, fp32, compiled": work(compiled),
        "torch, bf16": work(unfused, half=True),
    }
    ways |= {name: work(other) for name, other in others.items()}
    return table("Patch logits of 2 windows of 512×512", compare(ways, rounds=rounds, memory=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="+")
    parser.add_argument("--model")
    parser.add_argument("--weights")
    parser.add_argument("--rounds", type=int, default=7, help="0: no times")
    args = parser.parse_args()
    torch.manual_seed(0)
    reading = {} if args.model is None else recipe_reading(args.model)
    model = (
        ms.create_model("meanshifter-ti16", num_classes=150, encoder_weights=args.weights)
        if args.model is None
        else as_segmenter(ms.load_model(args.model))
    ).eval()
    print(
        environment.describe(), *(f"{name} {version(name)}" for name in ("onnxruntime", "openvino", "nncf")), sep="; "
    )
    predictor = ms.Predictor(model, **reading)
    calibration = [window for image in args.images for window in windows_of(predictor, image)][:32]
    with tempfile.TemporaryDirectory() as place:
        others = exports(model, calibration, Path(place))
        more: dict[str, PatchModel] = {
            "torch, fp32": model,
            PLAIN: uncentered(model),
            "torch, float64, pixels rounded to fp32": in_double(model, nudge=EPSILON),
            "torch, bf16": model,
        }
        print("\n" + agreements(model, {**more, **others}, args.images, reading), flush=True)
        if args.rounds:
            print("\n" + latencies(model, others, args.rounds), flush=True)


if __name__ == "__main__":
    main()
