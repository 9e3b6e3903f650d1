"""`meanshifter export`: a model for other runtimes, compared with itself on images before it is put in place."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meanshifter.cli import SEGMENTER_HELP
from meanshifter.cli.printing import echo
from meanshifter.cli.reading import add_reading_options, load_predictor, reading_settings
from meanshifter.errors import InputError, RunError

if TYPE_CHECKING:
    from torch import Tensor

    from meanshifter.inference.pictures import Picture
    from meanshifter.inference.predictor import Predictor
    from meanshifter.interop.runtime import RuntimeModel

FORMATS = ("onnx", "openvino", "torch")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
LIMIT = 0.1
"""Percent of the pixels that may differ in fp32."""
WINDOWS = 64
"""That ranges of activations are taken from."""
PART = 640
"""Pixels of a side in which label graphs are compared."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.description = (
        "Writes the folder OUT: the model's program for any batch and image size, and config.json. `meanshifter "
        "predict` and `evaluate` take the folder as a model. Label maps of the export are compared with the model's "
        "own before it is put in place."
    )
    parser.add_argument("model", metavar="MODEL", help=SEGMENTER_HELP)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the export")
    parser.add_argument("--format", choices=FORMATS, required=True, help="runtime that is to run it")
    parser.add_argument(
        "--precision",
        dest="arithmetic",  # apart from the precision that images are read in
        choices=PRECISIONS,
        default="fp32",
        help="what is built in: onnx has fp32, fp16, int8; openvino all four; torch fp32 (default: %(default)s)",
    )
    parser.add_argument("--mean-shift-layers", type=int, metavar="N", help="steps built in (default: as trained)")
    parser.add_argument(
        "--calibrate", metavar="DIR", type=Path, help="int8: also activations, in ranges taken from these images"
    )
    parser.add_argument("--images", metavar="INPUT", nargs="+", help="compare on these (default: generated images)")
    parser.add_argument(
        "--max-difference",
        type=float,
        metavar="PERCENT",
        help=f"fail where more of the pixels get another label (default: {LIMIT} for fp32, none for the others)",
    )
    parser.add_argument(
        "--label-map", action="store_true", help="onnx: also labels.onnx, from uint8 images to label maps in one graph"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in OUT")
    add_reading_options(parser, precision=False)


def run(args: argparse.Namespace) -> int:
    """Write, compare, and say how far the two agree."""
    from meanshifter.interop.contract import as_segmenter
    from meanshifter.interop.export import check_export, export_model

    if args.max_difference is not None and not 0 <= args.max_difference <= 100:
        raise InputError(f"--max-difference: {args.max_difference}; it is a percentage of the pixels, from 0 to 100")
    asked = {"calibrated": args.calibrate is not None, "label_graph": args.label_map, "overwrite": args.overwrite}
    check_export(args.out, args.format, args.arithmetic, **asked)
    images, described = _images(args.images)
    predictor = load_predictor(args.model, args, args.mean_shift_layers)
    model = as_segmenter(predictor.model)
    export_model(
        model,
        args.out,
        format=args.format,
        precision=args.arithmetic,
        mean_shift_layers=args.mean_shift_layers,
        calibration=[] if args.calibrate is None else _calibration(predictor, args.calibrate),
        label_graph=args.label_map,
        reading=reading_settings(args.model, args),
        check=lambda exported: _compare(predictor, exported, images, described, args),
        overwrite=args.overwrite,
    )
    echo(f"written to {args.out}; next: meanshifter predict {args.out} IMAGE… --out DIR")
    return 0


def _images(given: list[str] | None) -> tuple[Sequence[Picture], str]:
    """What to compare on, and what to call it."""
    from meanshifter.data import Shapes
    from meanshifter.inference.inputs import find_images

    if given is None:
        shapes = Shapes(split="val", size=(360, 480), length=3)
        return [shapes[i].image for i in range(len(shapes))], "generated images (give --images for real ones)"
    found = find_images(given)
    return found, f"image{'' if len(found) == 1 else 's'}"


def _calibration(predictor: Predictor, folder: Path) -> list[Tensor]:
    from meanshifter.inference.agreement import windows_of
    from meanshifter.inference.inputs import find_images

    windows = (window for image in find_images([str(folder)]) for window in windows_of(predictor, image))
    return list(islice(windows, WINDOWS))


def _compare(
    predictor: Predictor, exported: RuntimeModel, images: Sequence[Picture], described: str, args: argparse.Namespace
) -> None:
    """Print the agreement.

    Raises:
        RunError: it is below the limit.
    """
    from meanshifter.inference.agreement import agreement
    from meanshifter.inference.predictor import Predictor

    settings: dict[str, Any] = reading_settings(args.model, args)
    found = agreement(predictor, Predictor(exported, **settings), images)
    echo(f"{args.format} {args.arithmetic} on {len(images)} {described}: {found}")
    _check_limit(found.percent, args)
    if args.label_map:
        _compare_graph(predictor, exported, images[0], args)


def _compare_graph(predictor: Predictor, exported: RuntimeModel, image: Picture, args: argparse.Namespace) -> None:
    """As `_compare`, for `labels.onnx`, which reads images whole: on a part of the first, in the same memory."""
    import numpy as np

    from meanshifter.inference.pictures import as_pixels
    from meanshifter.inference.predictor import Predictor
    from meanshifter.interop.label_graph import FILE, read_labels

    part = np.ascontiguousarray(as_pixels(image, predictor.max_pixels)[:PART, :PART])
    whole = Predictor(predictor.model, window=None, short_side=None, mean_shift_layers=predictor.mean_shift_layers)
    different = 100 * float((read_labels(exported.folder / FILE, part) != whole(part).labels).mean())
    echo(f"{FILE} on {part.shape[0]}×{part.shape[1]} pixels of the first image: {100 - different:.4f} % agree")
    _check_limit(different, args)


def _check_limit(percent: float, args: argparse.Namespace) -> None:
    limit = (LIMIT if args.arithmetic == "fp32" else None) if args.max_difference is None else args.max_difference
    if limit is not None and not percent <= limit:
        raise RunError(
            f"{args.out}: not written, as {percent:.4f} % of the pixels get another label than the model's own, "
            f"above {limit:g} %; use another precision, or allow it with --max-difference"
        )
