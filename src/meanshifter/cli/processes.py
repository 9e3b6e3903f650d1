"""The options `--devices` and `--num-nodes` of commands that share out images among processes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from meanshifter.errors import InputError

if TYPE_CHECKING:
    from meanshifter.processes import Processes


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Numbers of devices and machines; `start_processes` reads them."""
    group = parser.add_argument_group(
        "more than one device", "Each device has a process, which reads its share of the images."
    )
    group.add_argument(
        "--devices", type=int, metavar="N", help="of one machine (default: what torchrun or SLURM started, else 1)"
    )
    group.add_argument("--num-nodes", type=int, metavar="N", help="machines (default: likewise)")


def start_processes(args: argparse.Namespace) -> Processes:
    """The processes that the command line, torchrun or SLURM ask for; sets `args.device` to this process's own.

    Raises:
        InputError: devices that are not there.
    """
    from meanshifter.processes import Processes, create_fabric, launch, process_counts

    devices, num_nodes = process_counts(args.devices, args.num_nodes)
    if devices * num_nodes == 1:
        return Processes()
    kind, _, index = ("auto" if args.device is None else args.device).partition(":")
    if index:
        raise InputError(f"--device: {args.device} is a single one, but {devices * num_nodes} are asked; write {kind}")
    fabric = create_fabric(accelerator=kind, devices=devices, num_nodes=num_nodes)
    processes = launch(fabric)
    args.device = str(fabric.device)
    return processes
