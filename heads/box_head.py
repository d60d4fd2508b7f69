"""Base class of heads that detect objects, and the types of what they learn from and what they find.

A box head is called in two steps. `forward([maps])` computes all that depends on weights only, as a tuple of tensors.
From that, `losses` learns, and `detections` decodes boxes and suppresses overlapping ones. Boxes are `(N, 4)`: x1, y1,
x2, y2 in pixels of the network's input, where x1 = 0 is the left edge of the first pixel. Labels are 0 to C - 1; where
a head has a class for background, that is its own matter. A head neither resizes nor normalises images.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, ClassVar, NotRequired, TypedDict

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

from heads.head import Head

Sums = tuple[Tensor, Tensor]
"""A sum of losses and what to divide it by, both scalars, which add up over images and ranks."""
Size = tuple[int, int]


class Objects(TypedDict):
    """The true objects of an image."""

    boxes: Tensor
    """float32 `(N, 4)`; N may be 0."""
    labels: Tensor
    """int64 `(N,)`."""
    masks: NotRequired[Tensor]
    """bool `(N, H, W)`, for heads that learn them."""
    proposals: NotRequired[Tensor]
    """float32 `(P, 4)`: boxes that may hold an object, if they come with the data."""


class Detections(TypedDict):
    """The objects found in an image, by falling score."""

    boxes: Tensor
    """float32 `(N, 4)`, within the image."""
    scores: Tensor
    """float32 `(N,)` in [0, 1]."""
    labels: Tensor
    """int64 `(N,)`."""
    masks: NotRequired[Tensor]
    """float32 `(N, 28, 28)` in [0, 1] within the box, from heads that find them."""


class BoxHead(Head):
    """Base of the heads of the task detection.

    Subclasses state the terms of their loss, and write `forward`, `losses` and `detections`. They place boxes by
    `reductions` and `offsets`, never by the sizes of maps.
    """

    task = "detection"
    needs_padded_maps = True
    needs_masks: ClassVar[bool] = False
    """Whether it learns the mask of each object too."""
    one_stage: ClassVar[bool] = True
    """Whether it is exported: it scores a fixed set of boxes, which `every_box` gives. Others propose boxes first."""
    score_threshold: float
    """Detections below it are dropped."""
    overlap: float
    """IoU above which the lower-scored of two detections of one class is dropped."""
    most: int
    """Detections per image at most."""
    loss_terms: ClassVar[tuple[str, ...]]
    """Names of the terms that `losses` returns; the loss is their sum."""
    needs_proposals: ClassVar[bool] = False
    """Whether it classifies boxes that come with the data."""

    def forward(self, features: list[Tensor]) -> Any:
        """A tuple of tensors that `losses` and `detections` take."""
        raise NotImplementedError

    def losses(self, outputs: Any, targets: Sequence[Objects], sizes: Sequence[Size]) -> dict[str, Sums]:
        """The terms of the loss of a batch.

        Args:
            outputs: what `forward` returned.
            targets: of each image; an image may have no object.
            sizes: H and W of each image within the batch, which pads images of several sizes.
        """
        raise NotImplementedError

    def detections(self, outputs: Any, sizes: Sequence[Size]) -> list[Detections]:
        """What is found in each image. Takes what `losses` takes."""
        raise NotImplementedError

    def with_proposals(self, outputs: Any, proposals: Sequence[Tensor]) -> Any:
        """What `forward` returned, with the boxes `(P_i, 4)` that `detections` is to classify in each image.

        Only for heads that need proposals.
        """
        raise NotImplementedError

    def every_box(self, outputs: Any, size: Size) -> tuple[Tensor, Tensor]:
        """All boxes `(B, N, 4)` and scores `(B, N, C)` of a one-stage head, before any is dropped or clipped.

        Args:
            size: H and W of the batch.
        """
        raise NotImplementedError


def last_of_each_stride(reductions: Sequence[int], finest: int = 1) -> list[int]:
    """Indices of the last map of each stride from `finest` on; of the last map alone if all are finer."""
    strides = list(reductions)
    kept = [i for i, stride in enumerate(strides) if stride >= finest and stride not in strides[i + 1 :]]
    return kept or [len(strides) - 1]


def best_of_level(scores: Tensor, threshold: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The highest of scores `(N, C)` that are above a threshold: the scores, their rows and their classes, `(K,)`."""
    flat = scores.flatten()
    candidates = (flat > threshold).nonzero().squeeze(1)
    best, order = flat[candidates].topk(min(most, len(candidates)))
    chosen = candidates[order]
    classes = scores.shape[1]
    return best, chosen.div(classes, rounding_mode="floor"), chosen % classes


def detections_by_level(
    scores: Tensor,
    levels: Sequence[int],
    sizes: Sequence[Size],
    boxes_of: Callable[[int, Tensor], Tensor],
    *,
    threshold: float,
    candidates: int,
    overlap: float,
    most: int,
) -> list[Detections]:
    """What is found in each image by a head that scores every place of every level.

    Args:
        scores: `(B, N, C)` in [0, 1], the levels one after the other.
        levels: rows of each level.
        sizes: H and W of each image.
        boxes_of: decodes the boxes `(K, 4)` of an image, given by its index, at rows `(K,)`.
        threshold: scores below it are dropped.
        candidates: boxes of each level that are decoded at most, those of the highest scores.
        overlap, most: see `suppressed`.
    """
    ends = torch.tensor((0, *levels)).cumsum(0).tolist()
    found = []
    for image, size in enumerate(sizes):
        boxes, best, labels = [], [], []
        for start, end in pairwise(ends):
            score, row, label = best_of_level(scores[image, start:end], threshold, candidates)
            boxes.append(boxes_of(image, start + row))
            best.append(score)
            labels.append(label)
        found.append(suppressed(torch.cat(boxes), torch.cat(best), torch.cat(labels), size, overlap, most))
    return found


def suppressed(
    boxes: Tensor, scores: Tensor, labels: Tensor, size: Size, overlap: float, most: int, least: float = 0.0
) -> Detections:
    """Clip boxes `(N, 4)` to the image, then drop those that overlap a higher score of their class.

    Args:
        size: H and W of the image.
        overlap: IoU above which a box is dropped.
        most: detections that remain at most.
        least: boxes with a side below this many pixels are dropped.
    """
    boxes = clip_boxes_to_image(boxes, size)
    if least:
        large = ((boxes[:, 2:] - boxes[:, :2]) >= least).all(1)
        boxes, scores, labels = boxes[large], scores[large], labels[large]
    keep = batched_nms(boxes, scores, labels, overlap)[:most]
    return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}


def exact(x: Tensor) -> Tensor:
    """In float32 at least: losses and boxes are not computed in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
