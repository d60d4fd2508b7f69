"""Build the data, the network and the Trainer from the settings; fit, test and leave a run folder."""

import dataclasses
import logging
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from backbones import find_backbone
from datamodules import DATAMODULES
from datamodules.base import GraftDataModule, Samples
from datamodules.class_weights import class_weights
from datamodules.errors import DataError
from experiments.checkpoints import Checkpoints
from experiments.clock import Clock
from experiments.config import RunConfig
from experiments.cost import cost
from experiments.crf_settings import read_settings
from experiments.faults import FiniteLoss, fit
from experiments.loggers import Curves, make_logs
from experiments.pictures import write_predictions
from experiments.preemption import Preemption
from experiments.progress import EpochTable, ProgressLines, print_results
from experiments.results import write_results
from experiments.run_folder import RunFolder, let_go, open_run_folder
from experiments.trainer import build_trainer
from heads import find_head
from lightning_modules.base import GraftModule
from lightning_modules.classification import ClassificationModule
from lightning_modules.segmentation import SegmentationModule

MODULES: dict[str, type[GraftModule]] = {
    "classification": ClassificationModule,
    "segmentation": SegmentationModule,
}
NO_CLASS = -100


def train(config: RunConfig) -> None:
    """Run what the settings ask for. Nothing is written before data and network are known to work.

    Raises:
        ValueError: the settings, the data or the run folder cannot work; one line says why.
    """
    clock = Clock()
    data, module = prepare(config)
    folder = open_run_folder(config)
    try:
        run(config, folder, data, module, clock)
    finally:
        let_go(folder)


def prepare(config: RunConfig) -> tuple[GraftDataModule, GraftModule]:
    """Data and module as the settings ask for them, checked.

    Raises:
        ValueError: the settings or the data cannot work; one line says why.
    """
    # Lightning's chatter about hardware it did not find, and products; its warnings stay.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for not_for_users in (
        "`isinstance\\(treespec",
        ".*sync_dist=True",
        "The `srun` command is available",
        "You're using the WeightAveraging",
    ):
        warnings.filterwarnings("ignore", not_for_users, module="lightning")  # scores are of all processes already
    pl.seed_everything(config.seed, workers=True, verbose=False)
    crf = crf_settings(config)
    data = build_data(config)
    data.setup("fit")
    if config.epochs and data.train is None:
        raise DataError(f"there is no train split in {config.data_dir}; --epochs 0 scores without training")
    module = build_module(config, data, crf if config.crf == "train" else None)
    if config.start_from is not None:
        fresh = module.start_from(config.start_from)
        rank_zero_only(print)(f"starts from {config.start_from}; as initialised stay: {', '.join(fresh) or 'none'}")
    if config.mixup or config.cutmix:
        if not isinstance(module, ClassificationModule):
            raise ValueError(f"--mixup and --cutmix mix the classes of whole images; {config.head} labels pixels")
        module.mix_batches(config.mixup, config.cutmix)
    return data, module


def run(
    config: RunConfig,
    folder: RunFolder,
    data: GraftDataModule,
    module: GraftModule,
    clock: Clock,
) -> None:
    """Train in the folder, from where it stands, then score and write the results."""
    costs = cost(module.network, data.image_size)
    table = EpochTable(folder.metrics)
    curves = Curves(make_logs(config, folder, costs, module.monitor), table)
    preemption = Preemption(folder.last_checkpoint)
    callbacks: list[pl.Callback] = [
        FiniteLoss(folder),
        clock,
        table,
        ProgressLines(module.monitor),
        curves,
        Checkpoints(folder.checkpoints, module.monitor, config.checkpoint_every),
        preemption,
    ]
    trainer = build_trainer(config, folder, callbacks, module.monitor)
    preemption.listen(trainer)
    if config.compile:
        module.network.compile()
    if config.strategy != "fsdp2":  # which shards contiguous weights only
        # Convolutions on channels-last maps need no reordering on CPUs and tensor cores.
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.epochs:
        fit(trainer, module, data, folder)
    finish(config, folder, trainer, module, data, crf_settings(config), costs, clock)
    curves.finish(folder, costs, trainer.global_step)


def finish(
    config: RunConfig,
    folder: RunFolder,
    trainer: pl.Trainer,
    module: GraftModule,
    data: GraftDataModule,
    crf: dict[str, Any] | None,
    costs: dict[str, float],
    clock: Clock,
) -> None:
    """Score the best checkpoint, then write results.json and predictions.png and print the table."""
    best_epoch = 0
    if config.epochs:
        state = torch.load(folder.checkpoints / "best.ckpt", map_location=module.device, weights_only=True)
        # Also into weights that FSDP2 has spread over the processes.
        set_model_state_dict(module, state["state_dict"], options=StateDictOptions(full_state_dict=True))
        best_epoch = int(state["epoch"]) + 1
    scores = evaluate(trainer, module, data)
    skipped = {split: skipped_samples(trainer, data, split) for split in data.splits}
    if trainer.is_global_zero:
        write_predictions(module, data, folder.predictions)
    if crf is not None and config.crf == "test":
        module.add_crf(crf, trainable=False)
        refined = evaluate_apart(trainer, module, data)
        both = scores | refined
        scores = {name: both[name] for split in scores for name in (split, f"{split}_crf")}
    if trainer.is_global_zero:
        write_results(config, folder, data, crf, costs | clock.figures(), scores, best_epoch, skipped)
        print_results(folder, scores)
        for split, samples in skipped.items():
            for message in samples:
                print(f"skipped in {split}: {message}")


def evaluate(trainer: pl.Trainer, module: GraftModule, data: GraftDataModule) -> dict[str, dict[str, float]]:
    """The scores of each split but the training images, by split and then as logged: "val/miou"."""
    scores = {}
    for split in [split for split in data.splits if split != "train"]:
        loader = data.val_dataloader() if split == "val" else data.test_dataloader()
        run = trainer.validate if split == "val" else trainer.test
        (logged,) = run(module, loader, verbose=False)
        scores[split] = dict(logged)
    return scores


def evaluate_apart(trainer: pl.Trainer, module: GraftModule, data: GraftDataModule) -> dict[str, dict[str, float]]:
    """The scores with the CRF, as "val_crf" and "val_crf/miou", so that no curve of the network's own is continued."""
    return {
        f"{split}_crf": {name.replace(split, f"{split}_crf", 1): value for name, value in values.items()}
        for split, values in evaluate(trainer, module, data).items()
    }


def skipped_samples(trainer: pl.Trainer, data: GraftDataModule, split: str) -> list[str]:
    """What is wrong with each sample of a split that any process has skipped."""
    samples: Samples = getattr(data, split)
    if not len(samples.bad):
        return []
    everywhere = trainer.strategy.reduce(samples.bad.to(trainer.strategy.root_device, torch.int32), reduce_op="sum")
    messages = []
    for index in everywhere.nonzero().flatten().tolist():
        try:
            samples.source[index]
        except DataError as error:
            messages.append(str(error))
    return messages


def crf_settings(config: RunConfig) -> dict[str, Any] | None:
    """What `--crf` asks for, as plain values.

    Raises:
        ValueError: the head does not segment, or a setting is out of its range.
    """
    if config.crf == "none":
        return None
    if find_head(config.head).task != "segmentation":
        raise ValueError(
            f"--crf {config.crf} refines segmentations; {config.head} is a {find_head(config.head).task} head"
        )
    return dataclasses.asdict(read_settings(config.crf_settings))


def build_data(config: RunConfig) -> GraftDataModule:
    """The data module, for the task of the head, with images normalised as the backbone's weights expect them."""
    head = find_head(config.head)
    with torch.device("meta"):
        backbone = find_backbone(config.backbone)()
    return DATAMODULES[config.data](
        head.task,
        data_dir=config.data_dir,
        image_size=config.size,
        batch_size=config.batch_size,
        workers=config.workers,
        seed=config.seed,
        mean=backbone.mean,
        std=backbone.std,
        download=config.download,
        on_bad_sample=config.on_bad_sample,
        cache=config.cache,
        augmentation=config.augmentation,
    )


def build_module(config: RunConfig, data: GraftDataModule, crf: dict[str, Any] | None = None) -> GraftModule:
    """The Lightning module for the data's classes, and with the CRF that is to be learned, if any."""
    return MODULES[data.task](
        config.backbone,
        config.head,
        data.class_names,
        weights=None if config.weights == "none" else config.weights,
        output_stride=config.output_stride,
        backbone_options=config.backbone_options,
        head_options=config.head_options,
        crf=crf,
        loss=config.loss,
        class_weights=class_weights(config.class_weights, data),
        label_smoothing=config.label_smoothing,
        aux_weight=config.aux_weight,
        # Images have no class that is ignored; 255 is one of ImageNet's.
        ignore_index=data.ignore_index if data.task == "segmentation" else NO_CLASS,
        optimizer=config.optimizer,
        lr=config.lr,
        backbone_lr_mult=config.backbone_lr_mult,
        freeze_backbone=config.freeze_backbone,
        freeze_norms=config.freeze_norms,
        layer_decay=config.layer_decay,
        checkpoint_activations=config.checkpoint_activations,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        schedule=config.schedule,
        warmup=config.warmup,
    )
