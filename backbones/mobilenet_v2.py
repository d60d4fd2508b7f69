"""MobileNetV2: Inverted Residuals and Linear Bottlenecks. Sandler et al. 2018, arXiv:1801.04381.

`width` is the paper's width multiplier (1.4, 1.0, 0.75, 0.5 and 0.35 there); channels are rounded to multiples of 8,
and the last 1x1 convolution never has fewer than 1280. `se_reduction` puts a squeeze-and-excitation gate on each
block's output, before the sum. No deliberate difference from the paper. The paper gives no initialisation; convolutions
are initialised by He et al. 2015 (fan out), as in torchvision. Loads torchvision's checkpoint, with the layers inside a
block renamed to match MobileNetV3 and EfficientNet.
"""

from torch import nn

from backbones.atrous import atrous_steps
from backbones.backbone import changes
from backbones.classifiers import PooledClassifier
from backbones.inverted_residual import (
    ConvNorm,
    InvertedResidual,
    InvertedResidualNet,
    check_width,
    make_divisible,
    rename_layers,
    small_linear,
)
from backbones.squeeze_excitation import SqueezeExcitation, make_gate
from backbones.state_dicts import StateDict

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""The paper's table 2: expansion, channels, blocks and first stride of each stage."""


class MobileNetV2(InvertedResidualNet):
    """MobileNetV2; maps at strides 2, 4, 8, 16 from its blocks and at 32 from its 1x1 head."""

    optional_modules = (SqueezeExcitation,)

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        width: float = 1.0,
        se_reduction: int = 0,
    ) -> None:
        super().__init__(variant)
        self.changed_options = changes(width=(check_width(width), 1.0))
        rows = [
            (ratio, make_divisible(c * width), stride if i == 0 else 1)
            for ratio, c, depth, stride in STAGES
            for i in range(depth)
        ]
        stem, head = make_divisible(32 * width), make_divisible(1280 * max(1.0, width))
        steps = atrous_steps((2, *(stride for _, _, stride in rows), 1), output_stride)
        layers: list[nn.Module] = [ConvNorm(in_channels, stem, 3, steps[0], activation=nn.ReLU6)]
        channels = [stem]
        for (ratio, out_channels, _), step in zip(rows, steps[1:-1], strict=True):
            expanded = ratio * channels[-1]
            layers.append(
                InvertedResidual(
                    channels[-1],
                    out_channels,
                    step,
                    kernel_size=3,
                    expanded=expanded,
                    activation=nn.ReLU6,
                    se=make_gate(out_channels, se_reduction),
                )
            )
            channels.append(out_channels)
        layers.append(ConvNorm(channels[-1], head, activation=nn.ReLU6))
        self.assemble(layers, [*channels, head], steps)
        self.init_weights()
        self.load(weights)

    def classifier(self, num_classes: int) -> nn.Module:
        return PooledClassifier(
            "classifier", nn.Sequential(nn.Dropout(0.2), small_linear(self.channels[-1], num_classes))
        )

    def convert_state_dict(self, state: StateDict) -> StateDict:
        """In the published file a block is named `conv`, and its last convolution and norm are not grouped."""
        names: dict[str, str] = {}
        for place, layer in enumerate(self.features):
            if isinstance(layer, InvertedResidual):
                theirs, ours, last = f"features.{place}.conv", f"features.{place}.block", len(layer.block) - 1
                names |= {f"{theirs}.{i}.{j}": f"{ours}.{i}.{j}" for i in range(last) for j in (0, 1)}
                names |= {f"{theirs}.{last + j}": f"{ours}.{last}.{j}" for j in (0, 1)}
        return rename_layers(state, names)
