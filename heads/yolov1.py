"""You Only Look Once: Unified, Real-Time Object Detection. Redmon, Divvala, Girshick, Farhadi 2015, arXiv:1506.02640.

Four convolutions, the second of stride 2, and two linear layers predict, for each cell of a 7x7 grid over the image,
the classes and two boxes with a confidence. On the backbone `yolov1` and images of 448x448 pixels, this is the network
of the paper and of the authors' configuration of 2015: 271,703,550 parameters at 20 classes. On other maps, the last
convolution's values are averaged to the grid's size before the linear layers, which changes nothing at 7x7.

The cell that holds the centre of an object predicts it. Of its boxes, the one is responsible that overlaps the object
most, or, if none does, the one with the smallest difference of sides and centre. The loss is equation 3 of the paper,
summed over an image and averaged over images: 5 times the squared errors of the centre, in cells, and of the square
roots of the sides, in images; the squared error of the responsible box's confidence, whose target is its IoU; half the
squared confidence of all other boxes; and the squared errors of the classes. As in the authors' code, a cell predicts
one object: the first of several. That code descends half of this sum, so its learning rates are twice ours.

All images must have one size, because the linear layers see them whole. Nothing bounds the confidences and classes, so
scores are cut to [0, 1].
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from heads.box_head import BoxHead, Detections, Objects, Size, Sums, best_of_level, exact, suppressed
from heads.head import last
from heads.pooling import BinnedPool

SLOPE = 0.1
"""Of the leaky ReLUs, below zero."""
COORDINATES, BACKGROUND = 5.0, 0.5
"""Weights of the squared errors of boxes, and of the confidence of boxes that are responsible for no object."""
CANDIDATES = 1000
"""Boxes that are suppressed, those of the highest scores."""


class Outputs(NamedTuple):
    """What the linear layers predict. S is the side of the grid; cells follow each other by rows."""

    classes: Tensor
    """`(B, S * S, C)`."""
    boxes: Tensor
    """`(B, S * S, boxes, 5)`: centre in the cell, square roots of width and height in images, confidence."""
    levels: tuple[int, ...]
    """The number of cells."""


class YOLOv1(BoxHead):
    """Classes and a few boxes for each cell of a grid.

    Args:
        grid: cells along each side of the image.
        boxes: boxes that each cell predicts.
        width: channels of the four convolutions.
        hidden: width of the first linear layer.
        stride: of the second convolution; 1 for maps that are no larger than the grid.
        dropout: after the first linear layer.
        score_threshold: detections below it are dropped; the authors' score by 0.001.
        overlap: IoU above which the lower-scored of two detections of one class is dropped.
        most: detections per image at most.
    """

    loss_terms = ("coordinates", "confidence", "background", "classes")
    sees_whole_image = True

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        *,
        grid: int = 7,
        boxes: int = 2,
        width: int = 1024,
        hidden: int = 4096,
        stride: int = 2,
        dropout: float = 0.5,
        score_threshold: float = 0.001,
        overlap: float = 0.5,
        most: int = 100,
    ) -> None:
        for name, value in {"grid": grid, "boxes": boxes, "width": width, "hidden": hidden, "stride": stride}.items():
            if value < 1:
                raise ValueError(f"yolov1's {name} is {value}; it must be 1 or more")
        super().__init__(reductions, [last(reductions)])
        self.grid, self.boxes, self.num_classes = grid, boxes, num_classes
        layers: list[nn.Module] = []
        for number, before in enumerate((channels[-1], width, width, width)):
            layers += [nn.Conv2d(before, width, 3, stride if number == 1 else 1, 1), leaky()]
        self.convolutions = nn.Sequential(*layers, BinnedPool("average", grid))
        cells = grid * grid
        self.linear = nn.Sequential(
            nn.Linear(width * cells, hidden), leaky(), nn.Dropout(dropout),
            nn.Linear(hidden, cells * (num_classes + 5 * boxes)),
        )  # fmt: skip
        self.score_threshold, self.overlap, self.most = score_threshold, overlap, most
        for module in self.convolutions:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, features: list[Tensor]) -> Outputs:
        found = self.linear(self.convolutions(features[-1]).flatten(1))
        found = found.unflatten(1, (self.grid**2, self.num_classes + 5 * self.boxes))
        classes, boxes = found.split([self.num_classes, 5 * self.boxes], 2)
        return Outputs(classes, boxes.unflatten(2, (self.boxes, 5)), (self.grid**2,))

    def corners(self, boxes: Tensor) -> Tensor:
        """Boxes `(..., S * S, boxes, 5)` as x1, y1, x2, y2 in fractions of the image, `(..., S * S, boxes, 4)`."""
        cell = torch.arange(self.grid**2, device=boxes.device)
        first = torch.stack([cell % self.grid, cell // self.grid], 1)[:, None]
        centres = (boxes[..., :2] + first) / self.grid
        half = boxes[..., 2:4].square() / 2
        return torch.cat([centres - half, centres + half], -1)

    def losses(self, outputs: Outputs, targets: Sequence[Objects], sizes: Sequence[Size]) -> dict[str, Sums]:
        classes, boxes = exact(outputs.classes), exact(outputs.boxes)
        each = [
            self.image_losses(own_classes, own_boxes, objects, extent(sizes))
            for own_classes, own_boxes, objects in zip(classes, boxes, targets, strict=True)
        ]
        terms = torch.stack(each).sum(0)
        images = torch.tensor(float(len(targets)), device=boxes.device)
        return {name: (term, images) for name, term in zip(self.loss_terms, terms, strict=True)}

    def image_losses(self, classes: Tensor, boxes: Tensor, objects: Objects, size: Size) -> Tensor:
        """The terms of an image `(4,)`, from its classes `(S * S, C)` and boxes `(S * S, boxes, 5)`."""
        height, width = size
        truth = objects["boxes"] / objects["boxes"].new_tensor([width, height, width, height])
        centres = (truth[:, :2] + truth[:, 2:]) / 2 * self.grid
        column, row = centres.long().clamp(0, self.grid - 1).unbind(1)
        cells = row * self.grid + column
        # The first object of each cell: of several that are written there, the one of the lowest index stays.
        order = torch.arange(len(cells), device=cells.device)
        first = torch.full((self.grid**2,), len(cells), device=cells.device).scatter_reduce(0, cells, order, "amin")
        kept = (first[cells] == order).nonzero().squeeze(1)
        cells, truth = cells[kept], truth[kept]
        wanted_centres = centres[kept] - torch.stack([column, row], 1)[kept]
        wanted_roots = (truth[:, 2:] - truth[:, :2]).sqrt()

        with torch.no_grad():
            corners = self.corners(boxes)[cells]  # (objects, boxes, 4)
            overlaps = overlaps_of(corners, truth[:, None])
            distances = (middle_and_sides(corners) - middle_and_sides(truth)[:, None]).square().sum(2)
            nearest = torch.where(overlaps.amax(1) > 0, overlaps.argmax(1), distances.argmin(1))
            overlap = overlaps.gather(1, nearest[:, None])[:, 0]
        predicted = boxes[cells, nearest]
        coordinates = (predicted[:, :2] - wanted_centres).square() + (predicted[:, 2:4] - wanted_roots).square()
        confidence = (predicted[:, 4] - overlap).square()
        others = boxes[..., 4].square().index_put((cells, nearest), confidence.new_zeros(()))
        wanted_classes = torch.zeros_like(classes[cells])
        wanted_classes[torch.arange(len(kept), device=kept.device), objects["labels"][kept]] = 1
        scored = (classes[cells] - wanted_classes).square()
        return torch.stack([
            COORDINATES * coordinates.sum(), confidence.sum(), BACKGROUND * others.sum(), scored.sum()
        ])  # fmt: skip

    def detections(self, outputs: Outputs, sizes: Sequence[Size]) -> list[Detections]:
        boxes, scores = self.every_box(outputs, extent(sizes))
        found = []
        for own_boxes, own_scores, size in zip(boxes, scores, sizes, strict=True):
            best, rows, labels = best_of_level(own_scores, self.score_threshold, CANDIDATES)
            found.append(suppressed(own_boxes[rows], best, labels, size, self.overlap, self.most))
        return found

    def every_box(self, outputs: Outputs, size: Size) -> tuple[Tensor, Tensor]:
        """All boxes `(B, N, 4)` in pixels of images of that H and W, and their scores `(B, N, C)`."""
        height, width = size
        boxes = exact(outputs.boxes)
        x, y = self.corners(boxes).unflatten(-1, (2, 2)).unbind(-1)
        scores = boxes[..., 4:] * exact(outputs.classes)[:, :, None]
        return torch.stack([x * width, y * height], -1).flatten(-2).flatten(1, 2), scores.clamp(0, 1).flatten(1, 2)


def leaky() -> nn.LeakyReLU:
    """The network's nonlinearity."""
    return nn.LeakyReLU(SLOPE, inplace=True)


def extent(sizes: Sequence[Size]) -> Size:
    """H and W of a batch, which is padded to its largest image; the grid lies over all of it."""
    return max(height for height, _ in sizes), max(width for _, width in sizes)


def overlaps_of(first: Tensor, second: Tensor) -> Tensor:
    """IoU of boxes `(..., 4)` with boxes of a shape that broadcasts with theirs."""
    shared = (torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])).clamp(0)
    inside = shared.prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (first, second)]
    return inside / (areas[0] + areas[1] - inside)


def middle_and_sides(boxes: Tensor) -> Tensor:
    """Centre, width and height of boxes `(..., 4)`."""
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)
