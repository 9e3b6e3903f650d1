"""What is measured: label map, loss, prediction, training samples, and the cost of the block and of image area.

Glossary: B batch, K classes, N tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import meanshifter as ms
from meanshifter.data.augment_config import AugmentConfig
from meanshifter.data.catalog.ade20k import ADE20K
from meanshifter.data.catalog.shapes import Shapes
from meanshifter.data.datasets import Cached, Dataset
from meanshifter.inference.preprocess import as_pixels
from meanshifter.inference.windows import window_starts
from meanshifter.training.stream import SampleStream
from meanshifter.utils.environment import has_bfloat16
from speed import definition
from speed.peers import installed
from speed.timing import CPU, Measured, compare

Case = Callable[[torch.device], list[Measured]]
K = 150
DEFINITION, OURS = "definition", "meanshifter"


def random_logits(B: int) -> torch.Tensor:
    """Independent normal logits on 32×32 patches: the worst case for the bound on candidates."""
    return torch.randn(B, K, 32, 32, generator=torch.Generator().manual_seed(0))


def smooth_logits() -> torch.Tensor:
    """Logits that vary over a few patches, as those of trained models do."""
    coarse = torch.randn(1, K, 6, 6, generator=torch.Generator().manual_seed(0))
    return 5 * torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic")


def label_map(logits: torch.Tensor, device: torch.device = CPU) -> list[Measured]:
    """150 classes from 32×32 patches to 512×512 pixels."""
    size, logits = (512, 512), logits.to(device)
    return compare(
        {
            DEFINITION: lambda: definition.upsampled_argmax(logits, size),
            OURS: lambda: ms.ops.upsampled_argmax(logits, size),
        },
        rounds=15,
        device=device,
    )


def loss(device: torch.device = CPU) -> list[Measured]:
    """Forward and backward of the cross-entropy of 8 crops of 512×512 and 150 classes."""
    logits = random_logits(8).to(device).requires_grad_()
    labels = torch.randint(0, K, (8, 512, 512), generator=torch.Generator().manual_seed(1))
    labels[:, :32] = 255
    labels = labels.to(device)

    def run(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        torch.autograd.grad(function(logits, labels), logits)

    return compare(
        {
            DEFINITION: lambda: run(definition.upsampled_cross_entropy),
            OURS: lambda: run(ms.ops.upsampled_cross_entropy),
        },
        rounds=5,
        device=device,
    )


def step(device: torch.device = CPU) -> list[Measured]:
    """Forward and backward of Segmenter-Ti/16 with 150 classes, on 8 crops of 512×512 (2 on the CPU)."""
    torch.manual_seed(0)
    count = 2 if device.type == "cpu" else 8
    model = ms.create_model("segmenter-ti16", num_classes=K).to(device).train()
    images = torch.randn(count, 3, 512, 512, device=device)
    labels = torch.randint(0, K, (count, 512, 512), device=device)

    def one(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], *, half: bool) -> Callable[[], None]:
        def run() -> None:
            model.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                value = function(model(images), labels)
            torch.autograd.backward(value)

        return run

    ways = {}
    for precision in ("fp32", "bf16"):
        half = precision == "bf16"
        if half and not has_bfloat16(device):
            break
        ways[f"{DEFINITION}, {count} crops, {precision}"] = one(definition.upsampled_cross_entropy, half=half)
        ways[f"{OURS}, {count} crops, {precision}"] = one(ms.ops.upsampled_cross_entropy, half=half)
    return compare(ways, rounds=5 if device.type == "cpu" else 15, device=device)


@contextmanager
def photo(height: int, width: int) -> Iterator[Path]:
    """A JPEG with structure at all scales."""
    rng = np.random.default_rng(0)
    image = np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64):
        noise = Image.fromarray(rng.integers(0, 255, (cells, cells, 3), dtype=np.uint8))
        image += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.jpg"
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        yield path


def prediction(
    height: int = 512, width: int = 683, *, fast: bool = True, rounds: int = 9, device: torch.device = CPU
) -> list[Measured]:
    """From the path of a photo to its label map, Segmenter-Ti/16 with 150 classes, windows of 512, stride 480."""
    torch.manual_seed(0)
    model = ms.create_model("segmenter-ti16", num_classes=K).eval().to(device)
    mean, std = np.asarray(model.config.mean, np.float32), np.asarray(model.config.std, np.float32)
    predictor = ms.Predictor(model, short_side=None)
    vit = model.encoder.vit
    ways: dict[str, Callable[[], object]] = {}
    with photo(height, width) as path:
        pixels = as_pixels(path)
        crops = [
            pixels[y : y + 512, x : x + 512]
            for y in window_starts(height, 512, 480)
            for x in window_starts(width, 512, 480)
        ]
        batches = [model.normalize(np.stack(crops[i : i + 2])).to(device) for i in range(0, len(crops), 2)]

        @torch.inference_mode()
        def encoder() -> None:
            for batch in batches:
                vit.forward_features(batch)

        ways["slide inference, definition"] = lambda: definition.slide(
            model, path, mean, std, window=512, stride=480, K=K, device=device
        )
        ways["timm's encoder alone, same windows"] = encoder
        ways["meanshifter, fp32"] = lambda: predictor(path)
        if fast and has_bfloat16(device):
            half = ms.Predictor(model, short_side=None, precision="bf16")
            ways["meanshifter, bf16"] = lambda: half(path)
        return compare(ways, rounds=rounds, device=device)


def block(device: torch.device = CPU) -> list[Measured]:
    """The mean shift block of MeanShifter-Ti/16 on 2 crops of 1024 tokens, beside the encoder."""
    torch.manual_seed(0)
    model = ms.create_model("meanshifter-ti16", num_classes=K).eval().to(device)
    images = torch.randn(2, 3, 512, 512).to(device)
    shift = model.mean_shift
    assert shift is not None
    with torch.inference_mode():
        tokens, _ = model.encode(images)

    def steps(layers: int) -> Callable[[], object]:
        def run() -> object:
            with torch.inference_mode():
                return shift(tokens, layers)

        return run

    def encode() -> object:
        with torch.inference_mode():
            return model.encode(images)

    return compare(
        {"encoder": encode, **{f"mean shift, {n} steps": steps(n) for n in (1, 2, 4, 12)}}, rounds=7, device=device
    )


def samples(root: Path) -> list[Measured]:
    """Training samples of ADE20K's recipe from the images in `root`, one after the other on one thread."""
    dataset = ADE20K(root, split="val")
    config = AugmentConfig()
    half = (0.5, 0.5, 0.5)
    count = 10 * len(dataset)
    files = list(zip(dataset.image_paths, dataset.mask_paths, strict=True))
    rng = np.random.default_rng(0)

    def plain() -> None:
        for i in range(count):
            definition.training_sample(*files[i % len(files)], rng, crop=512, base=(2048, 512), scale=config.scale)

    def ours(source: Dataset) -> Callable[[], None]:
        stream = SampleStream(source, config, 0, mean=half, std=half)

        def run() -> None:
            for i in range(count):
                stream.sample(i)

        return run

    ways = {
        f"{DEFINITION}, {count} samples": plain,
        "meanshifter": ours(dataset),
        "meanshifter, decoded images kept": ours(Cached(dataset, 10**9)),
    }
    with threads(1):
        return compare(ways, rounds=5, memory=False)


def samples_case(root: Path) -> tuple[str, Case]:
    """The title and measurement of `samples`."""
    return "Training samples, crops of 512×512 of ADE20K's recipe, one thread", lambda _: samples(root)


AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "the standard recipe": {},
    "rare_crops": {"rare_crops": 1.0},
    "aspect": {"aspect": (0.75, 1.33)},
    "rotation": {"rotation": 30.0},
    "vertical_flip": {"vertical_flip": 1.0},
    "quarter_turns": {"quarter_turns": 1.0},
    "copy_paste": {"copy_paste": 1.0},
    "cutmix": {"cutmix": 1.0},
    "classmix": {"classmix": 1.0},
    "blur": {"blur": 1.0},
    "noise": {"noise": 1.0},
    "jpeg": {"jpeg": 1.0},
    "erasing": {"erasing": 1.0},
    "transforms: RandomSolarize": {"transforms": [{"name": "RandomSolarize", "threshold": 128, "p": 1.0}]},
    "transforms: RandomPerspective": {"transforms": [{"name": "RandomPerspective", "p": 1.0}]},
    "transforms: ElasticTransform": {"transforms": [{"name": "ElasticTransform"}]},
}


def augmentations() -> list[Measured]:
    """8 training samples of decoded images of 512×683, each augmentation in every sample, on one thread."""
    dataset, half = Cached(Shapes(split="train", size=(512, 683), length=8), 10**9), (0.5, 0.5, 0.5)

    def way(fields: dict[str, Any]) -> Callable[[], None]:
        stream = SampleStream(dataset, AugmentConfig(**fields), 0, mean=half, std=half)

        def run() -> None:
            for position in range(8):
                stream.sample(position)

        return run

    with threads(1):
        return compare({name: way(fields) for name, fields in AUGMENTATIONS.items()}, rounds=5, memory=False)


def area(device: torch.device = CPU) -> dict[str, list[tuple[int, Measured]]]:
    """Square images from 256 to 2048 pixels: the usual way, the package, and the encoder alone."""
    points: dict[str, list[tuple[int, Measured]]] = {}
    for side in (256, 512, 1024, 2048):
        for measured in prediction(side, side, rounds=3 if side > 600 else 7, device=device):
            points.setdefault(measured.name, []).append((side, measured))
    return points


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within, torch uses `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peers() -> list[Measured]:
    """The photo of `prediction` through the peers that are installed."""
    torch.manual_seed(0)
    predictor = ms.Predictor(ms.create_model("segmenter-ti16", num_classes=K).eval(), short_side=None)
    with photo(512, 683) as path:
        ways = {OURS + ", Segmenter-Ti/16, fp32": lambda: predictor(path), **installed(path, K)}
        return compare(ways, rounds=5)


CPU_ONLY = ("peers", "samples", "augment")
"""What other packages and data loader workers do, on the CPU wherever the rest runs."""
CASES: dict[str, tuple[str, Case]] = {
    "label-map": (
        "Label map, 150×32×32 → 512×512, independent logits",
        lambda device: label_map(random_logits(1), device),
    ),
    "label-map-smooth": (
        "Label map, 150×32×32 → 512×512, smooth logits",
        lambda device: label_map(smooth_logits(), device),
    ),
    "loss": ("Cross-entropy and gradient, 8×150×32×32 → 512×512", loss),
    "step": ("Forward and backward of Segmenter-Ti/16, 150 classes, crops of 512×512", step),
    "prediction": ("Photo of 512×683 to label map, 150 classes", lambda device: prediction(device=device)),
    "large": (
        "Photo of 1024×1365 to label map at full scale, 150 classes",
        lambda device: prediction(1024, 1365, rounds=3, device=device),
    ),
    "peers": ("Photo of 512×683 to label map, 150 classes, through what is installed", lambda _: peers()),
    "augment": ("8 training samples, crops of 512×512, decoded images, one thread", lambda _: augmentations()),
    "block": ("Mean shift on 2 × 1024 tokens of width 192, d_ms 192", block),
}
