"""A training in what Docker gives a container by default: 64 MB of shared memory.

python benchmarks/faults/small_shm.py [--megabytes 64] [--signal]

/dev/shm is a tmpfs in a mount namespace of its own (Linux with `unshare`; no rights are needed). Crop, batch size and
workers are the defaults, the model is a tiny one. The training has to finish, with one line about the lack of room and
no traceback; with --signal, SIGTERM after its first step has to end it within ten seconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

RECIPE = """
data: {name: folder, train_split: all, val_split: all}
model:
  preset: segmenter-ti16
  encoder: vit_tiny_patch16_224
  encoder_args: {patch_size: 64, embed_dim: 24, depth: 1, num_heads: 2}
  drop_path: 0.0
steps: STEPS
log_every: 1
save_every: 1
evaluation: {limit: 1}
"""
INSIDE = "SMALL_SHM_INSIDE"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--megabytes", type=int, default=64)
    options.add_argument("--signal", action="store_true")
    args = options.parse_args()
    if INSIDE not in os.environ:
        if shutil.which("unshare") is None:
            sys.exit("unshare is missing: this needs Linux with util-linux")
        command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, *sys.argv]
        sys.exit(subprocess.run(command, env={**os.environ, INSIDE: "1"}, check=False).returncode)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={args.megabytes}m", "tmpfs", "/dev/shm"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), signaled=args.signal)


def train(folder: Path, *, signaled: bool) -> None:
    write_pairs(folder / "data")
    (folder / "recipe.yaml").write_text(RECIPE.replace("STEPS", "100000" if signaled else "4"))
    run = folder / "run"
    command = [sys.executable, "-m", "meanshifter", "train", str(folder / "recipe.yaml")]
    fields = ["--data.root", str(folder / "data"), "--out", str(run)]
    began = time.monotonic()
    process = subprocess.Popen([*command, *fields], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if signaled:
        while not (run / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() - began < 60:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
    try:
        _, said = process.communicate(timeout=10 if signaled else 60)
    except subprocess.TimeoutExpired:
        process.kill()
        sys.exit(f"still running after {time.monotonic() - began:.0f} s; it said:\n{process.communicate()[1]}")
    room = [line for line in said.splitlines() if "--shm-size" in line]
    print(f"status {process.returncode} after {time.monotonic() - began:.0f} s", *room, said.splitlines()[-1], sep="\n")
    assert "Traceback" not in said, said
    assert len(room) == 1, said
    assert process.returncode == (143 if signaled else 0), said


def write_pairs(folder: Path) -> None:
    draws = np.random.default_rng(0)
    for k in range(8):
        for kind, shape in (("images", (512, 640, 3)), ("masks", (512, 640))):
            path = folder / kind / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            values = draws.integers(0, 2, shape, dtype=np.uint8) * (200 if kind == "images" else 1)
            Image.fromarray(values).save(path, compress_level=1)


if __name__ == "__main__":
    main()
