"""Initial weights that ViT, Swin and ConvNeXt share."""

import torch
from torch import nn


def uninitialised_linear(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer without values.

    PyTorch's default initialisation, which ours would overwrite, would double the construction time of large networks.
    """
    return nn.utils.skip_init(nn.Linear, in_features, out_features, device=torch.get_default_device())


def init_truncated_normal(module: nn.Module) -> None:
    """Draw the weights of convolutions and linear layers from a normal of standard deviation 0.02; biases are zero.

    The published code truncates the normal at 2, a hundred standard deviations away.
    """
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
