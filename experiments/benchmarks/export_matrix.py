"""What exported files compute beside PyTorch: every head, and the smallest network of every family of backbones.

`python experiments/benchmarks/export_matrix.py` takes each pair, with random weights, through evaluate.py, predict.py
and the three formats of export.py, at four image sizes and on pictures. It keeps what it has measured in a JSON file,
so that the same command goes on, and writes the tables between the marks in experiments/README.md. It exits with 1 if
a probability differs by more than 1e-4.
"""

import argparse
import contextlib
import io
import json
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from backbones import BACKBONES
from experiments.command_line.export_formats import SUFFIXES
from experiments.command_line.known_names import ROOT, catalogue
from experiments.command_line.run_config import RunConfig, to_yaml
from experiments.evaluate import main as evaluate
from experiments.inference.check_export import compare
from experiments.inference.evaluate_all import data_of
from experiments.inference.export_network import metadata_of, runner, trace, write_openvino, write_program
from experiments.inference.trained import load
from experiments.predict import main as predict
from experiments.run_files.atomic_file import write_atomically
from experiments.training.build import build_data, build_module
from heads import HEADS

LARGEST_DIFFERENCE = 1e-4
"""Largest difference of a probability that export.py accepts."""
HEADS_ON = "resnet18"
"""The backbone that all heads are exported on."""
UNDER = ("unet", "classifier")
"""The heads that all families are exported under: one reads every map, the other is the family's own classifier."""
MARKS = (
    "<!-- exports: python experiments/benchmarks/export_matrix.py -->\n",
    "\n<!-- end of exports -->",
)
FORMATS = {"torch_export": "torch.export", "onnx": "ONNX", "openvino": "OpenVINO"}
README = ROOT / "experiments" / "README.md"
Results = dict[str, dict[str, Any]]


def families() -> list[str]:
    """The backbone with the fewest parameters of each class, in the order of the dict."""
    smallest: dict[Any, str] = {}
    for name, build in BACKBONES.items():
        kind = build.func  # type: ignore[attr-defined]
        if kind not in smallest or catalogue()[name]["params"] < catalogue()[smallest[kind]]["params"]:
            smallest[kind] = name
    return list(smallest.values())


def all_pairs() -> list[tuple[str, str]]:
    pairs = [
        (HEADS_ON, head) for head, build in HEADS.items() if build.task != "detection"
    ]  # whose boxes are no probabilities
    return list(dict.fromkeys([*pairs, *((backbone, head) for backbone in families() for head in UNDER)]))


def make_data(root: Path) -> Path:
    """Pictures of several sizes, with masks of three classes in `pixels/` and in a folder per class in `images/`."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 3)):
        for i in range(count):
            size = (72 + 3 * i, 101 - 5 * i)
            image = cv2.resize(generator.integers(0, 256, (9, 13, 3), np.uint8), size[::-1])
            mask = (np.arange(size[1])[None] // 20 + i + np.zeros((size[0], 1), int)) % 3
            files = {f"pixels/{split}/images/{i}.png": image, f"pixels/{split}/masks/{i}.png": mask.astype(np.uint8)}
            files |= {f"images/{split}/{name}/{i}.png": image for name in "abc"[i % 3]}
            for name, pixels in files.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(root / name), pixels)
    return root


def make_run(folder: Path, data_root: Path, backbone: str, head: str) -> Path:
    """A run folder of a network with random weights, whose batch norms have the statistics of random images."""
    torch.manual_seed(0)
    with torch.device("meta"):
        side = max(64, BACKBONES[backbone]().min_size)
    kind = "pixels" if HEADS[head].task == "segmentation" else "images"
    config = RunConfig(
        backbone=backbone, head=head, data="folders", data_dir=str(data_root / kind), image_size=[side],
        workers=0, batch_size=1,
    )  # fmt: skip
    data = build_data(config)
    data.setup()
    module = build_module(config, data)
    vary(module.network)
    side = max(96, module.network.backbone.min_size + 32)
    with torch.no_grad():
        module.network.train()(torch.randn(4, 3, side, side))
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    state = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save(state | {"pytorch-lightning_version": "2.0.0"}, folder / "checkpoints" / "best.ckpt")
    return folder


def vary(network: nn.Module) -> None:
    """Let batch norms take the statistics of the next batch, and give constant parameters values that show errors."""
    for part in network.modules():
        if isinstance(part, _BatchNorm):
            part.momentum = 1.0
        for parameter in part.parameters(recurse=False):
            if (parameter == parameter.flatten()[0]).all():
                parameter.data += 0.1 * torch.randn(parameter.shape)


def measure(backbone: str, head: str, data_root: Path, scratch: Path) -> dict[str, Any]:
    """The largest difference of a probability by format, and whether evaluate.py and predict.py end well."""
    started = time.monotonic()
    run = make_run(scratch / "run", data_root, backbone, head)
    found: dict[str, Any] = {}
    pictures = data_root / "pixels" / "val" / "images"
    log = io.StringIO()
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        found["evaluate"] = evaluate([str(run), "--device", "cpu"])
        found["predict"] = predict([str(run), str(pictures), "--out", str(scratch / "out"), "--device", "cpu"])
        network = load(run, "cpu")
        data = data_of(str(run), None, None, network)
        program = trace(network, "probabilities")
        about = metadata_of(network, "probabilities")
        for form in FORMATS:
            path = scratch / f"file{SUFFIXES[form]}"
            if form == "openvino":  # as export.py makes it, from the ONNX file that is there already
                write_openvino(path.with_suffix(SUFFIXES["onnx"]), path, json.dumps(about))
            else:
                write_program(program, form, path, about)  # type: ignore[arg-type]
            one = compare(network, runner(form, path), "probabilities", data, "val", 3)  # type: ignore[arg-type]
            found[form] = one.difference
    return found | {"seconds": round(time.monotonic() - started, 1)}


def fine(found: dict[str, Any]) -> bool:
    """Whether a pair works everywhere; a difference that is no number is not fine."""
    ended = found.get("evaluate") == 0 and found.get("predict") == 0
    return ended and all(found.get(form, float("nan")) <= LARGEST_DIFFERENCE for form in FORMATS)


def tables(results: Results) -> str:
    """Markdown: a row for each head, then one for each family, as far as they have been measured."""

    def cells(backbone: str, head: str) -> list[str]:
        found = results.get(f"{backbone}+{head}")
        return (
            [f"{found[form]:.1e}" if form in found else "fails" for form in FORMATS] if found else ["-"] * len(FORMATS)
        )

    def table(title: str, columns: list[str], rows: dict[str, list[str]]) -> list[str]:
        lines = [f"| {title} | {' | '.join(columns)} |", f"|---|{'--:|' * len(columns)}"]
        return lines + [f"| {name} | {' | '.join(row)} |" for name, row in rows.items() if set(row) != {"-"}]

    heads = {head: cells(HEADS_ON, head) for head in HEADS}
    backbones = {name: [cell for head in UNDER for cell in cells(name, head)] for name in families()}
    columns = [f"{title}, {head}" for head in UNDER for title in FORMATS.values()]
    return "\n".join(
        [*table(f"head, on {HEADS_ON}", list(FORMATS.values()), heads), "", *table("backbone", columns, backbones)]
    )


def write_tables(text: str) -> None:
    """Put the tables between the marks of the README."""
    before, begin, rest = README.read_text(encoding="utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not begin or not end:
        raise ValueError(f"{README} has no {MARKS[0].strip()} … {MARKS[1].strip()}")
    write_atomically(README, f"{before}{begin}{text}{end}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("export-matrix.json"), help="what has been measured")
    parser.add_argument("--pairs", nargs="*", metavar="BACKBONE+HEAD", help="measure only these")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")  # of the exporters, about themselves
    logging.disable(logging.WARNING)
    pairs = all_pairs() if asked.pairs is None else [tuple(pair.split("+", 1)) for pair in asked.pairs]
    results: Results = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out.is_file() else {}
    with tempfile.TemporaryDirectory() as scratch:
        data_root = make_data(Path(scratch) / "data")
        for number, (backbone, head) in enumerate(pairs, 1):
            name = f"{backbone}+{head}"
            if name not in results or not fine(results[name]):
                with tempfile.TemporaryDirectory(dir=scratch) as folder:
                    try:
                        results[name] = measure(backbone, head, data_root, Path(folder))
                    except Exception as error:  # the others are still measured, and the exit code tells
                        results[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
                write_atomically(asked.out, json.dumps(results, indent=1) + "\n")
            print(
                f"{number}/{len(pairs)} {'ok ' if fine(results[name]) else 'BAD'} {name}: {results[name]}", flush=True
            )
    wrong = ["+".join(pair) for pair in pairs if not fine(results["+".join(pair)])]
    print(
        f"{len(pairs) - len(wrong)} of {len(pairs)} pairs within {LARGEST_DIFFERENCE:g}; not: {', '.join(wrong) or '-'}"
    )
    write_tables(tables(results))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
