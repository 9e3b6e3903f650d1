"""How many planted label errors a review finds: regions of CamVid's val masks get another class.

python benchmarks/planted_labels.py RUN --root CAMVID [--split val] [--seeds 0 1 2] [--regions 40] [--listed 60]
    [--docs docs/benchmarks.md]

RUN is a model that was not trained on the split, such as one of the recipe camvid_half. For each seed, images are drawn
at random, in each of them a connected region of one class that covers at least 0.25 % of the image, and another of the
classes that occur in the split; no image has two of them. A planted region counts as found if one of the first listed
suspects has the planted class as its label, and a bounding box whose IoU with that of the region is at least 0.3. The
masks have errors of their own, so that no list can be perfect.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from finetuning import replace
from scipy import ndimage

from meanshifter.analysis.review import Part, Suspect, find_suspects
from meanshifter.checkpoints.load import load_model
from meanshifter.data.catalog import open_dataset
from meanshifter.data.datasets import Dataset, Sample
from meanshifter.data.labels import Labels
from meanshifter.inference.predictor import Predictor
from meanshifter.training.stored_config import recipe_reading
from meanshifter.utils import environment

LEAST = 0.0025
"""Smallest planted region, as a share of the image."""
OVERLAP = 0.3
MARKERS = ("<!-- planted labels: begin -->", "<!-- planted labels: end -->")
Mask = npt.NDArray[np.bool_]


class Planted(Dataset):
    """A dataset with one region of some images relabeled."""

    def __init__(self, dataset: Dataset, count: int, seed: int) -> None:
        self.dataset, self.name, self.split = dataset, dataset.name, f"{dataset.split} with planted errors"
        self.label_space = dataset.label_space
        self.planted: dict[int, tuple[Mask, int]] = {}
        rng = np.random.default_rng(seed)
        present = np.unique(np.concatenate([np.unique(dataset.read_labels(i)) for i in range(len(dataset))]))
        present = present[present != self.label_space.ignore]
        for index in rng.permutation(len(dataset)).tolist():
            if len(self.planted) == count:
                break
            labels = dataset.read_labels(index)
            regions = _large_regions(labels, self.label_space.ignore)
            if regions:
                region = regions[rng.integers(len(regions))]
                own = labels[region][0]
                self.planted[index] = region, int(rng.choice(present[present != own]))

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def names(self) -> list[str]:
        """Names of the samples."""
        return list(self.dataset.names)

    def __getitem__(self, index: int) -> Sample:
        image, labels = self.dataset[index]
        if index in self.planted:
            region, wrong = self.planted[index]
            labels = np.where(region, labels.dtype.type(wrong), labels)
        return Sample(image, labels, self.names[index])


def _large_regions(labels: Labels, ignore: int) -> list[Mask]:
    found = []
    for k in np.unique(labels[labels != ignore]).tolist():
        numbered, count = ndimage.label(labels == k)
        sizes = np.bincount(numbered.ravel(), minlength=count + 1)[1:]
        found += [numbered == number for number in np.flatnonzero(sizes >= LEAST * labels.size) + 1]
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    options.add_argument("--root", required=True)
    options.add_argument("--split", default="val")
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--regions", type=int, default=40)
    options.add_argument("--listed", type=int, default=60)
    options.add_argument("--docs", type=Path, help="file whose table is replaced")
    args = options.parse_args()
    predictor = Predictor(load_model(args.run), **recipe_reading(args.run))
    lines = [f"{environment.describe()}; {args.split}, 1 in {1 / LEAST:.0f} of the image or more.", ""]
    lines += ["| seed | planted | suspects | found among the first | found among all |", "| ---: |" + " ---: |" * 4]
    for seed in args.seeds:
        planted = Planted(open_dataset("camvid", args.root, args.split), args.regions, seed)
        began = time.perf_counter()
        suspects = find_suspects([Part(predictor, planted)])
        seconds = time.perf_counter() - began
        hits = [place for place, suspect in enumerate(suspects) if _is_found(planted, suspect)]
        found = {suspects[place].index for place in hits}
        first = {suspects[place].index for place in hits if place < args.listed}
        count = len(planted.planted)
        lines.append(f"| {seed} | {count} | {len(suspects)} | {len(first)} of {args.listed} | {len(found)} |")
        print(lines[-1], f"{seconds:.0f} s", flush=True)
    text = "\n".join(lines)
    print(text)
    if args.docs is not None:
        replace(args.docs, text, MARKERS)


def _is_found(planted: Planted, suspect: Suspect) -> bool:
    region, wrong = planted.planted.get(suspect.index, (None, -1))
    return region is not None and suspect.labeled == wrong and _overlap(region, suspect.box) >= OVERLAP


def _overlap(region: Mask, box: tuple[int, int, int, int]) -> float:
    """IoU of the bounding box of a region and a suspect's."""
    rows, columns = ndimage.find_objects(region.astype(np.uint8))[0]
    top, bottom, left, right = box
    down = max(min(rows.stop, bottom) - max(rows.start, top), 0)
    across = max(min(columns.stop, right) - max(columns.start, left), 0)
    areas = (rows.stop - rows.start) * (columns.stop - columns.start) + (bottom - top) * (right - left)
    return down * across / (areas - down * across)


if __name__ == "__main__":
    main()
