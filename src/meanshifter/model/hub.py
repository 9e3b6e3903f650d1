"""A model as a folder of the Hugging Face Hub: weights, configuration, classes, scores, and a card that says so."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meanshifter.documents import dump_json, parse_json, read_text
from meanshifter.errors import InputError, one_line
from meanshifter.files import write_text
from meanshifter.model.checkpoint import save_model

if TYPE_CHECKING:
    from meanshifter.model.segmenter import Segmenter

RESULTS, CARD = "results.json", "README.md"
LARGEST_RESULTS = 100_000_000
"""Bytes: the confusions of a thousand classes, at several numbers of steps."""
Scores = Sequence[Mapping[str, Any]]


def save_pretrained(
    model: Segmenter,
    folder: str | Path,
    *,
    results: str | Path | Scores = (),
    licence: str | None = None,
    name: str = "owner/name",
) -> None:
    """Write `model` as `Segmenter.save` does, its scores as `results.json`, and a model card.

    Args:
        model: the model.
        folder: where; made if needed. A card and scores that lie there are replaced, as they are of another state.
        results: what `evaluate --out` wrote, or the dictionaries of `Result.to_dict`: scores with their protocols.
        licence: the card's, by its name on the Hub; None: the card names none.
        name: what the card's example loads, the model's id on the Hub.

    Raises:
        InputError: results that are no scores or those of other weights, or a place that cannot be written.
    """
    if licence is not None and not re.fullmatch(r"[\w.+-]+", licence):
        raise InputError(
            f"licence: {licence!r:.40} is no name of one; the Hub calls them apache-2.0, mit, cc-by-4.0, other"
        )
    scores = read_results(results) if isinstance(results, str | Path) else _checked(list(results), "results")
    _check_weights(scores, model, results if isinstance(results, str | Path) else "results")
    folder = Path(folder)
    save_model(model, folder)
    if scores:
        write_text(folder / RESULTS, dump_json({"format_version": 1, "results": scores}, indent=1) + "\n")
    else:
        (folder / RESULTS).unlink(missing_ok=True)  # of a model that was there before
    write_text(folder / CARD, card(model, scores, licence, name))


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """The scores in a file that `evaluate --out` wrote, or in a model folder.

    Raises:
        InputError: they are missing, or the file holds no scores with a protocol.
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
        raise InputError(f"{source}: no scores of `meanshifter evaluate --out`; give such a file")
    return [dict(entry) for entry in entries]


def _check_weights(scores: Scores, model: Segmenter, source: object) -> None:
    from meanshifter.interop.weights import UNKNOWN, weights_hash

    own = weights_hash(model) if scores else ""
    for entry in scores:
        scored = entry["protocol"].get("weights", UNKNOWN)
        if scored != own:
            raise InputError(
                f"{source}: scores of weights {scored!r:.20}, but the model's are {own!r}; give those of this model, "
                "as `meanshifter evaluate MODEL DATA --out FILE` makes them"
            )


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
    licence: str | None = None,
    private: bool = False,
) -> str:
    """Upload what `save_pretrained` writes as `repo` ("owner/name"); returns its address.

    Raises:
        InputError: no such owner, no token, or no network; the Hub's reason is given.
    """
    from tempfile import TemporaryDirectory

    from huggingface_hub import HfApi

    api = HfApi()
    with TemporaryDirectory() as folder:
        save_pretrained(model, folder, results=results, licence=licence, name=repo)
        try:
            address = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Model with scores and protocol")
        except Exception as error:  # the Hub client raises errors of requests, httpx and its own
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{repo}: not uploaded ({type(error).__name__}: {reason}); log in with `hf auth login`, or write the "
                "folder with save_pretrained and upload it yourself"
            ) from error
    return str(address)


def card(model: Segmenter, scores: Scores, licence: str | None, name: str) -> str:
    """The model card: what the model is, what it scored under which protocol, and how to use it."""
    config, K = model.config, model.labels.num_classes
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shift = config.mean_shift
    block = "none" if shift is None else f"{shift.layers} steps, kernel {shift.kernel}"
    if shift is not None and shift.with_classes is not None:
        block += f", class embeddings and patches together {shift.with_classes.replace('_', ' the ')}"
    block = block if config.pixel_shift is None else f"from pixels, {config.pixel_shift.layers} steps"
    kind = "Segmenter" if shift is None and config.pixel_shift is None else "MeanShifter"
    encoder = _plain(config.backbone)
    lines = [
        "---",
        *([] if licence is None else [f"license: {licence}"]),
        "library_name: meanshifter",
        "pipeline_tag: image-segmentation",
        "tags: [semantic-segmentation, vision-transformer, segmenter]",
        "---",
        "",
        f"# {kind} ({encoder})",
        "",
        f"- encoder {encoder}, patches of {model.patch_size} pixels, made for {_size(config.image_size)}",
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
        f"In the order of their numbers: {', '.join(map(_plain, model.labels.names))}.",
    ]
    return "\n".join(lines) + "\n"


def _score_lines(scores: Scores) -> list[str]:
    if not scores:
        return ["None were given."]
    lines = [
        "| data set | split | images | aAcc | mAcc | mIoU | protocol |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    shown = ("dataset", "split", "images")
    for entry in scores:
        protocol = entry["protocol"]
        rest = ", ".join(f"{key} {value}" for key, value in protocol.items() if key not in shown)
        figures = [_figure(entry.get(name)) for name in ("aAcc", "mAcc", "mIoU")]
        cells = [_plain(cell) for cell in (*(str(protocol.get(key, "–")) for key in shown), *figures, rest)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _figure(value: float | None) -> str:
    return "–" if value is None or not isfinite(value) else f"{value:.2f}"


def _plain(text: str) -> str:
    """`text` as it stands, in a line or a cell of Markdown: neither markup nor HTML, and nothing invisible."""
    return re.sub(r"[\\`*_{}\[\]<>()#+!|~&$:@]", lambda sign: f"&#{ord(sign[0])};", one_line(text))


def _quoted(text: str) -> str:
    """`text` as a string of Python within a block of code."""
    return json.dumps(one_line(text), ensure_ascii=False).replace("`", "\\x60")


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]} pixels"
