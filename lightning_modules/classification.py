"""Image classification: one class per image, or any number of labels."""

from collections.abc import Sequence

from torch import Tensor
from torchvision.transforms import v2

from lightning_modules.base import Batch, GraftModule
from lightning_modules.metrics import ClassificationScores
from lightning_modules.multi_label import MultiLabelScores


class ClassificationModule(GraftModule):
    """Trains a classifier; logits `(B, num_classes)`, scores top-1 and top-5 accuracy.

    With `several_labels`, targets are 0 or 1 `(B, num_classes)`, and scores are mAP and hits among the highest.
    """

    task = "classification"
    monitor = "val/top1"
    mixing: Sequence[v2.Transform] = ()
    """One of these is drawn for each training batch. Not part of a checkpoint: a trained network has no use for it."""

    def new_scores(self) -> ClassificationScores | MultiLabelScores:
        if self.hparams["several_labels"]:
            self.monitor = "val/map"
            return MultiLabelScores(len(self.hparams["class_names"]))
        return ClassificationScores(len(self.hparams["class_names"]), self.hparams["ignore_index"])

    def mix_batches(self, mixup: float, cutmix: float) -> None:
        """Enable MixUp and CutMix, which mix two images and their labels.

        MixUp (Zhang et al. 2017, arXiv:1710.09412) blends two images, CutMix (Yun et al. 2019, arXiv:1905.04899) pastes
        a part of one into the other. Training then minimises the cross-entropy with the mixed labels.

        Args:
            mixup, cutmix: alpha; each method draws the fraction of the other image from Beta(alpha, alpha). 0 turns it
                off.

        Raises:
            ValueError: the loss is not plain cross-entropy.
        """
        if self.hparams["loss"] != "cross_entropy" or self.hparams["class_weights"] is not None:
            raise ValueError("mixed images need --loss cross_entropy without --class-weights")
        classes = len(self.hparams["class_names"])
        ways = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        self.mixing = tuple(way(alpha=alpha, num_classes=classes) for way, alpha in ways if alpha)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        if self.mixing:
            image, target = v2.RandomChoice(list(self.mixing))(batch["image"], batch["target"])
            batch = {**batch, "image": image, "target": target}
        return super().training_step(batch, batch_index)
