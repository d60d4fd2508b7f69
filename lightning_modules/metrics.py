"""Scores of a split, from counts over the whole split: neither batches nor processes change them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix


class EpochLoss(Metric):
    """The mean loss over an epoch's images, in float64, of all processes. torchmetrics' own mean waits for the GPU."""

    full_state_update = False
    totals: Tensor

    def __init__(self) -> None:
        super().__init__()
        # The sum over all images, and their number.
        self.add_state("totals", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, images: int) -> None:
        """Add a batch's mean loss."""
        self.totals[0] += loss.double() * images
        self.totals[1] += images

    def compute(self) -> Tensor:
        return (self.totals[0] / self.totals[1]).float()

    def over_all_processes(self) -> Tensor:
        """The sum over all images so far, and their number, to be called by all processes."""
        with self.sync_context():
            return self.totals.clone()


class SegmentationScores(MulticlassConfusionMatrix):
    """mIoU, per-class IoU and pixel accuracy, in [0, 1], from one int64 confusion matrix over all pixels.

    This is PASCAL VOC's mIoU; `torchmetrics.segmentation.MeanIoU` averages per image, which is another number.
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        # Validation would search every batch for unknown labels; the data modules have already refused those.
        super().__init__(num_classes, ignore_index=ignore_index, validate_args=False)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count the argmax of logits `(B, C, H, W)` against labels `(B, H, W)`."""
        super().update(logits.argmax(1), target)

    def matrix(self) -> Tensor:
        """Counts [truth, prediction] `(C, C)` over all processes."""
        return self.compute()

    def scores(self, class_names: Sequence[str]) -> dict[str, Tensor]:
        matrix = self.matrix()
        per_class = zip(class_names, intersection_over_union(matrix), strict=True)
        return {
            "miou": mean_iou(matrix),
            "pixel_accuracy": pixel_accuracy(matrix),
            **{f"iou/{name}": value for name, value in per_class},
        }


class ClassificationScores(MetricCollection):
    """Top-1 and, above five classes, top-5 accuracy over all images, in [0, 1]."""

    def __init__(self, num_classes: int) -> None:
        ranks = {"top1": 1} | ({"top5": 5} if num_classes > 5 else {})
        metrics = {
            name: MulticlassAccuracy(num_classes, top_k=k, average="micro", validate_args=False)
            for name, k in ranks.items()
        }
        super().__init__(
            {**metrics, "confusion": MulticlassConfusionMatrix(num_classes, validate_args=False)},
            compute_groups=False,
        )

    def matrix(self) -> Tensor:
        """Counts [truth, prediction] `(C, C)` over all processes."""
        return self["confusion"].compute()

    def scores(self, class_names: Sequence[str]) -> dict[str, Tensor]:
        return {name: metric.compute() for name, metric in self.items() if name != "confusion"}


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
