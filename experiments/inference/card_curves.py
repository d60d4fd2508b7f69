"""curves.png of a model card: loss and score of a run during training."""

from pathlib import Path

import matplotlib

from experiments.run_files.read_run import read_curve

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SCORES = {"val/miou": "validation mIoU", "val/top1": "validation top-1"}


def draw_curves(metrics: Path, path: Path) -> bool:
    """Draw the rows of metrics.csv. Returns False if there are none, as in a run of `--epochs 0`."""
    rows = read_curve(metrics)
    if not rows:
        return False
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name, label in (("train/loss_epoch", "training"), ("val/loss", "validation")):
        points = [(row["epoch"], row[name]) for row in rows if name in row]
        if points:
            left.plot(*zip(*points, strict=True), marker=".", label=label)
    left.set_ylabel("loss")
    left.legend()
    for name, label in SCORES.items():
        points = [(row["epoch"], row[name]) for row in rows if name in row]
        if points:
            right.plot(*zip(*points, strict=True), marker=".", color="tab:green")
            right.set_ylabel(label)
    for axis in (left, right):
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
    part = path.with_name(path.name + ".part")
    figure.savefig(part, dpi=110, format="png")
    plt.close(figure)
    part.replace(path)
    return True
