"""Write a trained network as a file for other programs: `python experiments/export.py runs/a --to onnx`.

Normalisation and upsampling are inside; batch and image size are free. The file is compared with the network on
validation images, and refused if its probabilities or its score differ. Of a network that detects, the file gives all
boxes with their scores.
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.export_formats import NEEDS, SUFFIXES
from experiments.command_line.kinds import NonNegativeFloat, PositiveInt
from experiments.command_line.parser import Parser, flag, positional, settings_from
from experiments.command_line.process import run_program
from experiments.command_line.protocol_flags import out_problem, run_problem
from experiments.command_line.quick_imports import quick_imports

COMPARED = {
    "probabilities": "largest difference of a probability",
    "labels": "labels that differ",
    "boxes": "largest difference of a score, or of a box in widths of the image",
}


@dataclass
class ExportConfig:
    """The order of the fields is the order of `--help`."""

    run: str = positional("run folder, or a checkpoint of one", path=True)
    to: Literal["torch_export", "onnx", "openvino"] = flag("onnx", "format of the file", group="file")
    out: str | None = flag(None, "file to write; default: RUN/export.onnx, .pt2 or .xml", path=True, group="file")
    output: Literal["probabilities", "labels"] = flag("probabilities", "output of the file", group="file")
    int8: bool = flag(False, "quantise to int8 with ranges from training images; ONNX only", group="file")
    calibration: PositiveInt = flag(32, "training images that --int8 takes ranges from", group="file")
    images: PositiveInt = flag(100, "images that the file is compared on, evenly spaced", group="check")
    split: Literal["train", "val", "test"] = flag("val", "split that they come from", group="check")
    max_difference: NonNegativeFloat | None = flag(
        None,
        "largest accepted difference of a probability (default: 0.0001), or fraction of labels (default: 0.01); --int8 "
        "is judged by its score alone",
        group="check",
    )
    max_drop: NonNegativeFloat | None = flag(
        None, "largest loss of mIoU, accuracy or mAP that is accepted; default: 0.001, with --int8 0.01", group="check"
    )
    data: str | None = flag(None, "data set; default: the run's", group="check", folder="datamodules")
    data_dir: str | None = flag(None, "folder of the data set; default: where the run had it", path=True, group="check")


def main(arguments: list[str] | None = None) -> int:
    """Parse first and import torch after. Returns the exit code: 1 if the file is worse than the network."""
    parser = Parser("export.py", "Write a trained network as a file for other programs.")
    parser.add_settings(ExportConfig)
    config = settings_from(parser.parse_args(arguments), ExportConfig)
    problem = usage_problem(config)
    if problem:
        parser.error(problem)
    return run_program("export.py", lambda: export(config), "nothing was written")


def usage_problem(config: ExportConfig) -> str | None:
    """What can be known to be wrong before torch is imported."""
    if run_problem(config.run):
        return run_problem(config.run)
    missing = [name for name in NEEDS[config.to] if importlib.util.find_spec(name) is None]
    if missing:
        return f"--to {config.to} needs {', '.join(missing)}; pip install 'graft[export]'"
    if config.int8 and config.to != "onnx":
        return "--int8 is for --to onnx only"
    if config.out is None and not Path(config.run).is_dir():
        return "--out: name the file to write; a checkpoint file has no run folder"
    if config.out is not None:
        suffix = SUFFIXES[config.to]
        if Path(config.out).suffix != suffix or Path(config.out).is_dir():
            return f"--out {config.out}: name a file that ends in {suffix}, as --to {config.to} writes"
        if not Path(config.out).absolute().parent.is_dir():
            return f"--out {config.out}: there is no folder {Path(config.out).absolute().parent}"
    return out_problem(Path(config.out).parent if config.out else config.run)


def export(config: ExportConfig) -> int:
    import warnings

    with quick_imports():
        from experiments.inference.check_boxes import compare_boxes
        from experiments.inference.check_export import MAIN_SCORE, compare
        from experiments.inference.evaluate_all import data_of
        from experiments.inference.export_network import Output, runner, write_export
        from experiments.inference.quantise import quantise
        from experiments.inference.trained import load_any

    warnings.filterwarnings("ignore", module="torch")  # of the exporter, about itself
    network = load_any(config.run, "cpu")
    detects = network.task == "detection"
    output: Output = "boxes" if detects else config.output
    if detects and (config.int8 or config.output != "probabilities"):
        flags = "--int8" if config.int8 else f"--output {config.output}"
        raise ValueError(f"{flags} is not supported for networks that detect; leave it out")
    data = data_of(config.run, config.data, config.data_dir, network)
    suffix = SUFFIXES[config.to]
    path = Path(config.out) if config.out else Path(config.run) / f"export{'-int8' if config.int8 else ''}{suffix}"
    part = path.with_name(f"{path.stem}.part{suffix}")
    files = [(part, path)]
    if config.to == "openvino":
        files.append((part.with_suffix(".bin"), path.with_suffix(".bin")))
    try:
        write_export(network, config.to, part, output)
        if config.int8:
            whole = part.with_name(f"{path.stem}.whole{suffix}")
            part.replace(whole)
            try:
                quantise(whole, part, network, data, config.calibration)
            finally:
                whole.unlink()
        run = runner(config.to, part)
        if detects:
            found = compare_boxes(network, run, data, config.split, config.images)
        else:
            found = compare(network, run, output, data, config.split, config.images)
        most = config.max_drop if config.max_drop is not None else 0.01 if config.int8 else 0.001
        farthest = config.max_difference
        if farthest is None:
            farthest = 0.01 if config.output == "labels" else 1e-4
        name = MAIN_SCORE[network.task]
        line = (
            f"{name} {found.score:.4f} -> {found.exported_score:.4f} on {found.images} {config.split} images, "
            f"{COMPARED[output]} "
            f"{found.difference:.1e}"
        )
        too_far = not found.difference <= farthest and not config.int8
        if too_far or not found.drop <= most:
            limits = f"a loss of {most:g}" if config.int8 else f"a loss of {most:g} and a difference of {farthest:g}"
            print(f"export.py: refused: {line}; accepted are {limits}. Nothing was written", file=sys.stderr)
            return 1
        for source, target in files:
            source.replace(target)
    finally:
        for source, _ in files:
            source.unlink(missing_ok=True)
    print(f"{path}: {line}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
