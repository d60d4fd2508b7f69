"""Scores computed from counts over a whole split, so they depend neither on the batch size nor on the number of ranks.

Counts are int64 and losses float64 (float32 on Apple's MPS, which has no float64). Quotients are taken on the CPU.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_modules.losses import exact_dtype

MATRIX_CLASSES = 2000
"""Up to so many classes a classifier's confusion matrix is counted: 32 MB. ImageNet-21k's would take 3.6 GB a split."""
TOP_RANKS = (1, 5)
"""Ranks k of the top-k accuracies; those below the number of classes are computed."""


class EpochLoss(Metric):
    """Mean loss over an epoch or a split and over all ranks: for each term the sum of losses over the sum of weights.

    Replaces torchmetrics' MeanMetric, whose update looks for NaN and so waits for the GPU.

    Args:
        coefficients: factor of each term in the loss.
    """

    full_state_update = False
    totals: Tensor

    def __init__(self, coefficients: Iterable[float] = (1.0,)) -> None:
        super().__init__()
        self.coefficients = tuple(coefficients)
        # Of each term, the sum of losses and the sum of weights.
        self.add_state("totals", torch.zeros(len(self.coefficients), 2, dtype=torch.float64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> nn.Module:
        """Move the totals with the module, but keep their precision when a module is cast to bfloat16."""
        super()._apply(fn, ("totals", *exclude_state))
        exact = exact_dtype(self.device)
        self.totals = self.totals.to(self.device, exact)
        self._defaults["totals"] = torch.zeros_like(self.totals)  # what `reset` starts from
        return self

    def update(self, losses: Tensor, weights: Tensor | float) -> None:
        """Add each term's sum of losses and sum of weights: `(terms,)`, or scalars if there is one term."""
        self.totals[:, 0] += losses
        self.totals[:, 1] += weights

    def compute(self) -> Tensor:
        """The loss, float32; NaN if no weight was added."""
        terms = zip(self.coefficients, self.totals, strict=True)
        return torch.stack([coefficient * (total / weight) for coefficient, (total, weight) in terms]).sum().float()

    def over_all_ranks(self) -> list[float]:
        """The totals so far, summed over all ranks. To be called by all ranks."""
        with self.sync_context():
            return self.totals.flatten().tolist()  # type: ignore[no-any-return]

    def add(self, totals: Sequence[float]) -> None:
        """Add what `over_all_ranks` returned, on one rank only."""
        self.totals += torch.tensor(totals, dtype=self.totals.dtype).view_as(self.totals).to(self.totals.device)


def count_cells(cells: Tensor, valid: Tensor, number: int) -> Tensor:
    """How often each cell number below `number` occurs among the valid ones, int64 `(number,)`.

    Nothing here waits for the GPU: ignored pixels go into a cell of their own instead of being taken out, and the
    result has a fixed length, whereas bincount looks for the highest number first. Sums of integers are deterministic.
    """
    indices = cells.where(valid, number).flatten()
    one = torch.ones((), dtype=torch.int64, device=cells.device)
    counts = torch.zeros(number + 1, dtype=torch.int64, device=cells.device)
    return counts.scatter_add_(0, indices, one.expand(len(indices)))[:number]


class ConfusionMatrix(Metric):
    """int64 counts [truth, prediction] `(C, C)`.

    Args:
        ignore_index: label that is not counted.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        super().__init__()
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.add_state("counts", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Count predicted classes against labels of the same shape, which data modules have checked."""
        cells = target * self.num_classes + predicted
        self.counts += count_cells(cells, target != self.ignore_index, self.counts.numel()).view_as(self.counts)

    def compute(self) -> Tensor:
        return self.counts

    def matrix(self) -> Tensor:
        """Counts [truth, prediction] `(C, C)` over all ranks."""
        return self.compute()  # type: ignore[no-any-return]


class SegmentationScores(ConfusionMatrix):
    """mIoU, per-class IoU and pixel accuracy, in [0, 1], from one int64 confusion matrix over all pixels.

    This is PASCAL VOC's mIoU; `torchmetrics.segmentation.MeanIoU` averages per image, which is another number.
    """

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count the argmax of logits `(B, C, H, W)` against labels `(B, H, W)`."""
        super().update(logits.max(1).indices, target)  # argmax, which takes up to four times as long on CPUs

    def scores(self, class_names: Sequence[str]) -> dict[str, Tensor]:
        """Scores over all ranks by name, float64 on the CPU."""
        matrix = self.matrix()
        per_class = zip(class_names, intersection_over_union(matrix), strict=True)
        return {
            "miou": mean_iou(matrix),
            "pixel_accuracy": pixel_accuracy(matrix),
            **{f"iou/{name}": value for name, value in per_class},
        }


class TopKHits(Metric):
    """How many images have their true class among the k highest scores, for each k of `ranks`; int64."""

    full_state_update = False
    hits: Tensor
    images: Tensor

    def __init__(self, ranks: Sequence[int]) -> None:
        super().__init__()
        self.ranks = tuple(ranks)
        self.add_state("hits", torch.zeros(len(self.ranks), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count logits `(B, C)` against labels `(B,)`."""
        found = logits.topk(max(self.ranks)).indices == target.unsqueeze(1)
        self.hits += torch.stack([found[:, :k].sum() for k in self.ranks])
        self.images += len(target)

    def compute(self) -> Tensor:
        """Top-k accuracy of each k, float64 on the CPU."""
        return self.hits.cpu().double() / self.images.cpu()


class ClassificationScores(nn.Module):
    """Top-1 and, above five classes, top-5 accuracy over all images, in [0, 1]."""

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        super().__init__()
        self.accuracy = TopKHits([k for k in TOP_RANKS if k < num_classes])
        self.confusion = ConfusionMatrix(num_classes, ignore_index) if num_classes <= MATRIX_CLASSES else None

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count logits `(B, C)` against labels `(B,)`."""
        self.accuracy.update(logits, target)
        if self.confusion is not None:
            self.confusion.update(logits.argmax(1), target)

    def reset(self) -> None:
        for metric in self.children():
            metric.reset()  # type: ignore[operator]

    def matrix(self) -> Tensor | None:
        """Counts [truth, prediction] `(C, C)` over all ranks; None above `MATRIX_CLASSES` classes."""
        return None if self.confusion is None else self.confusion.matrix()

    def scores(self, class_names: Sequence[str]) -> dict[str, Tensor]:
        """Scores over all ranks by name, float64 on the CPU."""
        accuracies: Any = self.accuracy.compute().flatten()  # torchmetrics makes a scalar of one value
        return {f"top{k}": accuracy for k, accuracy in zip(self.accuracy.ranks, accuracies, strict=True)}


def intersection_over_union(confusion: Tensor) -> Tensor:
    """Per-class IoU in [0, 1], float64 on the CPU, of a `(C, C)` matrix of counts [truth, prediction].

    NaN for a class that occurs neither in the truth nor in the predictions.
    """
    counts = confusion.cpu().double()
    hits = counts.diagonal()
    return hits / (counts.sum(0) + counts.sum(1) - hits)


def mean_iou(confusion: Tensor) -> Tensor:
    """Mean IoU of the classes that occur."""
    return intersection_over_union(confusion).nanmean()


def pixel_accuracy(confusion: Tensor) -> Tensor:
    """Fraction of the valid pixels whose class is predicted correctly."""
    counts = confusion.cpu().double()
    return counts.diagonal().sum() / counts.sum()
