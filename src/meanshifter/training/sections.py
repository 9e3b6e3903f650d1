"""The sections of a training configuration: data, model, losses, optimizer, adapters and evaluation.

One dataclass per concern; the docstring under each field is also its `--help`. Imports no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from math import inf
from typing import Any, Final, Literal

from meanshifter.data.layout import FolderLayout
from meanshifter.errors import InputError
from meanshifter.model.config import (
    LARGEST,
    MeanShiftConfig,
    ModelConfig,
    PixelShiftConfig,
    TokenMergingConfig,
    arguments_with,
)
from meanshifter.model.presets import PRESETS, parse_preset

HELD_OUT: Final = "held_out"
"""The split of the training images that `data.val_pattern` names."""


@dataclass
class DataConfig:
    """Training and validation data."""

    name: str = "folder"
    """Dataset: folder, camvid, ade20k, pascal_voc, cityscapes or shapes."""
    root: str | None = None
    """Dataset folder."""
    train_split: str = "train"
    """Split to train on."""
    val_split: str | None = "val"
    """Split to validate on; held_out: the training images that val_pattern names; null, with folds only: the fold that
    is left out of training."""
    val_pattern: str | None = None
    """Exclude training images whose names match this pattern, such as 0006R0_*, to use them for model selection;
    null: exclude none."""
    train_share: float | None = None
    """Train on this share of the training images, which seed and name draw, as if the others had no masks; null: all
    of them."""
    folds: int | None = None
    """Cross-validation: number of folds that the training images are divided into, by seed and name; null: none. One
    run is trained for each fold, or only that of `fold`."""
    fold: int | None = None
    """The fold that is left out of training, from 0 to folds - 1; null: each in turn."""
    fold_groups: str | None = None
    """Regular expression with one group, such as ^(patient[0-9]+)_: images whose names have the same text in the group
    stay in one fold; null: every image is on its own."""
    images: str | None = None
    """Image folder inside a custom dataset folder, such as JPEGImages; null: images."""
    masks: str | None = None
    """Mask folder, such as SegmentationClass; null: masks. With a mask_suffix it may be the image folder."""
    mask_suffix: str | None = None
    """Suffix that a mask adds to its image's name, such as _mask in a_mask.png for a.jpg; null: none."""
    val_share: float | None = None
    """Share of the images held out as val if the folder has no val split; null: about 0.15."""
    workers: int = 2
    """Data loader worker processes; 0 loads data in the main process."""
    cache: int = 0
    """Megabytes of decoded training images to keep in memory, divided evenly among the workers; 0: no cache."""
    gpu_cache: bool = False
    """Keep all training images on the training device and crop and augment batches there, without workers."""
    token_cache: Literal["memory", "disk"] | None = None
    """Compute the tokens of a frozen encoder once per training image, and keep them in memory or in the run folder.
    Needs optimizer.freeze and crops of whole images without random changes, except flips; null: compute them anew."""
    extra_train: list[str] = field(default_factory=list)
    """Folders of extra training data with the same classes, such as [pseudo]: label maps that `meanshifter predict
    --confidence` wrote, or images/ and masks/."""
    extra_share: float = 0.5
    """Share of the training samples that are drawn from extra_train."""
    extra_confidence: Literal["margin", "probability"] = "margin"
    """Confidence that extra_min_confidence refers to: the probability of a pixel's class, or its margin to the second
    class."""
    extra_min_confidence: float = 0.0
    """Ignore the pixels of extra_train with less confidence, from 0 to 1; 0: ignore none."""

    @property
    def layout(self) -> FolderLayout:
        """Where a dataset folder keeps its images and masks."""
        return FolderLayout(self.images, self.masks, self.mask_suffix, self.val_share)

    def violations(self, evaluation: EvaluationConfig) -> list[str]:
        """The fields about folds and extra data that are out of range, or contradict each other or the evaluation."""
        wrong = []
        if self.folds is not None and not 2 <= self.folds <= LARGEST:
            wrong.append(f"data.folds: {self.folds} must be at least 2, or null for no cross-validation")
        if self.fold is not None and self.folds is None:
            wrong.append(f"data.fold: {self.fold}, but data.folds is null; set the number of folds")
        elif self.fold is not None and self.folds is not None and not 0 <= self.fold < self.folds:
            wrong.append(f"data.fold: {self.fold} must be from 0 to {self.folds - 1}, as data.folds is {self.folds}")
        if self.fold_groups is not None:
            wrong += self._group_violations(self.fold_groups)
        if self.val_split == HELD_OUT and self.val_pattern is None:
            wrong.append(f"data.val_split: {HELD_OUT}, but data.val_pattern is null; set it to a pattern, such as a_*")
        if self.val_split is None and self.folds is None:
            wrong.append("data.val_split: null, but data.folds is null too; name the split to validate on")
        if self.val_split is None and evaluation.patience is not None:
            wrong.append(
                f"evaluation.patience: {evaluation.patience}, but data.val_split is null, so that the images that stop "
                "the training would also score it; set a data.val_split, or leave patience out"
            )
        return [*wrong, *self._extra_violations()]

    def _extra_violations(self) -> list[str]:
        """Fields about extra training data without such data."""
        if self.extra_train:
            return []
        usual = DataConfig()
        names = ("extra_share", "extra_confidence", "extra_min_confidence")
        given = [name for name in names if getattr(self, name) != getattr(usual, name)]
        return [f"data.{name}: {getattr(self, name)}, but data.extra_train is empty; name a folder" for name in given]

    def _group_violations(self, pattern: str) -> list[str]:
        if self.folds is None:
            return [f"data.fold_groups: {pattern!r}, but data.folds is null; set the number of folds"]
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            return [f"data.fold_groups: {pattern!r} is not a regular expression ({error})"]
        return [] if groups == 1 else [f"data.fold_groups: {pattern!r} has {groups} groups (…); expected exactly one"]


@dataclass
class ModelRecipe:
    """The model and its initial weights."""

    init_from: str | None = None
    """Model to start from, MeanShifter's or another tool's; replaces all fields below but drop_path; null: new."""
    preset: str = "segmenter-ti16"
    """Preset, as listed by `meanshifter models`. A segmenter preset accepts a mean_shift or pixel_shift block."""
    mean_shift: MeanShiftConfig | None = None
    """Mean shift block, such as {layers: 1, channels: 192}; null: none, or the preset's."""
    pixel_shift: PixelShiftConfig | None = None
    """Mean shift from pixels, such as {layers: 1, factor: 4}; null: none, or the preset's."""
    token_merging: TokenMergingConfig | None = None
    """Merging of uniform patches within the encoder, such as {after_layer: 4, ratio: 0.6}; null: the preset's;
    {ratio: 0}: none."""
    patch_size: int | None = None
    """Side of a patch in pixels, to which the encoder's weights are resampled; null: the preset's."""
    decoder_layers: int = 2
    """Transformer layers in the mask decoder."""
    image_size: tuple[int, int] | None = None
    """(height, width) of the position embeddings in pixels; null: the crop size."""
    drop_path: float = 0.1
    """Stochastic depth rate of the encoder."""
    encoder: str | None = None
    """Plain ViT of timm that replaces the preset's encoder, such as vit_small_patch16_dinov3."""
    encoder_args: dict[str, Any] = field(default_factory=dict)
    """Extra arguments for timm.create_model, such as {depth: 4, embed_dim: 96}."""
    encoder_weights: str | None = None
    """.safetensors or .pth file with names of timm, transformers or MMSegmentation, "timm" to download the weights of
    encoder's tag, or null."""
    average_corners: bool = False
    """Set the position embeddings of corner patches in encoder_weights to the mean of their neighbors'. Without it, new
    heads trained for a few hundred steps mislabel the corners of images."""
    mean: tuple[float, float, float] | None = None
    """Mean of RGB in 0..1; null: timm's value for its weights, else 0.5."""
    std: tuple[float, float, float] | None = None
    """Standard deviation of RGB in 0..1; null: timm's value for its weights, else 0.5."""

    def violations(self) -> list[str]:
        """The fields that `ModelConfig` rejects; blocks were checked when they were created."""
        optional = {"image_size": self.image_size, "mean": self.mean, "std": self.std}
        given: dict[str, Any] = {name: value for name, value in optional.items() if value is not None}
        try:
            ModelConfig(
                encoder="" if self.encoder is None else self.encoder,
                decoder_layers=self.decoder_layers,
                drop_path=self.drop_path,
                encoder_args=arguments_with(self.encoder_args, self.patch_size),
                **given,
            )
        except InputError as error:
            return [of_model(str(error))]
        linear = self.preset in PRESETS and parse_preset(self.preset).decoder == "linear"
        if linear and self.init_from is None and self.decoder_layers != type(self).decoder_layers:
            return [f"model.decoder_layers: {self.decoder_layers}, but {self.preset} has a linear decoder; remove it"]
        return []


def of_model(message: str) -> str:
    """`message` about a model configuration, with the field names of a recipe."""
    names = "|".join(item.name for item in fields(ModelRecipe))
    return re.sub(rf"(^|; )(?=({names})[.:])", r"\1model.", message)


@dataclass
class LossConfig:
    """A weighted sum of losses of the upsampled logits: cross_entropy, focal and dice are their factors."""

    cross_entropy: float = 1.0
    """Factor of the cross-entropy; 0: leave it out."""
    focal: float = 0.0
    """Factor of the focal loss, which gives less weight to pixels that are already right; 0: leave it out."""
    dice: float = 0.0
    """Factor of the Dice loss, the mean over classes of 1 - 2·overlap / (predicted + labeled); 0: leave it out."""
    lovasz: float = 0.0
    """Factor of the Lovász-Softmax loss, which follows the mean IoU of the crops of a pass; 0: leave it out."""
    focal_gamma: float = 2.0
    """Exponent of the focal loss; 0 would make it the cross-entropy."""
    ohem_share: float | None = None
    """Average the cross-entropy over this share of the labeled pixels, the hardest ones of each forward pass (OHEM);
    null: all labeled pixels."""
    boundary_weight: float = 1.0
    """Count pixels near another class this many times, in every loss."""
    boundary_radius: int = 3
    """How many rows and columns away the other class may be for boundary_weight."""
    reduction: Literal["mean_valid", "mean_all"] = "mean_all"
    """Divide by the labeled pixels (mean_valid), or by all pixels of the crop as MMSegmentation does (mean_all)."""
    class_weight_power: float = 0.0
    """Weight classes by (1 / share of training pixels) to this power; 0: equal weights, 0.5: boost rare classes."""
    class_weights: Literal["log"] | list[float] | dict[str, float] | None = None
    """Class weights instead of class_weight_power: log for 1 / ln(1.02 + share of training pixels) as in ENet, one
    number per class, or numbers by class name such as {pole: 3}, the others 1; null: class_weight_power."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes, in the cross-entropy."""
    deep_supervision: int | Literal["auto"] | None = None
    """Average the losses after 1 to this many mean shift steps, so that the number can be chosen at inference; null:
    the loss after the number of steps in the block's layers; auto: twice these layers for mean shift from pixels, null
    for other models."""

    @property
    def terms(self) -> dict[str, Any]:
        """The arguments of `ops.upsampled_loss` that this configuration sets, but for class weights."""
        shape = ("focal_gamma", "ohem_share", "boundary_weight", "boundary_radius", "reduction", "label_smoothing")
        return {name: getattr(self, name) for name in (*LOSS_FACTORS, *shape)}

    @property
    def is_per_pass(self) -> bool:
        """Whether the loss is not a sum over pixels, and thus depends on how crops are split into passes."""
        return self.dice > 0 or self.lovasz > 0 or self.ohem_share not in (None, 1)

    def contradictions(self) -> list[str]:
        """One phrase per field that would have no effect, or that excludes another."""
        default, wrong = LossConfig(), []
        if not any(getattr(self, name) for name in LOSS_FACTORS):
            wrong.append(f"loss: {', '.join(LOSS_FACTORS)} are 0; give one of them a factor above 0")
        needs = {
            "ohem_share": ("loss.cross_entropy", self.cross_entropy > 0),
            "label_smoothing": ("loss.cross_entropy", self.cross_entropy > 0),
            "focal_gamma": ("loss.focal", self.focal > 0),
            "boundary_radius": ("loss.boundary_weight", self.boundary_weight != 1),
            "class_weight_power": ("loss.cross_entropy or loss.focal", self.cross_entropy > 0 or self.focal > 0),
            "class_weights": ("loss.cross_entropy or loss.focal", self.cross_entropy > 0 or self.focal > 0),
        }
        for name, (other, used) in needs.items():
            value, unset = getattr(self, name), getattr(default, name)
            if not used and value != unset:
                rule = "other than 1" if name == "boundary_radius" else "above 0"
                shown = "null" if unset is None else unset
                wrong.append(f"loss.{name}: {value} has no effect; set {other} {rule}, or loss.{name} to {shown}")
        if self.class_weights is not None and self.class_weight_power != 0:
            wrong.append(
                f"loss.class_weights: {self.class_weights!r:.60} conflicts with loss.class_weight_power "
                f"{self.class_weight_power}; set that to 0"
            )
        given = self.class_weights.values() if isinstance(self.class_weights, dict) else self.class_weights
        if given is not None and not given:
            wrong.append(f"loss.class_weights: {self.class_weights} is empty; give weights, or null")
        if not isinstance(given, str | None) and not all(0 <= value < inf for value in given):
            wrong.append(f"loss.class_weights: {self.class_weights!r:.60} has a number that is negative or not finite")
        return wrong


LOSS_FACTORS: Final = ("cross_entropy", "focal", "dice", "lovasz")
"""Fields of `LossConfig` that are factors of its losses."""


@dataclass
class OptimizerConfig:
    """The optimizer and its learning rate schedule."""

    name: str = "sgd"
    """sgd with momentum, adamw, or any other optimizer of timm.optim.list_optimizers(), such as lion, muon or nesterov
    (timm's own sgd)."""
    args: dict[str, Any] = field(default_factory=dict)
    """More arguments of the optimizer, such as {betas: [0.9, 0.99]} for lion; those left out have timm's defaults."""
    lr: float = 1e-3
    """Initial learning rate."""
    head_lr: float | None = None
    """Learning rate of the mean shift block and the decoder; null: lr."""
    layer_decay: float | None = None
    """Factor of the learning rate from each encoder layer to the one below it, such as 0.75; null: one rate for all."""
    freeze: Literal["encoder"] | None = None
    """encoder: train the mean shift block and the decoder only, on the features of the encoder as it is; null: train
    all."""
    momentum: float = 0.9
    """Momentum (sgd; others have it in args)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Betas (adamw; others have them in args)."""
    weight_decay: float = 0.0
    """Weight decay of weight matrices; biases, norms and embeddings are never decayed."""
    clip_norm: float | None = None
    """Maximum gradient norm; null: no clipping."""
    schedule: Literal["poly", "cosine"] = "poly"
    """Polynomial or cosine decay from lr to min_lr over all steps."""
    power: float = 0.9
    """Power of the polynomial decay."""
    min_lr: float = 1e-4
    """Final learning rate."""
    warmup: int = 0
    """Steps of linear learning rate warm-up."""

    def violations(self) -> list[str]:
        """Fields that contradict each other; names and arguments are timm's, and checked when a run is prepared."""
        wrong = []
        for name, owner in (("momentum", "sgd"), ("betas", "adamw")):
            value, default = getattr(self, name), getattr(type(self), name)
            if self.name != owner and tuple_of(value) != tuple_of(default):
                remedy = "remove it" if self.name in ("sgd", "adamw") else f"set optimizer.args.{name}"
                wrong.append(f"optimizer.{name}: {value} is for {owner}; with optimizer.name {self.name}, {remedy}")
        if self.schedule == "cosine" and self.power != type(self).power:
            wrong.append(f"optimizer.power: {self.power} is for poly; with optimizer.schedule cosine, remove it")
        if self.freeze is not None and self.layer_decay is not None:
            wrong.append(
                f"optimizer.layer_decay: {self.layer_decay} needs an encoder that is trained, but optimizer.freeze is "
                f"{self.freeze}; set one of them to null"
            )
        return wrong


def tuple_of(value: Any) -> Any:
    """A list as a tuple, so that the two compare equal."""
    return tuple(value) if isinstance(value, list) else value


@dataclass
class LoraConfig:
    """Low-rank adaptation: the encoder's weights stay, and small matrices beside some of them are trained.

    Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, section 4.1.
    """

    rank: int = 8
    """Rank r of the update B·A of a weight matrix."""
    alpha: float = 16.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout of the input of A."""
    targets: list[str] = field(default_factory=lambda: ["qkv", "proj"])
    """Linear layers of the encoder to adapt, by the last part of timm's names: qkv, proj, fc1, fc2, …"""

    def violations(self) -> list[str]:
        """A message for every field outside its range."""
        rules = [
            ("rank", self.rank, 1 <= self.rank <= LARGEST, "at least 1"),
            ("alpha", self.alpha, 0 < self.alpha < inf, "above 0"),
            ("dropout", self.dropout, 0 <= self.dropout < 1, "at least 0 and below 1"),
            ("targets", self.targets, len(self.targets) > 0, "a list of layer names, such as [qkv, proj]"),
        ]
        return [f"lora.{name}: {value} must be {rule}" for name, value, valid, rule in rules if not valid]


@dataclass
class EvaluationConfig:
    """Evaluation during training, and the preprocessing of validation images."""

    interval: int = 16_000
    """Steps between evaluations; 0: evaluate at the end only."""
    patience: int | None = None
    """Early stopping: end the run after this many evaluations without a better mIoU; null: train all steps."""
    window: int | None = 512
    """Side of the sliding window in pixels; null: whole images."""
    window_stride: int = 480
    """Stride of the sliding window in pixels."""
    short_side: int | None = 512
    """Resize images to fit (short_side, long_side), keeping their aspect ratio; null: original size."""
    long_side: int = 2048
    """See short_side."""
    limit: int | None = None
    """Evaluate only the first N images; null: all."""

    @property
    def reading(self) -> dict[str, Any]:
        """The preprocessing, as arguments of `Predictor` and fields of `ModelConfig`."""
        return {name: getattr(self, name) for name in ("window", "window_stride", "short_side", "long_side")}
