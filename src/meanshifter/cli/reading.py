"""The options that say how images are read, and the predictor that they describe; several commands share them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from meanshifter.errors import InputError

if TYPE_CHECKING:
    from meanshifter.inference.predictor import Predictor
    from meanshifter.interop.contract import PatchModel


def add_reading_options(parser: argparse.ArgumentParser, *, precision: bool = True) -> None:
    """The options of `Predictor` that predicting and evaluating share; those not given are left out."""
    group = parser.add_argument_group(
        "how images are read",
        "What is not given is read as the run's recipe says, or as the model's configuration does: in windows of 512 "
        "pixels with stride 480 of images fitted into 512 × 2048 pixels, unless another tool's checkpoint says "
        "otherwise.",
    )
    left_out = argparse.SUPPRESS
    group.add_argument(
        "--window", type=_or_none, metavar="PIXELS", default=left_out, help="side of the windows; none: whole images"
    )
    group.add_argument("--stride", type=int, metavar="PIXELS", default=left_out, help="distance between windows")
    add_resizing_options(group)
    group.add_argument(
        "--protocol", choices=("mmsegmentation", "segmenter"), default=left_out, help="read images as that tool does"
    )
    group.add_argument("--scales", type=float, nargs="+", metavar="FACTOR", default=left_out, help="average over these")
    group.add_argument("--flip", action="store_true", default=left_out, help="average with the mirrored image")
    if precision:
        group.add_argument(
            "--precision",
            choices=("auto", "fp32", "bf16", "fp16"),
            default=left_out,
            help="arithmetic of the model (default fp32); auto: bf16 where the device has units for it",
        )
    group.add_argument("--batch-size", type=int, metavar="WINDOWS", default=left_out, help="windows per pass")
    group.add_argument("--device", help="cpu, cuda, cuda:1, … (default: cuda where there is one, else cpu)")


def add_resizing_options(group: argparse._ArgumentGroup) -> None:
    """The sides into which images are fitted; those not given are left out."""
    left_out = argparse.SUPPRESS
    group.add_argument(
        "--short-side", type=_or_none, metavar="PIXELS", default=left_out, help="resize to fit; none: no resizing"
    )
    group.add_argument("--long-side", type=int, metavar="PIXELS", default=left_out, help="the longer of the two")


def load_predictor(
    name: str, args: argparse.Namespace, mean_shift_layers: int | None = None, *, labelling: bool = False, **asked: Any
) -> Predictor:
    """The predictor that the command line and, for a run folder, its recipe describe, with model `name` loaded.

    `labelling`: to label images, not to score, which is another reading for some tools.
    """
    import meanshifter

    model = meanshifter.load_model(name)
    device = model.fastest_device if args.device is None else args.device
    settings = {**(labelling_settings(model, args) if labelling else reading_settings(name, args)), **asked}
    check_precision(model, args)
    try:
        return meanshifter.Predictor(model, mean_shift_layers=mean_shift_layers, device=device, **settings)
    except InputError as error:
        field = str(error).partition(":")[0]
        if field not in settings or field in _given(args) or field in asked:
            raise
        raise InputError(f"{name}, which says how it reads images: {error}") from error


def reading_settings(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """How images are read: as the command line says, else as the recipe of run or export `name` does."""
    from meanshifter.interop.runtime import reading_of
    from meanshifter.training.state import recipe_reading

    stated, given = {**reading_of(name), **recipe_reading(name)}, _given(args)
    if given.get("protocol") == "segmenter":  # which scores in windows of its own choice
        stated = {key: value for key, value in stated.items() if key not in ("window", "stride")}
    return {**stated, **given}


def labelling_settings(model: PatchModel, args: argparse.Namespace) -> dict[str, Any]:
    """`reading_settings` where images are labelled: the authors' Segmenter then reads them in another way."""
    from meanshifter.interop import official

    given, settings = _given(args), reading_settings(args.model, args)
    if settings.get("protocol") != "segmenter":
        return settings
    # an export that states the protocol states windows only where they were asked for
    stated = () if "protocol" in given else ("window", "stride")
    asked = {key: settings[key] for key in stated if key in settings} | given
    return {**settings, **official.labelling(model.config), **asked}


def check_precision(model: PatchModel, args: argparse.Namespace) -> None:
    """Refuse a precision that was asked for and is not the one built in; to `Predictor` fp32 asks for nothing.

    Raises:
        InputError: as said.
    """
    asked, own = _given(args).get("precision"), model.own_precision
    if own is not None and asked not in (None, "auto", own):
        raise InputError(
            f"--precision: {asked}, but the export has {own} built in; leave it out, or export the model again"
        )


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of reading."""
    from meanshifter.interop.runtime import READING

    return {name: value for name, value in vars(args).items() if name in READING}


def _or_none(text: str) -> int | None:
    if text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; give a number of pixels or none") from None
