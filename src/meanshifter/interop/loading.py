"""`ms.load_model`: a model from whatever a name or path stands for."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from meanshifter.errors import InputError
from meanshifter.interop.checkpoints import SUFFIXES, read_checkpoint
from meanshifter.interop.contract import PatchModel
from meanshifter.interop.published import PUBLISHED, load_published
from meanshifter.interop.runtime import is_export, load_export
from meanshifter.model import checkpoint

if TYPE_CHECKING:
    import torch

    from meanshifter.model.segmenter import Segmenter


def load_model(
    name: str | Path,
    *,
    device: str | torch.device = "cpu",
    partial: bool = False,
    mean_shift_layers: int | None = None,
) -> PatchModel:
    """The model that `name` stands for, in evaluation mode: a `Segmenter`, or for an export a `RuntimeModel`.

    Args:
        name: a model folder, a run folder (its best checkpoint), a Hub id "owner/name", the name of a published
            model (`meanshifter models --published` lists them), a folder that `meanshifter export` wrote, a checkpoint
            file of MMSegmentation or of the Segmenter of its authors, or the folder that holds the latter's
            `checkpoint.pth` and `variant.yml`.
        device: where the weights go.
        partial: of another tool's file, take what fits and warn of what is missing or left over.
        mean_shift_layers: of another tool's file of a MeanShifter, its trained number of steps.

    Raises:
        InputError: nothing of that name, no network, a missing package, or files that are damaged, unsafe or of
            another format.
    """
    if is_export(Path(name)):
        _refuse_untold(name, partial=partial, mean_shift_layers=mean_shift_layers)
        return load_export(Path(name), device)
    return load_segmenter(name, device=device, partial=partial, mean_shift_layers=mean_shift_layers)


def load_segmenter(
    name: str | Path,
    *,
    device: str | torch.device = "cpu",
    partial: bool = False,
    mean_shift_layers: int | None = None,
) -> Segmenter:
    """As `load_model`, for who needs the model itself: an export is refused."""
    path = Path(name)
    official = path / "checkpoint.pth"
    if path.is_dir() and official.is_file() and (path / "variant.yml").is_file():
        path = official
    elif path.is_dir() and official.is_file() and not (path / checkpoint.CONFIG).is_file():
        raise InputError(f"{path / 'variant.yml'}: missing; put it there, or give {official} where there is none")
    _refuse_part(path)
    if path.is_file() or (path.suffix in SUFFIXES and not path.is_dir()):
        return read_checkpoint(path, partial=partial, mean_shift_layers=mean_shift_layers, device=device)
    _refuse_untold(name, partial=partial, mean_shift_layers=mean_shift_layers)
    if str(name) in PUBLISHED and not path.exists():
        return load_published(str(name)).to(device)
    if not path.exists() and (near := get_close_matches(str(name), PUBLISHED, n=1, cutoff=0.8)):
        raise InputError(f"{name}: no model of that name; did you mean {near[0]!r}?")
    return checkpoint.load_model(name, device=device)


def _refuse_part(path: Path) -> None:
    """Refuse a file whose folder is the model."""
    if not path.is_file():
        return
    if (is_export(path.parent) or path.suffix not in SUFFIXES) and (path.parent / checkpoint.CONFIG).is_file():
        raise InputError(f"{path}: one file of a model; give its folder, {path.parent}")
    if path.name == "variant.yml":
        raise InputError(f"{path}: says how a model is built, and holds none; give its folder, {path.parent}")


def _refuse_untold(name: str | Path, *, partial: bool, mean_shift_layers: int | None) -> None:
    """Refuse what is said of other tools' files only."""
    for option, given in (("partial", partial), ("mean_shift_layers", mean_shift_layers is not None)):
        if given:
            raise InputError(f"{option}: given for {name}, a model of ours, whose file says all; leave it out")
