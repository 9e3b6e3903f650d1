"""A slice of benchmarks/faults/mutations.py, which breaks files of every kind in every way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/faults/mutations.py"


def test_broken_files_end_in_a_result_or_a_line() -> None:
    words = [sys.executable, str(SCRIPT), "--count", "88", "--seed", "7", "--commands", "0"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "88 cases, 0 through the command: 0 faults" in done.stdout
    assert not done.stderr, "decoders print of their own accord"
