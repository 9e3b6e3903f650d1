"""TrainConfig: every setting of a training run. The defaults reproduce the standard recipe.

Its sections are in `sections`; the docstring under each field is also its `--help`. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from math import inf, isfinite
from operator import attrgetter
from typing import Any, Final, Literal

from meanshifter.data.augment_config import RANGES, AugmentConfig
from meanshifter.errors import InputError
from meanshifter.model.config import LARGEST, MOST_STEPS
from meanshifter.training.sections import (
    LOSS_FACTORS,
    DataConfig,
    EvaluationConfig,
    LoraConfig,
    LossConfig,
    ModelRecipe,
    OptimizerConfig,
    tuple_of,
)


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
    """Optimizer."""
    lora: LoraConfig | None = None
    """Train low-rank adapters in place of the encoder's weights, such as {rank: 8, alpha: 16}; null: none. Needs the
    package peft."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Evaluation."""
    out: str | None = None
    """Run folder; null: runs/NAME with the name of the recipe."""
    steps: int = 160_000
    """Optimizer steps."""
    minutes: float | None = None
    """Train for this many minutes, evaluations included, instead of a number of steps. The first steps are timed, and
    config.yaml records the resulting steps. null: train for steps."""
    batch_size: int = 8
    """Crops per forward pass on one device."""
    accumulate: int = 1
    """Gradient accumulation: forward passes per optimizer step, equivalent to one larger batch."""
    ema: float | None = None
    """Decay of the exponential moving average of the weights, which is then evaluated and saved; null: no average."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Precision of forward and backward passes; weights stay float32. auto: bf16 where the hardware supports it."""
    compile: bool = False
    """Compile the model with torch.compile."""
    gradient_checkpointing: bool = False
    """Compute the encoder's layers again in the backward pass, which takes less memory and about a third more time."""
    accelerator: str = "auto"
    """auto, cpu, cuda or mps."""
    devices: int | None = None
    """Devices per node, each with its own batch; null: the number that torchrun or SLURM started, else 1."""
    num_nodes: int | None = None
    """Nodes; null: the number that torchrun or SLURM started, else 1."""
    seed: int = 0
    """Random seed."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    log_images: int = 4
    """Validation images that each evaluation logs with their labels and prediction; 0: none."""
    loggers: list[Literal["wandb", "mlflow"]] = field(default_factory=list)
    """Where metrics and images also go, beside metrics.jsonl and TensorBoard: [wandb], [mlflow] or both. Each needs the
    extra of its name and is configured by its own environment variables."""
    save_every: int = 1_000
    """Steps between writes of checkpoints/last, which evaluations write too."""

    def check(self) -> None:
        """Raise an InputError that lists every field that is out of range."""
        if wrong := self.violations():
            raise InputError("; ".join(wrong))

    def violations(self) -> list[str]:
        """One phrase per field that is out of range or contradicts another."""
        values = {name: attrgetter(name)(self) for name in [*_RULES, *(name for pair in _LIMITS for name in pair)]}
        bad = {name: rule for name, (accepts, rule) in _RULES.items() if not accepts(values[name])}
        wrong = [f"{name}: {values[name]} must be {_spelled(rule, values[name])}" for name, rule in bad.items()]
        for name, other in _LIMITS:
            value, most = values[name], values[other]
            # a field that is already listed would only be listed twice
            if value is not None and most is not None and value > most and not {name, other} & bad.keys():
                wrong.append(f"{name}: {value} is above {other} {most}; lower it")
        if not any(name.startswith("loss.") for name in bad):
            wrong += self.loss.contradictions()
        if self.data.gpu_cache and (host_only := self.augment.host_only):
            names = ", ".join(f"augment.{name}" for name in host_only)
            wrong.append(f"data.gpu_cache: true has no implementation of {names}; set it to false, or leave these out")
        evaluation = self.evaluation
        if evaluation.patience is not None and evaluation.interval == 0:
            wrong.append(
                f"evaluation.patience: {evaluation.patience}, but evaluation.interval is 0, which evaluates at the end "
                "only; set an interval, or leave patience out"
            )
        lora = [] if self.lora is None else self.lora.violations()
        return [
            *wrong,
            *self.data.violations(evaluation),
            *self.optimizer.violations(),
            *lora,
            *self._frozen_violations(),
            *self._token_violations(),
            *self.augment.violations(),
            *self.model.violations(),
        ]

    def _frozen_violations(self) -> list[str]:
        """Fields that contradict a frozen encoder."""
        if self.optimizer.freeze is None:
            return []
        rules = [
            ("lora", self.lora is not None, "trains the encoder through adapters", "null"),
            ("gradient_checkpointing", self.gradient_checkpointing, "saves memory of the encoder's gradient", "false"),
        ]
        return [
            f"{name}: {what}, but optimizer.freeze is {self.optimizer.freeze}; set {name} to {off}, or "
            "optimizer.freeze to null"
            for name, given, what, off in rules
            if given
        ]

    def _token_violations(self) -> list[str]:
        """Fields that make the tokens of an image differ from step to step, or contradict `data.token_cache`."""
        kind, augment, usual = self.data.token_cache, self.augment, AugmentConfig()
        if kind is None:
            return []
        low, high = augment.scale
        fixed = min(max(low, 1.0), high)
        handled = ("crop", "resize_base", "scale", "flip", "max_class_share", "photometric_distortion")
        off_by_default = [item.name for item in fields(AugmentConfig) if item.name not in (*handled, *RANGES)]
        rules: list[tuple[str, Any, bool, str]] = [
            ("optimizer.freeze", self.optimizer.freeze, self.optimizer.freeze == "encoder", "encoder"),
            ("augment.scale", augment.scale, low == high, f"[{fixed:g}, {fixed:g}]"),
            (
                *("augment.photometric_distortion", augment.photometric_distortion),
                *(not augment.photometric_distortion, "false"),
            ),
            *(
                (f"augment.{name}", value, tuple_of(value) == tuple_of(off), str(off))
                for name in off_by_default
                for value, off in [(getattr(augment, name), getattr(usual, name))]
            ),
            ("data.gpu_cache", self.data.gpu_cache, not self.data.gpu_cache, "false"),
            ("data.cache", self.data.cache, self.data.cache == 0, "0"),
            ("devices", self.num_processes, self.num_processes == 1, "1"),
        ]
        return [
            f"{name}: {'null' if value is None else value} conflicts with data.token_cache {kind}; set it to {needed}"
            for name, value, valid, needed in rules
            if not valid
        ]

    @property
    def num_processes(self) -> int:
        """Number of devices on all nodes."""
        return (1 if self.devices is None else self.devices) * (1 if self.num_nodes is None else self.num_nodes)

    @property
    def crops_per_step(self) -> int:
        """Crops per optimizer step on all devices together."""
        return self.batch_size * self.accumulate * self.num_processes

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for YAML."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return plain


def _spelled(rule: str, value: Any) -> str:
    if isinstance(value, int) and value > LARGEST:
        return f"at most {LARGEST}"
    return rule if not isinstance(value, float) or isfinite(value) else "a finite number"


_Rule = tuple[Callable[[Any], bool], str]
_COUNT: Final[_Rule] = (lambda value: value is None or 1 <= value <= LARGEST, "at least 1")
_FROM_ZERO: Final[_Rule] = (lambda value: 0 <= value <= LARGEST, "at least 0")
_NOT_NEGATIVE: Final[_Rule] = (lambda value: value >= 0, "at least 0")
_FINITE: Final[_Rule] = (lambda value: 0 <= value < inf, "finite and at least 0")
_BELOW_ONE: Final[_Rule] = (lambda value: 0 <= value < 1, "at least 0 and below 1")
_RULES: Final[dict[str, _Rule]] = {
    **dict.fromkeys(("steps", "batch_size", "accumulate", "log_every", "save_every", "devices", "num_nodes"), _COUNT),
    **dict.fromkeys(("evaluation.window_stride", "evaluation.window", "evaluation.short_side"), _COUNT),
    **dict.fromkeys(("evaluation.long_side", "evaluation.limit", "evaluation.patience"), _COUNT),
    **dict.fromkeys(("seed", "data.cache", "optimizer.warmup", "evaluation.interval", "log_images"), _FROM_ZERO),
    "minutes": (lambda value: value is None or 0 < value < inf, "above 0, or null"),
    "data.train_share": (lambda value: value is None or 0 < value < 1, "between 0 and 1, or null"),
    "data.val_share": (lambda value: value is None or 0 < value < 1, "between 0 and 1, or null"),
    "data.extra_share": (lambda value: 0 < value < 1, "between 0 and 1"),
    "data.extra_min_confidence": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "ema": (lambda value: value is None or 0 <= value < 1, "at least 0 and below 1, or null"),
    "data.workers": (lambda value: 0 <= value <= 1024, "from 0 to 1024"),
    "optimizer.lr": (lambda value: 0 < value < inf, "above 0"),
    "optimizer.head_lr": (lambda value: value is None or 0 <= value < inf, "at least 0, or null"),
    "optimizer.min_lr": (lambda value: 0 <= value < inf, "at least 0"),
    "optimizer.layer_decay": (lambda value: value is None or 0 < value <= 1, "above 0 and at most 1, or null"),
    "optimizer.momentum": _BELOW_ONE,
    "optimizer.betas": (
        lambda betas: all(0 <= beta < 1 for beta in betas),
        "two numbers that are at least 0 and below 1",
    ),
    "optimizer.power": _FINITE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.clip_norm": (lambda value: value is None or value > 0, "above 0, or null"),
    "loss.class_weight_power": _NOT_NEGATIVE,
    **dict.fromkeys((*(f"loss.{name}" for name in LOSS_FACTORS), "loss.focal_gamma", "loss.boundary_weight"), _FINITE),
    "loss.ohem_share": (lambda value: value is None or 0 < value <= 1, "above 0 and at most 1, or null"),
    "loss.boundary_radius": _COUNT,
    "loss.deep_supervision": (
        lambda value: value in (None, "auto") or 1 <= value <= MOST_STEPS,
        f"from 1 to {MOST_STEPS}, auto or null",
    ),
    "loss.label_smoothing": _BELOW_ONE,
}
"""What each field must satisfy, and how to say it."""
_LIMITS: Final = (
    ("optimizer.min_lr", "optimizer.lr"),
    ("optimizer.min_lr", "optimizer.head_lr"),
    ("evaluation.window_stride", "evaluation.window"),
    ("evaluation.short_side", "evaluation.long_side"),
)
"""Fields that must not exceed another field."""
