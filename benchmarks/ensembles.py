"""Time and memory of an ensemble's prediction against that of one model.

python benchmarks/ensembles.py [--members 5] [--classes 19] [--side 512]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

import meanshifter as ms


def main() -> None:
    """Print the medians of alternating repetitions, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=7)
    args = parser.parse_args()
    models = [_model(args.classes, args.side, seed) for seed in range(args.members)]
    image = np.random.default_rng(0).integers(0, 256, (args.side, args.side, 3), dtype=np.uint8)
    one, all_of_them = ms.Predictor(models[0]), ms.Predictor(models)
    times: dict[str, list[float]] = {"one model": [], f"{args.members} models": []}
    for predict in (one, all_of_them):
        predict(image)  # compiles the kernels
    for _ in range(args.repetitions):
        for name, predictor in zip(times, (one, all_of_them), strict=True):
            times[name].append(_seconds(lambda predictor=predictor: predictor(image)))  # type: ignore[misc]
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"{name}: {1000 * seconds:.0f} ms")
    single, several = medians.values()
    print(
        f"ratio {several / single:.2f}; {torch.get_num_threads()} threads, {args.classes} classes, {args.side} pixels"
    )


def _model(classes: int, side: int, seed: int) -> ms.Segmenter:
    torch.manual_seed(seed)
    return ms.create_model("segmenter-ti16", classes, image_size=side).eval()


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
