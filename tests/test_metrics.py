"""Scores and losses of a split: counted by hand, in deterministic mode, and on devices without float64."""

import math
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_modules.metrics import MATRIX_CLASSES, ClassificationScores, EpochLoss, SegmentationScores
from tests.warm_process import run_python

NAMES = ("sky", "road", "car")


def brute_force_iou(truth: np.ndarray, predicted: np.ndarray, classes: int) -> list[float]:
    valid = truth != 255
    scores = []
    for c in range(classes):
        both = ((truth == c) & (predicted == c) & valid).sum()
        either = (((truth == c) | (predicted == c)) & valid).sum()
        scores.append(both / either if either else math.nan)
    return scores


def test_scores_equal_counting_by_hand_whatever_the_batches() -> None:
    logits = torch.randn(7, 3, 11, 13)
    target = torch.randint(0, 3, (7, 11, 13))
    target[torch.rand(target.shape) < 0.1] = 255
    logits[:, 2] = logits[:, 2] - 1  # make a class rarer
    results = []
    for size in (7, 3, 1):
        metric = SegmentationScores(3, 255)
        for start in range(0, 7, size):
            metric.update(logits[start : start + size], target[start : start + size])
        assert metric.matrix().dtype == torch.int64
        assert metric.matrix().sum() == (target != 255).sum()
        results.append({name: value.item() for name, value in metric.scores(NAMES).items()})
    assert results[0] == results[1] == results[2]
    expected = brute_force_iou(target.numpy(), logits.argmax(1).numpy(), 3)
    for name, value in zip(NAMES, expected, strict=True):
        assert results[0][f"iou/{name}"] == pytest.approx(value, abs=1e-12)
    assert results[0]["miou"] == pytest.approx(np.mean(expected), abs=1e-12)
    right = (logits.argmax(1) == target).sum() / (target != 255).sum()
    assert results[0]["pixel_accuracy"] == pytest.approx(right.item())


def test_the_ignored_label_may_be_any_number() -> None:
    target = torch.tensor([[[0, 1, -100, 2, -100]]])
    metric = SegmentationScores(3, -100)
    metric.update(torch.zeros(1, 3, 1, 5), target)
    assert metric.matrix().tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 0]]


def test_a_class_that_does_not_occur_does_not_lower_the_mean() -> None:
    metric = SegmentationScores(3, 255)
    target = torch.tensor([[[0, 1]]])
    metric.update(torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float(), target)
    scores = metric.scores(NAMES)
    assert scores["miou"] == 1
    assert scores["iou/car"].isnan()


MEMORY = """
import resource, sys, torch
from lightning_modules.metrics import SegmentationScores
torch.use_deterministic_algorithms(True)
metric = SegmentationScores(150, 255)
logits, target = torch.randn(1, 150, 512, 512), torch.randint(0, 150, (1, 512, 512))
logits.argmax(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
metric.update(logits, target)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, int(metric.matrix().sum()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts in other units elsewhere")
def test_counting_in_deterministic_mode_takes_no_more_memory_than_the_image() -> None:
    done = run_python(["-c", MEMORY])
    assert done.returncode == 0, done.stderr
    mebibytes, counted = map(int, done.stdout.split())
    assert counted == 512 * 512
    assert mebibytes < 64  # a mesh of pixels and cells takes 47 GB, one image's scores 157 MB


def test_top5_counts_over_all_images() -> None:
    metric = ClassificationScores(6, -100)
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1]]).repeat(3, 1)
    metric.update(logits[:2], torch.tensor([0, 4]))
    metric.update(logits[2:], torch.tensor([5]))
    scores = metric.scores(("a", "b", "c", "d", "e", "f"))
    assert scores["top1"].item() == pytest.approx(1 / 3)
    assert scores["top5"].item() == pytest.approx(2 / 3)
    assert metric.matrix().nonzero().tolist() == [[0, 0], [4, 0], [5, 0]]
    metric.reset()
    assert metric.matrix().sum() == 0
    assert metric.accuracy.images == 0


def test_classifiers_of_very_many_classes_keep_no_confusion_matrix() -> None:
    metric = ClassificationScores(21841, -100)
    metric.update(torch.eye(21841)[:4], torch.tensor([0, 1, 2, 9]))
    assert metric.matrix() is None
    assert sum(state.numel() for part in metric.children() for state in part.metric_state.values()) < 100
    assert metric.scores(())["top1"] == 0.75
    assert ClassificationScores(MATRIX_CLASSES, -100).matrix() is not None


def moved_to_mps(metric: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """What a module hands to Apple's device, which has no float64: the dtypes of all states, after the move."""
    monkeypatch.setattr("lightning_modules.metrics.exact_dtype", lambda device: torch.float32)
    seen = []

    def move(tensor: Tensor) -> Tensor:
        seen.append(tensor.dtype)
        if tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return tensor

    metric._apply(move)
    return seen


@pytest.mark.parametrize(
    "build",
    [EpochLoss, lambda: SegmentationScores(3, 255), lambda: ClassificationScores(6, -100)],
    ids=["loss", "segmentation", "classification"],
)
def test_states_can_move_to_a_device_without_float64(
    build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = build()
    assert torch.float64 not in moved_to_mps(metric, monkeypatch)
    metric.reset()
    assert all(
        value.dtype in (torch.float32, torch.int64)
        for part in metric.modules()
        for value in getattr(part, "metric_state", {}).values()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_not_rounded_where_a_module_is_cast(dtype: torch.dtype) -> None:
    metric = EpochLoss((1.0, 0.5)).to(dtype)
    for _ in range(1000):
        metric.update(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0]))
    assert metric.totals.dtype == torch.float64
    assert metric.compute() == 3.25
    metric.reset()
    assert metric.totals.dtype == torch.float64


def test_the_mean_loss_weighs_batches_by_their_images_and_goes_on_from_a_checkpoint() -> None:
    metric = EpochLoss()
    metric.update(torch.tensor(1.0), 3)
    metric.update(torch.tensor(4.0), 1)
    assert metric.compute() == 1.25
    again = EpochLoss()
    again.add(metric.over_all_ranks())
    again.update(torch.tensor(6.0), 2)
    assert again.compute() == pytest.approx(11 / 6)
    assert EpochLoss().compute().isnan()
