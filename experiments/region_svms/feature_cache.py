"""The features of a training split's boxes, kept in a folder in half precision, one file an image.

Half precision is exact to three digits, and R-CNN's features of a data set are many gigabytes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import cast
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from datamodules.cache_folder import temporary_suffix
from datamodules.objects import Objects
from datamodules.samples import Samples
from experiments.region_svms.box_regression import LEAST_OVERLAP

Describe = Callable[[np.ndarray, np.ndarray], tuple[Tensor, Tensor]]
"""Image and boxes -> features to classify, and features to regress from."""


class ImageFeatures:
    """What is learned from an image: proposals `(P, 4)`, objects `(N, 4)` with classes, and the features of both."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.proposals, self.boxes = torch.from_numpy(arrays["proposals"]), torch.from_numpy(arrays["boxes"])
        self.labels = arrays["labels"]
        self.of_proposals = arrays["of_proposals"].astype(np.float32)
        self.of_objects = arrays["of_objects"].astype(np.float32)
        self.near = self.proposals[torch.from_numpy(arrays["near"])]
        """The proposals that boxes are regressed from, `(M, 4)`."""
        self.near_features = torch.from_numpy(arrays["near_features"].astype(np.float32))
        """`(M, E)`."""


class FeatureCache:
    """The features of a split's images, computed when they are asked for the first time."""

    def __init__(self, folder: Path, describe: Describe) -> None:
        self.folder, self.describe = folder, describe
        folder.mkdir(parents=True, exist_ok=True)

    def of(self, split: Samples, index: int) -> ImageFeatures:
        """The features of one image."""
        path = self.folder / f"{index:07d}.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                return ImageFeatures(dict(file))
        except (OSError, BadZipFile, ValueError, KeyError, EOFError):  # not there yet, or damaged
            arrays = self.computed(split, index)
        part = path.with_suffix(temporary_suffix())
        with part.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        part.replace(path)
        return ImageFeatures(arrays)

    def computed(self, split: Samples, index: int) -> dict[str, np.ndarray]:
        """All arrays of one image."""
        image, objects, proposals = picture(split, index)
        boxes = objects.boxes[~objects.crowd]
        features, others = self.describe(image, np.concatenate([proposals, boxes]))
        count = len(proposals)
        overlaps = box_iou(torch.from_numpy(boxes), torch.from_numpy(proposals))
        near = (overlaps > LEAST_OVERLAP).any(0).nonzero().squeeze(1)
        half = features.half().numpy()
        return {
            "proposals": proposals,
            "boxes": boxes,
            "labels": objects.labels[~objects.crowd],
            "of_proposals": half[:count],
            "of_objects": half[count:],
            "near": near.numpy(),
            "near_features": others[near].half().numpy(),
        }


def picture(split: Samples, index: int) -> tuple[np.ndarray, Objects, np.ndarray]:
    """Image uint8 `(H, W, 3)`, objects, and proposals float32 `(P, 4)` as they are stored."""
    image, target, _ = split.load(index)
    objects = cast("Objects", target)
    assert objects.proposals is not None
    return image, objects, objects.proposals
