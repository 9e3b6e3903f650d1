"""Tokens of a frozen encoder, computed once for each training image and variant, and kept in memory or on disk.

They are those of whole images, plain and mirrored, so that a step needs the mean shift block and the decoder only. Each
is computed from its image alone, in float32 where the encoder ends in float32: resuming, and memory or disk, give the
same bits.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import Tensor, nn

from meanshifter.data.crop_plan import draw, resized
from meanshifter.errors import InputError, RunError
from meanshifter.model.saving import save_tensors, weights_hash
from meanshifter.model.segmenter import Segmenter
from meanshifter.model.vit import Grid
from meanshifter.training.data import ALONE, Batch, Share, positions
from meanshifter.training.stream import SampleStream

FOLDER: Final = "token_cache"
"""Folder in the run folder."""
Variant = tuple[int, bool]
"""Index of an image in the dataset, and whether it is mirrored."""


class TokenHead(nn.Module):
    """The part of a model that follows its encoder: tokens (B, N, D) to patch logits (B, K, h, w)."""

    def __init__(self, model: Segmenter, grid: Grid) -> None:
        super().__init__()
        self.model, self.grid = model, grid

    def forward(self, tokens: Tensor, mean_shift_layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Run mean shift block and decoder; for several numbers of steps, return the logits after each."""
        if mean_shift_layers is None:
            return self.model.decode(tokens, self.grid)
        return [self.model.decode(tokens, self.grid, steps) for steps in mean_shift_layers]


class TokenCache:
    """Tokens and labels of every variant of the training images; `fill` before use."""

    def __init__(self, stream: SampleStream, model: Segmenter, fabric: Fabric, folder: Path | None) -> None:
        """`folder`: the run folder, for files; None: keep them in memory."""
        self.stream, self._model, self._fabric = stream, model, fabric
        self.head = TokenHead(model, _grid(stream, model))
        self._kept: dict[Variant, tuple[Tensor, Tensor]] = {}
        self._folder = None if folder is None else folder / FOLDER / _key(stream, model, fabric)

    def describe(self) -> str:
        """What is computed and kept, in one line."""
        place = "memory" if self._folder is None else str(self._folder)
        number = len(self.stream.dataset) * len(_variants(self.stream))
        size = bytes_needed(self.stream, self._model) / 1e6
        return f"tokens: {number:,} images and mirror images, {size:,.0f} MB in {place}"

    def fill(self, report: Callable[[int, int], None]) -> None:
        """Compute what is missing; `report` is called with the number of images that are done, and of all."""
        first: dict[int, int] = {}
        for position in count():
            first.setdefault(self.stream.place(position), position)
            if len(first) == len(self.stream.dataset):
                break
        for done, (index, position) in enumerate(sorted(first.items())):
            for mirrored in _variants(self.stream):
                if not self._has((index, mirrored)):
                    self._keep((index, mirrored), *self._compute(position, mirrored))
            report(done + 1, len(first))

    def batches(self, *, batch_size: int, start: int, stop: int, share: Share = ALONE) -> Iterator[Batch]:
        """Tokens (B, N, D) in place of the images of batches `start` to `stop` of the stream."""
        for number in range(start, stop):
            places = list(positions(number, batch_size, share))
            variants = [(self.stream.place(position), is_mirrored(self.stream, position)) for position in places]
            tokens, labels = zip(*map(self._read, variants), strict=True)
            stacked = torch.stack(labels)
            # few torch operations support uint16
            wide = stacked.int() if stacked.dtype == torch.uint16 else stacked
            yield torch.stack(tokens), wide, [self.stream.dataset.names[index] for index, _ in variants]

    def _compute(self, position: int, mirrored: bool) -> tuple[Tensor, Tensor]:
        stream = self.stream
        config = replace(stream.config, flip=float(mirrored))
        fixed = SampleStream(stream.dataset, config, stream.seed, mean=stream.mean, std=stream.std, mix=stream.mix)
        image, labels, _ = fixed.sample(position)
        with torch.no_grad(), self._fabric.autocast():
            tokens, _ = self._model.encode(image[None].to(self._model.device))
        return tokens[0].float().cpu(), labels

    def _file(self, variant: Variant) -> Path | None:
        index, mirrored = variant
        name = f"{index:07}{'_mirrored' if mirrored else ''}.safetensors"
        return None if self._folder is None else self._folder / name

    def _has(self, variant: Variant) -> bool:
        file = self._file(variant)
        return variant in self._kept if file is None else file.is_file()

    def _keep(self, variant: Variant, tokens: Tensor, labels: Tensor) -> None:
        file = self._file(variant)
        if file is None:
            self._kept[variant] = (tokens, labels)
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(file, {"tokens": tokens, "labels": labels}, {})
        except (InputError, OSError) as error:
            reason = str(error).split(";")[0]
            raise RunError(f"{reason}; free some space, then resume with --resume") from error

    def _read(self, variant: Variant) -> tuple[Tensor, Tensor]:
        file = self._file(variant)
        if file is None:
            return self._kept[variant]
        try:
            found = load_file(file)
            return found["tokens"], found["labels"]
        except Exception as error:  # safetensors raises errors of its own and the system's
            raise RunError(f"{file}: damaged or gone ({error}); delete it, then resume with --resume") from error


def _variants(stream: SampleStream) -> list[bool]:
    """Which variants of an image occur: plain, mirrored."""
    flip = stream.config.flip
    return [mirrored for mirrored, share in ((False, 1 - flip), (True, flip)) if share > 0]


def is_mirrored(stream: SampleStream, position: int) -> bool:
    """Whether the stream mirrors the sample at `position`.

    Only a crop of the whole image is possible, whose choice draws nothing; so any image has the draws of the sample's.
    """
    config = replace(stream.config, resize_base=None, max_class_share=1.0)
    labels = np.zeros((1, 1), np.uint8)
    return draw(labels, config, stream.generator(position), ignore=stream.dataset.label_space.ignore).mirrored


def _grid(stream: SampleStream, model: Segmenter) -> Grid:
    h, w = (-(-side // model.patch_size) for side in stream.config.crop)
    return h, w


def bytes_needed(stream: SampleStream, model: Segmenter) -> int:
    """Bytes of all tokens (float32) and labels."""
    h, w = _grid(stream, model)
    label = 1 if stream.dataset.label_space.num_classes <= 255 else 2
    one = h * w * model.encoder.width * 4 + stream.config.crop[0] * stream.config.crop[1] * label
    return len(stream.dataset) * len(_variants(stream)) * one


def _key(stream: SampleStream, model: Segmenter, fabric: Fabric) -> str:
    """A hash of everything that the tokens depend on, except the content of the images."""
    facts: list[Any] = [
        weights_hash(model.encoder.state_dict()),
        {**asdict(stream.config), "flip": None},
        [list(stream.mean), list(stream.std), model.config.positions],
        *([] if model.config.token_merging is None else [asdict(model.config.token_merging)]),
        list(stream.dataset.names),
        str(fabric._precision.precision),
    ]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:12]


def check_tokens(kind: str, stream: SampleStream, model: Segmenter, run: Path) -> None:
    """Check that the tokens of each image are always the same, and that there is room for them.

    Raises:
        InputError: mean shift from pixels; an image larger than the crop; or too little memory or disk space.
    """
    if model.pixel_shift is not None:
        raise InputError(
            f"data.token_cache: {kind}, but mean shift from pixels (pixel_shift) reads the images in every step; set "
            "it to null"
        )
    (h, w), dataset = stream.config.crop, stream.dataset
    for index in range(len(dataset)):
        height, width = resized(dataset.read_labels(index).shape, stream.config, stream.config.scale[0])
        if height > h or width > w:
            raise InputError(
                f"augment.crop: {h}×{w} would be cut at random from {dataset.names[index]}, which is resized to "
                f"{height}×{width}; for data.token_cache, set augment.resize_base {min(h, w)} {min(h, w)} or a larger "
                "crop, so that each crop holds a whole image"
            )
    needed = bytes_needed(stream, model)
    place = next(path for path in (run.absolute(), *run.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free if kind == "disk" else _memory()
    if free is not None and needed > free + (_written(run) if kind == "disk" else 0):
        raise InputError(
            f"data.token_cache: {kind} needs {needed / 1e9:.1f} GB for the tokens of {len(dataset):,} images, and "
            f"there are {free / 1e9:.1f} GB; use {'a disk with more space' if kind == 'disk' else 'disk'}, a smaller "
            "augment.crop, or set it to null"
        )


def _written(run: Path) -> int:
    """Bytes of the files that a run that is resumed has written already."""
    return sum(file.stat().st_size for file in (run / FOLDER).rglob("*.safetensors"))


def _memory() -> int | None:
    """Bytes of memory of the machine; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
