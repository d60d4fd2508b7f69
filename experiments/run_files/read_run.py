"""What runs left behind, read for comparing them, whatever state they are in. Imports no torch.

A run is finished (results.json exists and can be read), unfinished (it has settings, but no results yet), broken (a
file of it cannot be understood) or foreign (nothing in the folder is a run's). Reading never fails: `reason` says why a
run is not finished.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

State = Literal["finished", "unfinished", "broken", "foreign"]
MOST = 1e100
COSTS = ("params", "gmacs", "wall_time_s", "train_images_per_s", "peak_memory_mib")
"""Keys of results.json, where the run counted them."""
PREDICTIONS = "predictions/index.json"
YamlLoader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast
EpochRow = dict[str, float]


@dataclass(frozen=True)
class Picture:
    """A validation image and what a run made of it."""

    index: int
    """Of the image in the validation split."""
    image: Path
    """PNG of the image."""
    truth: Path | str
    """PNG of the labels in the classes' colours; the name of a class in classification."""
    prediction: Path | str
    """The same of what the run says."""


@dataclass(frozen=True)
class Run:
    """One run, from its folder or from W&B."""

    name: str
    where: str
    """Its folder, or its address."""
    state: State
    reason: str = ""
    """Of a run that is not finished: how far it is, or what is wrong with it."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """All settings of config.yaml."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """What must be the same for scores to be comparable; see `protocol_of`. Of finished runs only, as what follows."""
    scores: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """By split ("val", "test", "val_crf" ...), then by name ("miou", "iou/road" ...), in [0, 1]."""
    best_epoch: float | None = None
    """Counted from 1; 0 where the weights were scored as they came."""
    costs: Mapping[str, float] = field(default_factory=dict)
    """Those of `COSTS` that are known."""
    versions: Mapping[str, str] = field(default_factory=dict)
    curve: Sequence[EpochRow] = ()
    """Rows of metrics.csv, one an epoch, by column ("epoch", "train/loss", "val/miou" ...); of unfinished runs too."""
    pictures: Sequence[Picture] = ()
    colours: Mapping[str, str] = field(default_factory=dict)
    """"#rrggbb" of each class in the pictures."""

    @property
    def seed(self) -> int | None:
        return self.config.get("seed")


def find_runs(paths: Iterable[str]) -> Iterator[Run]:
    """The runs at `paths`, each of which is a run folder or a folder of run folders.

    Raises:
        ValueError: there is no such folder.
    """
    seen: set[Path] = set()
    for path in map(Path, paths):
        if not path.is_dir():
            raise ValueError(f"{path}: no such folder; give run folders or folders of run folders")
        inside = sorted(one for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))
        for folder in [path] if is_run_folder(path) else inside:
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                yield read_run(folder)


def is_finished(folder: Path) -> bool:
    return read_run(folder).state == "finished"


def validation_scores(run: Run) -> list[float]:
    """The score that best.ckpt is chosen by after each epoch so far: mIoU, or top-1."""
    return [row[name] for row in run.curve for name in ("val/miou", "val/top1") if name in row]


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
        costs={key: value for key in COSTS if (value := number(results, key)) is not None},
        versions={key: str(value) for key, value in mapping(results.get("versions")).items()},
        curve=curve,
        pictures=pictures,
        colours=colours or {},
    )


def protocol_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """What scores depend on besides the network: data, task, split sizes, image size, classes, CRF, samples left out.

    Raises:
        ValueError: the results do not say.
    """
    said = member(results, "protocol", dict)
    skipped = {split: count for split, count in mapping(said.get("skipped")).items() if count and split != "train"}
    return {
        "data": member(said, "data", str),
        "task": member(said, "task", str),
        "splits": member(said, "splits", dict),
        "image_size": member(said, "image_size", list),
        "classes": member(said, "classes", list),
        "ignore_index": member(said, "ignore_index", int),
        "crf": mapping(results.get("crf")).get("mode", "none"),
        "skipped": skipped,
    }


def member(there: Any, key: str, kind: type) -> Any:
    """`there[key]`, which must be there and of that kind."""
    if not isinstance(there, dict) or not isinstance(there.get(key), kind):
        raise ValueError(f"results.json has no '{key}'")
    return there[key]


def number(there: Mapping[str, Any], key: str) -> float | None:
    """What older results lack, or hold otherwise, as None."""
    return null_if_not_finite(there.get(key)) if is_number(there.get(key)) else None


def mapping(value: Any) -> dict[str, Any]:
    """What older results lack, or hold null for, as an empty dictionary."""
    return value if isinstance(value, dict) else {}


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


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise ValueError(f"{path.name} is no JSON, or half of it") from error


def read_curve(path: Path) -> list[EpochRow]:
    """metrics.csv without its empty cells; no rows where a run has not written any."""
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


def read_pictures(path: Path) -> tuple[list[Picture], dict[str, str]]:
    """What `experiments/pictures.py` left, and the colours of the classes; nothing where an older version left none."""
    if not path.is_file():
        return [], {}
    index = read_json(path)
    try:
        pictures = [
            Picture(
                int(one["index"]),
                path.parent / one["image"],
                one["truth"] if index["task"] == "classification" else path.parent / one["truth"],
                one["prediction"] if index["task"] == "classification" else path.parent / one["prediction"],
            )
            for one in index["samples"]
        ]
        return pictures, dict(index["colours"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{PREDICTIONS} has no '{error}'") from error


def is_number(value: Any) -> bool:
    """Also None, which stands for the score of a class that does not occur."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def null_if_not_finite(value: float | None) -> float | None:
    """None for what no run can have: NaN, infinities, and numbers whose squares would overflow."""
    return value if value is not None and abs(value) < MOST else None
