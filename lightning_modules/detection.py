"""Object detection: boxes with a class."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from heads import find_head
from heads.box_head import BoxHead, Detections, Objects, Sums
from lightning_modules.base import Batch, GraftModule
from lightning_modules.detection_scores import DetectionScores
from lightning_modules.losses import mean_over_ranks

OF_OTHERS = {"loss": "cross_entropy", "class_weights": None, "label_smoothing": 0.0, "aux_weight": None, "crf": None}
"""Settings that only heads with logits have, with the values that they must keep."""


class DetectionModule(GraftModule):
    """Trains a box head by its own loss; scores mAP by the rule `ap_rule`, mAP at IoU 0.5 and each class's AP there.

    Batches hold, as "target", a list of the objects of each image, and as "sizes" H and W of each image if the batch
    pads them.
    """

    task = "detection"
    monitor = "val/map"
    least_classes = 1

    def _check(self) -> None:
        super()._check()
        head = self.hparams["head"]
        for name, default in OF_OTHERS.items():
            if self.hparams[name] not in (default, None):
                raise ValueError(f"{head} brings its own loss; leave --{name.replace('_', '-')} out")

    def new_loss(self) -> nn.Module:
        return nn.Identity()  # the loss lives in the head

    def coefficients(self) -> list[float]:
        head = cast("type[BoxHead]", find_head(self.hparams["head"]))
        return [1.0] * len(head.loss_terms)

    def new_scores(self) -> DetectionScores:
        return DetectionScores(self.hparams["ap_rule"])

    def compile_network(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile what depends on weights only; decoding and suppression have as many boxes as there are."""
        self.network.backbone.compile(backend=backend)
        self.network.head.compile(backend=backend)

    def forward(  # type: ignore[override]
        self, x: Tensor, proposals: Sequence[Tensor] | None = None
    ) -> list[Detections]:
        return self.network.detect(x, proposals=proposals)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        targets = [without_crowds(objects) for objects in batch["target"]]
        terms = self.network.losses(batch["image"], targets, sizes_of(batch))
        # The weights of one process with the whole batch would be at least 1; of a mean over ranks, that is the share.
        ranks = self.trainer.world_size
        loss = torch.stack(
            [total / mean_over_ranks(weight).clamp(min=1 / ranks) for total, weight in terms.values()]
        ).sum()
        self._log_train_loss(loss, len(batch["image"]))
        return loss

    def _score(self, batch: Batch, split: str) -> None:
        images, targets, sizes = batch["image"], batch["target"], sizes_of(batch)
        if not len(images):
            return
        head = cast("BoxHead", self.network.head)
        outputs = head(self.network.backbone(images))
        alone = [without_crowds(objects) for objects in targets]
        self.split_loss(split).update(*stacked(head.losses(outputs, alone, sizes)))
        scores = cast("DetectionScores", self.split_scores(split))
        if head.needs_proposals and all("proposals" in one for one in targets):
            outputs = head.with_proposals(outputs, [one["proposals"] for one in targets])
        truth = [{name: value for name, value in one.items() if name != "proposals"} for one in targets]
        scores.update(batch["name"], head.detections(outputs, sizes), cast("list[Objects]", truth))


def sizes_of(batch: Batch) -> list[tuple[int, int]]:
    """H and W of each image of a batch, without the padding."""
    height, width = batch["image"].shape[2:]
    return batch.get("sizes") or [(height, width)] * len(batch["image"])


def without_crowds(objects: Mapping[str, Tensor]) -> Objects:
    """The objects that train. In scores, crowds excuse the detections that they overlap."""
    if "iscrowd" not in objects:
        return cast("Objects", objects)
    single = objects["iscrowd"] == 0
    kept = {name: objects[name][single] for name in ("boxes", "labels", "masks") if name in objects}
    return cast("Objects", kept | {name: objects[name] for name in ("proposals",) if name in objects})


def stacked(terms: dict[str, Sums]) -> Sums:
    """The sums of losses and those of weights, `(terms,)` each."""
    totals, weights = zip(*terms.values(), strict=True)
    return torch.stack(totals), torch.stack(weights)
