"""Batches cross from the workers to the training process as bytes, and become normalised numbers on the device.

That is a quarter of the bytes for images and an eighth for masks, to pickle, to copy and to send, and the arithmetic
is left to whoever is fastest at it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Batch = dict[str, Any]


class Normalise:
    """Bytes `(..., H, W, 3)` -> `(pixel / 255 - mean) / std` as float32 `(..., 3, H, W)`, channels last in memory."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.shift = torch.tensor(mean) * 255
        self.scale = 1 / (torch.tensor(std) * 255)
        self.colour = self.shift.round().to(torch.uint8)

    def __call__(self, pixels: Tensor) -> Tensor:
        width = pixels.shape[-2]
        # By whole rows: three numbers at a time would keep no vector unit busy.
        shift, scale = (one.to(pixels.device).repeat(width) for one in (self.shift, self.scale))
        rows = pixels.flatten(-2).to(torch.float32).sub_(shift).mul_(scale)
        return rows.unflatten(-1, (width, 3)).movedim(-1, -3)


class Pixels(Dataset[Any]):
    """Samples as bytes."""

    def __init__(self, pixels: Callable[[Any], Batch | None]) -> None:
        self.pixels = pixels

    def __getitem__(self, key: Any) -> Batch | None:
        return self.pixels(key)


class Loader(DataLoader[Any]):
    """A DataLoader of bytes whose batches are finished, by the data module that made it, as they are taken out."""

    finish: Callable[[Batch], Batch]

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator: workers are first asked for samples when the first batch is, and the sampler knows the epoch.
        for batch in super().__iter__():
            yield self.finish(batch)


class TrainingLoader(Loader):
    """One whose place in the epoch Lightning keeps in checkpoints, and hands back before the first batch."""

    progress: Callable[[], dict[str, int]]

    def state_dict(self) -> dict[str, int]:
        return self.progress()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.resume(**state)  # type: ignore[attr-defined]
