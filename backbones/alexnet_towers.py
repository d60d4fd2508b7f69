"""The two towers of AlexNet on a device each, as the paper trained them (Krizhevsky et al. 2012, section 3.2).

`TowersOnDevices(BACKBONES["alexnet_2gpu"](), ("cuda:0", "cuda:1"))` computes the maps of that network. Each tower has
half of the channels on its own device; only the third convolution reads both towers' maps, so only there they cross.
For loops of one's own: run.py trains `alexnet_2gpu` with both towers on one device, as groups of its convolutions.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backbones.alexnet import AlexNet, TowerNorm


class TowersOnDevices(nn.Module):
    """The features of alexnet_2gpu, with its weights: `(B, 3, H, W)` -> its maps, on the first device.

    Raises:
        ValueError: the backbone has one tower, or more layers than the paper's.
    """

    def __init__(self, backbone: AlexNet, devices: Sequence[str | torch.device]) -> None:
        super().__init__()
        kinds = (nn.Conv2d, nn.ReLU, nn.MaxPool2d, TowerNorm)
        convolutions = [layer for layer in backbone.features if isinstance(layer, nn.Conv2d)]
        if len(devices) != 2 or convolutions[1].groups != 2 or backbone.fully_convolutional:
            raise ValueError("two devices are for the two towers of alexnet_2gpu, without fc6 and fc7 as convolutions")
        if not all(isinstance(layer, kinds) for layer in backbone.features):
            raise ValueError("alexnet_2gpu's option se_reduction joins the towers after every layer; leave it out")
        self.devices = tuple(torch.device(device) for device in devices)
        self.towers = nn.ModuleList(
            nn.Sequential(*(half(layer, tower) for layer in backbone.features)).to(device)
            for tower, device in enumerate(self.devices)
        )
        self.crossing = [*backbone.features].index(convolutions[2])

    def forward(self, x: Tensor) -> list[Tensor]:
        parts, maps = [x.to(device) for device in self.devices], []
        for i, layers in enumerate(zip(*self.towers, strict=True)):
            if isinstance(layers[0], nn.MaxPool2d):
                maps.append(self.joined(parts, self.devices[0]))
            if i == self.crossing:
                parts = [self.joined(parts, device) for device in self.devices]
            parts = [layer(part) for layer, part in zip(layers, parts, strict=True)]
        return [*maps, self.joined(parts, self.devices[0])]

    def joined(self, parts: Sequence[Tensor], device: torch.device) -> Tensor:
        """The maps of both towers on one device."""
        return torch.cat([part.to(device) for part in parts], 1)


def half(layer: nn.Module, tower: int) -> nn.Module:
    """A tower's part of a layer: half of a convolution's outputs, everything else as it is."""
    if isinstance(layer, TowerNorm):
        return TowerNorm(1)
    if not isinstance(layer, nn.Conv2d):
        return copy.deepcopy(layer)
    outputs = layer.out_channels // 2
    geometry: Any = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    part = nn.Conv2d(layer.weight.shape[1], outputs, *geometry)
    with torch.no_grad():
        for own, whole in ((part.weight, layer.weight), (part.bias, layer.bias)):
            assert own is not None
            assert whole is not None
            own.copy_(whole[tower * outputs : (tower + 1) * outputs])
    return part
