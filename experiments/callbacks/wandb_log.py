"""Weights & Biases: one W&B run across resumed sessions, offline if the server cannot be used, with bounded delays.

A server that does not answer delays the start by `PROBE_SECONDS` (see `wandb_probe.py`), and one that answers but does
not begin a run by `INIT_SECONDS`; the run is then logged offline. A server that dies later delays the end by
`WANDB_HTTP_TIMEOUT` (19 s, for tables) and `FINISH_SECONDS`. Training never waits for the server.
"""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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
"""Seconds between writes of the offline file; a killed process loses at most what was logged since the last one."""


class WandbLog:
    """A W&B run whose id is kept in the run folder.

    History is keyed by the optimiser step, so that a resumed run neither repeats rows nor leaves any out.
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
        for row in rows:  # that a killed process had not written out yet; as text if they come from the file
            self.row({name: float(cell) for name, cell in row.items() if cell not in ("", None)}, int(row["step"]))

    def row(self, values: LogRow, step: int) -> None:
        if step > self.last_step:
            self.run.log(dict(values), step=step)

    def end(self, ending: Ending) -> None:
        classes = ending.results["protocol"]["classes"]
        pictures, _ = read_pictures(ending.folder.path / PREDICTIONS)
        step = max(ending.step, self.last_step + 1)
        self.run.summary["results"] = ending.results
        # In two calls: for the classes of the masks W&B rewrites its settings, and would lose those of the chart.
        self.run.log({"predictions": [picture_of(one, classes) for one in pictures]}, step=step)
        try:
            if ending.matrix is not None:
                self.run.log({"confusion_matrix": matrix_chart(ending.matrix, classes)}, step=step)
            if self.config.wandb_checkpoint:
                best = wandb.Artifact(f"{self.run.id}-best", type="model", metadata=ending.results)
                # Immutable, so that W&B uploads the file itself instead of copying it first.
                best.add_file(str(ending.folder.checkpoints / "best.ckpt"), policy="immutable")
                self.run.log_artifact(best, aliases=["best"])
        except wandb.Error as error:  # for tables and artifacts W&B asks the server before it writes anything
            print(f"W&B: without the confusion matrix and artifacts ({str(error).splitlines()[0]})", flush=True)

    def close(self, exit_code: int) -> None:
        folder = Path(self.run.dir).parent
        try:
            self.run.finish(exit_code=exit_code)
            wandb.teardown(exit_code)  # the file may be incomplete until the client's own process has ended
        except TimeoutError:
            print(f"W&B: the server takes too long; upload the rest with: wandb sync {folder}", flush=True)
            return
        if self.offline:  # a resumed run has several parts, which W&B joins in their order
            parts = f"{self.files}/offline-run-*-{self.run.id}"
            print(f"W&B: offline files in {folder}; upload them with: wandb sync {parts}", flush=True)


def open_run(config: RunConfig, folder: Path, run_id: str) -> wandb.Run:
    """Begin or resume the W&B run: online if there is a key and a server that answers, else offline."""
    mode = os.environ.get("WANDB_MODE")
    url = wandb.setup().settings.base_url
    shown = without_credentials(url)
    if mode is None and not has_key(url):
        mode = "offline"
        print("W&B: no API key is set, logging offline", flush=True)
    elif mode in (None, "online"):
        problem = server_problem(url)
        try:
            if problem is None:
                run = start_run(config, folder, run_id, "online")
                print(f"W&B: {without_credentials(run.url)}", flush=True)
                return run
        except wandb.Error as error:
            problem = f"lets no run begin ({str(error).splitlines()[0]})"
            wandb.teardown(exit_code=1)  # else the id stays in use
        print(f"W&B: {shown} {problem}; logging offline", flush=True)
        mode = "offline"
    return start_run(config, folder, run_id, mode)


def without_credentials(url: str | None) -> str:
    """Return an address without the user name and password that it may hold."""
    parts = urlsplit(url or "")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


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
    """Make a W&B image with the masks of truth and prediction over it, or with the classes' names below it."""
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
    """Make W&B's own chart of a confusion matrix from a table of the pairs of classes that occur."""
    rows = [[classes[i], classes[j], int(matrix[i, j])] for i, j in np.argwhere(matrix).tolist()]
    columns: list[str | int] = ["Actual", "Predicted", "nPredictions"]
    return wandb.plot_table(
        "wandb/confusion_matrix/v1",
        wandb.Table(columns=columns, data=rows),
        {str(name): str(name) for name in columns},
        {"title": "confusion matrix"},
    )
