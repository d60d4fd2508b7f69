"""Draws samples of a data set as training sees them, with statistics of its classes and colours.

Statistics are of the images as stored, before augmentation, at most 500 of them.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np

from datamodules.bands import as_rgb
from datamodules.base import GraftDataModule
from datamodules.checking import in_threads
from datamodules.objects import Objects
from datamodules.samples import Samples
from datamodules.source import SourceOfSeveralLabels
from experiments.training.draw_boxes import draw_boxes
from experiments.training.predictions import coloured, label_names

MOST_READ = 500
MOST_CLASSES = 30
"""At most so many classes have a bar; with more, the most frequent ones."""
FEW = 8
"""With fewer bars, the axis is not filled, so that bars do not become wide."""
SHOWN = 8
"""Number of samples in the picture."""


@dataclass
class Statistics:
    """Statistics of the images that were read.

    `shown_in` counts the images that show each class; `share` and `ignored` are fractions of pixels in [0, 1]; `mean`
    and `std` are those of the colours, in [0, 1].
    """

    images: int
    shown_in: np.ndarray
    share: np.ndarray
    ignored: float
    mean: np.ndarray
    std: np.ndarray


def measure(samples: Samples, num_classes: int) -> Statistics:
    """Read at most MOST_READ samples, evenly spread over the split, and compute their statistics."""
    step = -(-len(samples) // MOST_READ)
    parts = in_threads("Reading", [partial(of_one, samples, i, num_classes) for i in range(0, len(samples), step)])
    counts, levels, squares, pixels = (np.array(part) for part in zip(*parts, strict=True))
    mean = levels.sum(0) / pixels.sum()
    totals = counts.sum(0).astype(float)
    return Statistics(
        len(parts),
        (counts[:, :num_classes] > 0).sum(0),
        totals[:num_classes] / max(1.0, totals[:num_classes].sum()),
        float(totals[num_classes:].sum() / max(1.0, totals.sum())),
        mean,
        np.sqrt(squares.sum(0) / pixels.sum() - mean**2),
    )


def of_one(samples: Samples, index: int, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Pixels per class and, last, ignored ones; sums of colour levels in [0, 1] and of their squares; all pixels.

    Of detection, objects are counted instead of pixels.
    """
    image, target, _ = samples.load(index)
    labels = target.labels if isinstance(target, Objects) else np.ravel(target)
    if isinstance(samples.source, SourceOfSeveralLabels):
        labels = np.flatnonzero(samples.source.labels_of(cast("int", target)))
    counts = np.bincount(labels, minlength=256 if isinstance(target, np.ndarray) else num_classes)
    counts = np.append(counts[:num_classes], counts[num_classes:].sum())
    # From how often each level occurs: exact, and faster than arithmetic on all pixels.
    levels = np.stack([np.bincount(image[..., channel].ravel(), minlength=256) for channel in range(image.shape[2])])
    values = np.arange(256) / 255
    return counts, levels @ values, levels @ values**2, image.shape[0] * image.shape[1]


def draw(data: GraftDataModule, samples: Samples, title: str, path: Path) -> None:
    """Draw samples above and statistics below, and write the picture to `path`."""
    found = measure(samples, data.num_classes)
    picked = np.linspace(0, len(samples) - 1, min(SHOWN, len(samples))).astype(int)
    items = [item for index in picked if (item := samples[0, int(index)]) is not None]
    height, width = items[0]["image"].shape[1:]
    pictures = tiles(data, items)
    columns = 4
    rows = -(-len(pictures) // columns)
    tile_height = 11 / columns * height / width + (0.25 if data.task == "classification" else 0.05)
    figure = plt.figure(figsize=(11, rows * tile_height + 4.1), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[rows * tile_height, 3.6])
    top, bottom = parts
    axes = top.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, (picture, caption) in zip(axes.flat, pictures, strict=False):
        ax.imshow(picture, interpolation="nearest")
        ax.set_title(caption, fontsize=8)
    draw_classes(bottom, data, found)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def tiles(data: GraftDataModule, items: list[dict[str, Any]]) -> list[tuple[np.ndarray, str]]:
    """Pictures and their captions: each image, followed by its mask where it has one."""
    pictures = []
    for item in items:
        image = as_rgb(data.to_pixels(item["image"]).permute(1, 2, 0).numpy())
        if data.task == "classification":
            pictures.append((image, label_names(item["target"].numpy(), data.class_names)))
            continue
        if data.task == "detection":
            pictures.append((draw_boxes(image, item["target"], data.class_names, data.colours), ""))
            continue
        mask = item["target"].numpy()
        labels = coloured(mask, data)
        # Ignored pixels are hatched: black is a class of many data sets.
        hatch = (np.add.outer(np.arange(mask.shape[0]), np.arange(mask.shape[1])) // 4 % 2).astype(bool)
        labels[mask == data.ignore_index] = 255
        labels[(mask == data.ignore_index) & hatch] = 200
        pictures += [(image, ""), (labels, "")]
    return pictures


def draw_classes(figure: Any, data: GraftDataModule, found: Statistics) -> None:
    """Draw bars in the classes' colours, which are also the legend of the masks."""
    masked = data.task != "classification"
    counted = "objects" if data.task == "detection" else "pixels that count"
    order = np.arange(data.num_classes)
    if data.num_classes > MOST_CLASSES:
        order = np.sort(np.argsort(-found.share, kind="stable")[:MOST_CLASSES])
    names = [data.class_names[i] for i in order]
    colours = [tuple(channel / 255 for channel in data.colours[i]) for i in order] if masked else "tab:blue"
    axes = figure.subplots(1, 2 if masked else 1, squeeze=False)[0]
    bars = [(found.shown_in[order], f"images that show a class, of {found.images} read", "{:.0f}")]
    if masked:
        bars.append((100 * found.share[order], f"% of the {counted} ({found.ignored:.1%} are ignored)", "{:.2g}"))
    for ax, (values, label, form) in zip(axes, bars, strict=True):
        drawn = ax.bar(names, values, color=colours, edgecolor="black", linewidth=0.5)
        ax.bar_label(drawn, [form.format(value) for value in values], fontsize=7, padding=1)
        ax.set_title(label, fontsize=9)
        ax.tick_params(axis="x", rotation=90 if len(names) > 12 else 45, labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(y=0.12)
        ax.set_xlim(-0.6, max(len(names), FEW) - 0.4)
    left_out = (
        f"{data.num_classes - len(order)} rarer classes are not drawn.  " if len(order) < data.num_classes else ""
    )
    measured, used = (
        (" ".join(f"{v:.3f}" for v in m), " ".join(f"{v:.3f}" for v in s))
        for m, s in ((found.mean, found.std), (data.mean, data.std))
    )
    what = "RGB mean" if data.in_channels == 3 else "mean of each band"
    text = f"{left_out}{what} {measured[0]}, std {measured[1]};  normalised by mean {used[0]}, std {used[1]}"
    figure.supxlabel(text, fontsize=9)
