"""Boxes that may hold an object, found without a network, for the heads that classify such boxes.

`--proposals` names a method of `METHODS`, or a file that `experiments/propose.py` or another program wrote. A method's
boxes are kept in the cache folder, one file for a data set, and are found once. The file is an .npz with three arrays
for each split: "SPLIT_names" (the names of its samples), "SPLIT_counts" (boxes of each, int) and "SPLIT_boxes" (all
boxes in that order, float32 `(N, 4)`: x1, y1, x2, y2 in pixels of the stored image, the most promising first).
"""

import time
from collections.abc import Callable, Container, Iterator, Mapping
from hashlib import sha1
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import cv2
import numpy as np
from lightning.pytorch.utilities import rank_zero_only
from rich.progress import Progress
from torch.utils.data import DataLoader, Dataset

from datamodules.cache_folder import cache_folder, temporary_suffix
from datamodules.errors import DataError
from datamodules.fingerprint import content_hash, fingerprint_of
from datamodules.node_folder import once_per_node, started_together
from datamodules.selective_search import SelectiveSearch
from datamodules.source import FileSource, Source
from datamodules.worker_signals import ignore_signals_except_parents, sigterm_blocked
from heads.sliding_windows import sliding_windows

FORMAT = 1
"""Part of every key; to be raised when a method finds other boxes."""
MOST = 2000
"""Boxes of an image that are used; more are left out."""
SAVE_EVERY = 60.0
"""Seconds after which unfinished work is written, so that a killed program goes on there."""
PATIENCE = 2.0
"""Seconds before a progress bar appears."""
SLACK = 1.0
"""Pixels by which a box may reach over the border: programs round differently."""

Boxes = dict[str, np.ndarray]
"""Boxes float32 `(N, 4)` of each image, by its name."""
Method = Callable[[np.ndarray], np.ndarray]
"""Image uint8 `(H, W, 3)` -> boxes float32 `(N, 4)`."""


def windows_of(image: np.ndarray) -> np.ndarray:
    """Sliding windows over an image."""
    height, width = image.shape[:2]
    return sliding_windows(height, width, MOST)


METHODS: dict[str, Method] = {
    "selective_search": SelectiveSearch(),
    "windows": windows_of,
}


class Proposals:
    """The boxes of a split's images."""

    def __init__(self, boxes: Boxes, origin: str) -> None:
        self.boxes = boxes
        self.origin = origin
        """Where they are from, for errors."""

    def of(self, name: str, height: int, width: int) -> np.ndarray:
        """Boxes float32 `(N, 4)` of the image `name`, cut at its border.

        Raises:
            ValueError: there are none for that name, or they are of an image of another size.
        """
        if name not in self.boxes:
            raise DataError(f"{self.origin} has no boxes for {name}; make them anew with experiments/propose.py")
        boxes = self.boxes[name][:MOST]
        if len(boxes) and (boxes.min() < -SLACK or (boxes[:, 2:] > np.array([width, height]) + SLACK).any()):
            reach = ", ".join(f"{side:g}" for side in (*boxes[:, :2].min(0), *boxes[:, 2:].max(0)))
            raise DataError(
                f"{self.origin}: boxes of {name} reach from {reach}, outside its {width}x{height} pixels; they are of "
                "another image or size"
            )
        cut = boxes.clip(0, [width, height, width, height])
        return cut[(cut[:, 2:] > cut[:, :2]).all(1)].astype(np.float32)


def proposals_for(
    chosen: str, sources: Mapping[str, Source], data_dir: str | None, workers: int
) -> dict[str, Proposals]:
    """The proposals of all splits, read from a file or found by a method, in that case once for all runs.

    Args:
        chosen: a name in `METHODS`, or an .npz file.
        data_dir: the folder of the data set, if it has one.
        workers: processes that look for boxes; 0: this one.

    Raises:
        ValueError: there is no such method or file, or the file is damaged or lacks a split.
    """
    if chosen in METHODS:
        file = cached_file(chosen, sources, data_dir)
        if file is not None and started_together():
            once_per_node(f"proposals {file}", lambda: len(completed(METHODS[chosen], sources, file, workers)))
        boxes, origin = completed(METHODS[chosen], sources, file, workers), f"the cache {file}"
    else:
        boxes, origin = read(chosen), f"--proposals {chosen}"
    for split in sources:
        if split not in boxes:
            raise DataError(f"{origin} has no boxes for the split {split}; it has {', '.join(boxes) or 'none'}")
    return {split: Proposals(boxes[split], origin) for split in sources}


def cached_file(method: str, sources: Mapping[str, Source], data_dir: str | None) -> Path | None:
    """The file for a method's boxes of these data; None if the user has no cache folder."""
    folder = cache_folder()
    if folder is None:
        return None
    parts = [str(FORMAT), repr(METHODS[method]) if method == "selective_search" else method]
    for split, source in sources.items():
        what = fingerprint_of(source, data_dir) if isinstance(source, FileSource) else hash_of_images(source)
        parts.append(f"{split} {len(source)} {what}")
    return folder / "proposals" / f"{method}-{content_hash(parts)}.npz"


def hash_of_images(source: Source) -> str:
    """A hash of all images of a source that generates them."""
    total = sha1()
    for index in range(len(source)):
        total.update(source[index][0].tobytes())
    return total.hexdigest()


class Finding(Dataset[tuple[str, np.ndarray] | None]):
    """Name and boxes of each image; None for those in `known` and for unreadable ones, which the loaders report."""

    def __init__(self, method: Method, source: Source, known: Container[str]) -> None:
        self.method, self.source, self.known = method, source, known

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[str, np.ndarray] | None:
        try:
            image, _, name = self.source[index]
        except DataError:
            return None
        return None if name in self.known else (name, self.method(np.ascontiguousarray(image)))


def completed(method: Method, sources: Mapping[str, Source], file: Path | None, workers: int) -> dict[str, Boxes]:
    """The boxes in the file, and those of all other images, which are written there every minute and at the end."""
    boxes: dict[str, Boxes] = read(str(file)) if file is not None and file.is_file() else {}
    todo = [split for split, source in sources.items() if len(boxes.setdefault(split, {})) < len(source)]
    if not todo:
        return boxes
    started = saved = time.monotonic()
    progress = Progress(transient=True, disable=rank_zero_only.rank != 0)  # type: ignore[attr-defined]
    task = progress.add_task("Finding boxes", total=sum(len(sources[split]) for split in todo))
    try:
        for split in todo:
            for found in in_order(Finding(method, sources[split], frozenset(boxes[split])), workers):
                if found is not None:
                    boxes[split][found[0]] = found[1]
                progress.advance(task)
                now = time.monotonic()
                if now - started > PATIENCE:
                    progress.start()
                if file is not None and now - saved > SAVE_EVERY:
                    write(file, boxes)
                    saved = now
    finally:
        if progress.live.is_started:
            progress.stop()
    if file is not None:
        write(file, boxes)
    return boxes


def in_order(finding: Finding, workers: int) -> Iterator[tuple[str, np.ndarray] | None]:
    """What is found in each image, by so many processes."""
    with sigterm_blocked():
        found = iter(
            DataLoader(finding, None, num_workers=workers, collate_fn=unchanged, worker_init_fn=prepare_worker)
        )
    yield from found


def unchanged(found: Any) -> Any:
    return found


def prepare_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # OpenCV would start one thread per core in every worker
    ignore_signals_except_parents()


def write(path: Path, boxes: Mapping[str, Boxes]) -> bool:
    """Write a file of proposals through a temporary one. Returns False if the folder is read-only or full."""
    arrays: dict[str, np.ndarray] = {}
    for split, of_images in boxes.items():
        arrays[f"{split}_names"] = np.array(list(of_images), dtype=np.str_)
        arrays[f"{split}_counts"] = np.array([len(one) for one in of_images.values()], np.int64)
        arrays[f"{split}_boxes"] = np.concatenate([np.zeros((0, 4), np.float32), *of_images.values()])
    part = path.with_suffix(temporary_suffix())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        return False
    return True


def read(path: str) -> dict[str, Boxes]:
    """The boxes in a file, by split and name.

    Raises:
        ValueError: there is no such file, or it is no file of proposals.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"--proposals {path}: no such file, nor a method ({', '.join(METHODS)})")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            splits = [name.removesuffix("_names") for name in arrays if name.endswith("_names")]
            return {
                split: of_images(*(arrays[f"{split}_{part}"] for part in ("names", "counts", "boxes")))
                for split in splits
            }
    except (BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"--proposals {path} is no file of proposals ({reason}); delete it or give another") from None


def of_images(names: np.ndarray, counts: np.ndarray, boxes: np.ndarray) -> Boxes:
    """Divide all boxes of a split among its images.

    Raises:
        ValueError: the arrays do not fit together, or a number is not finite.
    """
    if boxes.shape != (int(counts.sum()), 4) or len(names) != len(counts) or (counts < 0).any():
        raise ValueError(f"{len(names)} names, {len(counts)} counts for {int(counts.sum())} boxes, boxes {boxes.shape}")
    if not np.isfinite(boxes).all():
        raise ValueError("a coordinate is not finite")
    ends = [0, *np.cumsum(counts).tolist()]
    return {str(name): boxes[start:end] for name, (start, end) in zip(names, pairwise(ends), strict=True)}
