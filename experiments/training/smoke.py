"""`run.py --smoke`: a few minutes of a run at reduced size, which show whether its loss falls."""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from backbones import find_backbone
from experiments.callbacks.finite_loss import FiniteLoss
from experiments.command_line.parser import dashed
from experiments.command_line.progress import duration
from experiments.command_line.run_config import RunConfig
from experiments.run_files.run_folder import RunFolder
from experiments.training.build import prepare
from experiments.training.make_trainer import build_scratch_trainer
from experiments.training.rehearse import check_shapes
from heads import find_head
from heads.box_head import BoxHead

SECONDS = 300.0
STEPS = 200
BATCH = 4
SMALLER = 4
"""Factor by which images are smaller, unless the head sees images of one size."""
SECONDS_BETWEEN_LINES = 10.0
COMPARED = 4
"""The mean loss of the first 1 / COMPARED of the steps is compared with that of the last."""


def smoke(config: RunConfig) -> int:
    """Train for at most `STEPS` steps or `SECONDS`, and print how the loss changed. No file is kept.

    Returns:
        The exit code: 1 if the loss has not fallen.

    Raises:
        ValueError: the settings or the data cannot work.
    """
    reduced = reduce(config)
    say = rank_zero_only(print)
    say(
        f"--smoke: {STEPS} steps or {duration(SECONDS)} of a reduced run; it keeps nothing, and its scores mean nothing"
    )
    for line in changes(config, reduced):
        say(f"  {line}", flush=True)
    data, module = prepare(reduced)
    check_shapes(reduced, module, data.image_size, data.batch_size)
    losses = LossLines()
    with tempfile.TemporaryDirectory() as scratch:
        callbacks = [FiniteLoss(RunFolder(Path(scratch))), losses]
        trainer = build_scratch_trainer(reduced, scratch, callbacks, module.monitor)
        trainer.limit_val_batches = 0
        trainer.fit(module, datamodule=data)
    first, last = losses.ends()
    fell = last < first
    say(
        f"the loss {'fell' if fell else 'did not fall'}: {first:.4g} in the first quarter of {len(losses.values)} "
        f"steps, {last:.4g} in the last ({duration(losses.seconds())})"
    )
    return int(not fell)


def reduce(config: RunConfig) -> RunConfig:
    """The same run in one process, from random weights, on small batches of small images; on digits if it has no data.

    The learning rate falls in proportion to the batch (Goyal et al. 2017, arXiv:1706.02677).
    """
    head = find_head(config.head)
    processes = int(config.devices) * config.nodes if config.devices.isdigit() else 1
    batch = config.batch_size * processes * config.accumulate
    small = min(BATCH, batch)
    with torch.device("meta"):
        least = find_backbone(config.backbone)().min_size
    size = config.size
    if size is not None and not head.sees_whole_image:
        size = (max(least, size[0] // SMALLER), max(least, size[1] // SMALLER))
    own = config.data_dir is not None
    head_options = config.head_options or {}
    if head_options.get("padding") == "reflect":  # the mirrored border of 192 pixels is larger than the image
        head_options = head_options | {"padding": "zeros"}
    return dataclasses.replace(
        config,
        head_options=head_options or None,
        data=config.data if own else "digits",
        image_size=None if size is None else list(size),
        weights="none",
        batch_size=small,
        accumulate=1,
        lr=config.lr * small / batch,
        epochs=STEPS,
        max_steps=STEPS,
        validate_every=1,
        devices="1",
        nodes=1,
        strategy="auto",
        sync_batchnorm=False,
        staged=False,
        workers=0,
        scale_range=config.scale_range if own or config.augmentation else None,  # that of digits scales nothing
        proposals="windows" if issubclass(head, BoxHead) and head.needs_proposals else config.proposals,
    )


def changes(config: RunConfig, reduced: RunConfig) -> list[str]:
    """The settings that differ, a line each."""
    before, after = dataclasses.asdict(config), dataclasses.asdict(reduced)
    return [
        f"{dashed(name)} {shown(after[name])} instead of {shown(before[name])}"
        for name in after
        if after[name] != before[name]
    ]


def shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(shown, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class LossLines(pl.Callback):
    """Keeps the loss of every step, prints one now and then, and ends the training when its time is over."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.started = self.last_line = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.started = self.last_line = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self.values.append(float(outputs["loss"]))
        if time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            rank_zero_only(print)(f"step {len(self.values)}/{STEPS}  loss {self.values[-1]:.4g}", flush=True)
        if self.seconds() > SECONDS:
            trainer.should_stop = True

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def ends(self) -> tuple[float, float]:
        """The mean loss of the first and of the last quarter of the steps."""
        count = max(1, len(self.values) // COMPARED)
        return sum(self.values[:count]) / count, sum(self.values[-count:]) / count
