"""Data loaders whose batches travel as uint8 and are normalised on the device.

Compared with float32 images and int64 masks, uint8 is a quarter and an eighth of the bytes to pickle, copy and send,
and the device does the arithmetic.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.worker_signals import sigterm_blocked

Batch = dict[str, Any]


class Normalise:
    """uint8 `(..., H, W, C)` -> `(pixel / 255 - mean) / std`, float32 `(..., C, H, W)`, channels last in memory."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.shift = torch.tensor(mean) * 255
        self.scale = 1 / (torch.tensor(std) * 255)
        self.colour = self.shift.round().to(torch.uint8)
        """The mean colour, uint8 `(C,)`."""

    def to(self, device: torch.device) -> "Normalise":
        """A copy for images on `device`."""
        moved = copy(self)
        moved.shift, moved.scale, moved.colour = (one.to(device) for one in (self.shift, self.scale, self.colour))
        return moved

    def __call__(self, pixels: Tensor) -> Tensor:
        width = pixels.shape[-2]
        # Whole rows at a time: an innermost dimension of 3 would leave the vector units mostly idle.
        shift, scale = self.shift.repeat(width), self.scale.repeat(width)
        rows = pixels.flatten(-2).to(torch.float32).sub_(shift).mul_(scale)
        return rows.unflatten(-1, (width, len(self.colour))).movedim(-1, -3)


class Uint8Dataset(Dataset[Any]):
    """Samples as uint8, by the keys of the sampler."""

    def __init__(self, pixels: Callable[[Any], Batch | None]) -> None:
        self.pixels = pixels

    def __getitem__(self, key: Any) -> Batch | None:
        return self.pixels(key)


class EqualBatches(Sampler[list[int]]):
    """The batches of indices of one rank: every sample once over all ranks, equally many batches on each rank.

    Ranks take the samples in turn. A rank that runs out of samples yields empty batches, because strategies such as
    FSDP2 need every rank to call the network equally often.
    """

    def __init__(self, samples: int, batch_size: int, rank: int, processes: int) -> None:
        self.indices = range(rank, samples, processes)
        self.batch_size = batch_size
        self.batches = -(-len(range(0, samples, processes)) // batch_size)  # of rank 0, which has the most samples

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, self.batches * self.batch_size, self.batch_size):
            yield list(self.indices[start : start + self.batch_size])


class Loader(DataLoader[Any]):
    """A DataLoader of uint8 batches, each of which moves to the network's device and is normalised."""

    to_device_and_normalise: Callable[[Batch], Batch]
    """Set by the data module."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator, so that workers start fetching only when the first batch is requested; by then the sampler knows
        # the epoch.
        with sigterm_blocked():
            batches = super().__iter__()
        for batch in batches:
            yield self.to_device_and_normalise(batch)


class TrainingLoader(Loader):
    """A `Loader` whose position in the epoch Lightning saves in checkpoints and restores before the first batch."""

    progress: Callable[[], dict[str, int]]

    def state_dict(self) -> dict[str, int]:
        return self.progress()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.resume(**state)  # type: ignore[attr-defined]
