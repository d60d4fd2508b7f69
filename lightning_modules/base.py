"""What classification and segmentation share: the network, the optimiser, the schedule and the one step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics import MeanMetric

from backbones.weights import read_state
from heads.head import Task
from lightning_modules.blocks import blocks, depths, recompute_activations
from lightning_modules.losses import FOR_MAPS, WeightedSum, terms
from lightning_modules.metrics import ClassificationScores, EpochLoss, SegmentationScores
from lightning_modules.network import Network
from lightning_modules.schedules import learning_rate_factor

Batch = Mapping[str, Any]
AUX_CLASSIFIER_WEIGHT = 0.3  # of each auxiliary classifier (Szegedy et al. 2014, section 5)


class GraftModule(pl.LightningModule):
    """A network in training. Every argument is a plain value, so a checkpoint rebuilds the module by itself.

    Args:
        backbone, head: names; see `backbones.BACKBONES` and `heads.HEADS`.
        class_names: one name per class, in the order of the labels.
        weights: what the backbone starts from. Not kept in checkpoints, which hold the weights themselves.
        loss: a name or a weighted sum of names, such as "cross_entropy+0.5*dice"; see `losses.LOSSES`.
        class_weights: one number per class, for the losses; None for equal ones.
        aux_weight: of the loss of an auxiliary FCN head on the map of stride 16, which works in training only; 0 builds
            none. For classification, of GoogLeNet's auxiliary classifiers; None is their paper's 0.3.
        crf: settings of a fully connected CRF that is learned with the network; see `heads.crf.CRFSettings`.
        lr: base learning rate; the backbone's is `lr * backbone_lr_mult`.
        freeze_backbone: its parameters get no gradient, and it stays in evaluation mode: batch norms keep their
            statistics.
        freeze_norms: the backbone's batch norms keep their statistics; their scales and shifts are learned.
        layer_decay: the rate of each layer of the backbone is that of the layer after it times this.
        checkpoint_activations: see `blocks.recompute_activations`.
        warmup: share of all optimiser steps over which the rate rises linearly.
        preprocessing: size rule, mean, std and colours of the data, which checkpoints keep for prediction; see
            `GraftDataModule.preprocessing`.

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
        crf: dict[str, Any] | None = None,
        loss: str = "cross_entropy",
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        aux_weight: float | None = None,
        ignore_index: int = 255,
        optimizer: str = "adamw",
        lr: float = 1e-3,
        backbone_lr_mult: float = 1.0,
        freeze_backbone: bool = False,
        freeze_norms: bool = False,
        layer_decay: float = 1.0,
        checkpoint_activations: bool = False,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        schedule: str = "poly",
        warmup: float = 0.05,
        preprocessing: dict[str, Any] | None = None,
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
            aux=None if aux_weight is None else aux_weight != 0,
        )
        if optimizer not in ("sgd", "adamw"):
            raise ValueError(f"no optimizer '{optimizer}'; there are sgd, adamw")
        if self.network.task != self.task:
            raise ValueError(f"{head} is a {self.network.task} head; this module is for {self.task}")
        self.crf: nn.Module | None = None
        if crf is not None:
            self.add_crf(crf, trainable=True)
        learning_rate_factor(schedule, 0, 1, 0)  # refuses unknown names now, not after the first epoch
        self.loss: nn.Module = WeightedSum(
            loss,
            len(class_names),
            ignore_index=ignore_index,
            class_weights=class_weights,
            label_smoothing=label_smoothing,
        )
        for _, name in terms(loss):
            if name in FOR_MAPS and self.task != "segmentation":
                raise ValueError(f"--loss {name} weighs pixels by their neighbours; it is for segmentation heads only")
        self.aux_weight = AUX_CLASSIFIER_WEIGHT if aux_weight is None else aux_weight
        self.freeze_backbone = freeze_backbone
        if freeze_backbone:
            self.network.backbone.requires_grad_(False)
        self.freeze_norms = freeze_norms
        if checkpoint_activations:
            recompute_activations(self.network.backbone)
        self.train_loss = EpochLoss()
        self.seed = torch.initial_seed()
        splits = ("val", "test")
        self.metrics = nn.ModuleDict({split: self.new_scores(len(class_names), ignore_index) for split in splits})
        # float64: the mean over a split must not depend on how it was cut into batches and processes
        self.losses = nn.ModuleDict({split: MeanMetric().set_dtype(torch.float64) for split in splits})

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.freeze_backbone:
            self.network.backbone.eval()
        if self.freeze_norms:
            for part in self.network.backbone.modules():
                if isinstance(part, _BatchNorm):  # of any kind, SyncBatchNorm too
                    part.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.refine(self.network(x), x)

    def add_crf(self, settings: dict[str, Any], *, trainable: bool) -> None:
        """Refine the logits by a fully connected CRF from now on."""
        raise ValueError(f"a CRF refines segmentations; {self.hparams['head']} is a {self.task} head")

    def refine(self, logits: Tensor, images: Tensor) -> Tensor:
        """The network's logits after what follows the network: nothing, or a CRF, which sees the images too."""
        return logits if self.crf is None else self.crf(logits, images)

    def start_from(self, checkpoint: str) -> list[str]:
        """Take over another run's network as far as names and shapes agree, such as FCN-32s's under FCN-16s.

        Returns:
            The names of the tensors that stay as initialised.

        Raises:
            ValueError: the file cannot be read, or its backbone or all of its head is another.
        """
        there = {
            name.removeprefix("network."): value
            for name, value in read_state(Path(checkpoint), "--start-from").items()
            if name.startswith("network.")
        }
        own = self.network.state_dict()
        fits = {name: value for name, value in there.items() if name in own and own[name].shape == value.shape}
        left = [name for name in own if name not in fits]
        strange = [name for name in left if name.startswith("backbone.")]
        if strange:
            raise ValueError(
                f"--start-from {checkpoint}: its backbone is another (it has no {strange[0]} of that shape)"
            )
        if not any(name.startswith("head.") for name in fits):
            raise ValueError(
                f"--start-from {checkpoint}: nothing of its head fits; use --weights to take its backbone only"
            )
        self.network.load_state_dict(fits, strict=False)
        return left

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
        logits, aux = self.network.forward_with_aux(images) if aux_too else (self.network(images), [])
        logits = self.refine(logits, images)
        losses = [self.loss(one.float(), target) for one in (logits, *aux)]
        loss = losses[0] + self.aux_weight * sum(losses[1:]) if aux else losses[0]
        if split == "train":
            self.train_loss.update(loss.detach(), len(images))
            self.log("train/loss_step", loss, batch_size=len(images))
            self.log("train/loss_epoch", self.train_loss, on_step=False, on_epoch=True, batch_size=len(images))
        else:
            self.split_loss(split).update(loss, weight=len(images))
            self.split_scores(split).update(logits, target)
        return loss

    def on_train_epoch_start(self) -> None:
        self.train_loss.reset()

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        # Dropout and its like draw what (seed, process, epoch, batch) say: a run that goes on draws what it would have.
        place = (self.seed, self.global_rank, self.current_epoch, batch_index)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        return self._step(batch, "train")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["train_loss"] = self.train_loss.over_all_processes().tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "train_loss" in checkpoint and self.global_rank == 0:  # summed over all; the others go on from nothing
            self.train_loss.totals += torch.tensor(checkpoint["train_loss"], dtype=torch.float64)

    # A batch is empty where --on-bad-sample skip has left out all of it.
    def validation_step(self, batch: Batch, batch_index: int) -> None:
        if len(batch["image"]):
            self._step(batch, "val")

    def test_step(self, batch: Batch, batch_index: int) -> None:
        if len(batch["image"]):
            self._step(batch, "test")

    def on_validation_start(self) -> None:
        if isinstance(self.network, FSDPModule):  # batch norms' statistics, which DDP shares at every step
            for buffer in self.network.buffers():
                torch.distributed.broadcast(buffer, 0)

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

    def configure_model(self) -> None:
        """Under FSDP2, spread the backbone's blocks, and what is left, over the processes. Called by the Trainer."""
        if self.device_mesh is None:
            return
        if not isinstance(self.network, FSDPModule):  # the Trainer calls this again for scoring
            mesh = self.device_mesh["data_parallel"]
            for block in blocks(self.network.backbone):
                fully_shard(block, mesh=mesh)
            fully_shard(self.network, mesh=mesh)
            register_fsdp_forward_method(self.network, "forward_with_aux")

    def configure_optimizers(self) -> Any:
        hparams = self.hparams
        groups = parameter_groups(
            self.network, hparams["lr"], hparams["backbone_lr_mult"], hparams["weight_decay"], hparams["layer_decay"]
        )
        if self.crf is not None:  # first, so that the rate in metrics.csv stays the head's; decay would weaken it
            groups.insert(0, {"params": list(self.crf.parameters()), "lr": hparams["lr"], "weight_decay": 0.0})
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


def parameter_groups(
    network: Network, lr: float, backbone_lr_mult: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Backbone and heads apart; norms and biases, the parameters with one axis, without weight decay.

    With `layer_decay`, a layer of the backbone learns at lr * backbone_lr_mult * layer_decay ** layers_after_it, where
    the head is one of them (Clark et al. 2020, arXiv:2003.10555; for images Bao et al. 2021).
    """
    heads = nn.ModuleList([network.head] if network.aux_head is None else [network.head, network.aux_head])
    rates: list[tuple[float, nn.Parameter]] = []
    depth, layers = depths(network.backbone) if layer_decay != 1 else ({}, 0)
    for name, parameter in network.backbone.named_parameters():
        rates.append((lr * backbone_lr_mult * layer_decay ** (layers - depth.get(name, layers)), parameter))
    rates += [(lr, parameter) for parameter in heads.parameters()]
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    own = {id(parameter) for parameter in heads.parameters()}
    for rate, parameter in rates:
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in own, rate, parameter.ndim < 2), []).append(parameter)
    return [
        {"params": groups[key], "lr": key[1], "weight_decay": 0.0 if key[2] else weight_decay} for key in sorted(groups)
    ]
