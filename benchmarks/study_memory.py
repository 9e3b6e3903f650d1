"""Memory that the scores of a study take, and the seconds of its tables.

python benchmarks/study_memory.py [--images 2000] [--seeds 5] [--side 32]

Scores a small MeanShifter of 150 classes at five depths on ten generated images and on many, each in a process of its
own, and prints the peak of its memory; then writes the tables of a study of two rows with so many seeds on the many.
Masks are noise, so that an image holds far more pairs of classes than a real one.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from faults.killed_study import RECIPE, write_ade20k

from meanshifter.analysis.study_plan import Setup, set_up
from meanshifter.utils import environment

ROWS = ("Segmenter-Ti/16", "MeanShifter-Ti/16, L_ms 1, d_ms 64")
DEPTHS = ("0", "1", "2", "3", "4")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=2000)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--side", type=int, default=32)
    options.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.child:
        print(json.dumps(globals()[args.child[0]](Path(args.child[1]), args.seeds)))
        return
    print(environment.describe())
    with tempfile.TemporaryDirectory() as folder:
        peaks = []
        for images in (10, args.images):
            root = Path(folder) / str(images)
            root.mkdir()
            write_ade20k(root / "ade20k", {"training": 4, "validation": images}, args.side)
            (root / "tiny.yaml").write_text(RECIPE)
            found = child("score", root, args)
            peaks.append(found["peak"])
            print(
                f"{images} images at {len(DEPTHS)} depths: peak {found['peak']:.0f} MB, {found['seconds']:.1f} s, "
                f"confusions.npz {found['file']:.1f} MB",
                flush=True,
            )
        found = child("tabulate", root, args)
    print(f"difference: {peaks[1] - peaks[0]:.0f} MB")
    print(
        f"tables of 2 rows with {args.seeds} seeds: {found['seconds']:.1f} s ({found['busy']:.1f} s of a processor), "
        f"peak {found['peak']:.0f} MB"
    )


def child(what: str, root: Path, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", what, str(root), "--seeds", str(args.seeds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def score(root: Path, _seeds: int) -> dict[str, float]:
    """Build a model as its training would and score it."""
    from meanshifter.analysis.study_scores import COUNTS, score_run, write_scores
    from meanshifter.data import ADE20K
    from meanshifter.model.saving import save_model
    from meanshifter.training.setup import build_model

    job = setup(root)
    for cell in job.chosen:
        run = Path(str(cell.config.out))
        save_model(build_model(cell.config, ADE20K(root / "ade20k", "val").labels), run / "checkpoints" / "last")
        began = time.perf_counter()
        write_scores(cell, score_run(cell, run, job.depths, job.splits))
    seconds, size = time.perf_counter() - began, (cell.folder / COUNTS).stat().st_size / 1e6
    return {"peak": peak(), "seconds": seconds, "file": size}


def tabulate(root: Path, seeds: int) -> dict[str, float]:
    """The tables of as many seeds, all with the scores of one."""
    from meanshifter.analysis.findings import Findings
    from meanshifter.analysis.tables import write_tables

    job = setup(root, seeds)
    for cell in job.chosen:
        if cell.seed:
            shutil.copytree(cell.folder.with_name("seed0"), cell.folder)
    began, busy = time.perf_counter(), time.process_time()
    write_tables(Findings(job.plan, job.chosen), job.folder)
    return {"peak": peak(), "seconds": time.perf_counter() - began, "busy": time.process_time() - busy}


def setup(root: Path, seeds: int = 1) -> Setup:
    fields = ["--data.root", str(root / "ade20k")]
    depths = list(map(int, DEPTHS))
    return set_up(
        "thesis",
        root / "study",
        fields=fields,
        recipe=str(root / "tiny.yaml"),
        rows=ROWS,
        seeds=range(seeds),
        depths=depths,
    )


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 * 1.048576


if __name__ == "__main__":
    main()
