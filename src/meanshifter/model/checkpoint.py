"""Models on disk and on the Hub: a folder of `config.json` and `model.safetensors`."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from meanshifter.data.labels import LabelSpace
from meanshifter.documents import dump_json, parse_json, read_text
from meanshifter.errors import InputError
from meanshifter.files import require_file, write_beside, write_text
from meanshifter.model.building import build
from meanshifter.model.config import FORMAT_VERSION, ModelConfig
from meanshifter.model.segmenter import Segmenter
from meanshifter.model.stored import load_stored, stored_state
from meanshifter.pickles import check_tensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"
CARRIED = "carried.safetensors"
"""`Segmenter.carried`, where there is something in it."""


def save_model(model: Segmenter, folder: str | Path) -> None:
    """Write configuration, classes and weights of `model` into `folder`, each file beside and renamed into place."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{folder}: cannot be made ({reason}); choose a place with write access") from error
    save_tensors(folder / WEIGHTS, stored_state(model), {"format": "pt"})
    if model.carried:
        save_tensors(folder / CARRIED, model.carried, {"format": "pt"})
    else:
        (folder / CARRIED).unlink(missing_ok=True)  # of a model that was there before
    write_text(folder / CONFIG, dump_json(describe(model), indent=2) + "\n")


def describe(model: Segmenter) -> dict[str, Any]:
    """What `config.json` says of a model."""
    return {
        "format_version": FORMAT_VERSION,
        "model": model.config.to_dict(),
        "labels": model.labels.to_dict(),
    }


def load_model(name: str | Path, *, device: str | torch.device = "cpu") -> Segmenter:
    """The model in a folder that `Segmenter.save` wrote, in a run folder (its best checkpoint), or on the Hub.

    Args:
        name: a folder, a run folder, or a Hub id "owner/name".
        device: where the weights go.

    Returns:
        The model in evaluation mode.

    Raises:
        InputError: nothing of that name, or files that are damaged or of another format.
    """
    folder = model_folder(name)
    if "runtime" in read_description(folder):
        raise InputError(
            f"{folder}: an export, which is for prediction and evaluation only; give the model that it was made from"
        )
    config, labels = read_model_config(folder)
    state = read_tensors(folder / WEIGHTS)
    check_tensors(state, folder / WEIGHTS)
    size = sum(tensor.nbytes for tensor in state.values())
    model = build(config, labels, folder / CONFIG, tensors=len(state), size=size)
    _load_weights(model, state, folder / WEIGHTS)
    if (folder / CARRIED).is_file():
        model.carried = read_tensors(folder / CARRIED)
    return model.to(device).eval()


def read_model_config(folder: Path) -> tuple[ModelConfig, LabelSpace]:
    """What the `config.json` of a model folder says, without the weights.

    Raises:
        InputError: it is missing, damaged or of another format.
    """
    described = read_description(folder)
    try:
        return ModelConfig.from_dict(described["model"]), LabelSpace.from_dict(described["labels"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{folder / CONFIG}: not a model's configuration ({error}); save the model again") from error


def model_folder(name: str | Path) -> Path:
    """The folder of the model that `load_model(name)` reads, fetched first if `name` is a Hub id.

    Raises:
        InputError: there is none.
    """
    path = Path(name)
    for folder in (path, path / "checkpoints" / "best", path / "checkpoints" / "last"):
        if (folder / CONFIG).is_file():
            return folder
    if path.exists():
        raise InputError(f"{path}: holds no {CONFIG}; give a model folder, a run folder or a Hub id owner/name")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        return _download(str(name))
    raise InputError(f"{path}: does not exist; give a model folder, a run folder or a Hub id owner/name")


def _download(repo: str) -> Path:
    from huggingface_hub import constants, snapshot_download

    from meanshifter.network import why_unreachable

    wanted, reason = [CONFIG, WEIGHTS, CARRIED, "results.json"], why_unreachable(constants.ENDPOINT)
    try:
        return Path(snapshot_download(repo, allow_patterns=wanted, local_files_only=reason is not None))
    except Exception as error:  # the Hub client raises errors of requests, httpx and its own
        raise InputError(
            f"{repo}: no such folder here, and the Hub did not give it ({reason or type(error).__name__}); "
            f"check the name and the network, or download {CONFIG} and {WEIGHTS} into a folder"
        ) from error


def read_description(folder: Path) -> dict[str, Any]:
    """The `config.json` of a model folder.

    Raises:
        InputError: it is missing, damaged or of another format.
    """
    path = folder / CONFIG
    described: Any = parse_json(read_text(path), path)
    version = described.get("format_version") if isinstance(described, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path}: format_version {version!r}; this version of meanshifter reads {FORMAT_VERSION}, so update the "
            "package or save the model again"
        )
    return dict(described)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        InputError: it is missing, damaged or no such file.
    """
    require_file(path)
    try:
        return load_file(path)
    except Exception as error:  # besides its own error, what torch says of kinds of numbers that it lacks
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: cannot be read as safetensors ({reason}); it is damaged or of another kind: copy it again"
        ) from error


def _load_weights(model: Segmenter, state: Mapping[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    wrong = sorted(own.keys() ^ state.keys()) or sorted(key for key in own if not _fits(own[key], state[key]))
    if wrong:
        raise InputError(
            f"{path}: {len(wrong)} tensors do not fit config.json ({', '.join(wrong[:3])}); "
            "the two files are not of one model"
        )
    load_stored(model, state)


def _fits(own: Tensor, stored: Tensor) -> bool:
    return own.shape == stored.shape and own.is_floating_point() == stored.is_floating_point()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors as safetensors, beside and renamed into place once they are on the disk.

    Raises:
        InputError: the file cannot be written.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def fill(file: IO[bytes]) -> None:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        save_file(whole, file.name, metadata)  # a file of its own under that name, which only its owner may read
        Path(file.name).chmod(mode)
        with Path(file.name).open("rb") as written:
            os.fsync(written.fileno())

    try:
        write_beside(path, fill)
    except SafetensorError as error:  # how the library reports a full disk
        raise InputError(f"{path}: cannot be written ({error}); choose a place with space and write access") from error
