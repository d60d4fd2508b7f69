"""Predict pictures with a trained network: `python experiments/predict.py runs/a photos/ --out predictions`.

Takes files, folders, patterns, text files with a path per line, videos and `camera:0`. Results lie below `--out` as the
pictures lie below their common folder. The same command goes on where it was stopped.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.crf_settings import crf_settings_problem, read_crf_settings
from experiments.command_line.kinds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from experiments.command_line.parser import Parser, flag, positional, settings_from
from experiments.command_line.process import run_program


@dataclass
class PredictConfig:
    """The order of the fields is the order of `--help`."""

    run: str = positional("run folder, or a checkpoint of one", path=True)
    inputs: list[str] = positional("files, folders, patterns, lists of files (.txt), videos, camera:0", many=True)
    out: str = flag("predictions", "folder that results are written to", path=True, group="results")
    save: list[Literal["labels", "overlay", "probabilities", "coco", "csv"]] = flag(
        ("labels", "overlay", "csv"),
        "kinds of files: labels (PNG), overlay (JPEG with legend), probabilities (.npy, float16), coco (one JSON), "
        "csv (one table)",
        group="results",
    )
    abstain: NonNegativeFloat = flag(
        0.0, "leave pixels or pictures below this confidence in [0, 1] unlabelled", group="results"
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
    every: PositiveInt = flag(1, "take every N-th frame of videos and cameras", group="videos")
    frames: PositiveInt | None = flag(None, "stop after N frames of each video or camera", group="videos")
    device: str = flag("auto", "where the network runs: auto, cpu, cuda, cuda:1, mps", group="hardware")


def main(arguments: list[str] | None = None) -> int:
    """Parse first and import torch after. Returns the exit code: 1 if a picture could not be read."""
    parser = Parser("predict.py", "Predict pictures with a trained network.")
    parser.add_settings(PredictConfig)
    config = settings_from(parser.parse_args(arguments), PredictConfig)
    problem = usage_problem(config)
    if problem:
        parser.error(problem)
    return run_program("predict.py", lambda: predict(config), "the same command goes on")


def usage_problem(config: PredictConfig) -> str | None:
    """What can be known to be wrong before torch is imported."""
    if not Path(config.run).exists():
        return f"{config.run}: no such run folder or checkpoint"
    if not config.inputs:
        return "name at least one picture, folder or pattern after the run"
    if not 0 <= config.abstain <= 1:
        return f"--abstain is a confidence in [0, 1], not {config.abstain:g}"
    if config.window is not None and len(config.window) > 2:
        return "--window takes one number or two, H W"
    if config.crf_settings is not None and crf_settings_problem(config.crf_settings):
        return crf_settings_problem(config.crf_settings)
    return None


def predict(config: PredictConfig) -> int:
    from experiments.inference.inputs import Inputs, stamp
    from experiments.inference.predict_all import predict_all
    from experiments.inference.protocol import Predictor, Protocol
    from experiments.inference.trained import checkpoint_of, load

    inputs = Inputs(config.inputs, config.every, config.frames)
    network = load(config.run, None if config.device == "auto" else config.device)
    window = (config.window[0], config.window[-1]) if config.window else None
    crf = None if config.crf_settings is None else read_crf_settings(config.crf_settings)
    predictor = Predictor(network, Protocol(tuple(config.scales), config.flip, window, config.overlap, crf))
    for line in filter(None, (predictor.note, passed_over(inputs.passed_over))):
        print(line, flush=True)
    settings: dict[str, Any] = {
        "checkpoint": stamp(checkpoint_of(Path(config.run))),
        "save": sorted(config.save),
        "abstain": config.abstain,
        **predictor.describe(),
    }
    problems = predict_all(predictor, inputs, Path(config.out), list(config.save), config.abstain, settings)
    for line in problems:
        print(f"not predicted: {line}", file=sys.stderr)
    print(f"{config.out}: manifest.jsonl names every picture and its results", flush=True)
    return int(bool(problems))


def passed_over(counts: dict[str, int]) -> str:
    """A line about files in folders that are no pictures."""
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
    return f"passed over: {kinds}" if kinds else ""


if __name__ == "__main__":
    sys.exit(main())
