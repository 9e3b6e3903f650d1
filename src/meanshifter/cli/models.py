"""`meanshifter models`: the presets, or the published table beside our parameters."""

from __future__ import annotations

import argparse

from meanshifter.cli.printing import echo

MOST = 65535


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--classes", type=int, default=150, help="number of classes (default: 150)")
    parser.add_argument("--image-size", type=int, default=512, help="side of the image in pixels (default: 512)")
    parser.add_argument("--table", action="store_true", help="the parameters of the published table's rows instead")
    parser.add_argument("--published", action="store_true", help="list other people's models that load by name")


def run(args: argparse.Namespace) -> int | None:
    """Print the table asked for."""
    from meanshifter.errors import InputError
    from meanshifter.model.cost import PATCH

    for name, value, least in (("--classes", args.classes, 1), ("--image-size", args.image_size, PATCH)):
        if not least <= value <= MOST:
            raise InputError(f"{name}: {value}; it is a whole number from {least} to {MOST}")
    if args.published:
        from meanshifter.interop.published import table

        echo(*table())
    elif args.table:
        _published()
    else:
        _presets(args.classes, args.image_size)
    return 0


def _presets(classes: int, image_size: int) -> None:
    from meanshifter.model.cost import size_of
    from meanshifter.model.presets import BACKBONES, PRESETS, parse_preset

    echo(f"{'preset':24} {'backbone':24} {'parameters':>12} {'GMACs':>8}   (K {classes}, {image_size}×{image_size})")
    for preset in PRESETS:
        size = size_of(preset, num_classes=classes, image_size=image_size)
        backbone = BACKBONES[parse_preset(preset)[2]]
        echo(f"{preset:24} {backbone:24} {size.parameters:>12,} {size.multiply_adds / 1e9:>8.2f}")


def _published() -> None:
    from meanshifter.model.cost import size_of
    from meanshifter.study.published import TABLE_1

    echo(
        "Parameters computed here (150 classes, 512×512) beside the published ones; mIoU as published, ADE20K val.", ""
    )
    echo(f"| {'model':20} | layers | channels | parameters | millions | published | mIoU, published |")
    echo(f"| {'-' * 20} | -----: | -------: | ---------: | -------: | --------: | --------------: |")
    for row in TABLE_1:
        name = "Segmenter-Ti/16" if row.layers is None else "MeanShifter-Ti/16"
        preset = "segmenter-ti16" if row.layers is None else "meanshifter-ti16"
        block = None if row.layers is None else {"layers": row.layers, "channels": row.channels}
        count = size_of(preset, num_classes=150, image_size=512, mean_shift=block).parameters
        layers, channels = ("", "") if block is None else (row.layers, row.channels)
        echo(
            f"| {name:20} | {layers:>6} | {channels:>8} | {count:>10,} | {count / 1e6:>8.2f} "
            f"| {row.millions:>9.2f} | {row.mIoU:>15.2f} |"
        )
