"""The command that a run's settings mean."""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from experiments.command_line.parser import dashed
from experiments.command_line.run_config import RunConfig

NOT_IN_COMMAND = {
    "name", "out", "resume", "workers", "logger", "download", "cache", "checkpoint_every",
    "wandb_project", "wandb_group", "wandb_tags", "wandb_checkpoint",
}  # fmt: skip
"""Settings that do not change what is trained."""
LOCAL = "DIR"
"""Stands for folders of the author's machine."""


def command(settings: Mapping[str, Any]) -> str:
    """The command that trains the network again. Folders of the author's machine are left out."""
    words = ["python", "experiments/run.py"]
    for one in dataclasses.fields(RunConfig):
        default = one.default_factory() if one.default_factory is not dataclasses.MISSING else one.default
        value = settings.get(one.name, default)
        if value == default or one.name in NOT_IN_COMMAND:
            continue
        if one.metadata["path"] and isinstance(value, str):
            value = LOCAL if one.name == "data_dir" else Path(value).name
        words += [dashed(one.name), *arguments(value)]
    return shlex.join(words)


def arguments(value: Any) -> list[str]:
    """A setting as the words that follow its flag."""
    if value is None:
        return ["null"]
    if isinstance(value, bool):
        return [] if value else ["false"]
    if isinstance(value, dict):
        return [yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).strip()]
    return [str(one) for one in value] if isinstance(value, (list, tuple)) else [str(value)]
