"""Faster R-CNN on a feature pyramid. Ren, He, Girshick, Sun 2015, arXiv:1506.01497; Lin et al. 2016, arXiv:1612.03144.

A region proposal network on a pyramid of strides 4 to 64; RoIAlign (He et al. 2017, arXiv:1703.06870) takes 7x7 values
of each proposal from the level that fits its size, and two linear layers classify it and correct its box. Layers, their
names, initial values and all numbers are torchvision's (`fasterrcnn_resnet50_fpn`), whose checkpoint's `backbone.fpn`,
`rpn` and `roi_heads` load here. Differences: the pyramid starts from the maps of stride 4 and coarser that the backbone
has; scales of RoIAlign are the strides and are not guessed from the sizes of maps.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import roi_align

from heads.anchors import decode, encode, match
from heads.box_head import BoxHead, Detections, Objects, Size, Sums, exact, suppressed
from heads.pyramid import Pyramid
from heads.rpn import BETA, Proposed, RegionProposals, draw

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Factors of the box code, which bring its parts to about unit variance."""
LEAST_SIDE = 1e-2
"""Pixels below which a detection has no side."""


class Outputs(NamedTuple):
    """What is computed before boxes are proposed."""

    maps: list[Tensor]
    """Levels of the pyramid `(B, width, h, w)`."""
    proposed: Proposed


class RoIHeads(nn.Module):
    """Two linear layers over the 7x7 values of each proposal, and logits and boxes of all classes.

    Class 0 is background here.
    """

    SIDE = 7

    def __init__(self, width: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.box_head = TwoMLPHead(width * self.SIDE**2, hidden)
        self.box_predictor = FastRCNNPredictor(hidden, num_classes + 1)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Values `(R, width, 7, 7)` -> logits `(R, C + 1)` and codes `(R, C + 1, 4)`."""
        logits, codes = self.box_predictor(self.box_head(pooled))
        return exact(logits), exact(codes).unflatten(1, (-1, 4))


class FasterRCNN(BoxHead):
    """Proposals from a pyramid, each classified and corrected.

    Args:
        width: channels of the pyramid.
        hidden: width of the two linear layers.
        anchor_scale: side of the anchors in strides of their level.
        score_threshold: detections below it are dropped.
        overlap: IoU above which the lower-scored of two detections of one class is dropped.
        most: detections per image at most.
    """

    one_stage = False
    loss_terms = ("objectness", "proposals", "classification", "boxes")
    SAMPLED, POSITIVE = 512, 0.25
    """Proposals of an image that the loss is computed from, and the part of them that has an object at most."""
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
        score_threshold: float = 0.05,
        overlap: float = 0.5,
        most: int = 100,
    ) -> None:
        pyramid = Pyramid(channels, reductions, width, finest=4, extra="subsampling")
        super().__init__(reductions, pyramid.levels)
        self.pyramid = pyramid
        self.rpn = RegionProposals(width, pyramid.strides, anchor_scale)
        self.roi_heads = RoIHeads(width, hidden, num_classes)
        self.score_threshold, self.overlap, self.most = score_threshold, overlap, most

    def forward(self, features: list[Tensor]) -> Outputs:
        maps = self.pyramid(features)
        return Outputs(maps, self.rpn(maps, self.pyramid.offsets(self.offsets)))

    def losses(self, outputs: Outputs, targets: Sequence[Objects], sizes: Sequence[Size]) -> dict[str, Sums]:
        proposals = self.rpn.proposals(outputs.proposed, sizes)
        terms = self.rpn.losses(outputs.proposed, targets)
        drawn, classes, wanted = [], [], []
        for boxes, objects in zip(proposals, targets, strict=True):
            # The objects themselves are among the proposals: at first, no other box may be near them.
            candidates = torch.cat([boxes, objects["boxes"]])
            matched = match(objects["boxes"], candidates, 0.5, 0.5)
            near, far = draw(matched, self.SAMPLED, self.POSITIVE, training=self.training)
            drawn.append(candidates[torch.cat([near, far])])
            classes.append(F.pad(objects["labels"][matched[near]] + 1, (0, len(far))))
            wanted.append(encode(objects["boxes"][matched[near]], candidates[near], BOX_WEIGHTS))
        logits, codes = self.roi_heads(self.pool(outputs.maps, drawn))
        truth = torch.cat(classes)
        near = (truth > 0).nonzero().squeeze(1)
        errors = F.smooth_l1_loss(codes[near, truth[near]], torch.cat(wanted), beta=BETA, reduction="sum")
        count = torch.tensor(float(len(truth)), device=truth.device)
        crossed = F.cross_entropy(logits, truth, reduction="sum")
        return terms | {"classification": (crossed, count), "boxes": (errors, count)}

    def pool(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """The 7x7 values of the boxes `(R_i, 4)` of each image, one image after the other: `(R, width, 7, 7)`."""
        levels = len(self.levels)  # without the one that is only for proposals
        numbers = torch.cat([one.new_full((len(one), 1), image) for image, one in enumerate(boxes)])
        regions = torch.cat([numbers, torch.cat(list(boxes))], 1)
        sides = (regions[:, 3:] - regions[:, 1:3]).prod(1).sqrt()
        # A millionth more, as in torchvision: a side that is exactly a level's must not fall below it by rounding.
        wanted = self.USUAL_STRIDE * 2 ** ((sides / self.USUAL_SIDE).log2() + 1e-6)
        strides = wanted.new_tensor(self.pyramid.strides[:levels])
        fitting = (torch.bucketize(wanted, strides, right=True) - 1).clamp(0, levels - 1)
        pooled = maps[0].new_zeros(len(regions), maps[0].shape[1], RoIHeads.SIDE, RoIHeads.SIDE)
        for level, (x, offset) in enumerate(zip(maps[:levels], self.pyramid.offsets(self.offsets), strict=False)):
            here = (fitting == level).nonzero().squeeze(1)
            moved = (regions[here] - regions.new_tensor([0, offset, offset, offset, offset])).to(x.dtype)
            values = roi_align(x, moved, RoIHeads.SIDE, 1 / self.pyramid.strides[level], sampling_ratio=2)
            pooled = pooled.index_copy(0, here, values)
        return pooled

    def detections(self, outputs: Outputs, sizes: Sequence[Size]) -> list[Detections]:
        proposals = self.rpn.proposals(outputs.proposed, sizes)
        logits, codes = self.roi_heads(self.pool(outputs.maps, proposals))
        counts = [len(one) for one in proposals]
        found = []
        for scores, code, boxes, size in zip(
            logits.softmax(1).split(counts), codes.split(counts), proposals, sizes, strict=True
        ):
            of_classes = scores[:, 1:]
            rows, labels = (of_classes > self.score_threshold).nonzero(as_tuple=True)
            corrected = decode(code[rows, labels + 1], boxes[rows], BOX_WEIGHTS)
            best = of_classes[rows, labels]
            found.append(suppressed(corrected, best, labels, size, self.overlap, self.most, LEAST_SIDE))
        return found
