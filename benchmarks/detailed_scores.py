"""What `evaluate --detailed` costs per image, beside the prediction itself.

    python benchmarks/detailed_scores.py

Parts are timed one after the other in each round, so that a busy machine slows all of them; medians of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage

import meanshifter as ms
from meanshifter.evaluation.calibration import BINS, reliability_counts
from meanshifter.evaluation.details import RADII, count_details
from meanshifter.evaluation.metrics import boundary_counts, confusion_matrix, near_boundary, only
from meanshifter.evaluation.regions import find_regions, region_counts

SIZES = {"CamVid": (360, 480, 11), "ADE20K": (512, 683, 150), "Cityscapes": (1024, 2048, 19)}
"""Height, width and classes of an image of a dataset."""
IGNORE = 255


def blobs(height: int, width: int, classes: int) -> np.ndarray:
    """A label map of smooth regions."""
    rng = np.random.default_rng(0)
    coarse = ndimage.gaussian_filter(rng.standard_normal((classes, -(-height // 4), -(-width // 4))), (0, 4, 4))
    labels: np.ndarray = coarse.argmax(0).astype(np.uint8).repeat(4, 0).repeat(4, 1)[:height, :width]
    return labels


def parts(height: int, width: int, classes: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    torch.manual_seed(0)
    predictor = ms.Predictor(ms.create_model("segmenter-ti16", classes), window=512, window_stride=480, short_side=512)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    labels, prediction = blobs(height, width, classes), np.roll(blobs(height, width, classes), 5, 1)
    probability = np.random.default_rng(1).random(labels.shape, np.float32)
    bands = [only(labels, near_boundary(labels, radius, IGNORE), IGNORE) for radius in RADII]
    steps = [predictor.mean_shift_layers]
    return {
        "prediction": lambda: predictor.segmentations(image, steps),
        "prediction with probability": lambda: predictor.segmentations(image, steps, confidence=["probability"]),
        "confusion matrix": lambda: confusion_matrix(labels, prediction, classes, ignore=IGNORE),
        "boundary IoU": lambda: boundary_counts(labels, prediction, classes, IGNORE),
        "near boundaries": lambda: [
            confusion_matrix(band, prediction, classes, ignore=IGNORE) + near_boundary(labels, radius, IGNORE).sum()
            for band, radius in zip(bands, RADII, strict=True)
        ],
        "regions": lambda: region_counts(find_regions(labels), labels, prediction, classes, IGNORE),
        "reliability": lambda: reliability_counts(probability, prediction, labels, IGNORE, BINS),
        "all counts": lambda: count_details(labels, [(prediction, probability)], classes, IGNORE, BINS),
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    asked = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, ms per image\n")
    for name in asked.sizes:
        found = parts(*SIZES[name])
        taken: dict[str, list[float]] = {part: [] for part in found}
        for _ in range(asked.rounds + 1):
            for part, call in found.items():
                start = time.perf_counter()
                call()
                taken[part].append(1000 * (time.perf_counter() - start))
        middle = {part: statistics.median(times[1:]) for part, times in taken.items()}
        more = middle["prediction with probability"] - middle["prediction"] + middle["all counts"]
        print(f"{name}, {SIZES[name][0]}×{SIZES[name][1]}, {SIZES[name][2]} classes")
        for part, value in middle.items():
            print(f"  {part:<28} {value:8.1f}  {100 * value / middle['prediction']:6.1f} %")
        print(f"  --detailed adds              {more:8.1f}  {100 * more / middle['prediction']:6.1f} %\n")


if __name__ == "__main__":
    main()
