"""Cache of decoded samples as raw pixels, so that a file is decoded once instead of once per epoch.

Each sample is a file of its own, memory-mapped when it is asked for. So all workers and all ranks of a machine share
one copy, however they were started; a crop reads only the pages it covers; and nothing needs a lock.

`memory` keeps the files in shared memory (/dev/shm, or the folder for temporary files if there is none) until the run
ends. Its budget is a quarter of the memory limit (of the machine, the container or the job) and at most half of what is
free there; 256 MiB of it always stay free, because the workers pass their batches through the same memory. `disk` keeps
the files in `~/.cache/graft` (or `$XDG_CACHE_HOME/graft`) for later runs. Its budget is half of the disk space that is
free or already taken by this cache. Nothing is removed from it automatically, but the folder may be deleted at any
time. Samples beyond the budget are decoded each time they are asked for.
"""

import mmap
import os
import pickle
import shutil
import struct
import sys
from collections.abc import Iterator
from hashlib import sha1
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.cache_folder import cache_folder, read_json, temporary_suffix, write_json
from datamodules.download import readable_size
from datamodules.errors import DataError
from datamodules.memory_limit import memory_limit
from datamodules.node_folder import memory_root, node_folder
from datamodules.objects import Objects, objects_of
from datamodules.source import FileSource, Sample

Cache = Literal["none", "memory", "disk"]
FORMAT = 2
"""Part of every key; to be raised when decoding or the layout of the files changes."""
HEADER = struct.Struct("<5q")
"""Height, width, channels, the class (-1: a mask follows the image; -2 - N: N objects follow it), bytes of the name."""
OBJECT = np.dtype([("box", "<f4", 4), ("label", "<i8"), ("crowd", "?")])
MEMORY_FRACTION = 0.25
FREE_FRACTION = 0.5
ROOM_FOR_BATCHES = 256 << 20
"""Bytes of shared memory that are left to the workers' batches."""


class SampleCache:
    """Cache of samples in `folder`; adds no more once less than `min_free_bytes` would remain free on its file system.

    A `durable` cache survives a power cut without damaged samples.
    """

    def __init__(self, folder: Path, min_free_bytes: int, *, durable: bool = False) -> None:
        self.folder = folder
        self.min_free_bytes = min_free_bytes
        self.durable = durable

    def key(self, source: FileSource, index: int, preparation: str) -> str:
        """Cache key of a sample: a hash of everything it depends on.

        That is the path, size and modification time of its files, and how they are decoded and prepared.

        Raises:
            OSError: there is no such file.
        """
        files = [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in source.paths(index)]
        return sha1(pickle.dumps((FORMAT, preparation, source.decoding_key(index), files), protocol=5)).hexdigest()

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / key[2:]

    def get(self, key: str) -> Sample | None:
        """The sample, or None. Its arrays lie over private pages: writing to them changes no file."""
        try:
            with self.path(key).open("rb") as file:
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            height, width, channels, label, letters = HEADER.unpack_from(pages)
        except (OSError, ValueError, struct.error):  # missing, empty or cut off
            return None
        start, area = HEADER.size + letters, height * width
        objects = -2 - label if label <= -2 else 0
        if len(pages) != start + (channels + (label == -1)) * area + objects * OBJECT.itemsize:
            return None
        image = np.frombuffer(pages, np.uint8, channels * area, start).reshape(height, width, channels)
        name = pages[HEADER.size : start].decode()
        if label >= 0:
            return image, label, name
        if label <= -2:
            rows = np.frombuffer(pages, OBJECT, objects, start + channels * area)
            return image, objects_of(rows["box"].copy(), rows["label"].copy(), rows["crowd"].copy()), name
        return image, np.frombuffer(pages, np.uint8, area, start + channels * area).reshape(height, width), name

    def put(self, key: str, sample: Sample) -> None:
        """Store a sample if there is room.

        It is written to a temporary file and renamed, so that no reader sees a partial file.
        """
        image, target, name = sample
        letters = name.encode()
        label, more = encoded(target)
        parts: list[Any] = [HEADER.pack(*image.shape, label, len(letters)), letters, np.ascontiguousarray(image)]
        parts += more
        path = self.path(key)
        part = path.with_suffix(temporary_suffix())
        try:
            if shutil.disk_usage(self.folder).free - image.nbytes * 2 < self.min_free_bytes:
                return
            path.parent.mkdir(exist_ok=True)
            with part.open("wb") as file:
                for one in parts:
                    file.write(one)
                if self.durable:
                    file.flush()
                    os.fsync(file.fileno())
            part.replace(path)
        except OSError:  # full after all, or deleted: the sample will be decoded again
            part.unlink(missing_ok=True)


def encoded(target: np.ndarray | int | Objects) -> tuple[int, list[np.ndarray]]:
    """The label of the header, and what follows the image."""
    if isinstance(target, Objects):
        rows = np.empty(len(target.labels), OBJECT)
        rows["box"], rows["label"], rows["crowd"] = target.boxes, target.labels, target.crowd
        return -2 - len(rows), [rows]
    if isinstance(target, np.ndarray):
        return -1, [np.ascontiguousarray(target)]
    return target, []


def open_cache(cache: Cache) -> SampleCache | None:
    """The cache that `--cache` names, made if need be; None for "none".

    Raises:
        ValueError: the folder for "disk" cannot be made.
    """
    if cache == "none":
        return None
    return open_disk() if cache == "disk" else open_memory()


def open_disk() -> SampleCache:
    folder = cache_folder()
    instead = "set XDG_CACHE_HOME to a folder that can be written, or use --cache memory"
    if folder is None:
        raise DataError(f"--cache disk: this user has no home directory; {instead}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
        taken = sum(sizes(folder))
    except OSError as error:
        raise DataError(f"--cache disk: {folder} cannot be written ({error.strerror}); {instead}") from None
    # What is free or taken by the cache is the same at every start, so that the budget does not grow from run to run.
    return SampleCache(folder, int((shutil.disk_usage(folder).free + taken) * FREE_FRACTION), durable=True)


def sizes(folder: Path) -> Iterator[int]:
    """Bytes of each cached sample in a folder."""
    for group in os.scandir(folder):
        if group.is_dir() and len(group.name) == 2:
            for entry in os.scandir(group.path):
                yield entry.stat().st_size


def open_memory() -> SampleCache:
    """The cache in this run's folder in shared memory. All ranks of a machine have the limit of the first."""
    folder = node_folder()
    limit = folder / "min_free_bytes.json"
    kept = read_json(limit)
    if not isinstance(kept, int):
        kept = memory_floor(folder)
        write_json(limit, kept)
    return SampleCache(folder, kept)


def memory_floor(folder: Path) -> int:
    """Bytes that the cache in shared memory leaves free; tells the user if that is all there is."""
    usage = shutil.disk_usage(folder)
    budget = min(int(usage.free * FREE_FRACTION), int(memory_limit() * MEMORY_FRACTION), usage.free - ROOM_FOR_BATCHES)
    if budget <= 0:
        print(
            f"decoded samples are not cached, because {memory_root()} has only {readable_size(usage.free)} free; with "
            "Docker, --shm-size=8g gives it more; --cache disk caches on the disk",
            file=sys.stderr,
        )
    return usage.free - max(0, budget)
