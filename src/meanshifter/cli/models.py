"""`meanshifter models`: list the presets, or compare parameter counts with the published table."""

from __future__ import annotations

import argparse

from meanshifter.cli.options import echo

MOST = 65535


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add = parser.add_argument
    add("--classes", type=int, help="number of classes (default: 150)")
    add("--image-size", type=int, help="side of the image in pixels (default: 512)")
    add("--table", action="store_true", help="list the models of the published table instead")
    add("--published", action="store_true", help="list published models that load by name")


def run(args: argparse.Namespace) -> int | None:
    """Print the requested table."""
    from meanshifter.errors import InputError
    from meanshifter.model.presets import PATCH

    if args.published and args.table:
        raise InputError("--table: another table than --published; leave one of them out")
    for name, value in (("--classes", args.classes), ("--image-size", args.image_size)):
        if value is not None and (args.published or args.table):
            raise InputError(f"{name}: only applies to the presets; leave out --table and --published")
    classes = 150 if args.classes is None else args.classes
    image_size = 512 if args.image_size is None else args.image_size
    for name, value, least in (("--classes", classes, 1), ("--image-size", image_size, PATCH)):
        if not least <= value <= MOST:
            raise InputError(f"{name}: {value}; expected a whole number from {least} to {MOST}")
    if args.published:
        from meanshifter.checkpoints.load import table

        echo(*table())
    elif args.table:
        _published()
    else:
        _presets(classes, image_size)
    return 0


def _presets(classes: int, image_size: int) -> None:
    from meanshifter.model.presets import PRESETS, parse_preset, size_of

    width = max(map(len, PRESETS))
    echo(
        f"{'preset':{width}} {'encoder':24} {'parameters':>12} {'GMACs':>8}   (K {classes}, {image_size}×{image_size})"
    )
    for preset in PRESETS:
        size = size_of(preset, num_classes=classes, image_size=image_size)
        encoder = parse_preset(preset).encoder
        echo(f"{preset:{width}} {encoder:24} {size.parameters:>12,} {size.multiply_adds / 1e9:>8.2f}")


def _published() -> None:
    from meanshifter.analysis.findings import TABLE_1
    from meanshifter.model.presets import size_of

    echo("Computed (150 classes, 512×512) and published parameters, in millions; published mIoU on ADE20K val.", "")
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
