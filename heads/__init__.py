"""Heads by name. Adding one: a file beside this one, an import, and a line in the dict."""

import difflib

from heads.classifier import Classifier
from heads.deeplab import DeepLab
from heads.fcn import FCN8s
from heads.head import Head
from heads.unet import UNet

HEADS: dict[str, type[Head]] = {
    "classifier": Classifier,
    "fcn8s": FCN8s,
    "unet": UNet,
    "deeplab": DeepLab,
}


def find_head(name: str) -> type[Head]:
    """The class behind a name.

    Raises:
        ValueError: no head has that name; the message lists the nearest.
    """
    if name not in HEADS:
        near = difflib.get_close_matches(name, HEADS, cutoff=0.4) or list(HEADS)
        raise ValueError(f"no head '{name}'; nearest: {', '.join(near)}")
    return HEADS[name]
