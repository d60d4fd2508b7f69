"""Losses by name and weighted sums of them: logits `(B, C, ...)` and targets `(B, ...)` -> a scalar.

Ignored targets count for nothing, and where none is valid the loss and its gradient are zero. Means over pixels divide
by the valid pixels of all processes in training, so that DDP's averaged gradient is that of one process seeing all of
them, even where one sees none. Dice, Lovász-softmax and the hardest pixels are taken of each process's own batch.

Sources: focal, Lin et al. 2017, arXiv:1708.02002; hard examples, Shrivastava et al. 2016, arXiv:1604.03540, in the form
semantic segmentation uses (probability below 0.7, at least a sixteenth of the pixels); Dice, Milletari et al. 2016,
arXiv:1606.04797; Lovász-softmax, Berman et al. 2018, arXiv:1705.08790; U-Net's border weights, Ronneberger et al. 2015.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn


class Target(NamedTuple):
    """What a loss compares logits with."""

    labels: Tensor
    """int64 `(B, ...)`; zero where not valid."""
    valid: Tensor
    """bool `(B, ...)`."""
    class_weights: Tensor
    """float32 `(C,)`."""
    smoothing: float
    """Share of the truth that label smoothing spreads over all classes (Szegedy et al. 2015, arXiv:1512.00567)."""
    total: Callable[[Tensor], Tensor]
    """Of a scalar: its mean over the processes in training, the scalar itself otherwise."""


Loss = Callable[[Tensor, Target], Tensor]


def per_pixel(logits: Tensor, target: Target) -> Tensor:
    """Cross-entropy `(B, ...)` of each pixel, times its class's weight; zero where not valid."""
    loss = F.cross_entropy(
        logits, target.labels, target.class_weights, reduction="none", label_smoothing=target.smoothing
    )
    return loss * target.valid


def weighted_mean(losses: Tensor, weights: Tensor, target: Target) -> Tensor:
    """Sum of losses that already carry their weights, over the sum of the weights; zero where that is none."""
    # Summed exactly, so that validation losses do not depend on how images were cut into batches.
    exact = torch.float32 if losses.device.type == "mps" else torch.float64
    return losses.sum(dtype=exact) / target.total((weights * target.valid).sum(dtype=exact)).clamp(min=1e-12)


def cross_entropy(logits: Tensor, target: Target) -> Tensor:
    """Mean over the valid targets, each counting by its class's weight."""
    return weighted_mean(per_pixel(logits, target), target.class_weights[target.labels], target)


def ohem(logits: Tensor, target: Target) -> Tensor:
    """Cross-entropy of the hard pixels: truth below probability 0.7, or the hardest sixteenth if that is more."""
    losses = per_pixel(logits, target)[target.valid]
    hardness = F.cross_entropy(logits.detach(), target.labels, reduction="none")[target.valid]
    if not len(losses):
        return logits.sum() * 0
    count = max(int((hardness > -torch.log(torch.tensor(0.7))).sum()), len(losses) // 16, 1)
    hardest = hardness.topk(count).indices
    weights = target.class_weights[target.labels[target.valid][hardest]]
    return losses[hardest].sum() / weights.sum().clamp(min=1e-12)


def focal(logits: Tensor, target: Target) -> Tensor:
    """Cross-entropy times (1 - p)^2, p being the truth's probability: what is already right counts little."""
    p = logits.softmax(1).gather(1, target.labels.unsqueeze(1)).squeeze(1)
    losses = (1 - p).square() * per_pixel(logits, target)
    return weighted_mean(losses, target.class_weights[target.labels], target)


def boundary(logits: Tensor, target: Target) -> Tensor:
    """Cross-entropy in which pixels within 2 of another class count five times."""
    return weigh_pixels(logits, target, 1 + 4 * near_boundary(target.labels, target.valid, 2).float())


def unet_border(logits: Tensor, target: Target) -> Tensor:
    """Cross-entropy in which background between two close objects counts up to ten times more (U-Net, equation 2).

    Objects are connected regions of any class but 0, the background; so two that touch are one, unless the mask keeps
    a line of background between them, as U-Net's does.
    """
    return weigh_pixels(logits, target, 1 + torch.stack([gaps(labels) for labels in target.labels]))


def weigh_pixels(logits: Tensor, target: Target, weights: Tensor) -> Tensor:
    """Cross-entropy of maps, each pixel `(B, H, W)` also counting by its weight."""
    losses = per_pixel(logits, target) * weights
    return weighted_mean(losses, target.class_weights[target.labels] * weights, target)


def dice(logits: Tensor, target: Target) -> Tensor:
    """One minus the soft Dice coefficient, averaged over the classes present in the batch by their weights."""
    valid = target.valid.unsqueeze(1)
    probabilities = logits.softmax(1) * valid
    truth = F.one_hot(target.labels, logits.shape[1]).movedim(-1, 1) * valid
    over = [dim for dim in range(logits.ndim) if dim != 1]
    weights = (truth.sum(over) > 0) * target.class_weights
    coefficient = 2 * (probabilities * truth).sum(over) / (probabilities.sum(over) + truth.sum(over)).clamp(min=1e-6)
    return ((1 - coefficient) * weights).sum() / weights.sum().clamp(min=1e-12)


def lovasz(logits: Tensor, target: Target) -> Tensor:
    """The convex extension of one minus the IoU, averaged over the classes present in the batch by their weights.

    Errors are sorted, largest first; each counts by how much the IoU drops when its pixel is got wrong too.
    """
    classes = logits.shape[1]
    probabilities = logits.softmax(1).movedim(1, -1)[target.valid]
    truth = F.one_hot(target.labels[target.valid], classes).to(probabilities.dtype)
    errors, order = (truth - probabilities).abs().sort(0, descending=True)
    hits = truth.gather(0, order)
    total = hits.sum(0)
    lost = 1 - (total - hits.cumsum(0)) / (total + (1 - hits).cumsum(0)).clamp(min=1)  # after each further error
    steps = torch.diff(lost, dim=0, prepend=lost.new_zeros(1, classes))
    weights = (total > 0) * target.class_weights
    return ((errors * steps).sum(0) * weights).sum() / weights.sum().clamp(min=1e-12)


def near_boundary(labels: Tensor, valid: Tensor, distance: int) -> Tensor:
    """bool `(B, H, W)`: pixels with another valid label at most `distance` rows and columns away."""
    size, padding = 2 * distance + 1, distance
    values = labels.unsqueeze(1).float()
    nothing = ~valid.unsqueeze(1)
    highest = F.max_pool2d(values.masked_fill(nothing, -1), size, 1, padding)
    lowest = -F.max_pool2d(-values.masked_fill(nothing, 1e9), size, 1, padding)
    return (highest > lowest).squeeze(1) & valid


def gaps(labels: Tensor) -> Tensor:
    """10 exp(-(d1 + d2)^2 / (2 * 5^2)) on background `(H, W)`; d1, d2 in pixels to the nearest two objects."""
    foreground = labels.cpu().numpy() > 0
    objects, count = ndimage.label(foreground)
    if count < 2:
        return torch.zeros(labels.shape, device=labels.device)
    nearest = torch.full((2, *labels.shape), torch.inf)
    for number in range(1, count + 1):
        distance = torch.from_numpy(ndimage.distance_transform_edt(objects != number)).float()
        nearest = torch.cat((nearest, distance.unsqueeze(0))).topk(2, 0, largest=False).values
    weights = 10 * torch.exp(-nearest.sum(0).square() / (2 * 5.0**2))
    return weights.masked_fill(torch.from_numpy(foreground), 0).to(labels.device)


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "ohem": ohem,
    "focal": focal,
    "dice": dice,
    "lovasz": lovasz,
    "boundary": boundary,
    "unet_border": unet_border,
}
FOR_MAPS = ("boundary", "unet_border")
"""Losses that need neighbouring pixels."""
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

    Args:
        expression: see `terms`.
        num_classes: C.
        class_weights: one number per class, or None for ones.

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
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        # Kept with the settings of a checkpoint, not among its weights.
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        valid = labels != self.ignore_index
        target = Target(labels.where(valid, 0), valid, self.class_weights, self.label_smoothing, self._over_processes)
        total = sum(weight * LOSSES[name](logits, target) for weight, name in self.terms)
        assert isinstance(total, Tensor)
        return total.to(logits.dtype) if self.training else total

    def _over_processes(self, total: Tensor) -> Tensor:
        # Only in training do all processes compute the same number of losses.
        if self.training and torch.distributed.is_available() and torch.distributed.is_initialized():
            total = total.detach().clone()
            torch.distributed.all_reduce(total)
            total = total / torch.distributed.get_world_size()
        return total
