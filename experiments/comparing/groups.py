"""Runs sorted for comparison: by protocol, as scores under different protocols do not compare, then by settings."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from experiments.command_line.run_config import RunConfig
from experiments.run_files.read_run import Run, read_config

# Settings that name a run, say where things lie or how samples are fetched; no score depends on them.
WITHOUT_EFFECT = {
    "name", "out", "resume", "staged", "data_dir", "download", "cache", "workers", "checkpoint_every", "logger",
    "wandb_project", "wandb_group", "wandb_tags", "wandb_checkpoint", "deterministic", "checkpoint_activations",
}  # fmt: skip
DEFAULTS = {one.name: one.default for one in fields(RunConfig) if one.default is not MISSING}
GENERATIONS = 8
"""How far runs that start from other runs are followed."""
Settings = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """Finished runs that differ in nothing but their seed."""

    label: str
    """Backbone, head, and the settings that other groups have otherwise."""
    settings: Settings
    runs: Sequence[Run]

    def by_seed(self, split: str, metric: str) -> dict[int, float]:
        """The score of each seed; the mean of its runs where a seed was run more than once."""
        values = defaultdict(list)
        for run in self.runs:
            value = run.scores.get(split, {}).get(metric)
            if value is not None and run.seed is not None:
                values[run.seed].append(value)
        return {seed: sum(several) / len(several) for seed, several in sorted(values.items())}


def by_protocol(runs: Iterable[Run]) -> list[list[Run]]:
    """The finished runs in lists of one protocol each, the longest first."""
    lists = defaultdict(list)
    for run in runs:
        if run.state == "finished":
            lists[key(run.protocol)].append(run)
    return sorted(lists.values(), key=len, reverse=True)


def make_groups(runs: Sequence[Run]) -> list[Group]:
    """The groups of runs of one protocol, labelled so that no two are alike."""
    settings: dict[str, Settings] = {}
    members = defaultdict(list)
    for run in runs:
        own = grouping_settings(run.config, Path(run.where).parent)
        settings[key(own)] = own
        members[key(own)].append(run)
    named = [name for name in differing(list(settings.values())) if name not in ("backbone", "head")]
    labels = {group: label(own, named) for group, own in settings.items()}
    taken = list(labels.values())
    for group, text in labels.items():
        if taken.count(text) > 1:  # numbers that differ in digits a label leaves out
            labels[group] = f"{text} ({members[group][0].name})"
    return [Group(labels[group], own, members[group]) for group, own in settings.items()]


def grouping_settings(config: Mapping[str, Any], beside: Path, generations: int = GENERATIONS) -> Settings:
    """The settings that scores depend on, without the seed; those that an older version lacked, at their defaults.

    A run that starts from another's checkpoint, such as FCN-8s from FCN-16s, has the other's settings in place of the
    path, which would tell seeds apart.

    Args:
        beside: folder to look for the other run in first, as both may have been moved.
    """
    settings = DEFAULTS | dict(config)
    start = settings.get("start_from")
    if isinstance(start, str) and generations and len(Path(start).parts) > 2:
        there = Path(start).parents[1]
        for folder in (beside / there.name, there):
            if (folder / "config.yaml").is_file():
                try:
                    other = read_config(folder / "config.yaml")
                except ValueError:
                    continue
                settings["start_from"] = grouping_settings(other, folder.parent, generations - 1)
                break
    return {name: value for name, value in settings.items() if name not in WITHOUT_EFFECT and name != "seed"}


def differing(several: Sequence[Settings]) -> list[str]:
    """Names of the settings that are not the same in all, in the order of config.yaml."""
    names = {name: None for settings in several for name in settings}
    return [name for name in names if len({key(settings.get(name)) for settings in several}) > 1]


def label(settings: Settings, named: Sequence[str]) -> str:
    """Such as "resnet50 · unet · lr 0.01"; settings that were not given say nothing."""
    parts = [f"{name} {format_value(settings[name])}" for name in named if settings.get(name) is not None]
    return " · ".join([str(settings["backbone"]), str(settings["head"]), *parts])


def format_value(value: Any) -> str:
    """A setting as a person would write it."""
    if value is None:
        return "default"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return " ".join(map(format_value, value))
    if isinstance(value, dict) and "backbone" in value and "head" in value:  # the run it started from
        return f"{value['backbone']} · {value['head']}"
    return key(value) if isinstance(value, dict) else str(value)


def key(value: Any) -> str:
    """Equal for equal values, whatever the order in dictionaries."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(sorted(f"{name}: {key(item)}" for name, item in value.items())) + "}"
    return json.dumps(value, default=str)
