"""Average precision of detections over a split, by the rules of COCO (Lin et al. 2014, arXiv:1405.0312) or of VOC.

COCO's is computed by torchmetrics' MeanAveragePrecision on pycocotools, VOC's by `voc_ap.py`. Here, images are kept
by name and gathered from all ranks before they are sorted, so that neither the number of ranks nor their unequal shares
change a digit.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from heads.box_head import Detections, Objects
from lightning_modules.voc_ap import average_precisions

Kept = tuple[str, dict[str, Tensor], dict[str, Tensor]]
"""Name, detections and truth of an image."""
IOU_50 = 0
"""Index of the IoU threshold 0.5 among the ten of COCO's."""
ANY_SIZE, HUNDRED = 0, -1
"""Indices of all sizes of objects, and of at most 100 detections an image."""
RULES = ("coco", "voc07", "voc10")
"""COCO's; VOC's of 2007 with 11 points; VOC's from 2010 on with the area under the curve."""
NOT_INSTALLED = (
    "detections are scored by pycocotools, which is not installed; pip install 'graft[coco]', or use --ap-rule voc10"
)


class DetectionScores(nn.Module):
    """mAP, mAP at IoU 0.5, and each class's AP at 0.5, in [0, 1]; no state in checkpoints.

    By COCO's rule, mAP is the mean over the thresholds 0.5 to 0.95; by VOC's, that at 0.5.

    Args:
        rule: one of `RULES`.

    Raises:
        ValueError: there is no such rule, or pycocotools is not installed and the rule is COCO's.
    """

    def __init__(self, rule: str = "coco") -> None:
        super().__init__()
        if rule not in RULES:
            raise ValueError(f"no rule of average precision '{rule}'; there are {', '.join(RULES)}")
        self.rule = rule
        if rule == "coco" and importlib.util.find_spec("pycocotools") is None:
            raise ValueError(NOT_INSTALLED)
        self.images: list[Kept] = []

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
        images = sorted(self.gathered(), key=lambda one: one[0])
        return self.by_coco(images, class_names) if self.rule == "coco" else self.by_voc(images, class_names)

    def by_voc(self, images: Sequence[Kept], class_names: Sequence[str]) -> dict[str, Tensor]:
        """By VOC's rules, at IoU 0.5 alone."""
        pairs = [(found, truth) for _, found, truth in images]
        of_class = torch.from_numpy(average_precisions(pairs, len(class_names), eleven_points=self.rule == "voc07"))
        mean = of_class.nanmean()
        by_name = {f"ap50/{name}": one for name, one in zip(class_names, of_class, strict=True)}
        return {"map": mean, "map50": mean} | by_name

    def by_coco(self, images: Sequence[Kept], class_names: Sequence[str]) -> dict[str, Tensor]:
        """By COCO's rules, which need pycocotools."""
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision(backend="pycocotools", extended_summary=True)
        metric.warn_on_many_detections = False
        for _, detections, objects in images:
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

    def gathered(self) -> list[Kept]:
        """The images of all ranks."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.images
        everywhere: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everywhere, self.images)
        return [image for images in everywhere for image in images]


def on_cpu(tensors: Any) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in tensors.items() if name != "masks"}
