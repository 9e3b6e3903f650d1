"""An archive labeled on Ray while its workers and the process that leads are killed, beside one undisturbed process.

python benchmarks/faults/ray_archive.py [--images 500] [--seed 0] [--folder DIR]

Images of Shapes, a small model. SIGKILL takes a worker twice, at random times, and then the leading process; the same
command is run again. It must write every image once, with a whole manifest, the bytes of one process, and leave no
process behind.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import psutil
import torch
from PIL import Image

import meanshifter as ms
from meanshifter.data import Shapes
from meanshifter.utils import environment

WORKER = "_Worker"
"""In the title of the processes that Ray gives to our actors."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="an empty one, which is kept (default: a temporary one)")
    args = parser.parse_args()
    print(environment.describe())
    with nullcontext(args.folder) if args.folder else tempfile.TemporaryDirectory() as folder:
        sys.exit(0 if run(Path(folder), args.images, random.Random(args.seed)) else 1)


def run(folder: Path, count: int, draw: random.Random) -> bool:
    model, images = folder / "model", folder / "images"
    make_model(model)
    make_images(images, count)
    alone, out = folder / "alone", folder / "on_ray"
    seconds = timed([*command(model, images, alone), "--resume"])
    rows = [("one process, undisturbed", f"{seconds:.1f} s")]
    on_ray = [*command(model, images, out), "--backend", "ray"]
    rows += disturbed(on_ray, out, count, draw)
    seconds = timed(on_ray)
    rows.append(("the same command again", f"{seconds:.1f} s, {lines(out)} images in the manifest"))
    checks = list(verdicts(alone, out, count))
    for name, value in rows:
        print(f"{name:<40} {value}")
    for name, good in checks:
        print(f"{name:<40} {'yes' if good else 'NO'}")
    return all(good for _, good in checks)


def disturbed(words: list[str], out: Path, count: int, draw: random.Random) -> Iterator[tuple[str, str]]:
    """Kill a worker twice and then the process that leads, each after a random share of a third of the images."""
    started = time.monotonic()
    lead = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    family: set[psutil.Process] = set()
    for turn in range(3):
        wait_for(out, lead, round(count * (turn + draw.uniform(0.2, 0.8)) / 4))
        family |= set(psutil.Process(lead.pid).children(recursive=True))
        done = lines(out)
        if turn < 2:
            victim = draw.choice([process for process in family if is_worker(process)])
            victim.kill()
            yield f"worker {victim.pid} killed", f"after {time.monotonic() - started:.1f} s, {done} images"
        else:
            lead.send_signal(signal.SIGKILL)
            lead.wait()
            yield "leading process killed", f"after {time.monotonic() - started:.1f} s, {done} images"
    killed = time.monotonic()
    workers = {process for process in family if is_worker(process)}
    for some, name in ((workers, "its workers gone"), (family, f"all of its {len(family)} processes gone")):
        _, alive = psutil.wait_procs(some, timeout=120)
        if alive:
            raise SystemExit(f"left behind: {alive}")
        yield name, f"after {time.monotonic() - killed:.1f} s"


def is_worker(process: psutil.Process) -> bool:
    try:
        return WORKER in " ".join(process.cmdline())
    except psutil.Error:
        return False


def wait_for(out: Path, lead: subprocess.Popen[bytes], images: int) -> None:
    while lines(out) < images:
        if lead.poll() is not None:
            raise SystemExit(f"the run ended by itself, with status {lead.returncode}")
        time.sleep(0.05)


def lines(out: Path) -> int:
    """Images in the manifest."""
    manifest = out / "manifest.jsonl"
    return max(manifest.read_bytes().count(b"\n") - 1, 0) if manifest.exists() else 0


def verdicts(alone: Path, out: Path, count: int) -> Iterator[tuple[str, bool]]:
    named = Counter(json.loads(line)["output"] for line in (out / "manifest.jsonl").read_text().splitlines()[1:])
    expected, found = contents(alone), contents(out)
    yield f"all {count} images in the manifest", len(named) == count
    yield "each of them once", set(named.values()) == {1}
    yield "the files of one process, no others", expected.keys() == found.keys() == named.keys()
    yield "with the same bytes", expected == found


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.jsonl")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def command(model: Path, images: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "meanshifter", "predict", *map(str, (model, images)), "--out", str(out)]


def timed(words: list[str]) -> float:
    started = time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def make_model(folder: Path) -> None:
    torch.manual_seed(0)
    args = {"depth": 4, "embed_dim": 96, "num_heads": 3}
    model = ms.create_model("meanshifter-ti16", classes=Shapes().label_space.names, image_size=256, encoder_args=args)
    with torch.no_grad():
        for parameter in model.parameters():  # apart from each other, so that label maps are no single class
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save(folder)


def make_images(folder: Path, count: int) -> None:
    samples = Shapes(split="train", size=(256, 320), length=count)
    for i in range(count):
        path = folder / f"{i % 10}" / f"{i:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(samples[i].image).save(path)


if __name__ == "__main__":
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default, which starves on a machine with other work
    main()
