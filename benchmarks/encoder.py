"""What makes the encoder faster: precision, attention, compilation, memory format, windows per batch.

python benchmarks/encoder.py [--encoder vit_tiny_patch16_224] [--rounds 7] [--compile]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import timm
import torch
from speed.report import table
from speed.timing import compare
from torch import nn

from meanshifter.utils import environment


def vit(name: str, *, fused: bool = True, channels_last: bool = False, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, img_size=512, num_classes=0, global_pool="").eval().to(dtype)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", fused)  # noqa: B010
    return model.to(memory_format=torch.channels_last) if channels_last else model  # type: ignore[call-overload]


def forward(model: nn.Module, images: torch.Tensor, autocast: bool = False) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return model(images)

    return run


def training(model: nn.Module, images: torch.Tensor, autocast: bool) -> Callable[[], object]:
    model.train()

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(images).float().square().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="vit_tiny_patch16_224")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    name, bf16 = args.encoder, torch.bfloat16
    print(environment.describe())
    two = torch.randn(2, 3, 512, 512)
    ways = {
        "fp32": forward(vit(name), two),
        "fp32, N × N attention": forward(vit(name, fused=False), two),
        "fp32, channels-last patches": forward(vit(name, channels_last=True), two),
        "bf16 autocast": forward(vit(name), two, autocast=True),
        "bf16 autocast, N × N attention": forward(vit(name, fused=False), two, autocast=True),
        "bf16 weights": forward(vit(name, dtype=bf16), two.to(bf16)),
        "bf16 weights, N × N attention": forward(vit(name, dtype=bf16, fused=False), two.to(bf16)),
    }
    if args.compile:
        ways["fp32, compiled"] = forward(torch.compile(vit(name)), two)
        ways["bf16 autocast, compiled"] = forward(torch.compile(vit(name)), two, autocast=True)
        ways["bf16 weights, compiled"] = forward(torch.compile(vit(name, dtype=bf16)), two.to(bf16))
        plain = torch.compile(vit(name, dtype=bf16, fused=False))
        ways["bf16 weights, N × N attention, compiled"] = forward(plain, two.to(bf16))
    print("\n" + table(f"{name}, forward pass of 2 windows of 512×512", compare(ways, rounds=args.rounds)))
    batches = {f"{b} windows": forward(vit(name), torch.randn(b, 3, 512, 512)) for b in (1, 2, 4, 8)}
    print("\n" + table("fp32, windows per batch", compare(batches, rounds=args.rounds)))
    for side in (288, 512):
        crops = torch.randn(4, 3, side, side)
        sized = {
            "fp32": training(vit(name), crops, False),
            "bf16 autocast": training(vit(name), crops, True),
            "bf16 autocast, N × N attention": training(vit(name, fused=False), crops, True),
        }
        if side != 512:
            sized = {
                title: training(timm.create_model(name, img_size=side, num_classes=0, global_pool=""), crops, cast)
                for title, cast in (("fp32", False), ("bf16 autocast", True))
            }
            plain = timm.create_model(name, img_size=side, num_classes=0, global_pool="")
            for module in plain.modules():
                if hasattr(module, "fused_attn"):
                    module.fused_attn = False
            sized["bf16 autocast, N × N attention"] = training(plain, crops, True)
        print("\n" + table(f"forward and backward, 4 crops of {side}×{side}", compare(sized, rounds=args.rounds)))


if __name__ == "__main__":
    main()
