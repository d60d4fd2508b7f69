"""Scores of images that have any number of labels, from counts over a whole split.

Average precision needs the order of all images by a class's score. Scores are therefore put into `LEVELS` levels of the
logit, and images of one level count as tied: the result is the average precision of the rounded logits, whatever the
batch size and the number of ranks. The counts take 16 KiB a class, 350 MB for the 21,841 of ImageNet-21k.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric

LEVELS = 1024
"""Levels of a logit."""
HIGHEST = 16.0
"""Logits are told apart between minus this and this, where sigmoids are 1e-7 and 1 - 1e-7."""
TOP_RANKS = (1, 5)


class AveragePrecision(Metric):
    """For each class how many images with and without it have their logit in each level, int64 `(2, C, LEVELS)`."""

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(2, num_classes, LEVELS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count logits `(B, C)` against labels 0 or 1 `(B, C)`."""
        levels = ((logits.float() + HIGHEST) * (LEVELS / (2 * HIGHEST))).floor().long().clamp(0, LEVELS - 1)
        classes = torch.arange(target.shape[1], device=target.device)
        cells = (target * target.shape[1] + classes) * LEVELS + levels
        ones = torch.ones((), dtype=torch.int64, device=cells.device).expand(cells.numel())
        self.counts.view(-1).scatter_add_(0, cells.flatten(), ones)

    def compute(self) -> Tensor:
        """Average precision of each class, float64 `(C,)` on the CPU; NaN for a class that no image has.

        The sum over the levels, from the highest, of the precision times the growth of the recall.
        """
        without, having = self.counts.cpu().double().flip(-1)
        hits, misses = having.cumsum(-1), without.cumsum(-1)
        precision = hits / (hits + misses).clamp(min=1)
        return (precision * having).sum(-1) / hits[:, -1]


class Hits(Metric):
    """How many images have one of their labels among the k highest scores, and how many have a label; int64."""

    full_state_update = False
    counts: Tensor

    def __init__(self, ranks: Sequence[int]) -> None:
        super().__init__()
        self.ranks = tuple(ranks)
        self.add_state("counts", torch.zeros(len(self.ranks) + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count logits `(B, C)` against labels 0 or 1 `(B, C)`."""
        found = target.gather(1, logits.topk(max(self.ranks)).indices) > 0
        hit = [found[:, :k].any(1).sum() for k in self.ranks]
        self.counts += torch.stack([*hit, target.any(1).sum()])

    def compute(self) -> Tensor:
        """The share of each k among the images with a label, float64 on the CPU."""
        counts = self.counts.cpu().double()
        return counts[:-1] / counts[-1]


class MultiLabelScores(nn.Module):
    """mAP and hits among the 1 and 5 highest scores, in [0, 1]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.precision = AveragePrecision(num_classes)
        self.hits = Hits([k for k in TOP_RANKS if k < num_classes])

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count logits `(B, C)` against labels 0 or 1 `(B, C)`."""
        self.precision.update(logits, target)
        self.hits.update(logits, target)

    def reset(self) -> None:
        self.precision.reset()
        self.hits.reset()

    def matrix(self) -> None:
        """There is no confusion matrix: an image does not stand for one class."""

    def scores(self, class_names: Sequence[str]) -> dict[str, Tensor]:
        """Scores over all ranks by name; `map` is the mean over the classes that an image has."""
        hits = zip(self.hits.ranks, self.hits.compute().flatten(), strict=True)
        return {"map": self.precision.compute().nanmean(), **{f"hit{k}": share for k, share in hits}}
