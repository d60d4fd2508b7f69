"""The filters of the first convolution, as Krizhevsky, Sutskever, Hinton 2012 show them (figure 3).

The two towers of the two-GPU AlexNet stand beside each other. Filters of three channels are drawn in colour, others as
one grey picture for each channel that they read. Each filter is scaled by its own largest weight; grey is zero.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import nn

from backbones.alexnet import TowerNorm
from experiments.command_line.explain_flags import ExplainFlags
from experiments.explaining.drawing import panel, row, signed_picture, tiles
from experiments.explaining.examples import Examples
from experiments.explaining.explanation import Explanation
from experiments.inference.trained import TrainedNetwork

SIDE = 44
"""Pixels of a drawn filter."""


def first_convolution(backbone: nn.Module) -> tuple[str, nn.Conv2d]:
    """Name and module of the first convolution.

    Raises:
        ValueError: there is none.
    """
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            return name, module
    raise ValueError("--method filters needs a convolution; this backbone has none")


def towers_of(backbone: nn.Module) -> int:
    """The number of groups of channels that the first layer's normalisation keeps apart, 1 in most networks."""
    return next((module.towers for module in backbone.modules() if isinstance(module, TowerNorm)), 1)


def first_filters(network: TrainedNetwork, examples: Examples, flags: ExplainFlags) -> Iterator[Explanation]:
    """One picture of all filters; no example is read."""
    backbone = network.module.network.backbone
    name, convolution = first_convolution(backbone)
    weights = convolution.weight.detach().float().cpu().numpy()
    towers = towers_of(backbone)
    panels = []
    for number, part in enumerate(np.split(weights, towers), 1):
        drawn = [
            signed_picture(filter_)
            for one in part
            for filter_ in ([one] if len(one) == 3 else [channel[None] for channel in one])
        ]
        columns = max(1, round(len(drawn) ** 0.5))
        title = f"{name}" if towers == 1 else f"{name}, tower {number}"
        panels.append(panel(tiles(drawn, columns, SIDE), f"{title}: {len(part)} filters", least=1))
    norms = np.sqrt((weights**2).sum((1, 2, 3)))
    facts = {"layer": name, "filters": len(weights), "towers": towers, "kernel": list(weights.shape[2:])}
    facts |= {"channels_read": weights.shape[1], "norms": np.round(norms.astype(float), 5).tolist()}
    yield Explanation(Path(str(network.module.hparams["backbone"]).replace("/", "-")), row(panels), facts)
