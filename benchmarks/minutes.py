"""A training of some minutes on a folder: whether it takes that time, and keeps its steps when it is killed.

python benchmarks/minutes.py FOLDER [--minutes 5] [--field value …]

Fields go to `meanshifter train` as they are, such as --data.val_split test --model.encoder_weights FILE. The time is
taken from the first write into the run folder to the end of the process, so that it includes the measuring and all
evaluations, and the start of Python, data and model does not count.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from meanshifter.utils import environment


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder")
    options.add_argument("--minutes", type=float, default=5)
    args, fields = options.parse_known_args()
    print(environment.describe())
    with tempfile.TemporaryDirectory() as place:
        whole, killed = Path(place) / "whole", Path(place) / "killed"
        command = [sys.executable, "-m", "meanshifter", "train", args.folder, *fields, "--minutes"]
        taken = timed([*command, f"{args.minutes:g}", "--out", str(whole)], whole)
        print(f"--minutes {args.minutes:g}: {steps(whole)} steps in {taken / 60:.2f} minutes")

        asked = [*command, f"{args.minutes / 5:g}", "--out", str(killed)]
        process = subprocess.Popen(asked)
        while process.poll() is None and not (killed / "metrics.jsonl").exists():
            time.sleep(0.05)
        process.kill()
        process.wait()
        before = steps(killed)
        subprocess.run([*asked, "--resume"], check=True)
        print(f"killed and resumed: {before} steps before, {steps(killed)} after")
        good = 0.8 * args.minutes <= taken / 60 <= 1.2 * args.minutes and before == steps(killed)
        sys.exit(0 if good else "not within a fifth of the time, or other steps after the kill")


def timed(command: list[str], run: Path) -> float:
    """Seconds from the first write into the run folder to the end."""
    process = subprocess.Popen(command)
    while process.poll() is None and not (run / "config.yaml").exists():
        time.sleep(0.02)
    began = time.perf_counter()
    if process.wait():
        sys.exit(f"status {process.returncode}")
    return time.perf_counter() - began


def steps(run: Path) -> int:
    stored = yaml.safe_load((run / "config.yaml").read_text())
    if stored["minutes"] is not None:
        sys.exit(f"{run}: killed before its steps were known; run this again")
    return int(stored["steps"])


if __name__ == "__main__":
    main()
