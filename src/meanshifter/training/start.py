"""Where a training begins: a new model, or one that is there already."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch

from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError
from meanshifter.interop.loading import load_segmenter
from meanshifter.model.presets import create_model
from meanshifter.model.segmenter import Segmenter
from meanshifter.training.recipe import ModelRecipe, TrainConfig


def build_model(config: TrainConfig, labels: LabelSpace) -> Segmenter:
    """The model of a recipe, which by itself reads images as the recipe's evaluations do.

    Raises:
        InputError: fields of the model that contradict each other, or a model to start from that cannot be read.
    """
    torch.manual_seed(config.seed)
    if config.model.start is None:
        model = _new_model(config.model, labels, crop=config.augment.crop)
    else:
        model = _started(config.model.start, config.model, labels)
    reading = config.evaluation
    model.config = replace(
        model.config,
        window=reading.window,
        stride=reading.stride,
        short_side=reading.short_side,
        long_side=reading.long_side,
    )
    return model.train()


def _new_model(recipe: ModelRecipe, labels: LabelSpace, *, crop: tuple[int, int]) -> Segmenter:
    """A segmenter preset with `mean_shift` given becomes the meanshifter of that size."""
    preset = recipe.preset
    if recipe.mean_shift is not None:
        if preset.startswith("jointshifter"):  # a recipe's block is whole, and would undo the preset's
            raise InputError(
                f"model.mean_shift: given beside preset {preset!r}, whose block has settings of its own; leave it out, "
                f"or use {preset.replace('joint', 'mean', 1)!r} and give them all"
            )
        preset = preset.replace("segmenter", "meanshifter", 1)
    elif recipe.pixel_shift is not None:
        preset = preset.replace("segmenter", "pixelshifter", 1)
    return create_model(
        preset,
        labels=labels,
        image_size=crop if recipe.image_size is None else recipe.image_size,
        mean_shift=recipe.mean_shift,
        pixel_shift=recipe.pixel_shift,
        decoder_layers=recipe.decoder_layers,
        drop_path=recipe.drop_path,
        backbone=recipe.backbone,
        backbone_args=recipe.backbone_args,
        backbone_weights=recipe.backbone_weights,
        average_corners=recipe.average_corners,
        mean=recipe.mean,
        std=recipe.std,
    )


def _started(name: str, recipe: ModelRecipe, labels: LabelSpace) -> Segmenter:
    """The model `name` with the classes of the data; what depends on their number starts anew if that differs."""
    given = [field for field in ("mean_shift", "pixel_shift") if getattr(recipe, field) is not None]
    if given:
        raise InputError(f"model.{given[0]}: given beside model.start, which brings its own blocks; leave one out")
    source = load_segmenter(name)
    model = Segmenter(replace(source.config, drop_path=recipe.drop_path), labels)
    weights, own = source.state_dict(), model.state_dict()
    anew = [key for key, value in own.items() if weights[key].shape != value.shape]
    model.load_state_dict({**weights, **{key: own[key] for key in anew}})
    # an auxiliary head belongs to the classes and the encoder that it was trained with
    model.carried = {key: value for key, value in source.carried.items() if not key.startswith("auxiliary_head.")}
    if anew:
        warnings.warn(
            f"model.start: {name} has {source.labels.num_classes} classes and the data {labels.num_classes}: "
            f"{', '.join(anew)} start anew",
            stacklevel=2,
        )
    elif source.labels.names != labels.names and not _is_unnamed(source.labels):
        pair = next((a, b) for a, b in zip(source.labels.names, labels.names, strict=True) if a != b)
        warnings.warn(
            f"model.start: class {pair[0]!r} of {name} goes on as {pair[1]!r} of the data, and others may; where that "
            "is not meant, order the classes of the data as the model has them",
            stacklevel=2,
        )
    return model


def _is_unnamed(labels: LabelSpace) -> bool:
    return labels.names == LabelSpace.unnamed(labels.num_classes).names
