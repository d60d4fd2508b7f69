"""Feature Pyramid Networks for Object Detection. Lin, Dollár, Girshick, He, Hariharan, Belongie 2016, arXiv:1612.03144.

torchvision's layers on the maps that a backbone has, with the strides and offsets of the levels. Coarse maps are
enlarged by nearest neighbour to the size of the finer one, which for sizes that are rounded up at every stride is the
same as placing each value on the pixels it stands for.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7

from heads.box_head import last_of_each_stride


class Pyramid(nn.Module):
    """Maps of one width at growing strides.

    Args:
        channels, reductions: of the backbone's maps; of several of one stride, the last is read.
        width: channels of the result.
        finest: stride of the finest map that is read.
        extra: levels above the last: two more by 3x3 convolutions of stride 2, or one more by subsampling.
    """

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        width: int,
        *,
        finest: int,
        extra: Literal["convolutions", "subsampling"],
    ) -> None:
        super().__init__()
        self.levels = last_of_each_stride(reductions, finest)
        """Indices of the maps that are read."""
        strides = [reductions[i] for i in self.levels]
        more = 2 if extra == "convolutions" else 1
        self.strides = [*strides, *(strides[-1] * 2 ** (step + 1) for step in range(more))]
        """Pixels per value of each level."""
        blocks = LastLevelP6P7(width, width) if extra == "convolutions" else LastLevelMaxPool()
        self.fpn = FeaturePyramidNetwork([channels[i] for i in self.levels], width, blocks)

    def offsets(self, of_maps: Sequence[float]) -> list[float]:
        """Pixels by which each level is displaced, from those of the backbone's maps."""
        read = [of_maps[i] for i in self.levels]
        return [*read, *[read[-1]] * (len(self.strides) - len(read))]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Levels `(B, width, h, w)`, finest first."""
        return list(self.fpn({str(i): features[i] for i in self.levels}).values())
