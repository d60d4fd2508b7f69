"""Optimisers by name."""

from typing import Any

import torch

OPTIMIZERS = ("adamw", "sgd", "rmsprop")


def make_optimizer(
    name: str, groups: list[dict[str, Any]], lr: float, momentum: float, *, fused: bool
) -> torch.optim.Optimizer:
    """An optimiser over parameter groups; see `parameter_groups.parameter_groups`.

    Args:
        momentum: of SGD and RMSProp.
        fused: update all parameters in one kernel, if there is one; it is faster and rounds differently.
    """
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=fused)
    if name == "rmsprop":  # with the constants of Inception and EfficientNet
        return torch.optim.RMSprop(groups, lr=lr, alpha=0.9, eps=1e-3, momentum=momentum)
    return torch.optim.AdamW(groups, lr=lr, fused=fused)
