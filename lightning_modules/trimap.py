"""mIoU near the true boundaries only: the trimap evaluation of Kohli, Ladicky, Torr 2009, "Robust Higher Order
Potentials for Enforcing Label Consistency" (IJCV 82), as DeepLab (arXiv:1412.7062 and 1606.00915) plots it.

A pixel lies in the band of width k where another label is at most k pixels away, by the exact Euclidean distance
between pixel centres: band 1 is the two rows of pixels that touch a straight boundary, band k the k rows on either
side. The ignored label counts as another label, because in PASCAL VOC it is what marks the boundaries; ignored pixels
themselves are in no band.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_modules.metrics import mean_iou

WIDTHS = (1, 2, 4, 8, 16, 32)


class TrimapScores(Metric):
    """mIoU within several bands at once, from one int64 confusion matrix a band over all pixels of a split.

    Args:
        widths: of the bands, in pixels, increasing.
    """

    counts: Tensor

    def __init__(self, num_classes: int, ignore_index: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        if not widths or list(widths) != sorted(set(widths)) or widths[0] < 1:
            raise ValueError(f"the widths of the bands are {list(widths)}; give increasing numbers of pixels from 1 on")
        self.num_classes, self.ignore_index, self.widths = num_classes, ignore_index, tuple(widths)
        # [ring, truth, prediction]: the pixels of each band that the band before does not hold, then all the others.
        rings = torch.zeros(len(widths) + 1, num_classes, num_classes, dtype=torch.int64)
        self.add_state("counts", rings, dist_reduce_fx="sum")

    def update(self, scores: Tensor, target: Tensor) -> None:
        """Count the argmax of logits or probabilities `(B, C, H, W)` against labels `(B, H, W)`."""
        distances = torch.stack([boundary_distance(labels) for labels in target]).to(target.device)
        # No distance lies between k and k + 0.001, but rounding may put one there.
        rings = torch.bucketize(distances, torch.tensor(self.widths, device=target.device) + 1e-3)
        valid = target != self.ignore_index
        cells = (rings[valid] * self.num_classes + target[valid]) * self.num_classes + scores.argmax(1)[valid]
        self.counts += torch.bincount(cells, minlength=self.counts.numel()).view_as(self.counts)

    def compute(self) -> dict[int | None, Tensor]:
        """mIoU in [0, 1] of each band by its width; under None, of all pixels. NaN where a band holds no pixel."""
        matrices = self.counts.cumsum(0)
        return {width: mean_iou(matrix) for width, matrix in zip((*self.widths, None), matrices, strict=True)}


def boundary_distance(labels: Tensor) -> Tensor:
    """Pixels from each pixel of labels `(H, W)` to the nearest of another label, float32; infinite where all are one.

    OpenCV's distances are exact but for float32: a pixel may be off by 1e-6 of its distance.
    """
    array = labels.cpu().numpy()
    distance = np.full(array.shape, np.inf, np.float32)
    for label in np.unique(array):
        inside = array == label
        if not inside.all():
            # Every pixel inside is compared with the nearest one outside.
            far = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            distance[inside] = far[inside]
    return torch.from_numpy(distance)
