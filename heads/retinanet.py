"""Focal Loss for Dense Object Detection: RetinaNet. Lin, Goyal, Girshick, He, Dollár 2017, arXiv:1708.02002.

A feature pyramid of strides 8 to 128, nine anchors at every place, and two towers of four convolutions that all levels
share. Layers, their names, initial values, thresholds and loss are torchvision's (`retinanet_resnet50_fpn`), whose
checkpoint's `backbone.fpn` and `head` load here under the names `pyramid` and `head`. Differences: the pyramid starts
from the maps of stride 8 and coarser that the backbone has, whatever their number, and ends two levels after the last;
anchors are four strides large, so a backbone that stops at stride 16 has smaller ones. The boxes' loss is L1, as in
torchvision; the paper's is smooth L1.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import sigmoid_focal_loss

from heads.anchors import IGNORED, RATIOS, anchors_at, base_anchors, decode, encode, match, places
from heads.box_head import BoxHead, Detections, Objects, Size, Sums, detections_by_level, exact
from heads.pyramid import Pyramid


class Outputs(NamedTuple):
    """What the towers compute. N is the number of anchors."""

    logits: Tensor
    """`(B, N, C)`."""
    codes: Tensor
    """Boxes relative to their anchors, `(B, N, 4)`."""
    anchors: Tensor
    """`(N, 4)`."""
    levels: tuple[int, ...]
    """Anchors of each level."""


class RetinaNet(BoxHead):
    """Classes and boxes of nine anchors at each place of five levels.

    Args:
        width: channels of the pyramid and of the towers.
        anchor_scale: side of the smallest anchors in strides of their level; larger ones are 2^(1/3) and 2^(2/3) times
            as large.
        norm: whether group norm with 32 groups follows each convolution of the towers, as in torchvision's second form
            (`retinanet_resnet50_fpn_v2`). Without it, as in the paper, they learn slowly from random weights.
        score_threshold: detections below it are dropped.
        overlap: IoU above which the lower-scored of two detections of one class is dropped.
        most: detections per image at most.

    Raises:
        ValueError: the norms' groups do not divide the width.
    """

    loss_terms = ("classification", "boxes")
    CANDIDATES = 1000
    """Boxes of each level that are decoded, those of the highest scores."""

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        *,
        width: int = 256,
        anchor_scale: float = 4.0,
        norm: bool = False,
        score_threshold: float = 0.05,
        overlap: float = 0.5,
        most: int = 300,
    ) -> None:
        if norm and width % 64:
            raise ValueError(
                f"retinanet's width is {width}; with norm it must be a multiple of 64: norms have 32 groups of two or "
                "more"
            )
        pyramid = Pyramid(channels, reductions, width, finest=8, extra="convolutions")
        super().__init__(reductions, pyramid.levels)
        self.pyramid = pyramid
        self.base = [
            base_anchors([int(anchor_scale * stride * 2 ** (third / 3)) for third in range(3)])
            for stride in pyramid.strides
        ]
        norms = partial(nn.GroupNorm, 32) if norm else None
        self.head = RetinaNetHead(width, 3 * len(RATIOS), num_classes, norm_layer=norms)
        self.score_threshold, self.overlap, self.most = score_threshold, overlap, most

    def forward(self, features: list[Tensor]) -> Outputs:
        maps = self.pyramid(features)
        found = self.head(maps)
        placed = [
            anchors_at(base, places(x, stride, offset))
            for base, x, stride, offset in zip(
                self.base, maps, self.pyramid.strides, self.pyramid.offsets(self.offsets), strict=True
            )
        ]
        levels = tuple(one.shape[0] for one in placed)
        return Outputs(found["cls_logits"], found["bbox_regression"], torch.cat(placed), levels)

    def losses(self, outputs: Outputs, targets: Sequence[Objects], sizes: Sequence[Size]) -> dict[str, Sums]:
        classification, boxes = [], []
        for logits, codes, objects in zip(exact(outputs.logits), exact(outputs.codes), targets, strict=True):
            matched = match(objects["boxes"], outputs.anchors, 0.5, 0.4, best_of_each=True)
            near = (matched >= 0).nonzero().squeeze(1)
            objects_of = matched[near]
            truth = torch.zeros_like(logits)
            truth[near, objects["labels"][objects_of]] = 1
            # Each image counts alike, whatever the number of its objects, as in torchvision.
            share = 1 / max(1, len(near))
            focal = sigmoid_focal_loss(logits, truth)
            classification.append(focal.where((matched != IGNORED)[:, None], 0).sum() * share)
            wanted = encode(objects["boxes"][objects_of], outputs.anchors[near])
            boxes.append(F.l1_loss(codes[near], wanted, reduction="sum") * share)
        images = torch.tensor(float(len(targets)), device=outputs.anchors.device)
        return {
            "classification": (torch.stack(classification).sum(), images),
            "boxes": (torch.stack(boxes).sum(), images),
        }

    def every_box(self, outputs: Outputs, size: Size) -> tuple[Tensor, Tensor]:
        return decode(exact(outputs.codes), outputs.anchors), exact(outputs.logits).sigmoid()

    def detections(self, outputs: Outputs, sizes: Sequence[Size]) -> list[Detections]:
        scores, codes = exact(outputs.logits).sigmoid(), exact(outputs.codes)

        def boxes_of(image: int, rows: Tensor) -> Tensor:
            return decode(codes[image, rows], outputs.anchors[rows])

        return detections_by_level(
            scores,
            outputs.levels,
            sizes,
            boxes_of,
            threshold=self.score_threshold,
            candidates=self.CANDIDATES,
            overlap=self.overlap,
            most=self.most,
        )
