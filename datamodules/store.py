"""Decoded samples, kept as raw pixels: a file is decoded once, not once an epoch.

Each sample is a file of its own, memory-mapped when it is asked for. So all workers, and all processes of a machine,
share one copy, whatever way they were started; a crop reads only the pages it covers; and nothing needs a lock.

`memory` keeps the files in shared memory (/dev/shm; a temporary folder where there is none) until the run ends. Its
budget is a quarter of the machine's or container's memory, and at most half of what is free there. `disk` keeps them
in `~/.cache/graft` (or `$XDG_CACHE_HOME/graft`) for later runs; its budget is half of the free space, and the folder
may be deleted at any time. Samples beyond the budget are decoded whenever they are asked for.
"""

import atexit
import mmap
import os
import pickle
import shutil
import struct
import tempfile
import threading
from hashlib import sha1
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.source import FileSource, Sample

Cache = Literal["none", "memory", "disk"]
FORMAT = 1
"""Part of every key: to be raised when decoding or the layout of the files changes."""
HEADER = struct.Struct("<4q")
"""Height, width, the class (-1: a mask follows the image), bytes of the name."""
MEMORY_SHARE = 0.25
FREE_SHARE = 0.5
# Processes started for DDP run the whole program again; they must find the memory of the first.
OPENED = "GRAFT_STORE"


class Store:
    """Samples by key in `folder`, while `floor` bytes remain free on its file system."""

    def __init__(self, folder: Path, floor: int) -> None:
        self.folder = folder
        self.floor = floor

    def key(self, source: FileSource, index: int, preparation: str) -> str:
        """What the sample is a function of: its files, by path, size and date, and what is done to them.

        Raises:
            OSError: there is no such file.
        """
        files = [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in source.paths(index)]
        return sha1(pickle.dumps((FORMAT, preparation, source.recipe(index), files), protocol=5)).hexdigest()

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / key[2:]

    def get(self, key: str) -> Sample | None:
        """The sample, as arrays over private pages: writing to them changes no file."""
        try:
            with self.path(key).open("rb") as file:
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError:
            return None
        height, width, label, letters = HEADER.unpack_from(pages)
        start, area = HEADER.size + letters, height * width
        image = np.frombuffer(pages, np.uint8, 3 * area, start).reshape(height, width, 3)
        name = pages[HEADER.size : start].decode()
        if label >= 0:
            return image, label, name
        return image, np.frombuffer(pages, np.uint8, area, start + 3 * area).reshape(height, width), name

    def put(self, key: str, sample: Sample) -> None:
        """Keep it, if there is room. Written beside and moved into place: no reader sees half a file."""
        image, target, name = sample
        letters = name.encode()
        masked = isinstance(target, np.ndarray)
        label = -1 if isinstance(target, np.ndarray) else target
        parts: list[Any] = [HEADER.pack(*image.shape[:2], label, len(letters)), letters, np.ascontiguousarray(image)]
        parts += [np.ascontiguousarray(target)] if masked else []
        path = self.path(key)
        part = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        try:
            if shutil.disk_usage(self.folder).free - image.nbytes * 2 < self.floor:
                return
            path.parent.mkdir(exist_ok=True)
            with part.open("wb") as file:
                for one in parts:
                    file.write(one)
            part.replace(path)
        except OSError:  # full after all, or deleted: the sample is decoded again when it is asked for
            part.unlink(missing_ok=True)


def open_store(cache: Cache) -> Store | None:
    """The store that `--cache` names, made if need be; None for "none"."""
    if cache == "none":
        return None
    if cache == "disk":
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graft"
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        return Store(folder, free - int(free * FREE_SHARE))
    if OPENED not in os.environ:
        os.environ[OPENED] = open_memory()
    floor, path = os.environ[OPENED].split(":", 1)
    return Store(Path(path), int(floor))


def open_memory() -> str:
    """A new folder in memory, removed when this process ends, as "floor:path"."""
    shared = Path("/dev/shm")
    root = shared if shared.is_dir() and os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    remove_orphans(root)
    folder = Path(tempfile.mkdtemp(prefix=f"graft-{os.getpid()}-", dir=root))
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # forked workers inherit this
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    free = shutil.disk_usage(root).free
    return f"{free - min(int(free * FREE_SHARE), int(total_memory() * MEMORY_SHARE))}:{folder}"


def remove_orphans(root: Path) -> None:
    """Free what processes that were killed have left."""
    for folder in root.glob("graft-*-*"):
        pid = folder.name.split("-")[1]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (OSError, ValueError):  # someone else's
            continue


def total_memory() -> int:
    """Bytes of the machine, or of the container where that has less."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return machine
    return min(machine, int(limit)) if limit.isdigit() else machine
