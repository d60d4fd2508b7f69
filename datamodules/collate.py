"""Make a batch of samples, whose images may differ in size."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate

IGNORE_INDEX = 255


def collate(samples: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Stack uint8 samples; smaller images are padded at the bottom and right to the largest height and width.

    Masks are padded with 255 = ignore, so losses and scores count real pixels only. Images are padded with zeros; the
    data module later replaces these by the mean colour, using the original heights and widths in `sizes`. Samples that
    are None (unreadable) are dropped, so the batch may be empty.
    """
    kept = [sample for sample in samples if sample is not None]
    if not kept:
        empty = torch.zeros(0, 1, 1, 3, dtype=torch.uint8)
        return {"image": empty, "target": empty[..., 0], "name": []}
    if isinstance(kept[0]["target"], dict):  # objects, of which each image has its own number
        images = collate([sample | {"target": torch.tensor(0)} for sample in kept])
        return images | {"target": [sample["target"] for sample in kept]}
    sizes = [tuple(sample["image"].shape[:2]) for sample in kept]
    own = [tuple(sample["target"].shape) for sample in kept if sample["target"].ndim == 2]
    if own and own != sizes:
        return collate_whole_masks(kept, own)
    if len(set(sizes)) == 1:
        return default_collate(kept)
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    padded = [
        sample
        | {"image": pad(sample["image"].movedim(-1, 0), height, width, 0).movedim(0, -1)}
        | ({"target": pad(sample["target"], height, width, IGNORE_INDEX)} if sample["target"].ndim == 2 else {})
        | ({"border_weights": pad(sample["border_weights"], height, width, 0)} if "border_weights" in sample else {})
        for sample in kept
    ]
    return default_collate(padded) | {"sizes": sizes}


def collate_whole_masks(samples: list[dict[str, Any]], sizes: list[tuple[int, ...]]) -> dict[str, Any]:
    """Resized images, all of one size, with masks of their own `sizes`, which the batch keeps as `target_sizes`."""
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    padded = [sample | {"target": pad(sample["target"], height, width, IGNORE_INDEX)} for sample in samples]
    return default_collate(padded) | {"target_sizes": sizes}


def pad(values: Tensor, height: int, width: int, fill: int) -> Tensor:
    """Pad `(..., H, W)` at the bottom and right to `(..., height, width)`."""
    below, right = height - values.shape[-2], width - values.shape[-1]
    return F.pad(values, (0, right, 0, below), value=fill) if below or right else values
