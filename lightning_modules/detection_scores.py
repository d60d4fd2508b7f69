"""Average precision of detections over a split, by COCO's rules. Lin et al. 2014, arXiv:1405.0312.

torchmetrics' MeanAveragePrecision on pycocotools computes it. Here, images are kept by name and gathered from all ranks
before they are sorted, so that neither the number of ranks nor their unequal shares change a digit.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from heads.box_head import Detections, Objects

IOU_50 = 0
"""Index of the IoU threshold 0.5 among the ten of COCO's."""
ANY_SIZE, HUNDRED = 0, -1
"""Indices of all sizes of objects, and of at most 100 detections an image."""
NOT_INSTALLED = "detections are scored by pycocotools, which is not installed; pip install 'graft[coco]'"


class DetectionScores(nn.Module):
    """mAP over IoU thresholds 0.5 to 0.95, mAP at 0.5, and each class's AP at 0.5, in [0, 1]; no state in checkpoints.

    Raises:
        ValueError: pycocotools is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        if importlib.util.find_spec("pycocotools") is None:
            raise ValueError(NOT_INSTALLED)
        self.images: list[tuple[str, dict[str, Tensor], dict[str, Tensor]]] = []
        """Name, detections and truth of each image."""

    def update(self, names: Sequence[str], found: Sequence[Detections], truth: Sequence[Objects]) -> None:
        """Keep the detections and the objects of some images."""
        for name, detections, objects in zip(names, found, truth, strict=True):
            self.images.append((name, on_cpu(detections), on_cpu(objects)))

    def reset(self) -> None:
        self.images = []

    def matrix(self) -> None:
        """There is no confusion matrix of boxes."""
        return None

    def scores(self, class_names: Sequence[str]) -> dict[str, Tensor]:
        """Scores over all ranks by name, float64 on the CPU; NaN for a class without objects, which no mean counts."""
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision(backend="pycocotools", extended_summary=True)
        metric.warn_on_many_detections = False
        for _, detections, objects in sorted(self.gathered(), key=lambda one: one[0]):
            metric.update([detections], [objects])
        if not metric.groundtruth_labels or not sum(map(len, metric.groundtruth_labels)):
            nothing = torch.tensor(torch.nan, dtype=torch.float64)
            return dict.fromkeys(("map", "map50", *(f"ap50/{name}" for name in class_names)), nothing)
        result = metric.compute()
        # Precision by threshold, recall, class, size of objects and number of detections; -1 if there are no objects.
        precision = result["precision"][..., ANY_SIZE, HUNDRED].double()
        precision = precision.where(precision >= 0, torch.nan)
        of_class = dict(zip(result["classes"].flatten().tolist(), precision[IOU_50].mean(0), strict=True))
        nothing = torch.tensor(torch.nan, dtype=torch.float64)
        return {
            "map": precision.mean((0, 1)).nanmean(),
            "map50": precision[IOU_50].mean(0).nanmean(),
            **{f"ap50/{name}": of_class.get(label, nothing) for label, name in enumerate(class_names)},
        }

    def gathered(self) -> list[tuple[str, dict[str, Tensor], dict[str, Tensor]]]:
        """The images of all ranks."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.images
        everywhere: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everywhere, self.images)
        return [image for images in everywhere for image in images]


def on_cpu(tensors: Any) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in tensors.items()}
