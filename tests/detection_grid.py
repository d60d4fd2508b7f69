"""Train one step of every backbone under every head that detects, and look for a gradient on every parameter.

`PYTHONPATH=. python tests/detection_grid.py [BACKBONE ...] [--heads HEAD ...]` prints a line a pair and exits with 1 if
a parameter has no gradient. The tests do a few of the same.
"""

import argparse
import sys
import time

import torch

from backbones import BACKBONES
from heads.fasterrcnn_c4 import FasterRCNNC4, FasterRCNNDC5
from lightning_modules.network import Network
from tests.test_detection_heads import CLASSES, DETECTORS, NARROW, objects, total


def train_one_step(backbone: str, head: str) -> str:
    """What came of a pair: "ok", why it is refused, or which parameters have no gradient."""
    try:
        network = Network(backbone, head, CLASSES, head_options=NARROW.get(head)).train()
    except ValueError as error:
        return f"refused: {str(error).split('. ')[0]}"
    side = max(65, network.backbone.min_size)
    loss = total(network, torch.randn(2, 3, side, side + 31), [objects((5, 6, 60, 50), (30, 2, 60, 64)), objects()])
    loss.backward()
    without = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all()
    ]
    return f"WITHOUT a finite gradient: {', '.join(without[:3])}" if without or not loss.isfinite() else "ok"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbones", nargs="*", default=list(BACKBONES))
    parser.add_argument("--heads", nargs="+", default=DETECTORS)
    settings = parser.parse_args()
    for head in (FasterRCNNC4, FasterRCNNDC5):  # the layers behind regions are the same for any number of them
        head.__init__.__kwdefaults__["regions"] = 8
    failed = 0
    for backbone in settings.backbones:
        for head in settings.heads:
            torch.manual_seed(0)
            began = time.process_time()
            found = train_one_step(backbone, head)
            failed += found.startswith("WITHOUT")
            print(f"{backbone:24} {head:16} {time.process_time() - began:5.1f} s  {found}", flush=True)
    sys.exit(bool(failed))
