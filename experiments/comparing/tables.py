"""The contents of a comparison in every form: one table for each protocol, and the runs that are in no table."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from experiments.command_line.known_names import nearest
from experiments.comparing.groups import UNKNOWN, Group, by_protocol, differing, make_groups
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
MAIN_METRIC = {"segmentation": "miou", "classification": "top1", "detection": "map"}
OF_CLASSES = {"detection": ("ap50/", "AP50")}
"""What the scores of single classes begin with and are called, by task; `IOU` for all others."""
IOU = ("iou/", "IoU")
NAMES_WIDTH = 120
"""Characters of class names in a remark."""


@dataclass(frozen=True)
class GroupRow:
    """A group of runs with the numbers that are shown of it."""

    group: Group
    score: SeedStatistics | None
    best_epoch: SeedStatistics | None
    difference: Difference | None
    """To the baseline's score, over the seeds that both groups have; None for the baseline itself."""
    costs: Mapping[str, float]
    """Means over the runs, by the keys of `COSTS`."""
    classes: Mapping[str, SeedStatistics]
    """IoU, or AP50 in detection, of each class that has one."""
    class_differences: Mapping[str, Difference]
    on_front: bool
    """Whether the group lies on the Pareto front of score against GMACs."""

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
    """Label of the group that others are compared with; None if no group has a score."""
    differing: Sequence[str]
    """The settings in which the groups differ."""
    remarks: Sequence[str]
    """Notes for the reader on the limits of the comparison."""

    @property
    def class_score(self) -> str:
        """What the scores of single classes are called."""
        return OF_CLASSES.get(self.protocol["task"], IOU)[1]

    @property
    def title(self) -> str:
        """The protocol in a line."""
        words = describe(self.protocol) | {"classes": str(len(self.protocol["classes"]))}
        return " · ".join(f"{name} {text}" for name, text in words.items())


@dataclass(frozen=True)
class Comparison:
    tables: Sequence[Table]
    others: Sequence[Run]
    """Unfinished, broken and foreign runs, which are not ranked."""


def higher_is_better(metric: str) -> bool:
    return metric != "loss"


def describe(protocol: Mapping[str, Any]) -> dict[str, str]:
    """The parts of a protocol in words."""
    words = {
        "data": str(protocol["data"]),
        "fingerprint": protocol["fingerprint"] or "unknown",
        "task": str(protocol["task"]),
        "images": ", ".join(f"{count} {split}" for split, count in protocol["splits"].items()),
        "size": " x ".join(map(str, protocol["image_size"])),
        "classes": ", ".join(map(str, protocol["classes"])),
        "ignored label": str(protocol["ignore_index"]),
        "crf": str(protocol["crf"]),
        **{name: str(protocol[name]) for name in ("ap_rule", "fit") if name in protocol},
    }
    if protocol["skipped"]:
        words["unreadable samples"] = ", ".join(f"{count} {split}" for split, count in protocol["skipped"].items())
    return words


def compare(
    runs: Iterable[Run], split: str, metric: str | None = None, baseline: str | None = None, sort: Order = "score"
) -> Comparison:
    """Tables of the finished runs, and the other runs.

    Args:
        metric: None for mIoU, top-1 accuracy in classification, mAP in detection.
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
    first = protocols[0][0].runs[0].protocol if protocols else {}
    tables = [make_table(several, split, metric, baseline, sort, first) for several in protocols]
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


def make_table(
    groups: Sequence[Group], split: str, metric: str | None, baseline: str | None, sort: Order, first: Mapping[str, Any]
) -> Table:
    """The table of the groups of one protocol.

    Args:
        first: the protocol of the first table.
    """
    protocol = groups[0].runs[0].protocol
    usual = "map" if protocol.get("several_labels") else MAIN_METRIC.get(protocol["task"], "loss")
    metric = metric or usual
    ranks = {group.label: rank for group in groups if (rank := rank_of(group, split, metric)) is not None}
    ranked = sorted(groups, key=lambda group: ranks.get(group.label, -math.inf), reverse=True)
    scored = [group for group in ranked if group.label in ranks]
    called = [group for group in scored if baseline is not None and is_called(group, baseline)]
    base = next(iter(called or scored), None)
    remarks = [*remarks_on_protocol(protocol, first), *remarks_on(groups, split, metric)]
    if baseline is not None and base is not None and not called:
        remarks.append(f"no group is called {baseline} here; others are compared with the best")
    front = pareto_front(scored, ranks)
    rows = [make_row(group, base, split, metric, group.label in front) for group in ranked]
    names = differing([group.settings for group in groups])
    return Table(protocol, split, metric, in_order(rows, sort), base.label if base else None, names, remarks)


def rank_of(group: Group, split: str, metric: str) -> float | None:
    """The group's mean score, negated if lower is better; None if it has no score."""
    mean = mean_of(list(group.by_seed(split, metric).values()))
    if mean is None:
        return None
    return mean.mean if higher_is_better(metric) else -mean.mean


def pareto_front(scored: Sequence[Group], ranks: Mapping[str, float]) -> set[str]:
    """Labels of the groups that no other group beats in score at most as many GMACs, or equals at fewer."""
    points = {
        group.label: (ranks[group.label], costs) for group in scored if (costs := mean_cost(group, "gmacs")) is not None
    }
    return {
        label
        for label, (rank, costs) in points.items()
        if not any(
            theirs >= rank and fewer <= costs and (theirs, fewer) != (rank, costs) for theirs, fewer in points.values()
        )
    }


def make_row(group: Group, base: Group | None, split: str, metric: str, on_front: bool) -> GroupRow:
    """A group with its scores, and their differences to those of `base`."""
    prefix, _ = OF_CLASSES.get(group.runs[0].protocol["task"], IOU)
    names = {name: None for run in group.runs for name in run.scores.get(split, {})}
    scores = {name: values for name in names if (values := group.by_seed(split, name))}
    means = {name: mean for name, values in scores.items() if (mean := mean_of(list(values.values())))}
    differences = {}
    if base is not None and base is not group:
        for name, values in scores.items():
            if name == metric or name.startswith(prefix):
                differences[name] = paired_difference(values, base.by_seed(split, name))
    return GroupRow(
        group,
        means.get(metric),
        mean_of([run.best_epoch for run in group.runs if run.best_epoch is not None]),
        differences.get(metric),
        {name: value for name in COSTS if (value := mean_cost(group, name)) is not None},
        {name.removeprefix(prefix): mean for name, mean in means.items() if name.startswith(prefix)},
        {name.removeprefix(prefix): one for name, one in differences.items() if one and name.startswith(prefix)},
        on_front,
    )


def mean_cost(group: Group, name: str) -> float | None:
    mean = mean_of([run.costs[name] for run in group.runs if name in run.costs])
    return mean.mean if mean else None


def in_order(rows: Sequence[GroupRow], sort: Order) -> list[GroupRow]:
    """The rows in the given order: best score first, costs ascending, throughput descending, unknown values last."""

    def place(row: GroupRow) -> tuple[bool, float]:
        value = row.costs.get(COST_OF[sort]) if sort in COST_OF else row.best_epoch and row.best_epoch.mean
        return value is None, (value or 0.0) * (-1 if sort == "throughput" else 1)

    if sort == "score":
        return list(rows)
    return sorted(rows, key=lambda row: row.label) if sort == "name" else sorted(rows, key=place)


def remarks_on_protocol(protocol: Mapping[str, Any], first: Mapping[str, Any]) -> list[str]:
    """Notes on how the protocol differs from that of the first table."""
    here, there = describe(protocol), describe(first)
    names = [name for name in {**there, **here} if here.get(name) != there.get(name)]
    remarks = [f"differs from the first table in: {', '.join(names)}"] if names else []
    if "classes" in names:
        remarks.append(f"classes here: {textwrap.shorten(here['classes'], NAMES_WIDTH, placeholder=' ...')}")
    return remarks


def remarks_on(groups: Sequence[Group], split: str, metric: str) -> list[str]:
    """Notes on what makes groups of one protocol less comparable."""
    runs = [run for group in groups for run in group.runs]
    remarks = []
    seeds = {tuple(group.by_seed(split, metric)) for group in groups}
    if len(seeds) > 1:
        remarks.append("groups ran different seeds: each mean is over its own, each difference over those in common")
    twice = [group.label for group in groups if len(group.runs) > len({run.seed for run in group.runs})]
    if twice:
        remarks.append(f"some seeds ran more than once and count once, by their mean: {'; '.join(twice)}")
    folders = {str(run.config.get("data_dir")) for run in runs}
    if len(folders) > 1 and runs[0].protocol["fingerprint"] is None:
        remarks.append(f"data were read from different folders, taken for the same data: {', '.join(sorted(folders))}")
    unknown = [group.label for group in groups if str(group.settings["global_batch"]).endswith(UNKNOWN)]
    if unknown:
        remarks.append(
            f"an older version did not record the number of ranks, so global batches may differ: {'; '.join(unknown)}"
        )
    devices = {str(run.training["device"]) for run in runs if "device" in run.training}
    if len(devices) > 1:
        remarks.append(f"time, images/s and memory were measured on different devices: {', '.join(sorted(devices))}")
    for name in sorted({name for run in runs for name in run.versions}):
        versions = {run.versions.get(name, "unknown") for run in runs}
        if len(versions) > 1:
            remarks.append(f"made with different versions of {name}: {', '.join(sorted(versions))}")
    return remarks
