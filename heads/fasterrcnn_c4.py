"""Faster R-CNN on a single map. Ren, He, Girshick, Sun 2015, arXiv:1506.01497.

A region proposal network on the map of stride 16, and behind RoI pooling what the published network has behind that
map: fc6 and fc7 of the VGGs, or the last stage of the ResNets (C4; He et al. 2015, arXiv:1512.03385, appendix A).
Backbones whose published classifier is an output layer only are dilated to stride 16 instead, and two new linear layers
stand behind the pooling. `fasterrcnn_dc5` does that with all backbones (Dai et al. 2017, arXiv:1703.06211).

On vgg16 this is the paper's network: the map before the last pool, 9 anchors as in the authors' code, two logits for
objectness, 137,078,239 parameters at 20 classes. Its numbers are those of the authors' end-to-end training: anchors
that cross the border do not train, 256 anchors and 128 regions of an image do, 12,000 proposals are reduced to 2,000 in
training and 6,000 to 300 otherwise, proposals with a side below 16 pixels are dropped, detections of a class overlap by
0.3 at most. Difference: how images are resized is the data's matter, not the head's.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from heads.anchors import centred_anchors
from heads.box_head import Detections, Objects, Size, Sums
from heads.head import last
from heads.regions import RegionHead, at_least_one, draw_regions, region_detections, region_losses
from heads.roi_pooling import Pooling
from heads.rpn import Proposed, RegionProposals

KEPT = {True: (12_000, 2_000), False: (6_000, 300)}
"""Proposals before suppression and after it, by whether the network trains."""


class Outputs(NamedTuple):
    """What is computed before boxes are proposed."""

    map: Tensor
    """`(B, C, h, w)`."""
    proposed: Proposed


class FasterRCNNC4(RegionHead):
    """Proposals from the last map, each classified and corrected by the published layers behind it.

    Args:
        classifier: the backbone's `region_layers`, or None.
        anchor_scales: sides of the anchors in strides; 8, 16 and 32 are 128, 256 and 512 pixels.
        pooling: "max" as in the paper, or "align" (RoIAlign).
        hidden: width of the two linear layers of backbones without layers of their own.
        regions: most regions of an image that the loss is computed from; fewer train faster.
        inside_only: whether anchors that cross the image's border are left out of the loss. If all of an image do,
            none is left out.
        least_side: pixels; proposals with a shorter side are dropped.
        score_threshold: detections below it are dropped.
        overlap: IoU above which the lower-scored of two detections of one class is dropped.
        most: detections per image at most.
    """

    loss_terms = ("objectness", "proposals", "classification", "boxes")
    backbone_options = {"c4": True, "before_pools": True}
    POSITIVE = 0.25
    """The part of the regions in the loss that has an object at most."""

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        *,
        classifier: nn.Module | None = None,
        anchor_scales: Sequence[float] = (8, 16, 32),
        pooling: Pooling = "max",
        hidden: int = 1024,
        regions: int = 128,
        inside_only: bool = True,
        least_side: float = 16.0,
        score_threshold: float = 0.05,
        overlap: float = 0.3,
        most: int = 100,
    ) -> None:
        if not anchor_scales or min(anchor_scales) <= 0:
            raise ValueError(f"anchor_scales is {list(anchor_scales)}; give one or more numbers above 0")
        level = last(reductions)
        super().__init__(channels, reductions, num_classes, level, classifier, hidden)
        anchors = centred_anchors(reductions[level], anchor_scales)
        self.rpn = RegionProposals(
            channels[level],
            [reductions[level]],
            [anchors],
            kept=KEPT,
            least_side=least_side,
            inside_only=inside_only,
            paired=True,
        )
        self.pooling, self.regions = pooling, at_least_one(regions)
        self.score_threshold, self.overlap, self.most = score_threshold, overlap, most

    def forward(self, features: list[Tensor]) -> Outputs:
        x = features[-1]
        return Outputs(x, self.rpn([x], [self.offsets[-1]]))

    def losses(self, outputs: Outputs, targets: Sequence[Objects], sizes: Sequence[Size]) -> dict[str, Sums]:
        proposals = self.rpn.proposals(outputs.proposed, sizes)
        terms = self.rpn.losses(outputs.proposed, targets, sizes)
        drawn = draw_regions(proposals, targets, self.regions, self.POSITIVE, training=self.training)
        logits, codes = self.classify(outputs.map, drawn.boxes)
        return terms | region_losses(logits, codes, drawn, self.BETA)

    def detections(self, outputs: Outputs, sizes: Sequence[Size]) -> list[Detections]:
        proposals = self.rpn.proposals(outputs.proposed, sizes)
        logits, codes = self.classify(outputs.map, proposals)
        return region_detections(
            logits,
            codes,
            proposals,
            sizes,
            threshold=self.score_threshold,
            overlap=self.overlap,
            most=self.most,
        )


class FasterRCNNDC5(FasterRCNNC4):
    """The same on the last stage's map, dilated to stride 16, with two new linear layers behind RoIAlign."""

    backbone_options = {"before_pools": True}
    takes_region_layers = False

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        *,
        anchor_scales: Sequence[float] = (8, 16, 32),
        pooling: Pooling = "align",
        hidden: int = 1024,
        regions: int = 128,
        inside_only: bool = False,
        least_side: float = 0.001,
        score_threshold: float = 0.05,
        overlap: float = 0.5,
        most: int = 100,
    ) -> None:
        super().__init__(
            channels,
            reductions,
            num_classes,
            anchor_scales=anchor_scales,
            pooling=pooling,
            hidden=hidden,
            regions=regions,
            inside_only=inside_only,
            least_side=least_side,
            score_threshold=score_threshold,
            overlap=overlap,
            most=most,
        )
