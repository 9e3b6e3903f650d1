"""Plant faults of 19 kinds into a copy of CamVid and let the doctor find them; measure its speed.

    python benchmarks/faults/doctor.py ../shared/data/camvid            # the whole set, and the speed
    python benchmarks/faults/doctor.py ../shared/data/camvid --pairs 120 --no-speed

Leaves with status 0 if every planted fault is found and nothing else, nothing is found in the clean copy, and the
repaired copy passes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Place = tuple[Path, Path]
"""An image and its mask in the training split."""
Found = set[tuple[str, str]]
"""Kind and name of findings."""
LEAST = {"train": 24, "val": 8, "test": 2}
"""Pairs of each split, however few are asked for: every fault has a pair of its own, and val has all classes."""


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def save_exif(path: Path, turn: int) -> None:
    with Image.open(path) as picture:
        exif = picture.getexif()
        exif[0x0112] = turn
        picture.load()
        picture.save(path, exif=exif, **({"quality": 90} if picture.format == "JPEG" else {}))


def edit_mask(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


def as_jpeg_mask(mask: Path) -> None:
    Image.open(mask).save(mask.with_suffix(".jpg"), quality=95)
    mask.unlink()


def as_palette(mask: Path) -> None:
    values = np.asarray(Image.open(mask))
    indexed = Image.frombytes("P", values.shape[::-1], values.tobytes())
    indexed.putpalette([value for k in range(256) for value in (k, 255 - k, 128)])
    indexed.save(mask)


def with_strangers(values: np.ndarray) -> np.ndarray:
    changed = values.copy()
    changed[:3, :4] = 77
    return changed


def near_copy(place: Place, folder: Path) -> None:
    """The image smaller and compressed anew, in the split `val`."""
    image, mask = place
    with Image.open(image) as picture, Image.open(mask) as labels:
        size = picture.width * 4 // 5, picture.height * 4 // 5
        picture.resize(size).save(folder / "images/val/near.jpg", quality=70)
        labels.resize(size, Image.Resampling.NEAREST).save(folder / "masks/val/near.png")


def exact_copy(place: Place, folder: Path, split: str, name: str) -> None:
    shutil.copy(place[0], folder / f"images/{split}/{name}{place[0].suffix}")
    shutil.copy(place[1], folder / f"masks/{split}/{name}.png")


def remove_class(folder: Path, split: str, value: int, ignored: int) -> None:
    for path in (folder / "masks" / split).glob("*.png"):
        edit_mask(path, lambda values: np.where(values == value, ignored, values).astype(values.dtype))


def blank(image: Path) -> None:
    with Image.open(image) as picture:
        Image.new("RGB", picture.size, (90, 90, 90)).save(image)


def plant(folder: Path, *, rare: int, ignored: int) -> Found:
    """Plant every kind once into `images/train` and `masks/train`, and tell what must be found.

    `rare` is the mask value of a class that is taken out of `val`, `ignored` one that the label map ignores.
    """
    images = sorted((folder / "images/train").iterdir())
    places = iter([(image, folder / "masks/train" / f"{image.stem}.png") for image in images])
    top = ignored + 1
    plants: list[tuple[str, Callable[[Path, Path], Any]]] = [
        ("unreadable-image", lambda image, mask: truncate(image)),
        ("unreadable-image", lambda image, mask: image.write_text("no image")),
        ("unreadable-mask", lambda image, mask: truncate(mask)),
        ("image-without-mask", lambda image, mask: mask.unlink()),
        ("mask-without-image", lambda image, mask: image.unlink()),
        ("same-name", lambda image, mask: Image.open(image).save(image.with_suffix(".bmp"))),
        ("size", lambda image, mask: edit_mask(mask, lambda values: values[2:, 3:])),
        ("orientation", lambda image, mask: save_exif(image, 6)),
        ("orientation-unsure", lambda image, mask: save_exif(image, 3)),
        ("lossy-mask", lambda image, mask: as_jpeg_mask(mask)),
        ("mask-mode", lambda image, mask: Image.open(mask).convert("RGB").save(mask)),
        ("outside", lambda image, mask: edit_mask(mask, with_strangers)),
        ("outside", lambda image, mask: edit_mask(mask, lambda v: np.where(v == ignored, top, v + 1).astype("u1"))),
        ("all-ignored", lambda image, mask: edit_mask(mask, lambda values: np.full_like(values, ignored))),
        ("blank-image", lambda image, mask: blank(image)),
        ("mixed-modes", lambda image, mask: edit_mask(mask, lambda values: values.astype(np.uint16))),
        ("mixed-modes", lambda image, mask: as_palette(mask)),
    ]
    expected: Found = {("one-split", ""), ("shift", "")}
    for kind, change in plants:
        image, mask = next(places)
        change(image, mask)
        expected.add((kind, "" if kind == "mixed-modes" else image.stem))
    exact_copy(place := next(places), folder, "val", "leaked")
    expected.add(("copy-across", place[0].stem))
    exact_copy(place := next(places), folder, "train", "twice")
    expected.add(("copy-within", place[0].stem))
    near_copy(next(places), folder)
    remove_class(folder, "val", rare, ignored)
    return expected | {("near-copy", "near")}


def found_in(report: Path) -> Found:
    data = json.loads(report.read_text())
    return {(finding["kind"], finding["name"]) for finding in data["findings"]}


def copy_camvid(root: Path, folder: Path, pairs: int | None) -> None:
    """Pairs from all over each split as `images/SPLIT`, `masks/SPLIT`, with the label map."""
    from meanshifter.data.catalog.camvid import LABELS, CamVid

    listings = {split: CamVid.listing(root, split).pairs() for split in ("train", "val", "test")}
    share = 1 if pairs is None else min(pairs / sum(map(len, listings.values())), 1)
    for split, found in listings.items():
        for part in ("images", "masks"):
            (folder / part / split).mkdir(parents=True)
        count = min(max(round(share * len(found)), LEAST[split]), len(found))
        for pair in (found[k * len(found) // count] for k in range(count)):
            shutil.copy(pair.image, folder / "images" / split)
            shutil.copy(pair.mask, folder / "masks" / split)
    (folder / "labels.json").write_text(json.dumps(LABELS.to_dict()))


def command(folder: Path, report: Path, *more: str) -> int:
    words = [sys.executable, "-m", "meanshifter", "data", "check", str(folder), "--json", str(report), *more]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 2):
        raise SystemExit(done.stderr)
    return done.returncode


def expect(what: str, right: bool, told: object = "") -> None:
    print(f"{'ok  ' if right else 'FAIL'}  {what}")
    if not right:
        raise SystemExit(f"{what}: {told}")


def plant_and_find(folder: Path, work: Path) -> None:
    report, fixed = work / "report.json", work / "fixed"
    status = command(folder, report)
    expect("clean copy: status 0, nothing found", status == 0 and not found_in(report), found_in(report))
    expected = plant(folder, rare=10, ignored=11)
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*.*"))}
    status = command(folder, report, "--fix", str(fixed), "--out", str(work / "report.html"))
    found = found_in(report)
    for kind in sorted({kind for kind, _ in expected}):
        wanted, got = ({name for k, name in side if k == kind} for side in (expected, found))
        expect(f"{kind}: {len(wanted)} planted, {len(got)} found", wanted == got, (wanted, got))
    expect("nothing else found, status 2", found == expected and status == 2, found - expected)
    untouched = before == {path: path.read_bytes() for path in sorted(folder.rglob("*.*"))}
    expect("the checked folder is as it was", untouched)
    status = command(fixed, report)
    expect("the repaired copy passes", status == 0, found_in(report))


def measure(root: Path) -> None:
    from meanshifter.data.doctor import check

    check("camvid", root, threads=1)  # files into the page cache, code compiled
    for threads in (1, None):
        rates = []
        for _ in range(3):
            wall, cpu = time.perf_counter(), time.process_time()
            report = check("camvid", root, threads=threads)
            pairs = sum(map(len, report.pairs.values()))
            rates.append((pairs / (time.process_time() - cpu), pairs / (time.perf_counter() - wall)))
        cpu_rate, wall_rate = max(rates)
        print(
            f"{pairs} pairs, {'1 thread' if threads else 'a thread per core'}, best of 3: "
            f"{cpu_rate:.0f} pairs per second of CPU time, {wall_rate:.0f} per second of wall time"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="CamVid")
    parser.add_argument("--pairs", type=int, help=f"so many, but at least {sum(LEAST.values())} (default: all)")
    parser.add_argument("--no-speed", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "camvid"
        copy_camvid(args.root, folder, args.pairs)
        plant_and_find(folder, Path(name))
    if not args.no_speed:
        measure(args.root)


if __name__ == "__main__":
    main()
