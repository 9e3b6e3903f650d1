"""The page of the data check: findings with pictures, mask values with their classes, and classes by split."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from meanshifter.analysis.figures import fitted
from meanshifter.analysis.html import IGNORED, Bar, Page, Pixels, ignored_color
from meanshifter.data.doctor import KINDS, Finding, Report
from meanshifter.data.doctor.examine import by_color, count_values
from meanshifter.data.doctor.text import BALANCE, summary_line
from meanshifter.data.images import decode_image, decode_mask
from meanshifter.data.labels import Color, LabelSpace
from meanshifter.data.layout import Pair
from meanshifter.data.masks import index_map, indices, pack, packed_colors
from meanshifter.data.reading import rgb
from meanshifter.errors import InputError

CASES: Final = 3
"""Cases of each kind that are shown as pictures."""
LISTED: Final = 50
"""Cases of each kind that are listed."""
SAMPLES: Final = 4
"""Pairs of each split that are shown in any case."""
SIDE: Final = 320
STRANGE: Final = (255, 0, 255)
"""Color of pixels whose value is not in the label map."""
NEUTRAL: Final = (110, 130, 160)


def save_page(report: Report, path: str | Path) -> None:
    """Write the page as one HTML file.

    Raises:
        InputError: the file cannot be written.
    """
    page = Page(f"Check of {report.root}")
    notices = len(report.findings) - len(report.faults)
    splits = ", ".join(f"{split} {len(pairs):,}" for split, pairs in report.pairs.items())
    page.text(f"Pairs of image and mask: {splits}. Faults: {len(report.faults):,}; notices: {notices:,}.")
    if report.findings:
        page.table(
            ["finding", "kind", "cases"],
            [
                [KINDS[kind].title, "fault" if KINDS[kind].fault else "notice", f"{len(found):,}"]
                for kind, found in report.by_kind.items()
            ],
        )
    if report.label_space is not None:
        page.text(f"{summary_line(report, report.label_space)}.")
    _values(page, report)
    _samples(page, report)
    for kind, found in report.by_kind.items():
        page.heading(f"{KINDS[kind].title[0].upper()}{KINDS[kind].title[1:]}: {len(found):,}")
        page.text(f"What to do: {KINDS[kind].remedy}.")
        more = [f"… and {len(found) - LISTED:,} more, in the JSON"] if len(found) > LISTED else []
        page.code("\n".join([finding.message for finding in found[:LISTED]] + more))
        for finding in found[:CASES]:
            if pictures := _pictures(finding, report):
                page.pictures([pictures], columns=3)
    page.save(path)


def _values(page: Page, report: Report) -> None:
    """Histograms of mask values and classes, the classes by split, and the image modes of masks."""
    total = max(sum(row.pixels for row in report.raw), 1)
    pixels = {row.name: sum(row.pixels.values()) for row in report.classes} | {"ignored": report.ignored}
    colors: dict[str, Color] = {"ignored": IGNORED}
    if report.label_space is not None:
        colors = dict(zip(report.label_space.names, report.label_space.palette, strict=True))
        colors["ignored"] = ignored_color(report.label_space)
    page.heading("Mask values and their classes")
    rows: list[list[Bar | str]] = []
    for row in report.raw:
        new = row.target in pixels and all(row.target != earlier[3] for earlier in rows)
        share = Bar(pixels[row.target] / total, colors[row.target]) if new else ""
        rows.append([row.value, Bar(row.pixels / total, NEUTRAL), "→", row.target or "?", share])
    reached = {row.target for row in report.raw}
    rows += [["–", "", "", row.name, Bar(0.0, colors[row.name])] for row in report.classes if row.name not in reached]
    page.bars(["value", "pixels", "", "class", "pixels"], rows)
    splits = list(report.pairs)
    if report.classes:
        page.heading("Classes")
        page.text(f"The loss weights are those of class_weight_power {BALANCE}, from the pixels of {splits[0]}.")
        page.table(
            ["class", *(f"{split}: {what}" for split in splits for what in ("pixels", "images")), "weight"],
            [
                [
                    row.name,
                    *(f"{count[split]:,}" for split in splits for count in (row.pixels, row.images)),
                    "–" if math.isnan(row.weight) else f"{row.weight:.2f}",
                ]
                for row in report.classes
            ],
        )
    page.table(["masks", "count", "how they are read"], [[m.mode, f"{m.masks:,}", m.reading] for m in report.modes])


def _samples(page: Page, report: Report) -> None:
    """Some pairs of every split, for a visual check."""
    page.heading("Samples")
    if report.label_space is not None:
        page.legend(report.label_space)
    for pairs in report.pairs.values():
        for place in sorted({number * len(pairs) // SAMPLES for number in range(SAMPLES)} if pairs else ()):
            page.pictures([_pair(pairs[place], report)], columns=2)


def _pictures(finding: Finding, report: Report) -> dict[str, Pixels]:
    """The image and mask of a case, or the two similar images; nothing for findings without a file."""
    pair = next((pair for pair in report.pairs.get(finding.split, ()) if pair.name == finding.name), None)
    about_images = finding.kind in ("copy-across", "copy-within", "near-copy", "same-name")
    if pair is not None and finding.files and not about_images:
        return _pair(pair, report)
    return {_caption(path, report): _image(path) for path in finding.files}


def _caption(path: Path, report: Report) -> str:
    return str(path.relative_to(report.root)) if path.is_relative_to(report.root) else str(path)


def _pair(pair: Pair, report: Report) -> dict[str, Pixels]:
    image, mask = _caption(pair.image, report), _caption(pair.mask, report)
    return {image: _image(pair.image), f"{mask} ": _mask(pair.mask, report.label_space)}


def _image(path: Path) -> Pixels:
    try:
        return fitted(rgb(decode_image(path).upright, path), side=SIDE, photo=True)
    except InputError:
        return _unreadable()


def _unreadable() -> Pixels:
    """A crossed box, for a file that cannot be read."""
    box = Image.new("RGB", (SIDE, SIDE * 3 // 4), (200, 200, 200))
    draw = ImageDraw.Draw(box)
    w, h = box.size
    draw.line([(0, 0), (w, h)], fill=(120, 120, 120), width=2)
    draw.line([(0, h), (w, 0)], fill=(120, 120, 120), width=2)
    draw.text((w // 2, h // 2), "cannot be read", fill=(0, 0, 0), anchor="mm", font_size=20)
    return np.asarray(box)


def _mask(path: Path, label_space: LabelSpace | None) -> Pixels:
    """The mask in class colors; values that are not in the label map are magenta."""
    try:
        mask = decode_mask(path, lossy=True)
        picture = mask.upright
        values = count_values(picture)
    except InputError:
        return _unreadable()
    if label_space is None or mask.header.lossy or (by_color(values, label_space) and not label_space.colors):
        return fitted(np.asarray(picture.convert("RGB")), side=SIDE)
    mapping: dict[int, int]
    if by_color(values, label_space):
        mapping = {pack(color): target for color, target in (label_space.colors or {}).items()}
        keys = packed_colors(picture if values.colored else picture.convert("RGBA")).astype(np.int64)
    else:
        mapping = index_map(label_space)
        keys = indices(picture, path).astype(np.int64)
    found, place = np.unique(keys, return_inverse=True)
    paints = {**dict(enumerate(label_space.palette)), label_space.ignore: ignored_color(label_space)}
    table = [paints[mapping[key]] if key in mapping else STRANGE for key in found.tolist()]
    return fitted(np.array(table, np.uint8)[place].reshape(*keys.shape, 3), side=SIDE)
