"""Peak memory and time of one very large image at full scale, read from a file, with 150 classes.

python benchmarks/large_image.py [--side 10000] [--format png|tif|jpg] [--deflate] [--without-rasterio]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from speed.timing import peak_memory

import meanshifter as ms
from meanshifter.utils import environment


def write_photo(path: Path, side: int, **options: Any) -> None:
    """Noise at two scales, in strips, so that this script itself stays small."""
    rng = np.random.default_rng(0)
    picture = Image.new("RGB", (side, side))
    for top in range(0, side, 250):
        coarse = Image.fromarray(rng.integers(0, 255, (4, side // 64 + 1, 3), dtype=np.uint8))
        picture.paste(coarse.resize((side, 250), Image.Resampling.BICUBIC), (0, top))
    picture.save(path, **({"quality": 90} if path.suffix == ".jpg" else options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=10_000)
    parser.add_argument("--format", choices=("png", "tif", "jpg"), default="png")
    parser.add_argument("--deflate", action="store_true", help="compress the TIFF")
    parser.add_argument("--without-rasterio", action="store_true", help="as if it were not installed")
    parser.add_argument("--precision", default="fp32")
    args = parser.parse_args()
    if args.without_rasterio:
        sys.modules["rasterio"] = None  # type: ignore[assignment]
    print(environment.describe())
    torch.manual_seed(0)
    model = ms.create_model("segmenter-ti16", num_classes=150).eval()
    predictor = ms.Predictor(model, short_side=None, precision=args.precision)
    two_windows = np.zeros((512, 992, 3), np.uint8)
    encoder = peak_memory(lambda: predictor(two_windows))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"large.{args.format}"
        write_photo(path, args.side, **({"compression": "tiff_adobe_deflate"} if args.deflate else {}))
        seconds = 0.0

        def predict() -> None:
            nonlocal seconds
            began = time.perf_counter()
            labels = predictor(path).labels
            seconds = time.perf_counter() - began
            assert labels.shape == (args.side, args.side)

        peak = peak_memory(predict)
    if encoder is None or peak is None:
        raise SystemExit("this system does not tell its memory")
    print(
        f"{args.side}×{args.side} {args.format}, {args.precision}: {seconds:.0f} s, peak {peak / 1e6:.0f} MB above the "
        f"loaded model; two windows alone: {encoder / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
