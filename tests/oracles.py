"""The published implementations that ours are measured against, on the same weights."""

import timm
import torchvision
from torch import nn

# Names that differ, and networks torchvision does not have. Backbones absent from both libraries are None: their
# parameter count is the only oracle.
TIMM: dict[str, str] = {}
WITHOUT_ORACLE: set[str] = set()

# Trainable parameters with the 1000-class (or the paper's own) classifier.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}


def oracle(name: str) -> nn.Module | None:
    """The other library's network, untrained, 1000 classes, in eval mode."""
    if name in WITHOUT_ORACLE:
        return None
    if name in TIMM:
        return timm.create_model(TIMM[name], pretrained=False).eval()
    return torchvision.models.get_model(name, weights=None).eval()
