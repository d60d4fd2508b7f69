"""results.json: the final scores with everything needed to know what they mean."""

import json
import math
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from rich.table import Table

from datamodules.base import GraftDataModule
from experiments.command_line.console import make_console
from experiments.command_line.run_config import RunConfig
from experiments.run_files.atomic_file import write_atomically
from experiments.run_files.run_folder import RunFolder


def write_results(
    config: RunConfig,
    folder: RunFolder,
    data: GraftDataModule,
    crf: dict[str, Any] | None,
    costs: Mapping[str, float | None],
    scores: dict[str, Any],
    best_epoch: int,
    skipped: dict[str, list[str]],
) -> None:
    """Scores of the best checkpoint on each split, in [0, 1], and their protocol; "val_crf" is val with the CRF.

    `costs` are numbers that go into the file under their own names.
    """
    results = {
        "scores": {
            split: {name.removeprefix(f"{split}/"): null_if_not_finite(value) for name, value in values.items()}
            for split, values in scores.items()
        },
        "best_epoch": best_epoch,
        "protocol": {
            "data": config.data,
            "task": data.task,
            "splits": {split: len(getattr(data, split)) for split in data.splits},
            "image_size": list(data.image_size),
            "classes": list(data.class_names),
            "ignore_index": data.ignore_index,
            "seed": config.seed,
            "skipped": {split: len(samples) for split, samples in skipped.items()},
        },
        "backbone": config.backbone,
        "head": config.head,
        "crf": None if crf is None else {"mode": config.crf, **crf},
        **costs,
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            **{name: version(name) for name in ("graft", "torchvision", "lightning", "torchmetrics")},
        },
    }
    write_atomically(folder.results, json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def null_if_not_finite(value: float) -> float | None:
    """A class that does not occur has no score: null in JSON, which knows no NaN."""
    return value if math.isfinite(value) else None


def print_results(folder: RunFolder, scores: dict[str, Any]) -> None:
    """The final scores of each split, per class where there are such, and where everything lies."""
    table = Table(title="best checkpoint")
    table.add_column("score")
    for split in scores:
        table.add_column(split, justify="right")
    names = [name.split("/", 1)[1] for name in next(iter(scores.values()))]
    for name in names:
        table.add_row(name, *(f"{values[f'{split}/{name}']:.4f}" for split, values in scores.items()))
    console = make_console()
    console.print(table)
    files = "config.yaml metrics.csv results.json predictions.png checkpoints/"
    console.print(f"{folder.path}/: {files}", soft_wrap=True)
