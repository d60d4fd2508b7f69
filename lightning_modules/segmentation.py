"""Semantic segmentation: one class per pixel."""

from lightning_modules.base import GraftModule
from lightning_modules.metrics import SegmentationScores


class SegmentationModule(GraftModule):
    """Trains a segmentation head; logits `(B, num_classes, H, W)`, scores mIoU, per-class IoU, pixel accuracy."""

    task = "segmentation"
    monitor = "val/miou"

    def new_scores(self, num_classes: int, ignore_index: int) -> SegmentationScores:
        return SegmentationScores(num_classes, ignore_index)
