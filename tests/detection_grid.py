"""Train one step of every backbone under every head that detects, and look for a gradient on every parameter.

`PYTHONPATH=. python tests/detection_grid.py [BACKBONE ...]` prints a line a pair; it exits with 1 if one has none.
The tests do a few of the same.
"""

import sys
import time

import torch

from backbones import BACKBONES
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
    failed = 0
    for backbone in sys.argv[1:] or BACKBONES:
        for head in DETECTORS:
            torch.manual_seed(0)
            began = time.process_time()
            found = train_one_step(backbone, head)
            failed += found.startswith("WITHOUT")
            print(f"{backbone:24} {head:12} {time.process_time() - began:5.1f} s  {found}", flush=True)
    sys.exit(bool(failed))
