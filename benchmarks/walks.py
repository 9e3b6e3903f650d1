"""The files of the package that one call enters, which docs/architecture.md walks through.

python benchmarks/walks.py

Counts, with a profiler, the distinct files below src/meanshifter whose functions run in one call of `ms.train`,
`ms.load_model`, `Predictor.__call__` and `ms.evaluate`, after a first call that imports and compiles. The kernels of
`ops` and of augmentation are left out, and so are class bodies and dataclass methods.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import meanshifter as ms
from meanshifter.data import Shapes

ROOT = Path(ms.__file__).parent
KERNELS = ("ops/", "data/distortion.py")
PARTS = {"ms.evaluate": ("Predictor.__call__",), "ms.train": ("ms.load_model", "ms.evaluate")}
"""Calls that do part of another's work: training builds a model and evaluates it, evaluation predicts."""
ENCODER = {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8}


def walk(call: Callable[[], Any]) -> list[str]:
    """The files that `call` enters, in the order in which it does."""
    found: dict[str, None] = {}

    def profile(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT) and frame.f_code.co_name not in ("<module>",):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(KERNELS):
                found.setdefault(name)

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return list(found)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, runs = Path(folder), iter(range(9))

        def train() -> None:
            ms.train(
                recipe="shapes",
                out=root / f"run{next(runs)}",
                steps=2,
                batch_size=2,
                quiet=True,
                data={"workers": 0},
                model={"encoder_args": ENCODER, "mean_shift": {"layers": 1}},
                augment={"crop": [32, 32]},
                evaluation={"limit": 1},
            )

        train()
        model = root / "run0"
        predictor, data = ms.Predictor(model), Shapes(length=1)
        image = data[0].image
        calls: dict[str, Callable[[], Any]] = {
            "ms.train": train,
            "ms.load_model": lambda: ms.load_model(model),
            "Predictor.__call__": lambda: predictor(image),
            "ms.evaluate": lambda: ms.evaluate(predictor, data),
        }
        found: dict[str, list[str]] = {}
        for name, call in calls.items():
            call()
            found[name] = walk(call)
        for name, files in found.items():
            within = {file for other in PARTS.get(name, ()) for file in found[other]}
            own = f", {len(set(files) - within)} of them not in {' and '.join(PARTS[name])}" if within else ""
            print(f"{name}: {len(files)} files{own}", *(f"  {file}" for file in files), sep="\n")


if __name__ == "__main__":
    main()
