"""The training loop, readable from top to bottom: `train`, `fit`, evaluation, and one optimizer step.

A step's crops are split over processes, over `accumulate` passes, and into smaller parts if memory runs out. The loss
of each part is divided by the total of the step (labeled pixels, or all pixels), so that every split gives the same
gradient up to rounding. Dice, Lovász and the hardest pixels refer to the crops of one part, and so depend on the split.

Glossary: B crops in a batch, K classes, H W pixels of a crop, h w its patch grid.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from meanshifter.data.datasets import Dataset, Sample
from meanshifter.data.labels import Labels
from meanshifter.errors import InputError, RunError, counted, is_out_of_memory, one_line, summarize_error
from meanshifter.evaluation.details import RADII
from meanshifter.evaluation.diagnostics import boundary_figures, diagnose_model, near_boundaries
from meanshifter.evaluation.evaluate import check_classes, count_images, protocol_of, sum_counts
from meanshifter.evaluation.metrics import Confusion, confusion_matrix
from meanshifter.evaluation.result import Result
from meanshifter.inference.predictor import Predictor
from meanshifter.model.segmenter import Segmenter
from meanshifter.ops import upsampled_loss
from meanshifter.ops.losses import loss_count
from meanshifter.ops.pixel_weights import boundary_pixels
from meanshifter.training.budget import plan, read_plan
from meanshifter.training.config import TrainConfig
from meanshifter.training.data import Batch
from meanshifter.training.display import Display, Interrupt, Log, Pace, Stopped, advice, summary
from meanshifter.training.loggers import Pixels, side_by_side
from meanshifter.training.optimizer import set_learning_rate, step_seed
from meanshifter.training.parsing import config_of
from meanshifter.training.setup import Feed, Learner, Setup, prepare, resolve, supervised_steps, with_module
from meanshifter.training.state import RunFolder
from meanshifter.utils.distributed import Processes

RESUME_HINT = "resume with the same command and --resume"
PROBE = 3
"""Images that are scored to time an evaluation."""


@dataclass(frozen=True)
class Trained:
    """The outcome of a finished training run."""

    path: Path
    """The run folder; `load_model(path)` reads its best checkpoint."""
    result: Result
    """Scores of the final weights on the validation split."""
    best: float
    """Best mIoU of all evaluations, that of checkpoints/best."""
    seconds: float
    """Wall time of this process, including preparation and evaluations; without earlier, resumed parts of the run."""
    is_main_process: bool
    """Whether this process wrote the run folder."""


def train(
    data: str | Path | Mapping[str, Any] | TrainConfig | None = None,
    *,
    recipe: str | Path = "folder",
    resume: bool = False,
    quiet: bool = False,
    encoder: nn.Module | None = None,
    **fields: Any,
) -> Trained:
    """Train a model into a run folder: `train("DIR", recipe="folder", out="runs/mine", steps=2000)`.

    With several devices, every process runs this function; Fabric starts missing processes by running the program
    again.

    Args:
        data: the dataset folder (`data.root`), a mapping of fields of that section, or a complete `TrainConfig`
            instead of recipe and fields.
        recipe: a name listed by `meanshifter train --list`, or a YAML file.
        resume: continue the run in the run folder, to the same weights as without the interruption.
        quiet: show no progress.
        encoder: a module of one's own, see `meanshifter.model.encoder.TokenEncoder`, of which a copy is trained. It
            replaces the recipe's `encoder`, `encoder_args`, `encoder_weights`, `average_corners` and `drop_path`.
        **fields: override fields of the recipe; sections are mappings: `optimizer={"lr": 0.1}`.

    Raises:
        InputError: the configuration or the data are invalid, or the run folder is in use; raised before training.
        RunError: the loss is not finite (checkpoints/last holds the last good weights), the disk is full (the previous
            checkpoint is intact), or not even a single crop fits into memory.
        KeyboardInterrupt: Ctrl-C or SIGTERM, once the current step is done and saved.
    """
    config = data if isinstance(data, TrainConfig) else config_of(data, recipe, fields)
    return train_config(config, resume=resume, quiet=quiet, encoder=encoder)[0]


def train_config(
    config: TrainConfig, *, resume: bool = False, quiet: bool = False, encoder: nn.Module | None = None
) -> tuple[Trained, Learner]:
    """`train` a configuration; also returns the learner, which knows the device and the processes."""
    began = time.perf_counter()
    asked = config.minutes
    config = config if encoder is None else with_module(config, encoder)
    config = resolve(read_plan(config) if resume else config)
    setup = prepare(config, resume=resume, encoder=encoder)
    main = setup.learner.processes.is_main
    planned = asked is not None and config.minutes is None
    notes = [f"minutes {asked:g}: using the number of steps in config.yaml"] if planned else []
    if config.minutes is None and config.optimizer.warmup >= config.steps:
        warmup = f"{config.optimizer.warmup} of {counted(config.steps, 'step')}"
        notes.append(f"optimizer.warmup: {warmup}, so the learning rate never reaches optimizer.lr; lower it")
    try:
        result = fit(config, setup, Display(setup.run.path.name, quiet=quiet or not main), notes)
    finally:
        setup.run.release()
    best, seconds = setup.learner.state.progress.best, time.perf_counter() - began
    return Trained(setup.run.path, result, best, seconds, main), setup.learner


def fit(config: TrainConfig, setup: Setup, display: Display, notes: Sequence[str] = ()) -> Result:
    """Train the remaining steps, with evaluations and checkpoints; returns the final scores."""
    run, learner, feed, val_set, _ = setup
    state, processes, result = learner.state, learner.processes, None
    with Log(run, state, processes, config) as log, Interrupt(is_main=processes.is_main) as interrupt, display:
        for line in (*summary(config, setup), *notes):
            display.say(one_line(line))
        _fill_tokens(setup, log, interrupt, display)
        config, seconds = _planned(config, setup, log, interrupt, display)
        display.begin(config.steps, state.progress.step, evaluate_every=config.evaluation.interval, evaluation=seconds)

        def evaluate() -> Result:
            return evaluate_step(config, setup, log, interrupt, display)

        if not state.progress.scored:  # the run stopped between a checkpoint and its evaluation
            result = evaluate()
        for step in remaining_steps(config, setup, display):
            waiting = _saved_while_waiting(config, run, learner, interrupt)
            lr, crops = take_step(config, run, learner, feed, step, log, waiting, requested=bool(interrupt.requested))
            done = state.progress.step
            # a single process stops immediately; several processes stop together after the next step
            stop = crops.stop or (processes.count == 1 and bool(interrupt.requested))
            _show_progress(config, learner, val_set, log, display)
            if is_due(done, config.log_every, config.steps):
                display.say_numbers(done, log.write(lr))
            if is_due(done, config.evaluation.interval, config.steps):
                result = evaluate()
            elif stop or is_due(done, config.save_every, config.steps):
                run.save_last(state, processes)
                log.meter.restart()
            if stop and done < config.steps:
                interrupt.stop(f"stopped after step {done} of {config.steps}; {RESUME_HINT}")
    if result is None:  # the resumed run was already complete, or had stopped early
        result, _ = score(config, state.evaluated, val_set, processes)
    return result


def take_step(
    config: TrainConfig,
    run: RunFolder,
    learner: Learner,
    feed: Feed,
    step: int,
    log: Log,
    waiting: AbstractContextManager[object] | None = None,
    *,
    requested: bool = False,
) -> tuple[float, Crops]:
    """Perform training step `step` (from 0), fetching its crops within `waiting`; returns learning rate and crops.

    Raises:
        RunError: loss or gradient is not finite; raised before the weights change, and the crops are kept.
    """
    torch.manual_seed(step_seed(config.seed, step))  # stochastic depth depends on the step, so that runs can resume
    lr = set_learning_rate(learner.optimizer, config.optimizer, step, config.steps)
    with log.meter.waiting(), waiting or nullcontext():
        crops = next_crops(config, learner, feed, requested=requested)
    loss = take_gradient(config, learner, crops)
    check_finite(run, learner, "loss", loss, crops)
    max_norm = math.inf if config.optimizer.clip_norm is None else config.optimizer.clip_norm
    norm = learner.fabric.clip_gradients(
        learner.network, learner.optimizer, max_norm=max_norm, error_if_nonfinite=False
    )
    if config.precision != "fp16":  # loss scaling skips steps whose gradient is not finite
        check_finite(run, learner, "gradient", norm, crops)
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    state = learner.state
    if state.average is not None:
        state.average.update(state.model.parameters(), state.progress.step, state.model.buffers())
    state.progress.step += 1
    log.add(loss, config.crops_per_step)
    return lr, crops


def is_due(done: int, every: int, steps: int) -> bool:
    """Whether something is due every `every` steps (0: never), and after the last step."""
    return done == steps or (every > 0 and done % every == 0)


def remaining_steps(config: TrainConfig, setup: Setup, display: Display) -> Iterator[int]:
    """Yield the numbers of the steps that are left, until `evaluation.patience` ends the run, which is printed."""
    progress, patience = setup.learner.state.progress, config.evaluation.patience
    for step in range(progress.step, config.steps):
        if patience is not None and progress.since_best >= patience:
            setup.feed.close()
            display.say(
                f"evaluation.patience {patience}: training ends after step {progress.step} of {config.steps}, as none "
                f"of the last {progress.since_best} evaluations exceeded the best mIoU of {progress.best:.2f}"
            )
            return
        yield step


@contextmanager
def _saved_while_waiting(config: TrainConfig, run: RunFolder, learner: Learner, interrupt: Interrupt) -> Iterator[None]:
    """Let a signal save and end the run while it waits for crops; several processes stop after the step instead."""
    if learner.processes.count > 1:
        yield
        return
    done = learner.state.progress.step
    try:
        with interrupt.immediately(f"stopped after step {done} of {config.steps}; {RESUME_HINT}"):
            yield
    except Stopped:
        run.save_last(learner.state, learner.processes)
        raise


def _fill_tokens(setup: Setup, log: Log, interrupt: Interrupt, display: Display) -> None:
    """Compute the tokens of all training images if they are cached; files of an interrupted run are kept."""
    if setup.feed.tokens is not None:
        with interrupt.immediately(f"stopped while computing tokens; {RESUME_HINT}"):
            setup.feed.tokens.fill(display.bar.update)
        log.meter.restart()


def _planned(
    config: TrainConfig, setup: Setup, log: Log, interrupt: Interrupt, display: Display
) -> tuple[TrainConfig, float | None]:
    """The configuration with the number of steps for `minutes`, and the seconds per evaluation if measured."""
    if config.minutes is None:
        return config, None
    run, learner, feed, val_set, _ = setup

    def step(number: int) -> None:
        take_step(config, run, learner, feed, number, log)

    display.say("timing the first steps, which are then undone …")
    with interrupt.immediately("stopped while timing the first steps; start again with the same command and --resume"):
        planned, seconds = plan(config, setup, step, lambda: image_seconds(config, learner, val_set))
    log.meter.restart()
    limit = planned.evaluation.limit
    scored = "" if limit == config.evaluation.limit else f" of the first {limit:,} images: all would take too long"
    count = Pace(planned.steps, planned.evaluation.interval).evaluations(planned.steps)
    display.say(
        f"minutes {config.minutes:g}: {counted(planned.steps, 'step')} fit, and {counted(count, 'evaluation')}{scored}"
    )
    return planned, seconds


def _show_progress(config: TrainConfig, learner: Learner, val_set: Dataset, log: Log, display: Display) -> None:
    """Update the bar; once step times are regular, print the estimated total time."""
    done = learner.state.progress.step
    display.step(done, config.log_every)
    if not display.estimates or done == config.steps:
        return
    planned, resumed = display.pace.evaluation is not None, done > display.pace.seen
    if not planned:
        images = count_images(val_set, config.evaluation.limit)
        seconds = image_seconds(config, learner, val_set)
        display.evaluated(seconds * math.ceil(images / learner.processes.count))
        log.meter.restart()
    display.say_estimate(done)
    hint = None if planned or resumed else advice(config, learner.state.model.device, display.pace.whole(done))
    if hint is not None:
        display.say(hint)


def evaluate_step(config: TrainConfig, setup: Setup, log: Log, interrupt: Interrupt, display: Display) -> Result:
    """Run an evaluation. The state before it is saved, so that a run which stops here resumes with the evaluation."""
    run, learner, _, val_set, _ = setup
    state, processes, progress = learner.state, learner.processes, learner.state.progress
    progress.scored = False
    run.save_last(state, processes)
    began = time.perf_counter()
    hint = f"stopped after step {progress.step} of {config.steps}, before its evaluation; {RESUME_HINT}"
    pictures: dict[str, Pixels] = {}
    with interrupt.immediately(hint):
        result, boundary = score(config, state.evaluated, val_set, processes, pictures=pictures)
        figures = step_figures(config, state.evaluated, val_set) if processes.is_main else {}
    seconds = time.perf_counter() - began
    display.say(f"step {progress.step}: mIoU {result.mIoU:.2f}, mAcc {result.mAcc:.2f}, aAcc {result.aAcc:.2f}")
    scores = {name: getattr(result, name) for name in ("mIoU", "mAcc", "aAcc")}
    log.record(**scores, **boundary, IoU={name: score.IoU for name, score in result.per_class.items()}, **figures)
    log.show(pictures)
    log.write_classes(result)
    better = result.mIoU > progress.best  # False for NaN
    progress.since_best = processes.broadcast(lambda: 0 if better else progress.since_best + 1)
    run.save_best(state, result.mIoU, processes)
    progress.scored = True
    run.save_last(state, processes)
    log.meter.restart()
    display.evaluated(seconds)
    return result


def score(
    config: TrainConfig,
    model: Segmenter,
    val_set: Dataset,
    processes: Processes,
    limit: int | None = None,
    pictures: dict[str, Pixels] | None = None,
) -> tuple[Result, dict[str, float]]:
    """Scores on the first `limit` validation images (None: the configured limit), preprocessed as configured.

    Also returns boundary_3 and boundary_9: mIoU in percent of the pixels within 3 and 9 of another class. The first
    `log_images` images of this process are drawn into `pictures`.
    """
    limit = config.evaluation.limit if limit is None else limit
    predictor, space = _predictor(config, model), val_set.label_space
    check_classes(model.label_space, space, f"{val_set.name} {val_set.split}")
    layers, K, ignore = predictor.mean_shift_layers, space.num_classes, space.ignore

    def count(sample: Sample, maps: list[Labels]) -> Confusion:
        if pictures is not None and len(pictures) < config.log_images:
            pictures[f"val/{sample.name}"] = side_by_side(sample, maps[0], space)
        near = near_boundaries(sample.labels, maps, K, ignore)[0]
        return np.concatenate([confusion_matrix(sample.labels, maps[0], K, ignore=ignore)[None], near])

    shape = (1 + len(RADII), K, K)
    totals, ignored = sum_counts(predictor, val_set, [layers], shape, count, limit=limit, processes=processes)
    result = Result(totals[0], space.names, protocol_of(predictor, val_set, limit=limit), ignored=ignored)
    return result, boundary_figures(totals[1:])


def image_seconds(config: TrainConfig, learner: Learner, val_set: Dataset) -> float:
    """Seconds per image of an evaluation in this process alone; the first image is not timed."""
    model, count = learner.state.evaluated, min(PROBE, count_images(val_set, config.evaluation.limit))
    score(config, model, val_set, Processes(), limit=1)
    began = time.perf_counter()
    score(config, model, val_set, Processes(), limit=count)
    return (time.perf_counter() - began) / count


def step_figures(config: TrainConfig, model: Segmenter, val_set: Dataset) -> dict[str, float]:
    """Diagnostics of the mean shift steps on two validation images, such as step1/neighbors; empty without steps."""
    if not model.has_steps:
        return {}
    predictor = _predictor(config, model)
    rows = diagnose_model(predictor, val_set, predictor.mean_shift_layers, images=2, limit=config.evaluation.limit)
    named = {f"step{n}/{name}": value for n, row in enumerate(rows) for name, value in row.items()}
    return {name: value for name, value in named.items() if math.isfinite(value)}


def _predictor(config: TrainConfig, model: Segmenter) -> Predictor:
    return Predictor(model, precision=config.precision, **config.evaluation.reading)


@dataclass(frozen=True)
class Crops:
    """One process's crops of a step."""

    parts: list[Batch]
    """One batch per accumulation pass."""
    total: float
    """Divisor of the step's summed loss, over all processes."""
    stop: bool
    """Whether any process was asked to stop after this step."""


def next_crops(config: TrainConfig, learner: Learner, feed: Feed, *, requested: bool) -> Crops:
    """Fetch the crops of the next step; `requested`: whether this process was asked to stop."""
    parts, count, failure = [], 0.0, None
    try:
        for _ in range(config.accumulate):
            parts.append(next(feed))
            count += _count(config, learner, parts[-1][1])
    except (InputError, RunError) as error:
        failure = error
    facts = torch.tensor([count, float(requested), float(failure is not None)], dtype=torch.float64)
    total, stop, failed = learner.processes.sum(facts).tolist()
    if failed:
        learner.processes.all_agree(failure)
    return Crops(parts, total, stop > 0)


def take_gradient(config: TrainConfig, learner: Learner, crops: Crops) -> Tensor:
    """Compute the gradient of the step; returns this process's part of the loss.

    If memory runs out, parts are halved for the rest of the run, and the step starts again.
    """
    learner.drop_path.draw(config.crops_per_step)
    while True:
        loss, failure = None, None
        try:
            loss = _forward_and_backward(config, learner, crops)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failure = summarize_error(error)
        if not learner.processes.sum(torch.tensor(int(failure is not None))):
            break
        learner.optimizer.zero_grad()
        _halve(config, learner, failure)
    assert loss is not None  # no process ran out of memory
    learner.processes.sum_gradients(learner.state.model.parameters())
    return loss


def _forward_and_backward(config: TrainConfig, learner: Learner, crops: Crops) -> Tensor:
    """Forward and backward pass of this process's crops, part by part; returns the summed loss."""
    fabric, device = learner.fabric, learner.state.model.device
    total = torch.zeros((), device=device)
    steps = supervised_steps(config, learner.state.model)
    supervised = [] if steps is None else [steps]
    for part, offset in _parts(config, learner, crops):
        images, labels = fabric.to_device(part)
        learner.drop_path.use(slice(offset, offset + len(images)), device)
        share = 0.0 if crops.total == 0 else _count(config, learner, part[1]) / crops.total
        shares = share, len(images) / config.crops_per_step
        with fabric.no_backward_sync(learner.network):  # gradients are reduced once, when all processes are done
            logits = learner.network(images, *supervised)
            several = logits if supervised else [logits]
            losses = [crop_loss(each, labels, config, learner, shares) for each in several]
            loss = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
            fabric.backward(loss)
        total += loss.detach()
    return total


def _parts(config: TrainConfig, learner: Learner, crops: Crops) -> Iterator[tuple[tuple[Tensor, Tensor], int]]:
    """Images and labels in parts of at most `learner.crops_at_once`, each with its offset in the step."""
    for number, (images, labels, _) in enumerate(crops.parts):
        place = (number * learner.processes.count + learner.processes.rank) * config.batch_size
        for start in range(0, len(images), learner.crops_at_once):
            some = slice(start, start + learner.crops_at_once)
            yield (images[some], labels[some]), place + start


def _halve(config: TrainConfig, learner: Learner, failure: str | None) -> None:
    if learner.state.model.device.type == "cuda":
        torch.cuda.empty_cache()
    before = learner.crops_at_once
    if before == 1:
        reason = "another process" if failure is None else failure
        raise RunError(
            f"out of memory with a single crop of {config.augment.crop} ({reason}); use a smaller augment.crop, "
            "precision bf16, or a device with more memory"
        )
    learner.crops_at_once = -(-before // 2)
    if learner.processes.is_main:
        gradient = "the same gradient"
        if config.loss.is_per_pass:
            gradient = (
                "loss.dice, loss.lovasz and loss.ohem_share over those crops; lower batch_size to make runs comparable"
            )
        warnings.warn(
            f"out of memory with {before} crops per pass: continuing with {learner.crops_at_once} crops per pass and "
            f"{gradient}",
            stacklevel=2,
        )


def _count(config: TrainConfig, learner: Learner, labels: Tensor) -> float:
    """Divisor of the summed loss of these labels."""
    space, loss = learner.state.model.label_space, config.loss
    weight = torch.ones(space.num_classes) if learner.class_weight is None else learner.class_weight
    settings: dict[str, Any] = {"ignore_index": space.ignore, "reduction": loss.reduction}
    if loss.boundary_weight != 1 and loss.reduction == "mean_valid":
        near = boundary_pixels(labels, loss.boundary_radius, space.ignore)
        settings |= {"near": near, "near_weight": loss.boundary_weight}
    return float(loss_count(labels, weight.to(labels.device), **settings))


def crop_loss(
    logits: Tensor, labels: Tensor, config: TrainConfig, learner: Learner, shares: tuple[float, float]
) -> Tensor:
    """This part's contribution to the loss of the step, from patch logits (B, K, h, w) and labels (B, H, W).

    Sums over pixels count by the part's share of the step's divisor, Dice and Lovász by its share of the step's crops.
    """
    model, terms, (of_pixels, of_crops) = learner.state.model, config.loss.terms, shares
    if mixed := config.loss.dice > 0 or config.loss.lovasz > 0:
        terms |= {name: terms[name] * of_pixels for name in ("cross_entropy", "focal")}
        terms |= {name: terms[name] * of_crops for name in ("dice", "lovasz")}
    loss = upsampled_loss(
        logits,
        labels,
        padded_size=(logits.shape[-2] * model.output_stride, logits.shape[-1] * model.output_stride),
        ignore_index=model.label_space.ignore,
        weight=learner.class_weight,
        **terms,
    )
    return loss if mixed else loss * of_pixels


def check_finite(run: RunFolder, learner: Learner, what: str, value: Tensor | None, crops: Crops) -> None:
    """Stop before a loss or gradient that is not finite changes the weights, and keep the crops that caused it."""
    if value is None or torch.isfinite(value):
        return
    step, last = learner.state.progress.step + 1, run.checkpoint("last")
    kept = run.keep_batch(step, crops.parts, learner.processes.rank)
    weights = f"last good weights in {last}" if last.exists() else "no checkpoint was written yet"
    raise RunError(
        f"step {step}: the {what} is {value.item()}; stopped before updating the weights. Batch saved to {kept}, "
        f"{weights}; lower optimizer.lr, set optimizer.clip_norm, or use precision fp32"
    )
