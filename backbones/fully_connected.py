"""The layers fc6, fc7 and output of AlexNet, ZFNet and VGG: over a map of one size, or as convolutions over any map.

A linear layer over a whole map is a convolution with a kernel as large as the map (Long, Shelhamer, Darrell 2014,
arXiv:1411.4038, section 3.1). With `fully_convolutional`, fc6 and fc7 become layers of the backbone and their map of
4096 channels replaces its last one; the classifier that is left is one 1x1 layer of scores. Published weights fit both
ways: they are reshaped.
"""

from typing import ClassVar, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.backbone import Backbone
from backbones.state_dicts import StateDict

HIDDEN = 4096
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class FullyConnectedBackbone(Backbone):
    """Base of the backbones that end in fc6, fc7 and an output layer.

    Subclasses call `connect` once their layers stand and are initialised, and `self.fully_connected` on the last map.
    """

    window: ClassVar[int]
    """Side of the last map at the published image size, which is what fc6 covers."""
    hidden_bias: ClassVar[float] = 0.0
    """What the biases of fc6 and fc7 start at."""
    dropout_first: bool = False
    """Dropout stands before fc6 and before fc7, not behind each."""

    def connect(self, fully_convolutional: bool, dilation: int) -> None:
        """End in fc6 and fc7 as convolutions, `dilation` being what the last map is denser by; or leave the map."""
        self.fully_convolutional = fully_convolutional
        # The larger half of an even window's padding goes in front: unpadded pools and convolutions of even size have
        # shifted the map's pixels towards the far side.
        self.margins = (self.window // 2 * dilation, (self.window - 1) // 2 * dilation)
        self.fully_connected: nn.Module = nn.Identity()
        if fully_convolutional:
            self.fully_connected = Convolutions(
                self.channels[-1], self.window, dilation, self.margins, self.dropout_first, self.hidden_bias
            )
            self.channels = (*self.channels[:-1], HIDDEN)

    def classifier(self, num_classes: int) -> nn.Module:
        if self.fully_convolutional:
            return DenseScores(num_classes, self.margins)
        return FullyConnected(self.channels[-1], self.window, num_classes, self.dropout_first, self.hidden_bias)

    def convert_state_dict(self, state: StateDict) -> StateDict:
        """With `fully_convolutional`, the published linear layers become convolutions."""
        if not self.fully_convolutional:
            return state
        fc6, fc7, output = linear_positions(self.dropout_first)
        renamed = dict(state)
        for position, name, kernel in (
            (fc6, "fully_connected.fc6", self.window),
            (fc7, "fully_connected.fc7", 1),
            (output, "score", 1),
        ):
            weight = state.get(f"classifier.{position}.weight")
            # Layers of another shape keep their names, and strict loading says so.
            if weight is not None and weight.ndim == 2 and weight.shape[1] % kernel**2 == 0:
                del renamed[f"classifier.{position}.weight"]
                renamed[f"{name}.weight"] = weight.reshape(len(weight), -1, kernel, kernel)
                renamed[f"{name}.bias"] = renamed.pop(f"classifier.{position}.bias")
        return renamed


def linear_positions(dropout_first: bool) -> tuple[int, int, int]:
    """Where fc6, fc7 and the output layer stand in the published Sequential."""
    return (1, 4, 6) if dropout_first else (0, 3, 6)


class FullyConnected(nn.Module):
    """`(B, C, H, W)` -> `(B, num_classes)`: pooled to the window's size where H and W differ from it, then linear."""

    def __init__(self, channels: int, window: int, num_classes: int, dropout_first: bool, hidden_bias: float) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(window)
        fc6 = init_normal(nn.Linear(channels * window**2, HIDDEN), hidden_bias)
        fc7 = init_normal(nn.Linear(HIDDEN, HIDDEN), hidden_bias)
        if dropout_first:
            layers = [nn.Dropout(0.5), fc6, nn.ReLU(inplace=True), nn.Dropout(0.5), fc7, nn.ReLU(inplace=True)]
        else:
            layers = [fc6, nn.ReLU(inplace=True), nn.Dropout(0.5), fc7, nn.ReLU(inplace=True), nn.Dropout(0.5)]
        self.classifier = nn.Sequential(*layers, init_normal(nn.Linear(HIDDEN, num_classes)))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(x).flatten(1))


class Convolutions(nn.Module):
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

    At the published image size there is one, and the result is the fully connected classifier's. Larger images are
    scored densely, as the VGG paper does (section 3.2); on a map smaller than the window the middle one counts.
    """

    def __init__(self, num_classes: int, margins: tuple[int, int]) -> None:
        super().__init__()
        self.margins = margins
        self.score = init_normal(nn.Conv2d(HIDDEN, num_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        before, after = self.margins
        rows = slice(min(before, h // 2), h - min(after, (h - 1) // 2))
        columns = slice(min(before, w // 2), w - min(after, (w - 1) // 2))
        # Scores are linear: the mean of the scores is the score of the mean.
        return self.score(x[:, :, rows, columns].mean((2, 3), keepdim=True)).flatten(1)


def init_normal(layer: Layer, bias: float = 0.0) -> Layer:
    """Weights N(0, 0.01) as in all three papers, one constant for the biases."""
    nn.init.normal_(layer.weight, 0, 0.01)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, bias)
    return layer
