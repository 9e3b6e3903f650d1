"""Encoder, mean shift block and decoder together: from images to patch logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError
from meanshifter.model.config import ModelConfig
from meanshifter.model.decoder import LinearDecoder, MaskTransformer
from meanshifter.model.encoder import Encoder, Grid
from meanshifter.model.mean_shift import MeanShift, check_layers
from meanshifter.model.pixel_shift import PixelShift


class Segmenter(nn.Module):
    """A plain ViT, optionally a mean shift block, and a decoder; images (B,3,H,W) to patch logits (B,K,h,w)."""

    def __init__(self, config: ModelConfig, labels: LabelSpace, *, pretrained: bool = False) -> None:
        super().__init__()
        self.config = config
        self.labels = labels
        self.carried: dict[str, Tensor] = {}
        """Tensors of another tool's file that segmentation does not use, under its names, to be written back."""
        self.kinds: dict[str, torch.dtype] = {}
        """Kinds of numbers in which a file held tensors, by our name, where it was not float32."""
        self.encoder = Encoder(
            config.backbone,
            config.image_size,
            drop_path=config.drop_path,
            arguments=config.backbone_args,
            positions=config.positions,
            norm_eps=config.norm_eps,
            patch_bias=config.patch_bias,
            pretrained=pretrained,
        )
        width, shift = self.encoder.width, config.mean_shift
        self.mean_shift = None if shift is None else MeanShift(width, shift)
        fine = config.pixel_shift
        if fine is not None and self.patch_size % fine.factor:
            raise InputError(f"pixel_shift.factor: {fine.factor} does not divide the patch size {self.patch_size}")
        self.pixel_shift = None if fine is None else PixelShift(width, self.patch_size, fine)
        self.decoder: LinearDecoder | MaskTransformer = (
            LinearDecoder(width, labels.num_classes)
            if config.decoder == "linear"
            else MaskTransformer(width, labels.num_classes, config.decoder_layers, config.decoder_heads)
        )

    @property
    def patch_size(self) -> int:
        """P, the side of a patch in pixels."""
        return self.encoder.patch_size

    @property
    def stride(self) -> int:
        """Side in pixels of what one logit stands for: P, or a fraction of it with mean shift from pixels."""
        return self.patch_size if self.pixel_shift is None else self.patch_size // self.pixel_shift.factor

    @property
    def has_steps(self) -> bool:
        """Whether the model takes another number of mean shift steps at inference."""
        return self.mean_shift is not None or self.pixel_shift is not None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def fastest_device(self) -> str:
        """cuda where there is one, else cpu."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def own_precision(self) -> str | None:
        """None: the arithmetic is whatever autocast says."""
        return None

    @property
    def heads(self) -> int:
        """Attention heads of an encoder layer."""
        return self.encoder.heads

    def set_attention(self, *, fused: bool) -> None:
        """Whether the encoder's attention runs fused (no N × N weights are held), or not."""
        self.encoder.set_attention(fused=fused)

    def evaluation_view(self) -> Segmenter:
        """This model in evaluation mode, as modules of its own over the same tensors.

        Mode and attention of a view are nobody else's, so that threads may each have one, also while the model trains.
        Weights that are loaded or moved later are the view's too; submodules that are replaced later are not.
        """
        view = _view(self, {})
        assert isinstance(view, Segmenter)
        return view

    def forward(
        self, images: Float[Tensor, "B 3 H W"], mean_shift_layers: int | None = None
    ) -> Float[Tensor, "B K h w"]:
        """Patch logits of normalised images, h = ceil(H/P), w = ceil(W/P).

        Args:
            images: normalised floats; sides that are no multiple of P are padded with 0 right and bottom.
            mean_shift_layers: steps of mean shift (L'_ms); None is the trained number, 0 no shift.

        Raises:
            InputError: steps asked of a model without the block.
        """
        return self.logits_at(images, [mean_shift_layers])[0]

    def logits_at(
        self, images: Float[Tensor, "B 3 H W"], layers: Sequence[int | None]
    ) -> list[Float[Tensor, "B K h w"]]:
        """Patch logits after each of several numbers of mean shift steps, with one pass through the encoder."""
        wanted = [self.steps(count) for count in layers]
        tokens, grid = self.encode(images)
        if self.pixel_shift is not None:
            logits = self._cells(images, tokens, grid, wanted)
        else:
            start = self.mean_shift_input(tokens)
            readouts = {0: start} if self.mean_shift is None else self.mean_shift.readouts(start, wanted, grid)
            logits = {n: self._decode(z, grid) for n, z in readouts.items()}
        return [logits[steps] for steps in wanted]

    def mean_shift_input(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B M D"]:
        """What the mean shift block moves, of the tokens that `encode` gives.

        M = N: the tokens themselves. With `mean_shift.with_classes` M = N + K: the patch tokens of the mask decoder and
        its class embeddings after them, as they are where the block stands.
        """
        decoder, place = self.decoder, self._with_classes
        if place is None or not isinstance(decoder, MaskTransformer):
            return tokens
        both = decoder.join(tokens)
        both = both if place == "before_layers" else decoder.attend(both)
        return decoder.features(both) if place == "before_product" else both

    def _decode(self, z: Tensor, grid: Grid) -> Float[Tensor, "B K h w"]:
        """The rest of the decoder, from what `mean_shift_input` gave and the block moved."""
        decoder, place = self.decoder, self._with_classes
        if place is None or not isinstance(decoder, MaskTransformer):
            logits: Tensor = decoder(z, grid)
            return logits
        both = decoder.attend(z) if place == "before_layers" else z
        features = F.normalize(z, dim=-1) if place == "before_product" else decoder.features(both)
        return decoder.masks(features, grid)

    @property
    def _with_classes(self) -> str | None:
        return None if self.mean_shift is None else self.mean_shift.config.with_classes

    def _cells(self, images: Tensor, tokens: Tensor, grid: Grid, wanted: Sequence[int]) -> dict[int, Tensor]:
        """Logits of the cells that hold pixels of the images, after each number of steps."""
        assert self.pixel_shift is not None
        H, W = images.shape[-2:]
        padded = F.pad(images, (0, -W % self.patch_size, 0, -H % self.patch_size))
        fine = self.pixel_shift.readouts(padded, tokens, grid, self.decoder(tokens, grid), wanted)
        return {n: z[..., : -(-H // self.stride), : -(-W // self.stride)] for n, z in fine.items()}

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B N D"], Grid]:
        """The tokens before the shift, and their grid (h, w)."""
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape or not images.is_floating_point():
            raise InputError(
                f"images: shape {tuple(images.shape)} of {images.dtype}; expected normalised floats (B, 3, H, W): "
                "`model.normalize` makes them from uint8"
            )
        tokens, grid = self.encoder(images)
        return tokens, grid

    def steps(self, layers: int | None) -> int:
        """The number of mean shift steps that `mean_shift_layers=layers` stands for."""
        shift = self.mean_shift if self.pixel_shift is None else self.pixel_shift
        if shift is not None:
            return shift.layers if layers is None else check_layers(layers, "mean_shift_layers")
        if layers not in (None, 0):
            raise InputError(
                f"mean_shift_layers: {layers}; this model has no mean shift block, so use 0 or leave it out"
            )
        return 0

    def normalize(self, images: npt.NDArray[np.uint8] | Tensor) -> Float[Tensor, "B 3 H W"]:
        """uint8 RGB (H, W, 3) or (B, H, W, 3) to normalised floats (B, 3, H, W) on the model's device."""
        return normalized(images, self.config, self.device)

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into `folder`; `load_model(folder)` reads them."""
        from meanshifter.model.checkpoint import save_model

        save_model(self, folder)

    def save_pretrained(self, folder: str | Path, *, results: Any = (), licence: str | None = None) -> None:
        """`save`, with a model card and, of `results` (a file of `evaluate --out`), the scores with their protocols."""
        from meanshifter.model.hub import save_pretrained

        save_pretrained(self, folder, results=results, licence=licence)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, device: str | torch.device = "cpu") -> Segmenter:
        """The model in a folder that `save_pretrained` or `save` wrote, or of a Hub id "owner/name"."""
        from meanshifter.model.checkpoint import load_model

        return load_model(name, device=device)

    def push_to_hub(self, repo: str, *, results: Any = (), licence: str | None = None, private: bool = False) -> str:
        """Upload what `save_pretrained` writes as `repo` ("owner/name"); returns its address."""
        from meanshifter.model.hub import push_to_hub

        return push_to_hub(self, repo, results=results, licence=licence, private=private)


def _view(module: nn.Module, known: dict[int, nn.Module]) -> nn.Module:
    """A module that shares everything with `module` but its submodules, of which it has views, and its mode."""
    own = getattr(module, "_orig_mod", module)  # of torch.compile, which is bound to the module's own mode
    module = own if isinstance(own, nn.Module) else module
    if id(module) not in known:
        view = known[id(module)] = nn.Module.__new__(type(module))
        parts = {name: None if part is None else _view(part, known) for name, part in module._modules.items()}
        view.__dict__.update(module.__dict__, training=False, _modules=parts, _compiled_call_impl=None)
    return known[id(module)]


def normalized(
    images: npt.NDArray[np.uint8] | Tensor, config: ModelConfig, device: torch.device
) -> Float[Tensor, "B 3 H W"]:
    """uint8 RGB (H, W, 3) or (B, H, W, 3) to floats (B, 3, H, W) on `device`, less the mean and over the deviation.

    Raises:
        InputError: anything but such an array.
    """
    pixels = torch.as_tensor(images)
    if pixels.dtype != torch.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-1] != 3:
        raise InputError(
            f"images: shape {tuple(pixels.shape)} of {pixels.dtype}; expected uint8 RGB (H, W, 3) or (B, H, W, 3)"
        )
    pixels = pixels if pixels.ndim == 4 else pixels[None]
    pixels = pixels.to(device).permute(0, 3, 1, 2).float()
    mean = pixels.new_tensor(config.mean).view(3, 1, 1)
    std = pixels.new_tensor(config.std).view(3, 1, 1)
    return (pixels / 255 - mean) / std
