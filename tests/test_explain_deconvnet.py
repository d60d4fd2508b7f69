"""explain.py's deconvnet against projections that are written out by hand."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.backbone import Backbone
from experiments.explaining.deconvnet import projection, strongest_place
from experiments.explaining.receptive_fields import theory_of
from experiments.explaining.recording import record
from tests.explained_networks import Bare, bare

CHAINS = {
    "vgg11": 64,
    "vgg11_bn": 64,
    "alexnet": 71,
    "alexnet_2gpu": 71,
    "zfnet": 61,
    "lenet5": 32,
    "unet_encoder": 32,
    "mobilenet_v1": 64,
}
"""Plain chains of layers, with a size of pictures that suits them."""


# ---- deconvnet


class TwoLayers(Backbone):
    """Convolution, rectifier, overlapping max pool, strided convolution, rectifier; one map."""

    def __init__(self) -> None:
        super().__init__("two_layers")
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 2)
        self.conv2 = nn.Conv2d(4, 5, 3, 2)
        self.channels, self.reductions = (5,), (4,)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.pool(F.relu(self.conv1(x), inplace=True))
        return [torch.relu(self.conv2(x))]


def transposed_by_hand(values: np.ndarray, weight: np.ndarray, shape: tuple[int, ...], stride: int, pad: int) -> Any:
    """Each value (C', h, w) spreads its filter (C', C, k, k) over the pixels that it was computed from."""
    channels, height, width = shape
    side = weight.shape[2]
    out = np.zeros((channels, height + 2 * pad, width + 2 * pad))
    for unit, row, column in np.argwhere(values):
        box = np.s_[:, row * stride : row * stride + side, column * stride : column * stride + side]
        out[box] += values[unit, row, column] * weight[unit]
    return out[:, pad : pad + height, pad : pad + width]


def test_a_projection_is_the_one_written_out_by_hand() -> None:
    backbone = TwoLayers().requires_grad_(False)
    x = torch.randn(1, 3, 17, 21)
    recording = record(Bare(backbone), x)
    assert not recording.refusal
    name, layer = recording.layer(None)
    assert name == "conv2"
    unit = 3
    row, column = strongest_place(layer, unit)
    found = projection(recording, layer, unit, (row, column))[0].numpy()

    rectified = F.relu(backbone.conv1(x))[0].numpy()
    pooled = F.max_pool2d(torch.from_numpy(rectified), 3, 2).numpy()
    top = np.zeros(layer.shape[1:])
    top[unit, row, column] = layer[0, unit, row, column]
    below = transposed_by_hand(top, backbone.conv2.weight.numpy(), pooled.shape, 2, 0)
    unpooled = np.zeros_like(rectified)
    for channel, i, j in np.argwhere(below):
        window = rectified[channel, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        switch_row, switch_column = np.unravel_index(window.argmax(), window.shape)
        unpooled[channel, 2 * i + switch_row, 2 * j + switch_column] += below[channel, i, j]
    expected = transposed_by_hand(unpooled.clip(min=0), backbone.conv1.weight.numpy(), (3, 17, 21), 1, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    (gradient,) = torch.autograd.grad(
        Bare(backbone)(x.requires_grad_())[0, unit, row, column], x
    )  # the rectifier goes back otherwise than a derivative does
    assert np.abs(gradient[0].numpy() * float(layer[0, unit, row, column]) - expected).max() > 1e-3


@pytest.mark.parametrize("backbone", CHAINS)
def test_every_plain_chain_is_projected_inside_the_receptive_field(backbone: str) -> None:
    size = CHAINS[backbone]
    network, x = bare(backbone), torch.randn(1, 3, size, size + 8)
    with torch.no_grad():
        recording = record(network, x)
        assert not recording.refusal
        assert [step.operation for step in recording.steps].count("conv2d") >= 2
        _, layer = recording.layer("1")
        unit = int(layer[0].flatten(1).amax(1).argmax())
        place = strongest_place(layer, unit)
        found = projection(recording, layer, unit, place)[0]
    assert found.shape == x.shape[1:]
    top, bottom, left, right = theory_of(network, x, "1").box(*place)
    inside = found[:, max(0, top) : bottom + 1, max(0, left) : right + 1]
    assert inside.abs().sum() > 0
    assert inside.abs().sum() == pytest.approx(float(found.abs().sum()), rel=1e-6)


@pytest.mark.parametrize(
    ("backbone", "reason"),
    [
        ("resnet18", "layer1.0 joins several maps"),
        ("mobilenet_v2", "joins several maps"),
        ("googlenet", "reads a map that another layer has read"),
        ("densenet121", "denselayer1 computes cat, which has no way back"),
        ("swin_t", "has no way back"),
    ],
)
def test_networks_with_branches_are_refused_with_the_place(backbone: str, reason: str) -> None:
    with torch.no_grad():
        assert reason in record(bare(backbone), torch.randn(1, 3, 64, 64)).refusal
