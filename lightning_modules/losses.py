"""Losses by name and weighted sums of them: logits `(B, C, ...)` and labels `(B, ...)` -> a scalar.

Ignored targets do not contribute; if no target is valid, the loss and its gradient are zero. Each loss returns a sum
and the weight to divide it by. In training the weights of pixel means are averaged over all ranks, so that DDP's
averaged gradient equals that of a single process with the whole batch, even if one rank has no valid pixel; losses of
whole sets of pixels (`OF_SETS`) use each rank's own batch. In evaluation sums and weights are added up over a split,
and losses of sets are computed image by image, so the result depends neither on the batch size nor on the ranks.

Sources: focal, Lin et al. 2017, arXiv:1708.02002; hard examples, Shrivastava et al. 2016, arXiv:1604.03540, in the form
semantic segmentation uses (probability below 0.7, at least a sixteenth of the pixels); Dice, Milletari et al. 2016,
arXiv:1606.04797; Lovász-softmax, Berman et al. 2018, arXiv:1705.08790; U-Net's border weights, Ronneberger et al. 2015.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.borders import border_weights_of, near_boundary

HARD = -math.log(0.7)
"""Cross-entropy above which `ohem` calls a pixel hard."""
BIN_SHIFT = 15
"""Last bits of float32 that `lovasz` does not look at: 8 of the mantissa's 23 are left."""
LAST_BIN = 0x3F800000 >> BIN_SHIFT
"""What BIN_SHIFT leaves of the bits of 1, the largest error."""


class Target(NamedTuple):
    """What a loss compares logits with."""

    labels: Tensor
    """int64 `(B, ...)`; zero where not valid. Of images with several labels, 0 or 1 `(B, C)`."""
    valid: Tensor
    """bool `(B, ...)`."""
    class_weights: Tensor
    """`(C,)`, of the logits' dtype."""
    smoothing: float
    """Fraction of each target that label smoothing spreads over all classes (Szegedy et al. 2015, arXiv:1512.00567)."""
    border_weights: Tensor | None = None
    """float32 `(B, H, W)`, if the data-loader workers have computed them; see `borders.border_weights`."""


Sums = tuple[Tensor, Tensor]
"""A sum of losses and the sum of their weights, both scalars; the loss is their quotient."""
Loss = Callable[[Tensor, Target], Sums]


def exact_dtype(device: torch.device) -> torch.dtype:
    """The dtype of sums over many pixels or images: float64, but float32 on Apple's MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def per_pixel(logits: Tensor, target: Target) -> Tensor:
    """Cross-entropy `(B, ...)` of each pixel, times its class's weight; zero where not valid."""
    loss = F.cross_entropy(
        logits, target.labels, target.class_weights, reduction="none", label_smoothing=target.smoothing
    )
    return loss.where(target.valid, 0)  # a product with zero would turn an infinite loss into NaN


def summed(losses: Tensor, weights: Tensor, target: Target) -> Sums:
    """The sum of losses that already carry their weights, and the sum of the weights of the valid pixels."""
    exact = exact_dtype(losses.device)
    return losses.sum(dtype=exact), (weights * target.valid).sum(dtype=exact)


def cross_entropy(logits: Tensor, target: Target) -> Sums:
    """Mean over the valid targets, each weighted by its class."""
    return summed(per_pixel(logits, target), target.class_weights[target.labels], target)


def binary_cross_entropy(logits: Tensor, target: Target) -> Sums:
    """Each class against all others, by a sigmoid; summed over the classes, and the mean over the images or pixels.

    Images may have any number of labels. With one label, this is the loss of one network per class.
    """
    truth = target.labels if target.labels.shape == logits.shape else one_hot(target, logits.shape[1])
    losses = F.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype), reduction="none")
    weights = target.class_weights.view(1, -1, *[1] * (logits.ndim - 2))
    valid = target.valid
    return summed((losses * weights).sum(1).where(valid, 0), valid.to(logits.dtype), target)


def focal(logits: Tensor, target: Target) -> Sums:
    """Cross-entropy times (1 - p)^2; p is the predicted probability of the true class, so easy pixels count little."""
    p = logits.softmax(1).gather(1, target.labels.unsqueeze(1)).squeeze(1)
    losses = (1 - p).square() * per_pixel(logits, target)
    return summed(losses, target.class_weights[target.labels], target)


def boundary(logits: Tensor, target: Target) -> Sums:
    """Cross-entropy in which pixels at most 2 pixels away from another class count five times."""
    return weigh_pixels(logits, target, 1 + 4 * near_boundary(target.labels, target.valid, 2).float())


def unet_border(logits: Tensor, target: Target) -> Sums:
    """Cross-entropy in which background between two close objects has up to 10 added to its weight (U-Net, equation 2).

    Objects are connected regions of any class but 0, the background. Two objects that touch are therefore one, unless
    the mask has a line of background between them, as U-Net's masks do.
    """
    weights = border_weights_of(target.labels) if target.border_weights is None else target.border_weights
    return weigh_pixels(logits, target, 1 + weights)


def weigh_pixels(logits: Tensor, target: Target, weights: Tensor) -> Sums:
    """Cross-entropy of maps, in which each pixel is also weighted by `weights` `(B, H, W)`."""
    losses = per_pixel(logits, target) * weights
    return summed(losses, target.class_weights[target.labels] * weights, target)


def ohem(logits: Tensor, target: Target) -> Sums:
    """Cross-entropy of the hard pixels: true class below probability 0.7, or the hardest sixteenth if that is more."""
    losses = per_pixel(logits, target).flatten()
    hardness = F.cross_entropy(logits.detach(), target.labels, reduction="none")
    # Sorted instead of selected, because the number of hard pixels would have to be fetched from the GPU.
    hardness, order = hardness.where(target.valid, -1).flatten().sort(descending=True)
    valid = target.valid.flatten()[order]
    rank = torch.arange(len(order), device=logits.device)
    hard = valid & (~(hardness <= HARD) | (rank < (valid.sum() // 16).clamp(min=1)))
    weights = target.class_weights[target.labels.flatten()[order]]
    return losses[order].where(hard, 0).sum(), weights.where(hard, 0).sum()


def dice(logits: Tensor, target: Target) -> Sums:
    """One minus the soft Dice coefficient, averaged over the classes that occur, by their weights."""
    probabilities = logits.softmax(1).where(target.valid.unsqueeze(1), 0)
    truth = one_hot(target, logits.shape[1])
    over = [dim for dim in range(logits.ndim) if dim != 1]
    pixels = truth.sum(over)
    weights = (pixels > 0) * target.class_weights
    coefficient = 2 * (probabilities * truth).sum(over) / (probabilities.sum(over) + pixels).clamp(min=1e-6)
    return ((1 - coefficient) * weights).sum(), weights.sum()


def lovasz(logits: Tensor, target: Target) -> Sums:
    """The convex extension of one minus the IoU, averaged over the classes that occur, by their weights.

    From the largest error to the smallest, each is weighted by how much the IoU drops if its pixel, too, is
    misclassified. Errors that differ by less than 0.4 % count as equal, so they are counted in bins: on a CPU, sorting
    them takes longer than some networks do. Among equals, pixels of other classes come first.
    """
    truth = one_hot(target, logits.shape[1])
    errors = (truth.to(logits.dtype) - logits.softmax(1)).abs().where(target.valid.unsqueeze(1), 0)
    truth, errors = (x.movedim(1, 0).flatten(1) for x in (truth, errors))  # (C, pixels)
    weights = truth.any(1) * target.class_weights
    return ((errors * iou_drops(errors.detach(), truth)).sum(1) * weights).sum(), weights.sum()


def iou_drops(errors: Tensor, hits: Tensor) -> Tensor:
    """What `lovasz` weighs each error by: errors in [0, 1] and whether a pixel is of the class, both `(C, pixels)`."""
    classes = len(errors)
    # The bits of floats that are not negative have the order of the floats. Bin 0 has the largest errors, and NaN.
    bins = (errors.float().view(torch.int32) >> BIN_SHIFT).neg_().add_(LAST_BIN).clamp_(min=0)
    bins += torch.arange(classes, device=bins.device, dtype=bins.dtype).unsqueeze(1) * (LAST_BIN + 1)
    cells = (2 * bins + hits).flatten().long()
    one = torch.ones((), dtype=torch.int32, device=cells.device)
    counts = torch.zeros(2 * classes * (LAST_BIN + 1), dtype=torch.int32, device=cells.device)
    counts = counts.scatter_add_(0, cells, one.expand(len(cells))).view(classes, LAST_BIN + 1, 2)
    # Counted in integers: a float32 sum is exact up to 2^24 pixels only, and has no deterministic form on GPUs.
    sums = counts.cumsum(1, dtype=torch.int32)
    others, of_class = sums.unbind(2)
    total = of_class[:, -1:]
    union_before = (total + others - counts[..., 0]).clamp(min=1)
    union_after = (total + others).clamp(min=1).to(errors.dtype)  # with the bin's pixels of other classes
    intersection_before = total - of_class + counts[..., 1]
    # The drop itself: as a difference of two IoUs it would be lost in their rounding.
    table = torch.stack((intersection_before / union_before / union_after, 1 / union_after), 2)
    return table.flatten()[cells].view_as(errors)


def one_hot(target: Target, classes: int) -> Tensor:
    """bool `(B, C, ...)`: whether a pixel is valid and of the class."""
    numbers = torch.arange(classes, device=target.labels.device).view(1, classes, *[1] * (target.labels.ndim - 1))
    return (target.labels.unsqueeze(1) == numbers) & target.valid.unsqueeze(1)


def image_by_image(loss: Loss, logits: Tensor, target: Target) -> Sums:
    """The sum of a loss's values over the images that have valid pixels, and the number of these images."""
    values, counted = [], []
    for image in range(len(logits)):
        one = slice(image, image + 1)
        of_image = target._replace(labels=target.labels[one], valid=target.valid[one])
        total, weight = loss(logits[one], of_image)
        values.append(total / weight.clamp(min=LEAST))
        counted.append(weight > 0)
    exact = exact_dtype(logits.device)
    return torch.stack(values).sum(dtype=exact), torch.stack(counted).sum(dtype=exact)


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "ohem": ohem,
    "focal": focal,
    "dice": dice,
    "lovasz": lovasz,
    "boundary": boundary,
    "unet_border": unet_border,
}
SEGMENTATION_ONLY = ("boundary", "unet_border")
"""Losses that need neighbouring pixels."""
OF_SETS = ("ohem", "dice", "lovasz")
"""Losses that are no mean over pixels: a pixel's part in them depends on the other pixels."""
LEAST = 1e-12
"""Least weight that a sum is divided by."""
TERM = re.compile(r"(?:(\d*\.?\d+)\*)?([a-z_]+)")


def terms(expression: str) -> list[tuple[float, str]]:
    """`"cross_entropy+0.5*dice"` -> `[(1.0, "cross_entropy"), (0.5, "dice")]`.

    Raises:
        ValueError: a name is unknown or the expression is not such a sum.
    """
    found = []
    for term in expression.replace(" ", "").split("+"):
        match = TERM.fullmatch(term)
        if match is None:
            raise ValueError(f"--loss {expression}: '{term}' is not NAME or WEIGHT*NAME, as in cross_entropy+0.5*dice")
        if match[2] not in LOSSES:
            raise ValueError(
                f"no loss '{match[2]}'; there are {', '.join(LOSSES)}, and sums such as cross_entropy+0.5*dice"
            )
        found.append((float(match[1] or 1), match[2]))
    return found


class WeightedSum(nn.Module):
    """A weighted sum of losses by name.

    It computes in float32, or in float64 if the logits are float64, whatever the precision of the network.

    Args:
        expression: see `terms`.
        num_classes: C.
        ignore_index: label of the pixels that do not count.
        class_weights: one number per class, or None for ones.
        label_smoothing: see `Target.smoothing`.

    Raises:
        ValueError: the expression, the number of weights or the smoothing is wrong.
    """

    class_weights: Tensor

    def __init__(
        self,
        expression: str,
        num_classes: int,
        *,
        ignore_index: int = 255,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        weights = torch.ones(num_classes) if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        if weights.shape != (num_classes,):
            raise ValueError(f"there are {len(weights)} class weights for {num_classes} classes")
        if not (weights.isfinite().all() and (weights >= 0).all() and weights.any()):
            raise ValueError("class weights must be finite, none negative and not all zero")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"--label-smoothing is {label_smoothing}; it must be at least 0 and below 1")
        self.terms = terms(expression)
        if label_smoothing and any(name == "binary_cross_entropy" for _, name in self.terms):
            raise ValueError("--label-smoothing has no meaning for --loss binary_cross_entropy; leave one out")
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.unrounded = weights
        # A checkpoint has the weights among its settings.
        self.register_buffer("class_weights", weights, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "WeightedSum":
        """Move the class weights, but keep their precision when a module is cast to bfloat16."""
        super()._apply(fn, recurse)
        self.class_weights = self.unrounded.to(self.class_weights.device)
        return self

    def forward(self, logits: Tensor, labels: Tensor, border_weights: Tensor | None = None) -> Tensor:
        """The loss of a batch, to be trained with.

        Labels are int64 `(B, ...)`, or 0 and 1 `(B, C)` where images have several, or class probabilities `(B, C)` of
        mixed images, for which cross-entropy is returned.
        `border_weights` are computed from the labels if the loss needs them and they are not given.
        """
        logits = at_least_float32(logits)
        if labels.is_floating_point():
            return F.cross_entropy(logits, labels.to(logits.dtype), label_smoothing=self.label_smoothing)
        target = self._target(logits, labels)._replace(border_weights=border_weights)
        loss = torch.zeros((), dtype=exact_dtype(logits.device), device=logits.device)
        for coefficient, name in self.terms:
            total, weight = LOSSES[name](logits, target)
            if name not in OF_SETS:
                weight = self._mean_over_ranks(weight)
            loss = loss + coefficient * (total / weight.clamp(min=LEAST))
        return loss.to(logits.dtype)

    def sums(self, logits: Tensor, labels: Tensor) -> Sums:
        """For evaluation: each term's sum of losses and sum of weights `(terms,)`, which add up over batches and ranks.

        The loss of a split is the sum of the terms' quotients, each times its coefficient.
        """
        logits = at_least_float32(logits)
        target = self._target(logits, labels)
        of_terms = [
            image_by_image(LOSSES[name], logits, target) if name in OF_SETS else LOSSES[name](logits, target)
            for _, name in self.terms
        ]
        return torch.stack([total for total, _ in of_terms]), torch.stack([weight for _, weight in of_terms])

    def _target(self, logits: Tensor, labels: Tensor) -> Target:
        valid = labels != self.ignore_index
        if labels.ndim == logits.ndim == 2:  # several labels
            valid = valid.all(1)
            return Target(labels, valid, self.class_weights.to(logits.dtype), self.label_smoothing)
        return Target(labels.where(valid, 0), valid, self.class_weights.to(logits.dtype), self.label_smoothing)

    def _mean_over_ranks(self, weight: Tensor) -> Tensor:
        # Only in training do all ranks compute the same number of losses.
        return mean_over_ranks(weight) if self.training else weight


def mean_over_ranks(weight: Tensor) -> Tensor:
    """The mean of a weight over all ranks; to be called by all of them."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        weight = weight.detach().clone()
        torch.distributed.all_reduce(weight)
        weight = weight / torch.distributed.get_world_size()
    return weight


def at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
