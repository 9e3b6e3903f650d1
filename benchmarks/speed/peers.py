"""Other people's segmentation models, where they are installed: from a photo to its label map, as each is documented.

Except for MMSegmentation's Segmenter they are other architectures. All weights are random, so that their times say what
a user waits for, and nothing about accuracy.
"""

from __future__ import annotations

import warnings
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
    if find_spec("mmseg") is not None:
        ways["MMSegmentation, Segmenter-Ti/16"] = _mmseg(path, K)
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


def _mmseg(path: Path, K: int) -> Way:
    """The same model as ours, as its ADE20K configurations read it out: windows of 512 every 480 pixels."""
    from mmengine.config import Config
    from mmseg.apis import inference_model, init_model

    encoder = {"img_size": (512, 512), "patch_size": 16, "embed_dims": 192, "num_layers": 12, "num_heads": 3}
    decoder = {"in_channels": 192, "channels": 192, "num_convs": 0, "concat_input": False, "num_classes": K}
    normal = {"mean": [127.5] * 3, "std": [127.5] * 3, "bgr_to_rgb": True, "size": (512, 512)}
    model = {
        "type": "EncoderDecoder",
        "data_preprocessor": {"type": "SegDataPreProcessor", **normal},
        "backbone": {"type": "VisionTransformer", "final_norm": True, **encoder},
        "decode_head": {"type": "FCNHead", **decoder},
        "test_cfg": {"mode": "slide", "crop_size": (512, 512), "stride": (480, 480)},
    }
    steps = [{"type": "LoadImageFromFile"}, {"type": "PackSegInputs"}]
    facts = {"default_scope": "mmseg", "model": model, "test_pipeline": steps}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = init_model(Config(facts), device="cpu")
    return lambda: inference_model(network, str(path))
