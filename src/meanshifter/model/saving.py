"""Save and load model folders, with `config.json` and `model.safetensors`, on disk and from the Hub."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError, summarize_error
from meanshifter.model.config import FORMAT_VERSION, ModelConfig
from meanshifter.model.encoder_weights import check_tensors
from meanshifter.model.migration import FORMER, migrate_description, migrate_tensors
from meanshifter.model.segmenter import Segmenter, check_own_module
from meanshifter.utils.files import dump_json, parse_json, read_text, require_file, write_atomically, write_text

CONFIG, WEIGHTS = "config.json", "model.safetensors"
EXTRA = "extra.safetensors"
"""`FileState.extra_tensors`, if there are any."""
FORMER_EXTRA = "carried.safetensors"
"""Its name in format 1."""
RUNTIME = "runtime"
"""Key of `config.json` that only exports have."""


@dataclass(frozen=True)
class FileState:
    """What a file has in addition to a model's float32 tensors, so that it can be written back unchanged."""

    extra_tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors of a third-party file that segmentation does not use, by the tool's names."""
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    """Data types of the tensors that were not float32, by our names."""

    def tensors(self, model: Segmenter) -> dict[str, Tensor]:
        """Return the tensors of `model` in these types, except where casting would change values, as after training."""
        found = model.state_dict()
        for name, value in found.items():
            cast = value.to(self.dtypes.get(name, value.dtype))
            found[name] = cast if torch.equal(cast.to(value.dtype), value) else value
        return found


def save_model(model: Segmenter, folder: str | Path, state: FileState | None = None) -> None:
    """Write configuration, classes and weights of `model` to `folder`, each file atomically.

    Args:
        model: the model.
        folder: created if needed.
        state: state of the file that the model was read from, whose extra tensors and data types are kept.
    """
    state = FileState() if state is None else state
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = summarize_error(error)
        raise InputError(f"{folder}: cannot be created ({reason}); choose a folder with write access") from error
    save_tensors(folder / WEIGHTS, state.tensors(model), {"format": "pt"})
    if state.extra_tensors:
        save_tensors(folder / EXTRA, state.extra_tensors, {"format": "pt"})
    else:
        (folder / EXTRA).unlink(missing_ok=True)  # may be there from an earlier model
    write_text(folder / CONFIG, dump_json(describe(model), indent=2) + "\n")


def save_temperature(folder: Path, temperature: float) -> None:
    """Write `ModelConfig.temperature` into the `config.json` of a model folder or an export, and nothing else.

    Raises:
        InputError: the folder holds no model, or one of an earlier format, or the file cannot be written.
    """
    described = check_stores_temperature(folder)
    described["model"] = {**described["model"], "temperature": temperature}
    write_text(folder / CONFIG, dump_json(described, indent=2) + "\n")


def check_stores_temperature(folder: Path) -> dict[str, Any]:
    """Return the content of the `config.json` of a model that `save_temperature` can write to.

    Raises:
        InputError: the folder holds no model, or one of an earlier format.
    """
    described, migrated = _read_description(folder)
    if migrated:
        raise InputError(
            f"{folder / CONFIG}: format_version {FORMER}, which has no temperature; convert the model first, with "
            f"`meanshifter convert {folder} OUT`"
        )
    return described


def describe(model: Segmenter) -> dict[str, Any]:
    """Return the content of a model's `config.json`."""
    return {
        "format_version": FORMAT_VERSION,
        "model": model.config.to_dict(),
        "label_space": model.label_space.to_dict(),
    }


def read_model(name: str | Path, *, device: str | torch.device = "cpu", encoder: nn.Module | None = None) -> Segmenter:
    """Load a model in evaluation mode from a model folder, a run folder (its best checkpoint) or the Hub.

    Args:
        name: a folder, a run folder, or a Hub id "owner/name".
        device: where the weights go.
        encoder: a module like the one that the model was created with, if that was a module of one's own.

    Raises:
        InputError: nothing of that name, or files that are damaged or in another format.
    """
    return read_with_state(name, device=device, encoder=encoder)[0]


def read_with_state(
    name: str | Path, *, device: str | torch.device = "cpu", encoder: nn.Module | None = None
) -> tuple[Segmenter, FileState]:
    """Load a model as `read_model` does, along with the rest of the files' state."""
    folder = model_folder(name)
    described, migrated = _read_description(folder)
    if RUNTIME in described:
        raise InputError(
            f"{folder}: an export, which supports prediction and evaluation only; give the model that was exported"
        )
    config, labels = _parse(described, folder / CONFIG)
    try:
        check_own_module(config, encoder)
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from error
    state = read_tensors(folder / WEIGHTS)
    if migrated:
        state = migrate_tensors(state)
    check_tensors(state, folder / WEIGHTS)
    size = sum(tensor.nbytes for tensor in state.values())
    with _ZeroWeights():  # random numbers for all weights would take as long as reading them
        model = build(config, labels, folder / CONFIG, tensors=len(state), size=size, encoder=encoder)
    _load_weights(model, state, folder / WEIGHTS)
    extra = next((folder / name for name in (EXTRA, FORMER_EXTRA) if (folder / name).is_file()), None)
    held = FileState({} if extra is None else read_tensors(extra), dtypes_of(state))
    return model.to(device).eval(), held


def read_model_config(folder: Path) -> tuple[ModelConfig, LabelSpace]:
    """Read configuration and classes of a model folder, without the weights.

    Raises:
        InputError: `config.json` is missing, damaged or in another format.
    """
    return _parse(read_description(folder), folder / CONFIG)


def _parse(described: Mapping[str, Any], path: Path) -> tuple[ModelConfig, LabelSpace]:
    try:
        return ModelConfig.from_dict(described["model"]), LabelSpace.from_dict(described["label_space"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: not a valid model configuration ({error}); save the model again") from error


def model_folder(name: str | Path) -> Path:
    """Return the folder that `read_model(name)` reads, after downloading it if `name` is a Hub id.

    Raises:
        InputError: there is none.
    """
    path = Path(name)
    for folder in (path, path / "checkpoints" / "best", path / "checkpoints" / "last"):
        if (folder / CONFIG).is_file():
            return folder
    if path.exists():
        raise InputError(f"{path}: has no {CONFIG}; give a model folder, a run folder or a Hub id owner/name")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        return _download(str(name))
    raise InputError(f"{path}: does not exist; give a model folder, a run folder or a Hub id owner/name")


def _download(repo: str) -> Path:
    from huggingface_hub import constants, snapshot_download

    from meanshifter.data.download import why_unreachable

    wanted, reason = [CONFIG, WEIGHTS, EXTRA, FORMER_EXTRA, "results.json"], why_unreachable(constants.ENDPOINT)
    try:
        return Path(snapshot_download(repo, allow_patterns=wanted, local_files_only=reason is not None))
    except Exception as error:  # the Hub client raises errors of requests, httpx and its own
        raise InputError(
            f"{repo}: not a local folder, and the download from the Hub failed ({reason or type(error).__name__}); "
            f"check the name and the network, or download {CONFIG} and {WEIGHTS} into a folder"
        ) from error


def read_description(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a model folder, migrating it from an earlier format.

    Raises:
        InputError: it is missing, damaged or in another format.
    """
    return _read_description(folder)[0]


def _read_description(folder: Path) -> tuple[dict[str, Any], bool]:
    """The description, and whether it was migrated."""
    path = folder / CONFIG
    described: Any = parse_json(read_text(path), path)
    version = described.get("format_version") if isinstance(described, dict) else None
    if version == FORMER:
        return migrate_description(described, path), True
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path}: format_version is {version!r}, but this version of meanshifter reads {FORMAT_VERSION}; update "
            "the package or save the model again"
        )
    return dict(described), False


def is_export(path: Path) -> bool:
    """Whether the folder's `config.json` has a runtime, which only exports have."""
    try:
        described = parse_json(read_text(path / CONFIG), path)
    except InputError:  # reported by the next reader
        return False
    return isinstance(described, dict) and RUNTIME in described


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        InputError: it is missing, damaged or not a safetensors file.
    """
    require_file(path)
    try:
        return load_file(path)
    except Exception as error:  # safetensors also lets torch's errors about unknown data types through
        reason = summarize_error(error)
        raise InputError(f"{path}: not a valid safetensors file ({reason}); copy it again") from error


def _load_weights(model: Segmenter, state: Mapping[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    wrong = sorted(own.keys() ^ state.keys()) or sorted(key for key in own if not _fits(own[key], state[key]))
    if wrong:
        raise InputError(
            f"{path}: {len(wrong)} tensors do not match config.json ({', '.join(wrong[:3])}); "
            "the two files must come from the same model"
        )
    model.load_state_dict(state)


def _fits(own: Tensor, stored: Tensor) -> bool:
    return own.shape == stored.shape and own.is_floating_point() == stored.is_floating_point()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors as safetensors atomically, synced to disk.

    Raises:
        InputError: the file cannot be written.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def fill(file: IO[bytes]) -> None:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        save_file(contiguous, file.name, metadata)  # replaces the file by one that only its owner may read
        Path(file.name).chmod(mode)
        with Path(file.name).open("rb") as written:
            os.fsync(written.fileno())

    try:
        write_atomically(path, fill)
    except SafetensorError as error:  # also raised when the disk is full
        raise InputError(f"{path}: cannot be written ({error}); choose a disk with space and write access") from error


FACTORIES: Final = (torch.empty, torch.zeros, torch.ones, torch.full, torch.randn)
RANDOM: Final = (Tensor.uniform_, Tensor.normal_, Tensor.erfinv_)
SLACK: Final = 256_000_000
"""Bytes that a model may need beyond four times the size of its weights, e.g. for half precision and partial files."""


class _MetaTensors(TorchFunctionMode):
    """Create new tensors on the meta device, without memory.

    `torch.device("meta")` would include small tensors whose values timm reads during construction.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FACTORIES:
            return func(*args, **{**(kwargs or {}), "device": "meta"})
        return func(*args, **(kwargs or {}))


class _ZeroWeights(TorchFunctionMode):
    """Initialize weights to zeros instead of random numbers, for a model whose weights are all loaded.

    Zeros, since rejection sampling would never end with numbers that stay as they are.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in RANDOM:
            return args[0].zero_()
        if func is nn.init.kaiming_uniform_ or func is nn.init.uniform_:  # of torch's layers
            return (args[0] if args else kwargs["tensor"]).detach().zero_()
        return func(*args, **(kwargs or {}))


def build(
    config: ModelConfig,
    label_space: LabelSpace,
    source: object,
    *,
    tensors: int,
    size: int,
    encoder: nn.Module | None = None,
) -> Segmenter:
    """Build a model with random weights from an untrusted configuration.

    Args:
        config: the configuration in a file.
        label_space: its classes.
        source: the file, for messages.
        tensors: number of tensors in the weights, which bounds the number of layers.
        size: bytes of the weights, which bound the memory.
        encoder: the encoder itself, if the configuration names a module of one's own.

    Raises:
        InputError: the model cannot be built, or is out of proportion to its weights.
    """
    for name, layers in (("depth", config.encoder_args.get("depth", 0)), ("decoder_layers", config.decoder_layers)):
        if not isinstance(layers, int) or layers > max(tensors, 2):
            raise InputError(
                f"{source}: {name} is {layers!r}, but the weights have {tensors} tensors; configuration and weights "
                "must come from the same model"
            )
    try:
        with _MetaTensors():
            sketch = Segmenter(config, label_space, encoder=encoder).state_dict()
        needed = 4 * sum(tensor.numel() for tensor in sketch.values())
        if needed <= 4 * size + SLACK:
            return Segmenter(config, label_space, encoder=encoder)
    except InputError:
        raise
    except Exception as error:  # timm and torch raise nearly any error for invalid arguments
        reason = summarize_error(error)
        raise InputError(
            f"{source}: describes a model that cannot be built ({type(error).__name__}: {reason}); save it again"
        ) from error
    raise InputError(
        f"{source}: describes a model of {needed:,} bytes, but the weights have {size:,}; configuration and weights "
        "must come from the same model"
    )


def dtypes_of(tensors: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """Return the data types of tensors that are not float32, by name."""
    return {name: value.dtype for name, value in tensors.items() if value.dtype != torch.float32}


UNKNOWN = "unknown"
"""Stands for the hash if label maps were scored without a model."""


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the first 12 hex digits of the SHA-256 over names, types, shapes and bytes, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]
