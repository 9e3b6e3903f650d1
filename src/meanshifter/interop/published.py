"""Segmenters that other people published, by a name of ours.

Sources: `configs/segmenter/metafile.yaml` of MMSegmentation 1.2.2, whose file names end in the beginning of the file's
SHA-256; the README of github.com/rstrudel/segmenter, which states no hash. mIoU is on ADE20K's validation images at one
scale, as reported there and not measured by us, unless the name says another data set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from meanshifter.data.fetch import check_digest, fetch_file
from meanshifter.errors import InputError

if TYPE_CHECKING:
    from meanshifter.model.segmenter import Segmenter

OPENMMLAB = "https://download.openmmlab.com/mmsegmentation/v0.5/segmenter"
INRIA = "https://www.rocq.inria.fr/cluster-willow/rstrudel/segmenter/checkpoints"


@dataclass(frozen=True)
class Published:
    """A checkpoint that somebody published."""

    name: str
    url: str
    digest: str | None
    """The first hexadecimal digits of the file's SHA-256, as published; None: nobody states it."""
    megabytes: int
    """About 4 bytes for each parameter."""
    mIoU: float  # noqa: N815
    """As reported, at one scale."""
    licence: str


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


def load_published(name: str) -> Segmenter:
    """The published model of that name, fetched and converted on first use and read from the cache after.

    Raises:
        InputError: no network, a file whose hash is not the published one, or a model whose hash nobody published;
            the message says what to fetch and where to put it.
    """
    from meanshifter.model.checkpoint import load_model

    entry, folder = PUBLISHED[name], cache_folder(name)
    if not (folder / "config.json").is_file():  # what is written last, so that a shared cache need only be read
        with _alone(folder):
            if not (folder / "config.json").is_file():
                _convert(entry, folder)
    return load_model(folder)


def _convert(entry: Published, folder: Path) -> None:
    """Fetch, unless the file was put there by hand, and keep as a model folder."""
    from meanshifter.interop.checkpoints import read_checkpoint
    from meanshifter.model.checkpoint import save_model

    file = folder / entry.url.rpartition("/")[2]
    if not file.is_file():
        _fetch(entry, file)
    elif entry.digest is not None:
        check_digest(file, f"sha256:{entry.digest}", entry.url, "its name there")
    if entry.digest is None and not (folder / "variant.yml").is_file():
        raise InputError(f"{folder / 'variant.yml'}: missing; fetch {_variant_url(entry)} and put it there")
    save_model(read_checkpoint(file), folder)
    file.unlink()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time, such as those of a training on several devices; the others find its work done."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f".{folder.name}.lock")
        lock.acquire()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{folder}: cannot be written ({reason}); set HF_HOME to a folder of yours") from error
    try:
        yield
    finally:
        lock.release()


def cache_folder(name: str) -> Path:
    """Where a published model is kept: where huggingface_hub has libraries keep files that are not the Hub's."""
    from huggingface_hub.constants import HF_ASSETS_CACHE

    return Path(HF_ASSETS_CACHE) / "meanshifter" / "models" / name


def table() -> Iterator[str]:
    """One line for each published model."""
    width = max(map(len, PUBLISHED))
    yield f"{'name':<{width}}  reported mIoU     MB  licence"
    for entry in PUBLISHED.values():
        yield f"{entry.name:<{width}}  {entry.mIoU:>13.2f}  {entry.megabytes:>5}  {entry.licence}"


def _fetch(entry: Published, file: Path) -> None:
    if entry.digest is None:
        raise InputError(
            f"{entry.name}: nobody published a hash of this file, so it is not fetched unasked; fetch {entry.url} and "
            f"{_variant_url(entry)} yourself, put both into {file.parent} and run this again"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    fetch_file(entry.url, file, f"sha256:{entry.digest}", "its name there")


def _variant_url(entry: Published) -> str:
    return entry.url.replace("checkpoint.pth", "variant.yml")
