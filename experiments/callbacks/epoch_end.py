"""The end of an epoch with validation, or of the whole schedule within an epoch: the weights have been validated."""

import lightning.pytorch as pl


class EpochEnd(pl.Callback):
    """A callback whose `epoch_end` is called after each epoch's validation; `--validate-every` leaves some epochs out.

    `--max-steps` may end training within an epoch. The weights at that point are the result of the whole schedule, so
    they are validated too and `epoch_end` is called for them. This happens in `on_validation_end`, because from a
    checkpoint that is saved later Lightning would resume with the next epoch.
    """

    def epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Called when the weights have been validated and `trainer.callback_metrics` holds their scores."""
        raise NotImplementedError

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if is_last_batch(trainer) and is_validated(trainer):
            self.epoch_end(trainer, module)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not is_last_batch(trainer):
            self.epoch_end(trainer, module)


def is_last_batch(trainer: pl.Trainer) -> bool:
    """Return whether the batch that is being or was just trained on ends its epoch."""
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def is_validated(trainer: pl.Trainer) -> bool:
    """Return whether the current epoch ends with a validation."""
    assert trainer.check_val_every_n_epoch is not None
    return (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch == 0


def epochs_trained(trainer: pl.Trainer) -> float:
    """Number of epochs trained so far, called in `epoch_end`: a fraction if the schedule ends within an epoch."""
    if is_last_batch(trainer):
        return trainer.current_epoch + 1
    share = trainer.fit_loop.epoch_loop.batch_progress.current.ready / trainer.num_training_batches
    return round(trainer.current_epoch + share, 4)
