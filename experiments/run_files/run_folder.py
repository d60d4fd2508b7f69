"""The folder of a run, and the rules for making or continuing one.

runs/NAME/  config.yaml  metrics.csv  results.json  predictions.png  predictions/  checkpoints/best.ckpt  .../last.ckpt
"""

import dataclasses
import errno
import fcntl
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.command_line.parser import dashed
from experiments.command_line.run_config import RunConfig, to_yaml
from experiments.run_files.atomic_file import write_atomically
from experiments.run_files.launch import started_together

# Settings that may differ when a run is continued: they change where and how long it trains, not what is trained.
MAY_DIFFER = {
    "resume", "name", "out", "epochs", "max_steps", "devices", "nodes", "accelerator", "strategy", "workers", "logger",
    "data_dir", "download", "on_bad_sample", "cache", "checkpoint_every",
    "wandb_project", "wandb_group", "wandb_tags", "wandb_checkpoint",
}  # fmt: skip
LONGER = ("epochs", "max_steps")  # may differ with --resume only, because they change the schedule
# Processes that Lightning starts for DDP run the whole program again; they must use the folder of the first one.
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


def open_run_folder(
    config: RunConfig, rank: int, check: Callable[[RunFolder], None] = lambda folder: None
) -> RunFolder:
    """Make the run's folder, or take the one to continue: that of `--resume`, or that of the same unfinished command.

    Args:
        rank: of this process; only rank 0 makes or changes anything.
        check: called with the folder of a run that is continued, before anything in it is changed; may raise.

    Raises:
        ValueError: the folder belongs to something else, is finished or in use, or there is nothing to continue.
    """
    if RUN_FOLDER_VARIABLE in os.environ:
        return RunFolder(Path(os.environ[RUN_FOLDER_VARIABLE]))
    if rank:  # of processes that srun or torchrun started together
        return RunFolder(choose_path(config))
    folder = RunFolder(claim_path(config))
    if config.resume or folder.config.is_file():
        check_continues(config, folder)
        check(folder)
    else:
        check_free(folder.path)
    prepare(folder, config)
    os.environ[RUN_FOLDER_VARIABLE] = str(folder.path.resolve())
    return folder


def claim_path(config: RunConfig) -> Path:
    """Choose the folder's path. A new numbered folder is made here, so that runs that start together get one each."""
    while True:
        path = choose_path(config)
        if config.resume or config.name is not None or started_together(config) or RunFolder(path).config.is_file():
            return path
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:  # another run has just taken the number
            continue
        except OSError as error:
            raise ValueError(f"--out {config.out}: cannot make a run folder there ({error.strerror})") from error


def choose_path(config: RunConfig) -> Path:
    """Return `out/name`.

    Without `--name`: the default name, numbered if it is taken, or the highest number in use if that run is to be
    continued.
    """
    out = Path(config.out)
    path = out / config.run_name
    if config.name is not None or started_together(config):
        return path
    number, last = 1, path
    while path.exists():
        number, last, path = number + 1, path, out / f"{config.run_name}-{number + 1}"
    unfinished = RunFolder(last)
    goes_on = unfinished.config.is_file() and not unfinished.results.is_file()
    if config.resume or (goes_on and not changed_setting(config, unfinished, LONGER) and not in_use(unfinished)):
        return last
    return path


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
    if not config.epochs and folder.last_checkpoint.is_file():
        raise ValueError(f"--epochs 0: {folder.path} holds a trained network; evaluate.py {folder.path} scores it")
    other = changed_setting(config, folder, () if config.resume else LONGER)
    if other is not None:
        name, there, here = other
        raise ValueError(
            f"{'--resume' if config.resume else '--name'}: {folder.path} was made with {dashed(name)} {there}, not "
            f"{here}; give the same settings or another --name"
        )


def changed_setting(config: RunConfig, folder: RunFolder, matters: Collection[str]) -> tuple[str, Any, Any] | None:
    """Return the first setting that differs from the existing run's, as (name, its value, our value), or None.

    Settings in MAY_DIFFER count only if they are in `matters`.
    """
    there = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    if not isinstance(there, dict):
        raise ValueError(f"{folder.config} holds no settings; delete {folder.path} or choose another --name")
    defaults = dataclasses.asdict(RunConfig())  # for flags that did not exist when the folder was made
    for name, value in yaml.safe_load(to_yaml(config)).items():
        before = there.get(name, defaults[name])
        if before != value and (name not in MAY_DIFFER or name in matters):
            return name, before, value
    return None


def prepare(folder: RunFolder, config: RunConfig) -> None:
    """Write config.yaml, lock the folder until this process ends, and remove results of an earlier end of the run."""
    try:
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        if not lock(folder):
            print(f"{folder.path}: this file system has no locks; do not start a second run in it", flush=True)
        write_atomically(folder.config, to_yaml(dataclasses.replace(config, resume=False)))
        folder.results.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"--out {folder.path.parent}: cannot make a run folder there ({error.strerror})") from error


HELD: dict[Path, int] = {}
"""Descriptors of the lock files that this process holds. The system releases them when the process ends."""


def lock(folder: RunFolder) -> bool:
    """Lock the folder, so that no other process trains in it. Returns False if the file system has no locks.

    Raises:
        ValueError: another process holds the lock.
    """
    lock = folder.path.resolve() / ".lock"
    if lock in HELD:
        return True
    file = os.open(lock, os.O_RDWR | os.O_CREAT)
    try:
        # lockf locks belong to the process, not to the open file, so data-loader workers that outlive a killed run do
        # not keep the lock.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise ValueError(f"--name: another process is training in {folder.path}; wait or choose another") from None
        return False
    HELD[lock] = file
    return True


def unlock(folder: RunFolder) -> None:
    """Release the lock, if this process holds it."""
    file = HELD.pop(folder.path.resolve() / ".lock", None)
    if file is not None:
        os.close(file)


def in_use(folder: RunFolder) -> bool:
    """Return whether another process holds the folder's lock."""
    try:
        lock(folder)
    except ValueError:
        return True
    unlock(folder)
    return False


def finished_run_problem(path: str, data_dir: str | None, out: Path) -> str | None:
    """Return the first problem with a run folder or the file to write, in one line, or None. Imports no torch."""
    if not (Path(path) / "config.yaml").is_file():
        return f"{path} is no run folder (it has no config.yaml); give one that run.py made"
    if not (Path(path) / "checkpoints" / "best.ckpt").is_file():
        return f"{path} has no checkpoints/best.ckpt; let the run finish"
    if data_dir is not None and not Path(data_dir).is_dir():
        return f"--data-dir {data_dir}: no such folder"
    if not out.parent.is_dir():
        return f"--out {out}: there is no folder {out.parent}"
    return None
