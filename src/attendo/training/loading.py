"""Batches whose order and augmentation depend on nothing but the seed, the epoch and the images.

So that cells of one seed see the same images in the same order with the same crops, whatever their network draws from
the random generators, and so that a run resumed at an epoch sees what an undisturbed one would have seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

Key = tuple[int, int]  # epoch, index


class EpochSampler(Sampler[Key]):
    """Yields (epoch, index) in an order that depends on the seed and the epoch alone."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Take the next epoch; Lightning calls this before every epoch but the first of a process."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Key]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator).tolist()
        return iter([(self.epoch, index) for index in order])


class KeyedImages(Dataset[tuple[Tensor, int]]):
    """Transforms images under random generators set from the seed, the epoch and the batch.

    The generators of torch, Python and numpy are put back afterwards. A batch is fetched in one call, so they are set
    once per batch.
    """

    def __init__(self, images: Sequence[tuple[Any, int]], transform: Callable[[Any], Tensor], seed: int) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[Key]) -> list[tuple[Tensor, int]]:
        epoch, first = keys[0]
        seed = ((self.seed * 1009 + epoch) * 1_000_003 + first) % 2**32
        python, numeric = random.getstate(), np.random.get_state()
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                random.seed(seed)
                np.random.seed(seed)
                return [self._item(index) for _, index in keys]
        finally:
            random.setstate(python)
            np.random.set_state(numeric)

    def _item(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return self.transform(image), int(label)


class PlainImages(Dataset[tuple[Tensor, int]]):
    """Transforms images without any randomness."""

    def __init__(self, images: Sequence[tuple[Any, int]], transform: Callable[[Any], Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return self.transform(image), int(label)


def training_loader(
    images: Sequence[tuple[Any, int]],
    transform: Callable[[Any], Tensor],
    *,
    batch_size: int,
    seed: int,
    epoch: int = 0,
    workers: int = 0,
) -> DataLoader[Any]:
    """Return the batches of training; its sampler's epoch is ``epoch`` until Lightning sets the next."""
    sampler = EpochSampler(len(images), seed)
    sampler.set_epoch(epoch)
    return DataLoader(
        KeyedImages(images, transform, seed),
        batch_size,
        sampler=sampler,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def plain_loader(
    images: Sequence[tuple[Any, int]], transform: Callable[[Any], Tensor], *, batch_size: int, workers: int = 0
) -> DataLoader[Any]:
    """Return the batches of validation: every image once, in order."""
    return DataLoader(
        PlainImages(images, transform),
        batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
