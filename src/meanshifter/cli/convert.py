"""`meanshifter convert`: convert a model between the formats of several tools."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meanshifter.cli import SEGMENTER_HELP
from meanshifter.cli.options import echo
from meanshifter.errors import InputError
from meanshifter.utils.files import require_replaceable

if TYPE_CHECKING:
    from meanshifter.model.saving import FileState
    from meanshifter.model.segmenter import Segmenter

FORMATS = ("meanshifter", "hub", "mmsegmentation", "segmenter", "timm")
SUFFIXES = {"mmsegmentation": (".pth", ".pt"), "timm": (".safetensors", ".pth", ".pt")}
"""Suffixes of the formats that are files."""
MARKS = {"config.json", "checkpoint.pth"}
"""Files that show that a folder was written by a conversion."""
WRITTEN = MARKS | {"model.safetensors", "extra.safetensors", "results.json", "README.md", "variant.yml"}
"""All files that a conversion writes into a folder."""
CHECKPOINTS = ("checkpoints/best", "checkpoints/last")
"""Models of a run, in order of preference."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = (
        "Read a MeanShifter model, a published model by name, an MMSegmentation checkpoint or the checkpoint.pth of "
        "the official Segmenter, and write it in any of these formats. Pickled files are read with an allow-list."
    )
    add = parser.add_argument
    add("source", metavar="MODEL", help=SEGMENTER_HELP)
    add("out", metavar="OUT", type=Path, help="output folder, or file for mmsegmentation and timm")
    add("--to", choices=FORMATS, default="meanshifter", help="output format (default: %(default)s)")
    add("--allow-missing", action="store_true", help="load what fits from a file with missing or extra tensors")
    add("--mean-shift-layers", type=int, metavar="N", help="trained steps of another tool's MeanShifter")
    add("--results", type=Path, metavar="FILE", help="for the hub: file written by `evaluate --out`")
    add("--license", metavar="NAME", help="for the hub: license of the weights, such as apache-2.0 or mit")
    add("--overwrite", action="store_true", help="replace an earlier conversion in OUT")


def run(args: argparse.Namespace) -> None:
    """Read the model and write it."""
    from meanshifter.checkpoints.load import load_with_state
    from meanshifter.training.stored_config import recipe_reading

    for option, given in (("results", args.results), ("license", args.license)):
        if given is not None and args.to != "hub":
            raise InputError(f"--{option}: {given} is only for model cards; add --to hub")
    _check_place(args)
    model, held = load_with_state(
        args.source, allow_missing=args.allow_missing, mean_shift_layers=args.mean_shift_layers
    )
    model.config = replace(model.config, **recipe_reading(args.source))  # as in the evaluations of its run
    for path in _write(model, held, args):
        echo(str(path))


def _check_place(args: argparse.Namespace) -> None:
    """Refuse to overwrite anything but an earlier conversion."""
    from meanshifter.checkpoints.foreign import SUFFIXES as PICKLES

    suffixes = SUFFIXES.get(args.to)
    if suffixes is None:
        require_replaceable(args.out)
        if args.out.is_file():
            raise InputError(f"{args.out}: is a file, but {args.to} is written as a folder; choose another path")
        if args.out.suffix in (*PICKLES, ".safetensors"):
            raise InputError(
                f"{args.out}: named like a file, but {args.to} is written as a folder; choose a folder, or use --to "
                f"{' or '.join(SUFFIXES)}"
            )
        found = {path.name for path in args.out.iterdir()} if args.out.is_dir() else set()
        strange = sorted(found - WRITTEN) or sorted(found if found and not found & MARKS else ())
        if strange:
            raise InputError(
                f"{args.out}: contains {strange[0]}, which no conversion writes; choose a folder of its own"
            )
        taken = [args.out] if found else []
    else:
        if args.out.suffix not in suffixes:
            raise InputError(f"{args.out}: {args.to} is written as a file; use the suffix {' or '.join(suffixes)}")
        files = [args.out, *([args.out.with_suffix(".py")] if args.to == "mmsegmentation" else [])]
        if folders := [path for path in files if path.is_dir()]:
            raise InputError(f"{folders[0]}: is a folder, but {args.to} is written as a file; choose another path")
        taken = [path for path in files if path.exists()]
    for path in taken:
        if _is_read(path.resolve(), args.source):
            raise InputError(f"{path}: is the source model or a part of it; choose another path for OUT")
    if taken and not args.overwrite:
        raise InputError(f"{taken[0]}: already exists; replace it with --overwrite, or choose another path")


def _is_read(place: Path, source: str) -> bool:
    """Whether `place`, which exists, is the model named `source`, is in its folder, or contains its file."""
    from meanshifter.checkpoints.load import PUBLISHED, cache_folder
    from meanshifter.model.saving import CONFIG

    path = Path(source).resolve()
    if source in PUBLISHED and not path.exists():
        path = cache_folder(source).resolve()
    if path.is_file() and path.with_name("variant.yml").is_file():
        path = path.parent
    if path.is_file():
        return place in (path, path.with_suffix(".py"), path.parent)
    best = next((path / name for name in CHECKPOINTS if (path / name / CONFIG).is_file()), path)
    return place in (path, best) or place.parent == best


def _stored_scores(source: str) -> Any:
    """The scores stored with a MeanShifter model; none for other models."""
    from meanshifter.model.hub import RESULTS, read_results
    from meanshifter.model.saving import model_folder

    try:
        folder = model_folder(source)
    except InputError:
        return ()
    return read_results(folder) if (folder / RESULTS).is_file() else ()


def _stored_license(source: str) -> str | None:
    """The license in the model card of a MeanShifter model; None for other models."""
    from meanshifter.model.hub import CARD
    from meanshifter.model.saving import model_folder
    from meanshifter.utils.files import read_text

    try:
        card = read_text(model_folder(source) / CARD)
    except InputError:
        return None
    named = re.match(r"---\n(?:[^\n]+\n)*?license: ([\w.+-]+)\n", card)
    return None if named is None else named[1]


def _write(model: Segmenter, held: FileState, args: argparse.Namespace) -> list[Path]:
    from meanshifter.checkpoints.writing import WRITERS
    from meanshifter.model.hub import save_pretrained
    from meanshifter.model.saving import save_model
    from meanshifter.utils.files import replace_folder

    if args.to in SUFFIXES:
        return WRITERS[args.to](model, args.out, held)
    with replace_folder(args.out) as folder:
        if args.to == "meanshifter":
            save_model(model, folder, held)
        elif args.to == "hub":
            results = _stored_scores(args.source) if args.results is None else args.results
            license = _stored_license(args.source) if args.license is None else args.license
            save_pretrained(model, folder, results=results, license=license, held=held)
        else:
            written = WRITERS[args.to](model, folder, held)
            return [args.out / path.name for path in written]
    return [args.out]
