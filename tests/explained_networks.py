"""Networks with random weights, pictures and flags for the tests of explain.py."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from backbones import BACKBONES
from backbones.backbone import Backbone
from datamodules.size_rules import SizeRule
from experiments.command_line.explain_flags import ExplainFlags
from experiments.inference.trained import TrainedNetwork
from lightning_modules.base import GraftModule
from lightning_modules.classification import ClassificationModule
from lightning_modules.segmentation import SegmentationModule
from tests.conftest import randomise


def network_of(backbone: str, head: str, size: int = 64, **options: Any) -> TrainedNetwork:
    """A network with random weights for three classes."""
    kind: type[GraftModule] = ClassificationModule if head == "classifier" else SegmentationModule
    module = randomise(kind(backbone, head, ("a", "b", "c"), **options)).eval().requires_grad_(False)
    rule = SizeRule("own", (size, size))
    return TrainedNetwork(module, ("a", "b", "c"), np.eye(3, dtype=np.uint8) * 255, rule, (0.5,) * 3, (0.25,) * 3)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def flags_of(run: object = "", **values: Any) -> ExplainFlags:
    return ExplainFlags(run=str(run), **values)


class Bare(nn.Module):
    """A backbone whose last map is the output."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)[-1]


def bare(backbone: str) -> Bare:
    """A backbone with random weights, without a head."""
    return Bare(randomise(BACKBONES[backbone]()).eval().requires_grad_(False))  # type: ignore[arg-type]


def read_strictly(path: Path) -> Any:
    """JSON without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{path}: {constant}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
