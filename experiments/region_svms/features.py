"""Features of boxes: each warped and sent through the network (R-CNN), or pooled from one map of the image (SPP-net).

Girshick, Donahue, Darrell, Malik 2013, arXiv:1311.2524; He, Zhang, Ren, Sun 2014, arXiv:1406.4729. A crop of
227 pixels has 16 of them around the box on each side, and the mean colour beyond the picture. SPP-net has one scale
here, the image's own, instead of five.
"""

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import roi_pool

from backbones.backbone import Backbone
from datamodules.loader import Normalise

Pooling = Literal["warp", "spp"]
MARGIN = 16 / 227
"""Pixels of the picture around a box, in sides of the warped crop."""
BATCH = 128
"""Crops that the network sees at once."""
WANTED_NORM = 20.0
"""Mean length of a feature vector, for which R-CNN's C was chosen."""


class RegionFeatures:
    """What a network computes for boxes in an image.

    Two kinds: those that are classified (fc7, or the average of the last map, or the pyramid) and those that boxes are
    regressed from (the last map of the crop, or the pyramid).

    Args:
        backbone: in evaluation mode, on its device.
        mean, std: of each channel.
        pooling: "warp" or "spp".
        side: pixels of a warped crop.
        bins: bins along each side of the pyramid's levels.
        layers: what the published network has between the last map and its output layer, or None.
    """

    def __init__(
        self,
        backbone: Backbone,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        pooling: Pooling = "warp",
        side: int = 227,
        bins: Sequence[int] = (1, 2, 3, 6),
        layers: nn.Module | None = None,
    ) -> None:
        self.backbone, self.pooling, self.side, self.bins = backbone, pooling, side, tuple(bins)
        self.normalise = Normalise(mean, std)
        self.layers = layers

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, boxes: np.ndarray) -> tuple[Tensor, Tensor]:
        """Features float32 `(N, D)` to classify and `(N, E)` to regress from, of boxes `(N, 4)` in an image uint8."""
        if self.pooling == "spp":
            levels = self.pyramid(image, torch.from_numpy(boxes))
            return levels, levels
        found, maps = [], []
        for start in range(0, len(boxes), BATCH):
            crops = np.stack([self.warped(image, box) for box in boxes[start : start + BATCH]])
            last = self.backbone(self.prepared(crops))[-1]
            found.append(self.described(last).cpu())
            maps.append(last.flatten(1).cpu())
        return torch.cat(found), torch.cat(maps)

    def prepared(self, pixels: np.ndarray) -> Tensor:
        """Images uint8 `(B, H, W, 3)`, normalised, where the network is."""
        parameter = next(self.backbone.parameters())
        return self.normalise(torch.from_numpy(pixels)).to(parameter.device, parameter.dtype)

    def described(self, last: Tensor) -> Tensor:
        """The values `(B, D)` before the output layer, from the last map `(B, C, h, w)`."""
        return last.mean((2, 3)) if self.layers is None else self.layers(last)

    def warped(self, image: np.ndarray, box: np.ndarray) -> np.ndarray:
        """A box with its margin, stretched to a square: uint8 `(side, side, 3)`."""
        margin = round(MARGIN * self.side)
        scale = (box[2:] - box[:2]) / (self.side - 2 * margin)
        start = box[:2] - margin * scale
        # From centres of pixels to centres of pixels.
        matrix = np.array([[scale[0], 0, start[0] + scale[0] / 2 - 0.5], [0, scale[1], start[1] + scale[1] / 2 - 0.5]])
        return cv2.warpAffine(
            image,
            matrix,
            (self.side, self.side),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=self.normalise.colour.tolist(),
        )

    def pyramid(self, image: np.ndarray, boxes: Tensor) -> Tensor:
        """The largest values in the bins of all levels, from one map of the whole image: `(N, C * sum of bins²)`."""
        last = self.backbone(self.prepared(image[None]))[-1].float()
        regions = torch.cat([torch.zeros(len(boxes), 1), boxes], 1).to(last.device)
        levels = [roi_pool(last, regions, bins, 1 / self.backbone.reductions[-1]).flatten(1) for bins in self.bins]
        return torch.cat(levels, 1).cpu()
