"""What the placement of scores is worth on CamVid: `python experiments/benchmarks/placement.py CAMVID --out DIR`.

Trains every head with every seed under every placement, from the weights of EfficientNet-Lite0, as a grid of ordinary
runs: the same command again skips the finished ones. Then scores the weights of each run on the whole validation images
under all placements, which costs no training. Prints a table of mIoU and writes `placement.json` beside the runs.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import cast

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from rich.table import Table

from experiments.command_line.console import make_console
from experiments.command_line.known_names import RUN
from experiments.command_line.progress import with_progress
from experiments.run_files.atomic_file import write_atomically
from experiments.training.load_run import load_segmentation
from heads.placing import PLACEMENTS, Placement
from lightning_modules.metrics import SegmentationScores
from lightning_modules.own_size import at_own_sizes

Scores = dict[Placement, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("camvid", help="folder of CamVid with 11 classes")
    parser.add_argument("--out", default="runs/placement", help="folder of the runs and of placement.json")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--heads", default="fcn32s,fcn8s,deeplab")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--placements", default=",".join(PLACEMENTS), help="what networks are trained under")
    parser.add_argument("--epochs", default="4")
    parser.add_argument("--image-size", nargs="+", default=["144", "192"], help="training crops; validation is whole")
    parser.add_argument("--jobs", default="1", help="runs at a time")
    asked = parser.parse_args()
    grid = [sys.executable, str(RUN.with_name("grid.py")), "--backbones", asked.backbone, "--heads", asked.heads]
    grid += ["--seeds", asked.seeds, "--vary", f"placement={asked.placements}", "--out", asked.out]
    grid += ["--jobs", asked.jobs, "--", "--data", "camvid", "--data-dir", asked.camvid, "--weights", "imagenet"]
    subprocess.run([*grid, "--image-size", *asked.image_size, "--epochs", asked.epochs], check=True)
    found: dict[str, Scores] = {}
    for head in asked.heads.split(","):
        for trained in asked.placements.split(","):
            for seed in asked.seeds.split(","):
                name = f"{asked.backbone}-{head}-placement={trained}-s{seed}"
                found[name] = scores_of(Path(asked.out) / name, asked.camvid)
    file = Path(asked.out) / "placement.json"
    write_atomically(file, json.dumps(found, indent=1))
    print_table(found, asked.heads.split(","), asked.placements.split(","))
    print(file)


def scores_of(run: Path, camvid: str) -> Scores:
    """mIoU of a run's best checkpoint on whole validation images, under each placement; maps are computed once."""
    data, module = load_segmentation(str(run), camvid)
    network = module.network
    scores = {one: SegmentationScores(data.num_classes, data.ignore_index).to(module.device) for one in PLACEMENTS}
    loader = data.val_dataloader()
    for batch in with_progress(loader, len(loader), run.name):
        images, target = batch["image"].to(module.device), batch["target"].to(module.device)
        with torch.inference_mode():
            maps = network.backbone(images)
            for placement, counted in scores.items():
                network.set_placement(placement)
                logits = network.head.at_image(network.head(maps), images.shape[2:])
                for one, labels in at_own_sizes(logits, target, batch.get("target_sizes")):
                    counted.update(one, labels)
    return {one: float(counted.scores(data.class_names)["miou"]) for one, counted in scores.items()}


def print_table(found: dict[str, Scores], heads: list[str], trained: list[str]) -> None:
    """A row for each head and way of training: mean and standard deviation over seeds, in %."""
    table = Table("head", "trained", *(f"scored {one}" for one in PLACEMENTS), title="mIoU on CamVid val, %")
    for head in heads:
        for way in trained:
            rows = [one for name, one in found.items() if f"-{head}-placement={way}-" in name]
            cells = ([100 * row[cast("Placement", one)] for row in rows] for one in PLACEMENTS)
            table.add_row(head, way, *(f"{statistics.mean(cell):.2f} ± {spread(cell):.2f}" for cell in cells))
    make_console().print(table)


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
