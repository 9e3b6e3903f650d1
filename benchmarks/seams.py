"""What blending of windows does to their borders, and to the score.

python benchmarks/seams.py RUN [--split val] --window 128 --window-stride 96

RUN is a run folder, whose dataset and resizing are used; `--split held_out` takes the images of data.val_pattern.

For each blending: mIoU; how often neighboring pixels have different labels where a window begins or ends, and how often
one, two and three pixels beside it, where the content of images is the same. Without seams, the two are equal. A stride
equal to the window has no overlap, and so the same seams with each blending.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

import meanshifter as ms
from meanshifter.inference.windows import Blend, window_starts
from meanshifter.training.parsing import parse_recipe
from meanshifter.training.setup import open_split
from meanshifter.utils.environment import describe

BESIDE = (1, 2, 3)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    options.add_argument("--split", default="val")
    options.add_argument("--window", type=int, required=True)
    options.add_argument("--window-stride", type=int, required=True)
    args = options.parse_args()
    config, model = parse_recipe(args.run / "config.yaml"), ms.load_model(args.run)
    dataset = open_split(config.data, args.split)
    settings = config.evaluation.reading | {"window": args.window, "window_stride": args.window_stride}
    print(f"{describe()}\n\n| blending | mIoU | changes at borders of windows | beside them | ratio |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for blend in get_args(Blend):
        predictor = ms.Predictor(model, window_blend=blend, **settings)
        at, beside = np.zeros(2), np.zeros(2)
        for sample in dataset:
            labels = predictor(sample.image).labels
            sides = predictor.preprocess.size(*labels.shape)
            for axis, side in enumerate(sides):
                edges = borders(side, labels.shape[axis], args.window, args.window_stride)
                at += changes(labels, axis, edges)
                near = {edge + step * sign for edge in edges for step in BESIDE for sign in (-1, 1)} - {*edges}
                beside += changes(labels, axis, sorted(near))
        score = ms.evaluate(predictor, dataset).mIoU
        rates = 100 * at[0] / at[1], 100 * beside[0] / beside[1]
        print(
            f"| {blend} | {score:.2f} | {rates[0]:.3f} % | {rates[1]:.3f} % | {rates[0] / rates[1]:.3f} |", flush=True
        )
    print(f"\n{ms.evaluate(predictor, dataset, limit=1).protocol}")


def borders(length: int, size: int, window: int, stride: int) -> list[int]:
    """Pixels of the label map, `size` of `length` long, before which a window begins or ends."""
    starts = window_starts(length, window, stride)
    inside = {edge for start in starts for edge in (start, start + min(window, length))} - {0, length}
    return sorted({round(edge * size / length) for edge in inside} - {0, size})


def changes(labels: npt.NDArray[Any], axis: int, places: list[int]) -> npt.NDArray[np.float64]:
    """How many pairs of pixels on both sides of `places` differ, and how many there are."""
    upright = labels if axis == 0 else labels.T
    valid = [place for place in places if 0 < place < len(upright)]
    pairs = upright[valid] != upright[[place - 1 for place in valid]]
    return np.array([pairs.sum(), pairs.size], dtype=float)


if __name__ == "__main__":
    main()
