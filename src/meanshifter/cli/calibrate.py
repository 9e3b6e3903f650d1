"""`meanshifter calibrate`: fit the temperature of a model, and store it in the model."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from meanshifter.cli import MODEL_HELP
from meanshifter.cli.evaluate import open_scored
from meanshifter.cli.options import (
    add_layout_options,
    add_reading_options,
    echo,
    load_predictor,
    refuse_without_dataset,
)
from meanshifter.errors import InputError

if TYPE_CHECKING:
    from meanshifter.data.datasets import Dataset
    from meanshifter.inference.predictor import Predictor


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = (
        "Fit one temperature, by which logits are divided before the softmax, to the labels of images that the model "
        "was not trained on, and store it in the model's config.json. All probabilities and confidences use it from "
        "then on. Label maps do not change, unless probabilities of scales, flips or models are averaged. Print the "
        "expected calibration error (ECE) and the negative log-likelihood (NLL) before and after."
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL_HELP)
    add(
        "dataset",
        metavar="DATASET",
        nargs="?",
        help="name listed by `meanshifter data list`, or folder of images and masks (default: the data of the run)",
    )
    add("--root", metavar="DIR", type=Path, help="folder of the dataset, except for shapes")
    add("--split", help="split of the fit (default: val; without DATASET, the validation images of the run)")
    add(
        "--test-split",
        metavar="SPLIT",
        help="split on which the calibration is measured (default: the images of the fit, which favors it)",
    )
    add("--limit", type=int, metavar="N", help="use only the first N images of each split")
    add("--out", metavar="DIR", type=Path, help="save the calibrated model in DIR, and leave MODEL as it is")
    add_layout_options(parser, runs=True)
    add_reading_options(parser)


def run(args: argparse.Namespace) -> None:
    """Fit, print and store the temperature."""
    from meanshifter.evaluation.temperature import calibrate

    folder = _place(args)
    predictor = load_predictor(args.model, args)
    dataset, test = _open(args, predictor)
    fit = calibrate(predictor, dataset, test=test, limit=args.limit, progress=True)
    echo(*fit.table().split("\n"))
    _store(args.model, folder, fit.temperature, copy=args.out is not None)
    echo(f"stored in {folder / 'config.json'}")


def _place(args: argparse.Namespace) -> Path:
    """The folder that gets the temperature, checked before the work."""
    from meanshifter.checkpoints.ensemble import is_ensemble, read_members
    from meanshifter.model.saving import check_stores_temperature, is_export, model_folder

    path = Path(args.model)
    if is_ensemble(path):
        first = path / read_members(path)[0].path
        raise InputError(f"{path}: an ensemble, whose members have a temperature each; calibrate them, first {first}")
    if args.out is not None:
        if is_export(path):
            raise InputError(
                f"--out: given for the export {path}, which is not copied; leave it out, or copy the folder"
            )
        if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
            raise InputError(f"--out: {args.out} already exists; choose an empty or new folder")
        out: Path = args.out
        return out
    if not path.is_dir() or (path / "variant.yml").is_file():
        raise InputError(
            f"{args.model}: not a model folder, so the temperature cannot be stored in it; add --out DIR, the folder "
            "of the calibrated model"
        )
    folder = model_folder(path)
    check_stores_temperature(folder)
    return folder


def _open(args: argparse.Namespace, predictor: Predictor) -> tuple[Dataset, Dataset | None]:
    """The data of the fit, and those on which the calibration is measured, if others."""
    if args.dataset is None:
        return _data_of_run(args)
    split = "val" if args.split is None else args.split
    if args.test_split == split:
        raise InputError(
            f"--test-split: {split}, which is also the split of the fit; give another one, or leave it out"
        )

    def opened(split: str) -> Dataset:
        asked = argparse.Namespace(**{**vars(args), "split": split})
        return open_scored(asked, predictor.model.label_space, [args.model])

    return opened(split), None if args.test_split is None else opened(args.test_split)


def _data_of_run(args: argparse.Namespace) -> tuple[Dataset, Dataset | None]:
    """The validation images of a run, and another split of its dataset."""
    from meanshifter.data.catalog import open_dataset
    from meanshifter.training.parsing import parse_recipe
    from meanshifter.training.setup import open_data

    path = Path(args.model)
    run = next((at for at in (path, path.parent.parent) if (at / "config.yaml").is_file()), None)
    if run is None:
        raise InputError(f"DATASET: missing; {args.model} is not a run folder, whose validation images are the default")
    refuse_without_dataset(args)
    config = parse_recipe(run / "config.yaml")
    dataset, data = open_data(config)[1], config.data
    if args.test_split is None:
        return dataset, None
    if data.folds is None and data.val_pattern is None and args.test_split == data.val_split:
        raise InputError(f"--test-split: {args.test_split}, the split of the fit; give another one, or leave it out")
    return dataset, open_dataset(data.name, data.root, args.test_split, data.layout)


def _store(source: str, folder: Path, temperature: float, *, copy: bool) -> None:
    from meanshifter.checkpoints.load import load_with_state
    from meanshifter.model.saving import save_model, save_temperature

    if copy:  # of the source, not of the predictor's model, whose tokens may be merged
        model, held = load_with_state(source)
        model.config = replace(model.config, temperature=temperature)
        save_model(model, folder, held)
    else:
        save_temperature(folder, temperature)
