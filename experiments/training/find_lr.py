"""`run.py --find-lr`: train while the learning rate rises and suggest a good one (Smith 2015, arXiv:1506.01186)."""

import contextlib
import dataclasses
import io
import tempfile

from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from experiments.command_line.run_config import RunConfig
from experiments.training.build import prepare
from experiments.training.make_trainer import build_scratch_trainer

STEPS = 100
LOWEST, HIGHEST = 1e-7, 1.0


def find_lr(config: RunConfig) -> int:
    """Print a learning rate for these settings. No file is kept.

    Raises:
        ValueError: the settings or the data cannot work.
    """
    config = dataclasses.replace(config, epochs=STEPS, max_steps=None)  # enough even at one step an epoch
    data, module = prepare(config)
    rank_zero_only(print)(f"trying {STEPS} rates from {LOWEST:g} to {HIGHEST:g}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = build_scratch_trainer(config, scratch, [], module.monitor)
        with contextlib.redirect_stderr(io.StringIO()):  # hides Lightning's progress bar
            finder = Tuner(trainer).lr_find(
                module, datamodule=data, min_lr=LOWEST, max_lr=HIGHEST, num_training=STEPS, update_attr=False
            )
    suggested = None if finder is None else finder.suggestion()
    if suggested is None:
        raise ValueError("--find-lr: the loss fell at no rate; look at the data with show_data.py")
    rank_zero_only(print)(f"--lr {suggested:.2g}")
    return 0
