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

from experiments.command_line.kinds import NonNegativeInt
from experiments.command_line.parser import Parser, flag, settings_from
from experiments.command_line.process import run_program
from experiments.command_line.protocol_flags import ProtocolFlags, protocol_problem, run_problem


@dataclass(kw_only=True)
class EvaluateConfig(ProtocolFlags):
    """The order of the fields is the order of `--help`."""

    split: Literal["train", "val", "test"] = flag("val", "split to score", group="data")
    data: str | None = flag(None, "data set; default: the run's", group="data", folder="datamodules")
    data_dir: str | None = flag(None, "folder of the data set; default: where the run had it", path=True, group="data")
    against: str | None = flag(
        None, "second run folder or checkpoint, scored on the same pictures", path=True, group="data"
    )
    out: str | None = flag(
        None, "folder for the results; default: evaluation-SPLIT in the run folder", path=True, group="results"
    )
    worst: NonNegativeInt = flag(
        24, "pictures on the page of the worst, and of the most changed with --against", group="results"
    )


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
        if run_problem(path):
            return run_problem(path)
    if config.out is None and not Path(config.run).is_dir():
        return "--out: name a folder for the results; a checkpoint file has none of its own"
    return protocol_problem(config)


def evaluate_run(config: EvaluateConfig) -> int:
    from experiments.inference.evaluate_all import data_of, evaluate
    from experiments.inference.evaluation_files import compare_evaluations, content_of, write_evaluation, write_json
    from experiments.inference.protocol import predictor_of

    predictor = predictor_of(config.run, config)
    data = data_of(config.run, config.data, config.data_dir, predictor.network)
    if predictor.note:
        print(predictor.note, flush=True)
    found = evaluate(predictor, data, config.split)
    out = Path(config.out or Path(config.run) / f"evaluation-{config.split}")
    out.mkdir(parents=True, exist_ok=True)
    name = config.data or type(data).__name__.lower()
    content = {"run": config.run, **content_of(found, predictor, name, data.ignore_index)}
    write_evaluation(found, predictor, data, out, config.run, config.worst)
    if config.against is not None:
        other = predictor_of(config.against, config)
        if other.network.class_names != predictor.network.class_names:
            raise ValueError(f"--against {config.against}: its classes differ from those of {config.run}")
        content["against"] = compare_evaluations(
            found, evaluate(other, data, config.split), predictor, data, out, (config.run, config.against), config.worst
        )
    write_json(out / "evaluation.json", content)
    print_tables(content, content["per_class"])
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
