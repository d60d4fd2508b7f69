"""Gradient-Based Learning Applied to Document Recognition. LeCun, Bottou, Bengio, Haffner 1998, Proc. IEEE 86(11).

LeNet-5; weights are drawn uniformly within 2.4 / fan-in. Three parts of the paper's network are options, and all three
together give its 60,000 trainable parameters with one channel and ten classes:

- `c3`: "full" lets C3 read all six maps of S2, "table" the 60 of 96 connections of the paper's table I.
- `subsampling`: "average", or "trainable" for S2 and S4 that multiply the sum of four pixels by a coefficient and add a
  bias, one of each per map, before the non-linearity.
- `output`: "linear", or "rbf" for the negative squared distances of F6 to fixed codes of +1 and -1, for the usual
  cross-entropy. (The paper's criterion, equation 9, adds a constant to the sum in the softmax.) The codes of the first
  ten classes are drawings of the digits on 7 x 12 pixels; those of further classes are random, as section II.B allows.

The defaults are the network as it is mostly built today, with 61,706 parameters. No weights are published.

The paper's images are 32 x 32 pixels, with the digits centred: pad MNIST's 28 x 28 by two pixels on each side to get
them. Images of other sizes work too: a map S4 that is not 5 x 5 is average-pooled to 5 x 5 (MNIST's unpadded images
give 4 x 4).
"""

from typing import Literal

import torch
from torch import Tensor, nn

from backbones.atrous import atrous_steps
from backbones.backbone import Backbone
from backbones.fully_connected import pool_to

TABLE = (
    *(tuple((first + i) % 6 for i in range(3)) for first in range(6)),
    *(tuple((first + i) % 6 for i in range(4)) for first in range(6)),
    *((first, first + 1, (first + 3) % 6, (first + 4) % 6) for first in range(3)),
    tuple(range(6)),
)
"""The maps of S2 that each map of C3 reads (table I)."""

DIGITS = (
    (0x0E, 0x11, 0x13, 0x15, 0x19, 0x11, 0x0E),
    (0x04, 0x0C, 0x04, 0x04, 0x04, 0x04, 0x0E),
    (0x0E, 0x11, 0x01, 0x02, 0x04, 0x08, 0x1F),
    (0x1F, 0x02, 0x04, 0x02, 0x01, 0x11, 0x0E),
    (0x02, 0x06, 0x0A, 0x12, 0x1F, 0x02, 0x02),
    (0x1F, 0x10, 0x1E, 0x01, 0x01, 0x11, 0x0E),
    (0x06, 0x08, 0x10, 0x1E, 0x11, 0x11, 0x0E),
    (0x1F, 0x01, 0x02, 0x04, 0x08, 0x08, 0x08),
    (0x0E, 0x11, 0x11, 0x0E, 0x11, 0x11, 0x0E),
    (0x0E, 0x11, 0x11, 0x0F, 0x01, 0x02, 0x0C),
)
"""Seven rows of five pixels for each digit, a bit for a pixel."""


class LeNet(Backbone):
    """LeNet-5: two maps, S2 at stride 2 and S4 at stride 4. `output_stride` changes nothing, because both are finer.

    Raises:
        ValueError: an option has a value that is not described above.
    """

    input_size = 32
    min_size = 16
    cropped_pixels = 12
    first_centres = (2.5, 7.5)

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        c3: Literal["full", "table"] = "full",
        subsampling: Literal["average", "trainable"] = "average",
        output: Literal["linear", "rbf"] = "linear",
    ) -> None:
        super().__init__(variant)
        check_options(c3, subsampling, output)
        pool = TrainablePool if subsampling == "trainable" else AveragePool
        self.output = output
        s2, s4 = atrous_steps((2, 2), output_stride)
        self.c1 = nn.Conv2d(in_channels, 6, 5)
        self.s2 = pool(6, s2.stride)
        self.c3 = TableConv() if c3 == "table" else nn.Conv2d(6, 16, 5)
        self.s4 = pool(16, s4.stride)
        self.activation = ScaledTanh()
        self.channels = (6, 16)
        self.reductions = (s2.reduction, s4.reduction)
        init_uniform(self)
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        s2 = self.s2(self.activation(self.c1(x)))
        s4 = self.s4(self.activation(self.c3(s2)))
        return [s2, s4]

    def classifier(self, num_classes: int) -> nn.Module:
        return Classifier(num_classes, self.output)


def check_options(c3: str, subsampling: str, output: str) -> None:
    for name, value, known in (
        ("c3", c3, ("full", "table")),
        ("subsampling", subsampling, ("average", "trainable")),
        ("output", output, ("linear", "rbf")),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; give {' or '.join(known)}")


class AveragePool(nn.AvgPool2d):
    """Average of 2x2 pixels; built like `TrainablePool`."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(2, stride)


class TrainablePool(nn.Module):
    """The paper's subsampling: `(B, C, H, W)` -> `(B, C, H / stride, W / stride)`, squashed by the scaled tanh."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2, stride)
        self.coefficient = nn.Parameter(torch.empty(channels, 1, 1).uniform_(-0.6, 0.6))  # 2.4 / fan-in of four
        self.bias = nn.Parameter(torch.empty(channels, 1, 1).uniform_(-0.6, 0.6))
        self.activation = ScaledTanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(4 * self.pool(x) * self.coefficient + self.bias)


class TableConv(nn.Module):
    """C3 with the connections of `TABLE`: `(B, 6, H, W)` -> `(B, 16, H - 4, W - 4)`."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Conv2d(len(read), 1, 5) for read in TABLE)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(x[:, list(read)]) for conv, read in zip(self.maps, TABLE, strict=True)], 1)


class RadialBasis(nn.Module):
    """Negative squared Euclidean distances to fixed codes: `(B, 84)` -> `(B, num_classes)`."""

    codes: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("codes", class_codes(num_classes).to(torch.empty(0).device))

    def forward(self, x: Tensor) -> Tensor:
        return -(x[:, None] - self.codes).square().sum(-1)


def class_codes(num_classes: int) -> Tensor:
    """Codes `(num_classes, 84)` of +1 and -1, the same in every run."""
    bits = [[[row >> column & 1 for column in range(4, -1, -1)] for row in digit] for digit in DIGITS]
    small = torch.tensor(bits, device="cpu")
    rows, columns = torch.tensor((1, 2, 2, 2, 2, 2, 1), device="cpu"), torch.tensor((2, 1, 1, 1, 2), device="cpu")
    drawn = small.repeat_interleave(rows, 1).repeat_interleave(columns, 2).flatten(1)
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(0, 2, (max(0, num_classes - len(drawn)), 84), generator=generator, device="cpu")
    return (2 * torch.cat([drawn, random])[:num_classes] - 1).float()


class Classifier(nn.Module):
    """C5, F6 and the output layer: `(B, 16, H, W)` -> `(B, num_classes)`."""

    def __init__(self, num_classes: int, output: str) -> None:
        super().__init__()
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.output = RadialBasis(num_classes) if output == "rbf" else nn.Linear(84, num_classes)
        self.activation = ScaledTanh()
        init_uniform(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.c5(pool_to(x, 5))).flatten(1)
        return self.output(self.activation(self.f6(x)))


class ScaledTanh(nn.Module):
    """1.7159 tanh(2x / 3): maps 1 to 1 and -1 to -1 (appendix A)."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(x * (2 / 3))


def init_uniform(network: nn.Module) -> None:
    """All weights and biases uniform within 2.4 / fan-in (appendix A)."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            bound = 2.4 / module.weight[0].numel()
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -bound, bound)
