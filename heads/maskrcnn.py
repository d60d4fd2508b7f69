"""Mask R-CNN on a feature pyramid. He, Gkioxari, Dollár, Girshick 2017, arXiv:1703.06870.

Faster R-CNN (`fasterrcnn.py`) with a third branch: RoIAlign takes 14x14 values of each detection, four 3x3 convolutions
and a transposed one turn them into a mask of 28x28 values for each class, and the mask of the detection's class counts.
In training, the branch learns the masks of the regions that have an object. Layers, their names, initial values and all
numbers are torchvision's (`maskrcnn_resnet50_fpn`, 44,401,393 parameters at 90 classes).

Detections hold the 28x28 probabilities within their box, not a mask of the image, which would take a gigabyte for a
thousand objects of a megapixel; `paste_masks` makes masks of the image of them. Differences are those of `fasterrcnn`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import roi_align

from heads.box_head import Detections, Objects, Size, Sums, exact
from heads.fasterrcnn import FasterRCNN, Outputs
from heads.regions import Drawn


class MaskBranch(nn.Module):
    """Values `(R, width, 14, 14)` of regions -> logits `(R, C + 1, 28, 28)` of the masks of each class."""

    SIDE = 14

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.mask_head = MaskRCNNHeads(width, (width,) * 4, 1)
        self.mask_predictor = MaskRCNNPredictor(width, width, num_classes + 1)

    def forward(self, pooled: Tensor) -> Tensor:
        return exact(self.mask_predictor(self.mask_head(pooled)))


class MaskRCNN(FasterRCNN):
    """Faster R-CNN that also finds the mask of each object; takes the options of `fasterrcnn`."""

    loss_terms = (*FasterRCNN.loss_terms, "masks")
    needs_masks = True

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        *,
        width: int = 256,
        hidden: int = 1024,
        anchor_scale: float = 8.0,
        regions: int = 512,
        score_threshold: float = 0.05,
        overlap: float = 0.5,
        most: int = 100,
    ) -> None:
        super().__init__(
            channels,
            reductions,
            num_classes,
            width=width,
            hidden=hidden,
            anchor_scale=anchor_scale,
            regions=regions,
            score_threshold=score_threshold,
            overlap=overlap,
            most=most,
        )
        self.masks = MaskBranch(width, num_classes)

    def losses(self, outputs: Outputs, targets: Sequence[Objects], sizes: Sequence[Size]) -> dict[str, Sums]:
        terms, drawn = self.losses_and_regions(outputs, targets, sizes)
        return terms | {"masks": self.mask_loss(outputs, drawn, targets)}

    def mask_loss(self, outputs: Outputs, drawn: Drawn, targets: Sequence[Objects]) -> Sums:
        """The cross-entropy of the masks of the regions that have an object, and the number of their values."""
        if any("masks" not in objects for objects in targets):
            raise ValueError(
                "maskrcnn learns the masks of objects, and a target has boxes only; use fasterrcnn for those"
            )
        boxes = [regions[: len(indices)] for regions, indices in zip(drawn.boxes, drawn.objects, strict=True)]
        logits = self.masks(self.pool(outputs.maps, boxes, MaskBranch.SIDE))
        classes = drawn.classes[drawn.classes > 0]
        own = logits[torch.arange(len(classes), device=classes.device), classes]
        wanted = [
            masks_in_boxes(objects["masks"], regions, indices, logits.shape[-1])
            for objects, regions, indices in zip(targets, boxes, drawn.objects, strict=True)
        ]
        crossed = F.binary_cross_entropy_with_logits(own, torch.cat(wanted), reduction="sum")
        return crossed, torch.tensor(float(own.numel()), device=own.device)

    def detections(self, outputs: Outputs, sizes: Sequence[Size]) -> list[Detections]:
        found = super().detections(outputs, sizes)
        logits = self.masks(self.pool(outputs.maps, [one["boxes"] for one in found], MaskBranch.SIDE))
        start = 0
        for one in found:
            rows = torch.arange(start, start + len(one["labels"]), device=logits.device)
            one["masks"] = logits[rows, one["labels"] + 1].sigmoid()
            start += len(rows)
        return found


def masks_in_boxes(masks: Tensor, boxes: Tensor, objects: Tensor, side: int) -> Tensor:
    """The masks of objects within boxes, float32 `(P, side, side)`.

    Args:
        masks: of all objects of the image, `(N, H, W)`.
        boxes: `(P, 4)`.
        objects: index of the object of each box, `(P,)`.
    """
    regions = torch.cat([objects[:, None].to(boxes), boxes], 1)
    return roi_align(masks[:, None].to(boxes), regions, side, 1.0)[:, 0]


def paste_masks(found: Detections, size: Size) -> Tensor:
    """Probabilities `(N, H, W)` of each detection's mask over the whole image."""
    return paste_masks_in_image(found["masks"][:, None], found["boxes"], size)[:, 0]
