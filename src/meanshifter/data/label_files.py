"""The classes of a folder: from its labels.json or classes.txt, or from the values of its masks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from meanshifter.data.ambiguity import are_gray_levels, blended_masks, blended_message, labels_json
from meanshifter.data.decoding import decode_mask
from meanshifter.data.labels import Color, LabelSpace, are_distinct, default_palette
from meanshifter.data.mask_values import palette_of
from meanshifter.data.reading import mask_counts
from meanshifter.documents import parse_json, read_text
from meanshifter.errors import InputError

FIELDS: Final = ("names", "palette", "raw", "colors", "ignore")
LABELS_JSON: Final = "labels.json"
CLASSES_TXT: Final = "classes.txt"
BY_VALUES: Final = "the values of the masks"
GIVEN: Final = "the caller"
LOOK: Final = 16
"""Masks whose palettes are looked at for colours, evenly spaced."""


def folder_labels(
    folder: Path,
    masks: Callable[[], Sequence[Path]],
    classes: Sequence[str] | None,
    raw: Mapping[int, int] | None,
    colors: Mapping[Color, int] | None,
) -> tuple[LabelSpace, str]:
    """What was given, else what the folder's label file says, else what its masks hold; and which of these it was.

    Raises:
        InputError: a label file that cannot be understood, or masks that do not tell.
    """
    if classes is not None:
        return LabelSpace(tuple(classes), raw=raw, colors=colors), GIVEN
    if raw is not None or colors is not None:
        targets = {*(raw or {}).values(), *(colors or {}).values()}
        count = max((target for target in targets if target not in (255, 65535)), default=-1) + 1
        return LabelSpace(tuple(f"class {k}" for k in range(count)), raw=raw, colors=colors), GIVEN
    told = labels_of_files(folder)
    if told is not None:
        return with_mask_palette(told[0], look_at_palettes(masks)), told[1]
    found = masks()
    return with_mask_palette(discover(found, folder), look_at_palettes(lambda: found)), BY_VALUES


def labels_of_files(folder: Path) -> tuple[LabelSpace, str] | None:
    """What the folder's labels.json says, or its classes.txt, and the file's name; None where it has neither.

    Raises:
        InputError: a label file that cannot be understood.
    """
    if (folder / LABELS_JSON).is_file():
        return read_labels_json(folder / LABELS_JSON), LABELS_JSON
    if (folder / CLASSES_TXT).is_file():
        return read_classes(folder / CLASSES_TXT), CLASSES_TXT
    return None


def assumes_ignored(space: LabelSpace, named_by: str) -> bool:
    """Whether nobody has said that the ignored value is ignored: it is so by custom alone."""
    return named_by == BY_VALUES or (named_by != "" and space.raw is None and space.colors is None)


def read_classes(path: Path) -> LabelSpace:
    """One class name per line, in the order of the train ids; empty lines are skipped.

    Raises:
        InputError: no names, a name twice, or a file that is no text.
    """
    text = read_text(path)
    try:
        return LabelSpace(tuple(line.strip() for line in text.splitlines() if line.strip()))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_labels_json(path: Path) -> LabelSpace:
    """`names`, and optionally `palette`, `raw`, `colors` and `ignore`, as `LabelSpace.to_dict` writes them.

    `raw` may also be an object, {"0": 255, "1": 0}.

    Raises:
        InputError: no JSON, an unknown or missing field, or a value that means nothing.
    """
    data = parse_json(read_text(path), path)
    if not isinstance(data, dict) or "names" not in data:
        raise InputError(f'{path}: no "names"; write {{"names": ["background", "road"]}}')
    for key in data:
        if key not in FIELDS:
            near = get_close_matches(key, FIELDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"fields are {', '.join(FIELDS)}"
            raise InputError(f"{path}: unknown field {key!r}; {hint}")
    if isinstance(data.get("raw"), dict):
        data["raw"] = list(data["raw"].items())
    if data.get("palette") is None:
        data["palette"] = []
    if data.get("ignore") is None:
        data["ignore"] = -1
    return _parse(path, data)


def _parse(path: Path, data: dict[str, Any]) -> LabelSpace:
    try:
        return LabelSpace.from_dict(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f'{path}: {error}; "raw" holds [value, train id] pairs, "colors" [[r, g, b], train id] pairs'
        ) from error


def discover(masks: Sequence[Path], folder: Path) -> LabelSpace:
    """A class for every value that occurs in the masks, called after it; 255 (65535 in 16 bits) is ignored.

    Every mask is read, in threads: a value that only a sample would miss must not stop a training half way.

    Raises:
        InputError: as `mask_counts` and `space_of`; values that are no classes but blended edges.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        counted = [(path, *found) for path, found in zip(masks, pool.map(mask_counts, masks), strict=True)]
    blended, alone = blended_masks(counted)
    if blended:
        worst = max((mask for mask in counted if mask[0] in blended), key=lambda mask: len(mask[1]))
        raise InputError(
            f"{blended_message(*worst)} ({alone} such values in {len(blended)} of {len(counted)} masks); if they are "
            "classes all the same, name them in labels.json"
        )
    return space_of({int(value) for _, keys, _ in counted for value in keys}, folder)


def space_of(values: Iterable[int], folder: Path) -> LabelSpace:
    """A class for every value but the ignored one, as `discover` makes them.

    Raises:
        InputError: no value but the ignored one and at most one more, a negative one, or gray levels of which 255 may
            be a class or not.
    """
    found = sorted(set(values))
    ignored = {255, 65535} if len(found) <= 256 else {65535}
    values = [value for value in found if value not in ignored]
    if 255 in found and (len(values) < 2 or are_gray_levels(found)):
        raise InputError(_question(found, folder))
    if len(values) < 2:
        raise InputError(f"{folder}: the masks hold only the value {found[0]}; two classes or more can be learnt")
    if min(values) < 0:
        raise InputError(f"{folder}: the masks hold the value {min(values)}; map it to a train id in labels.json")
    names = tuple(f"class {value}" for value in values)
    if values == list(range(len(values))) and not (len(names) <= 255 and 65535 in found):
        return LabelSpace(names)
    ignore = 255 if len(names) <= 255 else 65535
    return LabelSpace(names, raw={**{v: k for k, v in enumerate(values)}, **dict.fromkeys(ignored, ignore)})


def _question(found: Sequence[int], folder: Path) -> str:
    """Whether 255 is a class, and the labels.json to write for either answer."""
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
    return f"{text}, if it is to be ignored: {labels_json(names[: len(others)], ignoring)}"


def look_at_palettes(masks: Callable[[], Sequence[Path]]) -> list[Sequence[Color]]:
    """The colours by index of some of the masks that have a palette; what cannot be read is told when it is needed."""
    found = []
    for path in _spread(masks()):
        with suppress(InputError):
            found.append(palette_of(decode_mask(path).picture))
    return [colors for colors in found if colors]


def _spread(paths: Sequence[Path]) -> list[Path]:
    step = max(len(paths) // LOOK, 1)
    return list(paths[::step][:LOOK])


def with_mask_palette(space: LabelSpace, palettes: Sequence[Sequence[Color]]) -> LabelSpace:
    """The label space in the colours of the masks' palettes, where it has only default ones and the masks agree.

    A palette that does not tell all classes apart, such as one of neighbouring greys, is passed over.
    """
    if space.palette != default_palette(space.names) or space.colors is not None or not palettes:
        return space
    value_of: dict[int, int] = {}
    for value, target in (space.raw or {k: k for k in range(space.num_classes)}).items():
        value_of.setdefault(target, value)
    values = [value_of.get(k, -1) for k in range(space.num_classes)]
    told = {
        tuple(colors[value] if 0 <= value < len(colors) else None for value in values) for colors in map(list, palettes)
    }
    colors = told.pop()
    if told or not are_distinct(colors):
        return space
    return replace(space, palette=tuple(color for color in colors if color is not None))
