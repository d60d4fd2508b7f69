"""Weights of the loss against classes that are rare, counted once over the training set.

median_frequency: Predicting Depth, Surface Normals and Semantic Labels with a Common Multi-Scale Convolutional
Architecture. Eigen, Fergus 2015, arXiv:1411.4734, section 4.3.3: median(f) / f, where f of a class is its share of the
pixels of those images that show it. inverse_log: ENet. Paszke, Chaurasia, Kim, Culurciello 2016, arXiv:1606.02147:
1 / ln(1.02 + p), where p is its share of all pixels. A class that no training image shows has the weight 1 in the
first (the paper leaves it open; nothing in training depends on it) and 1 / ln 1.02 in the second. Of images with one
class each, the images count as pixels do. Ignored pixels never count.

What is counted in masks is kept in `.graft/` in the data's folder or, where that cannot be written, in
`~/.cache/graft`, under a hash of the masks' content and of how they are read.
"""

import json
import os
import pickle
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.base import GraftDataModule, Source
from datamodules.checking import in_threads
from datamodules.errors import DataError
from datamodules.files import LabelledImages, MaskedImages

ENET_C = 1.02


class Counts(NamedTuple):
    """Of each class: its pixels, and the valid pixels of all images that show it."""

    pixels: np.ndarray
    shown_in: np.ndarray


def class_weights(weighting: str, data: GraftDataModule) -> list[float] | None:
    """A weight for each class by `median_frequency`, `inverse_log` or a file of numbers; None for "none".

    Raises:
        ValueError: the file does not hold a number above or equal to 0 for each class.
    """
    if weighting == "none" or data.train is None:
        return None
    if weighting == "median_frequency":
        return median_frequency(count(data.train.source, data))
    if weighting == "inverse_log":
        return inverse_log(count(data.train.source, data))
    return read_weights(Path(weighting), data.class_names)


def median_frequency(counts: Counts) -> list[float]:
    shown = counts.pixels > 0
    frequency = counts.pixels[shown] / counts.shown_in[shown]
    weights = np.ones(len(shown))
    weights[shown] = np.median(frequency) / frequency
    return weights.tolist()


def inverse_log(counts: Counts) -> list[float]:
    return (1 / np.log(ENET_C + counts.pixels / max(1, counts.pixels.sum()))).tolist()


def read_weights(path: Path, class_names: tuple[str, ...]) -> list[float]:
    """Numbers between spaces, commas or line ends, in the order of the classes."""
    try:
        weights = [float(word) for word in path.read_text(encoding="utf-8").replace(",", " ").split()]
    except (OSError, ValueError) as error:
        raise DataError(f"--class-weights {path} cannot be read ({error}); write a number for each class") from None
    if len(weights) != len(class_names) or not all(0 <= weight < float("inf") for weight in weights):
        raise DataError(
            f"--class-weights {path} holds {len(weights)} numbers; write {len(class_names)} of at least 0, for "
            f"{class_names[0]} to {class_names[-1]} in this order"
        )
    return weights


def count(source: Source, data: GraftDataModule) -> Counts:
    """Counts over all samples of a source, from the cache where they are there."""
    if isinstance(source, LabelledImages):
        labels = np.bincount([label for _, label in source.files], minlength=data.num_classes)
        return Counts(labels, np.full(data.num_classes, labels.sum()))
    if not isinstance(source, MaskedImages):
        return add_up([of_target(source[index][1], data.num_classes) for index in range(len(source))])
    name = f"class-counts-{content_hash(source, data.num_classes)}.json"
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graft"
    folders = [Path(data.data_dir) / ".graft", user] if data.data_dir else [user]
    for folder in folders:
        try:
            kept = json.loads((folder / name).read_text(encoding="utf-8"))
            return Counts(np.array(kept["pixels"]), np.array(kept["shown_in"]))
        except (OSError, ValueError, KeyError):
            continue
    jobs = [partial(of_mask, source, index, data.num_classes) for index in range(len(source))]
    counts = add_up(in_threads("Counting the classes", jobs, tolerant=data.on_bad_sample == "skip"))
    for folder in folders:
        if keep(folder / name, counts):
            break
    return counts


def of_mask(source: MaskedImages, index: int, num_classes: int) -> np.ndarray:
    return of_target(source.mask(index), num_classes)


def of_target(target: np.ndarray | int, num_classes: int) -> np.ndarray:
    """Pixels of each class in a mask, or one of the class that an image has."""
    return np.bincount(np.ravel(target), minlength=256)[:num_classes]


def add_up(samples: list[np.ndarray]) -> Counts:
    pixels = np.array(samples)
    return Counts(pixels.sum(0), ((pixels > 0) * pixels.sum(1, keepdims=True)).sum(0))


def content_hash(source: MaskedImages, num_classes: int) -> str:
    total = blake2b(pickle.dumps((num_classes, source.labels, source.read)), digest_size=16)
    jobs = [partial(file_hash, one.mask) for one in source.pairs]
    for digest in in_threads("Hashing the masks", jobs):
        total.update(digest)
    return total.hexdigest()


def file_hash(path: Path) -> bytes:
    try:
        return blake2b(path.read_bytes()).digest()
    except OSError:  # counting names the file
        return b""


def keep(path: Path, counts: Counts) -> bool:
    """Whether the counts could be written; a folder may be read-only, or full."""
    part = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({name: values.tolist() for name, values in counts._asdict().items()}))
        part.replace(path)
    except OSError:
        return False
    return True
