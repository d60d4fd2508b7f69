"""The pictures that are explained: files, or a split of the run's own data."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.base import GraftDataModule
from datamodules.decoding import read_mask
from datamodules.loader import Normalise
from experiments.command_line.explain_flags import ExplainFlags
from experiments.command_line.progress import with_progress
from experiments.inference.evaluate_all import data_of
from experiments.inference.inputs import Inputs
from experiments.inference.trained import TrainedNetwork

FEW, MANY = 8, 256
"""Pictures of the run's own data that are explained one by one, and that statistics are taken over."""


@dataclass(frozen=True)
class Example:
    """A picture, with its truth if that is known.

    Args:
        name: how messages and JSON files call it.
        stem: where its results go, below the output folder and without suffix.
        image: uint8 `(H, W, 3)`, as stored.
        group: its class: in the run's own data the true one, for files the name of their folder; "" in segmentation.
        mask: true labels `(H, W)`; None if they are not known.
        from_file: whether it is a file that was named, so that `group` may be no class of the network.
    """

    name: str
    stem: Path
    image: np.ndarray
    group: str
    mask: np.ndarray | None
    from_file: bool

    @property
    def title(self) -> str:
        """The name, with the class if that is known and not a part of the name."""
        known = self.group and not self.from_file and not self.name.startswith(f"{self.group}/")
        return f"{self.name} ({self.group})" if known else self.name


class Examples:
    """Yields the pictures in a fixed order; those that cannot be read go to `problems`.

    Nothing is read before the first is asked for, so that methods that need no pictures do without.
    """

    def __init__(self, network: TrainedNetwork, flags: ExplainFlags) -> None:
        self.network = network
        self.flags = flags
        self.problems: list[str] = []
        self.ignore_index = 255

    def take(self, title: str = "pictures", most: int = FEW) -> Iterator[Example]:
        """The pictures, with progress.

        Args:
            most: number of pictures that are taken from the run's own data.

        Raises:
            ValueError: an input names nothing, the data of the run are not where they were, or no picture is readable.
        """
        found = 0
        for example in self._of_files(title) if self.flags.inputs else self._of_data(title, most):
            found += 1
            yield example
        if not found:
            raise ValueError(f"none of the pictures can be read; the first: {self.problems[0]}")

    def _of_files(self, title: str) -> Iterator[Example]:
        endings = (f".{self.flags.method}.png",)
        inputs = list(Inputs(self.flags.inputs, out=Path(self.flags.out), endings=endings))
        for one in with_progress(spread(inputs, self.flags.limit), self.flags.limit or len(inputs), title):
            try:
                image = one.read(self.network.read)
                if self.network.size_rule.kind == "own":
                    self.network.check_size(image)
                mask = None if self.flags.masks is None else self._mask(Path(self.flags.masks), one.stem, image)
            except ValueError as error:
                self.problems.append(f"{one.name}: {error}")
                continue
            group = one.path.parent.name if self.network.task == "classification" else ""
            yield Example(one.name, one.stem, image, group, mask, from_file=True)

    def _mask(self, folder: Path, stem: Path, image: np.ndarray) -> np.ndarray:
        """The mask of a picture, which lies in the folder of masks as the picture does among the pictures."""
        file = folder / stem.with_name(stem.name + ".png")
        if not file.is_file():
            raise ValueError(f"--masks: there is no {file}")
        mask = read_mask(file)
        if mask.shape != image.shape[:2]:
            sizes = " and ".join(f"{height} x {width}" for height, width in (mask.shape, image.shape[:2]))
            raise ValueError(f"--masks: {file} and its picture have different sizes, {sizes}")
        strange, classes = np.setdiff1d(mask, [self.ignore_index]).max(initial=0), len(self.network.class_names)
        if strange >= classes:
            raise ValueError(
                f"--masks: {file} holds the label {strange}; the network's classes are 0 to {classes - 1}, and "
                f"{self.ignore_index} is ignored"
            )
        return mask

    def _of_data(self, title: str, most: int) -> Iterator[Example]:
        data = data_of(self.flags.run, None, self.flags.data_dir, self.network)
        source = split_of(data, self.flags.split)
        self.ignore_index = data.ignore_index
        limit = min(self.flags.limit or most, len(source))
        for index in with_progress(spread(range(len(source)), limit), limit, title):
            try:
                image, truth, name = source[index]
            except ValueError as error:
                self.problems.append(str(error))
                continue
            segments = self.network.task == "segmentation"
            group, mask = ("", np.asarray(truth)) if segments else (self.network.class_names[int(truth)], None)
            yield Example(name, Path(name.lstrip("/")), image, group, mask, from_file=False)


def split_of(data: GraftDataModule, split: str) -> Any:
    """The stored pictures of a split.

    Raises:
        ValueError: the data set has no such split.
    """
    samples = getattr(data, split)
    if samples is None:
        raise ValueError(f"--split {split}: the data set has no such split; name pictures after the run")
    return samples.source


def spread(items: Any, limit: int | None) -> list[Any]:
    """At most `limit` of the items, evenly spaced, so that sorted classes are all met."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[round(place)] for place in np.linspace(0, len(items) - 1, limit)]


def prepared(network: TrainedNetwork, image: np.ndarray) -> tuple[np.ndarray, Tensor]:
    """An image uint8 `(H, W, 3)` as the network takes it: uint8 after the size rule, and normalised `(1, 3, h, w)`."""
    pixels = np.ascontiguousarray(network.size_rule.apply(image))
    return pixels, normalised(network, pixels)


def normalised(network: TrainedNetwork, pixels: np.ndarray) -> Tensor:
    """Pixels uint8 `(H, W, 3)` as the network's input, float `(1, 3, H, W)`."""
    parameter = next(network.module.parameters())
    batch = Normalise(network.mean, network.std)(torch.from_numpy(pixels)[None])
    return batch.to(parameter.device, parameter.dtype)
