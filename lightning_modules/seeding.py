"""Random numbers of training steps as a function of the seed and the step, so that resumed runs draw the same ones."""

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch


class SeedSteps(pl.Callback):
    """Reseeds PyTorch before each training step from (seed, rank, epoch, batch).

    Dropout, stochastic depth and the mixing of images in a resumed run then draw the same numbers as in an
    uninterrupted one, without generator states in checkpoints.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_index: int
    ) -> None:
        place = (self.seed, module.global_rank, module.current_epoch, batch_index)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1))
