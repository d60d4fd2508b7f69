"""Losses by name: logits `(B, C, ...)` and targets `(B, ...)` -> a scalar. Ignored targets count for nothing."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor, int], Tensor]


def cross_entropy(logits: Tensor, target: Tensor, ignore_index: int, weights: Sequence[float] | None = None) -> Tensor:
    """Mean over the valid targets, weighted by class; zero, with a zero gradient, where none is valid."""
    valid = target != ignore_index
    if weights is None:
        return F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum") / valid.sum().clamp(min=1)
    weight = torch.tensor(weights, device=logits.device, dtype=logits.dtype)
    total = F.cross_entropy(logits, target, weight, ignore_index=ignore_index, reduction="sum")
    return total / (weight[target.where(valid, 0)] * valid).sum().clamp(min=torch.finfo(weight.dtype).tiny)


def dice(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """One minus the soft Dice coefficient, averaged over the classes present in the batch (Milletari et al. 2016)."""
    valid = (target != ignore_index).unsqueeze(1)
    probabilities = logits.softmax(1) * valid
    truth = F.one_hot(target.where(valid.squeeze(1), 0), logits.shape[1]).movedim(-1, 1) * valid
    over = [dim for dim in range(logits.ndim) if dim != 1]
    present = truth.sum(over) > 0
    coefficient = 2 * (probabilities * truth).sum(over) / (probabilities.sum(over) + truth.sum(over)).clamp(min=1e-6)
    return ((1 - coefficient) * present).sum() / present.sum().clamp(min=1)


def cross_entropy_dice(
    logits: Tensor, target: Tensor, ignore_index: int, weights: Sequence[float] | None = None
) -> Tensor:
    """The sum of both: the first for every pixel's sake, the second for small classes'."""
    return cross_entropy(logits, target, ignore_index, weights) + dice(logits, target, ignore_index)


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "cross_entropy_dice": cross_entropy_dice,
}


def find_loss(name: str, class_weights: Sequence[float] | None = None) -> Loss:
    """Raises ValueError where no loss has that name, or it takes no class weights."""
    if name not in LOSSES:
        raise ValueError(f"no loss '{name}'; there are {', '.join(LOSSES)}")
    if class_weights is None:
        return LOSSES[name]
    if name == "dice":
        raise ValueError("the loss dice has no class weights; use cross_entropy or cross_entropy_dice")
    return partial(LOSSES[name], weights=list(class_weights))  # type: ignore[call-arg]
