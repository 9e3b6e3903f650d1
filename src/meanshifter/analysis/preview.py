"""A sheet of the first samples of a training run, as the model will see them, with their labels."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
from torch import Tensor

from meanshifter.analysis.figures import Tile, classes_in, draw_strip, fitted
from meanshifter.analysis.html import Pixels, ignored_color
from meanshifter.data.augment_config import AugmentConfig
from meanshifter.data.labels import Labels, LabelSpace
from meanshifter.errors import InputError
from meanshifter.inference.segmentation import Segmentation, save_png
from meanshifter.model.config import Triple
from meanshifter.training.config import TrainConfig
from meanshifter.training.setup import join_extra, open_extra_data, open_training_data
from meanshifter.training.stream import SampleStream

SIDE = 384
"""Maximum of the longer side of a picture, in pixels."""
COLUMNS = 2
"""Samples per row, each with two pictures."""
STRIPE = 4
"""Width of the stripes over ignored pixels."""
HALF: Triple = (0.5, 0.5, 0.5)


def preview(config: TrainConfig, path: str | Path, num_images: int = 16, *, overwrite: bool = False) -> Path:
    """Draw samples 0 … num_images-1 of a training run: each crop, and the crop under its labels.

    They are those that training with this configuration reads in this order, including extra samples, partners of mixed
    ones and everything random. Ignored pixels are striped. Weights are not read, so that padding has the color of
    `model.mean`, or gray.

    Args:
        config: of the run, as from `training.parsing.config_of("DIR", "folder", {})`.
        path: a PNG file.
        num_images: samples.
        overwrite: replace an existing file.

    Returns:
        The path.

    Raises:
        InputError: the configuration or the data are invalid, a sample cannot be read, `path` is not a PNG or exists.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"preview: {path} is not a PNG file; use a name that ends in .png")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: already exists; replace it with --overwrite, or choose another path")
    if num_images < 1:
        raise InputError(f"num_images: {num_images} is not a number of at least 1")
    space, samples = training_samples(config, num_images)
    tiles = [_pair(position, *sample, space) for position, sample in enumerate(samples)]
    rows = [[tile for pair in tiles[at : at + COLUMNS] for tile in pair] for at in range(0, num_images, COLUMNS)]
    legend = classes_in((labels for _, _, labels in samples), space)
    save_png(path, draw_strip(_heading(config), rows, legend))
    return path


def training_samples(config: TrainConfig, num_images: int) -> tuple[LabelSpace, list[tuple[str, Pixels, Labels]]]:
    """The label space of a run, and name, pixels (H, W, 3) and labels (H, W) of its samples 0 … num_images-1.

    Raises:
        InputError: the configuration or the data are invalid, or a sample cannot be read.
    """
    config.check()
    train_set, _ = open_training_data(config)
    mean, std = (HALF if given is None else given for given in (config.model.mean, config.model.std))
    joined, mix = join_extra(config.data, train_set, open_extra_data(config.data, train_set))
    stream = SampleStream(joined, config.augment, config.seed, mean=mean, std=std, mix=mix)
    samples = []
    for position in range(num_images):
        image, labels, name = stream.sample(position)
        samples.append((name, _pixels(image, mean, std), np.asarray(labels.numpy())))
    return train_set.label_space, samples


def labels_over(pixels: Pixels, labels: Labels, label_space: LabelSpace) -> Pixels:
    """(H, W, 3) a picture under its labels, with stripes where they are ignored."""
    overlay = np.array(Segmentation(labels, pixels, label_space).overlay(0.6))
    y, x = np.indices(labels.shape)
    overlay[(labels == label_space.ignore) & ((x + y) // STRIPE % 2 == 0)] = ignored_color(label_space)
    return overlay


def _pixels(image: Tensor, mean: Triple, std: Triple) -> Pixels:
    """(H, W, 3) uint8 of a normalized image (3, H, W)."""
    values = (image.numpy().transpose(1, 2, 0) * np.array(std) + np.array(mean)) * 255
    return np.asarray(np.rint(values.clip(0, 255)), np.uint8)


def _pair(position: int, name: str, pixels: Pixels, labels: Labels, label_space: LabelSpace) -> list[Tile]:
    """The picture, and the picture under its labels."""
    titles = {name: pixels, f"sample {position}, labels": labels_over(pixels, labels, label_space)}
    return [Tile(fitted(picture, side=SIDE, photo=True), title) for title, picture in titles.items()]


def _heading(config: TrainConfig) -> str:
    """The settings of the augmentation that differ from their defaults."""
    default = AugmentConfig()
    pairs = ((field.name, getattr(config.augment, field.name)) for field in fields(AugmentConfig))
    changed = [f"{name} {value}" for name, value in pairs if value != getattr(default, name)]
    return f"{config.data.name} {config.data.train_split}, seed {config.seed}: {', '.join(changed) or 'the defaults'}"
