"""FCOS: Fully Convolutional One-Stage Object Detection. Tian, Shen, Chen, He 2019, arXiv:1904.01355.

Every place of a pyramid of strides 8 to 128 predicts classes, the distances to the four sides of a box, and how central
it lies in it. Layers, their names, initial values and thresholds are torchvision's (`fcos_resnet50_fpn`), whose
checkpoint's `backbone.fpn` and `head` load here under the names `pyramid` and `head`. With it, and unlike the paper's
first version, a place learns a box only within 1.5 strides of the box's centre, centredness shares the boxes' tower,
and the loss is of the generalised IoU. As in torchvision too, distances are a ReLU times the stride, without a learned
factor for each level, and the loss of boxes is not weighted by centredness. Differences from torchvision: the pyramid
starts from the maps of stride 8 and coarser that the backbone has; the number of places that the loss is divided by is
averaged over all processes, as in the authors' code.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from heads.anchors import BACKGROUND, places
from heads.box_head import BoxHead, Detections, Objects, Size, Sums, detections_by_level, exact
from heads.pyramid import Pyramid


class Outputs(NamedTuple):
    """What the towers compute. N is the number of places."""

    logits: Tensor
    """`(B, N, C)`."""
    distances: Tensor
    """From the place to the left, top, right and bottom of the box, in strides, `(B, N, 4)`."""
    centredness: Tensor
    """Logits `(B, N)`."""
    points: Tensor
    """x and y of each place in pixels, `(N, 2)`."""
    strides: Tensor
    """Stride of each place's level, `(N,)`."""
    levels: tuple[int, ...]
    """Places of each level."""


class FCOS(BoxHead):
    """Classes, boxes and centredness at each place of five levels.

    Args:
        width: channels of the pyramid and of the towers, a multiple of 64, because their norms have 32 groups.
        radius: strides from the centre of a box within which places learn it.
        scale: a level learns the boxes whose farthest side lies within 4 to 8 strides times this; the finest level
            smaller ones too, the coarsest all larger ones.
        score_threshold: detections below it are dropped; a score is the root of class score times centredness.
        overlap: IoU above which the lower-scored of two detections of one class is dropped.
        most: detections per image at most.
    """

    loss_terms = ("classification", "boxes", "centredness")
    CANDIDATES = 1000
    """Boxes of each level that are decoded, those of the highest scores."""

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        *,
        width: int = 256,
        radius: float = 1.5,
        scale: float = 1.0,
        score_threshold: float = 0.2,
        overlap: float = 0.6,
        most: int = 100,
    ) -> None:
        if width % 64:
            raise ValueError(
                f"fcos's width is {width}; it must be a multiple of 64: its norms have 32 groups of two or more"
            )
        pyramid = Pyramid(channels, reductions, width, finest=8, extra="convolutions")
        super().__init__(reductions, pyramid.levels)
        self.pyramid = pyramid
        self.head = FCOSHead(width, 1, num_classes)
        self.radius, self.scale = radius, scale
        self.score_threshold, self.overlap, self.most = score_threshold, overlap, most

    def forward(self, features: list[Tensor]) -> Outputs:
        maps = self.pyramid(features)
        found = self.head(maps)
        points = [
            places(x, stride, offset)
            for x, stride, offset in zip(maps, self.pyramid.strides, self.pyramid.offsets(self.offsets), strict=True)
        ]
        strides = [
            one.new_full((one.shape[0],), stride) for one, stride in zip(points, self.pyramid.strides, strict=True)
        ]
        return Outputs(
            found["cls_logits"],
            found["bbox_regression"],
            found["bbox_ctrness"].squeeze(2),
            torch.cat(points),
            torch.cat(strides),
            tuple(one.shape[0] for one in points),
        )

    def assign(self, outputs: Outputs, boxes: Tensor) -> Tensor:
        """The index of the object that each place learns, int64 `(N,)`: of several, the smallest; or `BACKGROUND`."""
        points, strides = outputs.points[:, None], outputs.strides[:, None]
        if not len(boxes):
            return torch.full((len(points),), BACKGROUND, device=points.device)
        sides = torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], 2)  # (places, objects, 4)
        near = (points - (boxes[:, :2] + boxes[:, 2:]) / 2).abs().amax(2) < self.radius * strides
        farthest = sides.amax(2)
        first, last = outputs.levels[0], outputs.levels[-1]
        lowest, highest = 4 * self.scale * strides, 8 * self.scale * strides
        lowest[:first] = 0
        highest[-last:] = torch.inf
        fits = near & (sides.amin(2) > 0) & (farthest > lowest) & (farthest < highest)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1).expand_as(fits)
        smallest, index = areas.where(fits, torch.inf).min(1)
        return index.where(smallest < torch.inf, BACKGROUND)

    def losses(self, outputs: Outputs, targets: Sequence[Objects], sizes: Sequence[Size]) -> dict[str, Sums]:
        logits, distances, centredness = map(exact, (outputs.logits, outputs.distances, outputs.centredness))
        truth, wanted, images, at = torch.zeros_like(logits), [], [], []
        for image, objects in enumerate(targets):
            assigned = self.assign(outputs, objects["boxes"])
            learning = (assigned >= 0).nonzero().squeeze(1)
            truth[image, learning, objects["labels"][assigned[learning]]] = 1
            wanted.append(objects["boxes"][assigned[learning]])
            images.append(torch.full_like(learning, image))
            at.append(learning)
        place, boxes = (torch.cat(images), torch.cat(at)), torch.cat(wanted)
        points, strides = outputs.points[place[1]], outputs.strides[place[1]][:, None]
        count = torch.tensor(float(len(boxes)), device=boxes.device)
        predicted = boxes_of(distances[place], points, strides)
        overlaps = generalized_box_iou_loss(predicted, boxes, reduction="sum")
        sides = torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], 1).unflatten(1, (2, 2))
        central = (sides.amin(1) / sides.amax(1)).prod(1).sqrt()
        return {
            "classification": (sigmoid_focal_loss(logits, truth, reduction="sum"), count),
            "boxes": (overlaps, count),
            "centredness": (
                F.binary_cross_entropy_with_logits(centredness[place], central, reduction="sum"),
                count,
            ),
        }

    def scores(self, outputs: Outputs) -> Tensor:
        """The score of each place and class, `(B, N, C)`."""
        central = exact(outputs.centredness).sigmoid()[..., None]
        return (exact(outputs.logits).sigmoid() * central).sqrt()

    def every_box(self, outputs: Outputs, size: Size) -> tuple[Tensor, Tensor]:
        boxes = boxes_of(exact(outputs.distances), outputs.points, outputs.strides[:, None])
        return boxes, self.scores(outputs)

    def detections(self, outputs: Outputs, sizes: Sequence[Size]) -> list[Detections]:
        scores = self.scores(outputs)
        distances = exact(outputs.distances)

        def boxes_at(image: int, rows: Tensor) -> Tensor:
            return boxes_of(distances[image, rows], outputs.points[rows], outputs.strides[rows][:, None])

        return detections_by_level(
            scores,
            outputs.levels,
            sizes,
            boxes_at,
            threshold=self.score_threshold,
            candidates=self.CANDIDATES,
            overlap=self.overlap,
            most=self.most,
        )


def boxes_of(distances: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """Boxes from distances to their sides in strides, both `(..., N, 4)`, points `(N, 2)` and strides `(N, 1)`."""
    first, second = (distances * strides).split(2, -1)
    return torch.cat([points - first, points + second], -1)
