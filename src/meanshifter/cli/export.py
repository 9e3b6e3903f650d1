"""`meanshifter export`: write a model for other runtimes, after comparing its label maps with the model's."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meanshifter.cli import SEGMENTER_HELP
from meanshifter.cli.options import add_reading_options, echo, load_predictor, reading_settings
from meanshifter.errors import InputError, RunError

if TYPE_CHECKING:
    from torch import Tensor

    from meanshifter.export.runtime import RuntimeModel
    from meanshifter.inference.predictor import Predictor
    from meanshifter.inference.preprocess import Picture

FORMATS = ("onnx", "openvino", "torch")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
LIMIT = 0.1
"""Percentage of pixels that may differ in fp32."""
WINDOWS = 64
"""Number of windows to calibrate activation ranges on."""
PART = 640
"""Side in pixels of the image part on which label graphs are compared."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = (
        "Write a folder with the exported model, for any batch and image size, and config.json. `meanshifter predict` "
        "and `evaluate` accept the folder as a model. Label maps of the export are compared with those of the model "
        "before the folder is put in place."
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help=SEGMENTER_HELP)
    add("out", metavar="OUT", type=Path, help="output folder")
    add("--format", choices=FORMATS, required=True, help="target runtime")
    add(
        "--precision",
        dest="arithmetic",  # not the precision for reading images
        choices=PRECISIONS,
        default="fp32",
        help="precision to export: fp32, fp16, int8 for onnx; all for openvino; fp32 for torch (default: %(default)s)",
    )
    add("--mean-shift-layers", type=int, metavar="N", help="fixed number of steps (default: as trained)")
    add("--calibrate", metavar="DIR", type=Path, help="int8: also quantize activations, calibrated on these images")
    add("--images", metavar="INPUT", nargs="+", help="images to compare on (default: generated images)")
    add("--max-disagreement", type=float, metavar="PERCENT", help=f"pixels that may differ (default: {LIMIT} for fp32)")
    add("--label-map", action="store_true", help="onnx: also write labels.onnx, from uint8 images to label maps")
    add("--overwrite", action="store_true", help="replace an earlier export in OUT")
    add_reading_options(parser, predicting=False)


def run(args: argparse.Namespace) -> int:
    """Export, compare, and print the agreement."""
    from meanshifter.checkpoints.ensemble import is_ensemble, read_members
    from meanshifter.export.export import check_export, export
    from meanshifter.inference.protocol import as_segmenter

    if args.max_disagreement is not None and not 0 <= args.max_disagreement <= 100:
        raise InputError(f"--max-disagreement: {args.max_disagreement}; expected a percentage from 0 to 100")
    asked = {"calibrated": args.calibrate is not None, "label_graph": args.label_map, "overwrite": args.overwrite}
    if is_ensemble(Path(args.model)):
        member = Path(args.model) / read_members(Path(args.model))[0].path
        raise InputError(f"{args.model}: an ensemble cannot be exported; export its members, such as {member}")
    check_export(args.out, args.format, args.arithmetic, **asked)
    images, described = _images(args.images)
    predictor = load_predictor(args.model, args, args.mean_shift_layers)
    model = as_segmenter(predictor.model)
    export(
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
    """The images to compare on, and their description."""
    from meanshifter.data import Shapes
    from meanshifter.jobs.inputs import find_images

    if given is None:
        shapes = Shapes(split="val", size=(360, 480), length=3)
        return [shapes[i].image for i in range(len(shapes))], "generated images (pass --images for real ones)"
    found = find_images(given)
    return found, f"image{'' if len(found) == 1 else 's'}"


def _calibration(predictor: Predictor, folder: Path) -> list[Tensor]:
    from meanshifter.export.export import windows_of
    from meanshifter.jobs.inputs import find_images

    windows = (window for image in find_images([str(folder)]) for window in windows_of(predictor, image))
    return list(islice(windows, WINDOWS))


def _compare(
    predictor: Predictor, exported: RuntimeModel, images: Sequence[Picture], described: str, args: argparse.Namespace
) -> None:
    """Print the agreement; raises RunError if it is below the limit."""
    from meanshifter.export.export import agreement
    from meanshifter.inference.predictor import Predictor

    settings: dict[str, Any] = reading_settings(args.model, args)
    found = agreement(predictor, Predictor(exported, **settings), images)
    echo(f"{args.format} {args.arithmetic} on {len(images)} {described}: {found}")
    _check_limit(found.percent, args)
    if args.label_map:
        _compare_graph(predictor, exported, images[0], args)


def _compare_graph(predictor: Predictor, exported: RuntimeModel, image: Picture, args: argparse.Namespace) -> None:
    """`_compare` for `labels.onnx`, which reads whole images, on a part of the first image to limit memory."""
    import numpy as np

    from meanshifter.export.program import FILE, read_labels
    from meanshifter.inference.predictor import Predictor
    from meanshifter.inference.preprocess import as_pixels

    part = np.ascontiguousarray(as_pixels(image, predictor.max_pixels)[:PART, :PART])
    whole = Predictor(predictor.model, window=None, short_side=None, mean_shift_layers=predictor.mean_shift_layers)
    different = 100 * float((read_labels(exported.folder / FILE, part) != whole(part).labels).mean())
    echo(f"{FILE} on {part.shape[0]}×{part.shape[1]} pixels of the first image: {100 - different:.4f} % agree")
    _check_limit(different, args)


def _check_limit(percent: float, args: argparse.Namespace) -> None:
    limit = (LIMIT if args.arithmetic == "fp32" else None) if args.max_disagreement is None else args.max_disagreement
    if limit is not None and not percent <= limit:
        raise RunError(
            f"{args.out}: not written, since {percent:.4f} % of the pixels get another label than with the model, "
            f"above {limit:g} %; use another precision, or allow it with --max-disagreement"
        )
