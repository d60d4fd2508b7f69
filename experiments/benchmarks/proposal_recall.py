"""How well proposals cover objects: selective search beside sliding windows and OpenCV's selective search.

`python experiments/benchmarks/proposal_recall.py` measures them on digit scenes, and with `--camvid DIR` also on
photographs, where connected regions of cars, pedestrians, cyclists and signs in the masks count as objects. OpenCV's
needs opencv-contrib-python-headless, which takes the place of the opencv-python-headless of this project: install it in
an environment of its own; without it, its rows are missing. Prints a table of recall (objects that one of the first N
boxes covers by an IoU of 0.5), average best overlap (ABO) and CPU seconds an image, and writes a picture of the curves.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import cv2
import matplotlib
import numpy as np

from datamodules.camvid import CamVid
from datamodules.digits import Digits
from datamodules.proposals import METHODS
from experiments.analysis.proposal_recall import best_overlaps
from experiments.command_line.progress import with_progress

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COUNTS = (10, 50, 100, 200, 500, 1000, 2000)
"""Numbers of boxes of an image at which recall is measured."""
OBJECT_CLASSES = ("signsymbol", "car", "pedestrian", "bicyclist")
"""CamVid's classes whose regions are objects."""
LEAST_SIDE = 20
"""Pixels of the shorter side of a region that counts as an object."""
Method = Callable[[np.ndarray], np.ndarray]


def scenes(images: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images and boxes of digit scenes of validation."""
    data = Digits("detection", image_size=(size, size), workers=0, batch_size=1)
    source = data.sources()["val"]
    for index in range(min(images, len(source))):
        image, objects, _ = source[index]
        yield image, objects.boxes  # type: ignore[union-attr]


def photographs(folder: str, images: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images of CamVid's validation split, evenly spaced, and the boxes around connected regions of objects."""
    data = CamVid("segmentation", data_dir=folder, workers=0, batch_size=1)
    source = data.sources()["val"]
    numbers = [data.class_names.index(name) for name in OBJECT_CLASSES]
    for index in np.linspace(0, len(source) - 1, min(images, len(source))).astype(int).tolist():
        image, mask, _ = source[index]
        assert isinstance(mask, np.ndarray)
        boxes = []
        for number in numbers:
            _, _, statistics, _ = cv2.connectedComponentsWithStats((mask == number).astype(np.uint8))
            boxes += [[x, y, x + w, y + h] for x, y, w, h, _ in statistics[1:].tolist() if min(w, h) >= LEAST_SIDE]
        yield image, np.array(boxes, np.float32).reshape(-1, 4)


def of_opencv() -> dict[str, Method]:
    """OpenCV's selective search in its own fast mode, and with the settings of ours; empty if it is not installed."""
    if not hasattr(cv2, "ximgproc"):
        return {}
    parts = cv2.ximgproc.segmentation

    def fast(image: np.ndarray) -> np.ndarray:
        search = parts.createSelectiveSearchSegmentation()
        search.setBaseImage(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        search.switchToSelectiveSearchFast()
        return corners(search.process())

    def same(image: np.ndarray) -> np.ndarray:
        search = parts.createSelectiveSearchSegmentation()
        for space in (cv2.COLOR_RGB2HSV, cv2.COLOR_RGB2LAB):
            search.addImage(cv2.cvtColor(image, space))
        for scale in (50, 100):
            search.addGraphSegmentation(parts.createGraphSegmentation(0.8, scale, scale))
        colour, texture, size, fill = (
            getattr(parts, f"createSelectiveSearchSegmentationStrategy{name}")
            for name in ("Color", "Texture", "Size", "Fill")
        )
        search.addStrategy(parts.createSelectiveSearchSegmentationStrategyMultiple(colour(), texture(), size(), fill()))
        search.addStrategy(parts.createSelectiveSearchSegmentationStrategyMultiple(texture(), size(), fill()))
        return corners(search.process())

    return {"OpenCV, fast mode": fast, "OpenCV, these settings": same}


def corners(rectangles: np.ndarray) -> np.ndarray:
    """x, y, width, height -> x1, y1, x2, y2."""
    boxes = rectangles.astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def measure(name: str, method: Method, pictures: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """The best overlap of every object with the first N boxes, the number of boxes and the CPU seconds of an image."""
    best: dict[int, list[np.ndarray]] = {count: [] for count in COUNTS}
    everything, boxes, seconds = [], 0, 0.0
    for image, objects in with_progress(pictures, len(pictures), name):
        started = time.process_time()
        found = method(image)
        seconds += time.process_time() - started
        boxes += len(found)
        for count in COUNTS:
            best[count].append(best_overlaps(objects, found, count))
        everything.append(best_overlaps(objects, found))
    overlaps = {count: np.concatenate(values) for count, values in best.items()}
    return {
        "recall": [float((overlaps[count] >= 0.5).mean()) for count in COUNTS],
        "best": np.concatenate(everything),
        "boxes": boxes / len(pictures),
        "seconds": seconds / len(pictures),
    }


def print_table(title: str, objects: int, rows: dict[str, dict[str, Any]]) -> None:
    print(f"\n{title}, {objects} objects\n")
    print(f"| method | boxes | CPU s | {' | '.join(f'first {count}' for count in COUNTS)} | all, IoU 0.7 | ABO |")
    print(f"|---|{'--:|' * (len(COUNTS) + 4)}")
    for name, row in rows.items():
        recalls = " | ".join(f"{value:.3f}" for value in row["recall"])
        best = row["best"]
        print(
            f"| {name} | {row['boxes']:.0f} | {row['seconds']:.3f} | {recalls} | {(best >= 0.7).mean():.3f} | "
            f"{best.mean():.3f} |"
        )


def draw(results: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """Recall against the number of boxes, and against the IoU that counts, for each kind of pictures."""
    figure, axes = plt.subplots(len(results), 2, figsize=(10, 4 * len(results)), squeeze=False, layout="constrained")
    overlaps = np.linspace(0.5, 1, 51)
    for (left, right), (title, rows) in zip(axes, results.items(), strict=True):
        for name, row in rows.items():
            left.plot(COUNTS, row["recall"], marker="o", label=name)
            right.plot(overlaps, [(row["best"] >= overlap).mean() for overlap in overlaps], label=name)
        left.set(xscale="log", xlabel="boxes of an image", ylabel="recall at IoU 0.5", title=title, ylim=(0, 1))
        right.set(xlabel="IoU", ylabel="recall of all boxes", title=title, ylim=(0, 1))
        left.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50, help="images of each kind")
    parser.add_argument("--size", type=int, default=128, help="side of digit scenes")
    parser.add_argument("--camvid", help="folder of CamVid, for photographs")
    parser.add_argument("--out", type=Path, default=Path("proposal_recall.png"), help="picture of the curves")
    asked = parser.parse_args()
    cv2.setNumThreads(1)
    methods = {"selective search": METHODS["selective_search"], "sliding windows": METHODS["windows"], **of_opencv()}
    kinds = {f"digit scenes, {asked.size}x{asked.size}": list(scenes(asked.images, asked.size))}
    if asked.camvid:
        kinds["CamVid val"] = list(photographs(asked.camvid, asked.images))
    results = {}
    for title, pictures in kinds.items():
        results[title] = {name: measure(name, method, pictures) for name, method in methods.items()}
        print_table(f"{title}: {len(pictures)} images", sum(len(boxes) for _, boxes in pictures), results[title])
    draw(results, asked.out)
    print(f"\n{asked.out}")


if __name__ == "__main__":
    main()
