"""Preparation of a run before the first step: data, model, optimizer and run folder, on their devices."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from meanshifter.checkpoints.load import load_segmenter
from meanshifter.data.catalog import open_dataset
from meanshifter.data.class_pixels import class_pixels
from meanshifter.data.datasets import Cached, Dataset, Subset
from meanshifter.data.doctor import SampleReport, check_sample
from meanshifter.data.extra import Concatenated, open_extra, shared_images
from meanshifter.data.folds import Drawn, Fold, fold_numbers
from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError
from meanshifter.evaluation.evaluate import is_unnamed
from meanshifter.inference.precision import fused_attention_pays, resolve_precision
from meanshifter.model.presets import create_model, name_of_module
from meanshifter.model.segmenter import Segmenter, reinitialized, replace_classes
from meanshifter.training.adapters import check_package, choose_trained, enable_checkpointing, sharing_frozen
from meanshifter.training.config import TrainConfig
from meanshifter.training.data import Batch, Share, batches, class_weights, gpu_cached_batches
from meanshifter.training.data_record import DataRecord
from meanshifter.training.loggers import check_loggers
from meanshifter.training.optimizer import SampledDropPaths, WeightAverage, check_optimizer, create_optimizer
from meanshifter.training.sections import HELD_OUT, DataConfig, ModelRecipe, of_model
from meanshifter.training.state import Progress, RunFolder, TrainState
from meanshifter.training.stream import Mix, SampleStream
from meanshifter.training.token_cache import TokenCache, check_tokens
from meanshifter.utils.distributed import Processes, create_fabric, is_first_process, launch, process_counts

PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass
class Learner:
    """Everything an optimizer step needs: the network on its device, its state, loss weights and random draws."""

    fabric: Fabric
    processes: Processes
    network: Any
    """The model of `state`, compiled and wrapped by Fabric."""
    optimizer: Any
    """The optimizer of `state`, wrapped by Fabric."""
    state: TrainState
    drop_path: SampledDropPaths
    class_weight: Tensor | None
    """(K,) loss weight per class."""
    crops_at_once: int
    """Crops per pass: the batch size, or less after memory ran out."""


class Feed:
    """The batches of this process, starting at any step."""

    def __init__(
        self, stream: SampleStream, device: torch.device, share: Share, tokens: TokenCache | None = None
    ) -> None:
        self.stream, self._device, self._share, self.tokens = stream, device, share, tokens
        self._batches: Iterator[Batch] = iter(())

    def begin(self, config: TrainConfig, step: int) -> None:
        """Start at a step; the number of steps may differ from before."""
        self.close()
        start, stop = step * config.accumulate, config.steps * config.accumulate
        span: dict[str, Any] = {"batch_size": config.batch_size, "start": start, "stop": stop, "share": self._share}
        if self.tokens is not None:
            self._batches = self.tokens.batches(**span)
        elif config.data.gpu_cache:
            self._batches = gpu_cached_batches(self.stream, self._device, **span)
        else:
            self._batches = batches(self.stream, workers=config.data.workers, **span)

    def close(self) -> None:
        """Stop the workers."""
        if isinstance(self._batches, Generator):
            self._batches.close()

    def __next__(self) -> Batch:
        return next(self._batches)


class Setup(NamedTuple):
    """A prepared run."""

    run: RunFolder
    learner: Learner
    feed: Feed
    val_set: Dataset
    label_origin: str
    """Where the class names come from, and the share of ignored pixels, as a phrase."""


def resolve(config: TrainConfig) -> TrainConfig:
    """The configuration with machine-dependent fields filled in."""
    config.check()
    check_package(config)
    check_loggers(config.loggers)
    check_optimizer(config.optimizer)
    devices, num_nodes = process_counts(config.devices, config.num_nodes)
    config = replace(config, devices=devices, num_nodes=num_nodes)
    config.check()  # again: torchrun or SLURM may have started several processes
    device = _fabric(replace(config, precision="fp32")).device
    if config.precision == "fp16" and device.type == "cpu":
        raise InputError("precision: 'fp16' training is not supported on a CPU; use 'auto', 'bf16' or 'fp32'")
    return replace(config, precision=resolve_precision(config.precision, device))


def with_module(config: TrainConfig, encoder: nn.Module) -> TrainConfig:
    """A configuration whose encoder is a module of one's own instead of the recipe's, without weights from elsewhere.

    Raises:
        InputError: the model starts from another, which has its encoder.
    """
    if config.model.init_from is not None:
        raise InputError("encoder: given with model.init_from, whose model has its own; leave one out")
    none = dict.fromkeys(("encoder_weights", "token_merging", "patch_size"))
    own: dict[str, Any] = {**none, "encoder_args": {}, "average_corners": False, "drop_path": 0.0}
    return replace(config, model=replace(config.model, encoder=name_of_module(encoder), **own))


def supervised_steps(config: TrainConfig, model: Segmenter) -> tuple[int, ...] | None:
    """The numbers of steps after which `loss.deep_supervision` has a loss; None: only the block's own number.

    A tuple, as Fabric's wrapper of a network takes tuples and lists of arguments apart, and cannot rebuild a range.

    Raises:
        InputError: a number, and the model has no block.
    """
    last = config.loss.deep_supervision
    if last == "auto":
        last = None if model.pixel_shift is None else 2 * model.pixel_shift.layers
    if last is None or last == 0:
        return None
    if not model.has_steps:
        raise InputError(
            f"loss.deep_supervision: {last} steps, but the model has no mean shift block; give it one, as in "
            "--model.pixel_shift.layers 1, or set it to auto or null"
        )
    return tuple(range(1, last + 1))


def prepare(config: TrainConfig, *, resume: bool, encoder: nn.Module | None = None) -> Setup:
    """Open the data and build model and run folder; with `resume`, restore the run.

    Other processes are launched late, so that errors are reported only once.

    Raises:
        InputError: the configuration or the data are invalid, or the run folder is taken; raised before writing.
    """
    fabric = _fabric(config)
    train_set, val_set = open_data(config)
    extra = open_extra_data(config.data, train_set)
    joined, mix = join_extra(config.data, train_set, extra)
    data = DataRecord.of(joined, val_set)
    run = RunFolder(Path(str(config.out)))
    run.check(config, data, resume=resume)
    # before the weights are downloaded, and in one process
    seen = _check_data(config, train_set, val_set, extra) if is_first_process() else None
    model = build_model(config, train_set.label_space, encoder)
    supervised_steps(config, model)  # refused before anything is written
    choose_trained(model, config)
    processes = launch(fabric)
    look = processes.broadcast(lambda: _check_data(config, train_set, val_set, extra) if seen is None else seen)
    fabric.to_device(model)  # first, so that restored optimizer state is placed on the same device
    optimizer = create_optimizer(model, config.optimizer)
    decoded = Cached(joined, config.data.cache * 1_000_000 // max(config.data.workers, 1))
    counts = processes.broadcast(lambda: class_pixels(train_set) if config.augment.needs_class_pixels else None)
    normalization: dict[str, Any] = {"mean": model.config.mean, "std": model.config.std}
    stream = SampleStream(decoded, config.augment, config.seed, mix=mix, pixels=counts, **normalization)
    if config.model.init_from is None:
        _calibrate(model, stream, config.crops_per_step)
    average = None
    if config.ema is not None:
        average = WeightAverage(sharing_frozen(model), config.ema)
    grid = [-(-side // model.patch_size) for side in config.augment.crop]
    size = {"images": config.batch_size, "heads": model.encoder.heads, "tokens": math.prod(grid)}
    pays = fused_attention_pays(fabric.device, config.precision, **size, layers=model.encoder.depth)
    model.encoder.set_attention(fused=pays)
    drop_path = SampledDropPaths(model)
    if config.gradient_checkpointing:
        enable_checkpointing(model)
    weight = processes.broadcast(lambda: class_weights(train_set, config.loss))
    if (cached := config.data.token_cache) is not None:
        check_tokens(cached, stream, model, run.path)
    processes.broadcast(lambda: run.claim(config, data, resume=resume))
    state = TrainState(model, optimizer, average, Progress())
    if resume:
        try:
            run.restore(state, is_main=processes.is_main)
        except InputError:
            run.release()
            raise
    if processes.is_main:
        run.forget_after(state.progress)
    else:
        state.progress.loss_sum = (0.0, state.progress.loss_sum[1])  # the main process has the sum over all processes
    tokens = None if cached is None else TokenCache(stream, model, fabric, run.path if cached == "disk" else None)
    trained = model if tokens is None else tokens.head
    compiled = cast(nn.Module, torch.compile(trained)) if config.compile else trained
    network, wrapped = fabric.setup(compiled, optimizer)
    feed = Feed(stream, fabric.device, (processes.rank, processes.count), tokens)
    feed.begin(config, state.progress.step)
    class_weight = None if weight is None else fabric.to_device(weight)
    learner = Learner(fabric, processes, network, wrapped, state, drop_path, class_weight, config.batch_size)
    return Setup(run, learner, feed, val_set, look.origin)


def open_data(config: TrainConfig) -> tuple[Dataset, Dataset]:
    """The training and validation sets of a configuration.

    Raises:
        InputError: a dataset cannot be opened, `data.val_pattern` leaves no images, or `data.folds` names no fold.
    """
    data = config.data
    train_set, held_out = open_training_data(config)
    if data.folds is not None and held_out is None:
        raise InputError(
            f"data.fold: null, but data.folds is {data.folds}; train all of them with --folds {data.folds} or "
            "meanshifter.cross_validate, or one with data.fold"
        )
    if data.val_split is None and held_out is not None:
        return train_set, held_out
    try:
        return train_set, open_split(data, str(data.val_split))
    except InputError as error:
        if held_out is None:
            raise
        raise InputError(f"{error}; to score on the folds alone: --data.val_split null") from error


def open_split(data: DataConfig, split: str) -> Dataset:
    """A split of the dataset, or with "held_out" the training images that `data.val_pattern` names.

    Raises:
        InputError: as `open_dataset`, and for held-out images where none are.
    """
    if split != HELD_OUT:
        return open_dataset(data.name, data.root, split, data.layout)
    if data.val_pattern is None:
        raise InputError("splits: held_out, but data.val_pattern is null; set it to a pattern such as 0006R0_*")
    return Subset(open_dataset(data.name, data.root, data.train_split, data.layout), data.val_pattern, matching=True)


def open_training_data(config: TrainConfig) -> tuple[Dataset, Dataset | None]:
    """The training set, and the fold that is left out of it, if any."""
    data = config.data
    train_set = _train_split(data)
    if data.train_share is not None:
        train_set = Drawn(train_set, data.train_share, config.seed)
    if data.folds is None or data.fold is None:
        return train_set, None
    numbers = fold_numbers(train_set.names, data.folds, seed=config.seed, groups=data.fold_groups)
    parts = [Fold(train_set, numbers, data.fold, data.folds, held_out=held_out) for held_out in (False, True)]
    return parts[0], parts[1]


def open_unused_data(config: TrainConfig) -> Dataset:
    """The training images that `data.train_share` does not draw.

    Raises:
        InputError: as `open_data`, or data.train_share is null.
    """
    if config.data.train_share is None:
        raise InputError("data.train_share: null, so that all training images are used; set a share")
    return Drawn(_train_split(config.data), config.data.train_share, config.seed, drawn=False)


def _train_split(data: DataConfig) -> Dataset:
    train_set = open_dataset(data.name, data.root, data.train_split, data.layout)
    return train_set if data.val_pattern is None else Subset(train_set, data.val_pattern, matching=False)


def open_extra_data(data: DataConfig, train_set: Dataset) -> list[Dataset]:
    """The extra training data, one dataset for each folder.

    Raises:
        InputError: a folder cannot be opened, has other classes, or lacks confidence maps that are needed.
    """
    measure, least = data.extra_confidence, data.extra_min_confidence
    return open_extra(data.extra_train, train_set.label_space, measure=measure, least=least)


def join_extra(data: DataConfig, train_set: Dataset, extra: list[Dataset]) -> tuple[Dataset, Mix | None]:
    """All training data as one dataset, and how the stream mixes the extra ones in; None: there are none."""
    if not extra:
        return train_set, None
    joined = Concatenated([train_set, *extra])
    return joined, Mix(len(train_set), len(joined) - len(train_set), data.extra_share)


def record_data(config: TrainConfig) -> DataRecord:
    """The record of all data of a run, by which resuming notices changes."""
    train_set, val_set = open_data(config)
    joined, _ = join_extra(config.data, train_set, open_extra_data(config.data, train_set))
    return DataRecord.of(joined, val_set)


def _check_data(config: TrainConfig, train_set: Dataset, val_set: Dataset, extra: list[Dataset]) -> SampleReport:
    """Examine samples of all data; those of extra data on their own, as label maps of a model ignore no pixels."""
    held_out = open_training_data(config)[1] if extra else None
    scored = {"validation images": val_set, **({} if held_out is None else {"images of the held-out fold": held_out})}
    for folder, dataset in zip(config.data.extra_train, extra, strict=True):
        check_sample([dataset], f"meanshifter data check {folder}")
        for kind, other in scored.items():
            if shared := shared_images(dataset, other):
                warnings.warn(
                    f"data.extra_train: {len(shared):,} of {len(dataset):,} images of {folder}, such as {shared[0]}, "
                    f"are {kind}, whose scores will be too high; leave them out",
                    stacklevel=2,
                )
    return check_sample([train_set, val_set], _check_command(config.data))


def _check_command(data: DataConfig) -> str:
    if data.name == "folder" and data.root is not None:
        return f"meanshifter data check {data.root}{data.layout.options()}"
    return f"meanshifter data check {data.name}" + ("" if data.root is None else f" --root {data.root}")


def _calibrate(model: Segmenter, stream: SampleStream, count: int) -> None:
    """Set the bandwidth of the mean shift block as configured, from the first crops of the run."""
    if model.mean_shift is None or model.config.mean_shift is None or model.config.mean_shift.init_neighbors is None:
        return
    images = torch.stack([stream.sample(position)[0] for position in range(count)])
    with torch.no_grad():
        tokens, grid = model.eval().encode(images.to(model.device))
        model.mean_shift.calibrate(model.mean_shift_input(tokens), grid)
    model.train()


def _fabric(config: TrainConfig) -> Fabric:
    return create_fabric(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        precision=PRECISIONS[config.precision],
    )


def build_model(config: TrainConfig, label_space: LabelSpace, encoder: nn.Module | None = None) -> Segmenter:
    """Build the model of a configuration, with the preprocessing of its evaluations as the model's default.

    Raises:
        InputError: model fields contradict each other, or the model to start from cannot be read.
    """
    torch.manual_seed(config.seed)
    if config.model.init_from is None:
        skipped = ("init_from", "preset", "image_size")
        settings = {f.name: getattr(config.model, f.name) for f in fields(config.model) if f.name not in skipped}
        size = config.augment.crop if config.model.image_size is None else config.model.image_size
        if encoder is not None:
            settings |= {"encoder": copy.deepcopy(encoder), "encoder_args": None, "drop_path": None}
        try:
            model = create_model(config.model.preset, classes=label_space, image_size=size, **settings)
        except InputError as error:
            raise InputError(of_model(str(error))) from error
    else:
        model = _started(config.model.init_from, config.model, label_space)
    # a temperature was fitted to the weights before training
    model.config = replace(model.config, temperature=1.0, **config.evaluation.reading)
    return model.train()


def _started(name: str, recipe: ModelRecipe, label_space: LabelSpace) -> Segmenter:
    """The model `name` with the classes of the data; if their number differs, the layers that depend on it are new."""
    blocks = ("mean_shift", "pixel_shift", "token_merging", "patch_size")
    given = [field for field in blocks if getattr(recipe, field) is not None]
    if given:
        raise InputError(f"model.{given[0]}: conflicts with model.init_from, whose model has its own; leave one out")
    source = load_segmenter(name)
    model = replace_classes(source, label_space, drop_path=recipe.drop_path)
    if layers := reinitialized(source, model):
        warnings.warn(
            f"model.init_from: {name} has {source.label_space.num_classes} classes, and the data have "
            f"{label_space.num_classes}; these layers were re-initialized: {', '.join(layers)}",
            stacklevel=2,
        )
    elif source.label_space.names != label_space.names and not is_unnamed(source.label_space):
        pairs = enumerate(zip(source.label_space.names, label_space.names, strict=True))
        k, (theirs, ours) = next((k, pair) for k, pair in pairs if pair[0] != pair[1])
        warnings.warn(
            f"model.init_from: class {k} is {theirs!r} in {name} but {ours!r} in the data, and others may differ; if "
            "this is unintended, list the classes of the data in the model's order",
            stacklevel=2,
        )
    return model
