"""Trainings killed with SIGKILL at random times and resumed, beside one that was left alone.

python benchmarks/faults/killed_runs.py [--runs 20] [--seed 0]

Every run is killed up to three times, at a moment drawn evenly from the time that the whole takes, evaluations and
checkpoints included. In the end its checkpoints must have the hashes of the uninterrupted run's, and metrics.jsonl the
same lines but for what the clock says.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from itertools import zip_longest
from pathlib import Path

from meanshifter.utils import environment

RECIPE = """
data: {name: shapes, workers: 2}
model:
  preset: meanshifter-ti16
  encoder: vit_tiny_patch16_224
  encoder_args: {patch_size: 16, embed_dim: 48, depth: 3, num_heads: 2}
  mean_shift: {layers: 2, channels: 24, init_neighbors: 8}
  drop_path: 0.3
augment: {crop: [96, 96], resize_base: null}
loss: {reduction: mean_valid, class_weight_power: 0.5}
optimizer: {name: adamw, lr: 1.0e-3, min_lr: 1.0e-5, weight_decay: 0.05}
ema: 0.9
accumulate: 2
steps: 90
batch_size: 2
log_every: 3
save_every: 5
evaluation: {interval: 15, window: 64, stride: 48, short_side: null, limit: 4}
"""
CLOCK = ("images_per_second", "data_wait")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=20)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    print(environment.describe())
    draws = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "recipe.yaml").write_text(RECIPE)
        began = time.perf_counter()
        start(root, "whole", resume=False).wait()
        print(f"uninterrupted: {time.perf_counter() - began:.0f} s with its start")
        seconds = training_seconds(root / "whole")
        wanted = outcome(root / "whole")
        failed = 0
        for number in range(args.runs):
            kills = kill_and_resume(root, f"run{number}", draws, seconds)
            difference = first_difference(wanted, outcome(root / f"run{number}"))
            failed += difference is not None
            verdict = "equal" if difference is None else f"DIFFERS: {difference}"
            print(f"run {number + 1}: killed after step {', '.join(map(str, kills))}: {verdict}", flush=True)
    print(
        f"{args.runs - failed} of {args.runs} runs end with the weights, optimizer state and metrics of the whole one"
    )
    sys.exit(failed > 0)


def start(root: Path, name: str, *, resume: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "meanshifter", "train", str(root / "recipe.yaml"), "--out", str(root / name)]
    with (root / "log").open("ab") as log:
        return subprocess.Popen([*command, *(["--resume"] if resume else [])], stdout=log, stderr=log)


def training_seconds(run: Path) -> float:
    """From the folder's first file to its last."""
    times = [path.stat().st_mtime for path in run.rglob("*") if path.is_file()]
    return max(times) - min(times)


def kill_and_resume(root: Path, name: str, draws: random.Random, seconds: float) -> list[int]:
    """Train with up to three kills; the last steps in the log at each."""
    run, kills = root / name, []
    for attempt in range(draws.randint(1, 3)):
        process = start(root, name, resume=attempt > 0)
        wait_for(run / ".lock", process)
        time.sleep(draws.uniform(0, seconds))
        ended = process.poll() is not None
        process.kill()
        process.wait()
        if ended:
            break
        kills.append(last_step(run))
    if start(root, name, resume=True).wait():
        sys.exit((root / "log").read_text().splitlines()[-1])
    return kills


def wait_for(lock: Path, process: subprocess.Popen[bytes]) -> None:
    """Until this process has the folder, whose lock an earlier one that was killed has left."""
    while process.poll() is None:
        if lock.is_file() and f"process {process.pid} " in lock.read_text():
            return
        time.sleep(0.01)


def last_step(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    steps = [line.split(",")[0].split(":")[1] for line in metrics.read_text().splitlines()] if metrics.exists() else []
    return int(steps[-1]) if steps else 0


Outcome = tuple[dict[str, str], list[dict[str, object]]]


def outcome(run: Path) -> Outcome:
    hashes = {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.glob("checkpoints/*/*"))
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return hashes, [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


def first_difference(wanted: Outcome, found: Outcome) -> str | None:
    for one, other in zip_longest(wanted[1], found[1]):
        if one != other:
            return f"metrics {other} instead of {one}"
    differing = [name for name in wanted[0] | found[0] if wanted[0].get(name) != found[0].get(name)]
    return f"only the files {', '.join(differing)}" if differing else None


if __name__ == "__main__":
    main()
