"""Score a trained network: `python experiments/evaluate.py runs/a --split test`.

Any split of any data set with the network's classes, whole or in windows, at several scales, with a CRF. Leaves
evaluation.json, per_image.csv, confusion.png, confidence.png and worst.html. `--against runs/b` compares two networks
picture by picture.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.crf_settings import crf_settings_problem, read_crf_settings
from experiments.command_line.kinds import NonNegativeInt, PositiveFloat, PositiveInt
from experiments.command_line.parser import Parser, flag, positional, settings_from
from experiments.command_line.process import run_program


@dataclass
class EvaluateConfig:
    """The order of the fields is the order of `--help`."""

    run: str = positional("run folder, or a checkpoint of one", path=True)
    split: Literal["train", "val", "test"] = flag("val", "split to score", group="data")
    data: str | None = flag(None, "data set; default: the run's", group="data", folder="datamodules")
    data_dir: str | None = flag(None, "folder of the data set; default: where the run had it", path=True, group="data")
    against: str | None = flag(
        None, "second run folder or checkpoint, scored on the same pictures", path=True, group="data"
    )
    scales: list[PositiveFloat] = flag(
        (1.0,), "multiples of the image size whose probabilities are averaged", group="protocol"
    )
    flip: bool = flag(False, "average with the mirror image", group="protocol")
    window: list[PositiveInt] | None = flag(
        None, "cut larger images into windows of H W pixels, or one number for both", group="protocol"
    )
    overlap: NonNegativeInt | None = flag(
        None, "pixels that windows share; default: enough to equal the whole image, or a quarter", group="protocol"
    )
    crf_settings: str | None = flag(
        None, "refine by a fully connected CRF: a preset of heads/crf.py or a YAML file", path=True, group="protocol"
    )
    out: str | None = flag(
        None, "folder for the results; default: evaluation-SPLIT in the run folder", path=True, group="results"
    )
    worst: NonNegativeInt = flag(
        24, "pictures on the page of the worst, and of the most changed with --against", group="results"
    )
    device: str = flag("auto", "where the network runs: auto, cpu, cuda, cuda:1, mps", group="hardware")


def main(arguments: list[str] | None = None) -> int:
    """Parse first and import torch after. Returns the exit code: 1 if a picture could not be read."""
    parser = Parser("evaluate.py", "Score a trained network on a split of a data set.")
    parser.add_settings(EvaluateConfig)
    config = settings_from(parser.parse_args(arguments), EvaluateConfig)
    problem = usage_problem(config)
    if problem:
        parser.error(problem)
    return run_program("evaluate.py", lambda: evaluate_run(config), "nothing was written")


def usage_problem(config: EvaluateConfig) -> str | None:
    """What can be known to be wrong before torch is imported."""
    for path in filter(None, (config.run, config.against)):
        if not Path(path).exists():
            return f"{path}: no such run folder or checkpoint"
    if config.out is None and not Path(config.run).is_dir():
        return "--out: name a folder for the results; a checkpoint file has none of its own"
    if config.window is not None and len(config.window) > 2:
        return "--window takes one number or two, H W"
    if config.crf_settings is not None and crf_settings_problem(config.crf_settings):
        return crf_settings_problem(config.crf_settings)
    return None


def evaluate_run(config: EvaluateConfig) -> int:
    import numpy as np

    from experiments.inference.evaluate_all import data_of, evaluate
    from experiments.inference.evaluation_files import (
        draw_confidence,
        draw_confusion,
        write_json,
        write_page,
        write_per_image,
    )
    from experiments.inference.paired import paired_scores, picture_scores
    from experiments.inference.protocol import Predictor, Protocol
    from experiments.inference.scores import coverage_curve, per_class, reliability, summary
    from experiments.inference.trained import load

    window = (config.window[0], config.window[-1]) if config.window else None
    crf = None if config.crf_settings is None else read_crf_settings(config.crf_settings)
    protocol = Protocol(tuple(config.scales), config.flip, window, config.overlap, crf)
    device = None if config.device == "auto" else config.device
    predictor = Predictor(load(config.run, device), protocol)
    network = predictor.network
    data = data_of(config.run, config.data, config.data_dir, network)
    if predictor.note:
        print(predictor.note, flush=True)
    found = evaluate(predictor, data, config.split)
    out = Path(config.out or Path(config.run) / f"evaluation-{config.split}")
    out.mkdir(parents=True, exist_ok=True)
    rows = per_class(found.counts, network.task, network.class_names)
    content: dict[str, Any] = {
        "run": config.run,
        "scores": summary(found.counts, network.task),
        "protocol": {
            "data": config.data or type(data).__name__.lower(),
            "split": config.split,
            "pictures": len(found.names),
            "skipped": found.skipped,
            "classes": list(network.class_names),
            "ignore_index": data.ignore_index,
            **predictor.describe(),
        },
        "per_class": rows,
        "trimap": found.trimap,
        "reliability": reliability(found.counts),
        "coverage": coverage_curve(found.counts),
    }
    write_per_image(found, out / "per_image.csv", network.task, network.class_names)
    draw_confusion(found.counts.matrix, network.class_names, out / "confusion.png")
    draw_confidence(found.counts, out / "confidence.png")
    scores = picture_scores(found.each, network.task)
    worst = np.argsort(np.nan_to_num(scores, nan=np.inf), kind="stable")[: config.worst].tolist()
    title = f"{config.run}: the worst of {len(found.names)} {config.split} pictures"
    write_page(found, predictor, data, config.split, out / "worst.html", worst, title)
    if config.against is not None:
        other = Predictor(load(config.against, device), protocol)
        if other.network.class_names != network.class_names:
            raise ValueError(f"--against {config.against}: its classes differ from those of {config.run}")
        theirs = evaluate(other, data, config.split)
        if theirs.indices != found.indices:
            raise ValueError("the data changed while they were read: the two networks saw different pictures")
        content["against"] = {
            "run": config.against,
            "scores": summary(theirs.counts, network.task),
            **paired_scores(found.each, theirs.each, network.task),
        }
        change = scores - picture_scores(theirs.each, network.task)
        most = np.argsort(-np.abs(np.nan_to_num(change)), kind="stable")[: config.worst].tolist()
        content["against"]["most_changed"] = [
            {"name": found.names[i], "difference": float(change[i])} for i in most if np.isfinite(change[i])
        ]
        title = f"{config.run} on the pictures where it differs most from {config.against}"
        write_page(found, predictor, data, config.split, out / "changed.html", most, title)
    write_json(out / "evaluation.json", content)
    print_tables(content, rows)
    print(f"{out}/: evaluation.json per_image.csv confusion.png confidence.png worst.html", flush=True)
    for line in found.skipped:
        print(f"not scored: {line}", file=sys.stderr)
    return int(bool(found.skipped))


def print_tables(content: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """The scores, and a row for each class; numbers are in [0, 1]."""
    from rich.table import Table

    from experiments.command_line.console import make_console

    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    table = Table(*rows[0])
    for row in rows:
        table.add_row(row["class"], *(cell(value) for name, value in row.items() if name != "class"))
    console = make_console()
    console.print(table)
    console.print("  ".join(f"{name} {cell(value)}" for name, value in content["scores"].items()))
    if "against" in content:
        pair = content["against"]
        console.print(
            f"against {pair['run']}: {pair['difference']:+.4f} [{pair['low']:+.4f}, {pair['high']:+.4f}], "
            f"better on {pair['better']}, worse on {pair['worse']} pictures (sign test p {pair['sign_test_p']:.3g})",
        )


if __name__ == "__main__":
    sys.exit(main())
