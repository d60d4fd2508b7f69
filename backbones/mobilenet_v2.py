"""MobileNetV2: Inverted Residuals and Linear Bottlenecks.

Sandler, Howard, Zhu, Zhmoginov, Chen 2018, arXiv:1801.04381.

No deliberate difference from the paper's width 1.0. The paper gives no initialisation; convolutions start by He et al.
2015 (fan out), as torchvision's do. Loads torchvision's checkpoint, with the layers inside a block renamed to those of
its younger relatives.
"""

from torch import nn

from backbones.atrous import atrous_steps
from backbones.inverted_residual import (
    ConvNorm,
    InvertedResidual,
    InvertedResidualNet,
    PooledClassifier,
    rename_layers,
    small_linear,
)
from backbones.state_dicts import StateDict

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""The paper's table 2: expansion, channels, blocks and first stride of each stage."""


class MobileNetV2(InvertedResidualNet):
    """MobileNetV2; maps at strides 2, 4, 8, 16 from its blocks and at 32 from its 1x1 head."""

    def __init__(
        self, variant: str, *, weights: str | None = None, output_stride: int = 32, in_channels: int = 3
    ) -> None:
        super().__init__(variant)
        rows = [(ratio, c, stride if i == 0 else 1) for ratio, c, depth, stride in STAGES for i in range(depth)]
        steps = atrous_steps((2, *(stride for _, _, stride in rows), 1), output_stride)
        layers: list[nn.Module] = [ConvNorm(in_channels, 32, 3, steps[0], activation=nn.ReLU6)]
        channels = [32]
        for (ratio, out_channels, _), step in zip(rows, steps[1:-1], strict=True):
            expanded = ratio * channels[-1]
            layers.append(
                InvertedResidual(
                    channels[-1], out_channels, step, kernel_size=3, expanded=expanded, activation=nn.ReLU6
                )
            )
            channels.append(out_channels)
        layers.append(ConvNorm(channels[-1], 1280, activation=nn.ReLU6))
        self.assemble(layers, [*channels, 1280], steps)
        self.init_weights()
        self.load(weights)

    def classifier(self, num_classes: int) -> nn.Module:
        return PooledClassifier(nn.Sequential(nn.Dropout(0.2), small_linear(self.channels[-1], num_classes)))

    def convert_state_dict(self, state: StateDict) -> StateDict:
        """A block is `conv` there, and its last convolution and norm lie flat in it instead of as a pair."""
        names: dict[str, str] = {}
        for place, layer in enumerate(self.features):
            if isinstance(layer, InvertedResidual):
                theirs, ours, last = f"features.{place}.conv", f"features.{place}.block", len(layer.block) - 1
                names |= {f"{theirs}.{i}.{j}": f"{ours}.{i}.{j}" for i in range(last) for j in (0, 1)}
                names |= {f"{theirs}.{last + j}": f"{ours}.{last}.{j}" for j in (0, 1)}
        return rename_layers(state, names)
