"""Shapes: a generated data set, for trying everything out without a download."""

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
Points = npt.NDArray[np.float64]
"""(n, 2) corners as (x, y), for a shape that fits the unit circle."""

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
"""How often a surface has the weave of its class."""


class Shapes(Dataset):
    """Textured shapes that overlap on a textured background: image (H,W,3) uint8, labels (H,W) uint8.

    The ground is darker than the shapes, whose colours are drawn without regard to their class. What tells a disc
    from a star is its outline and, nineteen times in twenty, the weave of its surface, that is the directions of
    its threads, whose width and phase are random; mirroring would exchange two weaves, so its recipe does not
    flip. Sensor noise of random strength lies over everything, and a border of about two pixels around every
    visible outline is ignored (255). A sample depends on (seed, split, index) and the size alone.

    Args:
        root: ignored; there is nothing to read. It stands here because every data set has one.
        split: "train" or "val"; the two share no sample.
        size: (H, W) in pixels, or one side for both; at least 32 each. Shapes scale with the shorter side.
        length: the number of samples; None: 4000 for train, 200 for val.
        seed: another seed is another data set.

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
            raise InputError(f"shapes: split {split!r} is unknown; take 'train' or 'val'")
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < MIN_SIDE:
            raise InputError(f"shapes: size {height}×{width} is too small; take sides of {MIN_SIDE} or more")
        if length is not None and length < 1:
            raise InputError(f"shapes: length {length} is below 1; take at least one sample")
        if seed < 0:
            raise InputError(f"shapes: seed {seed} is negative; take 0 or more")
        self.split = split
        self.labels = LabelSpace(NAMES, PALETTE)
        self.size = (height, width)
        self.seed = seed
        self.length = LENGTHS[split] if length is None else length

    @staticmethod
    def download(root: object = None) -> None:
        """Nothing to fetch: the samples are drawn as they are asked for."""

    @property
    def names(self) -> Sequence[str]:
        """One name per sample, such as val_00007."""
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


def draw(rng: np.random.Generator, size: tuple[int, int]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """One random scene: image (H,W,3) and labels (H,W), 255 along the outlines."""
    height, width = size
    short = min(size)
    ground = _color(rng, 35, 115)
    canvas = texture(rng, 0, ground, 0, 0, height, width, short)
    labels = np.zeros(size, np.uint8)
    count = round(rng.integers(3, 6) * max(size) / short)
    centres: list[Points] = []
    for _ in range(count):
        centres.append(_free_centre(rng, centres, size))
        kind = int(rng.integers(1, len(NAMES)))
        radius = short * rng.uniform(0.19, 0.31)
        _paint(rng, canvas, labels, kind, centres[-1], radius, _color(rng, 120, 215))
    sigma = rng.uniform(2, 10)
    canvas += np.float32(sigma) * rng.standard_normal(canvas.shape, np.float32)
    return np.clip(canvas, 0, 255).astype(np.uint8), labels


def _free_centre(rng: np.random.Generator, taken: Sequence[Points], size: tuple[int, int]) -> Points:
    """(x, y): of four random points, the one farthest from those taken, so that overlaps stay partial."""
    candidates = rng.uniform(0.06, 0.94, (4, 2)) * (size[1], size[0])
    gaps = [min((math.dist(candidate, other) for other in taken), default=0.0) for candidate in candidates]
    centre: Points = candidates[int(np.argmax(gaps))]
    return centre


def _color(rng: np.random.Generator, darkest: float, brightest: float) -> Points:
    """A random RGB colour whose mean lies between the two."""
    hue = rng.uniform(-50, 50, 3)
    color: Points = hue + (rng.uniform(darkest, brightest) - hue.mean())
    return color


def _paint(
    rng: np.random.Generator,
    canvas: Floats,
    labels: npt.NDArray[np.uint8],
    kind: int,
    centre: Points,
    radius: float,
    color: Points,
) -> None:
    """Put one shape over the canvas and its class, with an ignored outline, over the labels; both in place."""
    height, width = labels.shape
    top, left = (max(math.floor(c - radius) - 2, 0) for c in (centre[1], centre[0]))
    bottom, right = min(math.ceil(centre[1] + radius) + 2, height), min(math.ceil(centre[0] + radius) + 2, width)
    turn = math.radians(rng.uniform(-20, 20))
    stencil = _stencil(kind, centre - (left, top), radius, turn, (right - left, bottom - top))
    cover = np.asarray(stencil, np.float32) / np.float32(255)
    region = canvas[top:bottom, left:right]
    region += cover[..., None] * (texture(rng, kind, color, top, left, bottom, right, min(labels.shape)) - region)
    patch = labels[top:bottom, left:right]
    patch[cover == 1] = kind
    patch[_border(cover)] = 255


def _border(cover: Floats) -> npt.NDArray[np.bool_]:
    """Where a pixel or one of its four neighbours is not empty, and one of them is not full."""
    return _grown(cover > 0) & _grown(cover < 1)


def _grown(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _stencil(kind: int, centre: Points, radius: float, turn: float, size: tuple[int, int]) -> Image.Image:
    """The shape's coverage of each pixel, 0 to 255, as an image of size (width, height)."""
    stencil = Image.new("L", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING))
    pen = ImageDraw.Draw(stencil)
    cos, sin = math.cos(turn), math.sin(turn)
    rotation = np.array([[cos, sin], [-sin, cos]])
    outline, hole = OUTLINES[kind - 1]
    for corners, ink in ((outline, 255), (hole, 0)):
        if corners is not None:
            moved = SUPERSAMPLING * (radius * corners @ rotation + centre)
            pen.polygon(moved.ravel().tolist(), fill=ink)
    return stencil.reduce(SUPERSAMPLING)


def texture(
    rng: np.random.Generator, kind: int, color: Points, top: int, left: int, bottom: int, right: int, short: int
) -> Floats:
    """A woven surface (bottom-top, right-left, 3) in two shades around `color`.

    With probability OWN_WEAVE it is that of class `kind`, else that of any class.
    """
    other = color + rng.choice((-1, 1)) * rng.uniform(22, 48, 3)
    y = np.arange(top, bottom, dtype=np.float32)[:, None]
    x = np.arange(left, right, dtype=np.float32)[None]
    own = kind if rng.random() < OWN_WEAVE else int(rng.integers(len(WEAVES)))
    surface: Floats = _weave(rng, WEAVES[own], y, x, short)[..., None] * (other - color).astype(np.float32)
    surface += color.astype(np.float32)
    return surface


def _weave(rng: np.random.Generator, weave: Sequence[float], y: Floats, x: Floats, short: int) -> Floats:
    """Threads across each direction of `weave` (in half turns, give or take a little), -1 to 1; none: smooth clouds."""
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


# The directions of the threads per class, in half turns: one makes stripes, two make checks.
WEAVES: Final[tuple[tuple[float, ...], ...]] = ((), (0.0,), (0.5,), (0.25,), (0.75,), (0.0, 0.5), (0.25, 0.75))


def _polygon(corners: int, radii: Sequence[float] = (1.0,), turn: float = 0.0) -> Points:
    """Corners at equal angles, the first `turn` turns from the right, whose distances from 0 repeat `radii`."""
    angles = 2 * math.pi * (np.arange(corners) / corners + turn)
    points: Points = np.resize(radii, corners)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return points


def _cross(arm: float) -> Points:
    """A plus sign whose arms are 2·arm wide and end on the unit circle."""
    tip = math.sqrt(1 - arm * arm)
    quarter = np.array([[tip, arm], [arm, arm], [arm, tip]])
    turns = [np.array([[0, 1], [-1, 0]]) for _ in range(4)]
    return np.concatenate([quarter @ np.linalg.matrix_power(turns[k], k) for k in range(4)])


# One (outline, hole or None) per class after the background, in the order of NAMES.
OUTLINES: Final[tuple[tuple[Points, Points | None], ...]] = (
    (0.85 * _polygon(48), None),
    (_polygon(4, turn=0.125), None),
    (_polygon(3, turn=-0.25), None),
    (_polygon(10, (1.0, 0.45), turn=-0.25), None),
    (_polygon(48), 0.55 * _polygon(48)),
    (_cross(0.3), None),
)
