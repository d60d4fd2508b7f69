"""Score a trained network: `python experiments/evaluate.py runs/a --split test`.

Any split of any data set with the network's classes, whole or in windows, at several scales, with a CRF. Leaves
evaluation.json, per_image.csv, confusion.png, confidence.png and worst.html. `--against runs/b` compares two networks
picture by picture.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.kinds import NonNegativeFloat, NonNegativeInt
from experiments.command_line.parser import Parser, flag, settings_from
from experiments.command_line.process import run_program
from experiments.command_line.protocol_flags import ProtocolFlags, out_problem, protocol_problem, run_problem
from experiments.command_line.quick_imports import quick_imports

if TYPE_CHECKING:
    from datamodules.base import GraftDataModule


NOT_FOR_BOXES: dict[str, Any] = {"against": None, "abstain": 0.0, "fit_temperature": False}
"""Flags that networks which detect objects do not have, with their defaults."""


@dataclass(kw_only=True)
class EvaluateConfig(ProtocolFlags):
    """The order of the fields is the order of `--help`."""

    split: Literal["train", "val", "test"] = flag("val", "split to score", group="data")
    data: str | None = flag(None, "data set; default: the run's", group="data", folder="datamodules")
    data_dir: str | None = flag(None, "folder of the data set; default: where the run had it", path=True, group="data")
    against: str | None = flag(
        None, "second run folder or checkpoint, scored on the same pictures", path=True, group="data"
    )
    ap_rule: Literal["coco", "voc07", "voc10"] | None = flag(
        None, "rule of average precision, for networks that detect: see run.py; default: the run's", group="data"
    )
    fit_temperature: bool = flag(
        False,
        "first fit the temperature on the validation split and write it into the checkpoint; runs of this version "
        "have one",
        group="confidence",
    )
    abstain: NonNegativeFloat = flag(
        0.0,
        "leave pixels or pictures below this confidence in [0, 1] unlabelled, and report the rest",
        group="confidence",
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
    if config.abstain > 1:
        return f"--abstain is a confidence in [0, 1], not {config.abstain:g}"
    return protocol_problem(config) or out_problem(config.out or config.run)


def evaluate_run(config: EvaluateConfig) -> int:
    with quick_imports():
        from experiments.inference.detector import detects

    if detects(config.run):
        return evaluate_detector(config)
    if config.ap_rule is not None:
        raise ValueError(f"--ap-rule {config.ap_rule} is for networks that detect; {config.run} does not")
    from experiments.inference.evaluate_all import data_of, evaluate
    from experiments.inference.evaluation_files import compare_evaluations, content_of, write_evaluation, write_json
    from experiments.inference.protocol import predictor_of
    from experiments.inference.trained import checkpoint_of, run_settings

    predictor = predictor_of(config.run, config)
    data = data_of(config.run, config.data, config.data_dir, predictor.network)
    if config.fit_temperature:
        fit_temperature(config, data)
        predictor = predictor_of(config.run, config)
    predictors = [predictor]
    if config.against is not None:
        predictors.append(predictor_of(config.against, config))
        for what in ("task", "class_names"):
            if getattr(predictors[1].network, what) != getattr(predictor.network, what):
                differing = what.replace("class_names", "classes")
                raise ValueError(f"--against {config.against}: its {differing} is not that of {config.run}")
    for note in filter(None, dict.fromkeys(one.note for one in predictors)):
        print(note, flush=True)
    found, changed = evaluate(predictors, data, config.split, abstain=config.abstain, worst=config.worst)
    out = Path(config.out or Path(config.run) / f"evaluation-{config.split}")
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = checkpoint_of(Path(config.run))
    about = {
        "checkpoint": str(checkpoint),
        "data": config.data or run_settings(checkpoint)["data"],
        "data_dir": None if data.data_dir is None else str(data.data_dir),
        "data_fingerprint": data.fingerprint(),
        "ignore_index": data.ignore_index if predictor.network.task == "segmentation" else None,
    }
    content: dict[str, Any] = {"run": config.run, **content_of(found[0], predictor, about)}
    write_evaluation(found[0], predictor, out, config.run)
    if config.against is not None:
        runs = (config.run, config.against)
        content["against"] = compare_evaluations(found[0], found[1], changed, out, runs, predictor.network.task)
    write_json(out / "evaluation.json", content)
    print_tables(content, content["per_class"])
    files = "evaluation.json per_image.csv confusion.png confidence.png worst.html"
    print(f"{out}/: {files}{' changed.html' if config.against else ''}", flush=True)
    for line in found[0].skipped:
        print(f"not scored: {line}", file=sys.stderr)
    return int(bool(found[0].skipped))


def evaluate_detector(config: EvaluateConfig) -> int:
    """The same for a network that detects objects, which has no confusion of pixels and no confidence of pictures."""
    from experiments.inference.evaluate_boxes import evaluate_boxes

    others = {name: (getattr(config, name), default) for name, default in NOT_FOR_BOXES.items()}
    out = Path(config.out or Path(config.run) / f"evaluation-{config.split}")
    return evaluate_boxes(config, config.split, config.data, config.data_dir, out, config.ap_rule, **others)


def fit_temperature(config: EvaluateConfig, data: "GraftDataModule") -> None:
    """Fit the temperature of the run's network and write it into its checkpoint."""
    from experiments.inference.calibration import fit_temperature, save_temperature
    from experiments.inference.protocol import device_of
    from experiments.inference.trained import checkpoint_of, load

    checkpoint = checkpoint_of(Path(config.run))
    if checkpoint.suffix == ".safetensors":
        raise ValueError(f"--fit-temperature: {checkpoint} is no checkpoint; fit its run's, and share that again")
    network = load(config.run, device_of(config.device))
    temperature = fit_temperature(network, data)
    save_temperature(checkpoint, temperature)
    print(f"{checkpoint}: temperature {network.temperature:g} -> {temperature:g}", flush=True)


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
    if "answered" in content:
        part = content["answered"]
        console.print(
            f"at confidence {part['confidence']:g} and above: coverage {cell(part['coverage'])}  "
            + "  ".join(f"{name} {cell(part[name])}" for name in ("accuracy", "miou") if name in part)
        )
    if "against" in content:
        pair = content["against"]
        console.print(
            f"against {pair['run']}: {pair['difference']:+.4f} [{pair['low']:+.4f}, {pair['high']:+.4f}], "
            f"better on {pair['better']}, worse on {pair['worse']} pictures (sign test p {pair['sign_test_p']:.3g})",
        )


if __name__ == "__main__":
    sys.exit(main())
