"""Hypercolumns for Object Segmentation and Fine-grained Localization.

Hariharan, Arbeláez, Girshick, Malik 2014, arXiv:1411.5752. A pixel's hypercolumn is the concatenation of all feature
maps at that pixel, with coarse maps interpolated; one linear classifier is applied to it. A linear classifier commutes
with interpolation, so scoring each map and summing the upsampled scores gives the same logits with a fraction of the
memory (section 3.2); both forms have the same parameters. The last map of VGG and AlexNet is fc7 as a convolution, as
in the paper. Differences from the paper: it scores whole images, not boxes of detections; it has one classifier for all
locations, not a grid of classifiers; it reads all maps of the backbone.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.head import Head


class Hypercolumn(Head):
    """A linear classifier of all maps, pixel by pixel; logits at the finest map's stride.

    Args:
        form: "sum" of every map's scores, or "concatenate" the maps before they are scored.
    """

    backbone_options = {"fully_convolutional": True}

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        *,
        form: Literal["sum", "concatenate"] = "sum",
    ) -> None:
        super().__init__(reductions, range(len(reductions)))
        if form not in ("sum", "concatenate"):
            raise ValueError(f"hypercolumn has form=sum or form=concatenate, not form={form}")
        self.form = form
        self.channels = tuple(channels)
        self.score = nn.Conv2d(sum(channels), num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        size = features[0].shape[2:]
        if self.form == "concatenate":
            return self.score(torch.cat([self.fit(x, i, 0, size) for i, x in enumerate(features)], 1))
        weights = self.score.weight.split(self.channels, dim=1)
        first, *others = (
            F.conv2d(x, weight, self.score.bias if i == 0 else None)
            for i, (x, weight) in enumerate(zip(features, weights, strict=True))
        )
        return sum((self.fit(scores, i, 0, size) for i, scores in enumerate(others, 1)), first)
