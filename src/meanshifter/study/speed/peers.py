"""Other people's segmentation models, where they are installed: from a photo to its label map, as each is documented.

They are other architectures with other weights (random ones here), so that their times say what a user waits for, and
nothing about accuracy.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Way = Callable[[], object]


def installed(path: Path, K: int) -> dict[str, Way]:
    """Each peer that can be imported, as a function that segments the photo with K classes."""
    ways: dict[str, Way] = {}
    if find_spec("transformers") is not None:
        ways["transformers, SegFormer-B0"] = _segformer(path, K)
    if find_spec("segmentation_models_pytorch") is not None:
        for kind in ("Unet", "Segformer"):
            ways[f"segmentation_models_pytorch, {kind}"] = _smp(kind, path, K)
    return ways


def _read(path: Path) -> Tensor:
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def _segformer(path: Path, K: int) -> Way:
    """Logits at a quarter of the size, upsampled and the largest taken, as its post-processing does."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=K)).eval()

    @torch.inference_mode()
    def run() -> Tensor:
        image = _read(path)
        logits = model(pixel_values=image).logits
        return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False).argmax(1)

    return run


def _smp(kind: str, path: Path, K: int) -> Way:
    """Full-size logits, after padding to a multiple of 32."""
    import segmentation_models_pytorch as smp

    encoder = "mit_b0" if kind == "Segformer" else "resnet18"
    model = getattr(smp, kind)(encoder, encoder_weights=None, classes=K).eval()

    @torch.inference_mode()
    def run() -> Tensor:
        image = _read(path)
        H, W = image.shape[-2:]
        logits: Tensor = model(F.pad(image, (0, -W % 32, 0, -H % 32)))
        return logits[..., :H, :W].argmax(1)

    return run
