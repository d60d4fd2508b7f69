"""Runs from Weights & Biases, from offline files or a project, in the same form as `read_run` gives them from folders.

The config of a W&B run holds the settings, the rows of its history that have an epoch are the curve, and "results" in
its summary holds the results: the same numbers as config.yaml, metrics.csv and results.json.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from experiments.command_line.run_flags import RunConfig
from experiments.run_files.read_run import EpochRow, Run, finished, unfinished
from experiments.run_files.wandb_file import WandbFile, wandb_files

SETTING_NAMES = {one.name for one in fields(RunConfig)}
NOT_IN_METRICS = {"train/loss_step"}
"""Logged between epochs, at steps that may also end one."""


def offline_runs(paths: Iterable[str]) -> list[Run]:
    """The runs whose W&B files are anywhere below `paths`; a resumed run has several files.

    Raises:
        ValueError: there is no such folder, or a file is not one of W&B's.
    """
    parts: dict[tuple[str, str], list[WandbFile]] = defaultdict(list)
    for path in paths:
        if not Path(path).is_dir():
            raise ValueError(f"{path}: no such folder; give folders with W&B's offline files in them")
        for one in wandb_files(Path(path)):
            if one.run_id:
                parts[one.project, one.run_id].append(one)
    return [offline_run(files) for files in parts.values()]


def offline_run(files: list[WandbFile]) -> Run:
    """One run from its files, which are sorted by their start."""
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    for one in files:
        config |= one.config
        summary |= one.summary
    history = [row for one in files for row in one.history]
    return run_of(files[-1].name, str(files[-1].path.parent), config, summary, history)


def project_runs(project: str, api: Any = None) -> list[Run]:
    """The runs of a project on the W&B server.

    Args:
        project: "entity/project".
        api: in place of `wandb.Api()`, which needs a key.

    Raises:
        ValueError: the name has another form, or the server refuses or cannot be reached.
    """
    import wandb

    if project.count("/") != 1 or not all(project.split("/")):
        raise ValueError(f"--wandb {project}: give entity/project")
    try:
        api = api or wandb.Api()
        return [
            run_of(one.name, one.url, one.config, one.summary_metrics or {}, one.scan_history())
            for one in api.runs(project, lazy=False)
        ]
    except Exception as error:  # the client's errors have no common base class
        raise ValueError(f"--wandb {project}: {' '.join(str(error).split())}") from error


def run_of(
    name: str,
    where: str,
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    history: Iterable[Mapping[str, Any]],
) -> Run:
    """A run in whatever state it is; a run of another program is foreign."""
    settings = {key: value for key, value in config.items() if key in SETTING_NAMES}
    if not {"backbone", "head", "seed"} <= settings.keys():
        return Run(name, where, "foreign", "its config has no settings of run.py")
    rows = {row["epoch"]: metrics(row) for row in history if is_finite(row.get("epoch"))}
    curve = [rows[epoch] for epoch in sorted(rows)]
    if "results" not in summary:
        return unfinished(name, where, settings, curve)
    try:
        return finished(name, where, settings, summary["results"], curve)
    except ValueError as error:
        return Run(name, where, "broken", str(error))


def metrics(row: Mapping[str, Any]) -> EpochRow:
    """The columns of metrics.csv in a row of history, without the client's own columns and without missing values."""
    return {
        key: float(value)
        for key, value in row.items()
        if is_finite(value) and not key.startswith("_") and key not in NOT_IN_METRICS
    }


def is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
