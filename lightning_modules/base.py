"""Base module of all tasks: the network, its loss and scores, the optimiser and the schedule."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from heads import find_head
from heads.head import Task
from heads.placing import Placement
from lightning_modules import freezing
from lightning_modules.blocks import recompute_activations
from lightning_modules.calibration import TemperatureFit
from lightning_modules.detection_scores import DetectionScores
from lightning_modules.losses import SEGMENTATION_ONLY, WeightedSum, terms
from lightning_modules.metrics import ClassificationScores, EpochLoss, SegmentationScores
from lightning_modules.multi_label import MultiLabelScores
from lightning_modules.network import Network
from lightning_modules.optimizers import OPTIMIZERS, make_optimizer
from lightning_modules.own_size import at_own_sizes
from lightning_modules.parameter_groups import parameter_groups
from lightning_modules.schedules import learning_rate_factor
from lightning_modules.seeding import SeedSteps
from lightning_modules.sharding import ShardedEvaluation, is_sharded, shard
from lightning_modules.start_from import load_matching_weights

Batch = Mapping[str, Any]
Scores = SegmentationScores | ClassificationScores | MultiLabelScores | DetectionScores
AUX_CLASSIFIER_WEIGHT = 0.3
"""Weight of the loss of each auxiliary classifier (Szegedy et al. 2014, section 5)."""


class GraftModule(pl.LightningModule):
    """Trains a network. Every argument is a plain value, so a checkpoint alone is enough to rebuild the module.

    Args:
        backbone, head: names; see `backbones.BACKBONES` and `heads.HEADS`.
        class_names: one name per class, in the order of the labels; two or more.
        weights: what the backbone starts from. Not kept in checkpoints, which hold the weights themselves.
        output_stride, in_channels, backbone_options, head_options, placement: see `Network`.
        mean_image: H and W of a mean image that is subtracted; see `mean_image.MeanImage`.
        crf: settings of a fully connected CRF that is learned with the network; see `heads.crf.CRFSettings`.
        loss: a name or a weighted sum of names, such as "cross_entropy+0.5*dice"; see `losses.LOSSES`.
        class_weights: one number per class, for the losses; None for equal ones.
        label_smoothing: see `losses.Target.smoothing`.
        aux_weight: weight of the auxiliary loss. Segmentation: loss of an auxiliary FCN head on the stride-16 map, used
            in training only; 0 or None builds no such head. Classification: loss of GoogLeNet's auxiliary classifiers;
            None means the paper's 0.3, and 0 builds none.
        several_labels: images have any number of labels: targets are 0 or 1 `(B, C)`, the loss is binary_cross_entropy.
        ignore_index: label of the targets that do not count.
        optimizer: "sgd", "adamw" or "rmsprop", which has the decay of 0.9 and the epsilon of 0.001 of EfficientNet.
        lr: base learning rate; the backbone's is `lr * backbone_lr_mult`.
        bias_lr_mult: rate of the biases of linear layers and convolutions, as a multiple of that of the weights.
        freeze_backbone: its parameters get no gradient, and it stays in evaluation mode, so its batch norms keep their
            statistics.
        freeze_stages: all parameters that the first so many maps of the backbone depend on get no gradient, and their
            batch norms keep their statistics.
        freeze_norms: the backbone's batch norms keep their statistics, also those that a detector applies to regions;
            their scales and shifts are learned.
        norm_momentum: share of each batch in the running statistics of batch norms; None: 0.1 or the network's own.
        layer_decay: layer-wise learning-rate decay in the backbone: the learning rate of each layer is this factor
            times that of the layer after it.
        checkpoint_activations: see `blocks.recompute_activations`.
        momentum: of SGD.
        weight_decay: see `parameter_groups.decayed_parameters`.
        schedule: a name in `schedules.SCHEDULES`.
        milestones: of the schedule step; see `schedules.learning_rate_factor`.
        warmup: fraction of all optimiser steps over which the learning rate rises linearly.
        ap_rule: of detection; see `detection_scores.RULES`.
        preprocessing: size rule, mean, std and colours of the data, which checkpoints keep for prediction; see
            `GraftDataModule.preprocessing`.

    Raises:
        ValueError: a name, an option or a pair that cannot work.
    """

    task: Task
    monitor: str
    """The validation score that picks the best checkpoint; larger is better."""
    least_classes: ClassVar[int] = 2

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
        placement: Placement = "placed",
        mean_image: Sequence[int] | None = None,
        crf: dict[str, Any] | None = None,
        loss: str = "cross_entropy",
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        aux_weight: float | None = None,
        several_labels: bool = False,
        ignore_index: int = 255,
        optimizer: str = "adamw",
        lr: float = 1e-3,
        backbone_lr_mult: float = 1.0,
        bias_lr_mult: float = 1.0,
        freeze_backbone: bool = False,
        freeze_stages: int = 0,
        freeze_norms: bool = False,
        norm_momentum: float | None = None,
        layer_decay: float = 1.0,
        checkpoint_activations: bool = False,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        schedule: str = "poly",
        milestones: Sequence[float] | None = None,
        warmup: float = 0.05,
        ap_rule: str = "coco",
        preprocessing: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        class_names = list(class_names)
        self.save_hyperparameters(ignore=["weights"])
        self._check()
        self.network = self._network(len(class_names), weights)
        if freeze_backbone:
            self.network.backbone.requires_grad_(False)
        if freeze_stages:
            freezing.freeze_stages(self.network.backbone, freeze_stages, in_channels)
        if norm_momentum is not None:
            for part in self.network.modules():
                if isinstance(part, _BatchNorm):
                    part.momentum = norm_momentum
        if checkpoint_activations:
            recompute_activations(self.network.backbone)
        self.compiled_with_aux: Callable[[Tensor], tuple[Tensor, list[Tensor]]] | None = None
        self.crf: nn.Module | None = None
        if crf is not None:
            self.add_crf(crf, trainable=True)
        self.loss = self.new_loss()
        self.aux_weight = AUX_CLASSIFIER_WEIGHT if aux_weight is None else aux_weight
        self.seed = torch.initial_seed()
        self.train_loss = EpochLoss()
        self.losses = nn.ModuleDict({split: EpochLoss(self.coefficients()) for split in ("val", "test")})
        self.metrics = nn.ModuleDict({split: self.new_scores() for split in ("val", "test")})
        self.calibration = TemperatureFit(ignore_index)
        self.temperature = 1.0  # fitted by the last validation; only programs that predict divide logits by it

    def _network(self, classes: int, weights: str | None = None) -> Network:
        h = self.hparams
        return Network(
            h["backbone"],
            h["head"],
            classes,
            weights=weights,
            output_stride=h["output_stride"],
            in_channels=h["in_channels"],
            backbone_options=h["backbone_options"],
            head_options=h["head_options"],
            aux=None if h["aux_weight"] is None else h["aux_weight"] != 0,
            placement=h["placement"],
            mean_image=None if h["mean_image"] is None else (h["mean_image"][0], h["mean_image"][1]),
        )

    def _check(self) -> None:
        """Reject settings that cannot work before the network is built."""
        hparams = self.hparams
        head, names, task = hparams["head"], hparams["class_names"], find_head(hparams["head"]).task
        if task != self.task:
            raise ValueError(f"{head} is a {task} head; this module is for {self.task}")
        if len(names) < self.least_classes:
            what = f"{len(names)} classes ({', '.join(names)})"
            raise ValueError(f"there are {what}; a loss needs {self.least_classes} or more")
        if hparams["optimizer"] not in OPTIMIZERS:
            raise ValueError(f"no optimizer '{hparams['optimizer']}'; there are {', '.join(OPTIMIZERS)}")
        learning_rate_factor(hparams["schedule"], 0, 1, 0, hparams["milestones"])  # rejects what it does not know
        if hparams["several_labels"] and (task != "classification" or hparams["loss"] != "binary_cross_entropy"):
            raise ValueError(
                f"images with several labels need a classification head and --loss binary_cross_entropy alone; these "
                f"are {head} and {hparams['loss']}"
            )
        for _, name in terms(hparams["loss"]):
            if name in SEGMENTATION_ONLY and self.task != "segmentation":
                raise ValueError(f"--loss {name} weighs pixels by their neighbours; it is for segmentation heads only")

    def configure_callbacks(self) -> list[pl.Callback]:
        return [SeedSteps(self.seed), ShardedEvaluation()]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.hparams["freeze_backbone"]:
            self.network.backbone.eval()
        for published in filter(None, (self.network.backbone, self.network.published_classifier())):
            for part in published.modules():
                if isinstance(part, _BatchNorm):  # of any kind, SyncBatchNorm too
                    frozen = self.hparams["freeze_stages"] and part.affine and not part.weight.requires_grad
                    if frozen or self.hparams["freeze_norms"]:
                        part.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.refine(self.network(x), x)

    def add_crf(self, settings: dict[str, Any], *, trainable: bool) -> None:
        """Refine the logits by a fully connected CRF from now on."""
        raise ValueError(f"a CRF refines segmentations; {self.hparams['head']} is a {self.task} head")

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities of logits `(B, C, ...)`; of several labels each by itself."""
        return logits.sigmoid() if self.hparams["several_labels"] else logits.softmax(1)

    def refine(self, logits: Tensor, images: Tensor) -> Tensor:
        """Refine the logits with the CRF, if there is one; otherwise return them unchanged.

        Args:
            images: the network's normalised inputs.
        """
        return logits if self.crf is None else self.crf(logits, images)

    def start_from(self, checkpoint: str) -> list[str]:
        """Initialise the network from another run's checkpoint; see `start_from.load_matching_weights`."""

        def wider() -> Network:
            with torch.device("meta"):
                return self._network(len(self.hparams["class_names"]) + 1)

        return load_matching_weights(self.network, checkpoint, self.hparams["class_names"], wider)

    def compile_network(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile the network with torch.compile, both for evaluation and for training with auxiliary losses.

        Raises:
            ValueError: the backbone's option `memory_efficient` is on, whose recomputation cannot be traced.
        """
        if (self.hparams["backbone_options"] or {}).get("memory_efficient"):
            raise ValueError(
                "--compile does not work with the backbone's option memory_efficient; use --checkpoint-activations"
            )
        self.network.compile(backend=backend)
        # Looked up when it is called, because FSDP2 replaces the method.
        self.compiled_with_aux = torch.compile(lambda images: self.network.forward_with_aux(images), backend=backend)

    def new_loss(self) -> nn.Module:
        """The loss: called with logits and target, and in evaluation by its `sums`."""
        hparams = self.hparams
        return WeightedSum(
            hparams["loss"],
            len(hparams["class_names"]),
            ignore_index=hparams["ignore_index"],
            class_weights=hparams["class_weights"],
            label_smoothing=hparams["label_smoothing"],
        )

    def coefficients(self) -> list[float]:
        """The factors of the terms that the loss is the sum of."""
        return [coefficient for coefficient, _ in terms(self.hparams["loss"])]

    def new_scores(self) -> Scores:
        """The metric that gathers one split's scores."""
        raise NotImplementedError

    def split_scores(self, split: str) -> Scores:
        """The scores of "val" or "test", as counted since its last pass began."""
        return cast("Scores", self.metrics[split])

    def split_loss(self, split: str) -> EpochLoss:
        """The loss of "val" or "test", as summed since its last pass began."""
        return cast("EpochLoss", self.losses[split])

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        images, target = batch["image"], batch["target"]
        forward = self.compiled_with_aux or self.network.forward_with_aux
        logits, aux = forward(images) if self.network.has_aux else (self.network(images), [])
        borders = batch.get("border_weights")
        loss = cast("Tensor", self.loss(self.refine(logits, images), target, borders))
        if aux:
            loss = loss + self.aux_weight * sum(self.loss(one, target, borders) for one in aux)
        self._log_train_loss(loss, len(images))
        return loss

    def _log_train_loss(self, loss: Tensor, images: int) -> None:
        self.train_loss.update(loss.detach().to(self.train_loss.totals.dtype) * images, images)
        self.log("train/loss_step", loss, batch_size=images)
        self.log("train/loss_epoch", self.train_loss, on_step=False, on_epoch=True, batch_size=images)

    def on_train_epoch_start(self) -> None:
        self.train_loss.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["train_loss"] = self.train_loss.over_all_ranks()
        checkpoint["temperature"] = self.temperature

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # The saved totals are already summed over all ranks, so only rank 0 adds them.
        if "train_loss" in checkpoint and self.global_rank == 0:
            self.train_loss.add(checkpoint["train_loss"])
        self.temperature = checkpoint.get("temperature", 1.0)  # checkpoints of older versions have none

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self._score(batch, "val")

    def test_step(self, batch: Batch, batch_index: int) -> None:
        self._score(batch, "test")

    def _score(self, batch: Batch, split: str) -> None:
        if len(batch["image"]):  # a batch is empty if --on-bad-sample skip has left out all of it
            logits = self(batch["image"])
            for one, target in at_own_sizes(logits, batch["target"], batch.get("target_sizes")):
                self.split_loss(split).update(*cast("WeightedSum", self.loss).sums(one, target))
                cast("SegmentationScores", self.split_scores(split)).update(one, target)
                if split == "val" and not self.hparams["several_labels"]:
                    self.calibration.update(one, target)

    # Cleared where a pass begins, so that the counts stay readable after it, for pictures and logs.
    def on_validation_epoch_start(self) -> None:
        self._clear_scores("val")
        self.calibration.reset()

    def on_test_epoch_start(self) -> None:
        self._clear_scores("test")

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")
        self.temperature = self.calibration.temperature()

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _clear_scores(self, split: str) -> None:
        self.split_scores(split).reset()
        self.split_loss(split).reset()

    def _log_scores(self, split: str) -> None:
        # The metric objects sum their counts over the ranks, so all ranks log the same numbers.
        self.log(f"{split}/loss", self.split_loss(split).compute())
        for name, value in self.split_scores(split).scores(self.hparams["class_names"]).items():
            self.log(f"{split}/{name}", value.float())

    def configure_model(self) -> None:
        """Under FSDP2, shard the weights over the ranks. The Trainer calls this for training, and again for scoring."""
        if self.device_mesh is not None and not is_sharded(self.network):
            shard(self.network, self.crf, self.device_mesh["data_parallel"])

    def new_optimizer(self, *, fused: bool = True) -> torch.optim.Optimizer:
        """The optimiser over all parameters that are trained; for `fused`, see `optimizers.make_optimizer`."""
        hparams = self.hparams
        groups = parameter_groups(
            self.network,
            hparams["lr"],
            hparams["backbone_lr_mult"],
            hparams["weight_decay"],
            hparams["layer_decay"],
            hparams["bias_lr_mult"],
        )
        if self.crf is not None:
            # Inserted first, because metrics.csv logs the learning rate of the last group, the head's. No weight decay,
            # because it would shrink the CRF's weights.
            groups.insert(0, {"params": list(self.crf.parameters()), "lr": hparams["lr"], "weight_decay": 0.0})
        return make_optimizer(hparams["optimizer"], groups, hparams["lr"], hparams["momentum"], fused=fused)

    def configure_optimizers(self) -> Any:
        # With float16, fused optimisers undo the loss scale themselves, and Lightning then cannot clip gradients.
        optimizer = self.new_optimizer(fused=self.trainer.precision != "16-mixed" and self.device_mesh is None)
        hparams = self.hparams
        total = int(self.trainer.estimated_stepping_batches)
        warmup = round(total * hparams["warmup"])

        def factor(step: int) -> float:
            return learning_rate_factor(hparams["schedule"], step, total, warmup, hparams["milestones"])

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
