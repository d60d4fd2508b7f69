"""The folder a run leaves behind, and the rules for making or continuing one.

runs/NAME/  config.yaml  metrics.csv  results.json  predictions.png  predictions/  checkpoints/best.ckpt  .../last.ckpt
"""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from experiments.config import RunConfig, dashed, to_yaml

# Settings that may differ when a run goes on: they change where and how long it trains, not what is trained.
MAY_DIFFER = {
    "resume", "name", "out", "epochs", "max_steps", "devices", "nodes", "accelerator", "strategy", "workers", "logger",
    "data_dir", "download", "on_bad_sample", "cache", "checkpoint_every",
    "wandb_project", "wandb_group", "wandb_tags", "wandb_checkpoint",
}  # fmt: skip
# Processes that Lightning starts for DDP run the whole program again; they must land in the folder of the first.
CHOSEN = "GRAFT_RUN_FOLDER"


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.png"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def wandb_id(self) -> Path:
        return self.path / "wandb_id"


def open_run_folder(config: RunConfig) -> RunFolder:
    """Make the run's folder, or take the one to continue.

    Raises:
        ValueError: the folder belongs to something else, or there is nothing to continue.
    """
    if CHOSEN in os.environ:
        return RunFolder(Path(os.environ[CHOSEN]))
    folder = RunFolder(choose_path(config))
    if config.resume:
        check_same_run(config, folder)
    else:
        check_free(folder.path)
        create(folder, config)
    os.environ[CHOSEN] = str(folder.path.resolve())
    return folder


def choose_path(config: RunConfig) -> Path:
    """`out/name`; without `--name` the first free number of the default name, or the last one to resume."""
    out = Path(config.out)
    path = out / config.run_name
    if config.name is not None:
        return path
    number, last = 1, path
    while path.exists():
        number, last, path = number + 1, path, out / f"{config.run_name}-{number + 1}"
    return last if config.resume else path


def check_free(path: Path) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / "config.yaml").is_file():
        raise ValueError(f"--name: {path} exists and is not a run folder; choose another --name or --out")
    raise ValueError(f"--name: {path} holds a run already; --resume continues it, another --name starts a new one")


def check_same_run(config: RunConfig, folder: RunFolder) -> None:
    if not folder.config.is_file():
        raise ValueError(f"--resume: {folder.path} is no run folder (it has no config.yaml); check --name and --out")
    if not folder.last_checkpoint.is_file():
        raise ValueError(f"--resume: {folder.last_checkpoint} is missing; delete {folder.path} and start it anew")
    there = yaml.safe_load(folder.config.read_text(encoding="utf-8")) or {}
    for name, value in yaml.safe_load(to_yaml(config)).items():
        if name not in MAY_DIFFER and there.get(name) != value:
            raise ValueError(
                f"--resume: {folder.path} was made with {dashed(name)} {there.get(name)}, not {value}; "
                "give the same settings or another --name"
            )


@rank_zero_only
def create(folder: RunFolder, config: RunConfig) -> None:
    try:
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        settings = dataclasses.replace(config, resume=False)
        folder.config.write_text(to_yaml(settings), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--out {folder.path.parent}: cannot make a run folder there ({error.strerror})") from error
