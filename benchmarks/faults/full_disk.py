"""A training on a file system of 20 MB that fills up while it runs.

python benchmarks/faults/full_disk.py

The file system is a tmpfs in a mount namespace of its own (Linux with `unshare`; no rights are needed). The training
has to stop with one line, the checkpoint before must load, and once there is space the run must go on to the weights
of one that was left alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import meanshifter as ms

RECIPE = """
data: {name: shapes, workers: 1}
model:
  preset: segmenter-ti16
  encoder: vit_tiny_patch16_224
  encoder_args: {patch_size: 16, embed_dim: 96, depth: 4, num_heads: 2}
augment: {crop: [64, 64], resize_base: null}
steps: 300
batch_size: 2
log_every: 5
save_every: 10
evaluation: {interval: 100, window: null, short_side: null, limit: 4}
"""
INSIDE = "FULL_DISK_INSIDE"


def main() -> None:
    if INSIDE not in os.environ:
        if shutil.which("unshare") is None:
            sys.exit("unshare is missing: this needs Linux with util-linux")
        command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, *sys.argv]
        sys.exit(subprocess.run(command, env={**os.environ, INSIDE: "1"}, check=False).returncode)
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder) / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", disk], check=True)
        try:
            fill_up(Path(folder), disk)
        finally:
            subprocess.run(["umount", disk], check=True)


def fill_up(folder: Path, disk: Path) -> None:
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE)
    command = [sys.executable, "-m", "meanshifter", "train", str(recipe), "--out"]
    training = subprocess.Popen([*command, disk / "run"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    last = disk / "run" / "checkpoints" / "last"
    while not (last / "config.json").exists() and training.poll() is None:
        time.sleep(0.05)
    with (disk / "filling").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError as error:
            print(f"disk: {error.strerror}")
    _, said = training.communicate()
    print(f"status {training.returncode}: {said.splitlines()[-1]}")
    assert training.returncode == 1
    assert "Traceback" not in said
    assert not list((disk / "run").rglob("*.tmp"))
    print(f"checkpoints/last loads: {sum(p.numel() for p in ms.load_model(last).parameters()):,} parameters")
    (disk / "filling").unlink()
    subprocess.run([*command, disk / "run", "--resume"], check=True, capture_output=True)
    subprocess.run([*command, folder / "whole"], check=True, capture_output=True)
    ours, theirs = (
        hashlib.sha256((run / "checkpoints" / "last" / "training.safetensors").read_bytes()).hexdigest()
        for run in (disk / "run", folder / "whole")
    )
    print(
        f"resumed with space: {'the weights and state' if ours == theirs else 'NOT the weights'} of an undisturbed run"
    )
    sys.exit(ours != theirs)


if __name__ == "__main__":
    main()
