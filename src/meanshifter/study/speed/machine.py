"""The machine that a measurement was made on, in a line."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

import torch

import meanshifter
from meanshifter.inference.precision import has_bfloat16


def describe() -> str:
    """Date, versions, processor and threads."""
    cpu = torch.device("cpu")
    units = "bfloat16 units" if has_bfloat16(cpu) else "no bfloat16 units"
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{datetime.date.today().isoformat()} · meanshifter {meanshifter.__version__} · torch {torch.__version__} · "
        f"Python {platform.python_version()} · {_processor()}, {os.cpu_count()} cores, "
        f"{torch.backends.cpu.get_cpu_capability()}, {units}{accelerator} · {torch.get_num_threads()} threads"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
