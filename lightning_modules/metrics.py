"""Scores of a split, from counts over the whole split."""

from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix


class SegmentationScores(MulticlassConfusionMatrix):
    """mIoU, per-class IoU and pixel accuracy from one int64 confusion matrix over all pixels of a split.

    Counts add up over batches and processes, so neither changes a score. This is PASCAL VOC's mIoU;
    `torchmetrics.segmentation.MeanIoU` averages per image, which is another number.
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        # Validation would search every batch for unknown labels; the data modules have already refused those.
        super().__init__(num_classes, ignore_index=ignore_index, validate_args=False)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count the argmax of logits `(B, C, H, W)` against labels `(B, H, W)`."""
        super().update(logits.argmax(1), target)


def intersection_over_union(confusion: Tensor) -> Tensor:
    """Per-class IoU in [0, 1] of a `(C, C)` matrix of counts [truth, prediction].

    NaN for a class that neither the truth nor the prediction has.
    """
    counts = confusion.double()
    hits = counts.diagonal()
    return hits / (counts.sum(0) + counts.sum(1) - hits)


def mean_iou(confusion: Tensor) -> Tensor:
    """The mean of the IoUs of the classes that occur."""
    return intersection_over_union(confusion).nanmean()


def pixel_accuracy(confusion: Tensor) -> Tensor:
    """Share of valid pixels whose class is right."""
    return confusion.diagonal().sum().double() / confusion.sum()
