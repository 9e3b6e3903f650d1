"""`Segmenter`: encoder, mean shift block and decoder, from images to patch logits."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Unpack, overload

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError
from meanshifter.model.config import OWN_MODULE, ModelConfig, TokenMergingConfig
from meanshifter.model.decoder import LinearDecoder, MaskTransformer
from meanshifter.model.encoder import Encoder
from meanshifter.model.mean_shift import MeanShift, check_layers
from meanshifter.model.pixel_shift import PixelShift
from meanshifter.model.vit import Grid
from meanshifter.ops import LossTerms, upsampled_loss
from meanshifter.ops.losses import Reduction

if TYPE_CHECKING:
    from meanshifter.evaluation.result import Result
    from meanshifter.inference.segmentation import Segmentation

PRECISIONS: Final = {torch.float16: "fp16", torch.bfloat16: "bf16"}
"""Names of the precisions of weights that are not float32."""


class Output(NamedTuple):
    """The output of a model that was called with labels."""

    logits: Float[Tensor, "B K h w"]
    """Patch logits."""
    loss: Float[Tensor, ""]
    """Cross-entropy of the upsampled logits, float32."""


class Predicting:
    """The shortcuts of every model that a `Predictor` takes: a `Segmenter`, an export, an ensemble."""

    def predict(self, image: Any, **settings: Any) -> Segmentation:
        """Return `Predictor(self, **settings)(image)`."""
        from meanshifter.inference.predictor import Predictor

        model: Any = self
        segmentation: Segmentation = Predictor(model, **settings)(image)
        return segmentation

    def evaluate(self, dataset: Any, **settings: Any) -> Result:
        """Return `evaluate(Predictor(self, **settings), dataset)`."""
        from meanshifter.evaluation.evaluate import evaluate
        from meanshifter.inference.predictor import Predictor

        model: Any = self
        return evaluate(Predictor(model, **settings), dataset)


class Segmenter(Predicting, nn.Module):
    """A plain ViT, an optional mean shift block and a decoder; images (B,3,H,W) to patch logits (B,K,h,w)."""

    def __init__(
        self,
        config: ModelConfig,
        label_space: LabelSpace,
        *,
        pretrained: bool = False,
        encoder: nn.Module | None = None,
    ) -> None:
        """Build the model with random weights.

        Args:
            config: everything but the classes.
            label_space: the classes.
            pretrained: load timm's weights into the encoder.
            encoder: the encoder itself, a `TokenEncoder`, if the configuration names a module of one's own.

        Raises:
            InputError: the configuration describes no model, or it names a module and none is given, or the reverse.
        """
        super().__init__()
        self.label_space = label_space
        check_own_module(config, encoder)
        self.encoder = Encoder(
            config.encoder if encoder is None else encoder,
            config.image_size,
            drop_path=config.drop_path,
            arguments=config.encoder_args,
            positions=config.positions,
            norm_eps=config.norm_eps,
            patch_bias=config.patch_bias,
            merging=config.token_merging,
            pretrained=pretrained,
        )
        width, shift = self.encoder.width, config.mean_shift
        self.mean_shift = None if shift is None else MeanShift(width, shift)
        fine = config.pixel_shift
        if fine is not None:
            fine = replace(fine, factor=fine.factor_for(self.patch_size))
        self.config = config if fine == config.pixel_shift else replace(config, pixel_shift=fine)
        self.pixel_shift = None if fine is None else PixelShift(width, self.patch_size, fine)
        self.decoder: LinearDecoder | MaskTransformer = (
            LinearDecoder(width, label_space.num_classes)
            if config.decoder == "linear"
            else MaskTransformer(width, label_space.num_classes, config.decoder_layers, config.decoder_heads)
        )

    @property
    def patch_size(self) -> int:
        """P, the side of a patch in pixels."""
        return self.encoder.patch_size

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return self.label_space.num_classes

    @property
    def output_stride(self) -> int:
        """Pixels per logit along each axis: P, or a fraction of it with mean shift from pixels."""
        return self.patch_size if self.pixel_shift is None else self.patch_size // self.pixel_shift.factor

    @property
    def has_steps(self) -> bool:
        """Whether the number of mean shift steps can be changed at inference."""
        return self.mean_shift is not None or self.pixel_shift is not None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def fastest_device(self) -> str:
        """cuda if a GPU is available, else cpu."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def own_precision(self) -> str | None:
        """fp16 or bf16 if the weights are; None: autocast decides."""
        return PRECISIONS.get(next(self.parameters()).dtype)

    @property
    def heads(self) -> int:
        """Attention heads per encoder layer."""
        return self.encoder.heads

    def set_attention(self, *, fused: bool) -> None:
        """Choose whether the encoder's attention runs fused, without N × N weights."""
        self.encoder.set_attention(fused=fused)

    def evaluation_view(self) -> Segmenter:
        """Return this model in evaluation mode, as separate modules over the same tensors.

        A view's mode and attention backend are its own, so that threads can each have one, even while the model trains.
        It sees weights that are loaded or moved later, but not submodules that are replaced later.
        """
        view = _view(self, {})
        assert isinstance(view, Segmenter)
        return view

    def merging_view(self, ratio: float) -> Segmenter:
        """Return an `evaluation_view` whose encoder merges this share of the windows of tokens.

        An encoder that was trained with token merging merges after the same layer. One that was trained without merges
        after a quarter of its layers.

        Raises:
            InputError: a share outside 0 to 1, or an encoder that cannot merge tokens.
        """
        trained = self.config.token_merging
        view = self.evaluation_view()
        first = self.encoder.depth // 4 if trained is None else trained.after_layer
        merging = TokenMergingConfig(first, ratio)
        view.encoder.merge_tokens(merging if ratio > 0 else None)
        view.config = replace(self.config, token_merging=merging)
        return view

    if TYPE_CHECKING:  # nn.Module leaves the signature open

        @overload
        def __call__(self, images: Tensor, mean_shift_layers: int | None = None) -> Tensor: ...

        @overload
        def __call__(self, images: Tensor, mean_shift_layers: Sequence[int]) -> list[Tensor]: ...

        @overload
        def __call__(
            self,
            images: Tensor,
            mean_shift_layers: int | Sequence[int] | None = None,
            *,
            labels: Tensor,
            **options: Any,
        ) -> Output: ...

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Call `forward`."""

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        mean_shift_layers: int | Sequence[int] | None = None,
        *,
        labels: Integer[Tensor, "B H W"] | None = None,
        weight: Float[Tensor, " K"] | None = None,
        reduction: Reduction = "mean_valid",
        label_smoothing: float = 0.0,
        **terms: Unpack[LossTerms],
    ) -> Float[Tensor, "B K h w"] | list[Float[Tensor, "B K h w"]] | Output:
        """Compute patch logits of normalized images, h = ceil(H/P), w = ceil(W/P), and with `labels` the loss.

        Args:
            images: normalized floats, zero-padded at the right and bottom to a multiple of P.
            mean_shift_layers: mean shift steps (L'_ms); None is the trained number, 0 no shift. Several
                numbers: logits after each of them; with labels, the logits after the last and the mean of the losses
                (deep supervision).
            labels: train ids, or `label_space.ignore`, of every pixel.
            weight: class weights in the loss; this and the following as in `ops.upsampled_loss`.
            reduction: what the loss is divided by.
            label_smoothing: share of the target that is spread over the classes.
            **terms: other losses, such as `dice=1.0`.

        Raises:
            InputError: steps for a model without a mean shift block, or labels of another size than the images.
        """
        if labels is not None and labels.shape != (images.shape[0], *images.shape[2:]):
            raise InputError(
                f"labels: shape {tuple(labels.shape)}, but the images have {tuple(images.shape)}; give a train id for "
                "every pixel, (B, H, W)"
            )
        if isinstance(mean_shift_layers, Sequence):
            found, several = self.logits_at(images, mean_shift_layers), True
        else:
            found, several = self.logits_at(images, [mean_shift_layers]), False
        if labels is None:
            return found if several else found[0]
        losses = [
            upsampled_loss(
                logits,
                labels,
                padded_size=(logits.shape[-2] * self.output_stride, logits.shape[-1] * self.output_stride),
                ignore_index=self.label_space.ignore,
                reduction=reduction,
                weight=weight,
                label_smoothing=label_smoothing,
                **terms,
            )
            for logits in found
        ]
        return Output(found[-1], torch.stack(losses).mean())

    def loss(self, images: Float[Tensor, "B 3 H W"], labels: Integer[Tensor, "B H W"], **options: Any) -> Tensor:
        """Return `model(images, labels=labels, **options).loss`."""
        return self(images, labels=labels, **options).loss

    def logits_at(
        self, images: Float[Tensor, "B 3 H W"], layers: Sequence[int | None]
    ) -> list[Float[Tensor, "B K h w"]]:
        """Compute patch logits after each of several numbers of mean shift steps, with one pass of the encoder."""
        wanted = [self.steps(count) for count in layers]
        tokens, grid = self.encode(images)
        if self.pixel_shift is not None:
            H, W = images.shape[-2:]
            h, w = -(-H // self.output_stride), -(-W // self.output_stride)  # the others hold padding only
            padded = F.pad(images, (0, -W % self.patch_size, 0, -H % self.patch_size))
            fine = self.pixel_shift.readouts(padded, tokens, grid, self.decoder(tokens, grid), wanted)
            logits = {n: z[..., :h, :w] for n, z in fine.items()}
        else:
            logits = self._decoded(tokens, grid, wanted)
        return [logits[steps] for steps in wanted]

    def decode(
        self, tokens: Float[Tensor, "B N D"], grid: Grid, mean_shift_layers: int | None = None
    ) -> Float[Tensor, "B K h w"]:
        """Compute patch logits from the tokens and grid of `encode`.

        Raises:
            InputError: the model has mean shift from pixels, which needs the images.
        """
        if self.pixel_shift is not None:
            raise InputError("pixel_shift: reads the images as well as the tokens; call the model on images instead")
        steps = self.steps(mean_shift_layers)
        return self._decoded(tokens, grid, [steps])[steps]

    def _decoded(self, tokens: Tensor, grid: Grid, wanted: list[int]) -> dict[int, Tensor]:
        """Patch logits after each number of mean shift steps."""
        start = self.mean_shift_input(tokens)
        readouts = {0: start} if self.mean_shift is None else self.mean_shift.readouts(start, wanted, grid)
        return {n: self._decode(z, grid) for n, z in readouts.items()}

    def mean_shift_input(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B M D"]:
        """Return the tokens that the mean shift block moves, given those of `encode`.

        M = N: the same tokens. With `mean_shift.with_classes`, M = N + K: the mask decoder's patch tokens, followed by
        its class embeddings, at the place of the block in the decoder.
        """
        decoder, place = self.decoder, self._with_classes
        if place is None or not isinstance(decoder, MaskTransformer):
            return tokens
        both = decoder.join(tokens)
        both = both if place == "before_layers" else decoder.attend(both)
        return decoder.features(both) if place == "before_product" else both

    def _decode(self, z: Tensor, grid: Grid) -> Float[Tensor, "B K h w"]:
        """Run the rest of the decoder on the output of the mean shift block."""
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

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B N D"], Grid]:
        """Return the tokens before the shift, and their grid (h, w)."""
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape or not images.is_floating_point():
            raise InputError(
                f"images: shape {tuple(images.shape)} of {images.dtype}; expected normalized floats (B, 3, H, W); "
                "convert uint8 with `model.normalize`"
            )
        tokens, grid = self.encoder(images)
        return tokens, grid

    def steps(self, layers: int | None) -> int:
        """Resolve `mean_shift_layers`, where None is the trained number."""
        shift = self.mean_shift if self.pixel_shift is None else self.pixel_shift
        if shift is not None:
            return shift.layers if layers is None else check_layers(layers, "mean_shift_layers")
        if layers not in (None, 0):
            raise InputError(
                f"mean_shift_layers: {layers}, but this model has no mean shift block; use 0 or leave it out"
            )
        return 0

    def normalize(self, images: npt.NDArray[np.uint8] | Tensor) -> Float[Tensor, "B 3 H W"]:
        """Convert uint8 RGB (H, W, 3) or (B, H, W, 3) to normalized (B, 3, H, W) in the weights' device and type."""
        return normalized(images, self.config, self.device).to(next(self.parameters()).dtype)

    def export(self, folder: str | Path, **options: Any) -> None:
        """Call `export(self, folder, **options)`."""
        from meanshifter.export.export import export

        export(self, folder, **options)

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` to `folder`; `load_model(folder)` loads them."""
        from meanshifter.model.saving import save_model

        save_model(self, folder)

    def save_pretrained(self, folder: str | Path, *, results: Any = (), license: str | None = None) -> None:
        """Save the model with a model card and the scores and protocols in `results`, a file of `evaluate --out`."""
        from meanshifter.model.hub import save_pretrained

        save_pretrained(self, folder, results=results, license=license)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, device: str | torch.device = "cpu") -> Segmenter:
        """Load a model from a folder of `save_pretrained` or `save`, or from a Hub id "owner/name"."""
        from meanshifter.model.saving import read_model

        return read_model(name, device=device)

    def push_to_hub(self, repo: str, *, results: Any = (), license: str | None = None, private: bool = False) -> str:
        """Upload the files of `save_pretrained` to `repo` ("owner/name") and return its URL."""
        from meanshifter.model.hub import push_to_hub

        return push_to_hub(self, repo, results=results, license=license, private=private)


def check_own_module(config: ModelConfig, encoder: nn.Module | None) -> None:
    """Check that a module is given if and only if the configuration names one, and of the class that it names."""
    if encoder is not None and not config.has_own_module:
        raise InputError(f"encoder: given, but the model's encoder is {config.encoder!r} of timm; leave it out")
    if config.has_own_module and encoder is None:
        name = config.encoder.removeprefix(OWN_MODULE)
        raise InputError(
            f"encoder: a module of one's own, {name!r}, which a configuration cannot build; give one like it, "
            "load_model(…, encoder=MODULE) or train(…, encoder=MODULE), or export the model where it was built"
        )


def replace_classes(model: Segmenter, label_space: LabelSpace, *, drop_path: float | None = None) -> Segmenter:
    """Copy a model for other classes; layers whose shape depends on the number of classes are re-initialized.

    Args:
        model: the model, which stays unchanged.
        label_space: the classes of the copy.
        drop_path: stochastic depth of the copy's encoder; None: the model's.
    """
    config = model.config if drop_path is None else replace(model.config, drop_path=drop_path)
    copy = Segmenter(config, label_space, encoder=deepcopy(model.encoder.vit) if config.has_own_module else None)
    weights, own = model.state_dict(), copy.state_dict()
    copy.load_state_dict({**weights, **{key: own[key] for key in reinitialized(model, copy)}})
    return copy


def reinitialized(model: Segmenter, copy: Segmenter) -> list[str]:
    """Return the names of the tensors that `replace_classes` re-initialized."""
    weights = model.state_dict()
    return [key for key, value in copy.state_dict().items() if weights[key].shape != value.shape]


def _view(module: nn.Module, known: dict[int, nn.Module]) -> nn.Module:
    """A module that shares everything with `module` except its mode and its submodules, which are views, too."""
    own = getattr(module, "_orig_mod", module)  # torch.compile's wrapper is bound to the original module's mode
    module = own if isinstance(own, nn.Module) else module
    if id(module) not in known:
        view = known[id(module)] = nn.Module.__new__(type(module))
        parts = {name: None if part is None else _view(part, known) for name, part in module._modules.items()}
        view.__dict__.update(module.__dict__, training=False, _modules=parts, _compiled_call_impl=None)
    return known[id(module)]


def normalized(
    images: npt.NDArray[np.uint8] | Tensor, config: ModelConfig, device: torch.device
) -> Float[Tensor, "B 3 H W"]:
    """Convert uint8 RGB (H, W, 3) or (B, H, W, 3) to floats (B, 3, H, W) on `device`, with mean and std normalized.

    Raises:
        InputError: the array has another type or shape.
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
