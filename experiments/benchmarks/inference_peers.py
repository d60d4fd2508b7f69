"""Latency of four networks in Graft and in other libraries, eager and exported, in one run by turns.

    python experiments/benchmarks/inference_peers.py --readme --trained runs/a runs/b

The other libraries are segmentation_models.pytorch and torchvision, with networks of the same structure; weights are
random, because they do not matter for speed. All networks take normalised float32 images `(B, 3, H, W)` and return
logits at the size of the image. Each way runs in a process of its own; a round times every way of one network once.

Fewer bits are worth their speed only if the score holds, which random weights cannot show. So the runs of `--trained`
are scored in each way on their validation images; the second table has their scores.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from experiments.command_line.cores import available_cores
from experiments.command_line.progress import with_progress
from experiments.inference.benchmark_files import machine, versions
from experiments.inference.open_export import Made, open_onnx, open_openvino
from experiments.inference.runtimes import run_module
from experiments.inference.worker import Worker, WorkerError
from experiments.run_files.generated_part import replace_part

CLASSES = 21
README = Path(__file__).resolve().parents[1] / "README.md"
LATENCIES, SCORES = "inference_peers.py", "inference_peers.py --trained"
"""The names of the two parts of the README."""
LIBRARIES = {"smp": "segmentation_models_pytorch", "torchvision": "torchvision", "graft": "torch"}
WAYS = ("eager", "eager, channels last", "onnxruntime", "openvino f32", "openvino")
OWN_WAYS = ("eager", "eager, folded", *WAYS[2:])
"""Graft's; folded means channels last too, as evaluate.py and predict.py run networks."""
SCORED = ("eager", "folded", "onnxruntime", "openvino_f32", "openvino")
"""The same ways under the names of benchmark.py."""


class Structure(NamedTuple):
    """A network of Graft and the same one of another library."""

    backbone: str
    head: str
    library: str
    peer: str
    output_stride: int = 16


STRUCTURES = (
    Structure("resnet18", "deeplab", "smp", "DeepLabV3Plus"),
    Structure("resnet18", "unet", "smp", "Unet"),
    Structure("resnet50", "unet", "smp", "Unet"),
    Structure("resnet50", "deeplabv3", "torchvision", "deeplabv3_resnet50", output_stride=8),
)


class Way(NamedTuple):
    """One way to run one network; what a process gets."""

    structure: Structure
    library: str
    way: str
    onnx: str
    threads: int


def build(structure: Structure, library: str) -> Any:
    """A network as a module `(B, 3, H, W) -> (B, CLASSES, H, W)`, in evaluation mode."""
    import torch

    torch.manual_seed(0)
    match library:
        case "graft":
            from lightning_modules.network import Network

            stride = None if structure.head == "unet" else structure.output_stride
            return Network(structure.backbone, structure.head, CLASSES, output_stride=stride).eval()
        case "smp":
            import segmentation_models_pytorch as smp

            kind = getattr(smp, structure.peer)
            return kind(structure.backbone, encoder_weights=None, classes=CLASSES).eval()
        case "torchvision":
            from torchvision.models import segmentation

            kind = getattr(segmentation, structure.peer)
            network = kind(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=False)
            return OnlyLogits(network).eval()
        case _:
            raise ValueError(f"no library '{library}'")


def OnlyLogits(network: Any) -> Any:
    """torchvision's networks return a dict."""
    from torch import nn

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Any) -> Any:
            return self.network(x)["out"]

    return Logits()


def make(way: Way) -> Made:
    """Load a network in the process that times it."""
    match way.way:
        case "onnxruntime":
            return open_onnx(way.onnx, way.threads)
        case "openvino f32" | "openvino":
            return open_openvino(way.onnx, way.threads, "f32" if way.way.endswith("f32") else None)
        case _:
            import torch

            torch.set_num_threads(way.threads)
            network = build(way.structure, way.library)
            if way.way == "eager, folded":
                from lightning_modules.folding import fold_batch_norms

                fold_batch_norms(network, torch.randn(1, 3, 64, 64))
            form = torch.contiguous_format if way.way == "eager" else torch.channels_last
            return run_module(network.to(memory_format=form), "cpu")


def export(argument: tuple[Structure, str, str, tuple[int, int, int, int]]) -> Made:
    """Write a network as ONNX, in a process of its own. Its note is the number of parameters."""
    import torch

    warnings.simplefilter("ignore")
    structure, library, path, shape = argument
    network = build(structure, library)
    made = torch.onnx.export(network, (torch.randn(shape),), dynamo=True, verbose=False, external_data=False)
    assert made is not None
    made.save(path, external_data=False)
    return Made(lambda images: images, f"{sum(one.numel() for one in network.parameters()) / 1e6:.1f} M")


def ways_of(structure: Structure, folder: Path, threads: int) -> Iterator[Way]:
    for library in ("graft", structure.library):
        path = str(folder / f"{structure.backbone}-{structure.head}-{library}.onnx")
        for way in OWN_WAYS if library == "graft" else WAYS:
            yield Way(structure, library, way, path, threads)


def measure(structure: Structure, folder: Path, asked: argparse.Namespace) -> list[list[str]]:
    """Rows of the table for one structure: library, network, parameters, way, milliseconds and their range."""
    shape = (asked.batch, 3, asked.size, asked.size)
    ways = list(ways_of(structure, folder, asked.threads))
    title = f"{structure.backbone} + {structure.head}"
    sizes: dict[str, str] = {}
    paths = dict.fromkeys((way.library, way.onnx) for way in ways)
    exporters = {library: Worker(export, (structure, library, path, shape)) for library, path in paths}
    try:
        for library, process in with_progress(exporters.items(), len(exporters), f"{title}: export"):
            process.wait_until_ready()
            sizes[library] = process.note
    finally:
        for process in exporters.values():
            process.stop()
    workers = [Worker(make, way) for way in ways]
    problems: dict[int, str] = {}
    found: list[list[float]] = [[] for _ in ways]
    batch = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    try:
        for i, worker in enumerate(with_progress(workers, len(workers), f"{title}: start")):
            attempt(problems, i, worker.wait_until_ready)
        order = range(len(ways))
        turns = [i for repeat in range(asked.repeats) for i in (order if repeat % 2 == 0 else reversed(order))]
        for i in with_progress(turns, len(turns), f"{title}: timing"):
            if i not in problems:
                calls = attempt(problems, i, lambda i=i: workers[i].latencies(batch, asked.seconds, 1))
                found[i].append(1000 * float(np.median(calls)) if calls else float("nan"))
    finally:
        for worker in workers:
            worker.stop()
    return [
        row_of(way, sizes[way.library], problems.get(i, ""), found[i], workers[i].note) for i, way in enumerate(ways)
    ]


def attempt(problems: dict[int, str], place: int, work: Any) -> Any:
    try:
        return work()
    except WorkerError as error:
        problems[place] = str(error)
        return None


def row_of(way: Way, size: str, problem: str, rounds: list[float], note: str) -> list[str]:
    name = f"{way.structure.backbone} + {way.structure.head}"
    other = f"{way.structure.peer} ({way.structure.backbone})" if way.library == "smp" else way.structure.peer
    label = f"{way.way} ({note.removeprefix('computes in ')})" if note else way.way
    start = [way.library, name if way.library == "graft" else other, size, label]
    if problem:
        return [*start, "-", problem]
    return [*start, f"{np.median(rounds):.0f}", f"{min(rounds):.0f} to {max(rounds):.0f}"]


def as_markdown(rows: list[list[str]], asked: argparse.Namespace) -> str:
    about, used = machine(), versions()
    packages = ", ".join(f"{name} {used[name]}" for name in ("torch", "onnxruntime", "openvino") if name in used)
    lines = [
        f"Batch {asked.batch} of {asked.size}x{asked.size}, {about['processor']} "
        f"({', '.join(about['extensions'])}), {asked.threads} threads, {packages}: median of {asked.repeats} rounds "
        "and their range, in milliseconds per batch.",
        "",
        "| library | network | params | way | ms | range |",
        "|---|---|--:|---|--:|--:|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines)


def kept_scores(runs: list[str], images: int, threads: int) -> str:
    """A Markdown table of the score that each way keeps, for trained networks on up to so many validation images."""
    from experiments.inference.benchmark_all import Plan, benchmark
    from experiments.inference.check_export import MAIN_SCORE
    from experiments.inference.evaluate_all import data_of
    from experiments.inference.trained import load

    lines = [
        f"The score that each way keeps, on up to {images} validation images; bf16 is OpenVINO's own choice here.",
        "",
        "| trained network | way | score | change | largest difference of a probability |",
        "|---|---|--:|--:|--:|",
    ]
    for run in runs:
        network = load(run, "cpu")
        data = data_of(run, None, None, network)
        plan = Plan(
            names=SCORED, split="val", images=images, batch=1, size=None, repeats=1, seconds=0.01, threads=threads,
            device="cpu", calibration=1, max_drop=(0.001, 0.01),
        )  # fmt: skip
        hparams, score = network.module.hparams, MAIN_SCORE[network.task]
        title = f"{hparams['backbone']} + {hparams['head']}, {type(data).__name__.lower()}"
        for row in benchmark(run, network, data, plan):
            note = row.get("note", "").removeprefix("computes in ")
            cells = [title, f"{row['runtime']} ({note})" if note else row["runtime"]]
            if "score" in row:
                cells += [f"{score} {row['score']:.4f}", f"{row['score_change']:+.4f}", f"{row['max_difference']:.0e}"]
            else:
                cells += ["-", "-", row["status"]]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument(
        "--seconds", type=float, default=0.3, help="that a way is timed for in a round, at least one call"
    )
    parser.add_argument("--only", type=int, nargs="*", metavar="N", help="time the networks of these numbers, from 0")
    parser.add_argument("--trained", nargs="+", default=[], metavar="RUN", help="run folders, scored in each way")
    parser.add_argument("--images", type=int, default=128, help="validation images that a trained network is scored on")
    parser.add_argument("--readme", action="store_true", help="write the tables into experiments/README.md")
    asked = parser.parse_args()
    parts = {}
    if asked.trained:
        parts[SCORES] = kept_scores(asked.trained, asked.images, asked.threads)
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for place, structure in enumerate(STRUCTURES):
            if asked.only is None or place in asked.only:
                rows += measure(structure, Path(folder), asked)
    if rows:
        parts[LATENCIES] = as_markdown(rows, asked)
    for part, text in parts.items():
        print(f"{text}\n")
        if asked.readme:
            replace_part(README, part, text)


if __name__ == "__main__":
    main()
