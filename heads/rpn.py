"""The region proposal network of Faster R-CNN. Ren, He, Girshick, Sun 2015, arXiv:1506.01497.

A 3x3 convolution over every level, then for each anchor whether it holds an object, and the object's box. Layers, their
names and all numbers are torchvision's; the paper's own, for a single map, are options.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.rpn import RPNHead, concat_box_prediction_layers

from heads.anchors import IGNORED, anchors_at, decode, encode, match, places
from heads.box_head import Objects, Size, Sums, exact, suppressed

BETA = 1 / 9
"""Error below which smooth L1 is quadratic."""
LEAST_SIDE = 1e-3
"""Pixels below which a proposal has no side."""
KEPT = {True: (2000, 2000), False: (1000, 1000)}
"""Proposals of each level before suppression, and of an image after it, by whether the network trains."""


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


class PairedRPNHead(RPNHead):
    """The paper's layers: an anchor has two logits, of background and object; their difference is its objectness."""

    def __init__(self, width: int, anchors: int) -> None:
        super().__init__(width, anchors)
        self.cls_logits = nn.Conv2d(width, 2 * anchors, 1)
        nn.init.normal_(self.cls_logits.weight, 0, 0.01)
        nn.init.zeros_(cast("Tensor", self.cls_logits.bias))

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, codes = super().forward(x)
        return [one[:, 1::2] - one[:, ::2] for one in logits], codes


class RegionProposals(nn.Module):
    """Proposes boxes from the levels of a pyramid, or from a single map.

    Args:
        width: channels of the levels.
        strides: pixels per value of each level.
        anchors: of each level, `(A, 4)` around the place of a value.
        kept: how many proposals are kept, see `KEPT`.
        least_side: pixels; proposals with a shorter side are dropped.
        inside_only: whether the loss leaves out the anchors that cross the image's border. If all of an image do, none
            is left out.
        paired: whether the layers are the paper's, see `PairedRPNHead`.
    """

    SAMPLED, POSITIVE = 256, 0.5
    """Anchors of an image that the loss is computed from, and the part of them that has an object at most."""
    OVERLAP = 0.7
    """IoU above which the lower-scored of two proposals is dropped."""

    def __init__(
        self,
        width: int,
        strides: Sequence[int],
        anchors: Sequence[Tensor],
        *,
        kept: Mapping[bool, tuple[int, int]] = KEPT,
        least_side: float = LEAST_SIDE,
        inside_only: bool = False,
        paired: bool = False,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.base = list(anchors)
        self.head = (PairedRPNHead if paired else RPNHead)(width, len(anchors[0]))
        self.kept, self.least_side, self.inside_only = kept, least_side, inside_only

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
        before, after = self.kept[self.training]
        objectness, codes = exact(outputs.objectness), exact(outputs.codes)
        chosen, level_of, start = [], [], 0
        for level, (scores, count) in enumerate(zip(objectness.split(outputs.levels, 1), outputs.levels, strict=True)):
            chosen.append(scores.topk(min(before, count)).indices + start)
            level_of.append(torch.full_like(chosen[-1][0], level))
            start += count
        best, levels = torch.cat(chosen, 1), torch.cat(level_of)
        found = []
        for image, size in enumerate(sizes):
            boxes = decode(codes[image, best[image]], outputs.anchors[best[image]])
            scores = objectness[image, best[image]].sigmoid()
            found.append(suppressed(boxes, scores, levels, size, self.OVERLAP, after, self.least_side)["boxes"])
        return found

    def losses(self, outputs: Proposed, targets: Sequence[Objects], sizes: Sequence[Size]) -> dict[str, Sums]:
        """The terms "objectness" and "proposals", over anchors that are drawn at random; see `draw`."""
        objectness, codes = exact(outputs.objectness), exact(outputs.codes)
        logits, truth, errors = [], [], []
        for image, (objects, size) in enumerate(zip(targets, sizes, strict=True)):
            matched = self.matched(outputs.anchors, objects["boxes"], size)
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

    def matched(self, anchors: Tensor, objects: Tensor, size: Size) -> Tensor:
        """The object of each anchor in an image of a size, see `match`."""
        if not self.inside_only:
            return match(objects, anchors, 0.7, 0.3, best_of_each=True)
        height, width = size
        inside = ((anchors[:, :2] >= 0).all(1) & (anchors[:, 2] <= width) & (anchors[:, 3] <= height)).nonzero()
        rows = inside.squeeze(1) if len(inside) else torch.arange(len(anchors), device=anchors.device)
        among = match(objects, anchors[rows], 0.7, 0.3, best_of_each=True)
        return among.new_full((len(anchors),), IGNORED).index_copy(0, rows, among)


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
