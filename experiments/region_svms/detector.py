"""R-CNN and SPP-net on top of a backbone that stays as it is: fitting to a training split, and detection."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from datamodules.errors import DataError
from datamodules.samples import Samples
from experiments.command_line.progress import with_progress
from experiments.region_svms.box_regression import LEAST_OVERLAP, ClassRegression
from experiments.region_svms.feature_cache import FeatureCache, picture
from experiments.region_svms.features import WANTED_NORM, RegionFeatures
from experiments.region_svms.svm import NEGATIVE_OVERLAP, ClassMachine
from heads.box_head import Detections, suppressed

SCORE_THRESHOLD, OVERLAP, MOST = -1.0, 0.3, 100
MEASURED, SOME = 20, 50
"""Images, and boxes of each, from which the length of feature vectors is measured."""


class Detector:
    """One support vector machine and one box regression for each class that the training split shows."""

    def __init__(self, features: RegionFeatures, classes: int) -> None:
        self.features, self.classes = features, classes
        self.scale = self.regression_scale = 1.0
        self.machines: dict[int, ClassMachine] = {}
        self.regressions: dict[int, ClassRegression] = {}
        self.seconds = {"features": 0.0, "classification": 0.0}

    def described(self, image: np.ndarray, boxes: np.ndarray) -> tuple[Tensor, Tensor]:
        """The features of boxes, scaled; see `RegionFeatures`."""
        found, others = self.features(image, boxes)
        return found * self.scale, others * self.regression_scale

    def fit(self, split: Samples, indices: Sequence[int], cache: Path, seed: int) -> None:
        """Learn from some samples of a split with proposals. Features are cached in a folder, which a later call reads.

        Raises:
            ValueError: no image has an object.
        """
        self.measure_lengths(split, indices)
        found = FeatureCache(cache, self.described)
        near: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {label: [] for label in range(self.classes)}
        positives: dict[int, list[np.ndarray]] = {label: [] for label in range(self.classes)}
        for index in with_progress(indices, len(indices), "features"):
            one = found.of(split, index)
            for label in set(one.labels.tolist()):
                mine = one.boxes[one.labels == label]
                positives[label].append(one.of_objects[one.labels == label])
                overlaps, which = box_iou(one.near, mine).max(1)
                close = overlaps > LEAST_OVERLAP
                near[label].append((one.near_features[close], one.near[close], mine[which[close]]))
        shown = [label for label, rows in positives.items() if rows]
        if not shown:
            raise DataError("no training image has an object; there is nothing to learn")
        self.machines = {label: ClassMachine(np.concatenate(positives[label]), seed) for label in shown}
        for index in with_progress(indices, len(indices), "hard negatives"):
            one = found.of(split, index)
            for label, machine in self.machines.items():
                mine = one.boxes[one.labels == label]
                if len(mine):
                    machine.meet(one.of_proposals[(box_iou(one.proposals, mine).amax(1) < NEGATIVE_OVERLAP).numpy()])
                else:
                    machine.meet(one.of_proposals)
        for label in with_progress(shown, len(shown), "last training"):
            self.machines[label].train()
            parts = [torch.cat(part) for part in zip(*near[label], strict=True)]
            if len(parts[0]):
                self.regressions[label] = ClassRegression(*parts)

    def measure_lengths(self, split: Samples, indices: Sequence[int]) -> None:
        """Scale features so that their mean length is the one for which C was chosen."""
        lengths: list[list[float]] = [[], []]
        self.scale = self.regression_scale = 1.0
        for index in indices[:: len(indices) // MEASURED + 1]:
            image, _, proposals = picture(split, index)
            if len(proposals):
                both = self.features(image, proposals[:: len(proposals) // SOME + 1])
                for kept, values in zip(lengths, both, strict=True):
                    kept += values.norm(dim=1).tolist()
        if not lengths[0]:
            raise DataError("the training images have no proposals; there is nothing to learn from")
        self.scale, self.regression_scale = (WANTED_NORM / max(float(np.mean(one)), 1e-6) for one in lengths)

    def detect(self, image: np.ndarray, proposals: np.ndarray) -> Detections:
        """What is found among the proposals `(P, 4)` of an image uint8 `(H, W, 3)`."""
        started = time.perf_counter()
        boxes = torch.from_numpy(proposals)
        features, others = self.described(image, proposals) if len(proposals) else (torch.zeros(0, 1),) * 2
        done = time.perf_counter()
        kept: list[tuple[Tensor, Tensor, Tensor]] = []
        for label, machine in self.machines.items() if len(proposals) else ():
            scores = torch.from_numpy(machine.scores(features.numpy())).float()
            high = scores > SCORE_THRESHOLD
            chosen = boxes[high]
            if label in self.regressions:
                chosen = self.regressions[label](others[high], chosen)
            kept.append((chosen, scores[high], torch.full((len(chosen),), label)))
        kept.append((torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)))
        found_boxes, scores, labels = (torch.cat(part) for part in zip(*kept, strict=True))
        found = suppressed(found_boxes, scores, labels, (image.shape[0], image.shape[1]), OVERLAP, MOST)
        self.seconds["features"] += done - started
        self.seconds["classification"] += time.perf_counter() - done
        return found
