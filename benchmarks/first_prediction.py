"""Seconds of the first prediction of a fresh process after its imports, with the kernels' cache empty and filled.

python benchmarks/first_prediction.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from meanshifter.utils import environment as machine

SCRIPT = """
import time
import numpy as np
import torch
import meanshifter as ms
import meanshifter.inference.predictor, meanshifter.model.segmenter
torch.manual_seed(0)
model = ms.create_model("segmenter-ti16", num_classes=150).eval()
image = np.random.default_rng(0).integers(0, 256, (512, 683, 3), dtype=np.uint8)
began = time.perf_counter()
predictor = ms.Predictor(model)
predictor(image)
first = time.perf_counter()
predictor(image)
print(f"first {first - began:.2f} s, second {time.perf_counter() - first:.2f} s")
"""


def main() -> None:
    print(machine.describe())
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
        for state in ("empty", "filled", "filled"):
            done = subprocess.run(
                [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
            )
            print(f"kernel cache {state}: {done.stdout.strip()}")


if __name__ == "__main__":
    main()
