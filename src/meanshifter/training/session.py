"""Everything that stands before the first step: data, model, optimiser, run folder, on the devices they belong to."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from meanshifter.data.cache import Cached
from meanshifter.data.catalog import open_dataset
from meanshifter.data.datasets import Dataset
from meanshifter.data.doctor import Look, check_sample
from meanshifter.data.subset import Subset
from meanshifter.errors import InputError
from meanshifter.inference.precision import fused_attention_pays, resolve_precision
from meanshifter.model.segmenter import Segmenter
from meanshifter.processes import Processes, create_fabric, launch, process_counts
from meanshifter.training.batches import Batch, SampleStream, Share, batches, class_weights
from meanshifter.training.data_record import DataRecord
from meanshifter.training.optimizer import WeightAverage, create_optimizer
from meanshifter.training.recipe import DataConfig, TrainConfig
from meanshifter.training.resident import resident_batches
from meanshifter.training.start import build_model
from meanshifter.training.state import Progress, RunFolder, pack, unpack
from meanshifter.training.stochastic_depth import StochasticDepth

PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass
class Session:
    """What the loop works with."""

    fabric: Fabric
    processes: Processes
    run: RunFolder
    val_set: Dataset
    stream: SampleStream
    feed: Iterator[Batch]
    model: Segmenter
    """The raw model, whose weights are trained."""
    network: Any
    """The same weights, compiled and wrapped as the device asks."""
    optimizer: Optimizer
    average: WeightAverage | None
    depth: StochasticDepth
    weight: Tensor | None
    """One factor of the loss per class, (K,)."""
    crops_at_once: int
    """Crops in one pass: the batch size, or less where memory ran out."""
    progress: Progress
    look: Look
    """What a look at the data said."""

    @property
    def images(self) -> int:
        """How many images there are to learn from."""
        return len(self.stream.dataset)

    def begin_feed(self, config: TrainConfig) -> None:
        """Have `feed` begin at the step that is next, for a number of steps that may be another one."""
        if isinstance(self.feed, Generator):
            self.feed.close()  # and with it its workers
        share = (self.processes.rank, self.processes.count)
        self.feed = _feed(config, self.stream, self.progress.step, self.fabric.device, share)

    @property
    def scored(self) -> Segmenter:
        """The model that is scored and saved: the running average where there is one."""
        return self.model if self.average is None else self.average.average

    def keep_best(self, score: float) -> None:
        """Write checkpoints/best if no evaluation scored higher."""
        if score >= self.progress.best:
            self.progress.best = score
            if self.processes.first:
                self.run.save("best", self.scored, step=self.progress.step)

    def save(self) -> None:
        """Write checkpoints/last, with all that `resume` needs; every process takes part, the first one writes."""
        total, count = self.progress.tally
        total = float(self.processes.sum(torch.tensor(total, dtype=torch.float64)))
        if not self.processes.first:
            return
        state = pack(self.model, self.optimizer)
        if self.average is not None:
            state |= {f"average.{name}": value for name, value in self.average.average.state_dict().items()}
        self.run.save("last", self.scored, state, **asdict(replace(self.progress, tally=(total, count))))


def resolve(config: TrainConfig) -> TrainConfig:
    """The recipe with what depends on the machine filled in."""
    config.check()
    devices, num_nodes = process_counts(config.devices, config.num_nodes)
    config = replace(config, devices=devices, num_nodes=num_nodes)
    device = _fabric(replace(config, precision="fp32")).device
    if config.precision == "fp16" and device.type == "cpu":
        raise InputError("precision: 'fp16' cannot be trained on a CPU; 'auto', 'bf16' and 'fp32' can")
    return replace(config, precision=resolve_precision(config.precision, device))


def prepare(config: TrainConfig, *, resume: bool) -> Session:
    """Open the data, build the model and the run folder; with `resume`, where the run stopped.

    Other processes are started last, so that what is wrong is said once.

    Raises:
        InputError: a wrong configuration, wrong data or a run folder that is taken, before anything is written.
    """
    fabric = _fabric(config)
    train_set, val_set = _open_data(config)
    data = DataRecord.of(train_set, val_set)
    run = RunFolder(Path(str(config.out)))
    run.check(config, data, resume=resume)
    model = build_model(config, train_set.labels)
    processes = launch(fabric)
    look = processes.from_first(lambda: check_sample([train_set, val_set], _check_command(config.data)))
    fabric.to_device(model)  # first, so that restored optimiser state lands where the weights are
    optimizer = create_optimizer(model, config.optimizer)
    cached = Cached(train_set, config.data.cache * 1_000_000 // max(config.data.workers, 1))
    stream = SampleStream(cached, config.augment, config.seed, mean=model.config.mean, std=model.config.std)
    if config.model.start is None:
        _calibrate(model, stream, config.crops_per_step)
    average = None
    if config.ema is not None:
        average = WeightAverage(copy.deepcopy(model).requires_grad_(False), config.ema)
    _set_attention(model, config, fabric.device)
    depth = StochasticDepth(model)
    weight = processes.from_first(lambda: class_weights(train_set, config.loss.class_balance))
    processes.from_first(lambda: run.claim(config, data, resume=resume))
    try:
        progress = restore(run, model, optimizer, average, speaks=processes.first) if resume else Progress()
    except InputError:
        run.release()
        raise
    if processes.first:
        run.forget_after(progress)
    else:
        progress.tally = (0.0, progress.tally[1])  # the sum over all processes is in the first
    network, wrapped = fabric.setup(_compiled(model) if config.compile else model, optimizer)
    feed = _feed(config, stream, progress.step, fabric.device, (processes.rank, processes.count))
    return Session(
        fabric,
        processes,
        run,
        val_set,
        stream,
        feed,
        model,
        network,
        wrapped,
        average,
        depth,
        None if weight is None else fabric.to_device(weight),
        config.batch_size,
        progress,
        look,
    )


def _open_data(config: TrainConfig) -> tuple[Dataset, Dataset]:
    """The images to learn from and those to score on."""
    data = config.data
    train_set = open_dataset(data.name, data.root, data.train_split, data.layout)
    if config.data.hold_out is not None:
        train_set = Subset(train_set, config.data.hold_out, matching=False)
    return train_set, open_dataset(data.name, data.root, data.val_split, data.layout)


def _check_command(data: DataConfig) -> str:
    place = "" if data.root is None else f" --root {data.root}"
    if data.name == "folder" and data.root is not None:
        return f"meanshifter data check {data.root}{data.layout.options()}"
    return f"meanshifter data check {data.name}{place}"


def _calibrate(model: Segmenter, stream: SampleStream, count: int) -> None:
    """Give the mean shift block the bandwidth that its configuration asks for, on the first crops of the training."""
    if model.mean_shift is None or model.config.mean_shift is None or model.config.mean_shift.neighbors is None:
        return
    images = torch.stack([stream.sample(position)[0] for position in range(count)])
    with torch.no_grad():
        tokens, grid = model.eval().encode(images.to(model.device))
        model.mean_shift.calibrate(model.mean_shift_input(tokens), grid)
    model.train()


def _feed(config: TrainConfig, stream: SampleStream, start: int, device: torch.device, share: Share) -> Iterator[Batch]:
    start, stop = start * config.accumulate, config.steps * config.accumulate
    if config.data.on_device:
        return resident_batches(stream, device, batch_size=config.batch_size, start=start, stop=stop, share=share)
    workers = config.data.workers
    return batches(stream, batch_size=config.batch_size, start=start, stop=stop, workers=workers, share=share)


def _fabric(config: TrainConfig) -> Fabric:
    return create_fabric(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        precision=PRECISIONS[config.precision],
    )


def _set_attention(model: Segmenter, config: TrainConfig, device: torch.device) -> None:
    tokens = math.prod(-(-side // model.patch_size) for side in config.augment.crop)
    layers = len(model.encoder.vit.blocks)
    size = {"images": config.batch_size, "heads": model.encoder.heads, "tokens": tokens, "layers": layers}
    model.encoder.set_attention(fused=fused_attention_pays(device, config.precision, **size))


def _compiled(model: Segmenter) -> nn.Module:
    compiled: Any = torch.compile(model)
    return cast(nn.Module, compiled)


def restore(
    run: RunFolder, model: Segmenter, optimizer: Optimizer, average: WeightAverage | None, *, speaks: bool
) -> Progress:
    """Load the newest checkpoint into model, optimiser and average; where the run had got to.

    The start where the run stopped before its first checkpoint. Where checkpoints/best is gone, the best of the
    evaluations to come is; `speaks` says so.

    Raises:
        InputError: a checkpoint that is damaged or does not fit.
    """
    loaded = run.load_state()
    if loaded is None:
        return Progress()
    state, progress = loaded
    try:
        unpack(state, model, optimizer)
        if average is not None:
            weights = {
                key.removeprefix("average."): value for key, value in state.items() if key.startswith("average.")
            }
            average.average.load_state_dict(weights)
    except (RuntimeError, KeyError, ValueError) as error:
        text = " ".join(str(error).split())
        last = run.checkpoint("last")
        raise InputError(f"{last}: does not fit this recipe ({text}); start another run with --out") from error
    if progress.best > -math.inf and not run.has("best"):
        if speaks:
            warnings.warn(
                f"{run.checkpoint('best')}: missing, though an evaluation scored {progress.best:.2f}; the best of "
                "those to come takes its place",
                stacklevel=2,
            )
        progress.best = -math.inf
    return progress
