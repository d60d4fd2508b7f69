"""Class weights of the loss, against rare classes, from one count over the training set.

median_frequency: Predicting Depth, Surface Normals and Semantic Labels with a Common Multi-Scale Convolutional
Architecture. Eigen, Fergus 2015, arXiv:1411.4734, section 4.3.3: median(f) / f, where f of a class is its fraction of
the pixels of those images that show it. inverse_log: ENet. Paszke, Chaurasia, Kim, Culurciello 2016, arXiv:1606.02147:
1 / ln(1.02 + p), where p is its fraction of all pixels. A class that no training image shows gets the weight 1 in the
first (the paper does not say; nothing in training depends on it) and 1 / ln 1.02 in the second. For classification,
images are counted instead of pixels. Ignored pixels never count.

Only labels and masks are read, never images. The counts of masks are cached in `.graft/` in the data's folder or, if
that cannot be written, in `~/.cache/graft`, under a hash of the masks' content and of how they are read. One rank of
each machine counts for all its ranks.
"""

import pickle
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.base import GraftDataModule, Source
from datamodules.cache_folder import cache_folder, read_json, write_json
from datamodules.checking import in_threads
from datamodules.errors import DataError
from datamodules.files import MaskedImages
from datamodules.node_folder import once_per_node
from datamodules.objects import Objects
from datamodules.shards import ShardSamples
from datamodules.source import SourceWithClasses

ENET_C = 1.02


class Counts(NamedTuple):
    """For each class: the number of its pixels, and of the valid pixels of all images that show it."""

    pixels: np.ndarray
    shown_in: np.ndarray


def class_weights(weighting: str, data: GraftDataModule) -> list[float] | None:
    """A weight for each class by `median_frequency`, `inverse_log` or a file of numbers; None for "none".

    Raises:
        ValueError: the file does not hold a number of at least 0 for each class.
    """
    if weighting == "none" or data.train is None:
        return None
    if data.task == "detection":
        raise DataError(f"--class-weights {weighting}: heads that detect objects bring their own loss; leave it out")
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
    """The numbers in a file, separated by spaces, commas or line breaks, in the order of the classes."""
    try:
        weights = [float(word) for word in path.expanduser().read_text(encoding="utf-8").replace(",", " ").split()]
    except (OSError, ValueError) as error:
        raise DataError(f"--class-weights {path} cannot be read ({error}); write a number for each class") from None
    if len(weights) != len(class_names) or not all(0 <= weight < float("inf") for weight in weights):
        raise DataError(
            f"--class-weights {path} holds {len(weights)} numbers; write {len(class_names)} of at least 0, for "
            f"{class_names[0]} to {class_names[-1]} in this order"
        )
    return weights


def count(source: Source, data: GraftDataModule) -> Counts:
    """Counts over all samples of a source, from the cache if they are there."""
    labels = class_labels(source)
    if labels is not None:
        images = np.bincount(labels, minlength=data.num_classes)
        return Counts(images, np.full(data.num_classes, images.sum()))
    if not isinstance(source, MaskedImages | ShardSamples):  # generated, in no time
        targets = [source[index][1] for index in range(len(source))]
        return add_up([of_target(one, data.num_classes) for one in targets if not isinstance(one, Objects)])
    name = f"class counts {type(data).__name__} {data.data_dir} {data.num_classes}"
    pixels, shown_in = once_per_node(name, partial(count_masks, source, data))
    return Counts(np.array(pixels), np.array(shown_in))


def class_labels(source: Source) -> np.ndarray | None:
    """The class of each sample; None if the samples have masks."""
    return source.class_labels() if isinstance(source, SourceWithClasses) else None


def count_masks(source: MaskedImages | ShardSamples, data: GraftDataModule) -> list[list[int]]:
    """`Counts` as plain lists, from the cache or from all masks."""
    name = f"class-counts-{content_hash(source, data.num_classes)}.json"
    folders = [folder for folder in (data.data_dir and Path(data.data_dir) / ".graft", cache_folder()) if folder]
    for folder in folders:
        kept = read_json(folder / name)
        if isinstance(kept, list):
            return kept
    jobs = [partial(of_mask, source, index, data.num_classes) for index in range(len(source))]
    counts = add_up(in_threads("Counting the classes", jobs, tolerant=data.on_bad_sample == "skip"))
    found = [values.tolist() for values in counts]
    for folder in folders:
        if write_json(folder / name, found):
            break
    return found


def of_mask(source: MaskedImages | ShardSamples, index: int, num_classes: int) -> np.ndarray:
    return of_target(source.mask(index), num_classes)


def of_target(target: np.ndarray | int, num_classes: int) -> np.ndarray:
    """Pixels of each class in a mask, or a single one of the class that an image has."""
    return np.bincount(np.ravel(target), minlength=256)[:num_classes]


def add_up(samples: list[np.ndarray]) -> Counts:
    """The counts of all images from those of each."""
    pixels = np.array(samples)
    return Counts(pixels.sum(0), ((pixels > 0) * pixels.sum(1, keepdims=True)).sum(0))


def content_hash(source: MaskedImages | ShardSamples, num_classes: int) -> str:
    """A hash of the masks and of how they are read; shards are hashed by size and date instead of content."""
    if isinstance(source, ShardSamples):
        shards = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in source.shards]
        return blake2b(pickle.dumps((num_classes, shards, source.parts.tobytes())), digest_size=16).hexdigest()
    total = blake2b(pickle.dumps((num_classes, source.labels, source.read)), digest_size=16)
    jobs = [partial(file_hash, one.mask) for one in source.pairs]
    for digest in in_threads("Hashing the masks", jobs):
        total.update(digest)
    return total.hexdigest()


def file_hash(path: Path) -> bytes:
    """A hash of the content; empty if the file cannot be read, for which counting raises an error that names it."""
    try:
        return blake2b(path.read_bytes()).digest()
    except OSError:
        return b""
