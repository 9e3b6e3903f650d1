"""The mistakes that mutated_training.py makes, and the tests that should notice each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """`old` becomes `new` in one file of the training package."""

    file: str
    name: str
    old: str
    new: str
    tests: tuple[str, ...]
    """Files below tests/, without their extension, the quickest first."""


OPTIMIZER = ("training/test_optimizer",)
LOOP = ("training/test_reference", "training/test_step", "training/test_loop")
RESUME = ("training/test_resuming", "training/test_loop")
BATCHES = ("training/test_batches",)
START = ("training/test_start", "training/test_loop")

SURVIVORS: dict[str, str] = {}
"""Mistakes that may go unnoticed, and why."""

MISTAKES = (
    Mistake("optimizer.py", "decay of the average inverted", "weights], 1 - decay)", "weights], decay)", OPTIMIZER),
    Mistake(
        "optimizer.py",
        "no warm-up of the average",
        "decay = min(self.decay, (1 + step) / (10 + step))",
        "decay = self.decay",
        OPTIMIZER,
    ),
    Mistake("optimizer.py", "average a step late", "(1 + step) / (10 + step)", "(2 + step) / (11 + step)", OPTIMIZER),
    Mistake(
        "optimizer.py",
        "head_lr ignored",
        "head_lr = config.lr if config.head_lr is None else config.head_lr",
        "head_lr = config.lr",
        OPTIMIZER,
    ),
    Mistake("optimizer.py", "norms decayed", "parameter.ndim > 1 and not", "not", OPTIMIZER),
    Mistake(
        "optimizer.py",
        "embeddings decayed",
        "parameter.ndim > 1 and not name.endswith(UNDECAYED)",
        "parameter.ndim > 1",
        OPTIMIZER,
    ),
    Mistake("optimizer.py", "power ignored", "(1 - step / steps) ** config.power", "1 - step / steps", OPTIMIZER),
    Mistake(
        "optimizer.py",
        "smallest rate ignored",
        "config.min_lr + (base - config.min_lr) * factor",
        "base * factor",
        OPTIMIZER,
    ),
    Mistake("optimizer.py", "warm-up a step short", "/ (config.warmup + 1)", "/ max(config.warmup, 1)", OPTIMIZER),
    Mistake("optimizer.py", "half a cosine", "math.pi * step / steps", "math.pi * step / (2 * steps)", OPTIMIZER),
    Mistake("optimizer.py", "one rate for all groups", 'group["base_lr"], step', "config.lr, step", OPTIMIZER),
    Mistake("optimizer.py", "momentum fixed", "momentum=config.momentum", "momentum=0.9", OPTIMIZER),
    Mistake(
        "optimizer.py", "betas left out", "AdamW(groups, lr=config.lr, betas=config.betas)", "AdamW(groups)", OPTIMIZER
    ),
    Mistake(
        "optimizer.py", "the head's rate logged", "optimizer.param_groups[0]", "optimizer.param_groups[-1]", OPTIMIZER
    ),
    Mistake(
        "loop.py",
        "rate of the next step",
        "config.optimizer, step, config.steps)",
        "config.optimizer, step + 1, config.steps)",
        LOOP,
    ),
    Mistake("loop.py", "gradient not clipped", "max_norm=max_norm", "max_norm=math.inf", LOOP),
    Mistake(
        "loop.py",
        "average counts from 1",
        "state.model.parameters(), state.progress.step)",
        "state.model.parameters(), state.progress.step + 1)",
        LOOP,
    ),
    Mistake("loop.py", "gradient kept", "    learner.optimizer.zero_grad()\n    state", "    state", LOOP),
    Mistake("loop.py", "depth without the seed", "step_seed(config.seed, step)", "step", LOOP),
    Mistake(
        "display.py", "last loss instead of the mean", "(total + loss.item(), count + 1)", "(loss.item(), 1)", LOOP
    ),
    Mistake("loop.py", "due a step early", "done % every == 0", "(done + 1) % every == 0", LOOP),
    Mistake(
        "loop.py", "gradient not looked at", 'if config.precision != "fp16"', 'if config.precision == "fp16"', LOOP
    ),
    Mistake("loop.py", "loss not looked at", '    check_finite(run, learner, "loss", loss, crops)\n', "", LOOP),
    Mistake("loop.py", "evaluation not owed", "progress.scored = False", "progress.scored = True", LOOP),
    Mistake("loop.py", "best not kept", "    run.save_best(state, result.mIoU, processes)\n", "", LOOP),
    Mistake(
        "loop.py",
        "mean of the parts' means",
        "_count(config, learner, part[1]) / crops.total",
        "len(images) / config.crops_per_step",
        LOOP,
    ),
    Mistake(
        "loop.py", "depth of the first crops", "slice(offset, offset + len(images))", "slice(0, len(images))", LOOP
    ),
    Mistake("loop.py", "classes weigh alike", "weight=learner.class_weight,", "weight=None,", LOOP),
    Mistake(
        "loop.py", "targets not smoothed", "label_smoothing=config.loss.label_smoothing", "label_smoothing=0.0", LOOP
    ),
    Mistake(
        "loop.py",
        "padding stretched",
        "padded_size=(logits.shape[-2] * model.output_stride, logits.shape[-1] * model.output_stride)",
        "padded_size=None",
        LOOP,
    ),
    Mistake(
        "loop.py",
        "gradient kept where memory ran out",
        "        learner.optimizer.zero_grad()\n        _halve",
        "        _halve",
        LOOP,
    ),
    Mistake(
        "optimizer.py",
        "branches not scaled up",
        "self.keep.to(branch.dtype) / (1 - self.rate)",
        "self.keep.to(branch.dtype)",
        LOOP,
    ),
    Mistake("optimizer.py", "kept where it drops", "bernoulli_(1 - path.rate)", "bernoulli_(path.rate)", LOOP),
    Mistake("optimizer.py", "one branch of each block", '("drop_path1", "drop_path2")', '("drop_path1",)', LOOP),
    Mistake("state.py", "best forgotten", 'best, scored = float(facts["best"])', "best, scored = -math.inf", RESUME),
    Mistake("state.py", "lines of the score kept", "(progress.scored or not scored)", "True", RESUME),
    Mistake("state.py", "optimizer may differ", "FREE = (\n", 'FREE = (\n    "optimizer",\n', RESUME),
    Mistake("state.py", "data not compared", "            self._check_data(data)\n", "", RESUME),
    Mistake("state.py", "lost checkpoint not missed", "            self._check_whole(stored)\n", "", RESUME),
    Mistake("state.py", "first checkpoint a step early", "scored or step > first", "scored or step >= first", RESUME),
    Mistake("state.py", "first checkpoint taken for a later one", "return min((count", "return max((count", RESUME),
    Mistake("state.py", "momentum not restored", "self.optimizer.load_state_dict(", "dict(", RESUME),
    Mistake("state.py", "order of images not compared", "if before == after:", "if False:", RESUME),
    Mistake("state.py", "ignored value not compared", "if then.ignore != now.ignore:", "if False:", RESUME),
    Mistake(
        "state.py",
        "raw weights scored",
        "return self.model if self.average is None else self.average.average",
        "return self.model",
        LOOP,
    ),
    Mistake(
        "state.py",
        "the latest of equals not best",
        "if score >= state.progress.best",
        "if score > state.progress.best",
        LOOP,
    ),
    Mistake("setup.py", "stream begins anew", "start, stop = step * config.accumulate,", "start, stop = 0,", RESUME),
    Mistake(
        "setup.py",
        "not calibrated",
        "    if config.model.init_from is None:\n        _calibrate",
        "    if False:\n        _calibrate",
        LOOP,
    ),
    Mistake(
        "setup.py",
        "held out images learned",
        "data.val_pattern, matching=False",
        "data.val_pattern, matching=True",
        LOOP,
    ),
    Mistake(
        "setup.py",
        "classes weighed by the validation split",
        "class_weights(train_set, config",
        "class_weights(val_set, config",
        LOOP,
    ),
    Mistake("data.py", "one shuffle for all epochs", "self.seed, epoch)[turn]", "self.seed, 0)[turn]", BATCHES),
    Mistake("data.py", "one draw for all positions", "(self.seed, position, 1)", "(self.seed, 1)", BATCHES),
    Mistake(
        "data.py",
        "processes overlap",
        "(number * count + rank) * batch_size",
        "(number + rank) * batch_size",
        BATCHES,
    ),
    Mistake(
        "data.py",
        "images in their order",
        "stream.place(position), stream.generator(position)",
        "position, stream.generator(position)",
        ("training/test_loop",),
    ),
    Mistake(
        "data.py",
        "another draw",
        "stream.generator(position)",
        "stream.generator(position + 1)",
        ("training/test_loop",),
    ),
    Mistake("setup.py", "depth of the source", "label_space, drop_path=recipe.drop_path)", "label_space)", START),
    Mistake(
        "setup.py",
        "seed ignored",
        "torch.manual_seed(config.seed)",
        "torch.manual_seed(0)",
        ("training/test_start", *LOOP),
    ),
    Mistake(
        "loop.py",
        "all images scored",
        "shape, count, limit=limit,",
        "shape, count, limit=None,",
        LOOP,
    ),
    Mistake("loop.py", "precision of the scores", "precision=config.precision", 'precision="fp32"', LOOP),
    Mistake(
        "config.py",
        "accumulated crops not counted",
        "self.batch_size * self.accumulate * self.num_processes",
        "self.batch_size * self.num_processes",
        LOOP,
    ),
    Mistake(
        "display.py",
        "second signal waits too",
        "        signal.signal(number, self._before[number])\n        if self._saved",
        "        if self._saved",
        ("training/test_interrupt",),
    ),
)
