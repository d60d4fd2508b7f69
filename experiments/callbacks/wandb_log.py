"""Weights & Biases: one run across resuming, offline where the server cannot be used, and never longer than stated.

A server that does not answer costs `PROBE_SECONDS` of `wandb_server` at the start, one that answers but lets no run
begin `INIT_SECONDS`; then the run is logged offline. One that dies later costs `WANDB_HTTP_TIMEOUT` (19 s, for
tables) and `FINISH_SECONDS` at the end. While it trains, nothing waits for the server.
"""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from PIL import Image

from experiments.callbacks.log import Ending, LogRow
from experiments.callbacks.wandb_probe import has_key, server_problem
from experiments.command_line.run_config import RunConfig
from experiments.run_files.read_run import PREDICTIONS, Picture, read_pictures
from experiments.run_files.wandb_file import last_step

INIT_SECONDS = 30.0
FINISH_SECONDS = 60.0
FLUSH_SECONDS = 1.0
"""Between writes of the offline file: what a killed process may lose of it."""


class WandbLog:
    """A W&B run whose id is kept in the run folder.

    History is keyed by the step of the optimiser, so that a run that resumes neither repeats rows nor leaves some out.
    """

    name = "wandb"

    def __init__(
        self, config: RunConfig, folder: Path, id_file: Path, settings: Mapping[str, Any], monitor: str
    ) -> None:
        run_id = id_file.read_text(encoding="utf-8").strip() if id_file.is_file() else secrets.token_hex(4)
        self.config = config
        self.run = open_run(config, folder, run_id)
        self.offline = self.run.offline
        self.files = folder / "wandb"
        if self.run.id != run_id or not id_file.is_file():  # a sweep's agent brings its own
            id_file.write_text(self.run.id + "\n", encoding="utf-8")
        self.run.config.update(dict(settings), allow_val_change=True)
        self.run.define_metric(monitor, summary="max")
        self.run.define_metric("val/loss", summary="min")
        self.last_step = max(last_step(self.files, self.run.id), self.run.starting_step - 1)

    def start(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:  # those that a killed process had not written out yet; as text where they come from the file
            self.row({name: float(cell) for name, cell in row.items() if cell not in ("", None)}, int(row["step"]))

    def row(self, values: LogRow, step: int) -> None:
        if step > self.last_step:
            self.run.log(dict(values), step=step)

    def end(self, ending: Ending) -> None:
        classes = ending.results["protocol"]["classes"]
        pictures, _ = read_pictures(ending.folder.path / PREDICTIONS)
        step = max(ending.step, self.last_step + 1)
        self.run.summary["results"] = ending.results
        # One after the other: with the classes of the masks, W&B writes its settings anew, and would lose the chart's.
        self.run.log({"predictions": [picture_of(one, classes) for one in pictures]}, step=step)
        try:
            if ending.matrix is not None:
                self.run.log({"confusion_matrix": matrix_chart(ending.matrix, classes)}, step=step)
            if self.config.wandb_checkpoint:
                best = wandb.Artifact(f"{self.run.id}-best", type="model", metadata=ending.results)
                # Immutable: the file itself is uploaded, not a copy that is made of it first.
                best.add_file(str(ending.folder.checkpoints / "best.ckpt"), policy="immutable")
                self.run.log_artifact(best, aliases=["best"])
        except wandb.Error as error:  # for tables and artifacts, W&B asks the server before anything is written down
            print(f"W&B: without the confusion matrix and artifacts ({str(error).splitlines()[0]})", flush=True)

    def close(self, exit_code: int) -> None:
        folder = Path(self.run.dir).parent
        try:
            self.run.finish(exit_code=exit_code)
            wandb.teardown(exit_code)  # its file may not be whole before the client's own process has ended
        except TimeoutError:
            print(f"W&B: the server takes too long; upload the rest with: wandb sync {folder}", flush=True)
            return
        if self.offline:  # of a run that was resumed, all parts: W&B joins them in their order
            parts = f"{self.files}/offline-run-*-{self.run.id}"
            print(f"W&B: offline files in {folder}; upload them with: wandb sync {parts}", flush=True)


def open_run(config: RunConfig, folder: Path, run_id: str) -> wandb.Run:
    """The W&B run: online where there is a key and a server that answers, else offline."""
    mode = os.environ.get("WANDB_MODE")
    url = wandb.setup().settings.base_url
    if mode is None and not has_key(url):
        mode = "offline"
        print("W&B: no API key is set, logging offline", flush=True)
    elif mode in (None, "online"):
        problem = server_problem(url)
        try:
            if problem is None:
                run = start_run(config, folder, run_id, "online")
                print(f"W&B: {run.url}", flush=True)
                return run
        except wandb.Error as error:
            problem = f"lets no run begin ({str(error).splitlines()[0]})"
            wandb.teardown(exit_code=1)  # else the id stays in use
        print(f"W&B: {url} {problem}; logging offline", flush=True)
        mode = "offline"
    return start_run(config, folder, run_id, mode)


def start_run(config: RunConfig, folder: Path, run_id: str, mode: str) -> wandb.Run:
    return wandb.init(
        dir=folder,
        id=run_id,
        resume="allow",
        mode=mode,  # type: ignore[arg-type]  # of WANDB_MODE too
        name=folder.name,
        project=config.wandb_project or os.environ.get("WANDB_PROJECT", "graft"),
        group=config.wandb_group,
        tags=list(config.wandb_tags) if config.wandb_tags else None,
        job_type="train" if config.epochs else "score",
        settings=wandb.Settings(
            quiet=True,
            init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_SECONDS)),
            finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", FINISH_SECONDS)),
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=FLUSH_SECONDS,
        ),
    )


def picture_of(picture: Picture, classes: Sequence[str]) -> wandb.Image:
    """An image with the masks of truth and prediction over it; in classification, the names below it."""
    image = np.asarray(Image.open(picture.image).convert("RGB"))
    if isinstance(picture.truth, str) or isinstance(picture.prediction, str):
        return wandb.Image(image, caption=f"{picture.prediction} (is {picture.truth})")
    names = dict(enumerate(classes))
    masks = {
        kind: {"mask_data": np.asarray(Image.open(path)), "class_labels": names}
        for kind, path in (("prediction", picture.prediction), ("truth", picture.truth))
    }
    return wandb.Image(image, masks=masks, caption=f"validation image {picture.index}")


def matrix_chart(matrix: np.ndarray, classes: Sequence[str]) -> Any:
    """W&B's own chart of a confusion matrix, over a table of the pairs that occur."""
    rows = [[classes[i], classes[j], int(matrix[i, j])] for i, j in np.argwhere(matrix).tolist()]
    columns: list[str | int] = ["Actual", "Predicted", "nPredictions"]
    return wandb.plot_table(
        "wandb/confusion_matrix/v1",
        wandb.Table(columns=columns, data=rows),
        {str(name): str(name) for name in columns},
        {"title": "confusion matrix"},
    )
