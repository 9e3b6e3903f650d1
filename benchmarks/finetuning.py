"""Memory and time of a training step when fewer weights are trained, or fewer activations kept.

python benchmarks/finetuning.py [--size 512] [--batch 4] [--rounds 2] [--steps 2] [--docs docs/benchmarks.md]

Steps of Segmenter-Ti/16 with 150 classes, AdamW and stochastic depth on random pixels, on the CPU: the whole model,
with gradient checkpointing, with adapters, with a frozen encoder, and with its cached tokens. Each runs in a process of
its own, all in turn, once a round. Memory is the peak of a process above where it stood before the model was built, and
so includes weights, gradients and the optimizer's state. Time is processor time on one thread, which other processes of
a busy machine change little: the median over rounds of a process's median step, without its first. With --docs, the
table replaces the one between the markers in that file.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from meanshifter.utils import environment

MODES = {
    "whole model": {},
    "whole model, gradient checkpointing": {"gradient_checkpointing": True},
    "LoRA of rank 8 on qkv and proj": {"lora": True},
    "LoRA, gradient checkpointing": {"lora": True, "gradient_checkpointing": True},
    "frozen encoder": {"freeze": "encoder"},
    "frozen encoder, cached tokens": {"freeze": "encoder", "tokens": True},
}
MARKERS = ("<!-- finetuning: begin -->", "<!-- finetuning: end -->")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", type=int, default=512)
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--steps", type=int, default=2, help="timed steps of a process")
    options.add_argument("--docs", type=Path, help="file whose table is replaced")
    options.add_argument("--child", help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.child is not None:
        print(json.dumps(measure(args.child, args.size, args.batch, args.steps)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in MODES}
    for turn in range(args.rounds):
        names = list(MODES)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(child(name, args))
            print(f"round {turn + 1}: {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    text = table(found, args)
    print(text)
    if args.docs is not None:
        replace(args.docs, text)


def child(name: str, args: argparse.Namespace) -> dict[str, float]:
    sizes = [f"--{field}={getattr(args, field)}" for field in ("size", "batch", "steps")]
    command = [sys.executable, __file__, "--child", name, *sizes]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measure(name: str, size: int, batch: int, steps: int) -> dict[str, float]:
    """Peak megabytes of a process that trains in this mode, its seconds per step, and its trained parameters."""
    import torch
    from speed.timing import peak_memory

    import meanshifter as ms
    from meanshifter.training.adapters import choose_trained, enable_checkpointing
    from meanshifter.training.config import TrainConfig
    from meanshifter.training.optimizer import SampledDropPaths, create_optimizer
    from meanshifter.training.sections import LoraConfig, ModelRecipe, OptimizerConfig

    mode = MODES[name]
    if mode.get("lora"):
        import peft  # noqa: F401 (loaded before memory is measured)
    config = TrainConfig(
        model=ModelRecipe(init_from="random"),  # random weights take as much time
        optimizer=OptimizerConfig(name="adamw", freeze=mode.get("freeze")),  # type: ignore[arg-type]
        lora=LoraConfig() if mode.get("lora") else None,
        gradient_checkpointing=bool(mode.get("gradient_checkpointing")),
    )
    seconds, trained = [], 0
    torch.set_num_threads(1)

    def loss_of(model: ms.Segmenter, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if not mode.get("tokens"):
            return model.loss(images, labels)
        grid = (images.shape[-2] // model.patch_size, images.shape[-1] // model.patch_size)
        tokens = torch.zeros(len(images), grid[0] * grid[1], model.encoder.width)
        return ms.ops.upsampled_cross_entropy(model.decode(tokens, grid), labels)

    def train(side: int, crops: int, count: int) -> None:
        nonlocal trained
        torch.manual_seed(0)
        model = ms.create_model("segmenter-ti16", 150, image_size=side, drop_path=0.1).train()
        choose_trained(model, config)
        optimizer = create_optimizer(model, config.optimizer)
        drops = SampledDropPaths(model)
        if config.gradient_checkpointing:
            enable_checkpointing(model)
        images, labels = torch.randn(crops, 3, side, side), torch.randint(150, (crops, side, side), dtype=torch.uint8)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        for _ in range(count):
            began = time.process_time()
            drops.draw(crops)
            drops.use(slice(0, crops), model.device)
            loss_of(model, images, labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.process_time() - began)

    train(64, 1, 1)  # compiles the kernels
    seconds.clear()
    peak = peak_memory(lambda: train(size, batch, 1 + steps))
    return {
        "peak": float("nan") if peak is None else peak / 1e6,
        "seconds": statistics.median(seconds[1:]),
        "trained": trained,
    }


def table(found: dict[str, list[dict[str, float]]], args: argparse.Namespace) -> str:
    """The table in Markdown, with what it was measured on."""
    rows = {
        name: (
            statistics.median(run["peak"] for run in runs),
            [run["seconds"] for run in runs],
            int(runs[0]["trained"]),
        )
        for name, runs in found.items()
    }
    peak, times, _ = rows["whole model"]
    lines = [
        f"{environment.describe()}; batch {args.batch} at "
        f"{args.size}×{args.size}, {args.rounds} rounds of {args.steps} steps.",
        "",
        "| trained | parameters | peak MB | of the whole | processor s per step | range | of the whole |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, (most, seconds, trained) in rows.items():
        median, whole = statistics.median(seconds), statistics.median(times)
        lines.append(
            f"| {name} | {trained:,} | {most:,.0f} | {most / peak:.2f} | {median:.2f} | {min(seconds):.2f}–"
            f"{max(seconds):.2f} | {median / whole:.2f} |"
        )
    return "\n".join(lines)


def replace(path: Path, text: str, markers: tuple[str, str] = MARKERS) -> None:
    """Replace what stands between the markers."""
    first, last = markers
    document = path.read_text("utf-8")
    found = re.subn(f"{first}.*{last}", lambda _: f"{first}\n{text}\n{last}", document, flags=re.S)
    if found[1] != 1:
        raise SystemExit(f"{path}: expected one pair of markers {first} … {last}, got {found[1]}")
    path.write_text(found[0], "utf-8")


if __name__ == "__main__":
    main()
