"""The optimiser's parameter groups: learning rates of backbone and heads, and what weight decay applies to."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from lightning_modules.blocks import depths
from lightning_modules.network import Network

LAYERS = (nn.Linear, _ConvNd)
"""Layers whose `weight` decays: linear ones and convolutions, transposed and deformable ones too."""
STACKED_WEIGHTS = ("in_proj_weight",)
"""Parameters that hold the weights of several linear layers: query, key and value of attention."""
SPARED = ("cpb_mlp",)
"""Modules without decay: Swin v2's position network, whose output is a bias (Liu et al. 2022, arXiv:2111.09883)."""


def decayed_parameters(module: nn.Module, name: str = "") -> Iterator[nn.Parameter]:
    """The weights of linear layers and convolutions.

    Everything else is a norm's scale, a bias, a layer scale, a temperature, a token or a table of positions, which
    weight decay would pull towards a value that means nothing.
    """
    if name in SPARED:
        return
    for key, parameter in module.named_parameters(recurse=False):
        if (key == "weight" and isinstance(module, LAYERS)) or key in STACKED_WEIGHTS:
            yield parameter
    for key, child in module.named_children():
        yield from decayed_parameters(child, key)


def layer_biases(module: nn.Module) -> Iterator[nn.Parameter]:
    """The biases of linear layers and convolutions, which Caffe's networks train at twice the rate of the weights."""
    for part in module.modules():
        if isinstance(part, LAYERS) and isinstance(part.bias, nn.Parameter):
            yield part.bias


def parameter_groups(
    network: Network,
    lr: float,
    backbone_lr_mult: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    bias_lr_mult: float = 1.0,
) -> list[dict[str, Any]]:
    """One group for each learning rate of backbone and heads, with and without weight decay.

    The last group holds no biases of layers, but weights of the heads: its rate is `lr`.

    With `layer_decay`, the learning rate of a layer of the backbone is lr * backbone_lr_mult * layer_decay **
    layers_after_it, where the head counts as one layer (Clark et al. 2020, arXiv:2003.10555; for images Bao et al.
    2021). Parts of a head that are pretrained learn at the rate of the backbone's last layer. The biases of linear
    layers and convolutions learn at `bias_lr_mult` times that rate. Parameters that need no gradient are left out.
    """
    depth, layers = depths(network.backbone) if layer_decay != 1 else ({}, 0)
    decayed = {id(parameter) for parameter in decayed_parameters(network)}
    biases = {id(parameter) for parameter in layer_biases(network)} if bias_lr_mult != 1 else set()
    pretrained = tuple(f"head.{module}." for module in network.head.pretrained)
    groups: dict[tuple[bool, bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        part, _, own_name = name.partition(".")
        in_head = part != "backbone" and not name.startswith(pretrained)
        rate = lr if in_head else lr * backbone_lr_mult * layer_decay ** (layers - depth.get(own_name, layers))
        is_bias = id(parameter) in biases
        if is_bias:
            rate *= bias_lr_mult
        if parameter.requires_grad:
            groups.setdefault((in_head, not is_bias, rate, id(parameter) not in decayed), []).append(parameter)
    return [
        {"params": groups[key], "lr": key[2], "weight_decay": 0.0 if key[3] else weight_decay} for key in sorted(groups)
    ]
