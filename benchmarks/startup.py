"""CPU seconds of `meanshifter predict` of one photo as a process, beyond importing torch and the encoder's own time.

python benchmarks/startup.py [--model MODEL] [--rounds 5] [PHOTO]

Without a model: Segmenter-Ti/16 with random weights and 150 classes, whose logits are nearly equal, so that nearly all
classes are candidates at every pixel: a trained model's label map takes less. Without a photo: noise of 512×683. Caches
are warm: every command runs once before it is measured, and Python writes its bytecode.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import meanshifter as ms
from meanshifter.utils import environment as machine

ENCODER = """
import sys, time
import torch
import meanshifter as ms
model = ms.load_model(sys.argv[1])
predictor = ms.Predictor(model)
spent = []
def timed(images, encode=model.encoder.forward):
    began = time.process_time()
    out = encode(images)
    spent.append(time.process_time() - began)
    return out
model.encoder.forward = timed
predictor(sys.argv[2])
once = sum(spent)
predictor(sys.argv[2])
print(sum(spent) - once)
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("photo", nargs="?", type=Path)
    options.add_argument("--model", type=Path)
    options.add_argument("--rounds", type=int, default=5)
    args = options.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        photo = noise(folder / "photo.png") if args.photo is None else args.photo
        model = args.model
        if model is None:
            model = folder / "model"
            ms.create_model("segmenter-ti16", num_classes=150).save(model)
        predict = [sys.executable, "-m", "meanshifter", "predict", str(model), str(photo), "--out", str(folder / "out")]
        torch = [sys.executable, "-c", "import torch"]
        encoder = [sys.executable, "-c", ENCODER, str(model), str(photo)]
        cpu_seconds(predict)
        whole, imports, own = [], [], []
        for _ in range(args.rounds):
            whole.append(cpu_seconds(predict))
            imports.append(cpu_seconds(torch))
            own.append(float(subprocess.run(encoder, capture_output=True, text=True, check=True).stdout))
    a, b, c = (statistics.median(values) for values in (whole, imports, own))
    print(machine.describe())
    print("| | CPU s | range |\n| --- | ---: | ---: |")
    for name, values in (("meanshifter predict", whole), ('python -c "import torch"', imports), ("the encoder", own)):
        print(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f}–{max(values):.2f} |")
    print(f"| what is left | {a - b - c:.2f} | |")


def noise(path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (512, 683, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def cpu_seconds(command: list[str]) -> float:
    """User and system time of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
