"""The endless stream of training samples, of which a run, a preview and a token cache read positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from meanshifter.data.augment import Crop, augment, cut
from meanshifter.data.augment_config import AugmentConfig
from meanshifter.data.class_pixels import RareClasses, class_pixels
from meanshifter.data.crop_plan import draw, draw_aspect, draw_scale, occurs, own_generator, resize_factor
from meanshifter.data.datasets import Dataset, Sample
from meanshifter.data.mixing import Partner, draw_partners, mixed
from meanshifter.errors import InputError
from meanshifter.model.config import Triple

Sampled = tuple[Tensor, Tensor, str]


class SampleStream(TorchDataset[Sampled | InputError]):
    """An endless stream of augmented samples: one shuffle of the dataset after another.

    The shuffle is keyed by (seed, epoch) and the augmentation by (seed, position), never by worker or process. With
    `augment.rare_crops`, some samples are of other images than the shuffle's. With a `mix`, the dataset's first
    samples and its extra ones each have shuffles of their own; `rare_crops` changes only the former, and what is mixed
    into a sample comes from them.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: AugmentConfig,
        seed: int,
        *,
        mean: Triple,
        std: Triple,
        mix: Mix | None = None,
        pixels: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """`pixels`: the `class_pixels` of the dataset without extra samples; None: counted when needed."""
        self.dataset, self.config, self.seed, self.mix = dataset, config, seed, mix
        self.mean, self.std = mean, std
        self._rare: RareClasses | None = None
        if config.needs_class_pixels:
            self._rare = RareClasses(class_pixels(dataset)[: self._labeled] if pixels is None else pixels)

    def __getitem__(self, position: int) -> Sampled | InputError:
        try:
            return self.sample(position)
        except InputError as error:  # returned, because a worker's exceptions arrive as text with a traceback
            return error

    def place(self, position: int) -> int:
        """Dataset index of the sample at `position`."""
        return self.chosen(position)[0]

    def chosen(self, position: int) -> tuple[int, int | None]:
        """Dataset index of the sample at `position`, and the class that its crop shows; None: any."""
        return self._chosen(self._shuffled(position), self.generator(position))

    @property
    def _labeled(self) -> int:
        """Number of samples before the extra ones."""
        return len(self.dataset) if self.mix is None else self.mix.first

    def _shuffled(self, position: int) -> int:
        if self.mix is not None:
            return self.mix.place(position, self.seed)
        epoch, turn = divmod(position, len(self.dataset))
        return _order(len(self.dataset), self.seed, epoch)[turn]

    def _chosen(self, place: int, rng: np.random.Generator) -> tuple[int, int | None]:
        extra = place >= self._labeled
        if extra or self._rare is None or not occurs(self.config.rare_crops, rng, "rare_crops"):
            return place, None
        return self._rare.draw(own_generator(own_generator(rng, "rare_crops"), "rare_crops"))

    def files(self, position: int) -> str:
        """The files of the sample at `position`, for messages."""
        places = [self.place(position), *(partner.place for partner in self._partners(self.generator(position)))]
        return ", mixed with ".join(map(self.dataset.files, places))

    def generator(self, position: int) -> np.random.Generator:
        """Random generator of the augmentation at `position`."""
        return np.random.default_rng((self.seed, position, 1))

    def sample(self, position: int) -> Sampled:
        """Image (3, h, w) float32, labels (h, w) uint8 or uint16 as in the dataset, and name."""
        rng = self.generator(position)
        place, rare_class = self.chosen(position)
        sample, scale = self._read(place, rng)
        partners = self._partners(rng)
        image, labels = augment(
            sample.image,
            sample.labels,
            self.config,
            rng,
            scale=scale,
            mean=self.mean,
            std=self.std,
            ignore=self.dataset.label_space.ignore,
            rare_class=rare_class,
            mix=(lambda crop: self._mixed(crop, partners)) if partners else None,
        )
        return torch.from_numpy(image), torch.from_numpy(labels), sample.name

    def _read(self, place: int, rng: np.random.Generator) -> tuple[Sample, float]:
        """A sample, reduced if it will be resized, and the scale, the first draw from `rng`."""
        scale, aspect = draw_scale(self.config, rng), draw_aspect(self.config, rng)
        larger = math.sqrt(max(aspect, 1 / aspect))  # of the factors of the two sides

        def factor(height: int, width: int) -> float:
            return resize_factor(height, width, self.config, scale) * larger

        return self.dataset.read_reduced(place, factor), scale

    def _partners(self, rng: np.random.Generator) -> list[Partner]:
        return draw_partners(self.config, rng, self._labeled, self._rare, self._chosen) if self.config.mixes else []

    def _mixed(self, crop: Crop, partners: list[Partner]) -> Crop:
        ignore = self.dataset.label_space.ignore
        for partner in partners:
            sample, scale = self._read(partner.place, partner.rng)
            plan = draw(
                *(sample.labels, self.config, partner.rng), ignore=ignore, scale=scale, rare_class=partner.rare_class
            )
            other = cut(sample.image, sample.labels, plan, self.config.crop, mean=self.mean, ignore=ignore)
            crop = mixed(crop, other, partner, ignore)
        return crop


@dataclass(frozen=True)
class Mix:
    """A dataset whose last samples are extra ones, and the share of the stream that they get.

    Extra samples are spread evenly: the first n positions of the stream hold n · share of them, rounded down.
    """

    first: int
    """Samples before the extra ones."""
    extra: int
    """Extra samples."""
    share: float
    """Share of the stream, between 0 and 1."""

    def place(self, position: int, seed: int) -> int:
        """Dataset index of the sample at `position` of the stream with this seed."""
        before = self._extra_before(position)
        if self._extra_before(position + 1) == before:
            epoch, turn = divmod(position - before, self.first)
            return _order(self.first, seed, epoch)[turn]
        epoch, turn = divmod(before, self.extra)
        return self.first + _order(self.extra, seed, epoch, 1)[turn]

    @cached_property
    def _exact_share(self) -> Fraction:
        return Fraction(str(self.share))  # 0.1 as a tenth, so that rounding never moves a sample

    def _extra_before(self, position: int) -> int:
        return position * self._exact_share.numerator // self._exact_share.denominator


@lru_cache(maxsize=4)
def _order(length: int, seed: int, epoch: int, *source: int) -> list[int]:
    order: list[int] = np.random.default_rng((seed, epoch, 0, *source)).permutation(length).tolist()
    return order
