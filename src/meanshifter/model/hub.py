"""Model folders for the Hugging Face Hub: weights, configuration, classes, scores and a model card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meanshifter.errors import InputError, one_line, summarize_error
from meanshifter.model.saving import UNKNOWN, FileState, save_model, weights_hash
from meanshifter.utils.files import dump_json, parse_json, read_text, write_text

if TYPE_CHECKING:
    from meanshifter.model.segmenter import Segmenter

RESULTS, CARD = "results.json", "README.md"
LARGEST_RESULTS = 100_000_000
"""Bytes; enough for the confusion matrices of a thousand classes at several numbers of steps."""
Scores = Sequence[Mapping[str, Any]]


def save_pretrained(
    model: Segmenter,
    folder: str | Path,
    *,
    results: str | Path | Scores = (),
    license: str | None = None,
    name: str = "owner/name",
    held: FileState | None = None,
) -> None:
    """Write `model` as `Segmenter.save` does, plus its scores as `results.json` and a model card.

    Args:
        model: the model.
        folder: created if needed. An existing card and scores are replaced, since they belong to other weights.
        results: scores with their protocols: a file of `evaluate --out`, or dictionaries of `Result.to_dict`.
        license: the license identifier on the Hub; None: the card states none.
        name: the model's id on the Hub, which the card's example loads.
        held: state of the file that the model was read from, whose extra tensors and data types are kept.

    Raises:
        InputError: results that are not scores or belong to other weights, or a folder that cannot be written.
    """
    if license is not None and not re.fullmatch(r"[\w.+-]+", license):
        raise InputError(
            f"license: {license!r:.40} is not a license identifier; use one of the Hub's, such as apache-2.0, mit, "
            "cc-by-4.0, other"
        )
    scores = read_results(results) if isinstance(results, str | Path) else _checked(list(results), "results")
    own = weights_hash(model.state_dict()) if scores else ""
    for entry in scores:
        scored = entry["protocol"].get("weights", UNKNOWN)
        if scored != own:
            raise InputError(
                f"{results if isinstance(results, str | Path) else 'results'}: scores of weights {scored!r:.20}, but "
                f"the model's are {own!r}; compute them with `meanshifter evaluate MODEL DATA --out FILE`"
            )
    folder = Path(folder)
    save_model(model, folder, held)
    if scores:
        write_text(folder / RESULTS, dump_json({"format_version": 1, "results": scores}, indent=1) + "\n")
    else:
        (folder / RESULTS).unlink(missing_ok=True)  # may be there from an earlier model
    write_text(folder / CARD, card(model, scores, license, name))


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """Read the scores in a file of `evaluate --out`, or in a model folder.

    Raises:
        InputError: the file is missing or has no scores with a protocol.
    """
    path = Path(path)
    path = path / RESULTS if path.is_dir() else path
    try:
        found = parse_json(read_text(path, LARGEST_RESULTS), path)["results"]
    except (KeyError, TypeError):
        found = None
    return _checked(found, str(path))


def _checked(found: object, source: str) -> list[dict[str, Any]]:
    entries: list[Any] = found if isinstance(found, list) else [None]
    if not all(isinstance(entry, Mapping) and _is_score(entry) for entry in entries):
        raise InputError(f"{source}: has no scores with a protocol; give a file of `meanshifter evaluate --out`")
    return [dict(entry) for entry in entries]


def _is_score(entry: Mapping[str, Any]) -> bool:
    protocol, others = entry.get("protocol"), (entry.get(name) for name in ("aAcc", "mAcc"))
    described = isinstance(protocol, Mapping) and "dataset" in protocol
    numbers = "mIoU" in entry and all(isinstance(x, int | float | None) for x in (entry["mIoU"], *others))
    return described and numbers


def push_to_hub(
    model: Segmenter,
    repo: str,
    *,
    results: str | Path | Scores = (),
    license: str | None = None,
    private: bool = False,
) -> str:
    """Upload the files of `save_pretrained` to `repo` ("owner/name") and return its URL.

    Raises:
        InputError: no such owner, no token, or no network, with the Hub's reason.
    """
    from tempfile import TemporaryDirectory

    from huggingface_hub import HfApi

    api = HfApi()
    with TemporaryDirectory() as folder:
        save_pretrained(model, folder, results=results, license=license, name=repo)
        try:
            address = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Model with scores and protocol")
        except Exception as error:  # the Hub client raises errors of requests, httpx and its own
            reason = summarize_error(error)
            raise InputError(
                f"{repo}: upload failed ({type(error).__name__}: {reason}); log in with `hf auth login`, or write the "
                "folder with save_pretrained and upload it yourself"
            ) from error
    return str(address)


def card(model: Segmenter, scores: Scores, license: str | None, name: str) -> str:
    """Return the model card: what the model is, how to use it, and its scores with their protocols."""
    config, K = model.config, model.label_space.num_classes
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shift = config.mean_shift
    block = "none" if shift is None else f"{shift.layers} steps, kernel {shift.kernel}"
    if shift is not None and shift.with_classes is not None:
        block += f", class embeddings and patches jointly, {shift.with_classes.replace('_', ' the ')}"
    block = block if config.pixel_shift is None else f"from pixels, {config.pixel_shift.layers} steps"
    kind = "Segmenter" if shift is None and config.pixel_shift is None else "MeanShifter"
    encoder = _plain(config.encoder)
    lines = [
        "---",
        *([] if license is None else [f"license: {license}"]),
        "library_name: meanshifter",
        "pipeline_tag: image-segmentation",
        "tags: [semantic-segmentation, vision-transformer, segmenter]",
        "---",
        "",
        f"# {kind} ({encoder})",
        "",
        f"- encoder {encoder}, patch size {model.patch_size}, for images of {'×'.join(map(str, config.image_size))} "
        "pixels",
        f"- decoder {config.decoder}; mean shift: {block}",
        f"- {K} classes; {parameters:,} parameters",
        "",
        "```python",
        "import meanshifter as ms",
        "",
        f'seg = ms.Predictor(ms.load_model({_quoted(name)}))("photo.jpg")',
        'seg.save("mask.png")',
        "```",
        "",
        "## Scores",
        "",
        *_score_lines(scores),
        "",
        "## Classes",
        "",
        f"In the order of their ids: {', '.join(map(_plain, model.label_space.names))}.",
    ]
    return "\n".join(lines) + "\n"


def _score_lines(scores: Scores) -> list[str]:
    if not scores:
        return ["No scores were given."]
    lines = [
        "| dataset | split | images | aAcc | mAcc | mIoU | protocol |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    shown = ("dataset", "split", "images")
    for entry in scores:
        protocol = entry["protocol"]
        rest = ", ".join(f"{key} {value}" for key, value in protocol.items() if key not in shown)
        values = (entry.get(name) for name in ("aAcc", "mAcc", "mIoU"))
        figures = ["–" if value is None or not isfinite(value) else f"{value:.2f}" for value in values]
        cells = [_plain(cell) for cell in (*(str(protocol.get(key, "–")) for key in shown), *figures, rest)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _plain(text: str) -> str:
    """Escape `text` for a line or table cell of Markdown, so that it is neither markup nor HTML."""
    return re.sub(r"[\\`*_{}\[\]<>()#+!|~&$:@]", lambda sign: f"&#{ord(sign[0])};", one_line(text))


def _quoted(text: str) -> str:
    """Quote `text` as a Python string within a Markdown code block."""
    return json.dumps(one_line(text), ensure_ascii=False).replace("`", "\\x60")
