"""The whole study of the thesis on a generated ADE20K, killed with SIGKILL and started again.

python benchmarks/faults/killed_study.py [--jobs 2] [--kills 1] [--seed 0]

20 images of 150 classes, 2 steps a training, all 16 rows with one seed. One study is left alone; the other is killed,
its trainings with it, at a moment drawn from the time that the first took, and the same command is given again. Both
must end with the same tables, 16 and 48 lines long, in all four formats.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from meanshifter.utils import environment

RECIPE = """
format_version: 1
data: {name: ade20k, workers: 0}
model:
  preset: segmenter-ti16
  encoder: vit_tiny_patch16_224
  encoder_args: {patch_size: 16, embed_dim: 16, depth: 1, num_heads: 2}
  drop_path: 0.0
augment: {crop: [32, 32], resize_base: null, scale: [1, 1], max_class_share: 1, photometric_distortion: false}
batch_size: 2
steps: 2
save_every: 1
evaluation: {interval: 0, window: null, short_side: null}
accelerator: cpu
"""
TABLES = ["table.md", "table.csv", *(f"table_{n}.{ending}" for n in (1, 2) for ending in ("md", "csv", "json", "tex"))]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--jobs", type=int, default=2)
    options.add_argument("--kills", type=int, default=1)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    print(environment.describe())
    draws = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_ade20k(root / "ade20k", {"training": 20, "validation": 20})
        (root / "tiny.yaml").write_text(RECIPE)
        began = time.perf_counter()
        start(root, "whole", args.jobs).wait()
        seconds = time.perf_counter() - began
        print(f"left alone: {seconds:.0f} s")
        for _ in range(args.kills):
            process = start(root, "killed", args.jobs)
            time.sleep(draws.uniform(0.2, 0.9) * seconds / args.kills)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            print(f"killed after {len(list((root / 'killed').glob('runs/*/*/scores.json')))} of 16 trainings")
        status = start(root, "killed", args.jobs).wait()
        different = [name for name in TABLES if read(root / "whole" / name) != read(root / "killed" / name)]
        lines = [len(list(csv.DictReader(read(root / "killed" / f"table_{n}.csv").splitlines()))) for n in (1, 2)]
    print(
        f"started again: status {status}; tables of {lines[0]} and {lines[1]} lines; different: {different or 'none'}"
    )
    sys.exit(status != 0 or lines != [16, 48] or bool(different))


def write_ade20k(root: Path, images: dict[str, int], side: int = 32) -> None:
    """Noise in the layout of ADE20K: all 151 values in the masks."""
    rng = np.random.default_rng(0)
    for split, count in images.items():
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            name = f"ADE_{split[:5]}_{number:08}"
            pixels, labels = rng.integers(0, 256, (side, side, 3)), rng.integers(0, 151, (side, side))
            Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / split / f"{name}.jpg")
            Image.fromarray(labels.astype(np.uint8)).save(root / "annotations" / split / f"{name}.png")


def start(root: Path, name: str, jobs: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "meanshifter", "study", "thesis", "--recipe", str(root / "tiny.yaml")]
    command += ["--data.root", str(root / "ade20k"), "--seeds", "0", "--jobs", str(jobs), "--out", str(root / name)]
    with (root / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def read(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


if __name__ == "__main__":
    main()
