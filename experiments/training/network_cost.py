"""What a network costs: parameters and multiply-adds, counted without computing anything."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.network import Network


def network_cost(network: nn.Module, image_size: tuple[int, int], in_channels: int = 3) -> dict[str, float]:
    """`params`, and `gmacs` (10^9 multiply-adds of one image at `image_size`; half of PyTorch's flop count)."""
    ghost = copy.deepcopy(network).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ghost(torch.empty(1, in_channels, *image_size, device="meta"))
    return {
        "params": sum(p.numel() for p in network.parameters()),
        "gmacs": round(counter.get_total_flops() / 2e9, 3),
    }


def classifier_without_weights(backbone: str, classes: int = 1000, in_channels: int = 3) -> Network:
    """A backbone under its classifier, on no device, as it runs: auxiliary classifiers exist in training only."""
    with torch.device("meta"):
        network = Network(backbone, "classifier", classes, in_channels=in_channels)
        if network.has_aux:
            network = Network(backbone, "classifier", classes, in_channels=in_channels, backbone_options={"aux": 0})
    return network
