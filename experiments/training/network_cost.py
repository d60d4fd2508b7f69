"""Counts the parameters and multiply-adds of a network without computing anything."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.network import Network
from lightning_modules.shapes_only import ShapesOnly, ghost_of


def network_cost(network: nn.Module, image_size: tuple[int, int], in_channels: int = 3) -> dict[str, float]:
    """Count `params`, and `gmacs`: 10^9 multiply-adds for one image of `image_size`, half of PyTorch's count of flops.

    Args:
        image_size: height and width in pixels.
    """
    ghost = ghost_of(network).eval()
    with ShapesOnly(), FlopCounterMode(display=False) as counter, torch.no_grad():
        ghost(torch.empty(1, in_channels, *image_size, device="meta"))
    return {
        "params": sum(p.numel() for p in network.parameters()),
        "gmacs": round(counter.get_total_flops() / 2e9, 3),
    }


def classifier_without_weights(backbone: str, classes: int = 1000, in_channels: int = 3) -> Network:
    """Build a backbone and its classifier on the meta device, without auxiliary classifiers, which only train."""
    with torch.device("meta"):
        network = Network(backbone, "classifier", classes, in_channels=in_channels)
        if network.has_aux:
            network = Network(backbone, "classifier", classes, in_channels=in_channels, backbone_options={"aux": 0})
    return network
