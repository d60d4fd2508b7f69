"""Measures a trained network under every runtime: its score, how far its probabilities are off, latency, memory."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.base import GraftDataModule
from experiments.command_line.progress import with_progress
from experiments.inference.check_export import MAIN_SCORE, as_batch, counted
from experiments.inference.counts import Counts
from experiments.inference.evaluate_all import pictures
from experiments.inference.export_network import metadata_of, write_export, write_openvino
from experiments.inference.quantise import quantise
from experiments.inference.runtimes import RUNTIMES, Job, size_in_mb
from experiments.inference.scores import summary
from experiments.inference.trained import TrainedNetwork
from experiments.inference.worker import Worker, WorkerError, one_line


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured, and how often.

    Args:
        images: up to so many, evenly spaced over the split, are scored.
        batch: images of one timed call.
        size: (H, W) in pixels of these images; None takes the size of the first scored one.
        repeats: rounds; in each, every runtime is timed once.
        seconds: that a runtime is timed for in a round.
        calibration: training images that int8 takes ranges from.
        max_drop: largest loss of score that is "ok"; of runtimes in float32, and of those in fewer bits.
    """

    names: tuple[str, ...]
    split: str
    images: int
    batch: int
    size: tuple[int, int] | None
    repeats: int
    seconds: float
    threads: int
    device: str
    calibration: int
    max_drop: tuple[float, float]


@dataclass
class Row:
    """What was found of one runtime."""

    name: str
    problem: str = ""
    """Why it was not measured."""
    worker: Worker | None = None
    counts: Counts | None = None
    difference: float = 0.0
    rounds: list[list[float]] = field(default_factory=list)
    """Seconds of each call, by round."""
    memory: float | None = None


def benchmark(checkpoint: str, network: TrainedNetwork, data: GraftDataModule, plan: Plan) -> list[dict[str, Any]]:
    """A row of plain values for each runtime, in the order of `plan.names`; the first is the reference."""
    rows = [Row(name, RUNTIMES[name].missing(plan.device)) for name in plan.names]
    rows = [Row(row.name, f"skipped: {row.problem}" if row.problem else "") for row in rows]
    with tempfile.TemporaryDirectory() as folder, stopping(rows):
        files = export_files(network, data, rows, Path(folder), plan.calibration)
        sizes = {kind: size_in_mb(Path(path)) for kind, path in files.items()}
        weights = sum(tensor.nbytes for tensor in network.module.network.state_dict().values()) / 1e6
        start(rows, Job(checkpoint, files, plan.threads, plan.device))
        example = score(rows, network, data, plan)
        time_rounds(rows, example, plan)
        for row in rows:
            with noting(row):
                row.memory = None if row.worker is None else row.worker.peak_memory()
        return [
            as_values(row, rows[0], sizes.get(RUNTIMES[row.name].file, weights), network.task, plan) for row in rows
        ]


@contextmanager
def stopping(rows: list[Row]) -> Iterator[None]:
    """End the processes of all rows, whatever happens."""
    try:
        yield
    finally:
        for row in rows:
            if row.worker is not None:
                row.worker.stop()


@contextmanager
def noting(row: Row) -> Iterator[None]:
    """A process that fails is a row that says why; the others go on."""
    try:
        yield
    except WorkerError as error:
        row.problem = f"failed: {error}"
        if row.worker is not None:
            row.worker.stop()
        row.worker = None


def export_files(
    network: TrainedNetwork, data: GraftDataModule, rows: list[Row], folder: Path, calibration: int
) -> dict[str, str]:
    """Write the files that the runtimes need, by kind. Rows whose file cannot be written get the reason."""
    onnx, int8, openvino = folder / "network.onnx", folder / "int8.onnx", folder / "network.xml"
    text = json.dumps(metadata_of(network, "probabilities"), ensure_ascii=False)
    steps = {
        "onnx": lambda: write_export(network, "onnx", onnx),
        "openvino": lambda: write_openvino(onnx, openvino, text),
        "int8": lambda: quantise(onnx, int8, network, data, calibration),
    }
    paths = {"onnx": onnx, "openvino": openvino, "int8": int8}
    wanted = {RUNTIMES[row.name].file for row in rows if not row.problem} - {""}
    if wanted:
        wanted.add("onnx")  # the others are made from it
    files: dict[str, str] = {}
    for kind in [kind for kind in with_progress(steps, len(steps), "exports") if kind in wanted]:
        reason = "" if kind == "onnx" or "onnx" in files else "there is no ONNX file to make it from"
        try:
            if not reason:
                steps[kind]()
                files[kind] = str(paths[kind])
        except Exception as error:  # of any exporter; one row's failure
            reason = one_line(error)
        for row in rows:
            if reason and RUNTIMES[row.name].file == kind and not row.problem:
                row.problem = f"failed: {reason}"
    return files


def start(rows: list[Row], job: Job) -> None:
    """Start a process for each row, and wait until all are ready."""
    for row in rows:
        if not row.problem:
            row.worker = Worker(RUNTIMES[row.name].make, job)
    for row in with_progress(rows, len(rows), "starting"):
        if row.worker is not None:
            with noting(row):
                row.worker.wait_until_ready()


def score(rows: list[Row], network: TrainedNetwork, data: GraftDataModule, plan: Plan) -> np.ndarray:
    """Count every row on the same images. Returns the batch to time, uint8 `(B, 3, H, W)`.

    Raises:
        ValueError: no image can be read, or the first row failed.
    """
    total = len(getattr(data, plan.split).source)
    picked = np.unique(np.linspace(0, total - 1, min(total, plan.images)).astype(int)).tolist()
    example: np.ndarray | None = None
    for one in with_progress(pictures(data, plan.split, picked), len(picked), "scoring"):
        if not isinstance(one, tuple):
            continue
        _, image, truth, _ = one
        batch = as_batch(network.size_rule.apply(image))
        example = batch if example is None else example
        expected: np.ndarray | None = None
        for row in rows:
            if row.worker is None:
                continue
            with noting(row):
                found = row.worker.run(batch)
                expected = found if row is rows[0] else expected
                assert expected is not None
                row.difference = max(row.difference, float(np.abs(found - expected).max()))
                row.counts = row.counts or Counts.none(data.num_classes)
                row.counts += counted(found[0], truth, data.ignore_index)
            if rows[0].worker is None:
                raise ValueError(f"{rows[0].name} {rows[0].problem}; nothing to compare with")
    if example is None:
        raise ValueError(f"no image of the {plan.split} split can be read, so nothing can be measured")
    if plan.size is not None:
        ys, xs = (np.arange(side) % length for side, length in zip(plan.size, example.shape[2:], strict=True))
        example = example[:, :, ys][..., xs]
    return np.ascontiguousarray(example.repeat(plan.batch, 0))


def time_rounds(rows: list[Row], batch: np.ndarray, plan: Plan) -> None:
    """Time the rows by turns, forwards and backwards, so that none always follows the same one."""
    turns = [row for i in range(plan.repeats) for row in (rows if i % 2 == 0 else rows[::-1])]
    for row in with_progress(turns, len(turns), "timing"):
        if row.worker is not None:
            with noting(row):
                row.rounds.append(row.worker.latencies(batch, plan.seconds))


def as_values(row: Row, reference: Row, size: float, task: str, plan: Plan) -> dict[str, Any]:
    """A row for JSON, CSV and the table; latencies in milliseconds."""
    values: dict[str, Any] = {"runtime": row.name, "status": row.problem, "file_mb": round(size, 3)}
    if row.problem or row.counts is None or reference.counts is None or not row.rounds:
        return values
    name = MAIN_SCORE[task]
    found, expected = (float(summary(one.counts, task)[name] or 0.0) for one in (row, reference))  # type: ignore[arg-type]
    drop, most = expected - found, plan.max_drop[RUNTIMES[row.name].reduced]
    calls = 1000 * np.concatenate(row.rounds)
    medians = [1000 * float(np.median(one)) for one in row.rounds]
    return values | {
        "status": "ok" if drop <= most else f"worse: {name} falls by {drop:.4f}, more than {most:g}",
        "note": "" if row.worker is None else row.worker.note,
        "score": found,
        "score_change": found - expected,
        "max_difference": row.difference,
        "p50_ms": float(np.median(medians)),  # of rounds, because a slow round has fewer calls
        "p95_ms": float(np.percentile(calls, 95)),
        "fastest_round_ms": min(medians),
        "slowest_round_ms": max(medians),
        "images_per_s": 1000 * plan.batch / float(np.median(medians)),
        "peak_memory_mb": row.memory,
        "calls": len(calls),
    }
