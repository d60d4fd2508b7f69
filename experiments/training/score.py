"""Scores the best checkpoint and writes what a run leaves."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from datamodules.base import GraftDataModule, Samples
from datamodules.errors import DataError
from experiments.callbacks.run_cost import RunCost
from experiments.command_line.run_config import RunConfig
from experiments.run_files.run_folder import RunFolder
from experiments.training.predictions import write_predictions
from experiments.training.write_results import print_results, write_results
from lightning_modules.base import GraftModule


def finish(
    config: RunConfig,
    folder: RunFolder,
    trainer: pl.Trainer,
    module: GraftModule,
    data: GraftDataModule,
    crf: dict[str, Any] | None,
    costs: dict[str, float],
    clock: RunCost,
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
