"""Faster R-CNN on a feature pyramid. Ren, He, Girshick, Sun 2015, arXiv:1506.01497; Lin et al. 2016, arXiv:1612.03144.

A region proposal network on a pyramid of strides 4 to 64; RoIAlign (He et al. 2017, arXiv:1703.06870) takes 7x7 values
of each proposal from the level that fits its size, and two linear layers classify it and correct its box. Layers, their
names, initial values and all numbers are torchvision's (`fasterrcnn_resnet50_fpn`), whose checkpoint's `backbone.fpn`,
`rpn` and `roi_heads` load here. Differences: the pyramid starts from the maps of stride 4 and coarser that the backbone
has; scales of RoIAlign are the strides and are not guessed from the sizes of maps.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

from heads.anchors import base_anchors
from heads.box_head import BoxHead, Detections, Objects, Size, Sums
from heads.pyramid import Pyramid
from heads.regions import Drawn, LinearLayers, at_least_one, draw_regions, predict, region_detections, region_losses
from heads.roi_pooling import pool_regions, regions_of
from heads.rpn import BETA, Proposed, RegionProposals


class Outputs(NamedTuple):
    """What is computed before boxes are proposed."""

    maps: list[Tensor]
    """Levels of the pyramid `(B, width, h, w)`."""
    proposed: Proposed


class RoIHeads(nn.Module):
    """Two linear layers over the 7x7 values of each proposal, and logits and boxes of all classes."""

    def __init__(self, width: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.box_head = LinearLayers(width, hidden)
        self.box_predictor = FastRCNNPredictor(hidden, num_classes + 1)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Values `(R, width, 7, 7)` -> logits `(R, C + 1)` and codes `(R, C + 1, 4)`."""
        return predict(self.box_predictor, self.box_head(pooled))


class FasterRCNN(BoxHead):
    """Proposals from a pyramid, each classified and corrected.

    Args:
        width: channels of the pyramid.
        hidden: width of the two linear layers.
        anchor_scale: side of the anchors in strides of their level.
        regions: most regions of an image that the loss is computed from; fewer train faster.
        score_threshold: detections below it are dropped.
        overlap: IoU above which the lower-scored of two detections of one class is dropped.
        most: detections per image at most.
    """

    one_stage = False
    loss_terms: ClassVar[tuple[str, ...]] = ("objectness", "proposals", "classification", "boxes")
    POSITIVE = 0.25
    """The part of the regions in the loss that has an object at most."""
    USUAL_SIDE, USUAL_STRIDE = 224, 16
    """Boxes of this side are pooled from the level of this stride, boxes half as large from that of half the stride."""

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        *,
        width: int = 256,
        hidden: int = 1024,
        anchor_scale: float = 8.0,
        regions: int = 512,
        score_threshold: float = 0.05,
        overlap: float = 0.5,
        most: int = 100,
    ) -> None:
        pyramid = Pyramid(channels, reductions, width, finest=4, extra="subsampling")
        super().__init__(reductions, pyramid.levels)
        self.pyramid = pyramid
        anchors = [base_anchors([anchor_scale * stride]) for stride in pyramid.strides]
        self.rpn = RegionProposals(width, pyramid.strides, anchors)
        self.roi_heads = RoIHeads(width, hidden, num_classes)
        self.regions = at_least_one(regions)
        self.score_threshold, self.overlap, self.most = score_threshold, overlap, most

    def forward(self, features: list[Tensor]) -> Outputs:
        maps = self.pyramid(features)
        return Outputs(maps, self.rpn(maps, self.pyramid.offsets(self.offsets)))

    def losses(self, outputs: Outputs, targets: Sequence[Objects], sizes: Sequence[Size]) -> dict[str, Sums]:
        return self.losses_and_regions(outputs, targets, sizes)[0]

    def losses_and_regions(
        self, outputs: Outputs, targets: Sequence[Objects], sizes: Sequence[Size]
    ) -> tuple[dict[str, Sums], Drawn]:
        """The terms of the loss, and the regions that were drawn for it."""
        proposals = self.rpn.proposals(outputs.proposed, sizes)
        terms = self.rpn.losses(outputs.proposed, targets, sizes)
        drawn = draw_regions(proposals, targets, self.regions, self.POSITIVE, training=self.training)
        logits, codes = self.roi_heads(self.pool(outputs.maps, drawn.boxes))
        return terms | region_losses(logits, codes, drawn, BETA), drawn

    def pool(self, maps: Sequence[Tensor], boxes: Sequence[Tensor], side: int = 7) -> Tensor:
        """The values of the boxes `(R_i, 4)` of each image, one image after the other: `(R, width, side, side)`."""
        levels = len(self.levels)  # without the one that is only for proposals
        regions = regions_of(boxes)
        sides = (regions[:, 3:] - regions[:, 1:3]).prod(1).sqrt()
        # A millionth more, as in torchvision: a side that is exactly a level's must not fall below it by rounding.
        wanted = self.USUAL_STRIDE * 2 ** ((sides / self.USUAL_SIDE).log2() + 1e-6)
        strides = wanted.new_tensor(self.pyramid.strides[:levels])
        fitting = (torch.bucketize(wanted, strides, right=True) - 1).clamp(0, levels - 1)
        pooled, places = [], []
        for level, (x, offset) in enumerate(zip(maps[:levels], self.pyramid.offsets(self.offsets), strict=False)):
            here = (fitting == level).nonzero().squeeze(1)
            pooled.append(pool_regions(x, regions[here], side, self.pyramid.strides[level], offset, "align"))
            places.append(here)
        return torch.cat(pooled)[torch.cat(places).argsort()]

    def detections(self, outputs: Outputs, sizes: Sequence[Size]) -> list[Detections]:
        proposals = self.rpn.proposals(outputs.proposed, sizes)
        logits, codes = self.roi_heads(self.pool(outputs.maps, proposals))
        return region_detections(
            logits,
            codes,
            proposals,
            sizes,
            threshold=self.score_threshold,
            overlap=self.overlap,
            most=self.most,
        )
