"""Draw the pictures of the pages on concepts, as SVG that is legible on light and dark pages.

python docs/drawings.py
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

FOLDER: Final = Path(__file__).parent / "images"
STYLE: Final = """
  svg { font: 13px system-ui, sans-serif; }
  .page { fill: #fbfbfd; } .ink { fill: #24292f; } .faint { fill: #57606a; }
  .line { stroke: #57606a; fill: none; stroke-width: 1.3; } .soft { stroke: #afb8c1; fill: none; stroke-width: 1; }
  .arrow { stroke: #24292f; fill: none; stroke-width: 1.5; marker-end: url(#head); } .head { fill: #24292f; }
  .a { fill: #0969da; } .b { fill: #bc4c00; } .c { fill: #1a7f37; }
  .no { stroke: #cf222e; stroke-width: 3; fill: none; }
  .path { fill: none; stroke-width: 1.1; opacity: .75; }
  .path.a { stroke: #0969da; fill: none; } .path.b { stroke: #bc4c00; fill: none; }
  .path.c { stroke: #1a7f37; fill: none; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #161b22; } .ink, .head { fill: #e6edf3; } .faint { fill: #9ea7b3; }
    .line { stroke: #9ea7b3; } .soft { stroke: #484f58; } .arrow { stroke: #e6edf3; }
    .a { fill: #58a6ff; } .b { fill: #f0883e; } .c { fill: #56d364; } .no { stroke: #ff7b72; }
    .path.a { stroke: #58a6ff; } .path.b { stroke: #f0883e; } .path.c { stroke: #56d364; }
  }"""
Points = npt.NDArray[np.float64]
"""(N, 2) as (x, y)."""


def main() -> None:
    """Write all drawings."""
    FOLDER.mkdir(exist_ok=True)
    for name, title, size, parts in (
        ("patch-logits", "From tokens to the label map without K×H×W values", (760, 340), patch_logits()),
        ("mean-shift", "Tokens after 0, 1 and 3 steps", (760, 280), mean_shift()),
        ("pixels", "A cell of pixels averages over 3×3 patches", (760, 300), pixels()),
    ):
        (FOLDER / f"{name}.svg").write_text(svg(title, *size, parts), "utf-8")


def svg(title: str, width: int, height: int, parts: Iterable[str]) -> str:
    """A drawing on a sheet of its own color."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">\n<title>{title}</title>\n'
        f"<style>{STYLE}\n</style>\n"
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="head" d="M0 0 8 4 0 8z"/></marker></defs>\n'
        f'<rect class="page" width="{width}" height="{height}" rx="8"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def text(x: float, y: float, words: str, kind: str = "ink", anchor: str = "middle") -> str:
    """One line of text."""
    return f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{words}</text>'


def arrow(x0: float, y0: float, x1: float, y1: float) -> str:
    """A straight arrow."""
    return f'<path class="arrow" d="M{x0:.0f} {y0:.0f} {x1:.0f} {y1:.0f}"/>'


def grid(x: float, y: float, side: float, cells: int, kind: str = "soft") -> str:
    """A square divided into cells×cells."""
    step = side / cells
    lines = "".join(f"M{x + k * step:.1f} {y}v{side}M{x} {y + k * step:.1f}h{side}" for k in range(cells + 1))
    return f'<path class="{kind}" d="{lines}"/>'


def patch_logits() -> Iterable[str]:
    """The way of the logits, and the one that is not taken."""
    yield text(90, 40, "image")
    yield '<rect class="a" x="40" y="55" width="100" height="100" opacity=".25"/>'
    yield grid(40, 55, 100, 8)
    yield text(90, 175, "512×512 pixels", "faint")
    yield arrow(148, 105, 196, 105)
    yield text(172, 92, "model", "faint")
    yield text(262, 40, "patch logits")
    for k in reversed(range(4)):
        x, y = 205 + 12 * k, 85 - 10 * k
        yield f'<rect class="page" x="{x}" y="{y}" width="70" height="70"/>'
        yield f'<rect class="b" x="{x}" y="{y}" width="70" height="70" opacity="{0.35 - 0.06 * k:.2f}"/>'
        yield grid(x, y, 70, 8)
    yield text(262, 175, "K×h×w = 150×32×32", "faint")
    yield text(262, 192, "0.6 MB in float32", "faint")
    yield arrow(325, 105, 398, 105)
    yield text(362, 82, "tile by tile", "faint")
    yield text(362, 96, "in cache", "faint")
    yield text(465, 40, "label map")
    yield '<rect class="c" x="410" y="55" width="100" height="100" opacity=".25"/>'
    yield '<path class="line" d="M410 115C440 70 470 140 510 85M450 55C455 90 480 110 470 155"/>'
    yield '<rect class="line" x="410" y="55" width="100" height="100"/>'
    yield text(465, 175, "512×512 bytes", "faint")
    yield text(465, 192, "0.3 MB", "faint")
    yield text(660, 40, "and the loss")
    yield '<path class="arrow" d="M325 122C360 240 560 240 602 128"/>'
    yield '<rect class="line" x="605" y="85" width="110" height="40" rx="6"/>'
    yield text(660, 110, "one number")
    yield text(660, 146, "and the gradient", "faint")
    yield text(660, 162, "of the patch logits", "faint")
    yield arrow(252, 202, 252, 224)
    for k in reversed(range(5)):
        yield f'<rect class="page" x="{200 + 8 * k}" y="{248 - 5 * k}" width="75" height="75"/>'
        yield f'<rect class="line" x="{200 + 8 * k}" y="{248 - 5 * k}" width="75" height="75"/>'
    yield '<path class="no" d="M192 224 316 328M316 224 192 328"/>'
    yield text(335, 283, "never: K×H×W = 150×512×512, 157 MB in float32", "ink", "start")


def mean_shift() -> Iterable[str]:
    """Gaussian mean shift of points in a plane, computed, with the way that each has come."""
    rng = np.random.default_rng(3)
    centers = np.array([[-1.1, 0.5], [0.9, 0.9], [0.25, -0.95]])
    start = np.concatenate([center + rng.normal(0, 0.36, (22, 2)) for center in centers])
    states = [start]
    for _ in range(3):
        states.append(step(states[-1], states[-1], 0.42))
    for panel, steps in enumerate((0, 1, 3)):
        left = 20 + 245 * panel
        yield f'<rect class="soft" x="{left}" y="45" width="230" height="200" rx="4"/>'
        yield text(left + 115, 32, ("tokens of the encoder", "after 1 step", "after 3 steps")[panel])
        for k in range(len(start)):
            kind = "abc"[k // 22]
            way = [place(state[k], left) for state in states[: steps + 1]]
            if steps:
                joined = " ".join(f"{x:.1f} {y:.1f}" for x, y in way)
                yield f'<path class="path {kind}" d="M{joined}"/>'
            yield f'<circle class="{kind}" cx="{way[-1][0]:.1f}" cy="{way[-1][1]:.1f}" r="3.2"/>'
    yield text(380, 266, "Each point moves to the weighted mean of all points; near ones weigh most.", "faint")


def step(points: Points, reference: Points, width: float) -> Points:
    """The weighted mean of the reference points around each point, with a Gaussian kernel."""
    squared = ((points[:, None] - reference[None]) ** 2).sum(-1)
    weights = np.exp(-squared / (2 * width**2))
    moved: Points = weights @ reference / weights.sum(1, keepdims=True)
    return moved


def place(point: Points, left: float) -> tuple[float, float]:
    """Where a point lies in the panel whose left side is given."""
    return left + 115 + 52 * point[0], 145 - 52 * point[1]


def pixels() -> Iterable[str]:
    """One cell of pixels, the patches around it, and what it takes from each of them."""
    left, top, side = 40, 40, 72
    colors = ("aab", "aab", "abb")
    weights = ((0.02, 0.05, 0.06), (0.03, 0.1, 0.34), (0.01, 0.08, 0.31))
    for row, names in enumerate(colors):
        for column, kind in enumerate(names):
            x, y = left + side * column, top + side * row
            yield f'<rect class="{kind}" x="{x}" y="{y}" width="{side}" height="{side}" opacity=".18"/>'
    yield grid(left, top, 3 * side, 3, "line")
    yield grid(left + side, top + side, side, 4)
    cell = (left + side + side * 7 / 8, top + side + side * 5 / 8)
    for row, numbers in enumerate(weights):
        for column, weight in enumerate(numbers):
            mid_x, mid_y = left + side * (column + 0.5), top + side * (row + 0.5)
            yield (
                f'<path class="path {colors[row][column]}" d="M{mid_x:.0f} {mid_y:.0f} {cell[0]:.0f} {cell[1]:.0f}" '
                f'style="stroke-width:{0.8 + 16 * weight:.1f}"/>'
            )
            yield f'<circle class="{colors[row][column]}" cx="{mid_x:.0f}" cy="{mid_y:.0f}" r="3.5"/>'
    yield f'<rect class="b" x="{cell[0] - 9:.0f}" y="{cell[1] - 9:.0f}" width="18" height="18"/>'
    yield '<path class="line" stroke-dasharray="5 4" d="M200 40C175 95 172 130 166 150C158 185 130 215 122 256"/>'
    yield text(148, 278, "3×3 patches of 16×16 pixels", "faint")
    lines = (
        ("query", "features of the 4×4 pixels of the cell"),
        ("keys", "the token of each patch, and the features of its pixels"),
        ("weights", "how alike they are, and how near"),
        ("values", "the logits of the patches"),
    )
    for k, (name, meaning) in enumerate(lines):
        yield text(330, 80 + 34 * k, name, "ink", "end")
        yield text(345, 80 + 34 * k, meaning, "faint", "start")
    for k, line in enumerate(
        (
            "The patch in the middle lies on an edge (dashed).",
            "By its own pixels, the cell belongs to the region on the",
            "right, so its logits come from the patches of that region.",
        )
    ):
        yield text(330, 222 + 18 * k, line, "ink", "start")


if __name__ == "__main__":
    main()
