"""Semantic segmentation: one class per pixel."""

from typing import Any

from heads.crf import CRFSettings
from lightning_modules.base import GraftModule
from lightning_modules.metrics import SegmentationScores
from lightning_modules.refinement import CRFRefinement


class SegmentationModule(GraftModule):
    """Trains a segmentation head; logits `(B, num_classes, H, W)`, scores mIoU, per-class IoU, pixel accuracy."""

    task = "segmentation"
    monitor = "val/miou"

    def new_scores(self) -> SegmentationScores:
        return SegmentationScores(len(self.hparams["class_names"]), self.hparams["ignore_index"])

    def add_crf(self, settings: dict[str, Any], *, trainable: bool) -> None:
        # The CRF undoes the normalisation of the images, which is the one that the backbone's weights expect.
        mean, std = self.network.backbone.mean, self.network.backbone.std
        classes = len(self.hparams["class_names"])
        self.crf = CRFRefinement(CRFSettings(**settings), classes, mean, std, trainable=trainable).to(self.device)
