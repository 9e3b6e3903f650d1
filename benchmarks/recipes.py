"""What a step of each recipe costs on this machine's CPU: the table that `meanshifter train --list` reads.

python benchmarks/recipes.py [RECIPE ...] [--steps 3] [--write]

Each recipe trains in a process of its own, on one core, on generated images of 640×480 with as many classes as its data
set has, and with random weights, which take the same time and memory as others. Reported are the processor time of a
step, which other programs on the machine disturb less than the time on the clock, as the smallest of the timed steps,
and the largest resident memory over steps and the evaluation of one image. With data.token_cache, the time to compute
the tokens of an image and its mirror image, and their size, are reported too. With --write, the numbers go into
src/meanshifter/recipes/costs.json; recipes that are not named keep theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from meanshifter.training.parsing import parse_recipe
from meanshifter.training.recipes import ALIASES, COSTS, recipe_names
from meanshifter.utils import environment
from meanshifter.utils.files import dump_json, write_text

FILE = Path(__file__).resolve().parents[1] / "src" / "meanshifter" / "recipes" / COSTS
CLASSES = {"ade20k": 150, "camvid": 11, "folder": 8}
"""Number of classes by dataset."""
IMAGES = 8
"""Training images."""
WARM_UP = 1
"""Steps that are not timed: kernels are compiled in the first one."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("recipes", nargs="*", metavar="RECIPE", help="default: all")
    options.add_argument("--steps", type=int, default=3, help="timed steps")
    options.add_argument("--write", action="store_true", help="update the table of `meanshifter train --list`")
    options.add_argument("--measure", help=argparse.SUPPRESS)  # one recipe, in this process
    args = options.parse_args()
    if args.measure is not None:
        print(json.dumps(measure(args.measure, args.steps)))
        return
    for name in args.recipes or [name for name in recipe_names() if name not in ALIASES]:
        cost = in_process(name, args.steps)
        print(name, json.dumps(cost), flush=True)
        if args.write:
            write_cost(name, cost)


def write_cost(name: str, cost: dict[str, object]) -> None:
    """Replace the row of a recipe in the table."""
    rows = json.loads(FILE.read_text("utf-8"))["recipes"] if FILE.exists() else {}
    write_text(
        FILE,
        dump_json({"machine": environment.describe(), "recipes": dict(sorted({**rows, name: cost}.items()))}, indent=1),
    )


def in_process(name: str, steps: int) -> dict[str, object]:
    """Measure a recipe in a new process, whose largest memory is then that of the recipe alone."""
    env = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")}
    command = [sys.executable, __file__, "--measure", name, "--steps", str(steps)]
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(name: str, steps: int) -> dict[str, object]:
    """Processor seconds of a step and peak memory of one recipe, in this process."""
    import torch

    from meanshifter.training.display import Log
    from meanshifter.training.loop import score, take_step
    from meanshifter.training.setup import prepare, resolve
    from meanshifter.training.token_cache import bytes_needed

    torch.set_num_threads(1)
    planned = parse_recipe(name).steps
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = resolve(parse_recipe(name, fields(name, folder, WARM_UP + steps)))
        setup = prepare(config, resume=False)
        stack.callback(setup.run.release)
        log = stack.enter_context(Log(setup.run, setup.learner.state, setup.learner.processes))
        tokens = setup.feed.tokens
        began = time.process_time()
        if tokens is not None:
            tokens.fill(lambda done, number: None)
        filled = time.process_time() - began
        stored = 0.0 if tokens is None else bytes_needed(tokens.stream, setup.learner.state.model) / IMAGES / 1e6
        taken = []
        for step in range(WARM_UP + steps):
            began = time.process_time()
            take_step(config, setup.run, setup.learner, setup.feed, step, log)
            taken.append(time.process_time() - began)
        setup.feed.close()
        score(config, setup.learner.state.evaluated, setup.val_set, setup.learner.processes, limit=1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "step_seconds": round(min(taken[WARM_UP:]), 3),
        "peak_gb": round(peak / 1e9, 2),
        "steps": planned,
        "random_weights": True,
        **({} if tokens is None else {"image_seconds": round(filled / IMAGES, 3), "image_mb": round(stored, 2)}),
    }


def fields(name: str, folder: Path, steps: int) -> list[str]:
    """The fields with which a recipe trains on generated images in this process."""
    data = parse_recipe(name).data
    own = ["--steps", str(steps), "--out", str(folder / "run"), "--data.workers", "0", "--accelerator", "cpu"]
    own += ["--model.encoder_weights", "null", "--model.average_corners", "false"]
    if data.name == "shapes":
        return own
    write_images(folder / "data", CLASSES[data.name])
    splits = ["--data.train_split", "train", "--data.val_split", "val", "--data.val_pattern", "null"]
    return [*own, "--data.name", "folder", "--data.root", str(folder / "data"), *splits]


def write_images(root: Path, classes: int) -> None:
    """A folder of training images and a validation image whose masks are squares of all classes."""
    rng = np.random.default_rng(0)
    for number in range(IMAGES + 1):
        split = "val" if number == IMAGES else "train"
        squares = np.resize(rng.permutation(classes), (24, 32)).astype(np.uint8)
        pixels = rng.integers(0, 256, (24, 32, 3), np.uint8)
        for kind, array, ending in (("images", pixels, "jpg"), ("masks", squares, "png")):
            path = root / kind / split / f"{number}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).resize((640, 480), Image.Resampling.NEAREST).save(path)
    (root / "classes.txt").write_text("\n".join(f"class {k}" for k in range(classes)))


if __name__ == "__main__":
    main()
