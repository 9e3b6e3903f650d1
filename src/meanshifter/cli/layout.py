"""The options that say where the images and masks of a folder lie, spelt as the fields of a recipe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meanshifter.errors import InputError

if TYPE_CHECKING:
    from meanshifter.data.layout import FolderLayout


def add_layout_options(parser: argparse.ArgumentParser, *, runs: bool) -> None:
    """The options of `FolderLayout`; `runs`: what is not given may be that of a model's run."""
    group = parser.add_argument_group(
        "layout of a folder",
        "Where images and masks lie, and what is held out as val."
        + (" What is not given is that of the model's run, where it was trained on the same folder." if runs else ""),
    )
    group.add_argument("--data.images", metavar="NAME", help="folder of the images (default: images)")
    group.add_argument("--data.masks", metavar="NAME", help="folder of the masks (default: masks)")
    group.add_argument(
        "--data.mask_suffix", metavar="TEXT", help="what masks' names have after their images', as _mask"
    )
    group.add_argument(
        "--data.val_share", metavar="SHARE", type=float, help="share held out as val, without a folder for it"
    )


def layout_of(args: argparse.Namespace, root: Path | None, models: Sequence[str] = ()) -> FolderLayout:
    """The layout that was asked for; fields that were not are those of the models' runs on the same folder.

    Raises:
        InputError: a share that is none, or runs of two layouts.
    """
    from meanshifter.data.layout import USUAL, FolderLayout, with_given

    given = FolderLayout(**{field.name: getattr(args, f"data.{field.name}") for field in fields(FolderLayout)})
    told = {model: found for model in models if root is not None and (found := _trained_on(model, root)) is not None}
    layouts = {with_given(layout, given): model for model, layout in told.items()}
    if len(layouts) > 1:
        (one, first), (two, second), *_ = layouts.items()
        raise InputError(
            f"{root}: {first} was trained on it with{one.options() or ' the usual layout'}, {second} "
            f"with{two.options() or ' the usual layout'}; say which with these options"
        )
    return next(iter(layouts), with_given(USUAL, given))


def _trained_on(model: str, root: Path) -> FolderLayout | None:
    """The layout under which the run of a model read the folder `root`; None for other models."""
    from meanshifter.data.layout import FolderLayout
    from meanshifter.documents import parse_yaml, read_text

    path = Path(model)
    run = next((at for at in (path, path.parent.parent) if (at / "config.yaml").is_file()), None)
    if run is None:
        return None
    try:
        data: Any = parse_yaml(read_text(run / "config.yaml"), run)["data"]
        if data["name"] != "folder" or Path(data["root"]).resolve() != root.resolve():
            return None
        return FolderLayout(**{field.name: data.get(field.name) for field in fields(FolderLayout)})
    except (KeyError, TypeError):  # the configuration of something else
        return None
