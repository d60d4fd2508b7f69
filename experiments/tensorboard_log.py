"""TensorBoard: the same rows, pictures and results as W&B, in RUN/tensorboard."""

from collections.abc import Sequence
from pathlib import Path

import cv2
from torch.utils.tensorboard import SummaryWriter

from datamodules.base import GraftDataModule
from experiments.loggers import Ending, Row
from experiments.pictures import draw_matrix


class TensorBoardLog:
    name = "TensorBoard"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer: SummaryWriter | None = None

    def start(self, step: int, rows: Sequence[Row]) -> None:
        # What a killed process logged after its last checkpoint is logged again: readers drop the first of the two.
        self.writer = SummaryWriter(self.path, purge_step=step + 1 if step else None)

    def row(self, values: Row, step: int) -> None:
        writer = self.opened()
        for name, value in values.items():
            if name != "step":
                writer.add_scalar(name, value, step)
        writer.flush()  # a kill would lose what is held back, which metrics.csv has

    def end(self, ending: Ending, data: GraftDataModule) -> None:
        writer = self.opened()
        picture = cv2.imread(str(ending.folder.predictions), cv2.IMREAD_COLOR)
        if picture is None:
            raise ValueError(f"{ending.folder.predictions} cannot be read")
        writer.add_image("predictions", cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), ending.step, dataformats="HWC")
        writer.add_figure("confusion_matrix", draw_matrix(ending.matrix, data.class_names), ending.step)
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
