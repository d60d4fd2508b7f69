"""TensorBoard: the same rows, pictures and results as W&B, in RUN/tensorboard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from experiments.callbacks.log import Ending, LogRow

NAMED_CLASSES = 40
"""A matrix of more classes has no names, because they would not be readable."""


class TensorBoardLog:
    name = "tensorboard"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer: SummaryWriter | None = None

    def start(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        # Steps that a killed process logged after its last checkpoint are logged again; readers drop the first ones.
        self.writer = SummaryWriter(self.path, purge_step=step + 1 if step else None)

    def row(self, values: LogRow, step: int) -> None:
        writer = self.opened()
        for name, value in values.items():
            if name != "step":
                writer.add_scalar(name, value, step)
        writer.flush()  # a killed process would lose what is buffered, though metrics.csv has it

    def end(self, ending: Ending) -> None:
        writer = self.opened()
        if ending.folder.predictions.is_file():  # there is none if drawing failed
            picture = np.asarray(Image.open(ending.folder.predictions).convert("RGB"))
            writer.add_image("predictions", picture, ending.step, dataformats="HWC")
        classes = ending.results["protocol"]["classes"]
        if ending.matrix is not None:
            writer.add_figure("confusion_matrix", draw_matrix(ending.matrix, classes), ending.step)
        plain = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in ending.settings.items()
            if value is not None
        }
        scores = {
            f"results/{split}/{name}": value
            for split, values in ending.results["scores"].items()
            for name, value in values.items()
            if value is not None
        }
        writer.add_hparams(plain, scores, run_name=".", global_step=ending.step)

    def close(self, exit_code: int) -> None:
        if self.writer is not None:
            self.writer.close()

    def opened(self) -> SummaryWriter:
        """The writer; a run that only scores has not started one."""
        if self.writer is None:
            self.start(0, ())
        assert self.writer is not None
        return self.writer


def draw_matrix(matrix: np.ndarray, classes: Sequence[str]) -> plt.Figure:
    """Counts [truth, prediction] `(C, C)` as shares of each true class."""
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(10.0, 2.5 + 0.3 * len(classes))
    figure, ax = plt.subplots(figsize=(side, side), layout="constrained")
    picture = ax.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(picture, ax=ax, shrink=0.7, label="share of the true class")
    if len(classes) <= NAMED_CLASSES:
        ax.set_xticks(range(len(classes)), classes, rotation=90)
        ax.set_yticks(range(len(classes)), classes)
    ax.set_xlabel("prediction")
    ax.set_ylabel("truth")
    return figure
