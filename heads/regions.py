"""What all region-based detectors do behind the pooling of regions. Girshick 2015, arXiv:1504.08083 (Fast R-CNN).

Regions are drawn to learn from, classified, and their boxes corrected for the class they get. Class 0 is background
here. Numbers and layers are torchvision's, whose names the predictor keeps.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import box_iou

from heads.anchors import IGNORED, decode, encode, match
from heads.box_head import BoxHead, Detections, Objects, Size, Sums, exact, suppressed
from heads.roi_pooling import Pooling, pool_regions, regions_of
from heads.rpn import draw

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Factors of the box code, which bring its parts to about unit variance."""
LEAST_SIDE = 1e-2
"""Pixels below which a detection has no side."""


class Drawn(NamedTuple):
    """The regions of a batch that are learned from: of each image, first those with an object, then background."""

    boxes: list[Tensor]
    """`(R_i, 4)` of each image."""
    classes: Tensor
    """int64 `(R,)`; 0 is background."""
    codes: Tensor
    """The objects' boxes relative to their regions, `(P, 4)` for the P regions that have one."""
    objects: list[Tensor]
    """The index of the object of each region that has one, int64 `(P_i,)` of each image."""


class LinearLayers(TwoMLPHead):
    """Two linear layers with ReLU over all values of a region: `(R, channels, side, side)` -> `(R, hidden)`."""

    def __init__(self, channels: int, hidden: int, side: int = 7) -> None:
        super().__init__(channels * side**2, hidden)
        self.side, self.channels = side, hidden


def predict(predictor: FastRCNNPredictor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Features `(R, D)` -> logits `(R, C + 1)` and codes `(R, C + 1, 4)`."""
    logits, codes = predictor(features)
    return exact(logits), exact(codes).unflatten(1, (-1, 4))


def papers_predictor(features: int, num_classes: int) -> FastRCNNPredictor:
    """The two output layers, drawn from N(0, 0.01) and N(0, 0.001) with zero biases, as in the Fast R-CNN paper."""
    predictor = FastRCNNPredictor(features, num_classes + 1)
    for layer, deviation in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, 0, deviation)
        nn.init.zeros_(layer.bias)
    return predictor


def at_least_one(regions: int) -> int:
    """The number of regions that the loss takes.

    Raises:
        ValueError: it is below 1.
    """
    if regions < 1:
        raise ValueError(f"regions is {regions}; give 1 or more")
    return regions


def draw_regions(
    proposals: Sequence[Tensor],
    targets: Sequence[Objects],
    count: int,
    positive: float,
    *,
    training: bool,
    least_overlap: float = 0.0,
) -> Drawn:
    """Draw regions at random; a region with an IoU of 0.5 or more stands for the object that it overlaps most.

    The objects themselves are among the candidates: at first, no other box may be near them.

    Args:
        proposals: `(P_i, 4)` of each image.
        count: regions of an image.
        positive: greatest part of them that has an object.
        training: whether draws are random; in evaluation they are always the same.
        least_overlap: regions that overlap no object by this IoU are not drawn. 0.1 in Fast R-CNN. It does not hold in
            images without objects, all of whose regions are background.
    """
    drawn, classes, codes, indices = [], [], [], []
    for boxes, objects in zip(proposals, targets, strict=True):
        truth = objects["boxes"]
        candidates = torch.cat([boxes, truth])
        matched = match(truth, candidates, 0.5, 0.5)
        if least_overlap and len(truth):
            matched = matched.where(box_iou(truth, candidates).amax(0) >= least_overlap, IGNORED)
        near, far = draw(matched, count, positive, training=training)
        drawn.append(candidates[torch.cat([near, far])])
        indices.append(matched[near])
        classes.append(F.pad(objects["labels"][matched[near]] + 1, (0, len(far))))
        codes.append(encode(truth[matched[near]], candidates[near], BOX_WEIGHTS))
    return Drawn(drawn, torch.cat(classes), torch.cat(codes), indices)


def region_losses(logits: Tensor, codes: Tensor, drawn: Drawn, beta: float) -> dict[str, Sums]:
    """The terms "classification" and "boxes", both divided by the number of regions.

    Args:
        beta: error below which smooth L1 is quadratic.
    """
    truth = drawn.classes
    near = (truth > 0).nonzero().squeeze(1)
    errors = F.smooth_l1_loss(codes[near, truth[near]], drawn.codes, beta=beta, reduction="sum")
    count = torch.tensor(float(len(truth)), device=truth.device)
    return {
        "classification": (F.cross_entropy(logits, truth, reduction="sum"), count),
        "boxes": (errors, count),
    }


def region_detections(
    logits: Tensor,
    codes: Tensor,
    proposals: Sequence[Tensor],
    sizes: Sequence[Size],
    *,
    threshold: float,
    overlap: float,
    most: int,
) -> list[Detections]:
    """What is found in each image.

    Args:
        logits, codes: what `predict` computed from the proposals of all images.
        proposals: `(P_i, 4)` of each image.
        sizes: H and W of each image.
        threshold: scores below it are dropped.
        overlap, most: see `suppressed`.
    """
    counts = [len(one) for one in proposals]
    found = []
    for scores, code, boxes, size in zip(
        logits.softmax(1).split(counts), codes.split(counts), proposals, sizes, strict=True
    ):
        of_classes = scores[:, 1:]
        rows, labels = (of_classes > threshold).nonzero(as_tuple=True)
        corrected = decode(code[rows, labels + 1], boxes[rows], BOX_WEIGHTS)
        found.append(suppressed(corrected, of_classes[rows, labels], labels, size, overlap, most, LEAST_SIDE))
    return found


class RegionHead(BoxHead):
    """Classifies regions of one map by the published layers behind that map, or else by two new linear layers.

    Args:
        level: index of the map.
        classifier: the backbone's `region_layers`, or None.
        hidden: width of the two linear layers that stand there without a classifier.
    """

    one_stage = False
    output_stride = 16
    takes_region_layers = True
    BETA = 1.0
    """Error of a region's box below which smooth L1 is quadratic."""
    pooling: Pooling = "max"

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        level: int,
        classifier: nn.Module | None,
        hidden: int,
    ) -> None:
        super().__init__(reductions, [level])
        self.classifier = classifier
        """The published layers, which weights are loaded into."""
        self.layers = LinearLayers(channels[level], hidden) if classifier is None else None
        behind: Any = self.layers if classifier is None else classifier
        self.side: int = behind.side
        """Values along each side of a pooled region."""
        self.box_predictor = papers_predictor(behind.channels, num_classes)

    def classify(self, x: Tensor, boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Boxes `(R_i, 4)` of each image -> logits `(R, C + 1)` and codes `(R, C + 1, 4)`."""
        pooled = pool_regions(x, regions_of(boxes), self.side, self.stride, self.offsets[-1], self.pooling)
        layers: Any = self.classifier if self.layers is None else self.layers
        return predict(self.box_predictor, layers(pooled))
