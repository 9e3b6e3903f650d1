"""Write a repaired copy of a dataset: fix what needs no guessing, leave out and list the rest."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from meanshifter.data.doctor.examine import by_color, colors_tell, count_values
from meanshifter.data.doctor.findings import KINDS, Report
from meanshifter.data.images import Decoded, decode_image, decode_mask, stored_turn, upright
from meanshifter.data.labels import Color, Labels, LabelSpace
from meanshifter.data.layout import SPLIT_FOLDERS, Pair
from meanshifter.data.masks import EDGES, index_map, indices, labels_json, pack, packed_colors
from meanshifter.data.reading import rgb
from meanshifter.errors import InputError
from meanshifter.utils.files import dump_json, replace_folder, write_atomically, write_text

DROPPED: Final = ("unreadable-image", "unreadable-mask", "size", "lossy-mask", "all-ignored", "copy-across")
LISTED: Final = ("image-without-mask", "mask-without-image", "same-name")
MOST: Final = 1_000
"""More different values or colors cannot be classes."""


@dataclass
class Repair:
    """What `repair` did."""

    out: Path
    kept: int = 0
    """Pairs in the copy."""
    changed: list[tuple[str, str]] = field(default_factory=list)
    """File and what was changed, apart from the class numbers that the new labels.json implies."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """File and reason."""

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        return {
            "format_version": 1,
            "kept": self.kept,
            "changed": [{"file": file, "what": what} for file, what in self.changed],
            "left_out": [{"file": file, "why": why} for file, why in self.left_out],
        }


def repair(
    report: Report,
    out: str | Path,
    *,
    ignore_unknown: bool = False,
    advance: Callable[[int, int], None] = lambda done, count: None,
) -> Repair:
    """Write a folder that `Folder` reads: images as they are or turned upright, masks as 8-bit class numbers.

    The folder holds `images/SPLIT`, `masks/SPLIT`, `labels.json`, and the lists of `Repair` in `repair.json`; it
    appears once it is complete. The checked files are not changed. Of equal images in two splits, the one of the last
    split is kept.

    Args:
        report: the check of the dataset.
        out: a folder that does not exist or is empty.
        ignore_unknown: ignore pixels of values outside the label map; otherwise their pairs are left out.
        advance: called with the number of finished pairs and the number of all pairs.

    Raises:
        InputError: there are no classes, no pair can be kept, or `out` cannot be used.
    """
    out, space = Path(out), report.label_space
    if space is None:
        raise InputError(f"{report.root}: masks cannot be rewritten without classes; write labels.json, then repair")
    strange = [split for split in report.pairs if split not in (*SPLIT_FOLDERS, "all")]
    if strange:
        raise InputError(f"--split {strange[0]}: a repaired folder has the splits train, val and test; repair those")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists; name a new folder for the repaired copy")
    if out.resolve().is_relative_to(report.root.resolve()):
        raise InputError(f"{out}: lies within {report.root}, which is not to be changed; name a folder outside it")
    kinds: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for finding in report.findings:
        kinds[finding.split, finding.name].add(finding.kind)
    done = Repair(out)
    done.left_out += [(f.message.partition(": ")[0], KINDS[f.kind].title) for f in report.findings if f.kind in LISTED]
    work = [(split, pair) for split, pairs in report.pairs.items() for pair in pairs]
    with replace_folder(out) as folder:
        for number, (split, pair) in enumerate(work, 1):
            _repair_pair(pair, folder, split, kinds[split, pair.name], space, ignore_unknown, done)
            advance(number, len(work))
        if not done.kept:
            raise InputError(f"{report.root}: no pair can be kept; `meanshifter data check` says why")
        # explicit, which settles the question whether the ignored value is a class
        raw = {k: k for k in (*range(space.num_classes), space.ignore)}
        plain = LabelSpace(space.names, space.palette, raw, ignore=space.ignore)
        write_text(folder / "labels.json", dump_json(plain.to_dict(), indent=1))
        write_text(folder / "repair.json", dump_json(done.to_dict(), indent=1))
    return done


def _repair_pair(
    pair: Pair, folder: Path, split: str, kinds: set[str], label_space: LabelSpace, ignore_unknown: bool, done: Repair
) -> None:
    reason: str | None = next((kind for kind in DROPPED if kind in kinds), None)
    if reason is None and "outside" in kinds and not ignore_unknown:
        reason = "outside"
    if reason is not None:
        done.left_out.append((str(pair.image), KINDS[reason].title))
        return
    mask = decode_mask(pair.mask)
    labels = _labels(mask.picture, pair.mask, label_space)
    if labels is None or (labels == label_space.ignore).all():
        done.left_out.append((str(pair.image), KINDS["mask-mode" if labels is None else "all-ignored"].title))
        return
    turn = stored_turn(pair.image)
    unsure = "orientation-unsure" in kinds
    mask_turn = turn if "orientation" in kinds else mask.turn
    part = "" if split == "all" else split
    _write_image(pair, folder / "images" / part, 1 if unsure else turn, done)
    _write_mask(pair, folder / "masks" / part / f"{pair.name}.png", mask, labels, 1 if unsure else mask_turn, done)
    if "outside" in kinds:
        done.changed.append((str(pair.mask), "values outside the label map are ignored"))
    done.kept += 1


def _write_image(pair: Pair, folder: Path, turn: int, done: Repair) -> None:
    if turn == 1:
        target = folder / f"{pair.name}{pair.image.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(pair.image, target)
        return
    turned = Image.fromarray(rgb(decode_image(pair.image).upright, pair.image))
    # as PNG, since compressing a JPEG again would lose quality
    write_atomically(folder / f"{pair.name}.png", lambda file: turned.save(file, format="PNG"))
    done.changed.append((str(pair.image), "turned upright, stored as PNG"))


def _write_mask(pair: Pair, path: Path, mask: Decoded, labels: Labels, turn: int, done: Repair) -> None:
    picture = mask.picture
    if turn != 1:
        done.changed.append((str(pair.mask), "turned upright"))
    elif mask.header.format == "PNG" and picture.mode == "L" and np.array_equal(np.asarray(picture), labels):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(pair.mask, path)
        return
    if picture.mode != "L":
        done.changed.append((str(pair.mask), f"stored as {8 * labels.itemsize}-bit class numbers"))
    turned = upright(Image.fromarray(labels), turn)
    write_atomically(path, lambda file: turned.save(file, format="PNG"))


def _labels(picture: Image.Image, path: Path, label_space: LabelSpace) -> Labels | None:
    """Train ids (H, W), ignored where the label map has no entry; None if colors cannot be mapped."""
    counted = count_values(picture)
    if by_color(counted, label_space):
        colors = label_space.colors or colors_tell(counted, label_space)
        if colors is None:
            return None
        mapping = {pack(color): target for color, target in colors.items()}
        values = packed_colors(picture if counted.colored else picture.convert("RGBA")).astype(np.int64)
    else:
        mapping, values = index_map(label_space), np.asarray(indices(picture, path), np.int64)
    keys, place = np.unique(values, return_inverse=True)
    table = np.array([mapping.get(key, label_space.ignore) for key in keys.tolist()], label_space.dtype)
    found: Labels = table[place].reshape(values.shape)
    return found


def write_skeleton(report: Report, path: str | Path) -> LabelSpace:
    """Write a labels.json in which every value or color that occurs in the masks has a class or is ignored.

    Classes keep their names. Values outside the label map get the unused names, in their order, if there are as many
    of both; otherwise each value becomes a class of its own. Colors without a map are named after themselves.

    Raises:
        InputError: the file exists, no mask could be counted, the values are not classes, or the file cannot be
            written.
    """
    path = Path(path)
    if path.exists():
        raise InputError(f"{path}: exists; move it away, or name another file with --write-labels FILE")
    if blended := next((f for f in report.findings if f.kind == "blended" or EDGES in f.message), None):
        raise InputError(f"--write-labels: {blended.message}")
    values, colors = _counted(report)
    if not values and not colors:
        raise InputError(f"{report.root}: no mask could be counted; correct the faults first")
    if len(values) + len(colors) > MOST:
        raise InputError(
            f"{report.root}: {len(values) + len(colors):,} values or colors are too many for classes (at most "
            f"{MOST:,}); export the masks without smoothing or compression"
        )
    space = _space(report, values, colors)
    write_text(path, labels_json(space.names, space.raw, space.colors, palette=space.palette, lines=True))
    return space


def _counted(report: Report) -> tuple[list[int], list[Color]]:
    """The values and the colors that occur, in ascending order."""
    if report.paints:
        return [], sorted(report.paints)
    values = [int(row.value) for row in report.raw if not row.value.startswith("(")]
    colors = [json.loads(f"[{row.value[1:-1]}]") for row in report.raw if row.value.startswith("(")]
    return sorted(values), sorted((red, green, blue) for red, green, blue in colors)


def _space(report: Report, values: Sequence[int], colors: Sequence[Color]) -> LabelSpace:
    known = report.label_space
    if known is not None and colors and not values and not known.colors:
        known = None  # it is unknown which of its names belongs to which color
    names: list[str] = [] if known is None else list(known.names)
    ignore = -1 if known is None else known.ignore
    raw = _known_values(report, known, values)
    mapped = {} if known is None else dict(known.colors or {})
    strange = [value for value in values if value not in raw]
    occurring = {row.target for row in report.raw}
    free = [k for k, name in enumerate(names) if name not in occurring]
    if strange and len(free) == len(strange):
        raw |= dict(zip(strange, free, strict=True))
    for value in strange:
        raw.setdefault(value, len(names))
        names += [f"class {value}"] * (raw[value] == len(names))
    for color in (color for color in colors if color not in mapped):
        mapped[color] = len(names)
        names.append(f"color {color[0]} {color[1]} {color[2]}")
    palette = known.palette if known is not None and len(names) == known.num_classes else ()
    met = {raw[value] for value in values}
    raw = {value: target for value, target in sorted(raw.items()) if value in values or target not in met | {ignore}}
    return LabelSpace(tuple(names), palette, raw or None, mapped or None, ignore)


def _known_values(report: Report, known: LabelSpace | None, values: Sequence[int]) -> dict[int, int]:
    """What the values mean according to the label map; an ignored value that may be a class is left out."""
    if known is None or not values:
        return {}
    raw = index_map(known)
    if report.question is None or not report.question.strong:
        return raw
    doubtful = {int(value) for value in report.question.values if value.isdecimal()}
    if any(row.target == "outside" for row in report.raw):
        return {value: target for value, target in raw.items() if value not in doubtful}
    return raw | dict.fromkeys(doubtful, report.question.target)
