"""Residual Networks Behave Like Ensembles of Relatively Shallow Networks. Veit, Wilber, Belongie 2016, arXiv:1605.06431."""

from itertools import combinations

import torch
from torch import nn

from backbones import BACKBONES
from experiments.analysis.receptive_field import Linearised


def test_a_network_is_the_sum_over_its_paths() -> None:
    """n blocks without their ReLUs are the sum of 2^n paths, each through some of the residuals."""
    blocks = [*BACKBONES["resnet20"]().double().eval().layer1]
    for block in blocks:
        for norm in block.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.normal_(norm.weight)
    x = torch.randn(1, 16, 8, 8, dtype=torch.float64)
    with torch.no_grad(), Linearised():
        whole = nn.Sequential(*blocks)(x)
        paths = []
        for taken in (some for n in range(len(blocks) + 1) for some in combinations(blocks, n)):
            y = x
            for block in taken:
                y = block(y) - y
            paths.append(y)
    assert len(paths) == 2 ** len(blocks) == 8
    torch.testing.assert_close(whole, sum(paths))
    assert all(path.abs().max() > 1e-6 for path in paths)
