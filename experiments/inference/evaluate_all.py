"""Scores a trained network on a split of a data set, picture by picture."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.base import GraftDataModule
from datamodules.errors import DataError
from experiments.command_line.progress import with_progress
from experiments.command_line.run_config import RunConfig
from experiments.inference.counts import Counts, by_confidence, count_picture, count_pixels
from experiments.inference.gallery import Gallery
from experiments.inference.paired import picture_scores
from experiments.inference.protocol import Predictor
from experiments.inference.results import Result
from experiments.inference.trained import TrainedNetwork, checkpoint_of, run_settings
from experiments.training.build import build_data
from lightning_modules.trimap import TrimapScores


@dataclass
class Evaluation:
    """What came of one network on one split."""

    split: str
    names: list[str]
    """Names of the pictures, in the order of the split."""
    indices: list[int]
    """Indices of the pictures in the split; unreadable ones are missing."""
    abstain: float
    """Confidence below which a pixel or picture gets no label."""
    counts: Counts
    """Over all pictures."""
    uncalibrated: Counts | None
    """Only by confidence, before logits are divided by the temperature; None if there is none or with a CRF."""
    each: np.ndarray
    """int64 `(N, 3, C)`: right, in the truth and predicted, of each picture and class; C is 1 in classification."""
    confidence: list[float]
    """Mean confidence of each picture."""
    labels: list[tuple[int, int]]
    """Truth and prediction of each picture; (-1, -1) in segmentation."""
    trimap: dict[str, float]
    """mIoU within so many pixels of a true boundary, "all" for whole pictures; empty in classification."""
    skipped: list[str]
    """Why each picture that is missing could not be read."""
    worst: Gallery
    """The pictures with the lowest scores."""


def data_of(run: str, data: str | None, data_dir: str | None, network: TrainedNetwork) -> GraftDataModule:
    """The data set of a run, or another one, ready to evaluate.

    Raises:
        ValueError: the run's settings are missing, the data set has other classes than the network, or its images have
            several labels.
    """
    if network.module.hparams["several_labels"]:
        raise ValueError(
            f"{run} gives images several labels, which this program does not support; run.py with --epochs 0 and "
            "--start-from scores such networks, predict.py predicts"
        )
    values = run_settings(checkpoint_of(Path(run)))
    if data is None and "data" not in values:
        raise ValueError(f"{run} has no config.yaml beside it; name the data set with --data and --data-dir")
    if data is not None and data != values.get("data"):
        values |= {"data": data, "data_dir": None, "mask_suffix": None}
    values |= {} if data_dir is None else {"data_dir": data_dir}
    hparams = network.module.hparams
    values |= {"backbone": hparams["backbone"], "head": hparams["head"], "image_size": list(network.size_rule.size)}
    values["in_channels"] = network.in_channels
    values |= {"augmentation": None, "scale_range": None, "cache": "none", "on_bad_sample": "skip", "batch_size": 1}
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


class Scorer:
    """Scores one network picture by picture."""

    def __init__(self, predictor: Predictor, data: GraftDataModule, split: str, abstain: float, worst: int) -> None:
        self.predictor, self.ignore_index, self.abstain = predictor, data.ignore_index, abstain
        segments = predictor.network.task == "segmentation"
        self.trimap = TrimapScores(data.num_classes, data.ignore_index) if segments else None
        self.each: list[np.ndarray] = []
        none, gallery = Counts.none(data.num_classes), Gallery(worst, predictor.network, data.ignore_index)
        self.found = Evaluation(split, [], [], abstain, none, None, np.empty(0), [], [], {}, [], gallery)

    def add(
        self,
        index: int,
        image: np.ndarray,
        truth: Any,
        name: str,
        probabilities: np.ndarray,
        uncalibrated: np.ndarray | None,
    ) -> tuple[float, Result]:
        """Score one picture and what `Predictor.both` says of it. Returns its own score and the prediction."""
        found, network = self.found, self.predictor.network
        if self.trimap is not None:
            counts = count_pixels(probabilities, truth, self.ignore_index, self.abstain)
            self.trimap.update(torch.from_numpy(probabilities)[None], torch.from_numpy(truth.astype(np.int64))[None])
            matrix = counts.matrix
            each = np.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)])
            found.labels.append((-1, -1))
        else:
            counts = count_picture(probabilities, int(truth), self.abstain)
            label = int(probabilities.argmax())
            each = np.array([[label == int(truth)], [1], [1]], np.int64)
            found.labels.append((int(truth), label))
        self.each.append(each)
        found.counts += counts
        if uncalibrated is not None:
            self.add_uncalibrated(uncalibrated, np.asarray(truth))
        found.names.append(name)
        found.indices.append(index)
        found.confidence.append(float(probabilities.max(0).mean()))
        score = float(picture_scores(each[None], network.task)[0])
        result = replace(network.result(probabilities, image), abstain=self.abstain)
        caption = f"{name} score {score:.3f}, confidence {found.confidence[-1]:.3f}"
        found.worst.add(score, caption, truth, [result])
        return score, result

    def add_uncalibrated(self, probabilities: np.ndarray, truth: np.ndarray) -> None:
        """Count probabilities `(C, H, W)` or `(C,)` by their confidence."""
        if self.found.uncalibrated is None:
            self.found.uncalibrated = Counts.none(len(probabilities))
        valid = truth != self.ignore_index if truth.ndim else np.array(True)
        right = probabilities.argmax(0) == truth
        counted = by_confidence(probabilities.max(0)[valid], right[valid])
        self.found.uncalibrated.right += counted[0]
        self.found.uncalibrated.total += counted[1]

    def evaluation(self) -> Evaluation:
        """What was found in all pictures together."""
        self.found.each = np.stack(self.each)
        if self.trimap is not None:
            bands = self.trimap.compute()
            widths = {width: "all" if width is None else str(width) for width in bands}
            self.found.trimap = {widths[width]: float(value) for width, value in bands.items()}
        return self.found


def evaluate(
    predictors: Sequence[Predictor], data: GraftDataModule, split: str, *, abstain: float = 0.0, worst: int = 0
) -> tuple[list[Evaluation], Gallery]:
    """Score one network, or two, on every picture of a split.

    Args:
        abstain: pixels or pictures whose confidence is below this get no label.
        worst: how many pictures the galleries keep.

    Returns:
        An evaluation for each network, and the pictures where the scores of two differ most.

    Raises:
        ValueError: the data set has no such split, or none of its pictures can be read.
    """
    if split not in data.splits:
        raise ValueError(f"--split {split}: the data set has {', '.join(data.splits)}")
    scorers = [Scorer(predictor, data, split, abstain, worst) for predictor in predictors]
    changed = Gallery(worst, predictors[0].network, data.ignore_index)
    for one in with_progress(pictures(data, split), len(getattr(data, split).source), "pictures"):
        problem = str(one)
        if not isinstance(one, DataError):
            _, image, truth, name = one
            try:
                predicted = [predictor.both(image, uncalibrated=True) for predictor in predictors]
                problem = ""
            except ValueError as error:  # too few pixels, or too many
                problem = f"{name}: {error}"
        if problem or isinstance(one, DataError):
            for scorer in scorers:
                scorer.found.skipped.append(problem)
            continue
        added = [scorer.add(*one, *both) for scorer, both in zip(scorers, predicted, strict=True)]
        scores, results = zip(*added, strict=True)
        if len(scorers) == 2:
            caption = f"{name} score {scores[0]:.3f}, the other {scores[1]:.3f}"
            changed.add(-abs(scores[0] - scores[1]), caption, truth, results)
    if not scorers[0].each:
        raise ValueError(f"no picture of the {split} split can be read; the first: {scorers[0].found.skipped[0]}")
    return [scorer.evaluation() for scorer in scorers], changed
