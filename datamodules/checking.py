"""Checks of many files at once: in threads, with a progress bar if they take long."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from lightning.pytorch.utilities import rank_zero_only
from rich.progress import Progress

from datamodules.errors import DataError

T = TypeVar("T")

MOST_CHECKED = 5_000
PATIENCE = 2.0
"""Seconds of checking before a progress bar appears."""


def check(inspections: list[Callable[[], T]], *, tolerant: bool = False) -> list[T]:
    """Run inspections of files in threads, with a progress bar if that takes long, and raise the first error.

    At most 5,000 of them are run, evenly spaced; the loaders raise the same errors when they reach the other files.
    With `tolerant`, inspections that fail have no result.
    """
    inspections = inspections[:: -(-len(inspections) // MOST_CHECKED) or 1]
    return in_threads("Checking the data", inspections, tolerant=tolerant)


def in_threads(title: str, jobs: Sequence[Callable[[], T]], *, tolerant: bool = False) -> list[T]:
    """The results of all jobs, in order, with a progress bar of that title if they take more than two seconds."""
    results: list[T] = []
    start = time.monotonic()
    progress = Progress(transient=True, disable=rank_zero_only.rank != 0)  # type: ignore[attr-defined]
    task = progress.add_task(title, total=len(jobs))

    def run(job: Callable[[], T]) -> list[T]:
        try:
            return [job()]
        except DataError:
            if tolerant:
                return []
            raise

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            for result in pool.map(run, jobs):
                results += result
                progress.advance(task)
                if time.monotonic() - start > PATIENCE:
                    progress.start()
        finally:
            if progress.live.is_started:
                progress.stop()
            pool.shutdown(cancel_futures=True)
    return results
