"""Groups of runs for comparison: first by protocol, because other scores do not compare, then by settings.

Runs of one group differ only in their seed. What a run was trained on counts by its global batch: the images of one
optimiser step over all ranks.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.command_line.run_flags import RunConfig
from experiments.run_files.read_run import Run, read_config, read_training

# Settings on which no score depends: names, places, how samples are fetched; and hardware, which counts by the global
# batch.
WITHOUT_EFFECT = {
    "name", "out", "resume", "staged", "data_dir", "download", "cache", "workers", "checkpoint_every", "logger",
    "wandb_project", "wandb_group", "wandb_tags", "wandb_checkpoint", "deterministic", "checkpoint_activations",
    "accelerator", "devices", "nodes", "strategy",
}  # fmt: skip
DEFAULTS = asdict(RunConfig())
GENERATIONS = 8
"""The number of runs that are followed in a chain of runs that start from each other."""
UNKNOWN = "x unknown ranks"
"""Ends a global batch that older results do not record."""
GroupSettings = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """Finished runs that differ in nothing but their seed."""

    label: str
    """Backbone, head, and the settings in which the groups differ."""
    settings: GroupSettings
    runs: Sequence[Run]

    def by_seed(self, split: str, metric: str) -> dict[int, float]:
        """The score of each seed; the mean of its runs if a seed was run more than once."""
        values = defaultdict(list)
        for run in self.runs:
            value = run.scores.get(split, {}).get(metric)
            if value is not None and run.seed is not None:
                values[run.seed].append(value)
        return {seed: sum(several) / len(several) for seed, several in sorted(values.items())}


def by_protocol(runs: Iterable[Run]) -> list[list[Run]]:
    """The finished runs in one list for each protocol, the longest list first."""
    lists = defaultdict(list)
    for run in runs:
        if run.state == "finished":
            lists[key(run.protocol)].append(run)
    return sorted(lists.values(), key=len, reverse=True)


def make_groups(runs: Sequence[Run]) -> list[Group]:
    """The groups of the runs of one protocol, with unique labels."""
    settings: dict[str, GroupSettings] = {}
    members = defaultdict(list)
    for run in runs:
        own = grouping_settings(run.config, run.training, Path(run.where).parent)
        settings[key(own)] = own
        members[key(own)].append(run)
    named = [name for name in differing(list(settings.values())) if name not in ("backbone", "head")]
    labels = {group: label(own, named) for group, own in settings.items()}
    taken = list(labels.values())
    for group, text in labels.items():
        if taken.count(text) > 1:  # numbers that differ only in digits that labels leave out
            labels[group] = f"{text} ({members[group][0].name})"
    return [Group(labels[group], own, members[group]) for group, own in settings.items()]


def grouping_settings(
    config: Mapping[str, Any], training: Mapping[str, Any], beside: Path, generations: int = GENERATIONS
) -> GroupSettings:
    """The settings that scores depend on, without the seed; settings that an older version lacked have their defaults.

    If a run starts from another run's checkpoint, such as FCN-8s from FCN-16s, the path is replaced by that run's
    settings, because the path differs between seeds and would split their group.

    Args:
        training: what results.json records about the training.
        beside: the folder in which the other run is looked for first, because both may have been moved.
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
                settings["start_from"] = grouping_settings(other, read_training(folder), folder.parent, generations - 1)
                break
    kept = {name: value for name, value in settings.items() if name not in WITHOUT_EFFECT and name != "seed"}
    return kept | {"global_batch": global_batch(settings, training)}


def global_batch(settings: Mapping[str, Any], training: Mapping[str, Any]) -> int | str:
    """Images per optimiser step over all ranks; text that ends in `UNKNOWN` if their number is not recorded."""
    recorded = training.get("global_batch")
    if isinstance(recorded, int):
        return recorded
    factors = [str(settings.get(name)) for name in ("batch_size", "accumulate", "devices", "nodes")]
    if not all(factor.isdecimal() for factor in factors):
        return f"{' x '.join(factors[:2])} {UNKNOWN}"
    return math.prod(map(int, factors))


def differing(several: Sequence[GroupSettings]) -> list[str]:
    """Names of the settings in which they differ, in the order of config.yaml."""
    names = {name: None for settings in several for name in settings}
    return [name for name in names if len({key(settings.get(name)) for settings in several}) > 1]


def label(settings: GroupSettings, named: Sequence[str]) -> str:
    """Such as "resnet50 · unet · lr 0.01"; settings without a value are left out."""
    parts = [f"{name} {format_value(settings[name])}" for name in named if settings.get(name) is not None]
    return " · ".join([str(settings["backbone"]), str(settings["head"]), *parts])


def format_value(value: Any) -> str:
    """A setting as it is shown in tables."""
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
