"""Fast R-CNN. Girshick 2015, arXiv:1504.08083.

Boxes that another program proposes are classified and corrected: RoI max pooling takes 7x7 values of each from the last
map, which lies at stride 16, and two layers lead to the scores of all classes and to a box for each of them. On
backbones that end in fc6 and fc7 (VGG), these are the two layers, with their dropout and their published weights, and
the map is the one before the last pool; on others they are two linear layers with ReLU. Of each image 64 proposals are
drawn, a quarter of them with an object; background overlaps an object by 0.1 to 0.5, except in images without objects.

Proposals come with the data (`--proposals`, see `datamodules/proposals.py`). Without any, windows slide over the image.
Differences from the paper: the targets of boxes are divided by 0.1, 0.1, 0.2 and 0.2, as in the authors' later code,
instead of by the standard deviations of the data; a detection needs a score of 0.05; RoI pooling of maps that were
dilated to stride 16 takes the place of the last stage of other backbones.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from heads.box_head import Detections, Objects, Size, Sums
from heads.regions import RegionHead, at_least_one, draw_regions, region_detections, region_losses
from heads.sliding_windows import sliding_windows

WINDOWS = 1000
"""Windows of an image without proposals."""


class Outputs(NamedTuple):
    """What is computed before regions are pooled."""

    x: Tensor
    """The last map `(B, C, h, w)`."""
    proposals: Sequence[Tensor] | None = None
    """Boxes `(P_i, 4)` of each image."""


class FastRCNN(RegionHead):
    """Classifies and corrects the boxes that it is given.

    Args:
        classifier: the backbone's `region_layers`, or None.
        hidden: width of the two linear layers of backbones without layers of their own.
        regions: most proposals of an image that the loss is computed from; fewer train faster.
        score_threshold: detections below it are dropped.
        overlap: IoU above which the lower-scored of two detections of one class is dropped.
        most: detections per image at most.
    """

    loss_terms = ("classification", "boxes")
    backbone_options = {"before_pools": True}
    needs_proposals = True
    POSITIVE, LEAST_OVERLAP = 0.25, 0.1
    """The part of the proposals in the loss that has an object at most, and the IoU with an object from which on the
    others are drawn."""

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        *,
        classifier: nn.Module | None = None,
        hidden: int = 1024,
        regions: int = 64,
        score_threshold: float = 0.05,
        overlap: float = 0.3,
        most: int = 100,
    ) -> None:
        super().__init__(channels, reductions, num_classes, len(reductions) - 1, classifier, hidden)
        self.regions = at_least_one(regions)
        self.score_threshold, self.overlap, self.most = score_threshold, overlap, most

    def forward(self, features: list[Tensor]) -> Outputs:
        return Outputs(features[-1])

    def with_proposals(self, outputs: Outputs, proposals: Sequence[Tensor]) -> Outputs:
        return outputs._replace(proposals=proposals)

    def losses(self, outputs: Outputs, targets: Sequence[Objects], sizes: Sequence[Size]) -> dict[str, Sums]:
        given = [one.get("proposals") for one in targets]
        proposals = [
            windows(size, outputs.x) if boxes is None else boxes for boxes, size in zip(given, sizes, strict=True)
        ]
        drawn = draw_regions(
            proposals, targets, self.regions, self.POSITIVE, training=self.training, least_overlap=self.LEAST_OVERLAP
        )
        logits, codes = self.classify(outputs.x, drawn.boxes)
        return region_losses(logits, codes, drawn, self.BETA)

    def detections(self, outputs: Outputs, sizes: Sequence[Size]) -> list[Detections]:
        proposals = outputs.proposals
        if proposals is None:
            proposals = [windows(size, outputs.x) for size in sizes]
        logits, codes = self.classify(outputs.x, proposals)
        return region_detections(
            logits,
            codes,
            proposals,
            sizes,
            threshold=self.score_threshold,
            overlap=self.overlap,
            most=self.most,
        )


def windows(size: Size, like: Tensor) -> Tensor:
    """Sliding windows over an image, on the device of another tensor."""
    return torch.from_numpy(sliding_windows(*size, WINDOWS)).to(like.device)
