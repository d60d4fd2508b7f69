"""Boxes that may hold an object, found without a network, for the heads that classify such boxes.

`--proposals` names a method of `METHODS`, or a file that `experiments/propose.py` or another program wrote. A method's
boxes are kept in the cache folder, one file for a data set, and are found once. The file is an .npz with four arrays
for each split: "SPLIT_names" (the names of its samples), "SPLIT_sizes" (H and W of their images as they are stored,
int `(S, 2)`), "SPLIT_counts" (boxes of each, int) and "SPLIT_boxes" (all boxes in that order, float32 `(N, 4)`: x1, y1,
x2, y2 in pixels of that image, the most promising first).
"""

import time
from collections.abc import Callable, Container, Iterator, Mapping
from hashlib import sha1
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
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

Boxes = dict[str, tuple[np.ndarray, tuple[int, int]]]
"""Boxes float32 `(N, 4)` and H and W of each image, by its name."""
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


class Found(NamedTuple):
    """What a method has found in an image."""

    name: str
    boxes: np.ndarray
    """float32 `(N, 4)`."""
    size: tuple[int, int]
    """H and W of the image."""


class Proposals:
    """The boxes of a split's images."""

    def __init__(self, boxes: Boxes, origin: str) -> None:
        self.boxes = boxes
        self.origin = origin
        """Where they are from, for errors."""

    def of(self, name: str, image: np.ndarray, *, resized: bool = False) -> np.ndarray:
        """Boxes float32 `(N, 4)` in an image `(H, W, C)`, which may have been resized.

        Raises:
            ValueError: there are none for that name, or they are of an image of another size.
        """
        height, width = image.shape[:2]
        if name not in self.boxes:
            raise DataError(f"{self.origin} has no boxes for {name}; make them anew with experiments/propose.py")
        boxes, (own_height, own_width) = self.boxes[name]
        if not resized and (own_height, own_width) != (height, width):
            raise DataError(
                f"{self.origin}: the boxes of {name} are of an image of {own_width}x{own_height} pixels, but it has "
                f"{width}x{height}; make them anew with experiments/propose.py"
            )
        factors = np.array([width / own_width, height / own_height] * 2)
        return (boxes[:MOST] * factors).clip(0, [width, height, width, height]).astype(np.float32)


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


class Finding(Dataset[Found | None]):
    """What is found in each image; None for those in `known` and for unreadable ones, which the loaders report."""

    def __init__(self, method: Method, source: Source, known: Container[str]) -> None:
        self.method, self.source, self.known = method, source, known

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Found | None:
        try:
            image, _, name = self.source[index]
        except DataError:
            return None
        if name in self.known:
            return None
        return Found(name, self.method(np.ascontiguousarray(image)), (image.shape[0], image.shape[1]))


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
                    boxes[split][found.name] = found.boxes, found.size
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


def in_order(finding: Finding, workers: int) -> Iterator[Found | None]:
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
        each, sizes = [one for one, _ in of_images.values()], [size for _, size in of_images.values()]
        arrays[f"{split}_names"] = np.array(list(of_images), dtype=np.str_)
        arrays[f"{split}_sizes"] = np.array(sizes, np.int64).reshape(-1, 2)
        arrays[f"{split}_counts"] = np.array(list(map(len, each)), np.int64)
        arrays[f"{split}_boxes"] = np.concatenate([np.zeros((0, 4), np.float32), *each])
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
                split: of_images(*(arrays[f"{split}_{part}"] for part in ("names", "sizes", "counts", "boxes")))
                for split in splits
            }
    except (BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"--proposals {path} is no file of proposals ({reason}); delete it or give another") from None


def of_images(names: np.ndarray, sizes: np.ndarray, counts: np.ndarray, boxes: np.ndarray) -> Boxes:
    """Divide all boxes of a split among its images.

    Raises:
        ValueError: the arrays do not fit together, or a box is none or lies outside its image.
    """
    if boxes.shape != (int(counts.sum()), 4) or sizes.shape != (len(names), 2) or len(names) != len(counts):
        shapes = f"{len(names)} names, sizes {sizes.shape}, {len(counts)} counts of {counts.sum()} boxes, {boxes.shape}"
        raise ValueError(f"its arrays do not fit together: {shapes}")
    ends = [0, *np.cumsum(counts).tolist()]
    limits = np.repeat(sizes[:, ::-1], counts, axis=0) + SLACK
    wrong = ~((boxes >= -SLACK).all(1) & (boxes[:, 2:] <= limits).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1))
    if wrong.any():  # also numbers that are not finite
        first = int(wrong.argmax())
        image = int(np.searchsorted(ends, first, "right")) - 1
        height, width = sizes[image].tolist()
        raise ValueError(
            f"{wrong.sum()} boxes are none or lie outside their image; the first: {boxes[first].tolist()} of "
            f"{names[image]}, which has {width}x{height} pixels"
        )
    each = zip(names, pairwise(ends), sizes.tolist(), strict=True)
    return {str(name): (boxes[start:end], (height, width)) for name, (start, end), (height, width) in each}
