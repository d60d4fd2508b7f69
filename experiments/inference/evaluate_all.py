"""Scores a trained network on a split of a data set, picture by picture."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.base import GraftDataModule
from datamodules.errors import DataError
from experiments.command_line.progress import with_progress
from experiments.command_line.run_config import RunConfig
from experiments.inference.counts import Counts, count_picture, count_pixels
from experiments.inference.protocol import Predictor
from experiments.inference.trained import TrainedNetwork, checkpoint_of, run_settings
from experiments.training.build import build_data
from lightning_modules.trimap import TrimapScores


@dataclass
class Evaluation:
    """What came of one network on one split."""

    split: str
    names: list[str]
    """Of the pictures, in the order of the split."""
    indices: list[int]
    """Of the pictures in the split; unreadable ones are missing."""
    counts: Counts
    """Over all pictures."""
    each: np.ndarray
    """int64 `(N, 3, C)`: right, in the truth and predicted, of each picture and class; C is 1 in classification."""
    confidence: list[float]
    """Mean confidence of each picture."""
    labels: list[tuple[int, int]]
    """Truth and prediction of each picture; (-1, -1) in segmentation."""
    trimap: dict[str, float]
    """mIoU within so many pixels of a true boundary, "all" for whole pictures; empty in classification."""
    skipped: list[str]


def data_of(run: str, data: str | None, data_dir: str | None, network: TrainedNetwork) -> GraftDataModule:
    """The data set of a run, or another one, ready to evaluate.

    Raises:
        ValueError: the run's settings are missing, or the data set has other classes than the network.
    """
    values = run_settings(checkpoint_of(Path(run)))
    if data is None and "data" not in values:
        raise ValueError(f"{run} has no config.yaml beside it; name the data set with --data and --data-dir")
    if data is not None and data != values.get("data"):
        values |= {"data": data, "data_dir": None, "mask_suffix": None}
    values |= {} if data_dir is None else {"data_dir": data_dir}
    hparams = network.module.hparams
    values |= {"backbone": hparams["backbone"], "head": hparams["head"], "image_size": list(network.size_rule.size)}
    values |= {"augmentation": None, "cache": "none", "on_bad_sample": "skip", "batch_size": 1}
    module = build_data(RunConfig(**values))
    module.setup()
    if tuple(module.class_names) != network.class_names:
        raise ValueError(
            f"the data set has the classes {', '.join(module.class_names[:8])} ({module.num_classes}), the network "
            f"{', '.join(network.class_names[:8])} ({len(network.class_names)}); give the data set it was trained for"
        )
    return module


def pictures(
    data: GraftDataModule, split: str, indices: Iterable[int] | None = None
) -> Iterator[tuple[int, np.ndarray, Any, str] | DataError]:
    """Index, image uint8 `(H, W, 3)`, truth and name of each picture of a split, as stored; or why it is unreadable.

    `indices` chooses some of the pictures.
    """
    source = getattr(data, split).source
    for index in range(len(source)) if indices is None else indices:
        try:
            image, truth, name = source[index]
        except DataError as error:
            yield error
            continue
        yield index, image, truth, name


def evaluate(predictor: Predictor, data: GraftDataModule, split: str) -> Evaluation:
    """Score every picture of a split.

    Raises:
        ValueError: the data set has no such split, or none of its pictures can be read.
    """
    if split not in data.splits:
        raise ValueError(f"--split {split}: the data set has {', '.join(data.splits)}")
    network = predictor.network
    segments = network.task == "segmentation"
    trimap = TrimapScores(data.num_classes, data.ignore_index) if segments else None
    found = Evaluation(split, [], [], Counts.none(data.num_classes), np.empty(0), [], [], {}, [])
    each = []
    for one in with_progress(pictures(data, split), len(getattr(data, split).source), "pictures"):
        if isinstance(one, DataError):
            found.skipped.append(str(one))
            continue
        index, image, truth, name = one
        probabilities = predictor(image)
        if trimap is not None:
            counts = count_pixels(probabilities, truth, data.ignore_index)
            trimap.update(torch.from_numpy(probabilities)[None], torch.from_numpy(truth.astype(np.int64))[None])
            matrix = counts.matrix
            each.append(np.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)]))
            found.labels.append((-1, -1))
        else:
            counts = count_picture(probabilities, int(truth))
            label = int(probabilities.argmax())
            each.append(np.array([[label == int(truth)], [1], [1]], np.int64))
            found.labels.append((int(truth), label))
        found.counts += counts
        found.names.append(name)
        found.indices.append(index)
        found.confidence.append(float(probabilities.max(0).mean()))
    if not each:
        raise ValueError(f"no picture of the {split} split can be read; the first: {found.skipped[0]}")
    found.each = np.stack(each)
    if trimap is not None:
        bands = trimap.compute()
        found.trimap = {"all" if width is None else str(width): float(value) for width, value in bands.items()}
    return found
