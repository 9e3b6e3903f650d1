"""Shapes: a generated dataset for trying everything without a download."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from meanshifter.data.datasets import Dataset, Sample
from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]
"""Corners (n, 2) as (x, y) of a shape that fits into the unit circle."""

LENGTHS: Final = {"train": 4000, "val": 200}
NAMES: Final = ("background", "disc", "square", "triangle", "star", "ring", "cross")
PALETTE: Final = (
    (38, 43, 51),
    (230, 85, 74),
    (245, 187, 66),
    (63, 164, 110),
    (72, 133, 237),
    (160, 98, 208),
    (70, 200, 205),
)
SUPERSAMPLING: Final = 4
MIN_SIDE: Final = 32
OWN_WEAVE: Final = 0.95
"""Probability that a surface has the weave of its class."""


class Shapes(Dataset):
    """Textured shapes that overlap on a textured background: image (H,W,3) uint8, labels (H,W) uint8.

    The background is darker than the shapes, whose colors do not depend on their class. A disc differs from a star in
    its outline and, in 95 % of cases, in the weave of its surface: the directions of its threads, whose width and phase
    are random. A horizontal flip would exchange two weaves, so the recipe does not flip. Noise of random strength is
    added to the image, and a border of about two pixels around every visible outline is ignored (255). A sample depends
    only on (seed, split, index) and the size.

    Args:
        root: ignored, since there is nothing to read; every dataset has this argument.
        split: "train" or "val", which share no sample.
        size: (H, W) in pixels, or one side for both; at least 32 each. Shapes scale with the shorter side.
        length: number of samples; None: 4000 for train, 200 for val.
        seed: each seed gives a different dataset.

    Raises:
        InputError: an unknown split, a side below 32, a length below 1 or a negative seed.
    """

    name = "shapes"

    def __init__(
        self,
        root: object = None,
        split: str = "val",
        *,
        size: int | Sequence[int] = (96, 96),
        length: int | None = None,
        seed: int = 0,
    ) -> None:
        if split not in LENGTHS:
            raise InputError(f"shapes: split {split!r} is unknown; expected 'train' or 'val'")
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < MIN_SIDE:
            raise InputError(f"shapes: size {height}×{width} is too small; expected sides of at least {MIN_SIDE}")
        if length is not None and length < 1:
            raise InputError(f"shapes: length {length}; expected at least 1")
        if seed < 0:
            raise InputError(f"shapes: seed {seed}; expected at least 0")
        self.split = split
        self.label_space = LabelSpace(NAMES, PALETTE)
        self.size = (height, width)
        self.seed = seed
        self.length = LENGTHS[split] if length is None else length

    @staticmethod
    def download(root: object = None) -> None:
        """Do nothing: samples are generated on access."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the samples, such as val_00007."""
        return [self._name(index) for index in range(self.length)]

    def _name(self, index: int) -> str:
        return f"{self.split}_{index:05d}"

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not -self.length <= index < self.length:
            raise IndexError(f"shapes: index {index} is outside 0..{self.length - 1}")
        index %= self.length
        key = np.random.SeedSequence([self.seed, list(LENGTHS).index(self.split), index])
        image, labels = draw(np.random.default_rng(key), self.size)
        return Sample(image=image, labels=labels, name=self._name(index))


def draw(rng: np.random.Generator, size: tuple[int, int]) -> tuple[npt.NDArray[np.uint8], Labels]:
    """Draw a random scene: image (H,W,3) and labels (H,W), with 255 along the outlines."""
    height, width = size
    short = min(size)
    canvas = texture(rng, 0, _color(rng, 35, 115), 0, 0, height, width, short)
    labels = np.zeros(size, np.uint8)
    count = round(rng.integers(3, 6) * max(size) / short)
    centers: list[Points] = []
    for _ in range(count):
        centers.append(_free_center(rng, centers, size))
        kind = int(rng.integers(1, len(NAMES)))
        radius = short * rng.uniform(0.19, 0.31)
        _paint(rng, canvas, labels, kind, centers[-1], radius, _color(rng, 120, 215))
    sigma = rng.uniform(2, 10)
    canvas += np.float32(sigma) * rng.standard_normal(canvas.shape, np.float32)
    return np.clip(canvas, 0, 255).astype(np.uint8), labels


def _free_center(rng: np.random.Generator, taken: Sequence[Points], size: tuple[int, int]) -> Points:
    """The one (x, y) of four random points that is farthest from those taken, so that shapes overlap only partially."""
    candidates = rng.uniform(0.06, 0.94, (4, 2)) * (size[1], size[0])
    gaps = [min((math.dist(candidate, other) for other in taken), default=0.0) for candidate in candidates]
    center: Points = candidates[int(np.argmax(gaps))]
    return center


def _color(rng: np.random.Generator, darkest: float, brightest: float) -> Points:
    """A random RGB color whose mean lies between `darkest` and `brightest`."""
    hue = rng.uniform(-50, 50, 3)
    color: Points = hue + (rng.uniform(darkest, brightest) - hue.mean())
    return color


def _paint(
    rng: np.random.Generator, canvas: Floats, labels: Labels, kind: int, center: Points, radius: float, color: Points
) -> None:
    """Paint a shape on the canvas, and its class with an ignored outline on the labels, in place."""
    height, width = labels.shape
    top, left = (max(math.floor(c - radius) - 2, 0) for c in (center[1], center[0]))
    bottom, right = min(math.ceil(center[1] + radius) + 2, height), min(math.ceil(center[0] + radius) + 2, width)
    turn = math.radians(rng.uniform(-20, 20))
    stencil = _stencil(kind, center - (left, top), radius, turn, (right - left, bottom - top))
    cover = np.asarray(stencil, np.float32) / np.float32(255)
    region = canvas[top:bottom, left:right]
    region += cover[..., None] * (texture(rng, kind, color, top, left, bottom, right, min(labels.shape)) - region)
    patch = labels[top:bottom, left:right]
    patch[cover == 1] = kind
    patch[_grown(cover > 0) & _grown(cover < 1)] = 255


def _grown(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Where a pixel or one of its four neighbors is set."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _stencil(kind: int, center: Points, radius: float, turn: float, size: tuple[int, int]) -> Image.Image:
    """The shape's coverage of each pixel, 0 to 255, as an image of size (width, height)."""
    stencil = Image.new("L", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING))
    pen = ImageDraw.Draw(stencil)
    cos, sin = math.cos(turn), math.sin(turn)
    rotation = np.array([[cos, sin], [-sin, cos]])
    outline, hole = OUTLINES[kind - 1]
    for corners, ink in ((outline, 255), (hole, 0)):
        if corners is not None:
            moved = SUPERSAMPLING * (radius * corners @ rotation + center)
            pen.polygon(moved.ravel().tolist(), fill=ink)
    return stencil.reduce(SUPERSAMPLING)


def texture(
    rng: np.random.Generator, kind: int, color: Points, top: int, left: int, bottom: int, right: int, short: int
) -> Floats:
    """A woven surface (bottom-top, right-left, 3) in two shades around `color`.

    The weave is that of class `kind` with probability OWN_WEAVE, else that of a random class.
    """
    other = color + rng.choice((-1, 1)) * rng.uniform(22, 48, 3)
    y = np.arange(top, bottom, dtype=np.float32)[:, None]
    x = np.arange(left, right, dtype=np.float32)[None]
    own = kind if rng.random() < OWN_WEAVE else int(rng.integers(len(WEAVES)))
    surface: Floats = _weave(rng, WEAVES[own], y, x, short)[..., None] * (other - color).astype(np.float32)
    surface += color.astype(np.float32)
    return surface


def _weave(rng: np.random.Generator, weave: Sequence[float], y: Floats, x: Floats, short: int) -> Floats:
    """Threads across each direction of `weave` (half turns, slightly varied), -1 to 1; smooth clouds without any."""
    if not weave:
        coarse = rng.uniform(-1, 1, (4, 4)).astype(np.float32)
        return np.asarray(Image.fromarray(coarse).resize((x.size, y.size), Image.Resampling.BICUBIC))
    turn = rng.uniform(-0.07, 0.07)
    pattern = np.ones((y.size, x.size), np.float32)
    for direction in weave:
        pace = 2 * math.pi / (short * rng.uniform(0.065, 0.10))
        down, across = pace * math.sin(math.pi * (direction + turn)), pace * math.cos(math.pi * (direction + turn))
        pattern *= np.sin(np.float32(down) * y + (np.float32(across) * x + np.float32(rng.uniform(0, 2 * math.pi))))
    clipped: Floats = np.clip(1.5 * pattern, -1, 1)
    return clipped


# directions of the threads per class, in half turns: one gives stripes, two give checks
WEAVES: Final[tuple[tuple[float, ...], ...]] = ((), (0.0,), (0.5,), (0.25,), (0.75,), (0.0, 0.5), (0.25, 0.75))


def _polygon(corners: int, radii: Sequence[float] = (1.0,), turn: float = 0.0) -> Points:
    """Corners at equal angles, starting `turn` turns from the right, whose distances from 0 cycle through `radii`."""
    angles = 2 * math.pi * (np.arange(corners) / corners + turn)
    points: Points = np.resize(radii, corners)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return points


def _cross(arm: float) -> Points:
    """A plus sign whose arms are 2·arm wide and end on the unit circle."""
    tip = math.sqrt(1 - arm * arm)
    quarter, turn = np.array([[tip, arm], [arm, arm], [arm, tip]]), np.array([[0, 1], [-1, 0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


# (outline, hole or None) per class after the background, in the order of NAMES
OUTLINES: Final[tuple[tuple[Points, Points | None], ...]] = (
    (0.85 * _polygon(48), None),
    (_polygon(4, turn=0.125), None),
    (_polygon(3, turn=-0.25), None),
    (_polygon(10, (1.0, 0.45), turn=-0.25), None),
    (_polygon(48), 0.55 * _polygon(48)),
    (_cross(0.3), None),
)
