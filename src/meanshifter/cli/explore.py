"""`meanshifter explore`: a local page on which models label images, step by step and patch by patch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from meanshifter.cli import MODEL_HELP
from meanshifter.cli.options import (
    add_layout_options,
    add_reading_options,
    echo,
    layout_of,
    load_predictor,
)
from meanshifter.errors import InputError
from meanshifter.utils.environment import install_hint, require_installed

if TYPE_CHECKING:
    from meanshifter.app.gallery import Images
    from meanshifter.data.labels import LabelSpace

RUNS = Path("runs")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = (
        "Serve a page on this machine and print its address. Drop an image on it, or pick one of IMAGES: label map "
        "with opacity, legend and confidence; a slider over mean shift steps, with the patch encodings in a plane and "
        "their modes; for a patch that is clicked, its similarity to all others and the patches that the next step "
        "averages it with; two models side by side; ground truth and errors where there are masks. Ctrl-C stops it. "
        f"Requires the extra app: {install_hint('app')}."
    )
    add = parser.add_argument
    add(
        "paths",
        metavar="[MODEL…] [IMAGES]",
        nargs="*",
        help=f"{MODEL_HELP} (default: the newest runs in {RUNS}/); last, an image, a folder of images, a folder of "
        "images and masks, or a dataset listed by `meanshifter data list` with --root",
    )
    add("--root", metavar="DIR", type=Path, help="folder of the dataset, except for shapes")
    add("--split", help="split of a dataset (default: val), or of a folder of images and masks (default: all)")
    add(
        "--mean-shift-layers", type=int, metavar="N", help="last step of the slider (default: 8, or as trained if more)"
    )
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)")
    add("--port", type=int, default=8000, help="port to listen on; 0: a free one (default: %(default)s)")
    add_layout_options(parser, runs=True)
    add_reading_options(parser)


def run(args: argparse.Namespace) -> None:
    """Load the models and serve the page."""
    require_installed("explore", "app", "starlette", "uvicorn")
    from meanshifter.analysis.compare import short_names
    from meanshifter.app.server import explore

    names, place = _divided(args.paths)
    names = names or _newest_runs()
    predictors = dict(
        zip(short_names(names), [load_predictor(name, args, labeling=True) for name in names], strict=True)
    )
    space = next(iter(predictors.values())).model.label_space
    explore(
        predictors,
        _images(place, args, space, names),
        steps=args.mean_shift_layers,
        host=args.host,
        port=args.port,
        say=echo,
    )


def _divided(paths: list[str]) -> tuple[list[str], str | None]:
    """The models, and the images if the last word is not a model."""
    from meanshifter.data.catalog import HOMES
    from meanshifter.data.reading import IMAGE_SUFFIXES

    if not paths:
        return [], None
    last = Path(paths[-1])
    is_images = last.suffix.lower() in IMAGE_SUFFIXES or paths[-1] in HOMES or (last.is_dir() and not _is_model(last))
    return (paths[:-1], paths[-1]) if is_images else (paths, None)


def _is_model(folder: Path) -> bool:
    """Whether a folder holds a model, a run, an export, a cross-validation or an official checkpoint."""
    from meanshifter.checkpoints.ensemble import is_ensemble

    files = ("config.json", "config.yaml", "variant.yml", "checkpoints")
    return is_ensemble(folder) or any((folder / name).exists() for name in files)


def _newest_runs() -> list[str]:
    """The two runs in `RUNS` that were written last."""
    found = sorted(RUNS.glob("*/checkpoints/best/config.json"), key=lambda path: -path.stat().st_mtime)
    if not found:
        raise InputError(f"MODEL: none given, and no run in {RUNS}/; give a model or run folder, or train one")
    return [str(path.parents[2]) for path in found[:2]]


def _images(place: str | None, args: argparse.Namespace, space: LabelSpace, models: list[str]) -> Images | None:
    """The images of the command line: with ground truth, if they have masks."""
    from meanshifter.data.catalog import HOMES, open_dataset
    from meanshifter.data.datasets import Folder
    from meanshifter.data.layout import USUAL

    if place is None or (place not in HOMES and not Path(place).is_dir()):
        for option, given in (("root", args.root), ("split", args.split)):
            if given is not None:
                raise InputError(f"--{option}: {given}, but no dataset was given; name it last, or leave this out")
        return place
    if place in HOMES and place != "folder":
        if args.root is None and place != "shapes":
            raise InputError(f"--root: missing; {place} is read from a folder")
        return open_dataset(place, args.root, args.split or "val", layout_of(args, None), labeled=False)
    root = Path(place) if place != "folder" else args.root
    if root is None:
        raise InputError("--root: missing; folder is read from a folder")
    layout = layout_of(args, root, models)
    if layout == USUAL and not layout.fits(root):
        if args.split is not None:
            raise InputError(f"--split: {args.split}, but {root} has no folders of images and masks; leave it out")
        return root
    described = any((root / file).is_file() for file in ("labels.json", "classes.txt"))
    return Folder(root, args.split or "all", label_space=None if described else space, layout=layout)
