"""`ms.load_model`: load a model by name or path, published models included.

Sources: `configs/segmenter/metafile.yaml` of MMSegmentation 1.2.2, whose file names end in the first digits of the
file's SHA-256; the README of github.com/rstrudel/segmenter, which states no hash. mIoU is single-scale, on the
validation set of ADE20K unless the name says otherwise, as reported there and not measured by us.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from meanshifter.checkpoints.ensemble import ENSEMBLE, is_ensemble, read_members
from meanshifter.checkpoints.foreign import SUFFIXES, read_with_state
from meanshifter.data.download import check_digest, fetch_file
from meanshifter.errors import InputError, did_you_mean, summarize_error
from meanshifter.export.runtime import load_export
from meanshifter.inference.ensemble import Ensemble, model_hash
from meanshifter.inference.protocol import PatchModel
from meanshifter.model import saving
from meanshifter.model.presets import label_space_of
from meanshifter.model.segmenter import replace_classes

if TYPE_CHECKING:
    import torch
    from torch import nn

    from meanshifter.data.labels import LabelSpace
    from meanshifter.model.saving import FileState
    from meanshifter.model.segmenter import Segmenter


def load_model(
    name: str | Path,
    num_classes: int | None = None,
    *,
    classes: Sequence[str] | LabelSpace | None = None,
    device: str | torch.device = "cpu",
    allow_missing: bool = False,
    mean_shift_layers: int | None = None,
    encoder: nn.Module | None = None,
) -> PatchModel:
    """Load a model in evaluation mode: a `Segmenter`, a `RuntimeModel` from an export, or an `Ensemble`.

    Args:
        name: a model folder, a run folder (its best checkpoint), a Hub id "owner/name", the name of a published
            model (`meanshifter models --published` lists them), a folder that `meanshifter export` wrote, the folder of
            a cross-validation, whose models are an ensemble, a checkpoint file of MMSegmentation or of the official
            Segmenter, or the folder with the latter's `checkpoint.pth` and `variant.yml`.
        num_classes: a different number of classes, for fine-tuning: layers that depend on it are re-initialized.
        classes: as `num_classes`, by names or as a `LabelSpace`.
        device: where the weights go.
        allow_missing: for third-party checkpoints, only warn about missing and unexpected tensors.
        mean_shift_layers: for third-party checkpoints of a MeanShifter, the trained number of steps.
        encoder: a module like the one that the model was created with, if that was a module of one's own, which a
            model folder cannot build; it gets the weights of the folder.

    Raises:
        InputError: nothing of that name, no network, a missing package, or files that are damaged, unsafe or in
            another format.
    """
    other = num_classes is not None or classes is not None
    if is_ensemble(Path(name)):
        if other:
            raise InputError(f"num_classes: given for {name}, an ensemble with fixed classes; give one of its members")
        _refuse_third_party_options(name, allow_missing=allow_missing, mean_shift_layers=mean_shift_layers)
        if encoder is not None:
            raise InputError(
                f"encoder: given for {name}, an ensemble of several models; load each with its encoder and join them, "
                "Ensemble([MODEL, …])"
            )
        return load_ensemble(Path(name), device)
    if saving.is_export(Path(name)):
        if other:
            raise InputError(
                f"num_classes: given for {name}, an export with fixed classes; give the model that was exported"
            )
        _refuse_third_party_options(name, allow_missing=allow_missing, mean_shift_layers=mean_shift_layers)
        if encoder is not None:
            raise InputError(f"encoder: given for {name}, an export that needs none; leave it out")
        return load_export(Path(name), device)
    model = load_segmenter(
        name, device=device, allow_missing=allow_missing, mean_shift_layers=mean_shift_layers, encoder=encoder
    )
    if not other:
        return model
    return replace_classes(model, label_space_of(num_classes, classes)).to(device).eval()


def load_ensemble(folder: Path, device: str | torch.device = "cpu") -> Ensemble:
    """Load the models that `ensemble.json` in a folder lists.

    Raises:
        InputError: the file is invalid, or a model is missing, damaged, or has other weights than when it was listed.
    """
    members = []
    for listed in read_members(folder):
        member = load_model(folder / listed.path, device=device)
        if (found := model_hash(member)) != listed.weights:
            raise InputError(
                f"{folder / listed.path}: its weights are {found}, but {folder / ENSEMBLE} lists {listed.weights}; "
                "restore the model, or write the ensemble again (a cross-validation does with --resume)"
            )
        members.append(member)
    return Ensemble(members)


def load_segmenter(
    name: str | Path,
    *,
    device: str | torch.device = "cpu",
    allow_missing: bool = False,
    mean_shift_layers: int | None = None,
    encoder: nn.Module | None = None,
) -> Segmenter:
    """Load a model as `load_model` does, but refuse exports and ensembles."""
    return load_with_state(
        name, device=device, allow_missing=allow_missing, mean_shift_layers=mean_shift_layers, encoder=encoder
    )[0]


def load_with_state(
    name: str | Path,
    *,
    device: str | torch.device = "cpu",
    allow_missing: bool = False,
    mean_shift_layers: int | None = None,
    encoder: nn.Module | None = None,
) -> tuple[Segmenter, FileState]:
    """Load a model as `load_segmenter` does, along with the rest of the file's state."""
    path = Path(name)
    if is_ensemble(path):
        members = ", ".join(str(path / listed.path) for listed in read_members(path))
        raise InputError(
            f"{path}: an ensemble, which supports prediction and evaluation only; give one of its members: {members}"
        )
    official = path / "checkpoint.pth"
    if path.is_dir() and official.is_file() and (path / "variant.yml").is_file():
        path = official
    elif path.is_dir() and official.is_file() and not (path / saving.CONFIG).is_file():
        raise InputError(f"{path / 'variant.yml'}: missing; put it there, or give {official} if there is none")
    _refuse_part(path)
    third_party = path.is_file() or (path.suffix in SUFFIXES and not path.is_dir())
    if encoder is not None and (third_party or (str(name) in PUBLISHED and not path.exists())):
        raise InputError(f"encoder: given for {name}, a checkpoint that names its encoder; leave it out")
    if third_party:
        return read_with_state(path, allow_missing=allow_missing, mean_shift_layers=mean_shift_layers, device=device)
    _refuse_third_party_options(name, allow_missing=allow_missing, mean_shift_layers=mean_shift_layers)
    if str(name) in PUBLISHED and not path.exists():
        model, held = load_published(str(name))
        return model.to(device), held
    if not path.exists() and (hint := did_you_mean(str(name), PUBLISHED, "", cutoff=0.8)):
        raise InputError(f"{name}: no model of that name; {hint}")
    return saving.read_with_state(name, device=device, encoder=encoder)


def _refuse_part(path: Path) -> None:
    """Refuse a single file of a model that is a folder."""
    if not path.is_file():
        return
    if (saving.is_export(path.parent) or path.suffix not in SUFFIXES) and (path.parent / saving.CONFIG).is_file():
        raise InputError(f"{path}: a single file of a model; give its folder, {path.parent}")
    if path.name == "variant.yml":
        raise InputError(f"{path}: describes a model but has no weights; give its folder, {path.parent}")


def _refuse_third_party_options(name: str | Path, *, allow_missing: bool, mean_shift_layers: int | None) -> None:
    for option, given in (("allow_missing", allow_missing), ("mean_shift_layers", mean_shift_layers is not None)):
        if given:
            raise InputError(
                f"{option}: applies to third-party checkpoints only, and {name} is a MeanShifter model; leave it out"
            )


OPENMMLAB = "https://download.openmmlab.com/mmsegmentation/v0.5/segmenter"
INRIA = "https://www.rocq.inria.fr/cluster-willow/rstrudel/segmenter/checkpoints"


@dataclass(frozen=True)
class Published:
    """A third-party checkpoint that can be downloaded."""

    name: str
    url: str
    digest: str | None
    """First hexadecimal digits of the file's SHA-256; None if none was published."""
    megabytes: int
    """About 4 bytes per parameter."""
    mIoU: float  # noqa: N815
    """As reported, single-scale."""
    license: str


def _openmmlab(size: str, decoder: str, stamp: str, digest: str, megabytes: int, mIoU: float) -> Published:
    short = {"t": "ti16", "s": "s16", "b": "b16", "l": "l16"}[size]
    name = f"segmenter-{'mask-' if decoder == 'mask' else ''}{short}-ade20k-openmmlab"
    stem = f"segmenter_vit-{size}_{decoder}_8x1_512x512_160k_ade20k"
    return Published(name, f"{OPENMMLAB}/{stem}/{stem}_{stamp}-{digest}.pth", digest, megabytes, mIoU, "Apache-2.0")


def _official(name: str, folder: str, megabytes: int, mIoU: float) -> Published:
    return Published(f"{name}-official", f"{INRIA}/{folder}/checkpoint.pth", None, megabytes, mIoU, "MIT")


PUBLISHED = {
    entry.name: entry
    for entry in (
        _openmmlab("t", "mask", "20220105_151706", "ffcf7509", 27, 39.99),
        _openmmlab("s", "linear", "20220105_151713", "39658c46", 88, 45.75),
        _openmmlab("s", "mask", "20220105_151706", "511bb103", 104, 46.19),
        _openmmlab("b", "mask", "20220105_151706", "bc533b08", 410, 49.60),
        _openmmlab("l", "mask", "20220105_162750", "7ef345be", 1331, 52.16),
        _official("segmenter-mask-ti16-ade20k", "ade20k/seg_tiny_mask", 28, 38.1),
        _official("segmenter-mask-s16-ade20k", "ade20k/seg_small_mask", 106, 45.3),
        _official("segmenter-mask-b16-ade20k", "ade20k/seg_base_mask", 413, 48.5),
        _official("segmenter-b8-ade20k", "ade20k/seg_base_patch8", 356, 49.5),
        _official("segmenter-mask-l16-ade20k", "ade20k/seg_large_mask_640", 1336, 51.8),
        _official("segmenter-deit-b16-ade20k", "ade20k/seg_base_deit_linear", 348, 47.1),
        _official("segmenter-mask-deit-b16-ade20k", "ade20k/seg_base_deit_mask", 424, 48.7),
        _official("segmenter-mask-l16-pascal-context", "pascal_context/seg_large_mask", 1336, 58.1),
        _official("segmenter-mask-l16-cityscapes", "cityscapes/seg_large_mask", 1288, 79.1),
    )
}


def load_published(name: str) -> tuple[Segmenter, FileState]:
    """Load the published model `name`, which is downloaded and converted on first use and cached.

    Raises:
        InputError: no network, a file whose hash is not the published one, or a model without a published hash;
            the message says what to download and where to put it.
    """
    from meanshifter.model.saving import read_with_state

    entry, folder = PUBLISHED[name], cache_folder(name)
    if not (folder / "config.json").is_file():  # written last; if it exists, no lock is taken: caches may be read-only
        with _lock(folder):
            if not (folder / "config.json").is_file():
                _convert(entry, folder)
    return read_with_state(folder)


def _convert(entry: Published, folder: Path) -> None:
    """Download the file, unless the user has put it there, and convert it to a model folder."""
    from meanshifter.checkpoints.foreign import read_with_state
    from meanshifter.model.saving import save_model

    file = folder / entry.url.rpartition("/")[2]
    variant = entry.url.replace("checkpoint.pth", "variant.yml")
    if entry.digest is None:
        if not file.is_file():
            raise InputError(
                f"{entry.name}: no hash of this file was published, so it is not downloaded automatically; download "
                f"{entry.url} and {variant}, put both into {folder} and run this again"
            )
        if not (folder / "variant.yml").is_file():
            raise InputError(f"{folder / 'variant.yml'}: missing; download {variant} and put it there")
    elif file.is_file():
        check_digest(file, f"sha256:{entry.digest}", entry.url, "its published file name")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        fetch_file(entry.url, file, f"sha256:{entry.digest}", "its published file name")
    model, held = read_with_state(file)
    save_model(model, folder, held)
    file.unlink()


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Let one process at a time, such as the ranks of multi-GPU training, convert the model."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f".{folder.name}.lock")
        lock.acquire()
    except OSError as error:
        reason = summarize_error(error)
        raise InputError(f"{folder}: cannot be written ({reason}); set HF_HOME to a writable folder") from error
    try:
        yield
    finally:
        lock.release()


def cache_folder(name: str) -> Path:
    """The cache folder of a published model, under huggingface_hub's folder for assets that are not from the Hub."""
    from huggingface_hub.constants import HF_ASSETS_CACHE

    return Path(HF_ASSETS_CACHE) / "meanshifter" / "models" / name


def table() -> Iterator[str]:
    """Yield a header and one line per published model."""
    width = max(map(len, PUBLISHED))
    yield f"{'name':<{width}}  reported mIoU     MB  license"
    for entry in PUBLISHED.values():
        yield f"{entry.name:<{width}}  {entry.mIoU:>13.2f}  {entry.megabytes:>5}  {entry.license}"
