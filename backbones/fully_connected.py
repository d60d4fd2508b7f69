"""The layers fc6, fc7 and output of AlexNet, ZFNet and VGG: over a map of one size, or as convolutions over any map.

A linear layer over a whole map is a convolution with a kernel as large as the map (Long, Shelhamer, Darrell 2014,
arXiv:1411.4038, section 3.1). With `fully_convolutional`, fc6 and fc7 become layers of the backbone and their map of
4096 channels replaces its last one; the classifier that is left is one 1x1 layer of scores. Weights of either form load
into the other: they are reshaped.
"""

from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.backbone import Backbone
from backbones.state_dicts import StateDict

HIDDEN = 4096
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class FullyConnectedBackbone(Backbone):
    """Base of the backbones that end in fc6, fc7 and an output layer.

    Subclasses call `add_fully_connected` after building and initialising their layers, and apply `self.fully_connected`
    to the last map in `forward`.
    """

    window: ClassVar[int]
    """Side of the last map at the published image size, which is what fc6 covers."""
    hidden_bias: ClassVar[float] = 0.0
    """Initial value of the biases of fc6 and fc7."""
    dropout_first: bool = False
    """Whether dropout precedes fc6 and fc7 instead of following each."""

    def add_fully_connected(self, fully_convolutional: bool, dilation: int) -> None:
        """With `fully_convolutional`, append fc6 and fc7 as convolutions; otherwise leave the last map unchanged.

        Args:
            dilation: how many times denser the last map is than in the strided network.
        """
        self.fully_convolutional = fully_convolutional
        # If the window is even, the larger half of its padding goes at the top and left, because unpadded pools and
        # even-sized convolutions have shifted the map towards the bottom and right.
        self.margins = (self.window // 2 * dilation, (self.window - 1) // 2 * dilation)
        self.fully_connected: nn.Module = nn.Identity()
        if fully_convolutional:
            self.fully_connected = ConvolutionalFc6Fc7(
                self.channels[-1], self.window, dilation, self.margins, self.dropout_first, self.hidden_bias
            )
            self.channels = (*self.channels[:-1], HIDDEN)

    def classifier(self, num_classes: int) -> nn.Module:
        if self.fully_convolutional:
            return DenseScores(num_classes, self.margins)
        return self._linear_layers(num_classes)

    def region_layers(self) -> nn.Module | None:
        return None if self.fully_convolutional else self._linear_layers(0)

    def _linear_layers(self, num_classes: int) -> "FullyConnected":
        return FullyConnected(self.channels[-1], self.window, num_classes, self.dropout_first, self.hidden_bias)

    def convert_state_dict(self, state: StateDict) -> StateDict:
        """Reshape linear layers to convolutions if this network has those, and convolutions to linear layers if not."""
        fc6, fc7, output = linear_positions(self.dropout_first)
        converted = dict(state)
        for linear, convolution, kernel in (
            (f"classifier.{fc6}", "fully_connected.fc6", self.window),
            (f"classifier.{fc7}", "fully_connected.fc7", 1),
            (f"classifier.{output}", "score", 1),
        ):
            source, target = (linear, convolution) if self.fully_convolutional else (convolution, linear)
            weight, bias = state.get(f"{source}.weight"), state.get(f"{source}.bias")
            if weight is None or bias is None:
                continue
            if self.fully_convolutional:
                # Layers of another shape keep their names, and strict loading reports them.
                if weight.ndim != 2 or weight.shape[1] % kernel**2:
                    continue
                weight = weight.reshape(len(weight), -1, kernel, kernel)
            else:
                weight = weight.flatten(1)
            del converted[f"{source}.weight"], converted[f"{source}.bias"]
            converted |= {f"{target}.weight": weight, f"{target}.bias": bias}
        return converted


def linear_positions(dropout_first: bool) -> tuple[int, int, int]:
    """Where fc6, fc7 and the output layer stand in the published Sequential."""
    return (1, 4, 6) if dropout_first else (0, 3, 6)


class FullyConnected(nn.Module):
    """`(B, C, H, W)` -> `(B, num_classes)`: averaged to the window's size unless it has that size, then linear.

    Without classes, fc7 is the result, `(B, 4096)`.
    """

    channels = HIDDEN

    def __init__(self, channels: int, side: int, num_classes: int, dropout_first: bool, hidden_bias: float) -> None:
        super().__init__()
        self.side = side
        self.pool: nn.Module = nn.Identity()
        fc6 = init_normal(nn.Linear(channels * side**2, HIDDEN), hidden_bias)
        fc7 = init_normal(nn.Linear(HIDDEN, HIDDEN), hidden_bias)
        if dropout_first:
            layers = [nn.Dropout(0.5), fc6, nn.ReLU(inplace=True), nn.Dropout(0.5), fc7, nn.ReLU(inplace=True)]
        else:
            layers = [fc6, nn.ReLU(inplace=True), nn.Dropout(0.5), fc7, nn.ReLU(inplace=True), nn.Dropout(0.5)]
        output = [init_normal(nn.Linear(HIDDEN, num_classes))] if num_classes else []
        self.classifier = nn.Sequential(*layers, *output)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(pool_to(self.pool(x), self.side).flatten(1))


def pool_to(x: Tensor, side: int) -> Tensor:
    """Average a map `(B, C, H, W)` to `(B, C, side, side)`, or leave it if it has that size.

    The gradient of adaptive pooling has no deterministic form on GPUs, so `--deterministic` refuses other sizes there.
    """
    if torch.compiler.is_exporting():  # an exported graph is to serve any size, and ONNX has no adaptive pooling
        rows, columns = (bin_averages(length, side, x) for length in x.shape[2:])
        return rows @ x @ columns.transpose(0, 1)
    return F.adaptive_avg_pool2d(x, side) if x.shape[2:] != (side, side) else x


def bin_averages(length: int, bins: int, like: Tensor) -> Tensor:
    """The matrix `(bins, length)` that averages `length` values, which may be symbolic, to adaptive pooling's bins."""
    bin_index = torch.arange(bins, device=like.device)[:, None]
    first = bin_index * length // bins
    end = ((bin_index + 1) * length + bins - 1) // bins
    position = torch.arange(length, device=like.device)
    inside = (position >= first) & (position < end)
    return inside.to(like.dtype) / (end - first).to(like.dtype)


class ConvolutionalFc6Fc7(nn.Module):
    """fc6 and fc7 as convolutions: `(B, C, H, W)` -> `(B, 4096, H, W)`, zero-padded by `margins`."""

    def __init__(
        self,
        channels: int,
        window: int,
        dilation: int,
        margins: tuple[int, int],
        dropout_first: bool,
        hidden_bias: float,
    ) -> None:
        super().__init__()
        self.padding = (*margins, *margins)
        self.dropout_first = dropout_first
        self.fc6 = init_normal(nn.Conv2d(channels, HIDDEN, window, dilation=dilation), hidden_bias)
        self.fc7 = init_normal(nn.Conv2d(HIDDEN, HIDDEN, 1), hidden_bias)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.dropout_first:
            x = self.dropout(x)
        x = F.relu(self.fc6(F.pad(x, self.padding)))
        x = F.relu(self.fc7(self.dropout(x)))
        return x if self.dropout_first else self.dropout(x)


class DenseScores(nn.Module):
    """`(B, 4096, H, W)` -> `(B, num_classes)`: the mean score of all windows that lie wholly inside the map.

    At the published image size there is exactly one such window, and the result equals that of the fully connected
    classifier. Larger images are scored densely, as in the VGG paper (section 3.2); for a map smaller than the window,
    the score at its centre is used.
    """

    def __init__(self, num_classes: int, margins: tuple[int, int]) -> None:
        super().__init__()
        self.margins = margins
        self.score = init_normal(nn.Conv2d(HIDDEN, num_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        before, after = self.margins
        # Sizes may be symbolic, hence sym_min.
        rows = slice(torch.sym_min(before, h // 2), h - torch.sym_min(after, (h - 1) // 2))
        columns = slice(torch.sym_min(before, w // 2), w - torch.sym_min(after, (w - 1) // 2))
        # Scores are linear: the mean of the scores is the score of the mean.
        return self.score(x[:, :, rows, columns].mean((2, 3), keepdim=True)).flatten(1)


def init_normal(layer: Layer, bias: float = 0.0) -> Layer:
    """Draw weights from N(0, 0.01) as in all three papers, and set all biases to one constant."""
    nn.init.normal_(layer.weight, 0, 0.01)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, bias)
    return layer
