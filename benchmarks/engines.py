"""A photo's label map beside the encoder alone: by engine, with merged tokens, and as a share of the machine's peak.

python benchmarks/engines.py [--preset segmenter-ti16] [--size 512 683] [--merge 0.6 0.7 0.8] [--rounds 7]
    [--precision fp32]

A preset's model (Segmenter-Ti/16; runtimes only with it) with 150 classes and random weights, in windows of 512 with
stride 480 at the photo's own size. The head's weights are twenty times as large as at the start of a training, since
logits of trained models differ by several units. All ways take turns in one process. The peak is that of a product of
matrices of 2048×2048; the share counts the multiply-adds of the model, so that ways that merge more may pass 100 %.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from speed.timing import compare

import meanshifter as ms
from meanshifter.inference.windows import window_starts
from meanshifter.model.presets import size_of
from meanshifter.utils import environment as machine

ENGINES = {"ONNX Runtime": ("onnx", "onnxruntime"), "OpenVINO": ("openvino", "openvino")}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--preset", default="segmenter-ti16")
    options.add_argument("--size", type=int, nargs=2, default=(512, 683), metavar=("HEIGHT", "WIDTH"))
    options.add_argument("--merge", type=float, nargs="*", default=[0.6, 0.7, 0.8], metavar="SHARE")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    args = options.parse_args()
    torch.manual_seed(0)
    model = ms.create_model(args.preset, num_classes=150).eval()
    with torch.no_grad():
        model.decoder.head.weight *= 20
    reading: dict[str, Any] = {"short_side": None, "precision": args.precision}
    photo = np.random.default_rng(0).integers(0, 256, (*args.size, 3), dtype=np.uint8)
    windows = int(np.prod([len(window_starts(side, 512, 480)) for side in args.size]))
    images = torch.randn(windows, 3, 512, 512)
    encoder: Any = timm.create_model("vit_tiny_patch16_224", img_size=512, num_classes=0).eval()

    @torch.inference_mode()
    def encode() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            for part in images.split(2):
                encoder.forward_features(part)

    ways: dict[str, Any] = {"timm's encoder alone, same windows": encode}
    ways["Predictor, torch"] = partial(ms.Predictor(model, **reading), photo)
    for share in args.merge:
        ways[f"Predictor, torch, {share:.0%} of windows merged"] = partial(
            ms.Predictor(model, merge_tokens=share, **reading), photo
        )
    with tempfile.TemporaryDirectory() as scratch:
        for name, (form, package) in ENGINES.items():
            if find_spec(package) is not None and args.precision == "fp32" and args.preset == "segmenter-ti16":
                ms.export(model, Path(scratch, form), format=form)
                ways[f"Predictor, {name}"] = partial(ms.Predictor(ms.load_model(Path(scratch, form)), **reading), photo)
        measured = compare(ways, rounds=args.rounds, memory=False)
    peak, work = peak_of_products(), windows * size_of(args.preset, num_classes=150, image_size=512).multiply_adds
    print(machine.describe())
    print(
        f"{args.size[0]}×{args.size[1]}, {windows} windows, {args.precision}: {work / 1e9:.1f} billion multiply-adds; ",
        end="",
    )
    print(f"products reach {peak / 1e9:.0f} billion per second, which makes {1000 * work / peak:.0f} ms\n")
    print("| | median ms | range ms | times the encoder | share of the peak |\n| --- | ---: | ---: | ---: | ---: |")
    for one in measured:
        low, high = 1000 * one.low, 1000 * one.high
        ratio, share = one.seconds / measured[0].seconds, work / peak / one.seconds
        print(f"| {one.name} | {1000 * one.seconds:.1f} | {low:.1f}–{high:.1f} | {ratio:.2f} | {share:.0%} |")


def peak_of_products(side: int = 2048, rounds: int = 5) -> float:
    """Multiply-adds per second of the best of several products of square float32 matrices."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    return side**3 / min(times)


if __name__ == "__main__":
    main()
