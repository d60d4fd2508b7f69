"""What is counted of a network or of some convolutions, without training: parameters, operations, receptive fields."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.analysis.receptive_field import traced
from lightning_modules.network import Network
from lightning_modules.shapes_only import ShapesOnly

CLASSES = 10
DEFAULT_SIZE = 64
"""Side of the images in pixels, if the claim names none."""


def measure_arm(measure: str, settings: Mapping[str, Any]) -> float:
    """A number of an arm.

    Args:
        measure: "params", "macs" (multiply-adds for one image), "field" (receptive field of one value of the last map,
            in pixels of a row) or "cover" (see `unevenness`).
        settings: those of run.py that make the network, and `classes`; or `convolutions`, see `stack`.

    Raises:
        ValueError: there is no such measure, or the settings make no network.
    """
    size = size_of(settings)
    with torch.device("meta"):
        layers = stack(settings) if "convolutions" in settings else network_of(settings)
    in_channels = settings.get("in_channels", 3)
    match measure:
        case "params":
            return sum(parameter.numel() for parameter in layers.parameters())
        case "macs":
            return multiply_adds(layers, size, in_channels)
        case "field":
            return field(layers, size, in_channels)
        case "cover":
            return unevenness(layers, size, in_channels)
    raise ValueError(f"no measure '{measure}'; there are params, macs, field and cover")


def size_of(settings: Mapping[str, Any]) -> tuple[int, int]:
    size = settings.get("image_size", DEFAULT_SIZE)
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


def network_of(settings: Mapping[str, Any]) -> Network:
    return Network(
        settings["backbone"],
        settings["head"],
        settings.get("classes", CLASSES),
        output_stride=settings.get("output_stride"),
        in_channels=settings.get("in_channels", 3),
        backbone_options=settings.get("backbone_options"),
        head_options=settings.get("head_options"),
        aux=bool(settings.get("aux_weight")),
    )


def stack(settings: Mapping[str, Any]) -> nn.Sequential:
    """Convolutions without bias that keep the map's size, one after the other.

    `convolutions` lists them: `kernel`, `channels`, and if they are not 1: `dilation`, `stride`, `groups`. `up` makes
    one transposed, with that stride and without padding.
    """
    before = settings.get("in_channels", 3)
    layers: list[nn.Module] = []
    for one in settings["convolutions"]:
        kernel, after, rate = one["kernel"], one.get("channels", before), one.get("dilation", 1)
        if "up" in one:
            layers.append(nn.ConvTranspose2d(before, after, kernel, one["up"], bias=False))
        else:
            padding = rate * (kernel - 1) // 2
            layers.append(
                nn.Conv2d(before, after, kernel, one.get("stride", 1), padding, rate, one.get("groups", 1), bias=False)
            )
        before = after
    return nn.Sequential(*layers)


def multiply_adds(layers: nn.Module, size: tuple[int, int], in_channels: int) -> float:
    """Multiply-adds of convolutions and matrix products for one image, as `network_cost` counts them, unrounded."""
    with ShapesOnly(), FlopCounterMode(display=False) as counter, torch.no_grad():
        layers.eval()(torch.empty(1, in_channels, *size, device="meta"))
    return counter.get_total_flops() / 2


def field(layers: nn.Module, size: tuple[int, int], in_channels: int) -> float:
    """The receptive field of the logits of a segmentation network, otherwise of the last map."""
    if isinstance(layers, Network):
        parts = [layers.backbone, layers.head] if layers.task == "segmentation" else [layers.backbone]
        layers = nn.Sequential(*parts)
    _, found = traced(layers, size, in_channels)
    if found is None:
        raise ValueError("a network with attention sees the whole image; it has no receptive field")
    return found.size


def unevenness(layers: nn.Module, size: tuple[int, int], in_channels: int) -> float:
    """The largest value over the smallest of what layers of equal weights make of a constant map, without its border.

    1 means that all places are covered alike; a transposed convolution whose stride does not divide its kernel adds up
    more terms at some places than at others (Odena, Dumoulin, Olah 2016, doi:10.23915/distill.00003).
    """
    real = copy.deepcopy(layers).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in real.parameters():
            parameter.fill_(1.0)
        out = real(torch.ones(1, in_channels, *size))[0, 0]
    border = max(out.shape) // 4
    inner = out[border:-border, border:-border]
    return float(inner.max() / inner.min())
