"""Base data module: the splits of a data set, their albumentations pipelines and their data loaders."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar, cast

import albumentations as A
import cv2
import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.loops.progress import _ProcessedTracker
from torch import Tensor

from backbones.backbone import IMAGENET_MEAN, IMAGENET_STD, to_pixels
from datamodules.augmentation import compose, find_augmentation, scale_crop_flip
from datamodules.checking import check
from datamodules.collate import IGNORE_INDEX, collate
from datamodules.crops import centre_crop, random_crop_flip
from datamodules.decoding import WHITE
from datamodules.errors import DataError
from datamodules.files import LabelledImages, MaskedImages
from datamodules.fingerprint import content_hash, fingerprint_of
from datamodules.loader import Batch, EqualBatches, Loader, Normalise, TrainingLoader, Uint8Dataset
from datamodules.memory import keep_freed_memory
from datamodules.node_folder import once_per_node
from datamodules.samples import OnBadSample, Samples, Shuffled
from datamodules.size_rules import SizeRule
from datamodules.source import FileSource, Source
from datamodules.store import Cache, open_store
from datamodules.worker_signals import ignore_signals_except_parents

Task = Literal["classification", "segmentation", "detection"]
Colour = tuple[int, int, int]
L = TypeVar("L", bound=Loader)
MIN_DECODED_SIZE_FACTOR = 2
"""JPEG files are decoded at a reduced size only if both sides remain at least this many times the crop's longer side;
beyond that, more pixels would make no difference."""


class GraftDataModule(LightningDataModule):
    """Base class of all data sets. `setup()` builds `train`, `val` and `test`; a split that does not exist is None.

    A subclass states `tasks`, sets `class_names` (and `palette`, if it has its own colours) and writes `default_size`
    and `sources`. It overrides `preparation`, `augmentation` and `evaluation` if the default transforms do not suit it.

    Batches are `{"image": float32 (B, 3, H, W), "target": int64 (B, H, W) or (B,), "name": list[str]}`, on the device
    of the network. For detection, "target" is a list of `Objects.tensors()`, and "sizes" holds H and W of each image if
    the batch pads them. Every rank yields the same number of batches from each loader. A batch of a validation or test
    loader may be empty (B = 0, H and W = `image_size`): the rank has no samples left, or none of them can be read.

    If `preparation` resizes images, masks of validation and test keep their own sizes, listed as "target_sizes" (h, w),
    and are padded with ignore to the largest.
    """

    tasks: ClassVar[tuple[Task, ...]]
    """The tasks that the data set has targets for."""
    ignore_index: int = IGNORE_INDEX
    """Label of pixels that count neither in losses nor in scores."""
    endless_training: bool = False
    """Whether the training source generates samples beyond its length, so that each epoch can have new ones."""
    takes_mask_suffix: ClassVar[bool] = False
    """Whether the names of masks are the user's choice."""
    class_names: tuple[str, ...]
    palette: tuple[Colour, ...] | None = None
    """The data set's own colours of its classes, RGB in 0..255."""
    splits: tuple[str, ...]
    """The names of the splits that exist, set by `setup()`."""

    def __init__(
        self,
        task: Task,
        *,
        data_dir: str | None = None,
        image_size: tuple[int, int] | None = None,
        batch_size: int = 16,
        workers: int = 2,
        seed: int = 0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        download: bool = False,
        on_bad_sample: Literal["error", "skip"] = "error",
        cache: Cache = "memory",
        augmentation: str | None = None,
        mask_suffix: str | None = None,
    ) -> None:
        """`image_size` is (H, W), or None for the data set's default; `batch_size` and `workers` are per rank.

        With `download`, a missing data set is downloaded if that is possible. With `on_bad_sample` "skip", training
        replaces an unreadable sample by the next readable one, and evaluation leaves it out. `cache` says where decoded
        samples are cached; see `datamodules/store.py`. `augmentation` is a preset or a file, as described in
        `datamodules/augmentation.py`; with None the data set's own augmentation is used. A `~` in `data_dir` is the
        user's home directory.
        `mask_suffix` is what the names of masks add to those of their images, for data sets of plain folders.

        Raises:
            ValueError: the data set has no such task, or a number is out of range.
        """
        super().__init__()
        name = type(self).__name__.lower()
        if task not in self.tasks:
            raise DataError(f"--data {name} is for {' and '.join(self.tasks)} only; for {task} use --data digits")
        for flag, value, least in (("batch-size", batch_size, 1), ("workers", workers, 0), ("seed", seed, 0)):
            if value < least:
                raise DataError(f"--{flag} is {value}; it must be {least} or more")
        self.task = task
        self.data_dir = data_dir and os.path.expanduser(data_dir)
        self.image_size: tuple[int, int] = image_size if image_size is not None else self.default_size()
        if min(self.image_size) < 1:
            raise DataError(f"--image-size is {self.image_size[0]}x{self.image_size[1]}; both sides must be 1 or more")
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.download = download
        self.on_bad_sample = on_bad_sample
        self.cache: Cache = cache
        self.augmentation_name = augmentation
        if mask_suffix is not None and not self.takes_mask_suffix:
            raise DataError(f"--mask-suffix is for --data folders; the masks of {name} have fixed names")
        self.mask_suffix = mask_suffix
        self.normalise = Normalise(mean, std)
        self._normalise_on: dict[torch.device, Normalise] = {}
        self.resumed: dict[str, int] | None = None
        self._sampler: Shuffled | None = None
        self.train: Samples | None = None
        self.val: Samples | None = None
        self.test: Samples | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def colours(self) -> tuple[Colour, ...]:
        """RGB in 0..255 of each class: the data set's own, or generated ones."""
        if self.task == "detection":  # without the black of a background
            return self.palette or distinct_colours(1 + self.num_classes)[1:]
        return self.palette or distinct_colours(self.num_classes)

    def default_size(self) -> tuple[int, int]:
        """Height and width of the images if the user gives no `image_size`."""
        raise NotImplementedError

    def sources(self) -> dict[str, Source]:
        """The splits that exist, by name: `train`, `val` and `test`.

        Raises:
            ValueError: files are missing or do not fit together.
        """
        raise NotImplementedError

    def size_rule(self) -> SizeRule:
        """How an image of the user's own gets the size at which this data set is evaluated."""
        return SizeRule("centre_crop" if self.task == "classification" else "own", self.image_size)

    def preprocessing(self) -> dict[str, Any]:
        """What a trained network needs to know about its images, as plain values for a checkpoint. After `setup()`."""
        rule = self.size_rule()
        sources = [samples.source for samples in (self.train, self.val, self.test) if samples is not None]
        return {
            "size_rule": rule.kind,
            "size": list(rule.size),
            "mean": list(self.mean),
            "std": list(self.std),
            "colours": [list(colour) for colour in self.colours],
            "white": next((one.white for one in sources if isinstance(one, (LabelledImages, MaskedImages))), WHITE),
            "least": next((one.least for one in sources if isinstance(one, LabelledImages)), None),
        }

    def preparation(self) -> list[A.BasicTransform]:
        """Deterministic transforms applied first to the images of all splits.

        Their result can be cached, so they run once instead of once per epoch.
        """
        return []

    def augmentation(self) -> list[A.BasicTransform]:
        """Training transforms after `preparation`, ending at `image_size`: by default, the usual random crops."""
        if self.task == "classification":
            return random_crop_flip(self.image_size)
        return scale_crop_flip(self.image_size, self.mean)

    def evaluation(self) -> list[A.BasicTransform]:
        """Deterministic transforms of validation and test images. Only classification scores a part of them."""
        return centre_crop(self.image_size) if self.task == "classification" else []

    def setup(self, stage: str | None = None) -> None:
        """Build all splits, whatever the stage, and check their files. A second call changes nothing.

        Raises:
            ValueError: the data have errors, or there are too few training images for one batch per rank.
        """
        if self.val is not None:
            return
        keep_freed_memory()
        sources = self.sources()
        self.splits = tuple(sources)
        if "train" in sources:
            self.train = self._training_samples(sources["train"])
        if "val" in sources:
            self.val = self._samples(sources["val"], self.evaluation(), "drop")
        if "test" in sources:
            self.test = self._samples(sources["test"], self.evaluation(), "drop")
        if self.on_bad_sample == "error":
            self._check_files([samples for samples in (self.train, self.val, self.test) if samples is not None])

    def _training_samples(self, source: Source) -> Samples:
        self._check_batch_size(len(source))
        name = self.augmentation_name
        transforms = find_augmentation(name, self.image_size, self.mean) if name else self.augmentation()
        return self._samples(source, transforms, "replace", endless=self.endless_training)

    def _check_files(self, splits: list[Samples]) -> None:
        """Read the files once: errors in them appear before training starts, and the cache is filled.

        One rank of each machine does so for all its ranks.
        """
        files = [samples for samples in splits if isinstance(samples.source, FileSource)]
        jobs: list[Callable[[], None]] = [
            partial(samples.keep, index) for samples in files for index in range(len(samples))
        ]

        def inspect() -> None:
            check(jobs)

        if jobs:
            once_per_node(f"check {type(self).__name__} {self.task} {self.data_dir} {self.image_size}", inspect)

    def fingerprint(self) -> str:
        """What the data are, for comparing them with those of an earlier run; call `setup()` first.

        Space-separated parts `NAME:COUNT:HASH`, for example "classes:3:1f2e53ab train:244:9a0c01d4 val:153:77deb02e",
        so that a difference shows which part has changed. Classes are hashed by name, in order; a split by the names
        of its files relative to `data_dir`, in order, and by the sizes of at most 10,000 of them, evenly spaced. Data
        that move to another folder keep their fingerprint. No file is read, so 1.3 million files take seconds.
        """
        splits = {split: getattr(self, split) for split in self.splits}
        parts = [("classes", self.num_classes, content_hash(self.class_names))]
        parts += [
            (split, len(samples), fingerprint_of(samples.source, self.data_dir)) for split, samples in splits.items()
        ]
        return " ".join(f"{name}:{count}:{digest}" for name, count, digest in parts)

    def _samples(
        self, source: Source, transforms: list[A.BasicTransform], skip: OnBadSample, *, endless: bool = False
    ) -> Samples:
        preparation = self.preparation()
        if isinstance(source, LabelledImages):
            source.least = MIN_DECODED_SIZE_FACTOR * max(self.image_size)
        return Samples(
            source,
            compose(transforms, boxes=self.task == "detection"),
            self.seed,
            self.normalise,
            endless=endless,
            on_bad_sample=skip if self.on_bad_sample == "skip" else "error",
            whole_masks=skip == "drop",
            store=open_store(self.cache) if isinstance(source, FileSource) else None,
            preparation=compose(preparation, boxes=self.task == "detection") if preparation else None,
        )

    def _processes(self) -> tuple[int, int]:
        """This process's rank, and the number of ranks."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _check_batch_size(self, images: int) -> None:
        _, processes = self._processes()
        if images // processes < self.batch_size:
            needs = f"on each of {processes} processes needs more" if processes > 1 else "is larger"
            raise DataError(
                f"--batch-size {self.batch_size} {needs} than the {images} training images; "
                f"use at most {images // processes}"
            )

    def train_dataloader(self) -> TrainingLoader:
        """Shuffled batches, all of `batch_size`; a remainder of the epoch that fills no batch is left out."""
        if self.train is None:
            raise DataError(f"there is no train split in {self.data_dir}; --epochs 0 scores without training")
        self._check_batch_size(len(self.train))
        rank, processes = self._processes()
        sampler = Shuffled(self.train, processes, rank, self.seed)
        loader = self._loader(TrainingLoader, self.train, batch_size=self.batch_size, sampler=sampler, drop_last=True)
        self._sampler = sampler
        if self.resumed is not None:
            sampler.resume(**self.resumed)
        loader.progress = self.state_dict
        return loader

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        # Keep the state until the loader is made: Lightning restores a loader's own state too late if the optimiser
        # has already asked for the number of steps.
        self.resumed = state_dict
        if self._sampler is not None:  # under FSDP2, Lightning restores after it has made the loader
            self._sampler.resume(**state_dict)

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its samples all ranks together have trained on.

        Samples that workers have only prefetched do not count.
        """
        assert self.trainer is not None
        assert self._sampler is not None
        loop = self.trainer.fit_loop
        epoch = cast("_ProcessedTracker", loop.epoch_progress.current).processed
        batches = cast("_ProcessedTracker", loop.epoch_loop.batch_progress.current).processed
        # If --max-steps ended an epoch early, Lightning resumes with the next one.
        within = epoch == self._sampler.epoch
        return {"epoch": epoch, "taken": batches * self.batch_size * self.trainer.world_size if within else 0}

    def val_dataloader(self) -> Loader:
        """Every sample exactly once over all ranks, in equally many batches on each rank; some may be empty."""
        return self._evaluation_loader("val", self.val)

    def test_dataloader(self) -> Loader:
        """Every sample exactly once over all ranks, in equally many batches on each rank; some may be empty."""
        return self._evaluation_loader("test", self.test)

    def _evaluation_loader(self, split: str, samples: Samples | None) -> Loader:
        if samples is None:
            raise DataError(f"there is no {split} split; the splits are {', '.join(self.splits)}")
        rank, processes = self._processes()
        if len(samples) < processes:
            raise DataError(f"{processes} processes cannot share {len(samples)} {split} images; use fewer --devices")
        batches = EqualBatches(len(samples), self.batch_size, rank, processes)
        return self._loader(Loader, samples, batch_sampler=batches)

    def _loader(self, kind: type[L], samples: Samples, **batching: Any) -> L:
        loader = kind(
            Uint8Dataset(samples.pixels),
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=self._device().type == "cuda",
            persistent_workers=self.workers > 0,
            worker_init_fn=prepare_worker,
            **batching,
        )
        loader.finish = self.finish
        return loader

    def _device(self) -> torch.device:
        """Where the network is."""
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def finish(self, batch: Batch) -> Batch:
        """Move a uint8 batch from the workers to the network's device, fill its padding with the mean colour and
        normalise it.

        The program never waits for the device here: copies to a GPU start from pinned memory and are non-blocking, and
        the constants of the normalisation stay on the device.
        """
        device = self._device()
        if not batch["name"]:
            return self._empty_batch(device)
        if device not in self._normalise_on:
            self._normalise_on[device] = self.normalise.to(device)
        normalise = self._normalise_on[device]
        # Non-blocking copies to Apple's MPS can deliver a buffer that the host has already reused.
        non_blocking = device.type != "mps"
        pixels = batch["image"].to(device, non_blocking=non_blocking)
        for one, (height, width) in zip(pixels, batch.get("sizes", ()), strict=False):
            one[height:] = one[:, width:] = normalise.colour
        own_sizes = {"target_sizes": batch["target_sizes"]} if "target_sizes" in batch else {}
        if self.task == "detection":
            target: Any = [
                {key: value.to(device, non_blocking=non_blocking) for key, value in objects.items()}
                for objects in batch["target"]
            ]
            own_sizes |= {"sizes": batch["sizes"]} if "sizes" in batch else {}
        else:
            target = batch["target"].to(device, non_blocking=non_blocking).long()
        return {"image": normalise(pixels), "target": target, "name": batch["name"]} | own_sizes

    def _empty_batch(self, device: torch.device) -> Batch:
        height, width = self.image_size
        shape = (0, height, width) if self.task == "segmentation" else (0,)
        image = torch.zeros(0, 3, height, width, device=device)
        if self.task == "detection":
            return {"image": image, "target": [], "name": []}
        return {"image": image, "target": torch.zeros(shape, dtype=torch.long, device=device), "name": []}

    def to_pixels(self, image: Tensor) -> Tensor:
        """Undo the normalisation: float `(..., 3, H, W)` -> uint8."""
        return to_pixels(image, self.mean, self.std)


def prepare_worker(worker: int) -> None:
    """Settings of a data-loader worker; it does not inherit them from the training process unless it is forked."""
    cv2.setNumThreads(0)  # OpenCV would start one thread per core in every worker
    keep_freed_memory()
    ignore_signals_except_parents()


def distinct_colours(count: int) -> tuple[Colour, ...]:
    """`count` RGB colours: black, then hues that advance by the golden angle at three brightnesses in turn."""
    hues = np.arange(count - 1) * 0.618034 % 1 * 180
    values = np.resize([255, 190, 140], count - 1)
    hsv = np.stack([hues, np.full(count - 1, 190), values], axis=-1).astype(np.uint8)
    rgb = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]
    return ((0, 0, 0), *((int(r), int(g), int(b)) for r, g, b in rgb))
