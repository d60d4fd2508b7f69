"""The mean training image, for networks that subtract it from each image, pixel by pixel, as AlexNet does."""

import threading
from functools import partial

import albumentations as A
import torch
from torch import Tensor

from datamodules.augmentation import compose
from datamodules.base import GraftDataModule
from datamodules.checking import in_threads
from datamodules.errors import DataError
from datamodules.samples import OnBadSample, Samples

MOST = 10_000
"""Images, evenly spaced, of which the mean is taken."""


def mean_image(data: GraftDataModule) -> Tensor:
    """The mean of the training images, cropped and scaled as in validation: float32 `(C, H, W)`, normalised.

    Sums are whole numbers, so the result does not depend on their order.

    Raises:
        ValueError: the task is not classification, whose images all have one size; or an image cannot be read.
    """
    if data.task != "classification":
        raise DataError("--mean-image needs images of one size, which a classification head has; leave the flag out")
    if data.train is None:
        raise DataError(f"--mean-image: there is no train split in {data.data_dir} to take the mean of")
    skip: OnBadSample = "drop" if data.on_bad_sample == "skip" else "error"
    steps: list[A.BasicTransform] = data.evaluation()
    samples = Samples(data.train.source, compose(steps), data.seed, data.normalise, on_bad_sample=skip)
    total = torch.zeros(*data.image_size, len(data.mean), dtype=torch.int64)
    used, lock = [], threading.Lock()

    def add(index: int) -> None:
        sample = samples.pixels(index)
        if sample is not None:
            with lock:
                total.add_(sample["image"])
                used.append(index)

    count = min(MOST, len(samples))
    in_threads("Averaging the training images", [partial(add, i * len(samples) // count) for i in range(count)])
    return data.normalise(total / len(used))
