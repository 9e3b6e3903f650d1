"""`meanshifter convert`: a model from one tool's files to another's."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meanshifter.cli import SEGMENTER_HELP
from meanshifter.cli.printing import echo
from meanshifter.errors import InputError
from meanshifter.files import require_replaceable

if TYPE_CHECKING:
    from meanshifter.model.segmenter import Segmenter

FORMATS = ("meanshifter", "hub", "mmsegmentation", "segmenter", "timm")
SUFFIXES = {"mmsegmentation": (".pth", ".pt"), "timm": (".safetensors", ".pth", ".pt")}
"""Of the formats that are files."""
WRITTEN = {
    "config.json",
    "model.safetensors",
    "carried.safetensors",
    "results.json",
    "README.md",
    "checkpoint.pth",
    "variant.yml",
}
"""What the other formats put into their folder."""
MARKS = {"config.json", "checkpoint.pth"}
"""Those of them without which no conversion left it."""
CHECKPOINTS = ("checkpoints/best", "checkpoints/last")
"""Where the model of a run lies, in the order in which it is looked for."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.description = (
        "Reads a model of ours, a published one by name, a checkpoint of MMSegmentation or the checkpoint.pth of the "
        "Segmenter of its authors, and writes it for us or for them. Pickled files are read with an allow-list."
    )
    parser.add_argument("source", metavar="MODEL", help=SEGMENTER_HELP)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder; for mmsegmentation a .pth, for timm a file")
    parser.add_argument("--to", choices=FORMATS, default="meanshifter", help="whose format (default: %(default)s)")
    parser.add_argument("--partial", action="store_true", help="take what fits of a file that lacks or adds tensors")
    parser.add_argument("--mean-shift-layers", type=int, metavar="N", help="trained steps of a foreign MeanShifter")
    parser.add_argument("--results", type=Path, metavar="FILE", help="for the hub: what `evaluate --out` wrote")
    parser.add_argument("--licence", metavar="NAME", help="for the hub: of the weights, such as apache-2.0 or mit")
    parser.add_argument("--overwrite", action="store_true", help="write over what an earlier conversion left in OUT")


def run(args: argparse.Namespace) -> None:
    """Read and write."""
    from meanshifter.interop.loading import load_segmenter

    for option, given in (("results", args.results), ("licence", args.licence)):
        if given is not None and args.to != "hub":
            raise InputError(f"--{option}: {given} is for a model card; add --to hub")
    _check_place(args)
    model = load_segmenter(args.source, partial=args.partial, mean_shift_layers=args.mean_shift_layers)
    model.config = replace(model.config, **_reading(args.source))
    for path in _write(model, args):
        echo(str(path))


def _check_place(args: argparse.Namespace) -> None:
    """Refuse to write over anything that was not asked for."""
    from meanshifter.interop.checkpoints import SUFFIXES as PICKLES

    suffixes = SUFFIXES.get(args.to)
    if suffixes is None:
        require_replaceable(args.out)
        if args.out.is_file():
            raise InputError(f"{args.out}: a file, but {args.to} is written as a folder; name another place")
        if args.out.suffix in (*PICKLES, ".safetensors"):
            raise InputError(
                f"{args.out}: named like a file, but {args.to} is written as a folder; name one, or give --to "
                f"{' or '.join(SUFFIXES)}"
            )
        found = {path.name for path in args.out.iterdir()} if args.out.is_dir() else set()
        strange = sorted(found - WRITTEN) or sorted(found if found and not found & MARKS else ())
        if strange:
            raise InputError(f"{args.out}: holds {strange[0]}, which no conversion wrote; name a folder of its own")
        taken = [args.out] if found else []
    else:
        if args.out.suffix not in suffixes:
            raise InputError(
                f"{args.out}: written for {args.to} as a file; let its name end in {' or '.join(suffixes)}"
            )
        files = [args.out, *([args.out.with_suffix(".py")] if args.to == "mmsegmentation" else [])]
        if folders := [path for path in files if path.is_dir()]:
            raise InputError(f"{folders[0]}: a folder, but {args.to} is written as a file; name another place")
        taken = [path for path in files if path.exists()]
    for path in taken:
        if _is_read(path.resolve(), args.source):
            raise InputError(f"{path}: is the model that is read, or a part of it; name another place for OUT")
    if taken and not args.overwrite:
        raise InputError(f"{taken[0]}: is there already; write over it with --overwrite, or name another place")


def _is_read(place: Path, source: str) -> bool:
    """Whether `place`, which exists, is the model that `source` names, lies in its folder or holds its file."""
    from meanshifter.interop.published import PUBLISHED, cache_folder
    from meanshifter.model.checkpoint import CONFIG

    path = Path(source).resolve()
    if source in PUBLISHED and not path.exists():
        path = cache_folder(source).resolve()
    if path.is_file() and path.with_name("variant.yml").is_file():
        path = path.parent
    if path.is_file():
        return place in (path, path.with_suffix(".py"), path.parent)
    best = next((path / name for name in CHECKPOINTS if (path / name / CONFIG).is_file()), path)
    return place in (path, best) or place.parent == best


def _reading(source: str) -> dict[str, Any]:
    """How the scores of a run read images; the other tool, or the card, shall say the same."""
    from meanshifter.training.state import recipe_reading

    return recipe_reading(source)


def _scores_beside(source: str) -> Any:
    """The scores that lie with a model of ours; none of a model of others."""
    from meanshifter.model.checkpoint import model_folder
    from meanshifter.model.hub import RESULTS, read_results

    try:
        folder = model_folder(source)
    except InputError:
        return ()
    return read_results(folder) if (folder / RESULTS).is_file() else ()


def _licence_beside(source: str) -> str | None:
    """The licence that the card of a model of ours names; none of a model of others."""
    from meanshifter.documents import read_text
    from meanshifter.model.checkpoint import model_folder
    from meanshifter.model.hub import CARD

    try:
        card = read_text(model_folder(source) / CARD)
    except InputError:
        return None
    named = re.match(r"---\n(?:[^\n]+\n)*?license: ([\w.+-]+)\n", card)
    return None if named is None else named[1]


def _write(model: Segmenter, args: argparse.Namespace) -> list[Path]:
    from meanshifter.files import folder_beside
    from meanshifter.interop.writing import WRITERS

    if args.to in SUFFIXES:
        return WRITERS[args.to](model, args.out)
    with folder_beside(args.out) as beside:
        if args.to == "meanshifter":
            model.save(beside)
        elif args.to == "hub":
            results = _scores_beside(args.source) if args.results is None else args.results
            licence = _licence_beside(args.source) if args.licence is None else args.licence
            model.save_pretrained(beside, results=results, licence=licence)
        else:
            written = WRITERS[args.to](model, beside)
            return [args.out / path.name for path in written]
    return [args.out]
