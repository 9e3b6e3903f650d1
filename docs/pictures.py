"""Draw the picture of README and docs from a finished demo: generated scenes, so that nobody's license matters.

python docs/pictures.py [runs/demo]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

import meanshifter as ms
from meanshifter.analysis.html import colorize

OUT: Final = Path(__file__).parent / "images/scenes.png"
SCENES: Final = (5, 17)
"""Which of the held-out scenes are shown."""
SIDE: Final = 384
"""Pixels of a tile: four times those of a scene, for dense screens."""
GAP: Final = 16
HEADING: Final = 56
Pixels = npt.NDArray[np.uint8]


def main() -> None:
    """Predict the scenes with both models, and write them as one picture."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("demo", type=Path, nargs="?", default=Path("runs/demo"), help="folder of `meanshifter demo`")
    demo = options.parse_args().demo
    scenes = ms.datasets.Shapes(split="val")
    models = {name: ms.Predictor(demo / name.lower()) for name in ("Segmenter", "MeanShifter")}
    rows = []
    for number in SCENES:
        image, labels = scenes[number]
        found = {name: predictor(image).labels for name, predictor in models.items()}
        maps = [colorize(part, scenes.label_space) for part in (labels, *found.values())]
        wrong = (found["MeanShifter"] != labels) & (labels < scenes.label_space.num_classes)
        rows.append([image, *maps, np.where(wrong[..., None], maps[-1], 255).astype(np.uint8)])
    draw(["image", "ground truth", *models, "errors of MeanShifter"], rows).save(OUT, optimize=True)


def draw(headings: list[str], rows: list[list[Pixels]]) -> Image.Image:
    """Tiles with a heading over each column, on white."""
    size = (len(headings) * (SIDE + GAP) + GAP, HEADING + len(rows) * (SIDE + GAP))
    sheet = Image.new("RGB", size, "white")
    brush, font = ImageDraw.Draw(sheet), ImageFont.load_default(30)
    for column, heading in enumerate(headings):
        left = GAP + column * (SIDE + GAP)
        brush.text((left + SIDE / 2, HEADING / 2), heading, fill="#24292f", font=font, anchor="mm")
        for row, tiles in enumerate(rows):
            top = HEADING + row * (SIDE + GAP)
            sheet.paste(Image.fromarray(tiles[column]).resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, top))
            brush.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline="#d0d7de")
    return sheet.quantize(255, dither=Image.Dither.NONE)


if __name__ == "__main__":
    main()
