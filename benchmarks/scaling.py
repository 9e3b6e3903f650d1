"""What more processes would give a training: a step and its exchange measured here, and a model of both, checked.

python benchmarks/scaling.py [--preset segmenter-ti16] [--batch-size 2] [--crop 256] [--steps 5]

One process, and then two over gloo, each with one thread, take the same steps; the exchange of gradients is timed alone
too. With T the seconds of a step of one process, G the bytes of its gradients, n processes, and a link of b bytes and l
seconds, the model is

    step(n) = T + 2 (n - 1) / n · G / b + 2 (n - 1) · l + 2 c

for a ring, and c for each of the two exchanges of a few numbers; nothing of it overlaps with computing.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import meanshifter as ms
from meanshifter.utils import environment
from meanshifter.utils.distributed import Processes

LINKS = {
    "8 GPUs of one machine, 200 GB/s, 10 µs": (8, 200e9, 10e-6),
    "8 machines of 8 GPUs, 25 GB/s, 20 µs": (64, 25e9, 20e-6),
    "8 machines of 8 GPUs, 1.25 GB/s, 50 µs": (64, 1.25e9, 50e-6),
}
"""Processes, bytes a second of the slowest link between neighbors of the ring, and seconds of a message: assumed."""
CONTROL = 1e-3
"""Seconds of an exchange of a few numbers over many machines: assumed."""
PRESETS = ("segmenter-ti16", "segmenter-s16", "segmenter-b16", "segmenter-l16")
STEPS = (0.05, 0.2, 1.0)
"""Seconds of a step of one process, for the table: assumed, and to be replaced by one's own."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--preset", default="segmenter-ti16")
    options.add_argument("--batch-size", type=int, default=2)
    options.add_argument("--crop", type=int, default=256)
    options.add_argument("--steps", type=int, default=5)
    args = options.parse_args()
    print(environment.describe())
    print(f"{args.preset}, {args.batch_size} crops of {args.crop} pixels a process, one thread each, 150 classes\n")
    found = {count: run(count, args) for count in (1, 2)}
    alone, both = found[1], found[2]
    predicted = alone["step"] + both["exchange"] + 2 * both["control"]
    rows = [
        ("step of a single process", f"{alone['step'] * 1e3:.0f} ms"),
        ("step of two concurrent processes, without communication", f"{both['step'] * 1e3:.0f} ms"),
        (f"exchange of {both['bytes'] / 1e6:.1f} MB of gradients", f"{both['exchange'] * 1e3:.1f} ms"),
        ("exchange of a few numbers", f"{both['control'] * 1e3:.2f} ms"),
        ("step of two processes with both exchanges, measured", f"{both['whole'] * 1e3:.0f} ms"),
        ("the same step, predicted by the model from the single-process step", f"{predicted * 1e3:.0f} ms"),
        ("efficiency, measured", f"{alone['step'] / both['whole']:.0%}"),
    ]
    print_table(("measured here", ""), rows)
    print("\nfrom the model, with links and steps that are assumed: efficiency of n processes, step / step(n)")
    print_table(("network, gradients, step of one", *LINKS), expected())


def print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    for row in (head, ("---", *["---:"] * (len(head) - 1)), *rows):
        print(f"| {' | '.join(row)} |")


def expected() -> list[tuple[str, ...]]:
    rows = []
    for preset in PRESETS:
        with torch.device("meta"):
            size = 4 * sum(p.numel() for p in ms.create_model(preset, num_classes=150).parameters())
        for step in STEPS:
            shares = []
            for count, speed, latency in LINKS.values():
                exchange = 2 * (count - 1) / count * size / speed + 2 * (count - 1) * latency
                shares.append(f"{step / (step + exchange + 2 * CONTROL):.0%}")
            rows.append((f"{preset}, {size / 1e6:.0f} MB, {step * 1e3:.0f} ms", *shares))
    return rows


def run(count: int, args: argparse.Namespace) -> dict[str, float]:
    """Medians of the slowest process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(free.getsockname()[1]))
    context = mp.get_context("spawn")
    answers: Any = context.SimpleQueue()
    mp.spawn(work, (count, args, answers), nprocs=count)
    found = [answers.get() for _ in range(count)]
    return {key: max(entry[key] for entry in found) for key in found[0]}


def work(rank: int, count: int, args: argparse.Namespace, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=count)
    processes = Processes(rank, count, dist.new_group(backend="gloo"))
    model = ms.create_model(args.preset, num_classes=150, image_size=args.crop)
    images = torch.rand(args.batch_size, 3, args.crop, args.crop)
    labels = torch.randint(150, (args.batch_size, args.crop, args.crop))

    def compute() -> None:
        model.zero_grad()
        ms.ops.upsampled_cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]

    def exchange() -> None:
        processes.sum_gradients(model.parameters())

    def control() -> None:
        processes.sum(torch.zeros(3, dtype=torch.float64))

    def whole() -> None:
        control()
        compute()
        control()
        exchange()

    compute()
    timed = {"step": compute, "exchange": exchange, "control": control, "whole": whole}
    found = {name: seconds(part, args.steps) for name, part in timed.items()}
    found["bytes"] = 4 * sum(p.numel() for p in model.parameters())
    answers.put(found)
    dist.destroy_process_group()


def seconds(part: Any, times: int) -> float:
    taken = []
    for _ in range(times):
        dist.barrier()
        began = time.perf_counter()
        part()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
