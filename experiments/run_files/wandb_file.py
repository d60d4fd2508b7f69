"""Reads the `.wandb` files that W&B's client writes for every run: settings, history, summary.

The format is W&B's own: a header of seven bytes, then LevelDB's log format in blocks of 32 KiB, whose records are
protocol buffers. The file of a killed process ends anywhere; its complete records are read.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAGIC = b":W&B"
FILE_HEADER = 7
BLOCK = 32 * 1024
CHUNK_HEADER = struct.Struct("<IHB")
"""Checksum, length and kind of a chunk."""
WHOLE, LAST = 1, 4


@dataclass
class WandbFile:
    """What one process has logged of a run; a resumed run has several files."""

    path: Path
    run_id: str = ""
    name: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    tags: tuple[str, ...] = ()
    started: float = 0.0
    """Seconds since 1970."""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    """Rows in the order in which they were logged; `_step` is the optimiser step."""
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    """Names of the artifacts that were logged."""
    exit_code: int | None = None
    """None if the process ended without logging an exit code."""


def wandb_files(folder: Path) -> list[WandbFile]:
    """All files below a folder, sorted by their start.

    Raises:
        ValueError: one of them is not a file of W&B's.
    """
    # The link `latest-run` names one of the folders a second time.
    paths = {path.resolve() for path in folder.rglob("*.wandb")}
    return sorted(map(read_wandb_file, paths), key=lambda one: (one.started, str(one.path)))


def last_step(folder: Path, run_id: str) -> int:
    """The highest step in the history of a run's files; -1 if there is none."""
    steps = [
        row["_step"] for one in wandb_files(folder) if one.run_id == run_id for row in one.history if "_step" in row
    ]
    return max(steps, default=-1)


def read_wandb_file(path: Path) -> WandbFile:
    """Everything in one file.

    Raises:
        ValueError: it is no file of W&B's.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    there = WandbFile(path)
    for data in chunks(path):
        record = Record()
        try:
            record.ParseFromString(data)
        except DecodeError as error:
            raise ValueError(f"{path}: a record cannot be read ({error})") from error
        take(there, record)
    return there


def take(there: WandbFile, record: Any) -> None:
    """Add the contents of a record."""
    match record.WhichOneof("record_type"):
        case "run":
            run = record.run
            there.run_id, there.name, there.project = run.run_id, run.display_name, run.project
            there.group, there.job_type, there.tags = run.run_group, run.job_type, tuple(run.tags)
            there.started = run.start_time.ToMicroseconds() / 1e6
            change(there.config, run.config)
        case "config":
            change(there.config, record.config)
        case "summary":
            change(there.summary, record.summary)
        case "history":
            row: dict[str, Any] = {}
            put_all(row, record.history.item)
            there.history.append(row)
        case "artifact":
            there.artifacts.append(record.artifact.name)
        case "exit":
            there.exit_code = record.exit.exit_code


def change(values: dict[str, Any], record: Any) -> None:
    """Apply a record's updates and removals."""
    put_all(values, record.update)
    for item in record.remove:
        values.pop(item.key or item.nested_key[0], None)


def put_all(values: dict[str, Any], items: Any) -> None:
    for item in items:
        *outer, last = list(item.nested_key) or [item.key]
        inner = values
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)


def chunks(path: Path) -> Iterator[bytes]:
    """The complete records of a file.

    Raises:
        ValueError: it is no file of W&B's.
    """
    log = path.read_bytes()
    if not log:  # its process was killed before it wrote anything
        return
    if not log.startswith(MAGIC):
        raise ValueError(f"{path} is no file of W&B's")
    position, parts = FILE_HEADER, []
    while position + CHUNK_HEADER.size <= len(log):
        left = BLOCK - position % BLOCK
        if left < CHUNK_HEADER.size:  # too short for a header: padding
            position += left
            continue
        checksum, length, kind = CHUNK_HEADER.unpack_from(log, position)
        position += CHUNK_HEADER.size
        part = log[position : position + length]
        if len(part) < length or zlib.crc32(part, zlib.crc32(bytes([kind]))) != checksum:
            return
        position += length
        parts.append(part)
        if kind in (WHOLE, LAST):
            yield b"".join(parts)
            parts = []
