"""The classes of a folder: from its labels.json or classes.txt, or from the values of its masks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import numpy as np

from meanshifter.data.labels import Color, LabelSpace
from meanshifter.data.reading import mask_values
from meanshifter.documents import parse_json, read_text
from meanshifter.errors import InputError

FIELDS: Final = ("names", "palette", "raw", "colors", "ignore")


def folder_labels(
    folder: Path,
    masks: Callable[[], Sequence[Path]],
    classes: Sequence[str] | None,
    raw: Mapping[int, int] | None,
    colors: Mapping[Color, int] | None,
) -> LabelSpace:
    """What was given, else what the folder's label file says, else what its masks hold.

    Raises:
        InputError: a label file that cannot be understood, or masks that do not tell.
    """
    if classes is not None:
        return LabelSpace(tuple(classes), raw=raw, colors=colors)
    if raw is not None or colors is not None:
        targets = {*(raw or {}).values(), *(colors or {}).values()}
        count = max((target for target in targets if target not in (255, 65535)), default=-1) + 1
        return LabelSpace(tuple(f"class {k}" for k in range(count)), raw=raw, colors=colors)
    told = labels_of_files(folder)
    return discover(masks(), folder) if told is None else told


def labels_of_files(folder: Path) -> LabelSpace | None:
    """What the folder's labels.json says, or its classes.txt; None where it has neither.

    Raises:
        InputError: a label file that cannot be understood.
    """
    if (folder / "labels.json").is_file():
        return read_labels_json(folder / "labels.json")
    if (folder / "classes.txt").is_file():
        return read_classes(folder / "classes.txt")
    return None


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
        InputError: as `mask_values`; no value but the ignored one and at most one more.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = {int(v) for values in pool.map(mask_values, masks) for v in np.asarray(values)}
    return space_of(found, folder)


def space_of(values: Iterable[int], folder: Path) -> LabelSpace:
    """A class for every value but the ignored one, as `discover` makes them.

    Raises:
        InputError: no value but the ignored one and at most one more, or a negative one.
    """
    found = sorted(set(values))
    ignored = {255, 65535} if len(found) <= 256 else {65535}
    values = [value for value in found if value not in ignored]
    if len(values) < 2 and 255 in found:
        raise InputError(
            f"{folder}: the masks hold only {' and '.join(map(str, found))}, and 255 means ignored; if it is a class, "
            'write labels.json: {"names": ["background", "object"], "raw": {"0": 0, "255": 1}}'
        )
    if len(values) < 2:
        raise InputError(f"{folder}: the masks hold only the value {found[0]}; two classes or more can be learnt")
    if min(values) < 0:
        raise InputError(f"{folder}: the masks hold the value {min(values)}; map it to a train id in labels.json")
    names = tuple(f"class {value}" for value in values)
    if values == list(range(len(values))) and not (len(names) <= 255 and 65535 in found):
        return LabelSpace(names)
    ignore = 255 if len(names) <= 255 else 65535
    return LabelSpace(names, raw={**{v: k for k, v in enumerate(values)}, **dict.fromkeys(ignored, ignore)})
