"""Batches of a data set that is held on the device whole, cut and augmented there."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from meanshifter.data.augment import draw, normalization
from meanshifter.data.augment_device import augment_batch
from meanshifter.data.datasets import Dataset
from meanshifter.data.labels import Labels
from meanshifter.errors import InputError
from meanshifter.training.batches import ALONE, Batch, SampleStream, Share, positions


@dataclass
class Resident:
    """A data set on a device; the labels are kept on the host too, where crops are chosen."""

    images: list[Tensor]
    """(3, H, W) uint8 each."""
    labels: list[Tensor]
    """(H, W) each."""
    host_labels: list[Labels]
    names: list[str]

    @classmethod
    def load(cls, dataset: Dataset, device: torch.device) -> Resident:
        """Decode everything, on several threads.

        Raises:
            InputError: a sample that cannot be read, or more of them than the device has memory for.
        """
        held = cls([], [], [], [])
        try:
            with ThreadPoolExecutor() as pool:
                for sample in pool.map(dataset.__getitem__, range(len(dataset))):
                    held.images.append(torch.from_numpy(sample.image).to(device).permute(2, 0, 1).contiguous())
                    held.labels.append(torch.from_numpy(sample.labels).to(device))
                    held.host_labels.append(sample.labels)
                    held.names.append(sample.name)
        except torch.OutOfMemoryError as error:
            count = f"{len(held.images)} of {len(dataset)} images"
            raise InputError(
                f"data.on_device: true, but {device} has memory for {count} only; set it to false"
            ) from error
        return held


def resident_batches(
    stream: SampleStream, device: torch.device, *, batch_size: int, start: int, stop: int, share: Share = ALONE
) -> Iterator[Batch]:
    """This process's part of batches number `start` to `stop` of the stream, made on `device`: those of `batches`."""
    held = Resident.load(stream.dataset, device)
    factor, offset = (torch.from_numpy(part).to(device) for part in normalization(stream.mean, stream.std))
    ignore = stream.dataset.labels.ignore
    for number in range(start, stop):
        places, plans = [], []
        for position in positions(number, batch_size, share):
            place, rng = stream.place(position), stream.generator(position)
            places.append(place)
            plans.append(draw(held.host_labels[place], stream.config, rng, ignore=ignore))
        images, labels = [held.images[p] for p in places], [held.labels[p] for p in places]
        crops = augment_batch(images, labels, plans, stream.config.crop, factor=factor, offset=offset, ignore=ignore)
        yield *crops, [held.names[p] for p in places]
