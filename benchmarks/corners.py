"""Why short trainings label the corners of images wrong, and for how long: norms of tokens, and errors by place.

python benchmarks/corners.py norms IMAGES... --weights WEIGHTS
python benchmarks/corners.py train DIR --weights WEIGHTS [--val-split test] [--steps 150 600] [--seeds 3] [--jobs 1]

DIR is a folder of images/ and masks/. `train` runs the recipe for a folder with crops of 256 pixels, with and without
model.average_corners, and scores every run's last weights on images cut to whole patches: pixels that are wrong in the
four corners (the outer 8 pixels of a patch, which are the corner patch's own logits), along the edges, and inside.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

import meanshifter as ms
from meanshifter.data.datasets import Folder

BACKBONE = "vit_tiny_patch16_224"
P = 16
FIELDS = {
    "augment.crop": "[256, 256]",
    "augment.resize_base": "[1024, 256]",
    "evaluation.window": 256,
    "evaluation.window_stride": 240,
    "evaluation.short_side": 256,
    "evaluation.interval": 0,
    "evaluation.limit": 1,
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=("norms", "train"))
    options.add_argument("inputs", nargs="+", type=Path)
    options.add_argument("--weights", required=True, type=Path)
    options.add_argument("--val-split", default="val")
    options.add_argument("--steps", nargs="+", type=int, default=[150, 600])
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--jobs", type=int, default=1)
    options.add_argument("--images", type=int, default=200)
    args = options.parse_args()
    print_norms(args) if args.what == "norms" else print_errors(args)


def places(h: int, w: int, depth: int) -> np.ndarray:
    """0 inside, 1 within `depth` of an edge, 2 within `depth` of two: (h, w)."""
    rows, cols = (np.minimum(np.arange(n), np.arange(n)[::-1]) < depth for n in (h, w))
    return rows[:, None].astype(int) + cols[None]


def print_norms(args: argparse.Namespace) -> None:
    """Mean norm of the tokens that each block gives, by place."""
    published, averaged = (norms(args, average_corners=average) for average in (False, True))
    print("| block | inside | edge | corner | inside, averaged | edge, averaged | corner, averaged |")
    print("|" + " ---: |" * 7)
    where = places(P, P, 1)
    for number, grids in enumerate(zip(published, averaged, strict=True), 1):
        cells = [f"{grid[where == place].mean():.1f}" for grid in grids for place in range(3)]
        print(f"| {number} | {' | '.join(cells)} |")


def norms(args: argparse.Namespace, *, average_corners: bool) -> np.ndarray:
    """(blocks, 16, 16): mean over the images, each resized to 256 × 256."""
    model = ms.create_model(
        "segmenter-ti16",
        num_classes=2,
        image_size=256,
        encoder=BACKBONE,
        encoder_weights=args.weights,
        average_corners=average_corners,
    ).eval()
    blocks = model.encoder.vit.blocks
    seen: list[np.ndarray] = []
    for block in blocks:
        block.register_forward_hook(lambda _m, _a, out: seen.append(out[0, 1:].norm(dim=-1).view(P, P).numpy()))
    for path in args.inputs:
        pixels = np.asarray(Image.open(path).convert("RGB").resize((256, 256)), np.float32)
        with torch.no_grad():
            model(torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None])
    return np.stack(seen).reshape(len(args.inputs), len(blocks), P, P).mean(0)


def print_errors(args: argparse.Namespace) -> None:
    cases = [
        (root, steps, average, seed)
        for root in args.inputs
        for steps in args.steps
        for average in (False, True)
        for seed in range(args.seeds)
    ]
    with TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        scores = dict(zip(cases, pool.map(lambda case: one(args, Path(folder), *case), cases), strict=True))
    print("| data | steps | average_corners | wrong inside | wrong at edges | wrong in corners | mIoU |")
    print("| --- | ---: | --- |" + " ---: |" * 4)
    for root, steps, average, _ in dict.fromkeys((*case[:3], 0) for case in cases):
        runs = np.array([scores[root, steps, average, seed] for seed in range(args.seeds)])
        cells = [f"{runs[:, k].mean():.1f} ({runs[:, k].min():.1f} to {runs[:, k].max():.1f})" for k in range(4)]
        print(f"| {root.name} | {steps} | {str(average).lower()} | {' | '.join(cells)} |")


def one(args: argparse.Namespace, folder: Path, root: Path, steps: int, average: bool, seed: int) -> list[float]:
    """Train one model and score it: percent wrong inside, at edges, in corners, and mIoU."""
    out = folder / f"{root.name}-{steps}-{average}-{seed}"
    fields = {
        **FIELDS,
        "out": out,
        "steps": steps,
        "seed": seed,
        "data.val_split": args.val_split,
        "model.encoder": BACKBONE,
        "model.encoder_weights": args.weights,
        "model.average_corners": average,
    }
    command = [sys.executable, "-m", "meanshifter", "train", str(root)]
    subprocess.run([*command, *(f"--{key}={value}" for key, value in fields.items())], check=True, stdout=sys.stderr)
    return score(out, Folder(root, split=args.val_split), args.images)


def score(run: Path, data: Folder, images: int) -> list[float]:
    model = ms.load_model(run / "checkpoints" / "last")
    K, ignore = model.label_space.num_classes, model.label_space.ignore
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor = ms.Predictor(model, window=None, short_side=None, device=device)
    wrong, seen, confusion = np.zeros(3), np.zeros(3), np.zeros((K, K))
    for index in range(0, len(data), max(1, len(data) // images)):
        sample = data[index]
        h, w = (side // P * P for side in sample.labels.shape)
        truth, found = sample.labels[:h, :w], predictor(sample.image[:h, :w]).labels
        known = truth != ignore
        confusion += np.bincount(truth[known].astype(int) * K + found[known], minlength=K * K).reshape(K, K)
        for place in range(3):
            here = known & (places(h, w, P // 2) == place)
            wrong[place] += (truth != found)[here].sum()
            seen[place] += here.sum()
    hits = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return [*(100 * wrong / seen), 100 * float(np.mean(hits[union > 0] / union[union > 0]))]


if __name__ == "__main__":
    main()
