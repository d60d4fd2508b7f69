"""What classification and segmentation share: the network, the optimiser, the schedule and the one step."""

from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from heads.head import Task
from lightning_modules.losses import find_loss
from lightning_modules.metrics import ClassificationScores, SegmentationScores
from lightning_modules.network import Network
from lightning_modules.schedules import learning_rate_factor

Batch = Mapping[str, Any]
AUX_WEIGHT = 0.3  # of each auxiliary classifier (Szegedy et al. 2014, section 5)


class GraftModule(pl.LightningModule):
    """A network in training. Every argument is a plain value, so a checkpoint rebuilds the module by itself.

    Args:
        backbone, head: names; see `backbones.BACKBONES` and `heads.HEADS`.
        class_names: one name per class, in the order of the labels.
        weights: what the backbone starts from. Not kept in checkpoints, which hold the weights themselves.
        class_weights: of the cross entropy, one a class.
        lr: base learning rate; the backbone's is `lr * backbone_lr_mult`.
        freeze_backbone: its parameters get no gradient, and it stays in evaluation mode: batch norms keep their
            statistics.
        warmup: share of all optimiser steps over which the rate rises linearly.

    Raises:
        ValueError: a name, an option or a pair that cannot work.
    """

    task: Task
    monitor: str
    """The validation score that picks the best checkpoint; larger is better."""

    def __init__(
        self,
        backbone: str,
        head: str,
        class_names: Sequence[str],
        *,
        weights: str | None = None,
        output_stride: int | None = None,
        in_channels: int = 3,
        backbone_options: dict[str, Any] | None = None,
        head_options: dict[str, Any] | None = None,
        loss: str = "cross_entropy",
        class_weights: Sequence[float] | None = None,
        ignore_index: int = 255,
        optimizer: str = "adamw",
        lr: float = 1e-3,
        backbone_lr_mult: float = 1.0,
        freeze_backbone: bool = False,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        schedule: str = "poly",
        warmup: float = 0.05,
    ) -> None:
        super().__init__()
        class_names = list(class_names)
        self.save_hyperparameters(ignore=["weights"])
        self.network = Network(
            backbone,
            head,
            len(class_names),
            weights=weights,
            output_stride=output_stride,
            in_channels=in_channels,
            backbone_options=backbone_options,
            head_options=head_options,
        )
        if optimizer not in ("sgd", "adamw"):
            raise ValueError(f"no optimizer '{optimizer}'; there are sgd, adamw")
        if self.network.task != self.task:
            raise ValueError(f"{head} is a {self.network.task} head; this module is for {self.task}")
        learning_rate_factor(schedule, 0, 1, 0)  # refuses unknown names now, not after the first epoch
        self.loss = find_loss(loss, class_weights)
        self.freeze_backbone = freeze_backbone
        if freeze_backbone:
            self.network.backbone.requires_grad_(False)
        splits = ("val", "test")
        self.metrics = nn.ModuleDict({split: self.new_scores(len(class_names), ignore_index) for split in splits})
        # float64: the mean over a split must not depend on how it was cut into batches and processes
        self.losses = nn.ModuleDict({split: MeanMetric().set_dtype(torch.float64) for split in splits})

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.freeze_backbone:
            self.network.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def new_scores(self, num_classes: int, ignore_index: int) -> SegmentationScores | ClassificationScores:
        """The metric that gathers one split's scores."""
        raise NotImplementedError

    def split_scores(self, split: str) -> SegmentationScores | ClassificationScores:
        """The scores of "val" or "test", as counted since its last pass began."""
        return cast("SegmentationScores | ClassificationScores", self.metrics[split])

    def split_loss(self, split: str) -> MeanMetric:
        return cast("MeanMetric", self.losses[split])

    def _step(self, batch: Batch, split: str) -> Tensor:
        images, target = batch["image"], batch["target"]
        # Only networks that have auxiliary classifiers leave `forward`, which is what torch.compile compiles.
        aux_too = split == "train" and self.network.has_aux
        logits, aux = self.network.forward_with_aux(images) if aux_too else (self(images), [])
        losses = [self.loss(one.float(), target, self.hparams["ignore_index"]) for one in (logits, *aux)]
        loss = losses[0] + AUX_WEIGHT * sum(losses[1:]) if aux else losses[0]
        if split == "train":
            self.log("train/loss", loss, on_step=True, on_epoch=True, batch_size=len(images))
        else:
            self.split_loss(split).update(loss, weight=len(images))
            self.split_scores(split).update(logits, target)
        return loss

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        return self._step(batch, "train")

    # A batch is empty where --on-bad-sample skip has left out all of it.
    def validation_step(self, batch: Batch, batch_index: int) -> None:
        if batch["name"]:
            self._step(batch, "val")

    def test_step(self, batch: Batch, batch_index: int) -> None:
        if batch["name"]:
            self._step(batch, "test")

    # Cleared where a pass begins: what is counted stays readable after it, for pictures and logs.
    def on_validation_epoch_start(self) -> None:
        self._clear_scores("val")

    def on_test_epoch_start(self) -> None:
        self._clear_scores("test")

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _clear_scores(self, split: str) -> None:
        self.split_scores(split).reset()
        self.split_loss(split).reset()

    def _log_scores(self, split: str) -> None:
        # The metric objects sum their counts over the processes, so all ranks log the same numbers.
        self.log(f"{split}/loss", self.split_loss(split).compute().float())
        for name, value in self.split_scores(split).scores(self.hparams["class_names"]).items():
            self.log(f"{split}/{name}", value.float())

    def configure_optimizers(self) -> Any:
        hparams = self.hparams
        groups = parameter_groups(self.network, hparams["lr"], hparams["backbone_lr_mult"], hparams["weight_decay"])
        if hparams["optimizer"] == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=hparams["lr"], momentum=hparams["momentum"])
        else:
            optimizer = torch.optim.AdamW(groups, lr=hparams["lr"])
        total = int(self.trainer.estimated_stepping_batches)
        warmup = round(total * hparams["warmup"])

        def factor(step: int) -> float:
            return learning_rate_factor(hparams["schedule"], step, total, warmup)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def parameter_groups(network: Network, lr: float, backbone_lr_mult: float, weight_decay: float) -> list[dict[str, Any]]:
    """Backbone and head apart; norms and biases, the parameters with one axis, without weight decay."""
    groups = []
    for part, rate in ((network.backbone, lr * backbone_lr_mult), (network.head, lr)):
        for axes, decay in ((True, weight_decay), (False, 0.0)):
            parameters = [p for p in part.parameters() if p.requires_grad and (p.ndim > 1) == axes]
            if parameters:
                groups.append({"params": parameters, "lr": rate, "weight_decay": decay})
    return groups
