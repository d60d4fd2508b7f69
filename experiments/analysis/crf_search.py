"""The search behind tune_crf.py: caches the network's probabilities, then tries settings coarse to fine in parallel.

First a coarse grid over the ranges that the DeepLab papers search (w1 3 to 10, sigma_alpha 30 to 100, sigma_beta 3 to
10), then the neighbours of the best point at a third of the steps, up to three times or until none of them is better.
All values of w1 are tried on one lattice for each image and pair of sigmas.
"""

import dataclasses
import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from datamodules.base import GraftDataModule
from experiments.analysis.crf_worker import Job, count_labels
from experiments.command_line.console import make_console
from experiments.command_line.cores import available_cores
from experiments.command_line.crf_settings import read_crf_settings
from experiments.command_line.progress import with_progress
from experiments.run_files.atomic_file import write_atomically
from experiments.training.load_run import load_segmentation
from heads.crf import CRFSettings
from lightning_modules.metrics import mean_iou
from lightning_modules.segmentation import SegmentationModule

SEARCHED = ("w1", "sigma_alpha", "sigma_beta")
COARSE = ((3.0, 6.0, 9.0), (35.0, 65.0, 95.0), (3.0, 6.0, 9.0))
FINE_STEPS = (1.0, 10.0, 1.0)
ROUNDS = 3
Point = tuple[float, float, float]
"""w1, sigma_alpha, sigma_beta."""


def tune(run: str, data_dir: str | None, crf_settings: str, images: int, processes: int | None, out: Path) -> None:
    """Search, then write the best settings and all settings tried. The arguments are tune_crf.py's flags.

    Raises:
        ValueError: the run or its data cannot be used.
    """
    data, module = load_segmentation(run, data_dir)
    fixed = read_crf_settings(crf_settings)
    assert data.val is not None
    count = min(images, len(data.val))
    with TemporaryDirectory(prefix="graft-crf-") as folder:
        samples = cache(module, data, count, Path(folder))
        if not samples:
            raise ValueError(f"{run}: none of the {count} validation images can be read")
        with workers(min(processes or available_cores(), len(samples))) as executor:

            def score(points: Sequence[Point], title: str) -> dict[Point, float]:
                settings = [at(fixed, point) for point in points]
                matrices = confusions(executor, samples, settings, data, title)
                return {point: mean_iou(matrices[one]).item() for point, one in zip(points, settings, strict=True)}

            without = confusions(executor, samples, [dataclasses.replace(fixed, iterations=0)], data, "without CRF")
            tried = search(score)
    miou_without = mean_iou(next(iter(without.values()))).item()
    write_settings(
        out, run, at(fixed, best_of(tried)), tried, {"images": len(samples), "of": len(data.val)}, miou_without
    )
    print_best(out, tried, miou_without)


def cache(module: SegmentationModule, data: GraftDataModule, count: int, folder: Path) -> list[Path]:
    """Write files with the probabilities (float16), pixels and labels of evenly spaced validation images.

    Samples that cannot be read are left out if the run skips them (`--on-bad-sample skip`).
    """
    assert data.val is not None
    paths = []
    for index in with_progress(np.linspace(0, len(data.val) - 1, count).astype(int), count, "probabilities"):
        item = data.val[int(index)]
        if item is None:
            continue
        with torch.inference_mode():
            probabilities = module.network(item["image"][None].to(module.device)).float().softmax(1)
        path = folder / f"{index}.npz"
        np.savez(
            path,
            probabilities=probabilities[0].half().cpu().numpy(),
            pixels=data.to_pixels(item["image"]).numpy(),
            target=item["target"].numpy().astype(np.uint8),
        )
        paths.append(path)
    return paths


def confusions(
    executor: Executor | None, samples: list[Path], settings: list[CRFSettings], data: GraftDataModule, title: str
) -> dict[CRFSettings, Tensor]:
    """Confusion matrices `(C, C)` over all samples, for each of the settings."""
    groups = [tuple(group) for _, group in itertools.groupby(sorted(settings, key=lambda one: sigmas(one)), key=sigmas)]
    jobs = [Job(sample, group, data.ignore_index) for group in groups for sample in samples]
    totals = {one: torch.zeros(data.num_classes, data.num_classes, dtype=torch.int64) for one in settings}
    for counts in with_progress(results(executor, jobs), len(jobs), title):
        for one, matrix in counts.items():
            totals[one] += matrix
    return totals


def sigmas(settings: CRFSettings) -> tuple[float, float]:
    return settings.sigma_alpha, settings.sigma_beta


def results(executor: Executor | None, jobs: list[Job]) -> Iterator[dict[CRFSettings, Tensor]]:
    """The results of the jobs, in the order in which they end."""
    if executor is None:
        yield from map(count_labels, jobs)
        return
    # Worker processes start here and inherit this; Ctrl-C is handled by this process alone.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        futures = [executor.submit(count_labels, job) for job in jobs]
    finally:
        signal.signal(signal.SIGINT, handler)
    for future in as_completed(futures):
        yield future.result()


@contextmanager
def workers(processes: int) -> Iterator[Executor | None]:
    """A pool of single-threaded worker processes, or None if `processes` is 1 and jobs run in this process.

    Leaving the block cancels jobs that have not started.
    """
    if processes == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def search(score: Callable[[Sequence[Point], str], dict[Point, float]]) -> dict[Point, float]:
    """All points tried, with their scores: the coarse grid, then the neighbours of the best point."""
    tried = score(list(itertools.product(*COARSE)), "coarse")
    for number in range(ROUNDS):
        before = best_of(tried)
        tried |= score([point for point in neighbours(before) if point not in tried], f"fine {number + 1}")
        if best_of(tried) == before:
            break
    return tried


def best_of(tried: dict[Point, float]) -> Point:
    """The point with the highest score; the first one of equals."""
    return max(tried, key=lambda point: tried[point])


def neighbours(point: Point) -> Iterable[Point]:
    """The points at most one fine step away on each axis, without those at or below zero."""
    axes = [[x - step, x, x + step] for x, step in zip(point, FINE_STEPS, strict=True)]
    return [(a, b, c) for a, b, c in itertools.product(*axes) if min(a, b, c) > 0]


def at(fixed: CRFSettings, point: Point) -> CRFSettings:
    w1, sigma_alpha, sigma_beta = point
    return dataclasses.replace(fixed, w1=w1, sigma_alpha=sigma_alpha, sigma_beta=sigma_beta)


def write_settings(
    out: Path,
    run: str,
    best: CRFSettings,
    tried: dict[Point, float],
    images: dict[str, int],
    miou_without: float,
) -> None:
    """The file that `run.py --crf-settings` takes: the settings, where they come from, and all that were tried."""
    ranked = sorted(tried.items(), key=lambda item: -item[1])
    contents: dict[str, Any] = dataclasses.asdict(best)
    contents["tuned_on"] = {"run": run, "split": "val", **images}
    contents["tuned_on"] |= {"miou_without": round(miou_without, 5), "miou_with": round(ranked[0][1], 5)}
    contents["tried"] = [{**dict(zip(SEARCHED, point, strict=True)), "miou": round(miou, 5)} for point, miou in ranked]
    write_atomically(out, yaml.safe_dump(contents, sort_keys=False, default_flow_style=None, width=120))


def print_best(out: Path, tried: dict[Point, float], miou_without: float) -> None:
    """Print the best point, its gain over the network alone, and how to use the file."""
    point = best_of(tried)
    settings = "  ".join(f"{name} {value:g}" for name, value in zip(SEARCHED, point, strict=True))
    gain = tried[point] - miou_without
    make_console().print(
        f"mIoU without {miou_without:.4f}, with {tried[point]:.4f} ({gain:+.4f}): {settings}, best of {len(tried)}\n"
        f"{out}: for run.py --crf test --crf-settings",
        soft_wrap=True,
    )
    if gain <= 0:
        make_console().print("No setting improves on the network alone.")
