"""A linear head on the cached tokens of a frozen encoder, beside slower ways: time of training, and mIoU.

python benchmarks/linear_head.py CAMVID --weights WEIGHTS [--modes cached head whole] [--short 180] [--steps 300]
    [--docs docs/benchmarks.md]

Trains Segmenter-Ti/16 (a linear decoder) with the settings of the recipe camvid_half on whole images of CamVid,
mirrored at random. Modes: cached, the head on tokens that are computed first (data.token_cache); head, on tokens that
are computed in every step; whole, all weights. WEIGHTS are those of ViT-Ti/16 at 224 pixels, with timm's names.

All runs are in one process, one after the other, on one thread. Times are processor seconds, which other processes of a
busy machine change little; the evaluation, on all test images with the last weights, is not included. With --docs, the
table replaces the one between the markers in that file.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import torch
from finetuning import replace

from meanshifter.training import loop
from meanshifter.training.parsing import parse_recipe
from meanshifter.training.token_cache import TokenCache, bytes_needed
from meanshifter.utils import environment

MARKERS = ("<!-- linear head: begin -->", "<!-- linear head: end -->")


Mode = Literal["cached", "head", "whole"]
MODES: dict[Mode, str] = {"cached": "head, cached tokens", "head": "head", "whole": "whole model"}


class Row(NamedTuple):
    """One run."""

    height: int
    mode: Mode
    steps: int
    megabytes: float
    filling: float
    stepping: float
    score: float

    def cells(self) -> list[str]:
        """Cells of a row of the table."""
        return [
            f"{self.height * 4 // 3}×{self.height}",
            MODES[self.mode],
            str(self.steps),
            f"{self.megabytes:,.0f}" if self.megabytes else "",
            f"{self.filling:.1f}" if self.megabytes else "",
            f"{1000 * self.stepping / self.steps:.0f}",
            f"{self.stepping:.1f}",
            f"{self.filling + self.stepping:.1f}",
            f"{self.score:.2f}",
        ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", type=Path)
    options.add_argument("--weights", required=True, type=Path)
    options.add_argument("--short", nargs="+", type=int, default=[180], help="heights of the images")
    options.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    options.add_argument("--steps", nargs="+", type=int, default=[300])
    options.add_argument("--docs", type=Path, help="file whose table is replaced")
    args = options.parse_args()
    torch.set_num_threads(1)
    rows = []
    for height, mode, steps in itertools.product(args.short, args.modes, args.steps):
        rows.append(measure(args, height, mode, steps))
        print(rows[-1], file=sys.stderr, flush=True)
    text = table(rows)
    print(text)
    if args.docs is not None:
        replace(args.docs, text, MARKERS)


def measure(args: argparse.Namespace, height: int, mode: Mode, steps: int) -> Row:
    """Train once."""
    crop = [-(-side // 16) * 16 for side in (height, height * 4 // 3)]
    fields = {
        "data.root": args.data,
        "data.val_pattern": "null",
        "data.val_split": "test",
        "data.cache": 0 if mode == "cached" else 400,
        "data.token_cache": "memory" if mode == "cached" else "null",
        "model.encoder_weights": args.weights,
        "model.image_size": crop,
        "optimizer.freeze": "null" if mode == "whole" else "encoder",
        "augment.crop": crop,
        "augment.resize_base": [height * 4 // 3, height],
        "augment.scale": [1, 1],
        "augment.photometric_distortion": "false",
        "evaluation.short_side": height,
        "steps": steps,
        "save_every": steps,
    }
    spent = {"fill": 0.0, "step": 0.0}
    sizes: list[float] = []

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            began = time.process_time()
            try:
                return function(*given, **options)
            finally:
                spent[name] += time.process_time() - began

        return call

    fill, take_step = TokenCache.fill, loop.take_step

    def filled(cache: TokenCache, report: Callable[[int, int], None]) -> None:
        sizes.append(bytes_needed(cache.stream, cache.head.model) / 1e6)
        timed("fill", fill)(cache, report)

    TokenCache.fill, loop.take_step = filled, timed("step", take_step)  # type: ignore[method-assign]
    try:
        with TemporaryDirectory() as folder:
            words = [f"--{name}={value}" for name, value in {**fields, "out": f"{folder}/run"}.items()]
            trained = loop.train(parse_recipe("camvid_half", words), quiet=True)
    finally:
        TokenCache.fill, loop.take_step = fill, take_step  # type: ignore[method-assign]
    return Row(height, mode, steps, *(sizes or [0.0]), spent["fill"], spent["step"], trained.best)


def table(rows: list[Row]) -> str:
    """The table in Markdown, with what it was measured on."""
    columns = ("images", "trained", "steps", "MB", "tokens, s", "ms per step", "all steps, s", "together, s", "mIoU")
    lines = [
        f"{environment.describe()}; one run each.",
        "",
        f"| {' | '.join(columns)} |",
        "| --- | --- |" + " ---: |" * (len(columns) - 2),
        *(f"| {' | '.join(row.cells())} |" for row in rows),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
