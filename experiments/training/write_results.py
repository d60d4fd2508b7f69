"""results.json: the final scores with everything needed to know what they mean."""

import json
import math
import platform
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import lightning.pytorch as pl
import torch
from rich.table import Table

from datamodules.base import GraftDataModule
from experiments.command_line.console import make_console
from experiments.command_line.cores import processor_name
from experiments.command_line.known_names import ROOT
from experiments.command_line.run_config import RunConfig
from experiments.run_files.atomic_file import write_atomically
from experiments.run_files.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a run has found, besides its protocol."""

    scores: dict[str, dict[str, float]]
    """Scores of the best checkpoint by split, in [0, 1]; "val_crf" is val with the CRF."""
    best_epoch: int
    """The epoch, counted from 1, in which the best checkpoint was saved; 0 without training."""
    best_step: int
    """The optimiser step after which it was saved."""
    skipped: dict[str, list[str]]
    """What is wrong with each sample that was skipped, by split."""
    crf: dict[str, Any] | None
    """Settings of the CRF."""
    costs: Mapping[str, float | None]
    """Numbers that go into the file under their own names."""
    training: dict[str, Any]
    """See `training_record`."""


def write_results(config: RunConfig, folder: RunFolder, data: GraftDataModule, found: Results) -> None:
    """Write the results with their protocol."""
    results = {
        "scores": {
            split: {name.removeprefix(f"{split}/"): null_if_not_finite(value) for name, value in values.items()}
            for split, values in found.scores.items()
        },
        "best_epoch": found.best_epoch,
        "best_step": found.best_step,
        "protocol": {
            "data": config.data,
            "data_fingerprint": data.fingerprint(),
            "task": data.task,
            "splits": {split: len(getattr(data, split)) for split in data.splits},
            "image_size": list(data.image_size),
            "classes": list(data.class_names),
            "ignore_index": data.ignore_index,
            **({"ap_rule": config.ap_rule or data.ap_rule, "fit": data.fit} if data.task == "detection" else {}),
            "seed": config.seed,
            "skipped": {split: len(samples) for split, samples in found.skipped.items()},
            **({"several_labels": True} if data.several_labels else {}),
        },
        "backbone": config.backbone,
        "head": config.head,
        "crf": None if found.crf is None else {"mode": config.crf, **found.crf},
        **found.costs,
        "training": found.training,
        "versions": versions(),
    }
    write_atomically(folder.results, json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def training_record(config: RunConfig, trainer: pl.Trainer, batch_size: int) -> dict[str, Any]:
    """Record on what hardware and in which numerical modes a run was trained.

    `global_batch` is the number of images per optimiser step over all ranks, which may be fewer than --batch-size asks
    for, if there are fewer images.
    """
    device = trainer.strategy.root_device
    on_gpu = device.type == "cuda"
    return {
        "processes": trainer.world_size,
        "nodes": trainer.num_nodes,
        "accelerator": device.type,
        "device": torch.cuda.get_device_name(device) if on_gpu else processor_name(),
        "precision": str(trainer.precision),
        "global_batch": batch_size * trainer.world_size * config.accumulate,
        "strategy": strategy_name(config, trainer),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_benchmark": on_gpu and not config.deterministic,
        "deterministic": config.deterministic,
    }


def strategy_name(config: RunConfig, trainer: pl.Trainer) -> str:
    """Return the strategy as `--strategy` names it, also if it was chosen automatically."""
    if config.strategy != "auto":
        return config.strategy
    return "single_device" if trainer.world_size == 1 else "ddp"


def versions() -> dict[str, str]:
    """Return the versions of Python, of this project and of the packages that results depend on."""
    packages = ("torchvision", "lightning", "torchmetrics")
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "graft": own_version(),
        **{name: version(name) for name in packages},
    }


def own_version() -> str:
    """Return the version of the code that runs: this checkout's, which may not be the one that is installed, if any."""
    try:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return str(project["version"])
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        pass
    try:
        return version("graft")
    except PackageNotFoundError:
        return "unknown"


def null_if_not_finite(value: float) -> float | None:
    """Replace NaN, the score of a class that does not occur, by None, because JSON has no NaN."""
    return value if math.isfinite(value) else None


def print_results(folder: RunFolder, scores: dict[str, Any], drawn: bool) -> None:
    """Print the final scores of each split, per class if there are such, the files of the run, and what to do next.

    Args:
        drawn: whether there is a predictions.png.
    """
    table = Table(title="best checkpoint")
    table.add_column("score")
    for split in scores:
        table.add_column(split, justify="right")
    names = [name.split("/", 1)[1] for name in next(iter(scores.values()))]
    for name in names:
        table.add_row(name, *(f"{values[f'{split}/{name}']:.4f}" for split, values in scores.items()))
    console = make_console()
    console.print(table)
    files = "config.yaml metrics.csv results.json" + " predictions.png" * drawn + " checkpoints/"
    console.print(f"{folder.path}/: {files}", soft_wrap=True)
    console.print(next_steps(folder), soft_wrap=True, markup=False, highlight=False)


def next_steps(folder: RunFolder) -> str:
    """Commands that use the trained network, a line each."""
    run, runs = (shlex.quote(str(path)) for path in (folder.path, folder.path.parent))
    steps = {
        f"evaluate.py {run}": "more scores, calibration, the worst images",
        f"predict.py {run} PICTURES --out predicted": "your own pictures",
        f"compare.py {runs} --html runs.html": "this run beside the others there",
    }
    width = max(map(len, steps))
    return "next:\n" + "\n".join(f"  python experiments/{step:{width}}  # {why}" for step, why in steps.items())
