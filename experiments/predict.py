"""Predict pictures with a trained network: `python experiments/predict.py runs/a photos/ --out predictions`.

Takes files, folders, patterns, text files with a path per line, videos and `camera:0`. Results lie below `--out` as the
pictures lie below their common folder. The same command goes on where it was stopped.
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.kinds import NonNegativeFloat, PositiveInt
from experiments.command_line.parser import Parser, flag, positional, settings_from
from experiments.command_line.process import run_program
from experiments.command_line.protocol_flags import ProtocolFlags, out_problem, protocol_problem
from experiments.command_line.quick_imports import quick_imports

if TYPE_CHECKING:
    from experiments.inference.geotiff import Rasters
    from experiments.inference.inputs import Inputs
    from experiments.inference.protocol import Predictor


INSTALL_RASTERIO = "pip install 'graft[geo]'"


@dataclass(kw_only=True)
class PredictConfig(ProtocolFlags):
    """The order of the fields is the order of `--help`."""

    inputs: list[str] = positional("files, folders, patterns, lists of files (.txt), videos, camera:0", many=True)
    out: str = flag("predictions", "folder that results are written to", path=True, group="results")
    save: list[Literal["labels", "overlay", "probabilities", "coco", "csv", "film"]] = flag(
        ("labels", "overlay", "csv"),
        "kinds of files: labels (PNG), overlay (JPEG with legend), probabilities (.npy, float16), coco (one JSON), "
        "csv (one table), film (a video of the overlay for each video)",
        group="results",
    )
    abstain: NonNegativeFloat = flag(
        0.0, "leave pixels or pictures below this confidence in [0, 1] unlabelled", group="results"
    )
    bands: list[PositiveInt] | None = flag(
        None,
        "bands of GeoTIFFs that the network sees, from 1, such as red green blue; default: what the file says",
        group="GeoTIFF",
    )
    every: PositiveInt = flag(1, "take every N-th frame of videos and cameras", group="videos")
    frames: PositiveInt | None = flag(None, "stop after N frames of each video or camera", group="videos")


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
    if not config.inputs:
        return "name at least one picture, folder or pattern after the run"
    if not 0 <= config.abstain <= 1:
        return f"--abstain is a confidence in [0, 1], not {config.abstain:g}"
    if "film" in config.save and "labels" not in config.save:
        return "--save film is made from labels; write --save labels film"
    if config.bands is not None and importlib.util.find_spec("rasterio") is None:
        return f"--bands is for GeoTIFFs, which need rasterio; {INSTALL_RASTERIO}"
    return protocol_problem(config) or out_problem(config.out)


def predict(config: PredictConfig) -> int:
    with quick_imports():
        from experiments.inference.detector import detects
        from experiments.inference.inputs import Inputs

    for_boxes = detects(config.run)  # first, because people exchange the run and the pictures
    inputs = Inputs(config.inputs, config.every, config.frames, Path(config.out))
    if for_boxes:
        from experiments.inference.predict_boxes import predict_boxes

        say(passed_over(inputs.passed_over))
        others = {"abstain": (config.abstain, 0.0), "bands": (config.bands, None)}
        problems = predict_boxes(config, inputs, Path(config.out), list(config.save), **others)
    else:
        problems = predict_labels(config, inputs)
    for line in problems:
        print(f"not predicted: {line}", file=sys.stderr)
    failed = f", {len(problems)} not predicted (see above)" if problems else ""
    print(f"{config.out}/: one line of manifest.jsonl for each finished picture{failed}", flush=True)
    return int(bool(problems))


def predict_labels(config: PredictConfig, inputs: "Inputs") -> list[str]:
    """Segment or classify all pictures. Returns what is wrong with those that could not be predicted."""
    from experiments.inference.inputs import stamp
    from experiments.inference.predict_all import predict_all
    from experiments.inference.protocol import predictor_of
    from experiments.inference.trained import checkpoint_of

    predictor = predictor_of(config.run, config)
    if predictor.network.task != "segmentation":
        for kind in ("film", "coco", *(["labels"] if config.save == ["labels"] else [])):
            if kind in config.save:
                raise ValueError(f"--save {kind} is for segmentation networks; this one classifies whole images")
    rasters, about_rasters = rasters_of(predictor, inputs, config)
    say(predictor.note, passed_over(inputs.passed_over), about_rasters)
    settings: dict[str, Any] = {
        "checkpoint": stamp(checkpoint_of(Path(config.run))),
        "save": sorted(config.save),
        "abstain": config.abstain,
        **({} if config.bands is None else {"bands": config.bands}),
        **predictor.describe(),
    }
    return predict_all(predictor, inputs, Path(config.out), list(config.save), config.abstain, settings, rasters)


def say(*lines: str) -> None:
    """Print the lines that are not empty."""
    for line in filter(None, lines):
        print(line, flush=True)


def rasters_of(predictor: "Predictor", inputs: "Inputs", config: PredictConfig) -> tuple["Rasters | None", str]:
    """What predicts GeoTIFFs in windows, and a line about it; None where there are none or rasterio is missing.

    Raises:
        ValueError: `--bands` was given and there is no GeoTIFF to segment.
    """
    segments = predictor.network.task == "segmentation"
    first = inputs.first_geotiff() if segments else None
    if first is None:
        if config.bands is not None:
            raise ValueError(f"--bands is for GeoTIFFs; {'there is none' if segments else 'the network classifies'}")
        return None, ""
    if importlib.util.find_spec("rasterio") is None:
        return None, f"{first} is georeferenced, its results are not; to keep the coordinates, {INSTALL_RASTERIO}"
    from experiments.inference.geotiff import Rasters

    rasters = Rasters(predictor, config.bands)
    return rasters, rasters.note + ("; coco.json leaves them out" if "coco" in config.save else "")


def passed_over(counts: dict[str, int]) -> str:
    """A line about files in folders that are no pictures."""
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
    return f"passed over: {kinds}" if kinds else ""


if __name__ == "__main__":
    sys.exit(main())
