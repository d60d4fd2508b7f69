"""The folder a run leaves behind, and the rules for making or continuing one.

runs/NAME/  config.yaml  metrics.csv  results.json  predictions.png  predictions/  checkpoints/best.ckpt  .../last.ckpt
"""

import dataclasses
import errno
import fcntl
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.command_line.parser import dashed
from experiments.command_line.run_config import RunConfig, to_yaml
from experiments.run_files.atomic_file import write_atomically

# Settings that may differ when a run goes on: they change where and how long it trains, not what is trained.
MAY_DIFFER = {
    "resume", "name", "out", "epochs", "max_steps", "devices", "nodes", "accelerator", "strategy", "workers", "logger",
    "data_dir", "download", "on_bad_sample", "cache", "checkpoint_every",
    "wandb_project", "wandb_group", "wandb_tags", "wandb_checkpoint",
}  # fmt: skip
LONGER = ("epochs", "max_steps")  # with --resume only: the schedule then is another one
# Processes that Lightning starts for DDP run the whole program again; they must land in the folder of the first.
RUN_FOLDER_VARIABLE = "GRAFT_RUN_FOLDER"


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
    """Make the run's folder, or take the one to continue: that of `--resume`, or of the same command, unfinished.

    Raises:
        ValueError: the folder belongs to something else, is finished or in use, or there is nothing to continue.
    """
    from lightning.pytorch.utilities.rank_zero import rank_zero_only  # imports torch, which grids do without

    if RUN_FOLDER_VARIABLE in os.environ:
        return RunFolder(Path(os.environ[RUN_FOLDER_VARIABLE]))
    folder = RunFolder(choose_path(config))
    # The first process of those that srun or torchrun starts is making the folder.
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return folder
    if config.resume or folder.config.is_file():
        check_continues(config, folder)
    else:
        check_free(folder.path)
    prepare(folder, config)
    os.environ[RUN_FOLDER_VARIABLE] = str(folder.path.resolve())
    return folder


def choose_path(config: RunConfig) -> Path:
    """`out/name`; without `--name` the default one, numbered, or the last number where that run is to go on."""
    out = Path(config.out)
    path = out / config.run_name
    if config.name is not None or started_together():
        return path
    number, last = 1, path
    while path.exists():
        number, last, path = number + 1, path, out / f"{config.run_name}-{number + 1}"
    unfinished = RunFolder(last)
    goes_on = unfinished.config.is_file() and not unfinished.results.is_file()
    if config.resume or (goes_on and not changed_setting(config, unfinished, LONGER) and not in_use(unfinished)):
        return last
    return path


def started_together() -> bool:
    """Whether torchrun or srun starts all processes of the run: each must find the same folder by itself."""
    return any(int(os.environ.get(name, "1")) > 1 for name in ("WORLD_SIZE", "SLURM_NTASKS"))


def check_free(path: Path) -> None:
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"--name: {path} exists and is not a run folder; choose another --name or --out")


def check_continues(config: RunConfig, folder: RunFolder) -> None:
    if not folder.config.is_file():
        raise ValueError(f"--resume: {folder.path} is no run folder (it has no config.yaml); check --name and --out")
    if not config.resume and folder.results.is_file():
        raise ValueError(
            f"--name: {folder.path} holds a finished run; another --name starts a new one, --resume with more --epochs "
            "continues it"
        )
    other = changed_setting(config, folder, () if config.resume else LONGER)
    if other is not None:
        name, there, here = other
        raise ValueError(
            f"{'--resume' if config.resume else '--name'}: {folder.path} was made with {dashed(name)} {there}, not "
            f"{here}; give the same settings or another --name"
        )


def changed_setting(config: RunConfig, folder: RunFolder, matters: Collection[str]) -> tuple[str, Any, Any] | None:
    """The first setting in which the folder's run is another: its name, the value there and here."""
    there = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    if not isinstance(there, dict):
        raise ValueError(f"{folder.config} holds no settings; delete {folder.path} or choose another --name")
    defaults = dataclasses.asdict(RunConfig())  # for flags that are younger than the folder
    for name, value in yaml.safe_load(to_yaml(config)).items():
        before = there.get(name, defaults[name])
        if before != value and (name not in MAY_DIFFER or name in matters):
            return name, before, value
    return None


def prepare(folder: RunFolder, config: RunConfig) -> None:
    """Write config.yaml, keep other processes out until this one ends, and take away results that no longer hold."""
    try:
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        lock(folder)
        write_atomically(folder.config, to_yaml(dataclasses.replace(config, resume=False)))
        folder.results.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"--out {folder.path.parent}: cannot make a run folder there ({error.strerror})") from error


HELD: dict[Path, int] = {}
"""Open lock files, by folder. The system lets go of them when the process ends, however it does."""


def lock(folder: RunFolder) -> None:
    """Keep other processes out of the folder.

    Raises:
        ValueError: another process is at work in it.
    """
    lock = folder.path.resolve() / ".lock"
    if lock in HELD:
        return
    file = os.open(lock, os.O_RDWR | os.O_CREAT)
    try:
        # Of the process, not of the open file: loader processes that outlive a killed run hold nothing.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise ValueError(f"--name: another process is training in {folder.path}; wait or choose another") from None
        return  # a file system without locks
    HELD[lock] = file


def unlock(folder: RunFolder) -> None:
    """Let others in again, and this process choose another folder."""
    file = HELD.pop(folder.path.resolve() / ".lock", None)
    if file is not None:
        os.close(file)


def in_use(folder: RunFolder) -> bool:
    """Whether another process is at work in the folder."""
    try:
        lock(folder)
    except ValueError:
        return True
    unlock(folder)
    return False


def finished_run_problem(path: str, data_dir: str | None, out: Path) -> str | None:
    """What can be known to be wrong with a run folder, or the file to write, before torch is imported, in one line."""
    if not (Path(path) / "config.yaml").is_file():
        return f"{path} is no run folder (it has no config.yaml); give one that run.py made"
    if not (Path(path) / "checkpoints" / "best.ckpt").is_file():
        return f"{path} has no checkpoints/best.ckpt; let the run finish"
    if data_dir is not None and not Path(data_dir).is_dir():
        return f"--data-dir {data_dir}: no such folder"
    if not out.parent.is_dir():
        return f"--out {out}: there is no folder {out.parent}"
    return None
