"""TrainConfig: everything that a training is made of. The defaults are the recipe of the field.

One dataclass per concern; the line under each field is also its `--help`. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import inf
from pathlib import Path
from typing import Any, Literal

from meanshifter.data.augment import AugmentConfig
from meanshifter.data.layout import FolderLayout
from meanshifter.errors import InputError
from meanshifter.model.config import LARGEST, MeanShiftConfig, ModelConfig, PixelShiftConfig


@dataclass
class DataConfig:
    """Which images the model learns from, and which it is scored on."""

    name: str = "folder"
    """Data set: folder, camvid, ade20k, pascal_voc, cityscapes or shapes."""
    root: str | None = None
    """Folder of the data set."""
    train_split: str = "train"
    """Split to learn from."""
    val_split: str = "val"
    """Split to score on."""
    hold_out: str | None = None
    """Training images whose names match this pattern, such as 0006R0_*, are left out, to choose by; null: none."""
    images: str | None = None
    """Folder of the images in a folder of one's own, such as JPEGImages; null: images."""
    masks: str | None = None
    """Folder of the masks, such as SegmentationClass; null: masks. With a mask_suffix it may be that of the images."""
    mask_suffix: str | None = None
    """What a mask's name has after its image's, such as _mask in a_mask.png for a.jpg; null: nothing."""
    val_share: float | None = None
    """Share of a folder's images that is held out as val where it has no folder for that; null: about 0.15."""
    workers: int = 2
    """Processes that read and augment; 0 does it in the main process."""
    cache: int = 0
    """Megabytes for keeping decoded training images in memory, shared out evenly among the workers; 0 keeps none."""
    on_device: bool = False
    """Hold all training images on the training device, and cut and augment batches there, without workers."""

    @property
    def layout(self) -> FolderLayout:
        """Where the images and masks of a folder lie."""
        return FolderLayout(self.images, self.masks, self.mask_suffix, self.val_share)


@dataclass
class ModelRecipe:
    """The model, and the weights it starts from."""

    start: str | None = None
    """A model to go on from, ours or another tool's: in place of all fields below but drop_path; null: a new one."""
    preset: str = "segmenter-ti16"
    """Preset; `meanshifter models` lists them. A segmenter preset gets the block of mean_shift or pixel_shift."""
    mean_shift: MeanShiftConfig | None = None
    """The mean shift block, such as {layers: 1, channels: 192}; null for none (or a meanshifter preset's default)."""
    pixel_shift: PixelShiftConfig | None = None
    """Mean shift from pixels, such as {layers: 1, factor: 4}; null for none (or a pixelshifter preset's default)."""
    decoder_layers: int = 2
    """Transformer layers of the mask decoder."""
    image_size: tuple[int, int] | None = None
    """(height, width) of the position embeddings; null: the crop."""
    drop_path: float = 0.1
    """Stochastic depth of the encoder."""
    backbone: str | None = None
    """A plain ViT of timm in place of the preset's."""
    backbone_args: dict[str, Any] = field(default_factory=dict)
    """More arguments for timm.create_model, such as {depth: 4, embed_dim: 96}."""
    backbone_weights: str | None = None
    """A .safetensors or .pth file in timm's names, "timm" to fetch what backbone's tag names, or null."""
    average_corners: bool = False
    """Give corner patches of backbone_weights the mean position embedding of their neighbors: else new heads trained
    for a few hundred steps mislabel the corners of images."""
    mean: tuple[float, float, float] | None = None
    """Mean of RGB in 0..1; null: what timm states for its weights, else 0.5."""
    std: tuple[float, float, float] | None = None
    """Deviation of RGB in 0..1; null: likewise."""

    def violations(self) -> list[str]:
        """What the model's configuration refuses of these fields; blocks have refused their own when they were made."""
        optional = {"image_size": self.image_size, "mean": self.mean, "std": self.std}
        given: dict[str, Any] = {name: value for name, value in optional.items() if value is not None}
        try:
            ModelConfig(
                backbone="" if self.backbone is None else self.backbone,
                decoder_layers=self.decoder_layers,
                drop_path=self.drop_path,
                backbone_args=self.backbone_args,
                **given,
            )
        except InputError as error:
            return [of_model(str(error))]
        return []


def of_model(message: str) -> str:
    """A message about fields of a model's configuration with the names that a recipe has for them."""
    names = "|".join(item.name for item in fields(ModelRecipe))
    return re.sub(rf"(^|; )(?=({names})[.:])", r"\1model.", message)


@dataclass
class LossConfig:
    """Cross-entropy of the upsampled logits."""

    normalize: Literal["valid", "pixels"] = "pixels"
    """Divide by the labelled pixels, or by all pixels of the crop as MMSegmentation does."""
    class_balance: float = 0.0
    """Classes weigh (1 / their share of the training pixels) to this power; 0 weighs all alike, 0.5 lifts rare ones."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over the classes."""


@dataclass
class OptimizerConfig:
    """The optimiser and its schedule."""

    name: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    lr: float = 1e-3
    """Learning rate at the start."""
    head_lr: float | None = None
    """Learning rate of mean shift block and decoder; null: lr."""
    momentum: float = 0.9
    """Momentum of SGD."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Betas of AdamW."""
    weight_decay: float = 0.0
    """Decay of weight matrices; biases, norms and embeddings are never decayed."""
    clip_norm: float | None = None
    """Largest norm of the gradient; null does not clip."""
    schedule: Literal["poly", "cosine"] = "poly"
    """Polynomial or cosine decay from lr to min_lr over all steps."""
    power: float = 0.9
    """Power of the polynomial decay."""
    min_lr: float = 1e-4
    """Learning rate at the end."""
    warmup: int = 0
    """Steps in which the learning rate rises linearly from 0."""


@dataclass
class EvaluationConfig:
    """Scores during training, and how images are read out."""

    every: int = 16_000
    """Steps between evaluations; 0 evaluates at the end only."""
    window: int | None = 512
    """Side of the sliding window in pixels; null reads whole images."""
    stride: int = 480
    """Step of the sliding window in pixels."""
    short_side: int | None = 512
    """Images are resized to fit (short_side, long_side), keeping their ratio; null leaves their size."""
    long_side: int = 2048
    """See short_side."""
    limit: int | None = None
    """Score only the first so many images; null scores all."""


@dataclass
class TrainConfig:
    """A training run."""

    data: DataConfig = field(default_factory=DataConfig)
    """Data."""
    model: ModelRecipe = field(default_factory=ModelRecipe)
    """Model."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Loss."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimiser."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Evaluation."""
    out: str | None = None
    """Run folder; null: runs/NAME after the recipe."""
    steps: int = 160_000
    """Optimiser steps."""
    minutes: float | None = None
    """Train as many steps as fit into this time, evaluations included, in place of steps; config.yaml then has their
    number, measured on the first ones. null: steps counts."""
    batch_size: int = 8
    """Crops in one forward pass, on one device."""
    accumulate: int = 1
    """Forward passes that make one step, as one batch of all their crops would."""
    ema: float | None = None
    """Decay of the weights' running average, which is then what is scored and saved; null: no average."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of forward and backward; weights stay float32. auto: bf16 where the device has units for it."""
    compile: bool = False
    """Compile the model with torch.compile."""
    accelerator: str = "auto"
    """auto, cpu, cuda or mps."""
    devices: int | None = None
    """Devices of one machine, each with a batch of its own; null: as many as torchrun or SLURM started, else 1."""
    num_nodes: int | None = None
    """Machines; null: as many as torchrun or SLURM started, else 1."""
    seed: int = 0
    """All random draws follow from it."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    save_every: int = 1_000
    """Steps between writes of checkpoints/last; evaluations write it too."""

    def check(self) -> None:
        """Refuse, in one message, all that could only fail later.

        Raises:
            InputError: naming every field that is out of its range.
        """
        if wrong := self.violations():
            raise InputError("; ".join(wrong))

    def violations(self) -> list[str]:
        """A line's part for every field that is out of its range, or beside another that it contradicts."""
        rules = self._rules()
        wrong = [f"{name}: {value} is not {rule}" for name, value, right, rule in rules if not right]
        single = {name for name, _, right, _ in rules if not right}  # which a contradiction would only repeat
        for name, value, other, most in self._limits():
            if value is not None and most is not None and value > most and not {name, other} & single:
                wrong.append(f"{name}: {value} is above {other} {most}; lower it")
        return [*wrong, *self.augment.violations(), *self.model.violations()]

    @property
    def crops_per_step(self) -> int:
        """Crops that one step learns from, on all devices together."""
        processes = (1 if self.devices is None else self.devices) * (1 if self.num_nodes is None else self.num_nodes)
        return self.batch_size * self.accumulate * processes

    def _limits(self) -> list[tuple[str, float | None, str, float | None]]:
        """Field and value, and the field and value that it must not be above."""
        optimizer, evaluation = self.optimizer, self.evaluation
        return [
            ("optimizer.min_lr", optimizer.min_lr, "optimizer.lr", optimizer.lr),
            ("optimizer.min_lr", optimizer.min_lr, "optimizer.head_lr", optimizer.head_lr),
            ("evaluation.stride", evaluation.stride, "evaluation.window", evaluation.window),
            ("evaluation.short_side", evaluation.short_side, "evaluation.long_side", evaluation.long_side),
        ]

    def _rules(self) -> list[tuple[str, Any, bool, str]]:
        """Field, value, whether it is right, and what it must be."""
        optimizer, evaluation, loss = self.optimizer, self.evaluation, self.loss
        counts = {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "accumulate": self.accumulate,
            "log_every": self.log_every,
            "save_every": self.save_every,
            "evaluation.stride": evaluation.stride,
            "evaluation.window": evaluation.window,
            "evaluation.short_side": evaluation.short_side,
            "evaluation.long_side": evaluation.long_side,
            "evaluation.limit": evaluation.limit,
            "devices": self.devices,
            "num_nodes": self.num_nodes,
        }
        from_zero = {
            "seed": self.seed,
            "data.cache": self.data.cache,
            "optimizer.warmup": optimizer.warmup,
            "evaluation.every": evaluation.every,
        }
        head_lr = optimizer.head_lr
        clip, betas, share, minutes = optimizer.clip_norm, optimizer.betas, self.data.val_share, self.minutes
        return [
            *(
                (name, value, value is None or 1 <= value <= LARGEST, f"from 1 to {LARGEST}")
                for name, value in counts.items()
            ),
            *((name, value, 0 <= value <= LARGEST, f"from 0 to {LARGEST}") for name, value in from_zero.items()),
            ("minutes", minutes, minutes is None or 0 < minutes < inf, "null, or a number above 0"),
            ("data.val_share", share, share is None or 0 < share < 1, "null, or between 0 and 1"),
            ("ema", self.ema, self.ema is None or 0 <= self.ema < 1, "null, or from 0 up to but not 1"),
            ("data.workers", self.data.workers, 0 <= self.data.workers <= 1024, "from 0 to 1024"),
            ("optimizer.lr", optimizer.lr, 0 < optimizer.lr < inf, "a number above 0"),
            ("optimizer.head_lr", head_lr, head_lr is None or 0 <= head_lr < inf, "null, or 0 or above"),
            ("optimizer.min_lr", optimizer.min_lr, 0 <= optimizer.min_lr < inf, "0 or above"),
            ("optimizer.momentum", optimizer.momentum, 0 <= optimizer.momentum < 1, "from 0 up to but not 1"),
            ("optimizer.betas", betas, all(0 <= beta < 1 for beta in betas), "two rates from 0 up to but not 1"),
            ("optimizer.weight_decay", optimizer.weight_decay, optimizer.weight_decay >= 0, "0 or above"),
            ("optimizer.clip_norm", clip, clip is None or clip > 0, "null, or above 0"),
            ("loss.class_balance", loss.class_balance, loss.class_balance >= 0, "0 or above"),
            ("loss.label_smoothing", loss.label_smoothing, 0 <= loss.label_smoothing < 1, "from 0 up to but not 1"),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for YAML."""
        plain: Mapping[str, Any] = asdict(self)
        return {key: _plain(value) for key, value in plain.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
