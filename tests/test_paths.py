"""Residual networks are sums over paths. Veit, Wilber, Belongie 2016, arXiv:1605.06431."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import nn

from backbones import BACKBONES
from experiments.analysis.receptive_field import Linearised
from lightning_modules.segmentation import SegmentationModule


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


def test_removed_blocks_leave_their_shortcuts(tmp_path: Path) -> None:
    """Block 3 of resnet18 is the second of its second stage; a trained network goes on without it."""
    whole = SegmentationModule("resnet18", "fcn32s", ("a", "b")).eval()
    torch.save({"state_dict": whole.state_dict()}, tmp_path / "whole.ckpt")
    less = SegmentationModule("resnet18", "fcn32s", ("a", "b"), backbone_options={"removed": [3]}).eval()
    assert less.start_from(str(tmp_path / "whole.ckpt")) == []
    x = torch.randn(1, 3, 64, 64)
    found = less.network.backbone(x)
    torch.testing.assert_close(found[1], whole.network.backbone(x)[1])
    whole.network.backbone.layer2[1] = nn.Identity()  # its input is not negative
    for one, other in zip(found, whole.network.backbone(x), strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="removed has 8; resnet18 has the blocks 0 to 7 here"):
        BACKBONES["resnet18"](removed=[8])
    with pytest.raises(ValueError, match="shortcut none has none"):
        BACKBONES["resnet18"](removed=[0], shortcut="none")
