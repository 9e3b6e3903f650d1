"""Share of the time that `meanshifter predict` of a folder of small photos spends in the encoder.

python benchmarks/folder.py [--count 200] [--size 240 320] [--short-side 512] [--model MODEL]

Photos are generated scenes as JPEG files. Reading, resizing, label maps and PNG files are all included, model loading
and the first image are not. Without a model: Segmenter-Ti/16 with random weights and 150 classes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import meanshifter as ms
from meanshifter.jobs.archive import label_images
from meanshifter.jobs.inputs import plan
from meanshifter.utils import environment as machine


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=200)
    options.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("HEIGHT", "WIDTH"))
    options.add_argument("--short-side", type=int, default=512)
    options.add_argument("--model")
    args = options.parse_args()
    model: Any = ms.create_model("segmenter-ti16", num_classes=150) if args.model is None else ms.load_model(args.model)
    spent: list[float] = []
    encode = model.encoder.forward

    def timed(images: torch.Tensor) -> Any:
        began = time.perf_counter()
        out = encode(images)
        spent.append(time.perf_counter() - began)
        return out

    model.eval().encoder.forward = timed
    predictor = ms.Predictor(model, short_side=args.short_side)
    with tempfile.TemporaryDirectory() as scratch:
        photos, out = Path(scratch, "photos"), Path(scratch, "out")
        write_photos(photos, args.count, tuple(args.size))
        jobs = [[job] for job in plan([str(photos)], out, overlay=False)]
        label_images(predictor, jobs[:2], [predictor.mean_shift_layers])
        spent.clear()
        began = time.perf_counter()
        failed = label_images(predictor, jobs, [predictor.mean_shift_layers])
        total = time.perf_counter() - began
    assert not failed
    print(machine.describe())
    whole, encoder = (1000 * seconds / args.count for seconds in (total, sum(spent)))
    print(f"{args.count} photos of {args.size[1]}×{args.size[0]}, fitted to a short side of {args.short_side}:")
    print(f"{whole:.1f} ms each, of which the encoder {encoder:.1f} ms: {encoder / whole:.1%}")


def write_photos(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Scenes of the generated dataset at this size."""
    folder.mkdir()
    scenes = ms.datasets.Shapes(split="val")
    for k in range(count):
        picture = Image.fromarray(scenes[k % len(scenes)].image).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        picture.save(folder / f"{k:05}.jpg", quality=90)


if __name__ == "__main__":
    main()
