"""Image classification: one class per image."""

from lightning_modules.base import GraftModule
from lightning_modules.metrics import ClassificationScores


class ClassificationModule(GraftModule):
    """Trains a classifier; logits `(B, num_classes)`, scores top-1 and top-5 accuracy."""

    task = "classification"
    monitor = "val/top1"

    def new_scores(self, num_classes: int, ignore_index: int) -> ClassificationScores:
        return ClassificationScores(num_classes)
