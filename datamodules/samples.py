"""A split's samples on the way from their source to a batch, and the order in which training asks for them."""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

import albumentations as A
import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from datamodules.collate import IGNORE_INDEX
from datamodules.errors import DataError
from datamodules.loader import Normalise
from datamodules.objects import Objects, transformed
from datamodules.proposals import Proposals
from datamodules.sample_cache import SampleCache
from datamodules.source import FileSource, Sample, Source, SourceOfSeveralLabels
from lightning_modules.borders import border_weights

OnBadSample = Literal["error", "replace", "drop"]


class Samples(Dataset[dict[str, Any] | None]):
    """A source behind its preparation, which is done once for a sample where there is a cache, and its pipeline.

    Items are asked for by index, or by `(epoch, index)`. Random augmentation is a function of (seed, epoch, index)
    alone: every sample brings its own generators (20 microseconds), so that neither the number of workers nor the
    number of processes nor a resumed run changes what the network sees.

    Depending on `on_bad_sample`, an unreadable sample raises an error, is replaced by the next readable one, or becomes
    None. In the last two cases it is marked in `bad`, which lies in memory shared by the workers and the training
    process. With `whole_masks`, the preparation changes images and leaves masks as they are. With `weigh_borders`,
    samples also have `border_weights` float32 `(H, W)` for the loss unet_border, so that the workers compute them.

    Raises:
        ValueError: no sample can be read, although unreadable ones may be skipped.
    """

    def __init__(
        self,
        source: Source,
        pipeline: A.Compose,
        seed: int,
        normalise: Normalise,
        *,
        endless: bool = False,
        on_bad_sample: OnBadSample = "error",
        cache: SampleCache | None = None,
        preparation: A.Compose | None = None,
        whole_masks: bool = False,
        weigh_borders: bool = False,
        proposals: Proposals | None = None,
    ) -> None:
        self.proposals = proposals
        self.on_bad_sample = on_bad_sample
        self.bad = torch.zeros(0 if on_bad_sample == "error" else len(source), dtype=torch.bool).share_memory_()
        self.source = source
        self.endless = endless
        self.pipeline = pipeline
        self.seed = seed
        self.normalise = normalise
        self.cache = cache if isinstance(source, FileSource) else None
        self.preparation = preparation
        self.whole_masks = whole_masks
        self.weigh_borders = weigh_borders
        self.preparation_key = f"{preparation!r} of images" if whole_masks else repr(preparation)
        if on_bad_sample != "error":
            self._need_one()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any] | None:
        """`image` float32 `(3, H, W)`, normalised; `target` int64 `(H, W)` or `()`, or `Objects.tensors()`; `name`."""
        sample = self.pixels(key)
        if sample is None:
            return None
        target = sample["target"] if isinstance(sample["target"], dict) else sample["target"].long()
        return sample | {"image": self.normalise(sample["image"]), "target": target}

    def pixels(self, key: int | tuple[int, int]) -> dict[str, Any] | None:
        """The same in a quarter of the bytes: `image` uint8 `(H, W, 3)`, a mask as uint8."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        stored = self._readable(index, epoch * len(self.source) * self.endless)
        if stored is None:
            return None
        image, target, name = stored
        # albumentations draws from generators of its own, which seeding numpy, random or torch does not reach.
        generator = np.random.default_rng((self.seed, epoch, index))
        self.pipeline.set_random_state(generator, random.Random(int(generator.integers(2**32))))
        if isinstance(target, Objects):
            image, target = transformed(self.pipeline, image, target)
            return {"image": tensor(image), "target": target.tensors(), "name": name}
        if isinstance(target, np.ndarray):
            out = self.pipeline(image=image, mask=target)
            found = {"image": tensor(out["image"]), "target": tensor(out["mask"]), "name": name}
            if self.weigh_borders:
                objects = np.where(out["mask"] == IGNORE_INDEX, 0, out["mask"])
                found["border_weights"] = torch.from_numpy(border_weights(objects))
            return found
        labels = torch.tensor(target)
        if isinstance(self.source, SourceOfSeveralLabels):
            labels = torch.from_numpy(self.source.labels_of(target))
        return {"image": tensor(self.pipeline(image=image)["image"]), "target": labels, "name": name}

    def load(self, index: int) -> Sample:
        """The prepared sample with its proposals, if there are any.

        Raises:
            ValueError: it cannot be read, or it has no proposals although others have.
        """
        image, target, name = self._stored(index)
        if self.proposals is None or not isinstance(target, Objects):
            return image, target, name
        return (
            image,
            replace(target, proposals=self.proposals.of(name, image, resized=self.preparation is not None)),
            name,
        )

    def _stored(self, index: int) -> Sample:
        """The prepared sample, from the cache if it is there, and into it if it is not."""
        source = self.source
        if self.cache is None or not isinstance(source, FileSource):
            return self._prepared(source[index])
        try:
            key = self.cache.key(source, index, self.preparation_key)
        except OSError:  # a file is missing, which the source says better
            return self._prepared(source[index])
        sample = self.cache.get(key)
        if sample is None:
            sample = self._prepared(source[index])
            self.cache.put(key, sample)
        return sample

    def check_and_cache(self, index: int) -> None:
        """Check that the sample can be read, and cache it if there is room.

        Returns nothing, so that checking a whole split does not hold all its samples in memory.

        Raises:
            ValueError: it cannot be read.
        """
        self.load(index)

    def _prepared(self, sample: Sample) -> Sample:
        image, target, name = sample
        if self.preparation is None:
            return sample
        if isinstance(target, Objects):
            return *transformed(self.preparation, image, target), name
        if isinstance(target, np.ndarray) and not self.whole_masks:
            out = self.preparation(image=image, mask=target)
            return out["image"], out["mask"], name
        return self.preparation(image=image)["image"], target, name

    def _readable(self, index: int, offset: int) -> Sample | None:
        count = len(self.source)
        for candidate in ((index + step) % count for step in range(count if self.on_bad_sample == "replace" else 1)):
            if self.on_bad_sample == "replace" and self.bad[candidate]:
                continue  # read once: a row of many bad samples would be read again for each of them
            try:
                return self.load(candidate + offset)
            except DataError:
                if self.on_bad_sample == "error":
                    raise
                self.bad[candidate] = True
                if self.on_bad_sample == "drop":
                    return None
        raise DataError(f"none of the {count} training samples can be read; --on-bad-sample error says why")

    def _need_one(self) -> None:
        """Raises ValueError if no sample can be read: there would be nothing to train on, or to score."""
        first: DataError | None = None
        for index in range(len(self.source)):
            try:
                self.load(index)
                return
            except DataError as error:
                first = first or error
        split = "training" if self.on_bad_sample == "replace" else "validation or test"
        raise DataError(f"none of the {len(self.source)} {split} samples can be read; the first: {first}")


def tensor(pixels: np.ndarray) -> Tensor:
    """Without a copy, unless the image is a mirrored view, which torch does not take."""
    if pixels.strides[1] < 0:
        pixels = cv2.flip(pixels[:, ::-1], 1)  # 30 times faster than numpy's copy
    return torch.from_numpy(np.ascontiguousarray(pixels))


class Shuffled(DistributedSampler[Any]):
    """This process's share of the training set, anew each epoch, as `(epoch, index)` keys.

    The epoch travels with the index because persistent workers keep the copy of the data set they started with.
    Lightning calls `set_epoch`.
    """

    def __init__(self, samples: Samples, processes: int, rank: int, seed: int) -> None:
        super().__init__(samples, processes, rank, shuffle=True, seed=seed, drop_last=True)
        self.resumed = (0, 0)

    def resume(self, epoch: int, taken: int) -> None:
        """Skip the first `taken` samples of `epoch`, counted over all ranks, which the interrupted run has had."""
        self.resumed = (epoch, taken // self.num_replicas)
        self.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        epoch, taken = self.resumed
        return ((self.epoch, index) for index in islice(super().__iter__(), taken if epoch == self.epoch else 0, None))
