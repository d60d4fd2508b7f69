"""`run.py --check-data`: check a whole data set and report every fault, as a table and as JSON, without training."""

import dataclasses
import json
from collections import Counter, defaultdict
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.table import Table

from datamodules.base import IGNORE_INDEX, Source
from datamodules.checking import in_threads
from datamodules.errors import DataError
from datamodules.objects import Objects
from experiments.command_line.console import make_console
from experiments.command_line.run_config import RunConfig
from experiments.training.build import build_data

MOST_ROWS = 50
"""Number of faults in the table; the JSON file has all."""


class Finding(NamedTuple):
    kind: str
    split: str
    sample: str
    message: str


class Inspected(NamedTuple):
    """A sample's name, content and labels, or its fault if it cannot be read."""

    fault: Finding | None
    name: str = ""
    content: bytes = b""
    labels: frozenset[int] = frozenset()


def check_data(config: RunConfig) -> int:
    """Check the data set that the settings name. Returns exit code 0, or 1 if there are faults.

    Kinds: layout (files missing or in the wrong place), unreadable, size mismatch, unknown label, empty mask (no pixel
    counts), duplicate (the same pixels in two splits).
    """
    # Loading is told to skip bad samples, so that it does not stop at the first.
    data = build_data(dataclasses.replace(config, on_bad_sample="skip"))
    faults: list[Finding] = []
    sizes: dict[str, int] = {}
    seen: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
    unused: list[str] = []
    try:
        for split, source in data.sources().items():
            jobs = [partial(inspect, source, split, index) for index in range(len(source))]
            inspected = in_threads(f"Checking {split}", jobs)
            sizes[split] = len(source)
            faults += [one.fault for one in inspected if one.fault]
            for one in inspected:
                seen[one.content].append((split, one.name))
            if split == "train":
                present = set().union(*(one.labels for one in inspected))
                unused = [name for label, name in enumerate(data.class_names) if label not in present]
    except DataError as error:
        faults.append(Finding("layout", "", "", str(error)))
    seen.pop(b"", None)
    faults += duplicates(list(seen.values()))
    path = Path(config.out) / f"check-{config.data}.json"
    write_report(path, config, sizes, faults, unused)
    print_report(path, sizes, faults, unused)
    return 1 if faults else 0


def inspect(source: Source, split: str, index: int) -> Inspected:
    try:
        image, target, name = source[index]
    except DataError as error:
        return Inspected(Finding(error.kind, split, f"number {index}", str(error)))
    content = blake2b(np.ascontiguousarray(image).data, key=str(image.shape).encode()).digest()
    if isinstance(target, Objects):  # an image without objects is in order
        return Inspected(None, name, content, frozenset(target.labels.tolist()))
    labels = frozenset(np.unique(target).tolist()) - ({IGNORE_INDEX} if isinstance(target, np.ndarray) else set())
    empty = Finding("empty mask", split, name, f"{name} in {split} has no pixel that counts; label it or remove it")
    return Inspected(None if labels else empty, name, content, labels)


def duplicates(groups: list[list[tuple[str, str]]]) -> list[Finding]:
    """Find images that are in several splits; each group holds the samples of one content."""
    faults = []
    for group in groups:
        if len({split for split, _ in group}) > 1:
            (split, name), *_ = group
            everywhere = ", ".join(f"{split}: {name}" for split, name in group)
            faults.append(Finding("duplicate", split, name, f"the same image is in several splits ({everywhere})"))
    return faults


def write_report(
    path: Path, config: RunConfig, sizes: dict[str, int], faults: list[Finding], unused: list[str]
) -> None:
    report = {
        "data": config.data,
        "data_dir": config.data_dir,
        "splits": sizes,
        "classes_without_training_samples": unused,
        "faults": [fault._asdict() for fault in faults],
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"--out {path.parent}: cannot write {path.name} there ({error.strerror})") from None


def print_report(path: Path, sizes: dict[str, int], faults: list[Finding], unused: list[str]) -> None:
    console = make_console()
    if faults:
        table = Table("kind", "split", "what", title="faults")
        for fault in faults[:MOST_ROWS]:
            table.add_row(fault.kind, fault.split, fault.message)
        console.print(table)
    if unused:
        console.print(f"classes without a training sample: {', '.join(unused)}", soft_wrap=True)
    kinds = Counter(fault.kind for fault in faults)
    total = ", ".join(f"{number} {kind}" for kind, number in kinds.items()) or "no faults"
    checked = ", ".join(f"{number} {split}" for split, number in sizes.items()) or "nothing"
    console.print(f"{checked} samples checked: {total}; all in {path}", soft_wrap=True)
