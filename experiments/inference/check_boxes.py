"""Holds an exported detector to the network it came from: the same boxes and scores at several sizes, the same mAP."""

from typing import cast

import cv2
import numpy as np
import torch

from datamodules.base import GraftDataModule
from experiments.command_line.progress import with_progress
from experiments.inference.check_export import SIZES, Comparison, as_batch, of_network
from experiments.inference.detector import detect
from experiments.inference.evaluate_all import pictures
from experiments.inference.export_network import PixelsToOutput
from experiments.inference.open_export import Runner
from experiments.inference.suppression import suppress
from experiments.inference.trained import TrainedNetwork
from heads.box_head import BoxHead, Detections
from lightning_modules.detection_scores import DetectionScores


def compare_boxes(network: TrainedNetwork, run: Runner, data: GraftDataModule, split: str, most: int) -> Comparison:
    """Run file and network on images of several sizes, then on up to `most` images of a split, evenly spaced.

    The difference is the largest one of a score, or of a side of a box that is cut at the image's border, in widths or
    heights of the image.
    """
    reference = PixelsToOutput(network, "boxes").eval().cpu()
    head, rule = cast("BoxHead", network.module.network.head), network.module.hparams["ap_rule"]
    least = network.module.network.backbone.min_size
    ours, theirs = DetectionScores(rule), DetectionScores(rule)
    picked = set(np.linspace(0, len(getattr(data, split).source) - 1, most).astype(int).tolist())
    chosen = (one for one in pictures(data, split) if isinstance(one, tuple) and one[0] in picked)
    difference = 0.0
    for _, image, truth, name in with_progress(chosen, len(picked), "images"):
        for size in [] if ours.images else [(max(h, least), max(w, least)) for h, w in SIZES]:
            batch = as_batch(cv2.resize(image, size[::-1]).reshape(*size, -1))  # OpenCV drops a single channel
            difference = max(difference, distance(run(batch), of_network(reference, batch), size))
        seen = network.size_rule.apply(image)
        batch, size = as_batch(seen), (seen.shape[0], seen.shape[1])
        exported = run(batch)
        difference = max(difference, distance(exported, of_network(reference, batch), size))
        boxes, scores, labels = suppress(
            exported[0], size, threshold=head.score_threshold, overlap=head.overlap, most=head.most
        )
        factors = np.tile([image.shape[1] / size[1], image.shape[0] / size[0]], 2)
        arrays = {"boxes": (boxes * factors).astype(np.float32), "scores": scores, "labels": labels}
        found = cast("Detections", {key: torch.from_numpy(value) for key, value in arrays.items()})
        ours.update([name], [detect(network, image)], [truth.tensors()])
        theirs.update([name], [found], [truth.tensors()])
    if not ours.images:
        raise ValueError(f"no image of the {split} split can be read, so the file cannot be checked")
    both = [float(scores.scores(data.class_names)["map"]) for scores in (ours, theirs)]
    if np.isnan(both).all():
        raise ValueError(f"the images of the {split} split have no objects, so the file cannot be checked")
    return Comparison(difference, both[0], both[1], len(ours.images))


def distance(exported: np.ndarray, expected: np.ndarray, size: tuple[int, int]) -> float:
    """How far boxes and scores `(1, N, 4 + C)` of images of that H and W are from what PyTorch computes."""
    sides = np.array([size[1], size[0]] * 2, np.float64)
    boxes, wanted = (np.clip(one[..., :4] / sides, 0, 1) for one in (exported, expected))
    scores = np.abs(exported[..., 4:] - expected[..., 4:])
    return float(max(np.abs(boxes - wanted).max(), scores.max()))
