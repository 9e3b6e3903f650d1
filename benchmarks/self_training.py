"""Self-training with most training masks hidden: the scores of a teacher, and of a student with its pseudo labels.

python benchmarks/self_training.py DIR --hidden 0.8 --seed 0 --minutes 5 --out FOLDER [--val-split test]
    [--name camvid] [--min-margin 0.5] [--share 0.5] [--recipe folder_half] [--fields --field value …]

DIR is a folder of images/ and masks/, or with --name that of a data set. The masks of 80 % of the images of its split
train are hidden, by a draw of the seed. The teacher trains on the others and predicts the images whose masks are
hidden; the student trains like the teacher, with these label maps as data.extra_train. Both are scored on --val-split
with their last weights; its images are neither trained on nor predicted for training, and choose nothing. A training
image that is also one of them is left out.

Fields go to both trainings, such as --fields --model.encoder_weights FILE --size 256. Every stage leaves a file in
FOLDER: the same command continues after the last one, and trainings resume. FOLDER/scores.json has the scores, which
are printed too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from meanshifter.data.catalog import open_dataset
from meanshifter.data.datasets import Dataset
from meanshifter.errors import InputError
from meanshifter.utils.files import write_text

QUIET = ("--evaluation.interval", 0, "--evaluation.limit", 1)
"""All of the time is for training: the last weights are scored afterwards."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", metavar="DIR", type=Path)
    options.add_argument("--name", default="folder", help="data set, as in `meanshifter data list`")
    options.add_argument("--hidden", type=float, default=0.8, help="share of the training masks that are hidden")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--minutes", type=float, help="of each training; else the steps of the recipe, or --steps")
    options.add_argument("--val-split", default="val", help="split that both are scored on")
    options.add_argument("--min-margin", type=float, default=0.5, help="data.extra_min_confidence of the student")
    options.add_argument("--share", type=float, default=0.5, help="data.extra_share of the student")
    options.add_argument("--recipe", default="folder")
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--fields", nargs=argparse.REMAINDER, default=[], help="last: fields of both trainings")
    args = options.parse_args()
    try:
        print(json.dumps(study(args), indent=1))
    except InputError as error:
        sys.exit(str(error))
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)


def study(args: argparse.Namespace) -> dict[str, object]:
    """All stages that are not done yet; returns the content of scores.json."""
    out: Path = args.out
    settings = {name: value for name, value in vars(args).items() if name not in ("out", "data")}
    kept_settings = out / "settings.json"
    if kept_settings.exists() and (before := json.loads(kept_settings.read_text())) != settings:
        raise InputError(f"{out}: was begun with {before}; continue with these, or use another --out")
    write_text(kept_settings, json.dumps(settings))
    counts = hide(args)
    teacher = trained(args, "teacher", args.fields)
    if not (out / "pseudo" / "predictions.json").exists():
        command(
            "predict", weights(out / "teacher"), out / "unlabeled", "--out", out / "pseudo", "--confidence", "margin"
        )
    extra = ["--data.extra_train", json.dumps([str(out / "pseudo")]), "--data.extra_share", str(args.share)]
    student = trained(args, "student", [*args.fields, *extra, "--data.extra_min_confidence", str(args.min_margin)])
    scores = {**settings, **counts, "teacher": teacher, "student": student}
    write_text(out / "scores.json", json.dumps(scores, indent=1) + "\n")
    return scores


def hide(args: argparse.Namespace) -> dict[str, int]:
    """Write OUT/data with the training masks that are not hidden, and OUT/unlabeled with the other images, as links."""
    train_set, val_set = (open_dataset(args.name, args.data, split) for split in ("train", args.val_split))
    known = {fact for index in range(len(val_set)) for fact in identity(val_set, index)}
    usable = [index for index in range(len(train_set)) if not known & identity(train_set, index)]
    shown = round((1 - args.hidden) * len(usable))
    if not 0 < shown < len(usable):
        raise InputError(f"--hidden: {args.hidden} of {len(usable)} masks; at least one of each kind is needed")
    order = [usable[k] for k in np.random.default_rng((args.seed, 0)).permutation(len(usable))]
    root = args.out / "data"
    if not root.exists():
        partial = args.out / "data.tmp"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(args.out / "unlabeled", ignore_errors=True)
        for index in order[:shown]:
            link(train_set, index, partial / "images" / "train", partial / "masks" / "train")
        for index in order[shown:]:
            link(train_set, index, args.out / "unlabeled")
        for index in range(len(val_set)):
            link(val_set, index, partial / "images" / "val", partial / "masks" / "val")
        write_text(partial / "labels.json", json.dumps(train_set.label_space.to_dict()))
        partial.rename(root)
    return {"shown": shown, "hidden_masks": len(usable) - shown, "scored": len(val_set)}


def identity(dataset: Dataset, index: int) -> set[str]:
    """Name and content of an image: a data set may have the same one in two splits."""
    pair = dataset.pair(index)
    if pair is None:
        raise InputError(f"{dataset.name}: has no files; give a data set of images and masks")
    return {pair.name, hashlib.sha256(pair.image.read_bytes()).hexdigest()}


def link(dataset: Dataset, index: int, images: Path, masks: Path | None = None) -> None:
    """Link the image of a sample into a folder, and its mask into another."""
    pair = dataset.pair(index)
    assert pair is not None
    for folder, file in ((images, pair.image), (masks, pair.mask)):
        if folder is not None:
            target = folder / f"{pair.name}{file.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file.resolve())


def trained(args: argparse.Namespace, name: str, fields: list[str]) -> dict[str, float]:
    """Train a model in OUT/NAME, or go on with it; returns the scores of its last weights."""
    run, scores = args.out / name, args.out / f"{name}.json"
    if not scores.exists():
        own = ["--data.name", "folder", "--data.root", args.out / "data", "--out", run, "--seed", args.seed]
        minutes = [] if args.minutes is None else ["--minutes", args.minutes]
        command("train", args.recipe, *own, *minutes, *QUIET, *fields, *resumed(run))
        command("evaluate", weights(run), args.out / "data", "--split", "val", "--out", scores)
    (result,) = json.loads(scores.read_text())["results"]
    return {name: result[name] for name in ("mIoU", "mAcc", "aAcc")}


def resumed(run: Path) -> list[str]:
    return ["--resume"] if (run / "config.yaml").exists() else []


def weights(run: Path) -> Path:
    """The last weights: the best ones were chosen on the images that are scored."""
    return run / "checkpoints" / "last"


def command(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "meanshifter", *map(str, words)], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
