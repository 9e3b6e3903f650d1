"""The classes of a folder, from its labels.json or classes.txt, or from the values of its masks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from meanshifter.data.images import decode_mask
from meanshifter.data.labels import Color, LabelSpace, are_distinct, default_palette
from meanshifter.data.masks import are_gray_levels, blended_masks, blended_message, labels_json, palette_of
from meanshifter.data.predictions import RECORD, predictions_in
from meanshifter.data.reading import mask_counts
from meanshifter.errors import InputError, did_you_mean
from meanshifter.utils.files import parse_json, read_text

FIELDS: Final = ("names", "palette", "raw", "colors", "ignore")
BY_VALUES: Final = "the values of the masks"
GIVEN: Final = "the arguments"
_PALETTES: Final = 16  # masks whose palettes are read, evenly spaced


def folder_labels(
    folder: Path,
    masks: Callable[[], Sequence[Path]],
    classes: Sequence[str] | None,
    raw: Mapping[int, int] | None,
    colors: Mapping[Color, int] | None,
) -> tuple[LabelSpace, str]:
    """The label space from the arguments, else from the folder's label file, else from its masks; and its origin."""
    if classes is not None:
        return LabelSpace(tuple(classes), raw=raw, colors=colors), GIVEN
    if raw is not None or colors is not None:
        targets = {*(raw or {}).values(), *(colors or {}).values()}
        count = max((target for target in targets if target not in (255, 65535)), default=-1) + 1
        return LabelSpace(tuple(f"class {k}" for k in range(count)), raw=raw, colors=colors), GIVEN
    from_file = labels_of_files(folder)
    if from_file is not None:
        return with_mask_palette(from_file[0], look_at_palettes(masks)), from_file[1]
    found = masks()
    return with_mask_palette(discover(found, folder), look_at_palettes(lambda: found)), BY_VALUES


def labels_of_files(folder: Path) -> tuple[LabelSpace, str] | None:
    """The label space of the folder's labels.json or classes.txt, and the file's name; None if it has neither.

    In a folder of label maps, the record that `predict` wrote has it.
    """
    for name, read in (("labels.json", read_labels_json), ("classes.txt", read_classes)):
        if (folder / name).is_file():
            return read(folder / name), name
    predicted = predictions_in(folder)
    return None if predicted is None else (predicted.label_space, RECORD)


def assumes_ignored(label_space: LabelSpace, named_by: str) -> bool:
    """Whether the ignored value is ignored by convention only, because the user has not said so."""
    return named_by == BY_VALUES or (named_by != "" and label_space.raw is None and label_space.colors is None)


def read_classes(path: Path) -> LabelSpace:
    """Read one class name per line, in the order of the train ids; empty lines are skipped.

    Raises:
        InputError: there are no names, a name occurs twice, or the file is not text.
    """
    text = read_text(path)
    try:
        return LabelSpace(tuple(line.strip() for line in text.splitlines() if line.strip()))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_labels_json(path: Path) -> LabelSpace:
    """Read `names`, and optionally `palette`, `raw`, `colors` and `ignore`, as `LabelSpace.to_dict` writes them.

    `raw` may also be an object, {"0": 255, "1": 0}.

    Raises:
        InputError: the file is not JSON, a field is unknown or missing, or a value is invalid.
    """
    data = parse_json(read_text(path), path)
    if not isinstance(data, dict) or "names" not in data:
        raise InputError(f'{path}: no field "names"; write {{"names": ["background", "road"]}}')
    for key in data:
        if key not in FIELDS:
            hint = did_you_mean(key, FIELDS, f"expected {', '.join(FIELDS)}")
            raise InputError(f"{path}: unknown field {key!r}; {hint}")
    if isinstance(data.get("raw"), dict):
        data["raw"] = list(data["raw"].items())
    if data.get("palette") is None:
        data["palette"] = []
    if data.get("ignore") is None:
        data["ignore"] = -1
    try:
        return LabelSpace.from_dict(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f'{path}: {error}; "raw" holds [value, train id] pairs, "colors" [[r, g, b], train id] pairs'
        ) from error


def discover(masks: Sequence[Path], folder: Path) -> LabelSpace:
    """A label space with a class for every value in the masks, named after it; 255 (65535 in 16 bits) is ignored.

    Every mask is read, in threads: a value that a sample misses must not stop a training halfway. Raises as
    `mask_counts` and `space_of`, and for values that are blended edges, not classes.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        counted = [(path, *found) for path, found in zip(masks, pool.map(mask_counts, masks), strict=True)]
    blended, alone = blended_masks(counted)
    if blended:
        worst = max((mask for mask in counted if mask[0] in blended), key=lambda mask: len(mask[1]))
        raise InputError(
            f"{blended_message(*worst)} ({alone} such values in {len(blended)} of {len(counted)} masks); if they are "
            "classes after all, name them in labels.json"
        )
    return space_of({int(value) for _, keys, _ in counted for value in keys}, folder)


def space_of(values: Iterable[int], folder: Path) -> LabelSpace:
    """A label space with a class for every value except the ignored one.

    Raises:
        InputError: fewer than two values apart from the ignored one; a negative value; or gray levels, of which 255
            may be a class.
    """
    found = sorted(set(values))
    ignored = {255, 65535} if len(found) <= 256 else {65535}
    values = [value for value in found if value not in ignored]
    if 255 in found and (len(values) < 2 or are_gray_levels(found)):
        raise InputError(_question(found, folder))
    if len(values) < 2:
        raise InputError(f"{folder}: the masks hold only the value {found[0]}; training needs at least two classes")
    if min(values) < 0:
        raise InputError(f"{folder}: the masks hold the value {min(values)}; map it to a train id in labels.json")
    names = tuple(f"class {value}" for value in values)
    if values == list(range(len(values))) and not (len(names) <= 255 and 65535 in found):
        return LabelSpace(names)
    ignore = 255 if len(names) <= 255 else 65535
    return LabelSpace(names, raw={**{v: k for k, v in enumerate(values)}, **dict.fromkeys(ignored, ignore)})


def _question(found: Sequence[int], folder: Path) -> str:
    """The question whether 255 is a class, with the labels.json to write for either answer."""
    others = [value for value in found if value != 255]
    names = ["background", "object"] if found == [0, 255] else [f"class {value}" for value in found]
    listed = " and ".join((", ".join(map(str, others)), "255")) if others else "255"
    text = (
        f"{folder}: the masks hold only {listed}, and 255 means ignored unless labels.json says otherwise; if it is a "
        f"class, write labels.json: {labels_json(names, {value: k for k, value in enumerate(found)})}"
    )
    if len(others) < 2:
        return text
    ignoring = {**{value: k for k, value in enumerate(others)}, 255: 255}
    return f"{text}, if it should be ignored: {labels_json(names[: len(others)], ignoring)}"


def look_at_palettes(masks: Callable[[], Sequence[Path]]) -> list[Sequence[Color]]:
    """The palettes (colors by index) of a sample of the masks; unreadable masks are reported when they are needed."""
    found, paths = [], masks()
    for path in paths[:: max(len(paths) // _PALETTES, 1)][:_PALETTES]:
        with suppress(InputError):
            found.append(palette_of(decode_mask(path).picture))
    return [colors for colors in found if colors]


def with_mask_palette(label_space: LabelSpace, palettes: Sequence[Sequence[Color]]) -> LabelSpace:
    """Replace a default palette by the one of the masks, if all masks agree.

    A palette that does not distinguish all classes, such as one of neighboring grays, is not used.
    """
    if label_space.palette != default_palette(label_space.names) or label_space.colors is not None or not palettes:
        return label_space
    value_of: dict[int, int] = {}
    for value, target in (label_space.raw or {k: k for k in range(label_space.num_classes)}).items():
        value_of.setdefault(target, value)
    values = [value_of.get(k, -1) for k in range(label_space.num_classes)]
    found = {
        tuple(colors[value] if 0 <= value < len(colors) else None for value in values) for colors in map(list, palettes)
    }
    colors = found.pop()
    if found or not are_distinct(colors):
        return label_space
    return replace(label_space, palette=tuple(color for color in colors if color is not None))
