"""Backbones by name. Adding one: a file beside this one, an import, and a line in the dict."""

from collections.abc import Callable
from functools import partial

from backbones.backbone import Backbone
from backbones.resnet import ResNet

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "resnet18": partial(ResNet, "resnet18"),
    "resnet34": partial(ResNet, "resnet34"),
    "resnet50": partial(ResNet, "resnet50"),
    "resnet101": partial(ResNet, "resnet101"),
    "resnet152": partial(ResNet, "resnet152"),
}
