"""The page of a run: its sections from what the run recorded and what one pass over the validation images found."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import yaml
from markupsafe import Markup, escape

from meanshifter.analysis.charts import Bin, line_chart, matrix_chart, reliability_diagram, sparkline
from meanshifter.analysis.html import Page
from meanshifter.analysis.image_scores import number
from meanshifter.analysis.report_pictures import add_confusion_pictures, add_images, add_samples, confusion_name
from meanshifter.analysis.report_scores import (
    ImageScores,
    confusion_order,
    rank_confusions,
)
from meanshifter.analysis.run_record import SCORES, RunRecord
from meanshifter.data.labels import Color, LabelSpace
from meanshifter.errors import counted, printable
from meanshifter.evaluation.metrics import Confusion, mean_known
from meanshifter.training.display import spell
from meanshifter.training.sections import HELD_OUT

CONFUSIONS: Final = 10
"""Confusions that are listed."""
MATRIX: Final = 40
"""Most classes of the confusion matrix."""
LONG: Final = 40
"""Classes from which the complete table is folded."""
ENDS: Final = 10
"""Best and worst classes of a long table that are always shown."""


@dataclass(frozen=True)
class Report:
    """What a report shows, and why parts of it are missing."""

    record: RunRecord
    scores: ImageScores | None
    reason: str
    """Why there are no scores; "" if there are."""
    options: str
    """Options of `meanshifter report` beside the run, for the commands."""


def report_page(report: Report) -> Page:
    """The page, except for the time that it took."""
    record = report.record
    page = Page(f"Report of {record.path.resolve().name}")
    page.text(_summary(record))
    page.facts(_facts(report))
    page.contents()
    _add_curves(page, record)
    _add_scores(page, report)
    _add_confusions(page, report)
    if report.scores is not None:
        _add_calibration(page, report)
        add_images(page, report.scores)
    add_samples(page, record)
    _add_speed(page, report)
    _add_protocol(page, report)
    return page


def _summary(record: RunRecord) -> str:
    """What was trained on what, and how far it got."""
    config = record.config
    data = config.data.name if config.data.root is None else f"{config.data.name} {config.data.root}"
    model = config.model.preset if config.model.init_from is None else f"the model {config.model.init_from}"
    if config.model.init_from is None and config.model.encoder is not None:
        model += f", encoder {config.model.encoder}"
    height, width = config.augment.crop
    images = ""
    if record.data is not None:
        train = record.data.train
        images = f"{counted(len(train.names), 'image')} with {train.label_space.num_classes:,} classes of "
    folds = f"{counted(len(record.logs), 'run')}, one per fold; each: " if record.is_cross_validation else ""
    return (
        f"{folds}{model}, trained on {images}{data} ({config.data.train_split}) in steps of {config.crops_per_step} "
        f"crops of {height}×{width} pixels. {_status(record)}"
    )


def _status(record: RunRecord) -> str:
    done, steps = record.steps, record.config.steps
    if done >= steps:
        return f"All {steps:,} steps are done."
    early = ", or ended early (evaluation.patience)" if record.config.evaluation.patience is not None else ""
    return (
        f"{done:,} of {steps:,} steps are logged: the run is still in progress or was stopped{early}. This page shows "
        "what is there."
    )


def _facts(report: Report) -> dict[str, str]:
    record, scores = report.record, report.scores
    facts = {}
    if scores is not None:
        facts = {name: number(getattr(scores.result, name)) for name in SCORES}
        facts["boundary IoU"] = number(mean_known(scores.details.boundary_IoU))
        facts |= {f"mIoU ≤ {px} px": number(value) for px, value in scores.details.near_mIoU.items()}
        if scores.details.reliability is not None:
            facts["calibration error"] = number(scores.details.reliability.ECE)
        facts["scored images"] = f"{len(scores.images):,}"
    elif record.evaluations:
        facts = {f"{name} (last)": number(_value(record.evaluations[-1], name)) for name in SCORES}
    facts["steps"] = f"{record.steps:,}"
    if (seconds := record.training_seconds) is not None:
        facts["training time"] = spell(seconds)
    return facts


def _value(line: Mapping[str, object], name: str) -> float:
    value = line.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def _add_curves(page: Page, record: RunRecord) -> None:
    page.heading("Training")
    charts = {}
    for key, unit, caption in (
        ("loss", "loss", "Mean loss since the line before"),
        ("lr", "learning rate", "Learning rate of the step"),
    ):
        series = {_series(unit, name): points for name, points in record.points(key).items() if points}
        if series:
            charts[caption] = line_chart(series, unit=unit, log=key == "loss", from_zero=key == "lr")
    scored = [(caption, found) for caption, found in _score_series(record).items() if found]
    several = any(len(points) > 1 for _, found in scored for points in found.values())
    if several:
        charts |= {caption: line_chart(found, unit="percent") for caption, found in scored}
    if charts:
        page.charts(charts)
    else:
        page.text("Not shown: curves. metrics.jsonl has no lines yet; the first comes after log_every steps.")
    if not scored:
        page.text(
            "Not shown: scores over training. The run has not been evaluated yet, which evaluation.interval schedules."
        )
    elif not several:
        page.text(
            "Not shown: scores over training. There is a single evaluation so far (evaluation.interval): "
            f"{_last_scores(record)}."
        )


def _series(unit: str, name: str) -> str:
    return unit if name == "" else name


def _score_series(record: RunRecord) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """By caption of a chart: the scores over steps of a run, or the mIoU of each fold."""
    if record.is_cross_validation:
        folds = {name: points for name, points in record.points("mIoU").items() if points}
        return {"mIoU on the validation images of each run": folds}
    near = {f"boundary_{px}": f"mIoU ≤ {px} px" for px in (9, 3)}
    charts = {
        "Scores on the validation images": {name: name for name in SCORES},
        "mIoU of all pixels, and of those within 9 and 3 pixels of another class": {"mIoU": "mIoU", **near},
    }
    return {
        caption: {title: points for name, title in titles.items() if (points := record.points(name)[""])}
        for caption, titles in charts.items()
    }


def _last_scores(record: RunRecord) -> str:
    """The last evaluation of each run, as text."""
    lines = {name: [line for line in lines if "mIoU" in line] for name, lines in record.logs.items()}
    return "; ".join(
        f"{name}{', ' if name else ''}step {found[-1]['step']:,}: mIoU {number(_value(found[-1], 'mIoU'))}"
        for name, found in lines.items()
        if found
    )


def _add_scores(page: Page, report: Report) -> None:
    page.heading("Classes")
    scores, evaluations = report.scores, report.record.evaluations
    if scores is None:
        page.text(f"Not shown: scores of a checkpoint. {report.reason}")
        if not evaluations:
            return
        last, space = evaluations[-1], None
        classes = {name: _value(last["IoU"], name) for name in last.get("IoU", {})}
        rows = [[name, number(iou), *_history(evaluations, name)] for name, iou in classes.items()]
        page.table(
            ["class", "IoU", *_history_header(evaluations)], rows, caption=f"In percent, at step {last['step']:,}"
        )
        return
    space, total = scores.dataset.label_space, max(int(scores.result.truth.sum()), 1)
    header = ["class", "pixels", "IoU", "Acc", *_history_header(evaluations)]
    rows = [
        [
            _swatch(name, color),
            f"{score.pixels / total:.2%}".replace("%", " %"),
            number(score.IoU),
            number(score.Acc),
            *_history(evaluations, name),
        ]
        for (name, score), color in zip(scores.result.per_class.items(), space.palette, strict=True)
    ]
    caption = f"In percent, of {scores.source} on {counted(len(scores.images), 'image')}"
    if len(rows) <= LONG:
        page.table(header, rows, caption=caption)
    else:
        values = np.array([score.IoU for score in scores.result.per_class.values()])
        order = [int(k) for k in np.argsort(-values, kind="stable") if not math.isnan(values[k])]
        page.table(header, [rows[k] for k in order[:ENDS]], caption=f"{caption}: the best {ENDS} classes")
        page.table(header, [rows[k] for k in order[-ENDS:]], caption=f"The worst {ENDS} classes")
        page.table(header, rows, folded=f"All {len(rows)} classes")
    if absent := scores.result.absent:
        page.text(f"In neither labels nor predictions, and excluded from means: {', '.join(absent)}.")
    _add_details(page, scores)


def _add_details(page: Page, scores: ImageScores) -> None:
    """Scores at boundaries, and by the size and thickness of regions."""
    details = scores.details
    near = [f"{number(value)} within {px}" for px, value in details.near_mIoU.items()]
    page.text(
        f"Boundaries: mIoU is {' and '.join(near)} pixels of another class, and {number(scores.result.mIoU)} among all "
        f"pixels. Boundary IoU (Cheng et al., CVPR 2021) is {number(mean_known(details.boundary_IoU))}."
    )
    groups = (("area in pixels", details.by_area), ("thickness in pixels", details.by_thickness))
    page.table(
        ["regions", "mIoU", "mAcc", "labeled pixels", "labeled regions"],
        [
            [f"{kind} {name}", number(found.mIoU), number(found.mAcc), f"{found.pixels:,}", f"{found.regions:,}"]
            for kind, bins in groups
            for name, found in bins.items()
        ],
        caption="By the labeled region that a pixel is in; its thickness is the side of the largest square inside it",
    )


def _add_calibration(page: Page, report: Report) -> None:
    scores = report.scores
    if scores is None or not scores.result.truth.sum():
        return
    page.heading("Calibration")
    found = scores.details.reliability
    if found is None:
        page.text("Not shown: how sure the models were. A cross-validation keeps label maps without confidence.")
        return
    bins = [
        Bin(confidence / 100, accuracy / 100, int(pixels))
        for confidence, accuracy, pixels in zip(found.confidence, found.accuracy, found.pixels, strict=True)
    ]
    caption = "Accuracy over confidence: on the dashed line, the model is right as often as it is sure"
    page.charts({caption: reliability_diagram({"model": bins})})
    fitted = scores.temperature != 1
    page.text(
        f"Of all labeled pixels {number(found.mean_accuracy)} % are right, and the model is "
        f"{number(found.mean_confidence)} % sure on average. Expected calibration error (Guo et al., ICML 2017, "
        f"{found.bins} bins): {number(found.ECE)} points. "
        + (f"Its temperature is {scores.temperature:.3f}." if fitted else "Its temperature is fitted by:")
    )
    if not fitted:
        page.code(f"meanshifter calibrate {shlex.quote(str(report.record.path))}")


def _swatch(name: str, color: Color) -> Markup:
    style = f"background:rgb({','.join(map(str, color))})"
    return Markup('<span class="swatch" style="{}"></span>{}').format(Markup(style), escape(printable(name)))


def _history_header(evaluations: Sequence[Mapping[str, object]]) -> list[str]:
    return ["IoU over training", "first", "last"] if len(evaluations) > 1 else []


def _history(evaluations: Sequence[Mapping[str, object]], name: str) -> list[str]:
    """The IoU of a class at the evaluations of a run, as a line on a scale from 0 to 100, and its ends."""
    if len(evaluations) <= 1:
        return []
    lines = (line.get("IoU") for line in evaluations)
    values = [_value(line, name) if isinstance(line, Mapping) else math.nan for line in lines]
    return [sparkline(values), number(values[0]), number(values[-1])]


def _add_confusions(page: Page, report: Report) -> None:
    scores = report.scores
    if scores is None:
        return
    page.heading("Confusions")
    confusion, space = scores.result.confusion, scores.dataset.label_space
    wrong = int(confusion.sum() - confusion.trace())
    if wrong == 0:
        page.text("Not shown: no labeled pixel is wrong.")
        return
    page.charts({_matrix_caption(confusion): _matrix(confusion, space)})
    costs = rank_confusions(confusion, CONFUSIONS)
    page.text(
        "The confusions that cost most: each row states by how many points mIoU would rise if these pixels were "
        "predicted right and nothing else changed."
    )
    truth = scores.result.truth
    page.table(
        ["label → prediction", "points of mIoU", "pixels", "of the class", "of all wrong pixels"],
        [
            [
                confusion_name(cost, space),
                f"{cost.points:.2f}",
                f"{cost.pixels:,}",
                f"{100 * cost.pixels / truth[cost.label]:.1f} %",
                f"{100 * cost.pixels / wrong:.1f} %",
            ]
            for cost in costs
        ],
    )
    add_confusion_pictures(page, scores, costs)


def _matrix_caption(confusion: Confusion) -> str:
    K, shown = len(confusion), len(_in_matrix(confusion))
    part = "" if shown == K else f"; the {shown} classes with most wrong pixels of {K}"
    return (
        f"Rows: labels, in percent of their pixels; columns: predictions. Classes that are confused are neighbors{part}"
    )


def _in_matrix(confusion: Confusion) -> list[int]:
    """The classes of the matrix: those in labels or predictions, at most `MATRIX` with most wrong pixels."""
    wrong = confusion.sum(0) + confusion.sum(1) - 2 * confusion.diagonal()
    present = np.flatnonzero(confusion.sum(0) + confusion.sum(1))
    return sorted(present[np.argsort(-wrong[present], kind="stable")][:MATRIX].tolist())


def _matrix(confusion: Confusion, space: LabelSpace) -> Markup:
    chosen = np.array(_in_matrix(confusion))
    order = chosen[confusion_order(confusion[np.ix_(chosen, chosen)])]
    truth = confusion.sum(1)[order, None]
    shares = np.divide(
        confusion[np.ix_(order, order)], truth, out=np.full((len(order),) * 2, math.nan), where=truth > 0
    )
    return matrix_chart(shares, [space.names[k] for k in order], rows="labels", columns="predictions")


def _add_speed(page: Page, report: Report) -> None:
    record, scores = report.record, report.scores
    page.heading("Speed and memory")
    charts = {}
    for key, unit, factor, caption in (
        ("images_per_second", "images/s", 1.0, "Training crops per second"),
        ("data_wait", "percent", 100.0, "Share of the time spent waiting for data"),
        ("peak_memory_gb", "GB", 1.0, "Peak memory so far: of the GPU, or of the main process on a CPU"),
    ):
        series = {
            _series(caption, name): [(step, factor * value) for step, value in points]
            for name, points in record.points(key).items()
            if points
        }
        if series:
            charts[caption] = line_chart(series, unit=unit, from_zero=True)
    if charts:
        page.charts(charts)
    if not any(record.points("peak_memory_gb").values()):
        page.text(
            "Not shown: peak memory, which metrics.jsonl does not hold; runs of earlier versions did not record it."
        )
    if scores is not None and scores.predicted:
        page.text(
            f"Scoring for this page: {1000 * scores.seconds / len(scores.images):,.0f} ms per image, in "
            f"{spell(scores.seconds)}, with reading and everything that this page needs of it."
        )


def _add_protocol(page: Page, report: Report) -> None:
    record, scores = report.record, report.scores
    page.heading("Protocol and commands")
    if scores is not None:
        page.code(f"{scores.source}: {scores.result.protocol}")
    page.code("\n".join(commands(report)))
    plain = yaml.safe_dump(record.config.to_dict(), sort_keys=False, allow_unicode=True)
    page.code(plain, folded="All settings (config.yaml)")


def commands(report: Report) -> list[str]:
    """The commands that repeat the run and its scores, and use the model."""
    record, data = report.record, report.record.config.data
    run = shlex.quote(str(record.path))
    config = f"{run}/config.yaml"
    if record.is_cross_validation:
        config = f"{run}/fold0/config.yaml --data.fold null"
    lines = [f"meanshifter train {config} --out {shlex.quote(f'{record.path}-again')}"]
    if data.val_split not in (None, HELD_OUT) and not record.is_cross_validation:
        lines.append(f"meanshifter evaluate {run} {_evaluated(record)}")
    lines.append(f"meanshifter predict {run} IMAGE… --out DIR")
    lines.append(f"meanshifter report {run}{report.options}")
    return lines


def _evaluated(record: RunRecord) -> str:
    """The dataset of a run's evaluations, with the options that give the same scores."""
    config, data = record.config, record.config.data
    words = f"{data.name}" if data.root is None else f"{data.name} --root {shlex.quote(data.root)}"
    if data.name == "folder" and data.root is not None:
        words = f"{shlex.quote(data.root)}{data.layout.options()}"
    words += f" --split {data.val_split}"
    words += "" if config.precision in ("fp32", "auto") else f" --precision {config.precision}"
    return words if config.evaluation.limit is None else f"{words} --limit {config.evaluation.limit}"
