"""Image classification: one class per image."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from lightning_modules.base import Batch, GraftModule
from lightning_modules.metrics import ClassificationScores


class ClassificationModule(GraftModule):
    """Trains a classifier; logits `(B, num_classes)`, scores top-1 and top-5 accuracy."""

    task = "classification"
    monitor = "val/top1"
    mixing: Sequence[v2.Transform] = ()
    """One of these is drawn for each training batch. No part of a checkpoint: a trained network has no use for it."""

    def new_scores(self, num_classes: int, ignore_index: int) -> ClassificationScores:
        return ClassificationScores(num_classes)

    def mix_batches(self, mixup: float, cutmix: float) -> None:
        """Train on mixtures of two images and of their classes; 0 leaves one of the two ways out.

        MixUp (Zhang et al. 2017, arXiv:1710.09412) blends them, CutMix (Yun et al. 2019, arXiv:1905.04899) pastes a
        part of one into the other, with a share drawn from Beta(alpha, alpha).
        """
        classes = len(self.hparams["class_names"])
        ways = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        self.mixing = tuple(way(alpha=alpha, num_classes=classes) for way, alpha in ways if alpha)
        self.loss = SoftTargets(self.loss)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        if self.mixing:
            image, target = v2.RandomChoice(list(self.mixing))(batch["image"], batch["target"])
            batch = {**batch, "image": image, "target": target}
        return self._step(batch, "train")


class SoftTargets(nn.Module):
    """A loss that also takes class probabilities `(B, C)`, by their mean cross-entropy."""

    def __init__(self, of_classes: nn.Module) -> None:
        super().__init__()
        self.of_classes = of_classes

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target) if target.is_floating_point() else self.of_classes(logits, target)
