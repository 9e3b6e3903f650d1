"""A repaired copy of a data set: what can be put right without guessing is, the rest is left out and listed."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from meanshifter.data.decoding import Decoded, decode_image, decode_mask, stored_turn, upright
from meanshifter.data.doctor.findings import KINDS, Finding
from meanshifter.data.doctor.report import Report
from meanshifter.data.doctor.values import by_color, colors_tell, count_values, index_map, pack, packed_colors
from meanshifter.data.labels import Labels, LabelSpace
from meanshifter.data.layout import SPLIT_FOLDERS
from meanshifter.data.listing import Pair
from meanshifter.data.mask_values import indices
from meanshifter.data.reading import rgb
from meanshifter.documents import dump_json
from meanshifter.errors import InputError
from meanshifter.files import folder_beside, write_beside, write_text

DROPPED: Final = ("unreadable-image", "unreadable-mask", "size", "lossy-mask", "all-ignored", "copy-across")
LISTED: Final = ("image-without-mask", "mask-without-image", "same-name")


@dataclass
class Repair:
    """What was done."""

    out: Path
    kept: int = 0
    """Pairs in the copy."""
    changed: list[tuple[str, str]] = field(default_factory=list)
    """File and what was done to it, beyond storing class numbers as the new labels.json reads them."""
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

    The folder has `images/SPLIT`, `masks/SPLIT`, `labels.json` and `repair.json`, the lists of `Repair`; it appears
    when it is whole. The checked files are only read. Of equal images in two splits the one of the last split stays.

    Args:
        report: of the data set.
        out: a folder that does not exist, or is empty.
        ignore_unknown: pixels of values outside the label map become ignored; else their pairs are left out.
        advance: told the number of pairs done and of all.

    Raises:
        InputError: no classes, nothing that can be kept, or a place that will not do.
    """
    out = Path(out)
    space = _check(report, out)
    about: defaultdict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in report.findings:
        about[finding.split, finding.name].append(finding)
    done = Repair(out)
    done.left_out += [(f.message.partition(": ")[0], KINDS[f.kind].title) for f in report.findings if f.kind in LISTED]
    work = [(split, pair) for split, pairs in report.pairs.items() for pair in pairs]
    with folder_beside(out) as folder:
        for number, (split, pair) in enumerate(work, 1):
            _repair_pair(pair, folder, split, {f.kind for f in about[split, pair.name]}, space, ignore_unknown, done)
            advance(number, len(work))
        if not done.kept:
            raise InputError(f"{report.root}: no pair can be kept; `meanshifter data check` says why")
        # spelled out, so that nobody asks whether the ignored value is a class
        raw = {k: k for k in (*range(space.num_classes), space.ignore)}
        plain = LabelSpace(space.names, space.palette, raw, ignore=space.ignore)
        write_text(folder / "labels.json", dump_json(plain.to_dict(), indent=1))
        write_text(folder / "repair.json", dump_json(done.to_dict(), indent=1))
    return done


def _check(report: Report, out: Path) -> LabelSpace:
    if report.space is None:
        raise InputError(f"{report.root}: without classes no mask can be rewritten; write labels.json, then repair")
    strange = [split for split in report.pairs if split not in (*SPLIT_FOLDERS, "all")]
    if strange:
        raise InputError(f"--split {strange[0]}: a repaired folder has train, val and test; repair those")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists; name a new folder for the repaired copy")
    if out.resolve().is_relative_to(report.root.resolve()):
        raise InputError(f"{out}: lies within {report.root}, which is not to be changed; name a folder outside")
    return report.space


def _repair_pair(
    pair: Pair, folder: Path, split: str, kinds: set[str], space: LabelSpace, ignore_unknown: bool, done: Repair
) -> None:
    reason: str | None = next((kind for kind in DROPPED if kind in kinds), None)
    if reason is None and "outside" in kinds and not ignore_unknown:
        reason = "outside"
    if reason is not None:
        done.left_out.append((str(pair.image), KINDS[reason].title))
        return
    mask = decode_mask(pair.mask)
    labels = _labels(mask.picture, pair.mask, space)
    if labels is None or (labels == space.ignore).all():
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
    # PNG: another round of JPEG would cost quality
    write_beside(folder / f"{pair.name}.png", lambda file: turned.save(file, format="PNG"))
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
    write_beside(path, lambda file: turned.save(file, format="PNG"))


def _labels(picture: Image.Image, path: Path, space: LabelSpace) -> Labels | None:
    """(H, W) train ids, what is outside the label map ignored; None where colours cannot be told."""
    values = count_values(picture)
    if not by_color(values, space):
        return _looked_up(np.asarray(indices(picture, path), np.int64), index_map(space), space)
    colors = space.colors if space.colors else colors_tell(values, space)
    if colors is None:
        return None
    mapping = {pack(color): target for color, target in colors.items()}
    picture = picture if values.colored else picture.convert("RGBA")
    return _looked_up(packed_colors(picture).astype(np.int64), mapping, space)


def _looked_up(values: np.typing.NDArray[np.int64], mapping: dict[int, int], space: LabelSpace) -> Labels:
    keys, place = np.unique(values, return_inverse=True)
    table = np.array([mapping.get(key, space.ignore) for key in keys.tolist()], space.dtype)
    found: Labels = table[place].reshape(values.shape)
    return found
