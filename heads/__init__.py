"""Heads by name. To add one, write a file in this folder and add an import and a line to the dict."""

import difflib

from heads.classifier import Classifier
from heads.deeplab import DeepLabV3Plus
from heads.deeplabv1 import DeepLabV1
from heads.deeplabv2 import DeepLabV2
from heads.deeplabv3 import DeepLabV3
from heads.dilatednet import DilatedNet
from heads.fasterrcnn import FasterRCNN
from heads.fasterrcnn_c4 import FasterRCNNC4, FasterRCNNDC5
from heads.fastrcnn import FastRCNN
from heads.fcn import FCN8s, FCN16s, FCN32s
from heads.fcn_head import FCNHead
from heads.fcos import FCOS
from heads.fpn import FPN
from heads.head import Head
from heads.hypercolumn import Hypercolumn
from heads.lraspp import LRASPP
from heads.maskrcnn import MaskRCNN
from heads.pspnet import PSPNet
from heads.retinanet import RetinaNet
from heads.spp import SPP
from heads.ssd import SSD
from heads.unet import UNet
from heads.yolov1 import YOLOv1

HEADS: dict[str, type[Head]] = {
    "classifier": Classifier,
    "spp": SPP,
    "fcn32s": FCN32s,
    "fcn16s": FCN16s,
    "fcn8s": FCN8s,
    "fcn": FCNHead,
    "hypercolumn": Hypercolumn,
    "unet": UNet,
    "deeplabv1": DeepLabV1,
    "deeplabv2": DeepLabV2,
    "deeplabv3": DeepLabV3,
    "deeplabv3plus": DeepLabV3Plus,
    "deeplab": DeepLabV3Plus,
    "dilatednet": DilatedNet,
    "pspnet": PSPNet,
    "fpn": FPN,
    "lraspp": LRASPP,
    "retinanet": RetinaNet,
    "fcos": FCOS,
    "ssd": SSD,
    "fasterrcnn": FasterRCNN,
    "fasterrcnn_c4": FasterRCNNC4,
    "fasterrcnn_dc5": FasterRCNNDC5,
    "maskrcnn": MaskRCNN,
    "fastrcnn": FastRCNN,
    "yolov1": YOLOv1,
}


def find_head(name: str) -> type[Head]:
    """Return the class of a head, an entry of `HEADS`.

    Raises:
        ValueError: no head has that name; the message lists the nearest.
    """
    if name not in HEADS:
        near = difflib.get_close_matches(name, HEADS, cutoff=0.4) or list(HEADS)
        raise ValueError(f"no head '{name}'; nearest: {', '.join(near)}")
    return HEADS[name]
