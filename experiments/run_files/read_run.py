"""Reads run folders for comparing them, whatever state they are in. Imports no torch.

A run is finished (results.json exists and can be read), unfinished (it has settings, but no results yet), broken (one
of its files cannot be understood) or foreign (the folder holds no files of a run). Reading never fails: `reason` says
why a run is not finished.
"""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from experiments.run_files.json_file import read_json
from experiments.run_files.read_pictures import PREDICTIONS, Picture, read_pictures

State = Literal["finished", "unfinished", "broken", "foreign"]
MOST = 1e100
COSTS = ("params", "gmacs", "wall_time_s", "train_images_per_s", "peak_memory_mib")
"""Keys of results.json, if the run counted them."""
DEPTH = 4
"""Run folders are found at most so many levels below a given folder."""
YamlLoader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's loader is ten times as fast
EpochRow = dict[str, float]


@dataclass(frozen=True)
class Run:
    """One run, from its folder or from W&B."""

    name: str
    where: str
    """Its folder, or its address."""
    state: State
    reason: str = ""
    """For a run that is not finished: its progress, or what is wrong with it."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """All settings of config.yaml."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """What must be equal for scores to be comparable; see `protocol_of`. This and what follows: finished runs only."""
    scores: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """By split ("val", "test", "val_crf" ...), then by name ("miou", "iou/road" ...), in [0, 1]."""
    best_epoch: float | None = None
    """Counted from 1; 0 if the weights were scored without training."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """"global_batch", "processes", "device" ...; empty if an older version did not record them."""
    costs: Mapping[str, float] = field(default_factory=dict)
    """Those of `COSTS` that are known."""
    versions: Mapping[str, str] = field(default_factory=dict)
    curve: Sequence[EpochRow] = ()
    """Rows of metrics.csv, one an epoch, by column ("epoch", "train/loss_epoch" ...); of unfinished runs too."""
    pictures: Sequence[Picture] = ()
    colours: Mapping[str, str] = field(default_factory=dict)
    """"#rrggbb" of each class in the pictures."""

    @property
    def seed(self) -> int | None:
        return self.config.get("seed")


def find_runs(paths: Iterable[str]) -> Iterator[Run]:
    """The runs at `paths`, each of which is a run folder or holds run folders at most `DEPTH` levels below.

    A folder directly below a path that holds no runs at all is reported as foreign.

    Raises:
        ValueError: there is no such folder.
    """
    seen: set[Path] = set()
    for path in map(Path, paths):
        if not path.is_dir():
            raise ValueError(f"{path}: no such folder; give run folders or folders of run folders")
        for top in [path] if is_run_folder(path) else folders_in(path):
            for folder in list(run_folders(top, DEPTH - 1)) or [top]:
                if folder.resolve() not in seen:
                    seen.add(folder.resolve())
                    yield read_run(folder)


def run_folders(folder: Path, levels: int) -> Iterator[Path]:
    """The folder itself if it is a run's, otherwise the run folders at most `levels` below it. Follows no links."""
    if is_run_folder(folder):
        yield folder
    elif levels and not folder.is_symlink():
        for inside in folders_in(folder):
            yield from run_folders(inside, levels - 1)


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder in alphabetical order, without hidden ones and those that cannot be read."""
    try:
        return sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
    except OSError:
        return []


def is_finished(folder: Path) -> bool:
    return read_run(folder).state == "finished"


def validation_scores(run: Run) -> dict[int, float]:
    """The score that best.ckpt is chosen by (mIoU, top-1 or mAP) after each epoch with validation so far.

    If the schedule ends within an epoch, its last score is that of this epoch.
    """
    return {
        math.ceil(row["epoch"]): row[name]
        for row in run.curve
        for name in ("val/miou", "val/top1", "val/map")
        if name in row and "epoch" in row
    }


def is_run_folder(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() or (folder / "results.json").is_file()


def read_run(folder: Path) -> Run:
    """The run of a folder, in whatever state it is."""
    name, where = folder.resolve().name, str(folder)
    try:
        if not is_run_folder(folder):
            return Run(name, where, "foreign", "no config.yaml and no results.json")
        config = read_config(folder / "config.yaml")
        curve = read_curve(folder / "metrics.csv")
        results = folder / "results.json"
        if not results.is_file():
            return unfinished(name, where, config, curve)
        pictures, colours = read_pictures(folder / PREDICTIONS)
        return finished(name, where, config, read_json(results), curve, pictures, colours)
    except (ValueError, OSError) as error:
        return Run(name, where, "broken", " ".join(str(error).split()))


def unfinished(name: str, where: str, config: Mapping[str, Any], curve: Sequence[EpochRow]) -> Run:
    """A run without results, and how far it is."""
    epoch = int(curve[-1].get("epoch", 0)) if curve else 0
    reason = f"epoch {epoch} of {config.get('epochs', '?')} is done" if epoch else "no epoch is done"
    return Run(name, where, "unfinished", reason, config, curve=curve)


def finished(
    name: str,
    where: str,
    config: Mapping[str, Any],
    results: Any,
    curve: Sequence[EpochRow],
    pictures: Sequence[Picture] = (),
    colours: Mapping[str, str] | None = None,
) -> Run:
    """A run with its results.

    Args:
        results: the dictionary of results.json.

    Raises:
        ValueError: something that every results.json has is missing or of another kind.
    """
    scores = member(results, "scores", dict)
    for split, values in scores.items():
        if not isinstance(values, dict) or not all(is_number(value) for value in values.values()):
            raise ValueError(f"results.json: the scores of {split} are not numbers by name")
    return Run(
        name,
        where,
        "finished",
        config=config,
        protocol=protocol_of(results),
        scores={
            split: {key: null_if_not_finite(value) for key, value in values.items()} for split, values in scores.items()
        },
        best_epoch=number(results, "best_epoch"),
        training=mapping(results.get("training")),
        costs={key: value for key in COSTS if (value := number(results, key)) is not None},
        versions={key: str(value) for key, value in mapping(results.get("versions")).items()},
        curve=curve,
        pictures=pictures,
        colours=colours or {},
    )


def protocol_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """What scores depend on besides the network: data, task, split sizes, image size, classes, CRF, skipped samples.

    Raises:
        ValueError: the results do not say.
    """
    said = member(results, "protocol", dict)
    fingerprint = said.get("data_fingerprint")
    skipped = {split: count for split, count in mapping(said.get("skipped")).items() if count and split != "train"}
    return {
        "data": member(said, "data", str),
        "fingerprint": fingerprint if isinstance(fingerprint, str) else None,
        "task": member(said, "task", str),
        "splits": member(said, "splits", dict),
        "image_size": member(said, "image_size", list),
        "classes": member(said, "classes", list),
        "ignore_index": member(said, "ignore_index", int),
        "crf": mapping(results.get("crf")).get("mode", "none"),
        "skipped": skipped,
    }


def member(there: Any, key: str, kind: type) -> Any:
    """`there[key]`; a ValueError if it is missing or of another kind."""
    if not isinstance(there, dict) or not isinstance(there.get(key), kind):
        raise ValueError(f"results.json has no '{key}'")
    return there[key]


def number(there: Mapping[str, Any], key: str) -> float | None:
    """The number under `key`, or None if older results lack it or hold something else there."""
    return null_if_not_finite(there.get(key)) if is_number(there.get(key)) else None


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a dictionary, otherwise an empty one, because older results lack some."""
    return value if isinstance(value, dict) else {}


def read_training(folder: Path) -> Mapping[str, Any]:
    """What results.json records about the training; empty if it records nothing or cannot be read."""
    try:
        return mapping(mapping(read_json(folder / "results.json")).get("training"))
    except (ValueError, OSError):
        return {}


def read_config(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader=YamlLoader)
    except FileNotFoundError as error:
        raise ValueError("config.yaml is missing") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError("config.yaml is no YAML") from error
    if not isinstance(settings, dict) or "backbone" not in settings or "head" not in settings:
        raise ValueError("config.yaml holds no settings of run.py")
    if not isinstance(settings.get("seed"), int):
        raise ValueError("config.yaml has no seed")
    return settings


def read_curve(path: Path) -> list[EpochRow]:
    """The rows of metrics.csv without empty cells; no rows if the run has not written any."""
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                {
                    key: value
                    for key, cell in row.items()
                    if cell and (value := null_if_not_finite(float(cell))) is not None
                }
                for row in csv.DictReader(file)
            ]
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError("metrics.csv is no table of numbers") from error


def is_number(value: Any) -> bool:
    """Whether it is a number or None, which stands for the score of a class that does not occur."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def null_if_not_finite(value: float | None) -> float | None:
    """The value, or None for NaN, infinities and numbers whose squares would overflow."""
    return value if value is not None and abs(value) < MOST else None
