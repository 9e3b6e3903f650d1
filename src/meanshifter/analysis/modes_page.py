"""The page of `meanshifter modes`: trajectories, segments and tables of one image, and its pictures as PNG.

Glossary: N tokens, M modes, L steps, H W pixels, h w token grid, P patch size.
"""

from __future__ import annotations

import io
import shlex
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from meanshifter.analysis.html import Page, Pixels
from meanshifter.analysis.modes import Labels, Modes, mode_counts
from meanshifter.data.labels import distinct_colors
from meanshifter.errors import InputError
from meanshifter.evaluation.diagnostics import DIAGNOSTICS
from meanshifter.inference.segmentation import save_png
from meanshifter.utils.files import dump_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


PAGE, NUMBERS = "modes.html", "modes.json"
OPACITY = 0.6
STEPS_SHOWN = 9


def write_modes(modes: Modes, folder: Path, *, image: Path, model: str, command: Sequence[str]) -> Path:
    """Write `modes.html`, `modes.json` and the pictures as PNG into `folder`, over earlier ones; returns the page.

    Raises:
        InputError: a folder that cannot be written, or a result that would overwrite the input image.
    """
    pictures = all_pictures(modes)
    for name in (PAGE, NUMBERS, *pictures):
        if (folder / name).resolve() == image.resolve():
            raise InputError(
                f"--out: {folder / name} is the input image and would be overwritten; choose another folder"
            )
    for name, pixels in pictures.items():
        save_png(folder / name, Image.fromarray(pixels))
    write_text(folder / NUMBERS, dump_json({"image": str(image), "model": model, **modes.to_dict()}) + "\n")
    modes_page(modes, pictures, image=image, model=model, command=command).save(folder / PAGE)
    return folder / PAGE


def all_pictures(modes: Modes) -> dict[str, Pixels]:
    """File name → (H, W, 3) picture: plots, image, segments after the steps shown, and those of the references."""
    colors = mode_colors(modes)
    pictures = {"trajectories.png": trajectory_plot(modes), "modes_per_step.png": count_plot(modes)}
    pictures["image.png"] = modes.image
    for step in steps_shown(modes):
        pictures[f"segments_step_{step}.png"] = segments(modes, colors[step])
    for k, reference in enumerate(modes.references):
        pictures[f"reference_quantile_{reference.quantile:g}.png"] = segments(modes, colors[modes.layers + 1 + k])
    return pictures


def mode_colors(modes: Modes) -> list[Pixels]:
    """(N, 3) token colors after each step, then for each reference: one color per mode.

    The large modes of the last step get the most distinct colors, and the other pictures reuse them.
    """
    last = modes.labels[-1]
    numbers = [like(labels, last) for labels in (*modes.labels, *(other.labels for other in modes.references))]
    needed = max(int(each.max()) for each in numbers) + 1
    palette = np.array(list(dict.fromkeys(distinct_colors(2 * needed)))[:needed], np.uint8)
    return [palette[each] for each in numbers]


def like(labels: Labels, last: Labels) -> Labels:
    """(N,) `labels` renumbered: each group takes the number of the mode of `last` that it overlaps most, if it is free.

    Larger groups choose first; the others take numbers from M on, the number of modes of `last`.
    """
    M = int(last.max()) + 1
    shared = np.zeros((int(labels.max()) + 1, M), np.int64)
    np.add.at(shared, (labels, last), 1)
    taken: set[int] = set()
    others = count(M)
    number = np.empty(len(shared), np.int64)
    for group, mode in enumerate(shared.argmax(1).tolist()):
        number[group] = next(others) if mode in taken else mode
        taken.add(mode)
    return number[labels]


def segments(modes: Modes, colors: Pixels) -> Pixels:
    """(H, W, 3) the image blended with the colors (N, 3) of its patches."""
    H, W = modes.image.shape[:2]
    squares = colors.reshape(*modes.grid, 3).repeat(modes.patch_size, 0).repeat(modes.patch_size, 1)[:H, :W]
    return np.round((1 - OPACITY) * modes.image + OPACITY * squares).astype(np.uint8)


def steps_shown(modes: Modes) -> list[int]:
    """Steps whose segments are shown: evenly spaced, including the first, the last, and the trained number."""
    spread = np.linspace(0, modes.layers, min(modes.layers + 1, STEPS_SHOWN)).round().astype(int).tolist()
    return sorted({*spread, *([modes.trained_layers] if modes.trained_layers <= modes.layers else [])})


def trajectory_plot(modes: Modes) -> Pixels:
    """The trajectory of each token in the plane, in the color of its mode; the area of a mode grows with its tokens."""
    from matplotlib.collections import LineCollection

    figure = _figure()
    axes = figure.subplots()
    colors = mode_colors(modes)[modes.layers] / 255
    start_x, start_y = modes.plane[0].T
    sizes = modes.sizes(modes.layers)
    x, y = (np.bincount(modes.labels[-1], weights=axis) / sizes for axis in modes.plane[-1].T)
    first = np.unique(modes.labels[-1], return_index=True)[1]
    lines = [*modes.plane.transpose(1, 0, 2)]
    axes.add_collection(LineCollection(lines, colors=colors, linewidths=0.5, alpha=0.6, zorder=1))
    axes.scatter(start_x, start_y, s=3, c="0.6", linewidths=0, zorder=2)
    area = 8 + 400 * sizes / sizes.sum()
    axes.scatter(x, y, s=area, c=colors[first], edgecolors="black", linewidths=0.4, zorder=3)
    axes.set(
        xlabel=f"1st principal component ({modes.explained[0]:.0%} of variance)",
        ylabel=f"2nd principal component ({modes.explained[1]:.0%})",
    )
    axes.set_aspect("equal", "datalim")
    return _drawn(figure)


def count_plot(modes: Modes) -> Pixels:
    """The number of modes after each step, and of those with several tokens."""
    from matplotlib.ticker import MaxNLocator

    figure = _figure()
    axes = figure.subplots()
    counts = [mode_counts(modes.sizes(step)) for step in range(modes.layers + 1)]
    several = [entry["modes"] - entry["single"] for entry in counts]
    axes.plot([entry["modes"] for entry in counts], marker="o", markersize=4, label="modes")
    axes.plot(several, marker="s", markersize=4, label="with two or more patches")
    if modes.trained_layers <= modes.layers:
        axes.axvline(modes.trained_layers, color="0.6", linestyle="--", linewidth=1, label="as trained")
    axes.set(xlabel="steps", ylabel="modes", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    return _drawn(figure)


def modes_page(modes: Modes, pictures: dict[str, Pixels], *, image: Path, model: str, command: Sequence[str]) -> Page:
    """The page with the pictures of `all_pictures`."""
    h, w = modes.grid
    page = Page(f"Modes of {image.name}")
    page.text(
        f"The {h * w} patch encodings of this image ({h} rows of {w}) under {_counted(modes.layers, 'step')} of the "
        f"mean shift block of {model}, which was trained with {_counted(modes.trained_layers, 'step')}. The image was "
        f"read in one piece, at {modes.image.shape[1]}×{modes.image.shape[0]} pixels, and the steps were computed in "
        "float64."
    )
    _trajectories(page, modes, pictures)
    _segments(page, modes, pictures)
    _reference(page, modes)
    _diagnostics(page, modes)
    page.heading("Command")
    page.code(shlex.join(command))
    page.text(f"The numbers on this page are in {NUMBERS} and its pictures are PNG files, in the same folder.")
    return page


def _trajectories(page: Page, modes: Modes, pictures: dict[str, Pixels]) -> None:
    page.heading("Trajectories of the encodings")
    page.plots(
        {
            f"The trajectory of each patch from its start (gray) to its mode {_after(modes.layers)} (the larger, the "
            "more patches), in the plane of the first two principal components of all states": pictures[
                "trajectories.png"
            ],
            "Modes after each step": pictures["modes_per_step.png"],
        }
    )
    page.text(
        f"Patches belong to one mode if hops of at most {modes.radius:.3g} lead from one encoding to the other: "
        f"{modes.tolerance:g} times the spread at the start, the root mean square distance of the encodings from their "
        "mean. Points that are close in the plane can be far apart in the other dimensions."
    )
    if modes.kernel == "dot":
        page.text(
            "This block compares encodings by dot products, as in the thesis: long encodings attract regardless of "
            "their direction, and the point of convergence need not be a maximum of a density."
        )
    N, rows = modes.labels.shape[1], []
    for step in range(modes.layers + 1):
        counts = mode_counts(modes.sizes(step))
        share = f"{counts['largest'] / N:.1%}"
        rows.append([_step_name(modes, step), str(counts["modes"]), str(counts["single"]), share])
    page.table(["after step", "modes", "of one patch", "largest mode"], rows)


def _segments(page: Page, modes: Modes, pictures: dict[str, Pixels]) -> None:
    page.heading("Segments")
    last = f"{_counted(len(modes.sizes(modes.layers)), 'mode')} {_after(modes.layers)}"
    shown = {"The image, as the model sees it": modes.image, last: pictures[f"segments_step_{modes.layers}.png"]}
    page.pictures([shown])
    page.text("One color per mode; a mode that has grown keeps the color of the mode that it overlaps most.")
    steps = {
        f"{_counted(len(modes.sizes(step)), 'mode')} {_after(step)}": pictures[f"segments_step_{step}.png"]
        for step in steps_shown(modes)[:-1]
    }
    page.pictures([dict(list(steps.items())[k : k + 4]) for k in range(0, len(steps), 4)])
    page.heading("Comparison with classical mean shift")
    references = {
        f"scikit-learn, {_counted(reference.clusters, 'cluster')} (quantile {reference.quantile:g})": pictures[
            f"reference_quantile_{reference.quantile:g}.png"
        ]
        for reference in modes.references
    }
    page.pictures([{last: shown[last]} | references])


def _reference(page: Page, modes: Modes) -> None:
    page.text(
        "scikit-learn's MeanShift on the same encodings before the first step: a flat kernel over fixed reference "
        "points, started from every patch, without any training. Its bandwidth is that of estimate_bandwidth: the "
        "mean distance within which a share of all patches, the quantile, lies; 0.3 is the default of that function."
    )
    rows = [
        [
            f"{reference.quantile:g}",
            f"{reference.bandwidth:.3g}",
            f"{reference.bandwidth * modes.tolerance / modes.radius:.2f}",
            str(reference.clusters),
            f"{np.bincount(reference.labels).max() / len(reference.labels):.1%}",
        ]
        for reference in modes.references
    ]
    page.table(["quantile", "bandwidth", "bandwidth / spread", "clusters", "largest cluster"], rows)


def _diagnostics(page: Page, modes: Modes) -> None:
    page.heading("Diagnostics of each step")
    names = [name for name in DIAGNOSTICS if name != "modes" and any(name in row for row in modes.diagnostics)]
    rows = [
        [_step_name(modes, step), *(f"{row[name]:.4g}" if name in row else "–" for name in names)]
        for step, row in enumerate(modes.diagnostics)
    ]
    page.table(["after step", *(DIAGNOSTICS[name] for name in names)], rows)
    page.text(
        "Effective neighbors: the number of encodings that a mean is taken over (exp of the entropy of its weights). "
        "Effective rank: the number of dimensions that the encodings span (exp of the entropy of the squared singular "
        "values). A variance near 0 would mean that all encodings have collapsed into one."
    )


def _step_name(modes: Modes, step: int) -> str:
    return f"{step} (as trained)" if step == modes.trained_layers else str(step)


def _after(step: int) -> str:
    return "at the start" if step == 0 else f"after {_counted(step, 'step')}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _figure() -> Figure:
    """A figure whose text is legible at the width of a phone."""
    from matplotlib.figure import Figure

    return Figure(figsize=(5, 4.4), dpi=200, layout="constrained")


def _drawn(figure: Figure) -> Pixels:
    """The figure as (H, W, 3) pixels."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return np.array(Image.open(buffer).convert("RGB"))
