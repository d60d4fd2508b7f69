"""What a network costs: parameters and multiply-adds, counted without computing anything."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def cost(network: nn.Module, image_size: tuple[int, int], in_channels: int = 3) -> dict[str, float]:
    """`params`, and `gmacs` (10^9 multiply-adds of one image at `image_size`; half of PyTorch's flop count)."""
    ghost = copy.deepcopy(network).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ghost(torch.empty(1, in_channels, *image_size, device="meta"))
    return {
        "params": sum(p.numel() for p in network.parameters()),
        "gmacs": round(counter.get_total_flops() / 2e9, 3),
    }
