"""Multi-Scale Context Aggregation by Dilated Convolutions (DilatedNet). Yu, Koltun 2015, arXiv:1511.07122.

A front end scores the last map at output stride 8, and the context module refines those scores by 3x3 convolutions
whose dilation doubles; it is initialised to the identity. As in the paper, VGG keeps fc6 and fc7 as convolutions, and
its pools 4 and 5 are removed. AlexNet and ZFNet also keep fc6 and fc7; on them, as on all other backbones, strides are
traded for dilation. The context module's dilations count values of the map, whatever the output stride. `--staged`
trains the front end first, then the context module on it. Differences from the paper: layers are zero-padded unless
`padding` is "reflect"; biases learn at twice the rate of the weights only with `--bias-lr-mult 2`; in the second stage
of `--staged` the backbone is frozen but the 1x1 score layer is still trained. The paper does not give the widths of the
large module's extra layers in the ten-layer form; here they are as wide as layer 6.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from heads.deeplabv1 import init_score
from heads.head import Head, last

NOISE = 1e-2
"""Standard deviation of a layer's initial noise, relative to its centre taps, as in the authors' code."""
MARGIN = 192
"""Pixels of the mirrored border; a multiple of every output stride, so that maps keep their grid. The paper: 186."""


class Layer(NamedTuple):
    """One row of the paper's table 1."""

    kernel_size: int
    dilation: int
    large: int
    """Channels in the large module, in multiples of the classes; the basic module has 1 throughout."""


FRONT = (Layer(3, 1, 2), Layer(3, 1, 2), Layer(3, 2, 4), Layer(3, 4, 8), Layer(3, 8, 16))
BACK = (Layer(3, 1, 32), Layer(1, 1, 1))

FORMS: dict[int, tuple[Layer, ...]] = {
    7: (*FRONT, *BACK),  # KITTI
    8: (*FRONT, Layer(3, 16, 32), *BACK),  # Pascal VOC, CamVid
    10: (*FRONT, Layer(3, 16, 32), Layer(3, 32, 32), Layer(3, 64, 32), *BACK),  # Cityscapes
}


class DilatedNet(Head):
    """Front end and context module; logits at the last map's stride.

    Args:
        context: "basic" has `num_classes` channels in each layer, "large" up to 32 times as many, "none" is the front
            end alone.
        init: of the context module: "identity", or "random" for a normal distribution by He et al. 2015; in the paper,
            random initial values do not help (section 3).
        layers: number of layers of the context module: 8 for VOC, 10 for Cityscapes, 7 for KITTI.
        padding: "zeros" at every layer; "reflect" also mirrors the image outwards by 192 pixels before the backbone.
            No score sees zeros then if the network's receptive field is at most 385 pixels: that holds for the front
            end of VGG (380) and small MobileNets, but not for ResNet-50 (427), and for none with the context module.
    """

    output_stride = 8
    backbone_options = {"fully_convolutional": True, "remove_pools": True}
    stages = ({"head_options": {"context": "none"}}, {"freeze_backbone": True})

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        *,
        context: Literal["none", "basic", "large"] = "basic",
        init: Literal["identity", "random"] = "identity",
        layers: Literal[7, 8, 10] = 8,
        padding: Literal["zeros", "reflect"] = "zeros",
    ) -> None:
        super().__init__(reductions, [last(reductions)])
        if padding not in ("zeros", "reflect"):
            raise ValueError(f"dilatednet has padding=zeros or padding=reflect, not padding={padding}")
        if init not in ("identity", "random"):
            raise ValueError(f"dilatednet has init=identity or init=random, not init={init}")
        if padding == "reflect":
            self.mirror_before = MARGIN
        self.score = init_score(nn.Conv2d(channels[-1], num_classes, 1))
        self.context: nn.Module = nn.Identity()
        if context != "none":
            self.context = context_module(num_classes, context, layers)
            if init == "random":
                self.context.apply(init_random)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.context(self.score(features[-1]))


def context_module(num_classes: int, width: str, layers: int) -> nn.Sequential:
    """`(B, num_classes, H, W)` -> the same shape: a ReLU after each layer but the last.

    Raises:
        ValueError: there is no such width or number of layers.
    """
    if width not in ("basic", "large"):
        raise ValueError(f"dilatednet has context=none, basic or large, not context={width}")
    if layers not in FORMS:
        raise ValueError(f"dilatednet's context has layers={', '.join(map(str, FORMS))}, not layers={layers}")
    modules: list[nn.Module] = []
    before = num_classes
    for kernel_size, dilation, large in FORMS[layers]:
        after = num_classes * (large if width == "large" else 1)
        padding = dilation * (kernel_size // 2)
        convolution = nn.Conv2d(before, after, kernel_size, padding=padding, dilation=dilation)
        modules += [init_identity(convolution, num_classes), nn.ReLU(inplace=True)]
        before = after
    return nn.Sequential(*modules[:-1])


def init_random(layer: nn.Module) -> None:
    """He et al. 2015, arXiv:1502.01852: variance 2 / fan-in, zero biases."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)


def init_identity(layer: nn.Conv2d, num_classes: int) -> nn.Conv2d:
    """Initialise to the identity of `num_classes` maps, each spread evenly over neighbouring channels (equation 5).

    The ReLUs between such layers leave non-negative values unchanged. `NOISE` breaks the symmetry between channels that
    would otherwise learn the same weights.
    """
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    tap = num_classes / layer.out_channels
    nn.init.normal_(layer.weight, 0, NOISE * tap)
    source = torch.arange(layer.in_channels) * num_classes // layer.in_channels
    target = torch.arange(layer.out_channels) * num_classes // layer.out_channels
    centre = layer.kernel_size[0] // 2
    same = target[:, None] == source
    with torch.no_grad():
        here = layer.weight[:, :, centre, centre]
        here.copy_(torch.where(same.to(here.device), tap, here))
    return layer
