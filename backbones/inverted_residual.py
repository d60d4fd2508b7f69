"""What MobileNetV2, MobileNetV3 and the EfficientNets share: inverted residuals and the frame around them.

The block is that of MobileNetV2 (Sandler, Howard, Zhu, Zhmoginov, Chen 2018, arXiv:1801.04381): widen by 1x1, filter
each channel by itself, narrow by a 1x1 without activation, and add the input where the shape is kept. Squeeze-and-
excitation before the narrowing came with MnasNet and MobileNetV3. Modules are nested as in torchvision's MobileNetV3
and EfficientNet, whose parameter names these are.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from backbones.atrous import Step
from backbones.backbone import Backbone
from backbones.state_dicts import StateDict

PLAIN = Step(stride=1, dilation=1, after=1, reduction=1)
"""For convolutions that neither stride nor reach: all 1x1."""


def rounded(channels: float) -> int:
    """The nearest multiple of 8, or the one above where that would lose more than 10 % of the channels."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


def native_stride(step: Step) -> int:
    """The stride a layer has in the undilated network, whether or not it was traded."""
    return step.stride * step.after // step.dilation


def centred_conv(in_channels: int, out_channels: int, kernel_size: int, step: Step, groups: int) -> nn.Conv2d:
    """Convolution padded by the same number of pixels on all sides."""
    padding = step.dilation * (kernel_size // 2)
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, step.stride, padding, step.dilation, groups=groups, bias=False
    )


class ConvNorm(nn.Sequential):
    """Convolution (0), batch norm (1) and, where one is given, activation (2)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        step: Step = PLAIN,
        *,
        groups: int = 1,
        activation: type[nn.Module] | None = None,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        conv: Callable[[int, int, int, Step, int], nn.Conv2d] = centred_conv,
    ) -> None:
        layers = [conv(in_channels, out_channels, kernel_size, step, groups), norm(out_channels)]
        if activation is not None:
            layers.append(activation(inplace=True))
        super().__init__(*layers)


class Residual(nn.Module):
    """Layers in a row, plus the input where they natively keep its shape; in training dropped with some probability."""

    def __init__(
        self, layers: Sequence[nn.Module], in_channels: int, out_channels: int, step: Step, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.block = nn.Sequential(*layers)
        # By the native stride: a block that traded it was trained without the shortcut.
        self.adds = native_stride(step) == 1 and in_channels == out_channels
        self.stochastic_depth = StochasticDepth(drop, "row")

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return x + self.stochastic_depth(y) if self.adds else y


class InvertedResidual(Residual):
    """1x1 widening (unless already `expanded` wide) - depthwise - gate (if any) - 1x1 narrowing."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        step: Step,
        *,
        kernel_size: int,
        expanded: int,
        activation: type[nn.Module],
        unit: Callable[..., ConvNorm] = ConvNorm,
        gate: nn.Module | None = None,
        drop: float = 0.0,
    ) -> None:
        layers: list[nn.Module] = []
        if expanded != in_channels:
            layers.append(unit(in_channels, expanded, activation=activation))
        layers.append(unit(expanded, expanded, kernel_size, step, groups=expanded, activation=activation))
        if gate is not None:
            layers.append(gate)
        layers.append(unit(expanded, out_channels))
        super().__init__(layers, in_channels, out_channels, step, drop)


class InvertedResidualNet(Backbone):
    """A stem, blocks (or stages of them) and a 1x1 head in `features`.

    The maps are what stands at each stride when the next layer strides again, and at last the head's output: so the
    finest map natively has stride 2, and the coarsest, of stride 32, is what the published classifier pools.
    """

    features: nn.Sequential
    taps: tuple[int, ...]
    """Places in `features` whose outputs are the maps."""

    def assemble(self, layers: Sequence[nn.Module], channels: Sequence[int], steps: Sequence[Step]) -> None:
        """Take over the layers, each with its output channels and its step."""
        last = len(layers) - 1
        self.features = nn.Sequential(*layers)
        self.taps = (*(i for i in range(last) if native_stride(steps[i + 1]) > 1), last)
        self.channels = tuple(channels[i] for i in self.taps)
        self.reductions = tuple(steps[i].reduction for i in self.taps)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for place, layer in enumerate(self.features):
            x = layer(x)
            if place in self.taps:
                maps.append(x)
        return maps


class PooledClassifier(nn.Module):
    """Global average pooling, then the layers published under the name `classifier`."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x.mean((2, 3)))


def small_linear(in_features: int, out_features: int) -> nn.Linear:
    """Linear layer started as torchvision's MobileNets are: normal of deviation 0.01, no bias."""
    linear = nn.Linear(in_features, out_features)
    nn.init.normal_(linear.weight, 0, 0.01)
    nn.init.zeros_(linear.bias)
    return linear


def rename_layers(state: StateDict, names: dict[str, str]) -> StateDict:
    """Put parameters under their layer's new name. Others keep theirs: ours pass, strict loading reports the rest."""
    renamed = {}
    for key, value in state.items():
        layer, _, parameter = key.rpartition(".")
        renamed[f"{names[layer]}.{parameter}" if layer in names else key] = value
    return renamed
