"""What compare.py shows, whatever it shows it as: one table for each protocol, and the runs that are in none."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from experiments.command_line.known_names import nearest
from experiments.comparing.groups import Group, by_protocol, differing, make_groups
from experiments.comparing.means import Difference, SeedStatistics, mean_of, paired_difference
from experiments.run_files.read_run import COSTS, Run

Split = Literal["val", "test", "val_crf", "test_crf"]
Order = Literal["score", "name", "best_epoch", "params", "gmacs", "time", "throughput", "memory"]
COST_OF = {
    "params": "params",
    "gmacs": "gmacs",
    "time": "wall_time_s",
    "throughput": "train_images_per_s",
    "memory": "peak_memory_mib",
}
MAIN_METRIC = {"segmentation": "miou", "classification": "top1"}
CLASS = "iou/"


@dataclass(frozen=True)
class GroupRow:
    """A group of runs, with what is shown of it."""

    group: Group
    score: SeedStatistics | None
    best_epoch: SeedStatistics | None
    difference: Difference | None
    """To the baseline's score, over the seeds that both have; None for the baseline itself."""
    costs: Mapping[str, float]
    """Means over the runs, by the keys of `COSTS`."""
    classes: Mapping[str, SeedStatistics]
    """IoU of each class that has one."""
    class_differences: Mapping[str, Difference]
    on_front: bool
    """Whether no other group has at least its score for at most its GMACs."""

    @property
    def label(self) -> str:
        return self.group.label


@dataclass(frozen=True)
class Table:
    """The groups of one protocol, in the order they are shown in."""

    protocol: Mapping[str, Any]
    split: str
    metric: str
    rows: Sequence[GroupRow]
    baseline: str | None
    """Label of the group that others are compared with; None where no group has a score."""
    differing: Sequence[str]
    """The settings that are not the same in all groups."""
    remarks: Sequence[str]
    """What a reader should know before trusting the order."""

    @property
    def title(self) -> str:
        """The protocol in a line."""
        words = describe(self.protocol) | {"classes": str(len(self.protocol["classes"]))}
        return " · ".join(f"{name} {text}" for name, text in words.items())


@dataclass(frozen=True)
class Comparison:
    tables: Sequence[Table]
    others: Sequence[Run]
    """Unfinished, broken and foreign ones, which are not ranked."""


def higher_is_better(metric: str) -> bool:
    return metric != "loss"


def describe(protocol: Mapping[str, Any]) -> dict[str, str]:
    """The parts of a protocol in words."""
    words = {
        "data": str(protocol["data"]),
        "task": str(protocol["task"]),
        "images": ", ".join(f"{count} {split}" for split, count in protocol["splits"].items()),
        "size": " x ".join(map(str, protocol["image_size"])),
        "classes": ", ".join(map(str, protocol["classes"])),
        "ignored label": str(protocol["ignore_index"]),
        "crf": str(protocol["crf"]),
    }
    if protocol["skipped"]:
        words["left out as unreadable"] = ", ".join(f"{count} {split}" for split, count in protocol["skipped"].items())
    return words


def compare(
    runs: Iterable[Run], split: str, metric: str | None = None, baseline: str | None = None, sort: Order = "score"
) -> Comparison:
    """Tables of the finished runs, and the other runs.

    Args:
        metric: None for mIoU, or top-1 accuracy in classification.
        baseline: label of a group, or name of a run in it; None for the best group.

    Raises:
        ValueError: no run has that score, or none that name.
    """
    runs = list(runs)
    protocols = [make_groups(alike) for alike in by_protocol(runs)]
    groups = [group for several in protocols for group in several]
    check_scores([run for group in groups for run in group.runs], split, metric)
    if baseline is not None and not any(is_called(group, baseline) for group in groups):
        known = [name for group in groups for name in (group.label, *(run.name for run in group.runs))]
        raise ValueError(
            f"--baseline {baseline}: no finished run or group is called so; nearest: {nearest(baseline, known)}"
        )
    tables = [make_table(several, split, metric, baseline, sort) for several in protocols]
    return Comparison(tables, [run for run in runs if run.state != "finished"])


def check_scores(finished: Sequence[Run], split: str, metric: str | None) -> None:
    splits = {name: None for run in finished for name in run.scores}
    metrics = {name: None for run in finished for name in run.scores.get(split, {})}
    if finished and split not in splits:
        raise ValueError(f"--split {split}: no run has scores of it; there are {', '.join(splits)}")
    if finished and metric is not None and metric not in metrics:
        raise ValueError(f"--metric {metric}: no run has that score of {split}; nearest: {nearest(metric, metrics)}")


def is_called(group: Group, name: str) -> bool:
    return name == group.label or any(run.name == name for run in group.runs)


def make_table(groups: Sequence[Group], split: str, metric: str | None, baseline: str | None, sort: Order) -> Table:
    """The table of groups of one protocol."""
    protocol = groups[0].runs[0].protocol
    metric = metric or MAIN_METRIC.get(protocol["task"], "loss")
    sign = 1 if higher_is_better(metric) else -1
    means = {group.label: mean_of(list(group.by_seed(split, metric).values())) for group in groups}
    points = {
        group.label: (sign * mean.mean, mean_cost(group, "gmacs")) for group in groups if (mean := means[group.label])
    }
    ranked = sorted(groups, key=lambda group: -points[group.label][0] if group.label in points else math.inf)
    scored = [group for group in ranked if group.label in points]
    called = [group for group in scored if baseline is not None and is_called(group, baseline)]
    base = next(iter(called or scored), None)
    remarks = remarks_on(groups, split, metric)
    if baseline is not None and base is not None and not called:
        remarks.append(f"no group is called {baseline} here; others are compared with the best")
    rows = [make_row(group, base, split, metric, is_on_front(group.label, points)) for group in ranked]
    names = differing([group.settings for group in groups])
    return Table(protocol, split, metric, in_order(rows, sort), base.label if base else None, names, remarks)


def make_row(group: Group, base: Group | None, split: str, metric: str, on_front: bool) -> GroupRow:
    """A group with its scores, and their differences to those of `base`."""
    names = {name: None for run in group.runs for name in run.scores.get(split, {})}
    scores = {name: values for name in names if (values := group.by_seed(split, name))}
    means = {name: mean for name, values in scores.items() if (mean := mean_of(list(values.values())))}
    differences = {}
    if base is not None and base is not group:
        for name, values in scores.items():
            if name == metric or name.startswith(CLASS):
                differences[name] = paired_difference(values, base.by_seed(split, name))
    return GroupRow(
        group,
        means.get(metric),
        mean_of([run.best_epoch for run in group.runs if run.best_epoch is not None]),
        differences.get(metric),
        {name: value for name in COSTS if (value := mean_cost(group, name)) is not None},
        {name.removeprefix(CLASS): mean for name, mean in means.items() if name.startswith(CLASS)},
        {name.removeprefix(CLASS): one for name, one in differences.items() if one and name.startswith(CLASS)},
        on_front,
    )


def mean_cost(group: Group, name: str) -> float | None:
    mean = mean_of([run.costs[name] for run in group.runs if name in run.costs])
    return mean.mean if mean else None


def is_on_front(label: str, points: Mapping[str, tuple[float, float | None]]) -> bool:
    """Whether no other group is at least as good and as cheap, and one of the two by more."""
    score, gmacs = points.get(label, (None, None))
    if score is None or gmacs is None:
        return False
    others = [
        (theirs, costs) for theirs, costs in points.values() if costs is not None and (theirs, costs) != (score, gmacs)
    ]
    return not any(theirs >= score and costs <= gmacs for theirs, costs in others)


def in_order(rows: Sequence[GroupRow], sort: Order) -> list[GroupRow]:
    """The rows, best first, in another order if asked: costs ascending, throughput descending, what is unknown last."""

    def place(row: GroupRow) -> tuple[bool, float]:
        value = row.costs.get(COST_OF[sort]) if sort in COST_OF else row.best_epoch and row.best_epoch.mean
        return value is None, (value or 0.0) * (-1 if sort == "throughput" else 1)

    if sort == "score":
        return list(rows)
    return sorted(rows, key=lambda row: row.label) if sort == "name" else sorted(rows, key=place)


def remarks_on(groups: Sequence[Group], split: str, metric: str) -> list[str]:
    """What makes groups less comparable than their protocol says."""
    runs = [run for group in groups for run in group.runs]
    remarks = []
    seeds = {tuple(group.by_seed(split, metric)) for group in groups}
    if len(seeds) > 1:
        remarks.append("groups ran different seeds: each mean is over its own, each difference over those in common")
    twice = [group.label for group in groups if len(group.runs) > len({run.seed for run in group.runs})]
    if twice:
        remarks.append(f"some seeds ran more than once and count once, by their mean: {'; '.join(twice)}")
    folders = {str(run.config.get("data_dir")) for run in runs}
    if len(folders) > 1:
        remarks.append(f"data were read from different folders, taken for the same data: {', '.join(sorted(folders))}")
    for name in sorted({name for run in runs for name in run.versions}):
        versions = {run.versions.get(name, "unknown") for run in runs}
        if len(versions) > 1:
            remarks.append(f"made with different versions of {name}: {', '.join(sorted(versions))}")
    return remarks
