"""What the Trainer with all our callbacks costs a training step, against a loop written by hand.

    python experiments/benchmarks/trainer_overhead.py --readme

It trains the same network on the same batches with the same loss, optimiser and schedule both ways, by turns, and
compares the seconds of so many steps.
"""

import argparse
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import lightning.pytorch as pl
import torch

from experiments.callbacks.checkpoints import Checkpoints
from experiments.callbacks.finite_loss import FiniteLoss
from experiments.callbacks.metrics_csv import MetricsFile
from experiments.callbacks.progress import ProgressLines
from experiments.callbacks.run_cost import RunCost
from experiments.command_line.progress import with_progress
from experiments.command_line.run_config import RunConfig
from experiments.inference.benchmark_files import machine
from experiments.run_files.generated_part import replace_part
from experiments.run_files.run_folder import RunFolder
from experiments.training.build import prepare
from experiments.training.make_trainer import build_trainer
from lightning_modules.schedules import learning_rate_factor

STEPS = 12
README = Path(__file__).resolve().parents[1] / "README.md"


class Stopwatch(pl.Callback):
    """Seconds from the first batch's arrival to the last step's end."""

    def __init__(self) -> None:
        self.started = self.seconds = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, index: int) -> None:
        if index == 0:
            self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seconds = time.perf_counter() - self.started


def by_trainer(config: RunConfig) -> float:
    data, module = prepare(config)
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch))
        watch = Stopwatch()
        callbacks = [
            FiniteLoss(folder),
            RunCost(),
            MetricsFile(folder.metrics),
            ProgressLines(module.monitor),
            Checkpoints(folder.checkpoints, module.monitor, 0),
            watch,
        ]
        build_trainer(config, folder, callbacks, module.monitor).fit(module, datamodule=data)
    return watch.seconds


def by_hand(config: RunConfig) -> float:
    data, module = prepare(config)
    module = module.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    loader = data.train_dataloader()
    optimizer = module.new_optimizer()  # fused, as in the Trainer: only what is around a step differs
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(config.schedule, step, STEPS, round(STEPS * config.warmup))
    )
    started = seconds = 0.0
    for index, batch in enumerate(islice(loader, STEPS)):
        if index == 0:
            started = time.perf_counter()
        loss = module.loss(module.network(batch["image"]), batch["target"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        seconds = time.perf_counter() - started
    return seconds


def as_markdown(name: str, times: dict[str, list[float]]) -> str:
    """A table of one row, with the machine and the protocol below it."""
    ratios = [one / other for one, other in zip(*times.values(), strict=True)]
    medians = " | ".join(f"{statistics.median(values):.3f} s" for values in times.values())
    about = machine()
    return "\n".join(
        [
            f"| network | {' | '.join(times)} | ratio | range |",
            "|---|--:|--:|--:|--:|",
            f"| {name} | {medians} | {statistics.median(ratios):.3f} | {min(ratios):.3f} to {max(ratios):.3f} |",
            "",
            f"{about['processor']}, {torch.get_num_threads()} threads, torch {torch.__version__}, Lightning "
            f"{pl.__version__}; {STEPS} steps, medians of {len(ratios)} alternated repetitions.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--head", default="unet")
    parser.add_argument("--readme", action="store_true", help="write the table into experiments/README.md")
    asked = parser.parse_args()
    config = RunConfig(
        backbone=asked.backbone, head=asked.head, epochs=1, max_steps=STEPS, workers=0, accelerator="cpu"
    )
    by_trainer(config), by_hand(config)  # both once for nothing: memory is allocated, files are read
    times: dict[str, list[float]] = {"Trainer": [], "by hand": []}
    for _ in with_progress(range(asked.repetitions), asked.repetitions, "repetitions"):
        times["Trainer"].append(by_trainer(config))
        times["by hand"].append(by_hand(config))
    text = as_markdown(f"{asked.backbone} + {asked.head}", times)
    print(text)
    if asked.readme:
        replace_part(README, "trainer_overhead.py", text)


if __name__ == "__main__":
    main()
