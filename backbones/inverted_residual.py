"""What MobileNetV2, MobileNetV3 and the EfficientNets share: inverted residual blocks and the network around them.

The block is that of MobileNetV2 (Sandler, Howard, Zhu, Zhmoginov, Chen 2018, arXiv:1801.04381): widen by 1x1, filter
each channel by itself, narrow by a 1x1 without activation, and add the input if the shape is the same. Squeeze-and-
excitation before the narrowing was added by MnasNet and MobileNetV3. Modules are nested as in torchvision's MobileNetV3
and EfficientNet, so that parameter names agree.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from backbones.atrous import Step
from backbones.backbone import Backbone
from backbones.state_dicts import StateDict

PLAIN = Step(stride=1, dilation=1, dilation_after=1, reduction=1)
"""For 1x1 convolutions: stride 1, no dilation."""


def check_width(width: float, *, least: float = 0.0) -> float:
    """The width multiplier, refused unless it is positive and at least `least`, below which a layer has no channel."""
    if width <= 0 or width < least:
        raise ValueError(f"width is {width:g}; it multiplies all channels, give a number above 0, at least {least:g}")
    return width


def make_divisible(channels: float) -> int:
    """Round to the nearest multiple of 8, or to the one above if that would lose more than 10 % of the channels."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


def centred_conv(in_channels: int, out_channels: int, kernel_size: int, step: Step, groups: int) -> nn.Conv2d:
    """Convolution padded by the same number of pixels on all sides."""
    padding = step.dilation * (kernel_size // 2)
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, step.stride, padding, step.dilation, groups=groups, bias=False
    )


class ConvNorm(nn.Sequential):
    """Convolution (0), batch norm (1) and, if one is given, activation (2)."""

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
    """A sequence of layers, with a residual connection if they keep the input's shape in the undilated network.

    With a residual connection, the layers are dropped in training with probability `drop` (stochastic depth). `se` is a
    gate on what they compute.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        in_channels: int,
        out_channels: int,
        step: Step,
        drop: float = 0.0,
        se: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.block = nn.Sequential(*layers)
        self.se = nn.Identity() if se is None else se
        # A block whose stride was replaced by dilation was trained without the shortcut.
        self.has_shortcut = step.native_stride == 1 and in_channels == out_channels
        self.stochastic_depth = StochasticDepth(drop, "row")

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(self.block(x))
        return x + self.stochastic_depth(y) if self.has_shortcut else y


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
        se: nn.Module | None = None,
        drop: float = 0.0,
    ) -> None:
        layers: list[nn.Module] = []
        if expanded != in_channels:
            layers.append(unit(in_channels, expanded, activation=activation))
        layers.append(unit(expanded, expanded, kernel_size, step, groups=expanded, activation=activation))
        if gate is not None:
            layers.append(gate)
        layers.append(unit(expanded, out_channels))
        super().__init__(layers, in_channels, out_channels, step, drop, se)


class InvertedResidualNet(Backbone):
    """A stem, blocks (or stages of them) and a 1x1 head in `features`.

    The maps are the last output at each stride, just before the next strided layer, and finally the output of the 1x1
    head. In the undilated network the finest has stride 2; the coarsest, with stride 32, is what the published
    classifier pools.
    """

    features: nn.Sequential
    taps: tuple[int, ...]
    """Indices in `features` of the layers whose outputs are the maps."""

    def assemble(self, layers: Sequence[nn.Module], channels: Sequence[int], steps: Sequence[Step]) -> None:
        """Build `features` and describe its maps, given each layer's output channels and step."""
        last = len(layers) - 1
        self.features = nn.Sequential(*layers)
        self.taps = (*(i for i in range(last) if steps[i + 1].native_stride > 1), last)
        self.channels = tuple(channels[i] for i in self.taps)
        self.reductions = tuple(steps[i].reduction for i in self.taps)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for place, layer in enumerate(self.features):
            x = layer(x)
            if place in self.taps:
                maps.append(x)
        return maps


def small_linear(in_features: int, out_features: int) -> nn.Linear:
    """Linear layer initialised as in torchvision's MobileNets: N(0, 0.01), zero bias."""
    linear = nn.Linear(in_features, out_features)
    nn.init.normal_(linear.weight, 0, 0.01)
    nn.init.zeros_(linear.bias)
    return linear


def rename_layers(state: StateDict, names: dict[str, str]) -> StateDict:
    """Rename the parameters of the layers in `names`, old name -> new; strict loading reports names of neither kind."""
    renamed = {}
    for key, value in state.items():
        layer, _, parameter = key.rpartition(".")
        renamed[f"{names[layer]}.{parameter}" if layer in names else key] = value
    return renamed
