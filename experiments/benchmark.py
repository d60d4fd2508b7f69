"""Compare the ways to run a trained network: `python experiments/benchmark.py runs/a`.

PyTorch in five ways, ONNX Runtime, OpenVINO and int8: file size, score, largest difference of a probability, latency,
images per second, memory. Each runs in a process of its own, by turns with the others.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.cores import available_cores
from experiments.command_line.kinds import NonNegativeFloat, PositiveFloat, PositiveInt
from experiments.command_line.parser import Parser, flag, positional, settings_from
from experiments.command_line.process import run_program
from experiments.command_line.protocol_flags import out_problem, run_problem
from experiments.command_line.quick_imports import quick_imports

Name = Literal[
    "eager", "channels_last", "folded", "bf16", "compiled", "onnxruntime", "openvino_f32", "openvino", "int8"
]


@dataclass(kw_only=True)
class BenchmarkConfig:
    """The order of the fields is the order of `--help`."""

    run: str = positional("run folder, or a checkpoint of one", path=True)
    only: list[Name] | None = flag(None, "ways to compare; default: all. Eager PyTorch is always one", group="what")
    batch: PositiveInt = flag(1, "images of one timed call", group="what")
    size: list[PositiveInt] | None = flag(
        None, "H W in pixels of the timed images, or one number for both; default: the first scored image", group="what"
    )
    device: Literal["auto", "cpu", "cuda"] = flag(
        "cpu", "where PyTorch runs; ONNX Runtime and OpenVINO take the processor", group="what"
    )
    threads: PositiveInt | None = flag(None, "processor threads of each way; default: all cores", group="what")
    repeats: PositiveInt = flag(5, "rounds in which each way is timed once, by turns", group="what")
    seconds: PositiveFloat = flag(1.0, "seconds that a way is timed for in a round", group="what")
    limit: PositiveInt = flag(100, "images that are scored, evenly spaced", group="check")
    split: Literal["train", "val", "test"] = flag("val", "split that they come from", group="check")
    max_drop: NonNegativeFloat | None = flag(
        None, "largest loss of mIoU or accuracy that is ok; default: 0.001, in bf16 and int8 0.01", group="check"
    )
    calibration: PositiveInt = flag(32, "training images that int8 takes ranges from", group="check")
    data: str | None = flag(None, "data set; default: the run's", group="check", folder="datamodules")
    data_dir: str | None = flag(None, "folder of the data set; default: where the run had it", path=True, group="check")
    out: str | None = flag(
        None, "folder for the results; default: benchmark in the run folder", path=True, group="results"
    )


def main(arguments: list[str] | None = None) -> int:
    """Parse first and import torch after. Returns the exit code."""
    parser = Parser("benchmark.py", "Compare the ways to run a trained network: speed, size, memory, score.")
    parser.add_settings(BenchmarkConfig)
    config = settings_from(parser.parse_args(arguments), BenchmarkConfig)
    problem = usage_problem(config)
    if problem:
        parser.error(problem)
    return run_program("benchmark.py", lambda: benchmark_run(config), "nothing was written")


def usage_problem(config: BenchmarkConfig) -> str | None:
    """What can be known to be wrong before torch is imported."""
    if run_problem(config.run):
        return run_problem(config.run)
    if config.size is not None and len(config.size) > 2:
        return "--size takes one number or two, H W"
    if config.out is None and not Path(config.run).is_dir():
        return "--out: name a folder for the results; a checkpoint file has none of its own"
    return out_problem(config.out or config.run)


def benchmark_run(config: BenchmarkConfig) -> int:
    import warnings

    import torch

    with quick_imports():
        from experiments.inference.benchmark_all import benchmark
        from experiments.inference.benchmark_files import draw, machine, versions, write_csv
        from experiments.inference.check_export import MAIN_SCORE
        from experiments.inference.evaluate_all import data_of
        from experiments.inference.evaluation_files import write_json
        from experiments.inference.protocol import device_of
        from experiments.inference.trained import load

    warnings.filterwarnings("ignore", module="torch")  # of the exporter, about itself
    about = machine()  # first, because the load of the machine is to be that before us
    network = load(config.run, "cpu")
    data = data_of(config.run, config.data, config.data_dir, network)
    if config.split not in data.splits:
        raise ValueError(f"--split {config.split}: the data set has {', '.join(data.splits)}")
    device_of(config.device)
    plan = plan_of(config, "cuda" if torch.cuda.is_available() else "cpu")
    os.environ["OMP_NUM_THREADS"] = str(plan.threads)  # of the processes that are started
    rows = benchmark(config.run, network, data, plan)
    out = Path(config.out or Path(config.run) / "benchmark")
    out.mkdir(parents=True, exist_ok=True)
    score = MAIN_SCORE[network.task]
    protocol = {**plan.__dict__, "score": score, "data": config.data or type(data).__name__.lower()}
    content = {"run": config.run, "rows": rows, "protocol": protocol, "machine": about, "versions": versions()}
    write_json(out / "benchmark.json", content)
    write_csv(rows, out / "benchmark.csv")
    title = f"{network.module.hparams['backbone']} + {network.module.hparams['head']}, {about['processor']}"
    draw(rows, score, f"{title}, {plan.threads} threads, batch {plan.batch}", out / "benchmark.png")
    print_table(rows, score, about, plan.threads)
    print(f"{out}/: benchmark.json benchmark.csv benchmark.png", flush=True)
    return 0


def plan_of(config: BenchmarkConfig, best_device: str) -> Any:
    """The settings as a `Plan`, eager PyTorch first."""
    from experiments.inference.benchmark_all import Plan
    from experiments.inference.runtimes import RUNTIMES

    reference = next(iter(RUNTIMES))
    wanted = set(config.only or RUNTIMES) | {reference}
    return Plan(
        names=tuple(name for name in RUNTIMES if name in wanted),
        split=config.split,
        images=config.limit,
        batch=config.batch,
        size=(config.size[0], config.size[-1]) if config.size else None,
        repeats=config.repeats,
        seconds=config.seconds,
        threads=config.threads or available_cores(),
        device=best_device if config.device == "auto" else config.device,
        calibration=config.calibration,
        max_drop=(0.001, 0.01) if config.max_drop is None else (config.max_drop, config.max_drop),
    )


def print_table(rows: list[dict[str, Any]], score: str, about: dict[str, Any], threads: int) -> None:
    """One line for each way; what was not measured follows below with its reason."""
    from rich.table import Table

    from experiments.command_line.console import make_console

    table = Table(title=f"{about['processor']}, {threads} threads")
    table.add_column("way")
    names = ("MB", score, "change", "max |Δp|", "p50 ms", "p95 ms", "images/s", "memory MB")
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("status")
    for row in rows:
        if "p50_ms" in row:
            cells = (
                f"{row['file_mb']:.1f}", f"{row['score']:.4f}", f"{row['score_change']:+.4f}",
                f"{row['max_difference']:.0e}", f"{row['p50_ms']:.1f}", f"{row['p95_ms']:.1f}",
                f"{row['images_per_s']:.1f}", f"{row['peak_memory_mb'] or 0:.0f}",
            )  # fmt: skip
            table.add_row(
                row["runtime"], *cells, row["status"].split(":")[0] + (f", {row['note']}" if row["note"] else "")
            )
    console = make_console(width_of_files=120)
    console.print(table)
    for row in rows:
        if row["status"] != "ok":
            console.print(f"{row['runtime']}: {row['status']}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
