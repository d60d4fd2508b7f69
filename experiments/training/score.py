"""Scores the best checkpoint and writes the results and pictures of a run."""

from typing import Any

import lightning.pytorch as pl
import torch

from datamodules.base import GraftDataModule, Samples
from datamodules.errors import DataError
from experiments.callbacks.run_cost import RunCost
from experiments.command_line.run_config import RunConfig
from experiments.run_files.run_folder import RunFolder
from experiments.training.predictions import draw_predictions
from experiments.training.resume import read_checkpoint
from experiments.training.write_results import Results, print_results, training_record, write_results
from lightning_modules.base import GraftModule
from lightning_modules.sharding import is_sharded


def score_and_report(
    config: RunConfig,
    folder: RunFolder,
    trainer: pl.Trainer,
    module: GraftModule,
    data: GraftDataModule,
    *,
    crf: dict[str, Any] | None,
    costs: dict[str, float],
    clock: RunCost,
) -> None:
    """Score the best checkpoint, write results.json, draw predictions.png and print the table.

    Without epochs, the network is scored as it is, and becomes the best checkpoint. The pictures come last, so that an
    error while drawing loses no score.

    Args:
        crf: settings of the CRF of `--crf`, or None.
        costs: numbers for results.json.
    """
    best_epoch = best_step = 0
    if config.epochs:
        state = read_checkpoint(folder.checkpoints / "best.ckpt")
        load_weights(module, state["state_dict"])
        best_epoch, best_step = int(state["epoch"]) + 1, int(state["global_step"])
    scores = evaluate(trainer, module, data)
    if not config.epochs:
        trainer.save_checkpoint(folder.checkpoints / "best.ckpt")  # no epoch has, and other programs read it
    skipped = {split: skipped_samples(trainer, data, split) for split in data.splits}
    if crf is not None and config.crf == "test":
        module.add_crf(crf, trainable=False)
        both = scores | evaluate_apart(trainer, module, data)
        scores = {name: both[name] for split in scores for name in (split, f"{split}_crf")}
        module.crf = None  # pictures show the network's own predictions
    if trainer.is_global_zero:
        write_results(
            config,
            folder,
            data,
            Results(
                scores=scores,
                best_epoch=best_epoch,
                best_step=best_step,
                skipped=skipped,
                crf=crf,
                costs=costs | clock.figures(trainer.strategy.root_device),
                training=training_record(config, trainer, data.batch_size),
            ),
        )
    drawn = draw_predictions(trainer, module, data, folder.predictions)
    if trainer.is_global_zero:
        print_results(folder, scores, drawn)
        for split, samples in skipped.items():
            for message in samples:
                print(f"skipped in {split}: {message}")


def load_weights(module: GraftModule, weights: dict[str, Any]) -> None:
    """Load all weights, also into those that FSDP2 has sharded over the ranks."""
    if not is_sharded(module.network):
        module.load_state_dict(weights)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict  # imports 200 modules

    set_model_state_dict(module, weights, options=StateDictOptions(full_state_dict=True))


def evaluate(trainer: pl.Trainer, module: GraftModule, data: GraftDataModule) -> dict[str, dict[str, float]]:
    """Return the scores of each split except train, by split and then by their logged name, such as "val/miou"."""
    scores = {}
    for split in [split for split in data.splits if split != "train"]:
        loader = data.val_dataloader() if split == "val" else data.test_dataloader()
        run = trainer.validate if split == "val" else trainer.test
        (logged,) = run(module, loader, verbose=False)
        scores[split] = dict(logged)
    return scores


def evaluate_apart(trainer: pl.Trainer, module: GraftModule, data: GraftDataModule) -> dict[str, dict[str, float]]:
    """Return the scores with the CRF as "val_crf" and "val_crf/miou", so that they are not mixed with the network's."""
    return {
        f"{split}_crf": {name.replace(split, f"{split}_crf", 1): value for name, value in values.items()}
        for split, values in evaluate(trainer, module, data).items()
    }


def skipped_samples(trainer: pl.Trainer, data: GraftDataModule, split: str) -> list[str]:
    """Return, for each sample of a split that a rank has skipped, what is wrong with it."""
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
