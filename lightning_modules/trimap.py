"""mIoU near the true boundaries only: the trimap evaluation of Kohli, Ladicky, Torr 2009, "Robust Higher Order
Potentials for Enforcing Label Consistency" (IJCV 82), as plotted in the DeepLab papers (arXiv:1412.7062, 1606.00915).

A pixel lies in the band of width k if a pixel of another label is at most k pixels away, by the Euclidean distance
between pixel centres. At a straight boundary, band k therefore consists of the k rows of pixels on either side. The
ignored label counts as another label, because it marks the boundaries in PASCAL VOC; ignored pixels themselves are in
no band.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_modules.metrics import count_cells, mean_iou

WIDTHS = (1, 2, 4, 8, 16, 32)


class TrimapScores(Metric):
    """mIoU within several bands at once, from one int64 confusion matrix per band over all pixels of a split.

    Args:
        num_classes: C.
        ignore_index: label of the pixels that are not scored.
        widths: widths of the bands in pixels, increasing.

    Raises:
        ValueError: the widths are not increasing numbers from 1 on.
    """

    full_state_update = False

    counts: Tensor

    def __init__(self, num_classes: int, ignore_index: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        if not widths or list(widths) != sorted(set(widths)) or widths[0] < 1:
            raise ValueError(f"the widths of the bands are {list(widths)}; give increasing numbers of pixels from 1 on")
        self.num_classes, self.ignore_index, self.widths = num_classes, ignore_index, tuple(widths)
        # [ring, truth, prediction]. A ring holds the pixels of a band that are not in the band before; the last ring
        # holds the pixels in no band.
        rings = torch.zeros(len(widths) + 1, num_classes, num_classes, dtype=torch.int64)
        self.add_state("counts", rings, dist_reduce_fx="sum")

    def update(self, scores: Tensor, target: Tensor) -> None:
        """Count the argmax of logits or probabilities `(B, C, H, W)` against labels `(B, H, W)`."""
        distances = torch.stack([boundary_distance(labels) for labels in target]).to(target.device)
        # Distances are roots of integers, so none lies between k and k + 0.001; but one that is k may be rounded up.
        rings = torch.bucketize(distances, torch.tensor(self.widths, device=target.device) + 1e-3)
        cells = (rings * self.num_classes + target) * self.num_classes + scores.argmax(1)
        self.counts += count_cells(cells, target != self.ignore_index, self.counts.numel()).view_as(self.counts)

    def compute(self) -> dict[int | None, Tensor]:
        """mIoU in [0, 1] by width of the band; the key None is for all pixels. NaN if a band holds no pixel."""
        matrices = self.counts.cumsum(0)
        return {width: mean_iou(matrix) for width, matrix in zip((*self.widths, None), matrices, strict=True)}


def boundary_distance(labels: Tensor) -> Tensor:
    """Distance in pixels from each pixel of labels `(H, W)` to the nearest pixel of another label, float32 `(H, W)`.

    Infinite if there is only one label. OpenCV rounds the distances to float32: relative errors are up to 1e-6.
    """
    array = labels.cpu().numpy()
    distance = np.full(array.shape, np.inf, np.float32)
    for label in np.unique(array):
        inside = array == label
        if not inside.all():
            # The transform gives each pixel of this label its distance to the nearest pixel of any other.
            far = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            distance[inside] = far[inside]
    return torch.from_numpy(distance)
