"""Average precision of detections over a split, by the rules of COCO (Lin et al. 2014, arXiv:1405.0312) or of VOC.

COCO's is computed by torchmetrics' MeanAveragePrecision on pycocotools, VOC's by `voc_ap.py`. Here, images are kept
by name and gathered from all ranks before they are sorted, so that neither the number of ranks nor their unequal shares
change a digit.

Where detections and objects have masks, COCO's rule scores these too, by the IoU of masks instead of boxes; VOC's rules
are for boxes. A mask is kept over its whole image, in pycocotools' run-length code.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from heads.box_head import Detections, Objects
from heads.maskrcnn import paste_masks
from lightning_modules.voc_ap import average_precisions

Kept = tuple[str, dict[str, Any], dict[str, Any]]
"""Name, detections and truth of an image; "masks" are in run-length code."""
IOU_50 = 0
"""Index of the IoU threshold 0.5 among the ten of COCO's."""
ANY_SIZE, HUNDRED = 0, -1
"""Indices of all sizes of objects, and of at most 100 detections an image."""
RULES = ("coco", "voc07", "voc10")
"""COCO's; VOC's of 2007 with 11 points; VOC's from 2010 on with the area under the curve."""
NOT_INSTALLED = (
    "detections are scored by pycocotools, which is not installed; pip install 'graft[coco]', or use --ap-rule voc10"
)


NAMES = {"bbox": ("map", "map50"), "segm": ("mask_map", "mask_map50")}
"""What mAP, and mAP at IoU 0.5, are called for boxes and for masks."""
LEAST_OF_MASK = 0.5
"""Least probability at which a pixel belongs to a detection's mask."""


class DetectionScores(nn.Module):
    """mAP, mAP at IoU 0.5, and each class's AP at 0.5, in [0, 1]; no state in checkpoints.

    By COCO's rule, mAP is the mean over the thresholds 0.5 to 0.95, and there are `mask_map` and `mask_map50` if there
    are masks; by VOC's, mAP is that at 0.5.

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
        """Keep the detections and the objects of some images.

        Masks are scored if both have them: `(N, 28, 28)` within the boxes of detections, `(N, H, W)` of objects.
        """
        for name, detections, objects in zip(names, found, truth, strict=True):
            kept: dict[str, Any] = {**on_cpu(detections)}
            real: dict[str, Any] = {**on_cpu(objects)}
            if self.rule == "coco" and "masks" in detections and "masks" in objects:
                kept["masks"], real["masks"] = codes_of_detections(detections, objects), codes_of(objects["masks"])
            self.images.append((name, kept, real))

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
        nothing = torch.tensor(torch.nan, dtype=torch.float64)
        precision = coco_precisions(images)
        at_50 = {label: one[IOU_50].mean() for label, one in precision["bbox"].items()}
        values: dict[str, Tensor] = {}
        for kind, (name, name_50) in NAMES.items():
            if kind in precision:
                of_classes = list(precision[kind].values())
                every = torch.stack(of_classes, 2) if of_classes else nothing.view(1, 1, 1)
                values |= {name: every.mean((0, 1)).nanmean(), name_50: every[IOU_50].mean(0).nanmean()}
        return values | {f"ap50/{name}": at_50.get(label, nothing) for label, name in enumerate(class_names)}

    def gathered(self) -> list[Kept]:
        """The images of all ranks."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.images
        everywhere: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everywhere, self.images)
        return [image for images in everywhere for image in images]


def coco_precisions(images: Sequence[Kept]) -> dict[str, dict[int, Tensor]]:
    """By COCO's rule, the precision of each class at ten IoUs and 101 recalls, float64 `(10, 101)`.

    NaN for a class that has detections only; no class if there is no object.

    Returns:
        That of "bbox", and of "segm" if the images have masks.
    """
    from torchmetrics.detection import MeanAveragePrecision

    # Never of masks alone: torchmetrics then leaves out images without objects, and what is detected in them.
    masked = bool(images) and all("masks" in found for _, found, _ in images)
    kinds: tuple[Literal["bbox", "segm"], ...] = ("bbox", "segm") if masked else ("bbox",)
    metric = MeanAveragePrecision(iou_type=kinds, backend="pycocotools", extended_summary=True)
    metric.warn_on_many_detections = False
    for _, found, truth in images:
        metric.update([with_whole_masks(found)], [with_whole_masks(truth)])
    if not sum(map(len, metric.groundtruth_labels)):
        return {kind: {} for kind in kinds}
    result = metric.compute()
    classes = result["classes"].flatten().tolist()
    precisions: dict[str, dict[int, Tensor]] = {}
    for kind in kinds:
        # Precision by threshold, recall, class, size of objects and number of detections; -1 if there are no objects.
        precision = result[f"{kind}_precision" if len(kinds) > 1 else "precision"][..., ANY_SIZE, HUNDRED].double()
        precision = precision.where(precision >= 0, torch.nan)
        precisions[kind] = dict(zip(classes, precision.unbind(2), strict=True))
    return precisions


def codes_of(masks: Tensor) -> list[dict[str, Any]]:
    """Masks `(N, H, W)` in pycocotools' run-length code."""
    from pycocotools import mask

    return [mask.encode(np.asfortranarray(one.cpu().numpy().astype(np.uint8))) for one in masks]


def codes_of_detections(found: Detections, truth: Objects) -> list[dict[str, Any]]:
    """The masks of detections over the whole image, one after the other: a hundred of them are large."""
    size = (truth["masks"].shape[1], truth["masks"].shape[2])
    alone = cast("dict[str, Tensor]", found)
    codes = []
    for row in range(len(found["labels"])):
        one = cast("Detections", {name: value[row : row + 1].detach().cpu() for name, value in alone.items()})
        codes += codes_of(paste_masks(one, size) >= LEAST_OF_MASK)
    return codes


def with_whole_masks(image: dict[str, Any]) -> dict[str, Any]:
    """The same detections or objects with masks bool `(N, H, W)` instead of their code, if they have any."""
    if "masks" not in image:
        return image
    from pycocotools import mask

    whole = [torch.from_numpy(mask.decode(code)).bool() for code in image["masks"]]
    return image | {"masks": torch.stack(whole) if whole else torch.zeros(0, 1, 1, dtype=torch.bool)}


def on_cpu(tensors: Any) -> dict[str, Tensor]:
    """Detections or objects without masks."""
    return {name: value.detach().cpu() for name, value in tensors.items() if name != "masks"}
