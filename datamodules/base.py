"""Base data module: the splits of a data set, their albumentations pipelines and their data loaders."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import albumentations as A

from backbones.backbone import IMAGENET_MEAN, IMAGENET_STD
from datamodules.augmentation import FROM_WHOLE_IMAGES, compose, find_augmentation, scale_crop_flip, set_scale_range
from datamodules.bands import RGB, describe, mean_and_std
from datamodules.checking import check
from datamodules.collate import IGNORE_INDEX
from datamodules.crops import centre_crop, random_crop_flip
from datamodules.decoding import WHITE
from datamodules.errors import DataError
from datamodules.files import LabelledImages, MaskedImages
from datamodules.fingerprint import content_hash, fingerprint_of
from datamodules.loader import Normalise
from datamodules.loaders import DataModuleWithLoaders
from datamodules.memory import keep_freed_memory
from datamodules.node_folder import once_per_node
from datamodules.notes import note
from datamodules.palette import Colour, distinct_colours
from datamodules.proposals import Proposals, proposals_for
from datamodules.sample_cache import Cache, open_cache
from datamodules.samples import OnBadSample, Samples
from datamodules.size_rules import Fit, SizeRule
from datamodules.source import FileSource, Source

Task = Literal["classification", "segmentation", "detection"]
MIN_DECODED_SIZE_FACTOR = 2
"""JPEG files are decoded at a reduced size only if both sides remain at least this many times the crop's longer side;
beyond that, more pixels would make no difference."""


class GraftDataModule(DataModuleWithLoaders):
    """Base class of all data sets. `setup()` builds `train`, `val` and `test`; a split that does not exist is None.

    A subclass states `tasks`, sets `class_names` (and `palette`, if it has its own colours) and writes `default_size`
    and `sources`. It overrides `preparation`, `augmentation` and `evaluation` if the default transforms do not suit it.

    Batches are `{"image": float32 (B, C, H, W), "target": int64 (B, H, W) or (B,), "name": list[str]}`, on the device
    of the network; for detection, "target" is a list of `Objects.tensors()`. See `DataModuleWithLoaders`.

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
    takes_several_labels: ClassVar[bool] = False
    """Whether images may have any number of labels."""
    takes_in_channels: ClassVar[bool] = False
    """Whether images may have another number of bands than three."""
    ap_rule: ClassVar[str] = "coco"
    """How its detections are scored unless the user says otherwise; see `lightning_modules/detection_scores.py`."""
    has_object_masks: ClassVar[bool] = False
    """Whether a head can learn the mask of each object from it."""
    several_labels: bool = False
    """Whether images have any number of labels; targets are then 0 or 1 int64 (B, C)."""
    class_names: tuple[str, ...]
    palette: tuple[Colour, ...] | None = None
    """The data set's own colours of its classes, RGB in 0..255."""

    def __init__(
        self,
        task: Task,
        *,
        data_dir: str | None = None,
        image_size: tuple[int, int] | None = None,
        batch_size: int = 16,
        workers: int = 2,
        seed: int = 0,
        mean: Sequence[float] | None = IMAGENET_MEAN,
        std: Sequence[float] | None = IMAGENET_STD,
        download: bool = False,
        on_bad_sample: Literal["error", "skip"] = "error",
        cache: Cache = "memory",
        augmentation: str | None = None,
        scale_range: tuple[float, float] | None = None,
        mask_suffix: str | None = None,
        in_channels: int = RGB,
        fit: Fit | None = None,
        weigh_borders: bool = False,
        object_masks: bool = False,
        several_labels: bool = False,
        proposals: str | None = None,
    ) -> None:
        """`image_size` is (H, W), or None for the data set's default; `batch_size` and `workers` are per rank.

        With `download`, a missing data set is downloaded if that is possible. With `on_bad_sample` "skip", training
        replaces an unreadable sample by the next readable one, and evaluation leaves it out. `cache` says where decoded
        samples are cached; see `datamodules/sample_cache.py`. `augmentation` is a preset or a file, as described in
        `datamodules/augmentation.py`; with None the data set's own augmentation is used. `scale_range` replaces the
        factors 0.5 to 2 of augmentations that scale training images and crop them. A `~` in `data_dir` is the user's
        home directory.
        `mask_suffix` is what the names of masks add to those of their images, and `in_channels` the number of bands of
        the images, both for data sets of plain folders. `fit` brings the images of a detector to a size before all
        else; None keeps theirs. With `weigh_borders`, training batches have `border_weights` for the loss unet_border.
        With `object_masks`, the objects of a detector have masks; these are not cached.
        With `several_labels`, data sets that can hold several labels per image are read so.
        With `proposals`, a method or a file (see `datamodules/proposals.py`), objects have proposals, and training
        images are the same in each epoch. With `mean` or `std` None, `setup()` measures it on the training images.

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
        if in_channels != RGB and not self.takes_in_channels:
            raise DataError(f"--in-channels is for --data folders; the images of {name} are read as RGB")
        self.in_channels = in_channels
        if fit is not None and task != "detection":
            raise DataError(f"--fit is for heads that detect; leave it out for {task}")
        self.fit: Fit = fit or "own"
        self.weigh_borders = weigh_borders
        if object_masks and not self.has_object_masks:
            raise DataError(
                f"the head learns the masks of objects, and --data {name} gives boxes only; use --head fasterrcnn, "
                "--data coco or --data digits"
            )
        self.object_masks = object_masks
        self.several_labels = several_labels and self.takes_several_labels and task == "classification"
        if proposals is not None and task != "detection":
            raise DataError(f"--proposals are boxes that may hold an object; leave the flag out in {task}")
        self.proposals = proposals
        self.found: dict[str, Proposals] = {}
        """The proposals of each split, after `setup()`."""
        self.mean = tuple(mean or ())
        self.std = tuple(std or ())
        self.normalise = Normalise(self.mean, self.std)
        self.download = download
        self.on_bad_sample = on_bad_sample
        self.cache: Cache = cache
        self.augmentation_name, self.scale_range = augmentation, scale_range
        if mask_suffix is not None and not self.takes_mask_suffix:
            raise DataError(f"--mask-suffix is for --data folders; the masks of {name} have fixed names")
        self.mask_suffix = mask_suffix

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
        if self.task == "detection":
            return SizeRule(self.fit, self.image_size)
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
            "least": next((one.min_side for one in sources if isinstance(one, LabelledImages)), None),
            "proposals": self.proposals,
        }

    def preparation(self) -> list[A.BasicTransform]:
        """Deterministic transforms applied first to the images of all splits.

        Their result can be cached, so they run once instead of once per epoch.
        """
        return self.size_rule().transforms() if self.task == "detection" else []

    def augmentation(self) -> list[A.BasicTransform]:
        """Training transforms after `preparation`, ending at `image_size`: by default, the usual random crops.

        Images that a detector sees within bounds are only flipped: their size is what the bounds make it.
        """
        if self.task == "detection" and self.fit == "within":
            return [A.HorizontalFlip(p=0.5)]
        if self.task == "classification":
            return random_crop_flip(self.image_size)
        return scale_crop_flip(self.image_size, self.mean)

    def evaluation(self) -> list[A.BasicTransform]:
        """Deterministic transforms of validation and test images. Only classification scores a part of them."""
        return centre_crop(self.image_size) if self.task == "classification" else []

    def setup(self, stage: str | None = None) -> None:
        """Build all splits, whatever the stage, and check their files. A second call changes nothing.

        Raises:
            ValueError: the data have errors, or there are fewer training images than ranks.
        """
        if self.val is not None:
            return
        keep_freed_memory()
        sources = self.sources()
        self.splits = tuple(sources)
        self._measure_bands(next(iter(sources.values())))
        if self.proposals is not None:
            if self.endless_training:
                note("with --proposals, the training images are the same in each epoch")
                self.endless_training = False
            self.found = proposals_for(self.proposals, sources, self.data_dir, self.workers)
        if "train" in sources:
            self.train = self._training_samples(sources["train"])
        if "val" in sources:
            self.val = self._samples(sources["val"], self.evaluation(), "drop", proposals=self.found.get("val"))
        if "test" in sources:
            self.test = self._samples(sources["test"], self.evaluation(), "drop", proposals=self.found.get("test"))
        if self.on_bad_sample == "error":
            self._check_files([samples for samples in (self.train, self.val, self.test) if samples is not None])

    def _training_samples(self, source: Source) -> Samples:
        self._lower_batch_size(len(source))
        name = self.augmentation_name
        transforms = find_augmentation(name, self.image_size, self.mean) if name else self.augmentation()
        if self.scale_range is not None:
            set_scale_range(transforms, self.scale_range)
        found = self.found.get("train")
        return self._samples(source, transforms, "replace", endless=self.endless_training, proposals=found)

    def _measure_bands(self, source: Source) -> None:
        """Set mean and standard deviation from the images, where none were given, and say what they are."""
        if not (self.mean and self.std):
            mean, std = mean_and_std(source)
            self.mean, self.std = self.mean or mean, self.std or std
            self.normalise = Normalise(self.mean, self.std)
            note(f"--in-channels {self.in_channels}: mean ± std of each band: {describe(self.mean, self.std)}")

    def _check_files(self, splits: list[Samples]) -> None:
        """Read the files once: errors in them appear before training starts, and the cache is filled.

        One rank of each machine does so for all its ranks.
        """
        files = [samples for samples in splits if isinstance(samples.source, FileSource)]
        jobs: list[Callable[[], None]] = [
            partial(samples.check_and_cache, index) for samples in files for index in range(len(samples))
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
        self,
        source: Source,
        transforms: list[A.BasicTransform],
        skip: OnBadSample,
        *,
        endless: bool = False,
        proposals: Proposals | None = None,
    ) -> Samples:
        whole = skip == "replace" and self.augmentation_name in FROM_WHOLE_IMAGES
        preparation = [] if whole and self.task == "detection" else self.preparation()
        if isinstance(source, LabelledImages):
            source.min_side = MIN_DECODED_SIZE_FACTOR * max(self.image_size)
        return Samples(
            source,
            compose(transforms, boxes=self.task == "detection"),
            self.seed,
            self.normalise,
            endless=endless,
            on_bad_sample=skip if self.on_bad_sample == "skip" else "error",
            whole_masks=skip == "drop",
            weigh_borders=self.weigh_borders and skip == "replace",
            cache=open_cache(self.cache) if isinstance(source, FileSource) and not self.object_masks else None,
            preparation=compose(preparation, boxes=self.task == "detection") if preparation else None,
            proposals=proposals,
        )
