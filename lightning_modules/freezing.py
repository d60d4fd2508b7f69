"""Freezing the first stages of a backbone, as detectors that start from ImageNet weights do."""

import torch

from backbones.backbone import Backbone
from lightning_modules.shapes_only import ghost_of

SIDE = 64
"""Side in pixels of the image that shows what a map depends on, unless the backbone needs a larger one."""


def freeze_stages(backbone: Backbone, count: int, in_channels: int) -> None:
    """Freeze all parameters that the first `count` maps depend on.

    Raises:
        ValueError: the backbone has fewer maps.
    """
    if count > len(backbone.channels):
        raise ValueError(
            f"--freeze-stages is {count}; {backbone.variant} has {len(backbone.channels)} maps, so give at most that"
        )
    ghost = ghost_of(backbone).train()
    side = max(SIDE, backbone.min_size)
    maps = ghost(torch.empty(2, in_channels, side, side, device="meta"))[:count]
    torch.stack([one.sum() for one in maps if one.numel()]).sum().backward()
    needed = {name for name, parameter in ghost.named_parameters() if parameter.grad is not None}
    for name, parameter in backbone.named_parameters():
        if name in needed:
            parameter.requires_grad_(False)
