"""R-CNN, SPP-net, Fast R-CNN and Faster R-CNN on one backbone and the same digit scenes: scores and seconds an image.

`python experiments/benchmarks/detector_times.py` trains Faster R-CNN and Fast R-CNN, fits R-CNN and SPP-net on the
backbone that Fast R-CNN has trained, scores all four on the validation split, and then times them on the same images,
one after the other. What is there in --out is not done again. Seconds are wall-clock seconds: let nothing else run.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import cv2
import numpy as np
import torch

from datamodules.digits import Digits
from datamodules.proposals import METHODS
from experiments.command_line.rcnn_flags import RCNNConfig
from experiments.inference.detector import detect
from experiments.inference.trained import load_any
from experiments.region_svms.detector import Detector
from experiments.region_svms.features import Pooling
from experiments.region_svms.fit_and_score import fit_and_score, read_fitted
from experiments.run import main as run

HEADS = {"fastrcnn": "{hidden: 256}", "fasterrcnn": "{width: 128, hidden: 256, anchor_scale: 6, regions: 64}"}
"""The heads that are trained, with their options."""
POOLINGS: dict[Pooling, str] = {"warp": "R-CNN", "spp": "SPP-net"}
Step = Callable[[np.ndarray, np.ndarray], object]
"""What is timed: a detector for an image and its proposals."""


def train(asked: argparse.Namespace, head: str) -> Path:
    """The folder of a finished run."""
    folder = asked.out / head
    if not (folder / "results.json").is_file():
        more = ["--output-stride", "8"] if head == "fastrcnn" else []
        arguments = [
            "--backbone", asked.backbone, "--head", head, "--head-options", HEADS[head], *more, "--epochs",
            str(asked.epochs), "--out", str(asked.out), "--name", head, "--accelerator", "cpu",
        ]  # fmt: skip
        if run(arguments):
            raise SystemExit(1)
    return folder


def fit(asked: argparse.Namespace, pooling: Pooling) -> Detector:
    """R-CNN or SPP-net, scored if it has not been before."""
    settings = rcnn_settings(asked, pooling)
    scored = (asked.out / pooling / "results.json").is_file()
    return read_fitted(settings) if scored else fit_and_score(settings)


def rcnn_settings(asked: argparse.Namespace, pooling: Pooling) -> RCNNConfig:
    return RCNNConfig(
        run=str(asked.out / "fastrcnn"), pooling=pooling, side=asked.side, images=asked.images, device="cpu",
        out=str(asked.out / pooling),
    )  # fmt: skip


def seconds(step: Step, pictures: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """The median time of an image; the first one warms up."""
    times = []
    for image, proposals in pictures:
        started = time.perf_counter()
        step(image, proposals)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--epochs", type=int, default=20, help="of Fast and Faster R-CNN")
    parser.add_argument("--images", type=int, default=150, help="training images of R-CNN and SPP-net")
    parser.add_argument("--side", type=int, default=40, help="pixels of R-CNN's crops; the scenes have 64")
    parser.add_argument("--timed", type=int, default=21, help="images that are timed")
    parser.add_argument("--out", type=Path, default=Path("runs/detector_times"), help="folder of all runs")
    asked = parser.parse_args()
    trained = {head: train(asked, head) for head in HEADS}
    fitted = {pooling: fit(asked, pooling) for pooling in POOLINGS}
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    source = Digits("detection", workers=0, batch_size=1).sources()["val"]
    search = METHODS["selective_search"]
    pictures = [(image, search(image)) for image, _, _ in (source[index] for index in range(asked.timed))]
    proposing = seconds(lambda image, _: search(image), pictures)
    boxes = statistics.mean(len(found) for _, found in pictures)
    print(
        f"\n{asked.backbone}, digit scenes of 64x64, one thread, {boxes:.0f} proposals an image; selective search takes"
    )
    print(f"{proposing:.3f} s; medians of {asked.timed - 1} images\n")
    print("| detector | mAP@50, val | proposals from | seconds without selective search | with it |")
    print("|---|--:|---|--:|--:|")
    for pooling, name in POOLINGS.items():
        results = json.loads((asked.out / pooling / "results.json").read_text(encoding="utf-8"))
        own = seconds(fitted[pooling].detect, pictures)
        print(row(name, results["scores"]["map50"], own, proposing))
    for head, name in (("fastrcnn", "Fast R-CNN"), ("fasterrcnn", "Faster R-CNN")):
        results = json.loads((trained[head] / "results.json").read_text(encoding="utf-8"))
        network = load_any(trained[head], "cpu")
        own = seconds(lambda image, found, network=network: detect(network, image, found), pictures)  # type: ignore[misc]
        print(row(name, results["scores"]["val"]["map50"], own, proposing if head == "fastrcnn" else None))


def row(name: str, score: float, own: float, proposing: float | None) -> str:
    together = "-" if proposing is None else f"{own + proposing:.3f}"
    origin = "the network" if proposing is None else "selective search"
    return f"| {name} | {score:.3f} | {origin} | {own:.4f} | {together} |"


if __name__ == "__main__":
    main()
