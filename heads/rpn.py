"""The region proposal network of Faster R-CNN. Ren, He, Girshick, Sun 2015, arXiv:1506.01497.

A 3x3 convolution over every level, then for each anchor whether it holds an object, and the object's box. Layers, their
names and all numbers are torchvision's.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.rpn import RPNHead, concat_box_prediction_layers

from heads.anchors import RATIOS, anchors_at, base_anchors, decode, encode, match, places
from heads.box_head import Objects, Size, Sums, exact, suppressed

BETA = 1 / 9
"""Error below which smooth L1 is quadratic."""
LEAST_SIDE = 1e-3
"""Pixels below which a proposal has no side."""


class Proposed(NamedTuple):
    """What the layers compute. N is the number of anchors."""

    objectness: Tensor
    """Logits `(B, N)`."""
    codes: Tensor
    """Boxes relative to their anchors, `(B, N, 4)`."""
    anchors: Tensor
    """`(N, 4)`."""
    levels: tuple[int, ...]
    """Anchors of each level."""


class RegionProposals(nn.Module):
    """Proposes boxes from the levels of a pyramid.

    Args:
        width: channels of the levels.
        strides: pixels per value of each level.
        anchor_scale: side of the anchors in strides of their level.
    """

    KEPT = {True: 2000, False: 1000}
    """Proposals of each level before suppression, and of an image after it, by whether the network trains."""
    SAMPLED, POSITIVE = 256, 0.5
    """Anchors of an image that the loss is computed from, and the part of them that has an object at most."""
    OVERLAP = 0.7
    """IoU above which the lower-scored of two proposals is dropped."""

    def __init__(self, width: int, strides: Sequence[int], anchor_scale: float) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.base = [base_anchors([anchor_scale * stride]) for stride in strides]
        self.head = RPNHead(width, len(RATIOS))

    def forward(self, maps: list[Tensor], offsets: Sequence[float]) -> Proposed:
        placed = [
            anchors_at(base, places(x, stride, offset))
            for base, x, stride, offset in zip(self.base, maps, self.strides, offsets, strict=True)
        ]
        levels = tuple(len(one) for one in placed)
        objectness, codes = concat_box_prediction_layers(*self.head(maps))
        images = maps[0].shape[0]
        return Proposed(objectness.view(images, -1), codes.view(images, -1, 4), torch.cat(placed), levels)

    @torch.no_grad()
    def proposals(self, outputs: Proposed, sizes: Sequence[Size]) -> list[Tensor]:
        """Boxes `(P, 4)` of each image, by falling score; no gradient reaches the network through them."""
        most = self.KEPT[self.training]
        objectness, codes = exact(outputs.objectness), exact(outputs.codes)
        chosen, level_of, start = [], [], 0
        for level, (scores, count) in enumerate(zip(objectness.split(outputs.levels, 1), outputs.levels, strict=True)):
            chosen.append(scores.topk(min(most, count)).indices + start)
            level_of.append(torch.full_like(chosen[-1][0], level))
            start += count
        best, levels = torch.cat(chosen, 1), torch.cat(level_of)
        found = []
        for image, size in enumerate(sizes):
            boxes = decode(codes[image, best[image]], outputs.anchors[best[image]])
            scores = objectness[image, best[image]].sigmoid()
            found.append(suppressed(boxes, scores, levels, size, self.OVERLAP, most, LEAST_SIDE)["boxes"])
        return found

    def losses(self, outputs: Proposed, targets: Sequence[Objects]) -> dict[str, Sums]:
        """The terms "objectness" and "proposals", over anchors that are drawn at random; see `draw`."""
        objectness, codes = exact(outputs.objectness), exact(outputs.codes)
        logits, truth, errors = [], [], []
        for image, objects in enumerate(targets):
            matched = match(objects["boxes"], outputs.anchors, 0.7, 0.3, best_of_each=True)
            near, far = draw(matched, self.SAMPLED, self.POSITIVE, training=self.training)
            wanted = encode(objects["boxes"][matched[near]], outputs.anchors[near])
            errors.append(F.smooth_l1_loss(codes[image, near], wanted, beta=BETA, reduction="sum"))
            drawn = torch.cat([near, far])
            logits.append(objectness[image, drawn])
            truth.append((matched[drawn] >= 0).to(objectness.dtype))
        together = torch.cat(logits)
        count = torch.tensor(float(len(together)), device=together.device)
        crossed = F.binary_cross_entropy_with_logits(together, torch.cat(truth), reduction="sum")
        return {"objectness": (crossed, count), "proposals": (torch.stack(errors).sum(), count)}


def draw(matched: Tensor, count: int, positive: float, *, training: bool) -> tuple[Tensor, Tensor]:
    """Indices of random boxes that have an object, and of random boxes of the background, `count` together.

    In evaluation the draw is always the same, so that the loss of a split depends neither on the batch size nor on the
    number of processes.

    Args:
        matched: what `match` returned; boxes that it ignores are not drawn.
        positive: greatest part of `count` that has an object.
    """
    near, far = (matched >= 0).nonzero().squeeze(1), (matched == -1).nonzero().squeeze(1)
    several = min(len(near), int(count * positive))
    generator = None if training else torch.Generator(matched.device).manual_seed(0)

    def shuffled(indices: Tensor) -> Tensor:
        return indices[torch.randperm(len(indices), device=matched.device, generator=generator)]

    return shuffled(near)[:several], shuffled(far)[: count - several]
