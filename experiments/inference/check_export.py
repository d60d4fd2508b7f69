"""Holds an exported file to the network it came from: the same numbers at several sizes, the same score on real images.

A file can be written without an error and still be wrong. So every file is compared before it gets its final name.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from datamodules.base import GraftDataModule
from experiments.command_line.progress import with_progress
from experiments.inference.counts import Counts, count_picture, count_pixels
from experiments.inference.evaluate_all import pictures
from experiments.inference.export_network import Output, PixelsToOutput
from experiments.inference.open_export import Runner
from experiments.inference.scores import summary
from experiments.inference.trained import TrainedNetwork

SIZES = ((64, 64), (65, 97), (131, 77), (160, 96))
"""Heights and widths in pixels, odd ones among them."""
MAIN_SCORE = {"segmentation": "miou", "classification": "top1", "detection": "map"}


@dataclass(frozen=True)
class Comparison:
    """An exported file beside PyTorch.

    Args:
        difference: the largest difference of a probability over all sizes and images; for a file that computes labels,
            the largest fraction of the labels of an image that differ; for boxes see `check_boxes.py`.
        score, exported_score: mIoU, top-1 accuracy or mAP of both on the same images.
        images: how many these were.
    """

    difference: float
    score: float
    exported_score: float
    images: int

    @property
    def drop(self) -> float:
        """How much worse the file scores."""
        return self.score - self.exported_score


def compare(
    network: TrainedNetwork, run: Runner, output: Output, data: GraftDataModule, split: str, most: int
) -> Comparison:
    """Run file and network on images of several sizes, then on up to `most` images of a split, evenly spaced."""
    reference = PixelsToOutput(network, "probabilities").eval().cpu()
    least = network.module.network.backbone.min_size
    difference = 0.0
    ours, theirs = Counts.none(data.num_classes), Counts.none(data.num_classes)
    picked = set(np.linspace(0, len(getattr(data, split).source) - 1, most).astype(int).tolist())
    chosen = (one for one in pictures(data, split) if isinstance(one, tuple) and one[0] in picked)
    count = 0
    for _, image, truth, _ in with_progress(chosen, len(picked), "images"):
        for size in [(max(h, least), max(w, least)) for h, w in SIZES] if count == 0 else []:
            batch = as_batch(cv2.resize(image, size[::-1]).reshape(*size, -1))  # OpenCV drops a single channel
            difference = max(difference, distance(run(batch), of_network(reference, batch), output))
        batch = as_batch(network.size_rule.apply(image))
        exported, expected = run(batch), of_network(reference, batch)
        difference = max(difference, distance(exported, expected, output))
        if output == "labels":  # both, so that resizing to the truth treats them alike
            exported, expected = (one_hot(one, data.num_classes) for one in (exported, expected.argmax(1)))
        ours += counted(expected[0], truth, data.ignore_index)
        theirs += counted(exported[0], truth, data.ignore_index)
        count += 1
    if not count:
        raise ValueError(f"no image of the {split} split can be read, so the file cannot be checked")
    name = MAIN_SCORE[network.task]
    scores = [summary(counts, network.task)[name] for counts in (ours, theirs)]
    return Comparison(difference, scores[0] or 0.0, scores[1] or 0.0, count)


def distance(exported: np.ndarray, expected: np.ndarray, output: Output) -> float:
    """How far an exported output is from the probabilities `(B, C, ...)` that PyTorch computes."""
    if output == "labels":
        return float((exported != expected.argmax(1)).mean())
    return float(np.abs(exported - expected).max())


def one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Labels `(B, ...)` as float32 `(B, C, ...)`."""
    return np.moveaxis(np.eye(num_classes, dtype=np.float32)[labels], -1, 1)


def as_batch(image: np.ndarray) -> np.ndarray:
    """An image uint8 `(H, W, C)` as uint8 `(1, C, H, W)`."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])


def of_network(reference: PixelsToOutput, batch: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return reference(torch.from_numpy(batch)).numpy()


def counted(probabilities: np.ndarray, truth: Any, ignore_index: int) -> Counts:
    """Counts of one image; its probabilities are resized to the truth if these differ in size."""
    if not isinstance(truth, np.ndarray):
        return count_picture(probabilities, int(truth))
    if probabilities.shape[1:] != truth.shape:
        resized = cv2.resize(probabilities.transpose(1, 2, 0), truth.shape[::-1], interpolation=cv2.INTER_LINEAR)
        probabilities = resized.reshape(*truth.shape, len(probabilities)).transpose(2, 0, 1)
    return count_pixels(probabilities, truth, ignore_index)
