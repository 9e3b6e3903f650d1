"""Options shared by several commands, and printing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meanshifter.errors import InputError, one_line, printable

if TYPE_CHECKING:
    from meanshifter.data.layout import FolderLayout
    from meanshifter.inference.predictor import Predictor
    from meanshifter.inference.protocol import PatchModel
    from meanshifter.utils.distributed import Processes


OF_MODELS: Final = ("merge_tokens", "engine")
"""Options of `add_reading_options` that an export fixes and does not state."""


def echo(*lines: str, error: bool = False) -> None:
    """Print lines of printable characters on standard output, or on standard error."""
    for line in lines:
        print(printable(line), file=sys.stderr if error else sys.stdout, flush=True)


def echo_table(header: list[str], rows: list[list[str]]) -> None:
    """Print a table, the first column aligned left and the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        echo("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip())


def say(message: str) -> None:
    """Print one line on standard error."""
    echo(f"meanshifter: {one_line(message)}", error=True)


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Add the numbers of devices and nodes, which `start_processes` reads."""
    group = parser.add_argument_group(
        "multi-GPU and multi-node",
        "Each device has a process for its share of the images. Default: as started by torchrun or SLURM, else 1.",
    )
    group.add_argument("--devices", type=int, metavar="N", help="devices per node")
    group.add_argument("--num-nodes", type=int, metavar="N", help="nodes")


def start_processes(args: argparse.Namespace) -> Processes:
    """Start the processes of the command line, torchrun or SLURM, and set `args.device` to that of this process."""
    from meanshifter.utils.distributed import Processes, create_fabric, launch, process_counts

    devices, num_nodes = process_counts(args.devices, args.num_nodes)
    if devices * num_nodes == 1:
        return Processes()
    kind, _, index = ("auto" if args.device is None else args.device).partition(":")
    if index:
        raise InputError(f"--device: {args.device} is one device, but {devices * num_nodes} were requested; use {kind}")
    fabric = create_fabric(accelerator=kind, devices=devices, num_nodes=num_nodes)
    processes = launch(fabric)
    args.device = str(fabric.device)
    return processes


def add_layout_options(parser: argparse.ArgumentParser, *, runs: bool) -> None:
    """Add the options of `FolderLayout`; `runs`: defaults may come from a model's run."""
    group = parser.add_argument_group(
        "layout of a dataset folder",
        "Where images and masks are, and which share is held out as val."
        + (" Defaults come from the model's run if it was trained on the same folder." if runs else ""),
    )
    add = group.add_argument
    add("--data.images", metavar="NAME", help="image folder (default: images)")
    add("--data.masks", metavar="NAME", help="mask folder (default: masks)")
    add("--data.mask_suffix", metavar="TEXT", help="suffix that masks add to the names of their images, such as _mask")
    add("--data.val_share", metavar="SHARE", type=float, help="share held out as val if there is no val folder")


def layout_of(args: argparse.Namespace, root: Path | None, models: Sequence[str] = ()) -> FolderLayout:
    """The layout of the command line; other fields are those of the models' runs on the same folder.

    Raises:
        InputError: an invalid share, or runs with different layouts.
    """
    from meanshifter.data.layout import USUAL, FolderLayout, with_given

    models = [part for model in models for part in _parts(model)]
    given = FolderLayout(**{field.name: getattr(args, f"data.{field.name}") for field in fields(FolderLayout)})
    trained = {model: found for model in models if root is not None and (found := _trained_on(model, root)) is not None}
    layouts = {with_given(layout, given): model for model, layout in trained.items()}
    if len(layouts) > 1:
        (one, first), (two, second), *_ = layouts.items()
        raise InputError(
            f"{root}: {first} was trained on it with{one.options() or ' the default layout'}, {second} "
            f"with{two.options() or ' the default layout'}; choose one with these options"
        )
    return next(iter(layouts), with_given(USUAL, given))


def _parts(model: str) -> list[str]:
    """The members of an ensemble's folder, or the model itself."""
    from meanshifter.checkpoints.ensemble import is_ensemble, read_members

    path = Path(model)
    return [str(path / member.path) for member in read_members(path)] if is_ensemble(path) else [model]


def _trained_on(model: str, root: Path) -> FolderLayout | None:
    """The layout with which the run of a model read the folder `root`; None for other models."""
    from meanshifter.data.layout import FolderLayout
    from meanshifter.training.parsing import read_run_config

    path = Path(model)
    run = next((at for at in (path, path.parent.parent) if (at / "config.yaml").is_file()), None)
    if run is None:
        return None
    try:
        data: Any = read_run_config(run)["data"]
        if data["name"] != "folder" or Path(data["root"]).resolve() != root.resolve():
            return None
        return FolderLayout(**{field.name: data.get(field.name) for field in fields(FolderLayout)})
    except (KeyError, TypeError):  # another kind of configuration
        return None


def add_reading_options(parser: argparse.ArgumentParser, *, predicting: bool = True) -> None:
    """Add the options of `Predictor` for predicting and evaluating; they are only set if given.

    `predicting`: also those of the model, which an export fixes.
    """
    group = parser.add_argument_group(
        "preprocessing and sliding-window inference",
        "Defaults come from the run's recipe or the model's configuration: images are resized to fit 512 × 2048 pixels "
        "and read in windows of 512 pixels with stride 480, unless another tool's checkpoint specifies otherwise.",
        argument_default=argparse.SUPPRESS,
    )
    add = group.add_argument
    add("--window", type=_or_none, metavar="PIXELS", help="side of the sliding window; none: whole images")
    add("--window-stride", type=int, metavar="PIXELS", help="stride of the sliding window")
    add("--window-blend", choices=("constant", "cosine"), help="weights of overlapping windows; cosine hides borders")
    add_resizing_options(group)
    add("--compat", choices=("mmsegmentation", "segmenter"), help="reproduce that tool's preprocessing exactly")
    add("--scales", type=float, nargs="+", metavar="FACTOR", help="average over these image scales")
    add("--flip", action="store_true", help="average with the mirrored image")
    if predicting:
        add(
            "--merge-tokens",
            type=float,
            metavar="SHARE",
            help="merge this share of the most uniform 2×2 windows of tokens: faster, and approximate if the model was "
            "trained without",
        )
        add("--precision", choices=("auto", "fp32", "bf16", "fp16"), help="default: fp32; auto: bf16 if supported")
        add(
            "--engine",
            choices=("torch", "auto", "openvino", "onnx"),
            help="what computes the logits on the CPU (default: torch); auto: the fastest, measured once per model and "
            "machine from exports that are kept",
        )
    add("--batch-size", type=int, metavar="WINDOWS", help="windows per forward pass")
    add("--device", default=None, help="cpu, cuda, cuda:1, … (default: cuda if available, else cpu)")


def add_resizing_options(group: argparse._ArgumentGroup) -> None:
    """Add the sides that images are resized to fit to a group whose arguments are only set if given."""
    group.add_argument("--short-side", type=_or_none, metavar="PIXELS", help="maximum shorter side; none: no resizing")
    group.add_argument("--long-side", type=int, metavar="PIXELS", help="maximum longer side")


def add_ensemble_option(parser: argparse.ArgumentParser) -> None:
    """Add further models to MODEL, which `load_predictor` and `load_models` take as `others`."""
    parser.add_argument(
        "--ensemble",
        nargs="+",
        metavar="MODEL",
        default=[],
        help="average the probabilities with those of these models",
    )


def load_predictor(
    name: str,
    args: argparse.Namespace,
    mean_shift_layers: int | None = None,
    *,
    others: Sequence[str] = (),
    labeling: bool = False,
    **asked: Any,
) -> Predictor:
    """Load model `name` as a predictor, configured by the command line and, for a run folder, its recipe.

    `others`: further models of an ensemble.
    `labeling`: to label images rather than evaluate, for which some tools preprocess differently.
    """
    import meanshifter

    model, settings = load_models([name, *others], args, labeling=labeling)
    device = model.fastest_device if args.device is None else args.device
    settings = {**settings, **asked}
    try:
        predictor = meanshifter.Predictor(model, mean_shift_layers=mean_shift_layers, device=device, **settings)
        for choice in predictor.engines:
            say(str(choice))
        return predictor
    except InputError as error:
        field = str(error).partition(":")[0]
        if field not in settings or field in reading_given(args) or field in asked:
            raise
        raise InputError(f"{name}, which specifies its preprocessing: {error}") from error


def load_models(names: Sequence[str], args: argparse.Namespace, *, labeling: bool) -> tuple[PatchModel, dict[str, Any]]:
    """Load a model, or several as an ensemble, and its preprocessing.

    Raises:
        InputError: a model cannot be loaded, or those of an ensemble specify different preprocessing.
    """
    import meanshifter
    from meanshifter.inference.ensemble import Ensemble

    models, settings = [], []
    for name in names:
        model = meanshifter.load_model(name)
        check_precision(model, args)
        models.append(model)
        settings.append(labeling_settings(name, model, args) if labeling else reading_settings(name, args))
    if len(models) == 1:
        return models[0], settings[0]
    _check_alike(names, models, settings)
    return Ensemble(models), settings[0]


def _check_alike(names: Sequence[str], models: Sequence[PatchModel], settings: Sequence[dict[str, Any]]) -> None:
    import meanshifter

    plain = [{name: value for name, value in own.items() if name != "engine"} for own in settings]  # each its own
    protocols = [meanshifter.Predictor(model, **own).protocol() for model, own in zip(models, plain, strict=True)]
    for name, protocol in zip(names[1:], protocols[1:], strict=True):
        differing = [
            f"{field} is {protocols[0][field]} in {names[0]} and {value} in {name}"
            for field, value in protocol.items()
            if field not in ("mean_shift_layers", "temperature") and value != protocols[0][field]
        ]
        if differing:
            raise InputError(
                f"--ensemble: {'; '.join(differing)}; set it for all models with the option of the same name, or give "
                "models with the same preprocessing"
            )


def one_engine(args: argparse.Namespace, steps: Sequence[int]) -> None:
    """Let torch compute several numbers of mean shift steps, of which an export has a single one.

    Raises:
        InputError: another engine is asked for.
    """
    engine = getattr(args, "engine", "torch")
    if len(set(steps)) < 2 or engine == "torch":
        return
    listed = " ".join(map(str, steps))
    if engine != "auto":
        raise InputError(
            f"--engine: {engine}, but an export has one number of mean shift steps, and --mean-shift-layers has "
            f"{listed}; give one number, or leave --engine out"
        )
    args.engine = "torch"
    say(f"engine: torch, as an export has one number of mean shift steps, and --mean-shift-layers has {listed}")


def refuse_without_dataset(args: argparse.Namespace) -> None:
    """Raise an InputError for an option that describes a DATASET, where none is given."""
    given = [name for name in ("root", "split") if getattr(args, name) is not None]
    given += [name for name, value in vars(args).items() if name.startswith("data.") and value is not None]
    if given:
        raise InputError(f"--{given[0]}: given without DATASET, whose data it describes; add DATASET, or leave it out")


def reading_settings(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The preprocessing: from the command line, else from the recipe of the run or the export `name`."""
    from meanshifter.export.runtime import reading_of
    from meanshifter.training.stored_config import recipe_reading

    stated, given = {**reading_of(name), **recipe_reading(name)}, reading_given(args)
    if given.get("compat") == "segmenter":  # it evaluates with windows of its own
        stated = {key: value for key, value in stated.items() if key not in ("window", "window_stride")}
    return {**stated, **given}


def labeling_settings(name: str, model: PatchModel, args: argparse.Namespace) -> dict[str, Any]:
    """`reading_settings` for labeling images, which the official Segmenter preprocesses differently."""
    from meanshifter.checkpoints.compat import segmenter_inference

    given, settings = reading_given(args), reading_settings(name, args)
    if settings.get("compat") != "segmenter":
        return settings
    # an export that names the tool specifies windows only if they were given on export
    stated = () if "compat" in given else ("window", "window_stride")
    asked = {key: settings[key] for key in stated if key in settings} | given
    reading = segmenter_inference(model.config)
    own = {"window": reading.window, "window_stride": reading.window_stride, "short_side": reading.short_side}
    return {**settings, **own, **asked}


def check_precision(model: PatchModel, args: argparse.Namespace) -> None:
    """Raise an InputError for a precision other than that of the export; to `Predictor`, fp32 is only the default."""
    asked, own = reading_given(args).get("precision"), model.own_precision
    if own is not None and asked not in (None, "auto", own):
        raise InputError(
            f"--precision: {asked}, but the model was exported with {own}; leave it out, or export it again"
        )


def reading_given(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_reading_options` on the command line."""
    from meanshifter.export.runtime import READING

    return {name: value for name, value in vars(args).items() if name in (*READING, *OF_MODELS)}


def _or_none(text: str) -> int | None:
    if text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a number of pixels or none") from None
